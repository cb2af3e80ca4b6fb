//! What a new daemon does about a recovery that the old one did not end: observed reality wins over the journal.

use super::builtin::drop_slot;
use super::run::application_name;
use super::{Inner, KIND, MARK};
use crate::base::NodeId;
use crate::node::{self, Order, Postmaster, Programs, Site};
use crate::server::sql::{Sql, SqlTarget};
use crate::store::JournalFile;
use crate::workflow::Outcome;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Bound on dropping a slot at start.
const SLOT_LIMIT: Duration = Duration::from_secs(8);

pub(super) async fn clean_up(inner: &Arc<Inner>) -> Vec<String> {
    let journals = match inner.store.open_journals() {
        Ok(journals) => journals,
        Err(error) => return vec![format!("the journals cannot be read: {error}")],
    };
    let mut told = Vec::new();
    // The journals of other kinds of jobs have cleaners of their own.
    let ours = |j: &JournalFile| j.records.first().and_then(|r| r.data.get("kind")).is_none_or(|kind| kind == KIND);
    for journal in journals.into_iter().filter(ours) {
        let message = one(inner, &journal).await;
        tracing::warn!(event = "recovery.cleaned_up_after_crash", job = journal.job, message);
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

async fn one(inner: &Arc<Inner>, journal: &JournalFile) -> String {
    let first = journal.records.first();
    let number = first.and_then(|r| r.data.get("node")).and_then(Value::as_u64);
    let node = number.and_then(|n| u16::try_from(n).ok()).map(NodeId);
    let stage = journal.records.iter().rev().find(|r| r.name != "Child").map_or("nothing", |r| r.name.as_str());
    let label = node.map_or("an unknown node".to_owned(), |n| format!("node {n}"));
    let kind = first.and_then(|r| r.data.get("kind")).and_then(Value::as_str).unwrap_or(KIND);
    let mut words = vec![format!("{kind} job {} of {label} was interrupted; last journal record {stage}", journal.job)];
    // By the mark and not by the journalled number alone, which may belong to somebody else by now.
    let mut killed = 0;
    for group in node::marked_processes(MARK, &inner.mark(journal.job)) {
        killed += 1;
        if !node::kill_group(group).await {
            words.push(format!("process group {group} of it does not end"));
        }
    }
    words.push(match killed {
        0 => "no process of it was left".to_owned(),
        n => format!("{n} process group(s) of it were ended"),
    });
    let backends = ["FirstStage.Backend", "SecondStage.Backend", "Starting.Backend"];
    if backends.iter().any(|record| journal.last(record).is_some()) {
        words.push("its script may still run on the source; the next recovery ends it first".to_owned());
    }
    if journal.last("FirstStage.Empty").is_some() && journal.last("Starting").is_none() {
        words.push("the target's data directory holds half a copy".to_owned());
    }
    // With two stages the first one starts it already, the built-in one or the script.
    let two = inner.board.view().mode.replicates();
    let starts = ["Starting", "FirstStage.Start", "Gating"].map(|record| journal.last(record));
    let by_script = journal.last("FirstStage.Script").filter(|_| two);
    let started = starts.into_iter().flatten().next().or(by_script).filter(|_| kind == KIND);
    if let (Some(node), Some(_)) = (node, started) {
        words.push(stop_target(inner, node).await);
    }
    if let Some(node) = node {
        words.extend(leftover_slot(inner, journal, node).await);
    }
    words.push(match node {
        Some(node) if kind != KIND => format!("attach it again: pgmend attach {node}"),
        Some(node) => format!("recover it again: pgmend recover {node}"),
        None => "nothing more is known of it".to_owned(),
    });
    words.join("; ")
}

/// The built-in stage's slot holds back the source's log until somebody drops it. A node in routing needs it.
async fn leftover_slot(inner: &Arc<Inner>, journal: &JournalFile, node: NodeId) -> Option<String> {
    let slot = journal.last("FirstStage.Slot")?.data.get("slot")?.as_str()?.to_owned();
    let left = |why: &str| {
        format!(
            "replication slot {slot} may be left on the source and hold back log ({why}); the next recovery makes it anew"
        )
    };
    let view = inner.board.view();
    if !view.mode.replicates() && view.node(node).is_some_and(|n| n.status.is_live()) {
        return journal.last("Attaching").is_none().then(|| left("the node is attached"));
    }
    let source = journal.records.first()?.data.get("data")?.get("source")?.as_u64()?;
    let Some(source) = u16::try_from(source).ok().and_then(|id| view.node(NodeId(id))) else {
        return Some(left("it is no longer configured"));
    };
    let settings = (inner.settings)();
    let mut address =
        SqlTarget::of(&source.spec, &settings.database, &settings.user, &settings.password, (inner.tls)());
    address.application_name = application_name(node);
    let dropped = async {
        let source = Sql::connect(&address, SLOT_LIMIT).await.map_err(|e| e.to_string())?;
        Ok::<String, String>(drop_slot(&source, &slot).await)
    };
    // The clients wait for the end of this.
    Some(match tokio::time::timeout(SLOT_LIMIT, dropped).await {
        Ok(Ok(told)) => told,
        Ok(Err(why)) => left(&why),
        Err(_) => left("no answer in time"),
    })
}

/// A target that was started but not attached is stopped; one that is in routing was attached before the crash.
async fn stop_target(inner: &Arc<Inner>, id: NodeId) -> String {
    let view = inner.board.view();
    let Some(seen) = view.node(id) else { return format!("node {id} is no longer configured") };
    if seen.status.is_live() {
        return format!("node {id} is attached and was left alone");
    }
    let spec = seen.spec.clone();
    let site = Site::of(&spec, Order::default()).await;
    let text = site.here().and_then(|d| std::fs::read_to_string(d.join("PG_VERSION")).ok());
    let major = text.and_then(|t| t.trim().parse().ok()).unwrap_or(0);
    let configured = spec.maintain.bin_directory.clone().or((inner.settings)().bin_directory);
    let programs = match Programs::find(configured.as_deref(), major) {
        Ok(programs) => Some(programs),
        Err(error) if site.here().is_some() => return format!("the target may run and could not be stopped: {error}"),
        Err(_) => None,
    };
    let log_directory = inner.store.directory().to_owned();
    let postmaster = Postmaster { spec, site, programs, log_directory, order: Order::default() };
    match postmaster.stop(Arc::new(|_: &str| ()), &CancellationToken::new()).await {
        Ok(()) if postmaster.can_start() => "the target does not run".to_owned(),
        Ok(()) => "the target may run: stop it before the next recovery".to_owned(),
        Err(error) => format!("the target could not be stopped: {error}"),
    }
}
