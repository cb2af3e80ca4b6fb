//! What earlier recoveries of a node left behind since the last one that succeeded, as their journals tell it.

use super::KIND;
use crate::base::NodeId;
use crate::store::JournalFile;
use crate::workflow::Outcome;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The journals of a node's recoveries since its last success, oldest first.
pub(super) struct Earlier(Vec<JournalFile>);

/// Links of a data directory that was emptied; the copy that should have made them anew did not end well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeptLinks {
    pub wal: Option<PathBuf>,
    /// Oid and place.
    pub tablespaces: Vec<(String, PathBuf)>,
}

impl Earlier {
    pub fn of(journals: Vec<JournalFile>, node: NodeId, present_job: u64) -> Earlier {
        let mut unsuccessful = Vec::new();
        for journal in journals.into_iter().filter(|j| j.job != present_job && is_of(j, node)) {
            if succeeded(&journal) {
                unsuccessful.clear();
            } else {
                unsuccessful.push(journal);
            }
        }
        Earlier(unsuccessful)
    }

    /// First and last second of each.
    pub fn spans(&self) -> Vec<(u64, u64)> {
        self.0.iter().filter_map(|j| Some((j.records.first()?.at_s, j.records.last()?.at_s))).collect()
    }

    /// Half a copy has no control file (it comes last); its journal names the place.
    pub fn emptied(&self, directory: &Path) -> bool {
        self.0.iter().any(|j| emptied(j, directory).is_some())
    }

    /// An interrupted `pg_rewind` leaves a mixture, and one that was not enough would not be enough again.
    pub fn rewound(&self) -> bool {
        self.0.iter().any(|j| j.last("FirstStage.Rewind").is_some())
    }

    /// The links that the directory had before it was first emptied; newer findings win.
    pub fn links(&self, directory: &Path) -> KeptLinks {
        let mut links = KeptLinks::default();
        for record in self.0.iter().rev().filter_map(|j| emptied(j, directory)) {
            let wal = record.get("wal").and_then(Value::as_str).map(PathBuf::from);
            links.wal = links.wal.or(wal);
            let spaces = record.get("tablespaces").and_then(Value::as_object);
            for (oid, place) in spaces.into_iter().flatten() {
                if let Some(place) = place.as_str().filter(|_| links.tablespaces.iter().all(|(o, _)| o != oid)) {
                    links.tablespaces.push((oid.clone(), PathBuf::from(place)));
                }
            }
        }
        links
    }
}

fn is_of(journal: &JournalFile, node: NodeId) -> bool {
    let field = |name: &str| journal.records.first().and_then(|r| r.data.get(name));
    field("kind").and_then(Value::as_str) == Some(KIND)
        && field("node").and_then(Value::as_u64) == Some(u64::from(node.0))
}

fn succeeded(journal: &JournalFile) -> bool {
    let outcome = journal.records.iter().rev().find_map(|r| r.data.get("outcome"));
    outcome.is_some_and(|o| serde_json::from_value::<Outcome>(o.clone()).is_ok_and(|o| o == Outcome::Succeeded))
}

fn emptied<'a>(journal: &'a JournalFile, directory: &Path) -> Option<&'a Value> {
    let data = &journal.last("FirstStage.Empty")?.data;
    (data.get("directory").and_then(Value::as_str) == directory.to_str()).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Record;
    use serde_json::json;

    fn journal(job: u64, node: u16, records: &[(&str, Value)]) -> JournalFile {
        let first = ("Requested", json!({ "kind": "recovery", "node": node }));
        let records = std::iter::once(&first).chain(records);
        let record = |(i, (name, data)): (usize, &(&str, Value))| Record {
            at_s: job * 100 + i as u64,
            name: (*name).to_owned(),
            data: data.clone(),
        };
        JournalFile { job, records: records.enumerate().map(record).collect() }
    }

    #[test]
    fn a_success_ends_what_earlier_ones_left() {
        let place = Path::new("/d");
        let empty =
            |wal: &str| ("FirstStage.Empty", json!({ "directory": "/d", "wal": wal, "tablespaces": { "7": "/t" } }));
        let done = ("Done", json!({ "outcome": "succeeded" }));
        let failed = ("Aborted", json!({ "outcome": "failed" }));
        let all = vec![
            journal(1, 1, &[empty("/old"), ("FirstStage.Rewind", json!({})), done]),
            journal(2, 1, &[empty("/wal"), failed.clone()]),
            journal(3, 2, &[("FirstStage.Rewind", json!({})), failed.clone()]),
            journal(4, 1, &[("FirstStage.Empty", json!({ "directory": "/d" })), failed]),
            journal(5, 1, &[]),
        ];
        let earlier = Earlier::of(all.clone(), NodeId(1), 5);
        assert_eq!(earlier.spans(), [(200, 202), (400, 402)]);
        assert!(earlier.emptied(place) && !earlier.emptied(Path::new("/e")) && !earlier.rewound());
        let links = KeptLinks { wal: Some("/wal".into()), tablespaces: vec![("7".into(), "/t".into())] };
        assert_eq!(earlier.links(place), links);
        let none = Earlier::of(all[..1].to_vec(), NodeId(1), 5);
        assert!(none.spans().is_empty() && !none.emptied(place) && !none.rewound());
    }
}
