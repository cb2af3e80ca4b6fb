//! What a new daemon does about a switchover that the old one did not end: observed reality wins over the journal.

use super::{Inner, KIND};
use crate::workflow::Outcome;
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) async fn clean_up(inner: &Arc<Inner>) -> Vec<String> {
    let journals = match inner.store.open_journals() {
        Ok(journals) => journals,
        Err(error) => return vec![format!("the journals cannot be read: {error}")],
    };
    let of_ours = |j: &crate::store::JournalFile| {
        j.records.first().and_then(|r| r.data.get("kind")).and_then(Value::as_str) == Some(KIND)
    };
    let mut told = Vec::new();
    for journal in journals.into_iter().filter(of_ours) {
        let stage = journal.records.last().map_or("nothing", |r| r.name.as_str());
        let message = format!("{KIND} job {} was interrupted; last journal record {stage}", journal.job);
        let closed = inner
            .store
            .reopen_journal(journal.job)
            .and_then(|mut j| j.append("Interrupted", json!({ "outcome": Outcome::Interrupted, "message": message })));
        if let Err(error) = closed {
            told.push(format!("the journal of job {} could not be closed: {error}", journal.job));
        }
        let again = inner.store.journals().unwrap_or_default();
        again.iter().filter(|j| j.job == journal.job).for_each(|j| inner.jobs.adopt(j));
        told.push(message);
    }
    told
}
