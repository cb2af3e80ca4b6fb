//! Whether nodes agree, and what follows when they do not. Pure.

use super::account::{Account, Mark};
use crate::base::NodeId;
use crate::wire::backend::ErrorFields;

/// How a node's answer compares with the main node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// They are equal.
    None,
    /// Other kinds of replies: one failed, or it did something else.
    Kind,
    /// Other numbers of rows, or other rows.
    Rows,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All nodes say the same (also: the same error).
    Agreed,
    /// Everything is rolled back everywhere, and the client gets this error.
    RollBack(Box<ErrorFields>),
    /// These nodes are detached, for this reason; the others go on.
    Detach(Vec<NodeId>, String),
}

/// What the operator chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// `replication_stop_on_mismatch`.
    pub stop_on_kind: bool,
    /// `failover_if_affected_tuples_mismatch`.
    pub stop_on_rows: bool,
}

/// What is left of a statement that the nodes did not carry out alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undo {
    /// Nothing, as it can be rolled back.
    All,
    /// Its change, on some nodes and not on others.
    Nothing,
    /// Nothing that belongs to the data: VACUUM, SET.
    NoNeed,
}

/// One node's answer.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// Who.
    pub node: NodeId,
    /// What.
    pub account: &'a Account,
}

/// Errors that say nothing of the data: the node was busy, locked, cancelled, out of something. Another node may well have
/// succeeded, so nobody has gone astray. Classes: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
pub fn is_of_the_moment(code: &str) -> bool {
    // 40: rollback by deadlock or serialization. 53: resources. 55: locks. 57: intervention. 58: system. XX: internal.
    ["40", "53", "55", "57", "58", "XX"].iter().any(|class| code.starts_with(class))
}

