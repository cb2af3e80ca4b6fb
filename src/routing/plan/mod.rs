//! The plan of a text: each statement's class, what is sent instead of it, what must be locked first, and what stays unequal.

mod defaults;
mod inserts;
mod step;

use super::catalog::{Catalog, Sequence};
use super::class::{Block, Class};
use super::moments::Edit;
use super::parsed::{Parsed, Text};
use super::password::Password;
use super::policy::{Hints, Policy, Unequal, Verdict};
use std::ops::Range;
use std::sync::Arc;

/// What is to be done with a text.
#[derive(Clone)]
pub struct Plan {
    /// Its statements in order; none for a text of comments only.
    pub statements: Vec<Step>,
    /// The whole text as it is to be sent to every node, when that differs.
    pub rewritten: Option<String>,
    /// The rewritten text reads `pgmend.now`, which must be set in the transaction on every node.
    pub uses_now: bool,
    /// What must be locked before the text is sent anywhere, in the order in which it is to be locked.
    pub locks: Vec<LockOn>,
    /// What cannot be made equal.
    pub unequal: Vec<Unequal>,
    /// Plain passwords: hash each once, then send [`Plan::with_verifiers`].
    pub passwords: Vec<Password>,
    /// What comments in front of the text ask for.
    pub hints: Hints,
    text: Arc<Text>,
    edits: Vec<Edit>,
}

/// One statement of a text.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it is.
    pub class: Class,
    /// The class of what PREPARE, DECLARE and COPY hold.
    pub inner: Option<Class>,
    /// May it stand in a transaction block?
    pub block: Block,
    /// It changes nothing and locks nothing: it needs one node, and no commit in step with others.
    pub read_only: bool,
    /// Its place in the text, with comments in front, without the semicolon and without what stands behind the last word.
    pub range: Range<usize>,
    /// What is sent instead of it; `None` for the text as it is.
    pub rewritten: Option<String>,
    /// What is sent reads `pgmend.now`.
    pub uses_now: bool,
    /// So many settings with the numbers of large objects are read by what is sent.
    pub numbers: usize,
    /// What must be locked before it.
    pub locks: Vec<LockOn>,
    /// What of it cannot be made equal.
    pub unequal: Vec<Unequal>,
}

/// A sequence from which a statement takes numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockOn {
    /// Its oid on the main node: the order of locking.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
}

impl LockOn {
    fn of(sequence: &Sequence) -> LockOn {
        LockOn { oid: sequence.oid, schema: sequence.schema.clone(), name: sequence.name.clone() }
    }
}

impl Parsed {
    /// What is to be done with the text. What the catalog does not know is taken for the worst.
    pub fn plan(&self, catalog: &Catalog, policy: &Policy) -> Plan {
        let text = &self.text;
        let mut plan = Plan {
            statements: Vec::with_capacity(text.statements.len()),
            rewritten: None,
            uses_now: false,
            locks: Vec::new(),
            unequal: Vec::new(),
            passwords: Vec::new(),
            hints: text.hints,
            text: Arc::clone(text),
            edits: Vec::new(),
        };
        for facts in &text.statements {
            let (step, edits) = step::planned(facts, &text.sql, text.hints, catalog, policy);
            plan.uses_now |= step.uses_now;
            plan.locks.extend(step.locks.iter().cloned());
            plan.unequal
                .extend(step.unequal.iter().filter(|one| !plan.unequal.contains(one)).cloned().collect::<Vec<_>>());
            plan.passwords.extend(facts.passwords.iter().cloned());
            plan.statements.push(step);
            plan.edits.extend(edits);
        }
        plan.locks.sort();
        plan.locks.dedup();
        plan.rewritten = (!plan.edits.is_empty()).then(|| edited(&text.sql, 0..text.sql.len(), &plan.edits));
        plan
    }
}

impl Plan {
    /// The text to send, with a verifier in the place of each of its `passwords`, in their order.
    pub fn with_verifiers(&self, verifiers: &[String]) -> String {
        let mut edits = self.edits.clone();
        edits.extend(self.passwords.iter().zip(verifiers).map(|(password, verifier)| password.replaced(verifier)));
        edits.sort_by_key(|edit| (edit.at.start, edit.at.end));
        edited(&self.text.sql, 0..self.text.sql.len(), &edits)
    }

    /// The worst that the policy says of any of its statements.
    pub fn verdict(&self, policy: &Policy) -> Verdict {
        self.unequal.iter().map(|one| one.verdict(policy)).max().unwrap_or(Verdict::Allow)
    }

    /// True when one node will do for all of its statements.
    pub fn read_only(&self) -> bool {
        self.statements.iter().all(|step| step.read_only)
    }
}

/// A part of a text with its changes, which are in order and do not overlap.
fn edited(sql: &str, part: Range<usize>, edits: &[Edit]) -> String {
    let mut out = String::with_capacity(part.len() + edits.iter().map(|edit| edit.with.len()).sum::<usize>());
    let mut at = part.start;
    for edit in edits {
        out.push_str(sql.get(at..edit.at.start).unwrap_or_default());
        out.push_str(&edit.with);
        at = edit.at.end;
    }
    out.push_str(sql.get(at..part.end).unwrap_or_default());
    out
}
