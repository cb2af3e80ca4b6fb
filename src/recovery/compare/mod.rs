//! Whether two nodes hold the same: a digest of everything in every database of both, taken side by side.
//!
//! It reads all rows of all tables, so it costs what a full scan of both nodes costs; the caller bounds it and sees to it
//! that nothing is written meanwhile. `fingerprint` takes the digests of one node, `questions` is the SQL.

mod fingerprint;
mod questions;

pub use fingerprint::Login;

use crate::cluster::NodeSpec;
use fingerprint::{Fingerprint, fingerprint};

/// Differences that are told by name; more are counted.
const TOLD: usize = 10;

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Everything, all rows.
    Whole,
    /// Databases, roles, names of tables, sequences: what costs no scan.
    Outline,
}

/// What is found to differ, for people; empty when the nodes are equal.
pub async fn compare(login: &Login, main: &NodeSpec, other: &NodeSpec) -> Result<Vec<String>, String> {
    compare_as(login, main, other, Depth::Whole).await
}

/// The same, looking at less.
pub async fn compare_as(login: &Login, main: &NodeSpec, other: &NodeSpec, depth: Depth) -> Result<Vec<String>, String> {
    let (ours, theirs) = tokio::join!(fingerprint(login, main, depth), fingerprint(login, other, depth));
    let of = |node: &NodeSpec| {
        let id = node.id;
        move |error: String| format!("node {id}: {error}")
    };
    Ok(differences(&ours.map_err(of(main))?, &theirs.map_err(of(other))?))
}

/// Names of what the second lacks, has too much, or has otherwise.
fn differences(main: &Fingerprint, other: &Fingerprint) -> Vec<String> {
    let missing_or_other = main.iter().filter_map(|(name, digest)| match other.get(name) {
        None => Some(format!("{name} is missing")),
        Some(theirs) if theirs != digest => Some(format!("{name} differs")),
        Some(_) => None,
    });
    let too_much = other.keys().filter(|name| !main.contains_key(*name)).map(|name| format!("{name} is too much"));
    let mut found: Vec<String> = missing_or_other.chain(too_much).collect();
    if found.len() > TOLD {
        let more = found.len() - TOLD;
        found.truncate(TOLD);
        found.push(format!("and {more} more"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_and_counted() {
        let print = |pairs: &[(&str, &str)]| -> Fingerprint {
            pairs.iter().map(|(name, digest)| ((*name).to_owned(), (*digest).to_owned())).collect()
        };
        let main = print(&[("a", "1"), ("b", "2"), ("c", "3")]);
        assert_eq!(differences(&main, &main), Vec::<String>::new());
        let other = print(&[("a", "1"), ("b", "9"), ("d", "4")]);
        assert_eq!(differences(&main, &other), ["b differs", "c is missing", "d is too much"]);
        let many: Fingerprint = (0..30).map(|n| (format!("table {n:02}"), String::new())).collect();
        let told = differences(&many, &Fingerprint::new());
        assert_eq!((told.len(), told[10].as_str()), (11, "and 20 more"));
    }
}