/// Judges the answers; the main node's comes first.
pub fn judge(said: &[Said<'_>], choice: Choice, undo: Undo) -> Verdict {
    let Some((main, others)) = said.split_first() else { return Verdict::Agreed };
    let moment = said.iter().find_map(|s| s.account.error.as_ref().filter(|e| is_of_the_moment(&e.code)));
    let undoable = undo == Undo::All;
    let differs: Vec<(NodeId, Difference)> = others
        .iter()
        .map(|s| (s.node, difference(main.account, s.account)))
        .filter(|(_, difference)| *difference != Difference::None)
        .collect();
    if differs.is_empty() {
        return Verdict::Agreed;
    }
    if undoable && let Some(error) = moment {
        return Verdict::RollBack(Box::new(error.clone()));
    }
    if undo == Undo::NoNeed {
        if main.account.error.is_some() {
            // The client gets it as the server has told it.
            return Verdict::Agreed;
        }
        let failed = said.iter().find_map(|s| s.account.error.clone());
        return failed.map_or(Verdict::Agreed, |error| Verdict::RollBack(Box::new(error)));
    }
    let worst = if differs.iter().any(|(_, d)| *d == Difference::Kind) { Difference::Kind } else { Difference::Rows };
    let stop = match worst {
        Difference::Kind => choice.stop_on_kind,
        Difference::Rows | Difference::None => choice.stop_on_rows,
    };
    let told = tell(said, worst);
    // What cannot be undone has left the nodes different already: those that are not like the main node must go.
    if stop || !undoable {
        let agree = said.len() - differs.len();
        // The main node's vote breaks ties. Were it outvoted, everything is undone: nobody has its answer yet.
        if agree * 2 >= said.len() || !undoable {
            return Verdict::Detach(differs.into_iter().map(|(node, _)| node).collect(), told);
        }
    }
    let setting = match worst {
        Difference::Kind => "replication_stop_on_mismatch",
        Difference::Rows | Difference::None => "failover_if_affected_tuples_mismatch",
    };
    let error =
        ErrorFields::error("40000", "the nodes did not agree, and the transaction was rolled back on all of them")
            .with_detail(told)
            .with_hint(format!(
                "Compare the nodes' data and recover the one that is wrong; {setting} would detach it at once."
            ));
    Verdict::RollBack(Box::new(error))
}

/// Compares two answers.
pub fn difference(main: &Account, other: &Account) -> Difference {
    if main.marks.len() != other.marks.len() {
        return Difference::Kind;
    }
    let mut found = Difference::None;
    for pair in main.marks.iter().zip(&other.marks) {
        match pair {
            (
                Mark::Command { tag, rows, digest },
                Mark::Command { tag: other, rows: other_rows, digest: other_digest },
            ) => {
                if verb(tag) != verb(other) {
                    return Difference::Kind;
                }
                if tag != other || rows != other_rows || digest != other_digest {
                    found = Difference::Rows;
                }
            }
            (Mark::Value(a), Mark::Value(b)) if a != b => found = Difference::Rows,
            (Mark::Error(a), Mark::Error(b)) if a.code != b.code => return Difference::Kind,
            (Mark::Error(_), Mark::Error(_))
            | (Mark::Empty, Mark::Empty)
            | (Mark::CopyIn, Mark::CopyIn)
            | (Mark::Value(_), Mark::Value(_))
            | (Mark::Suspended, Mark::Suspended) => {}
            (
                Mark::Command { .. } | Mark::Empty | Mark::CopyIn | Mark::Suspended | Mark::Value(_) | Mark::Error(_),
                Mark::Command { .. } | Mark::Empty | Mark::CopyIn | Mark::Suspended | Mark::Value(_) | Mark::Error(_),
            ) => return Difference::Kind,
        }
    }
    found
}

/// A command's tag without its numbers.
fn verb(tag: &str) -> &str {
    tag.trim_end_matches(|c: char| c.is_ascii_digit() || c == ' ')
}

fn tell(said: &[Said<'_>], worst: Difference) -> String {
    let each: Vec<String> = said.iter().map(|s| format!("node {}: {}", s.node, tell_one(s.account))).collect();
    let what = match worst {
        Difference::Kind => "kinds of replies",
        Difference::Rows | Difference::None => "rows",
    };
    format!("Different {what}: {}.", each.join(", "))
}

fn tell_one(account: &Account) -> String {
    match account.marks.last() {
        Some(Mark::Command { tag, .. }) => tag.clone(),
        Some(Mark::Error(error)) => format!("{} ({})", error.message, error.code),
        Some(Mark::Empty) => "empty query".into(),
        Some(Mark::CopyIn) => "waits for COPY data".into(),
        Some(Mark::Suspended) => "has more rows".into(),
        Some(Mark::Value(_)) => "a function's value".into(),
        None => "nothing".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFF: Choice = Choice { stop_on_kind: false, stop_on_rows: false };
    const ON: Choice = Choice { stop_on_kind: true, stop_on_rows: true };

    fn did(tag: &str) -> Account {
        let mut account = Account::default();
        account.marks.push(Mark::Command { tag: tag.into(), rows: 0, digest: 0 });
        account
    }

    fn failed(code: &str) -> Account {
        let error = ErrorFields::error(code, "no");
        let mut account = Account::default();
        account.marks.push(Mark::Error(Box::new(error.clone())));
        account.error = Some(error);
        account
    }

    fn verdict(accounts: &[Account], choice: Choice, undo: Undo) -> Verdict {
        let said: Vec<Said<'_>> =
            accounts.iter().zip(0..).map(|(account, n)| Said { node: NodeId(n), account }).collect();
        judge(&said, choice, undo)
    }

    fn detached(verdict: Verdict) -> Vec<u16> {
        match verdict {
            Verdict::Detach(nodes, _) => nodes.into_iter().map(|n| n.0).collect(),
            other => panic!("{other:?}"),
        }
    }

    fn code(verdict: Verdict) -> String {
        match verdict {
            Verdict::RollBack(error) => error.code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_same_answer_or_the_same_error_is_agreement() {
        assert_eq!(verdict(&[did("UPDATE 3"), did("UPDATE 3")], ON, Undo::All), Verdict::Agreed);
        assert_eq!(verdict(&[failed("23505"), failed("23505")], ON, Undo::All), Verdict::Agreed);
        assert_eq!(verdict(&[did("UPDATE 3")], OFF, Undo::All), Verdict::Agreed);
        // Whatever the error: the client gets the server's own, with all its fields.
        assert_eq!(verdict(&[failed("57014"), failed("57014")], ON, Undo::All), Verdict::Agreed);
        assert_eq!(verdict(&[failed("22023"), failed("22023")], ON, Undo::NoNeed), Verdict::Agreed);
    }

    #[test]
    fn by_default_a_disagreement_is_undone_everywhere() {
        assert_eq!(code(verdict(&[did("UPDATE 3"), did("UPDATE 2")], OFF, Undo::All)), "40000");
        assert_eq!(code(verdict(&[did("UPDATE 3"), failed("23505")], OFF, Undo::All)), "40000");
        assert_eq!(code(verdict(&[failed("42P01"), failed("23505")], OFF, Undo::All)), "40000");
    }

    #[test]
    fn the_minority_is_detached_where_the_operator_says_so() {
        assert_eq!(detached(verdict(&[did("UPDATE 3"), did("UPDATE 3"), did("UPDATE 2")], ON, Undo::All)), [2]);
        assert_eq!(
            detached(verdict(&[did("UPDATE 3"), failed("23505")], ON, Undo::All)),
            [1],
            "the main node breaks the tie"
        );
        let outvoted = [did("UPDATE 3"), did("UPDATE 2"), did("UPDATE 2")];
        assert_eq!(code(verdict(&outvoted, ON, Undo::All)), "40000");
    }

    #[test]
    fn what_cannot_be_undone_detaches_in_any_case() {
        assert_eq!(detached(verdict(&[did("CREATE DATABASE"), failed("53100")], OFF, Undo::Nothing)), [1]);
    }

    #[test]
    fn nobody_is_blamed_where_no_data_are_at_stake() {
        assert_eq!(code(verdict(&[did("VACUUM"), failed("55P03")], ON, Undo::NoNeed)), "55P03");
        assert_eq!(verdict(&[did("SET"), did("SET")], ON, Undo::NoNeed), Verdict::Agreed);
        assert_eq!(verdict(&[failed("42P05"), failed("26000")], ON, Undo::NoNeed), Verdict::Agreed);
    }

    #[test]
    fn an_error_of_the_moment_is_passed_on_and_nobody_is_blamed() {
        for error in ["57014", "40P01", "55P03", "53200"] {
            assert_eq!(code(verdict(&[did("UPDATE 3"), failed(error)], ON, Undo::All)), error);
        }
    }
}
