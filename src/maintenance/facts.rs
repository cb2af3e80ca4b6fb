//! A snapshot of what matters for a switchover, and the pure judgement of it: may it begin, and why not.

use super::Settings;
use crate::base::{Lsn, NodeId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A transaction that lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// Of its backend.
    pub pid: u32,
    /// Role.
    pub user: String,
    /// Database.
    pub database: String,
    /// `application_name`.
    pub application: String,
    /// `active`, `idle in transaction` …
    pub state: String,
    /// Since it began, seconds.
    pub age_s: u64,
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Transaction { pid, user, database, application, state, age_s } = self;
        write!(f, "process {pid}, user {user}, database {database}, application \"{application}\", {state}, {age_s} s")
    }
}

/// A standby as the primary sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streaming {
    /// `application_name`.
    pub name: String,
    /// `state`.
    pub state: String,
    /// `sync_state`.
    pub sync_state: String,
    /// Bytes that it has not replayed.
    pub lag_bytes: u64,
    /// Process of its WAL sender.
    pub pid: u32,
    /// The slot that it uses.
    pub slot: Option<String>,
}

/// What the primary says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrimaryFacts {
    /// Not in recovery.
    pub is_primary: bool,
    /// Major version.
    pub major: u32,
    /// Of the cluster.
    pub system_identifier: u64,
    /// Of the write position.
    pub timeline: u32,
    /// Write position.
    pub position: Lsn,
    /// `synchronous_standby_names`.
    pub sync_names: String,
    /// Segments that wait to be archived; `None`: there is no archive.
    pub archive_waiting: Option<u64>,
    /// Base backups under way.
    pub backups: u64,
    /// Logical slots that would be lost.
    pub logical_slots: Vec<String>,
    /// Who streams.
    pub standbys: Vec<Streaming>,
    /// Transactions older than the limit, oldest first.
    pub transactions: Vec<Transaction>,
}

/// What the coming primary says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CandidateFacts {
    /// In recovery.
    pub is_standby: bool,
    /// Major version.
    pub major: u32,
    /// Of the cluster.
    pub system_identifier: u64,
    /// `pg_stat_wal_receiver.received_tli`.
    pub timeline: Option<u32>,
    /// `pg_stat_wal_receiver.status`.
    pub receiver: Option<String>,
    /// `pg_is_wal_replay_paused()`.
    pub paused: bool,
    /// `recovery_min_apply_delay`, milliseconds.
    pub apply_delay_ms: u64,
    /// `synchronous_standby_names`.
    pub sync_names: String,
    /// That is set on the command line, where nothing can change it.
    pub sync_names_fixed: bool,
    /// That comes from `postgresql.auto.conf`.
    pub sync_names_by_system: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The primary.
    pub from: NodeId,
    /// The coming one.
    pub to: NodeId,
    /// The coming one's `application_name`.
    pub to_name: String,
    /// The coming one is in routing.
    pub to_is_up: bool,
    /// The primary is configured as ALWAYS_PRIMARY.
    pub fixed: bool,
    /// Jobs that are running.
    pub jobs: Vec<String>,
    /// What keeps pgmend from stopping and starting the old primary.
    pub no_control: Option<String>,
    /// What the primary says, or why it says nothing.
    pub primary: Result<PrimaryFacts, String>,
    /// The same of the coming one.
    pub candidate: Result<CandidateFacts, String>,
    /// The view's epoch: system identifier and timeline.
    pub epoch: Option<(u64, u32)>,
}

/// What stands against it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// What.
    pub what: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hint.is_empty() { f.write_str(&self.what) } else { write!(f, "{} ({})", self.what, self.hint) }
    }
}

/// The judgement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// Nothing may be begun while there is one.
    pub against: Vec<Reason>,
    /// What the operator should know.
    pub remarks: Vec<String>,
}

impl Judgement {
    fn no(&mut self, what: impl Into<String>, hint: &str) {
        self.against.push(Reason { what: what.into(), hint: hint.to_owned() });
    }
}

/// Judges. Everything that is wrong is told at once. `old_transactions_matter`: who has chosen to wait for them or to end
/// them may begin in spite of them.
pub fn judge(facts: &Facts, limits: &Settings, old_transactions_matter: bool) -> Judgement {
    let mut judgement = Judgement::default();
    of_the_cluster(facts, &mut judgement);
    match &facts.primary {
        Err(why) => judgement.no(format!("the primary, node {}, does not answer: {why}", facts.from), ""),
        Ok(primary) => of_the_primary(facts, primary, limits, old_transactions_matter, &mut judgement),
    }
    match &facts.candidate {
        Err(why) => judgement.no(format!("node {} does not answer: {why}", facts.to), ""),
        Ok(candidate) => of_the_candidate(facts, candidate, &mut judgement),
    }
    judgement
}

fn of_the_cluster(facts: &Facts, j: &mut Judgement) {
    for job in &facts.jobs {
        j.no(format!("{job} is running"), "wait for its end, or `pgmend job cancel`");
    }
    if !facts.to_is_up {
        j.no(format!("node {} is not in routing", facts.to), "`pgmend nodes` tells why; recover it or attach it");
    }
    if facts.fixed {
        j.no(format!("node {} is configured as ALWAYS_PRIMARY", facts.from), "take the flag out");
    }
    if let Some(why) = &facts.no_control {
        j.no(format!("node {} could not be stopped and started again: {why}", facts.from), "");
    }
}

fn of_the_primary(facts: &Facts, p: &PrimaryFacts, limits: &Settings, transactions: bool, j: &mut Judgement) {
    let from = facts.from;
    if !p.is_primary {
        j.no(format!("node {from} is in recovery: it is not the primary"), "");
    }
    if p.major < 13 {
        j.no(format!("node {from} runs PostgreSQL {}", p.major), "a planned switchover needs 13 or later");
    }
    if facts.epoch.is_some_and(|epoch| epoch != (p.system_identifier, p.timeline)) {
        j.no(format!("node {from} is not the primary of the epoch in force"), "");
    }
    if let Some(waiting @ 3..) = p.archive_waiting {
        j.no(
            format!("{waiting} segments of log wait to be archived"),
            "its stop would wait for them; see pg_stat_archiver and archive_command",
        );
    }
    if p.backups > 0 {
        j.no(format!("{} base backups of node {from} are running", p.backups), "they would break off");
    }
    if transactions {
        for transaction in &p.transactions {
            let limit = limits.max_transaction_age.as_secs();
            j.no(
                format!("a transaction is older than {limit} s: {transaction}"),
                "--transactions wait waits for it, --transactions end ends it",
            );
        }
    }
    if !p.logical_slots.is_empty() && p.major < 17 {
        j.remarks.push(format!("logical slots are lost: {}", p.logical_slots.join(", ")));
    }
    match p.standbys.iter().find(|s| s.name == facts.to_name) {
        None => j.no(
            format!("node {} does not stream from node {from} under the name {}", facts.to, facts.to_name),
            "application_name in the node's configuration and in its primary_conninfo must agree",
        ),
        Some(s) if s.state != "streaming" => j.no(format!("node {} is in state {}", facts.to, s.state), ""),
        Some(s) if s.lag_bytes > limits.max_lag_bytes => j.no(
            format!(
                "node {} is {} bytes behind, more than max_lag_mb allows ({})",
                facts.to, s.lag_bytes, limits.max_lag_bytes
            ),
            "wait until it has caught up",
        ),
        Some(_) => {}
    }
}

fn of_the_candidate(facts: &Facts, c: &CandidateFacts, j: &mut Judgement) {
    let to = facts.to;
    if !c.is_standby {
        j.no(format!("node {to} is not in recovery: it is no standby"), "");
    }
    if c.paused {
        j.no(format!("node {to} has paused its replay"), "SELECT pg_wal_replay_resume()");
    }
    if c.apply_delay_ms > 0 {
        j.no(format!("node {to} replays {} ms late", c.apply_delay_ms), "recovery_min_apply_delay must be 0");
    }
    if c.sync_names_fixed && !c.sync_names.is_empty() {
        j.no(
            format!("synchronous_standby_names of node {to} is set on its command line"),
            "pgmend could not change it, and all writes would wait for ever",
        );
    }
    if let Ok(p) = &facts.primary {
        if c.system_identifier != p.system_identifier {
            j.no(format!("node {to} belongs to another database system"), "");
        } else if c.receiver.as_deref() == Some("streaming") && c.timeline != Some(p.timeline) {
            let timeline = c.timeline.unwrap_or_default();
            j.no(format!("node {to} streams timeline {timeline}, not {}", p.timeline), "");
        }
        if c.major != p.major {
            j.no(format!("node {to} runs PostgreSQL {}, not {}", c.major, p.major), "");
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn good() -> Facts {
        let standby = Streaming {
            name: "pgmend_1".into(),
            state: "streaming".into(),
            sync_state: "async".into(),
            lag_bytes: 0,
            pid: 7,
            slot: None,
        };
        Facts {
            from: NodeId(0),
            to: NodeId(1),
            to_name: "pgmend_1".into(),
            to_is_up: true,
            fixed: false,
            jobs: Vec::new(),
            no_control: None,
            primary: Ok(PrimaryFacts {
                is_primary: true,
                major: 15,
                system_identifier: 9,
                timeline: 3,
                standbys: vec![standby],
                ..PrimaryFacts::default()
            }),
            candidate: Ok(CandidateFacts {
                is_standby: true,
                major: 15,
                system_identifier: 9,
                timeline: Some(3),
                receiver: Some("streaming".into()),
                ..CandidateFacts::default()
            }),
            epoch: Some((9, 3)),
        }
    }

    fn against(change: impl FnOnce(&mut Facts)) -> Vec<String> {
        let mut facts = good();
        change(&mut facts);
        judge(&facts, &Settings::default(), true).against.into_iter().map(|r| r.what).collect()
    }

    fn primary(change: impl FnOnce(&mut PrimaryFacts)) -> Vec<String> {
        against(|f| change(f.primary.as_mut().unwrap()))
    }

    fn candidate(change: impl FnOnce(&mut CandidateFacts)) -> Vec<String> {
        against(|f| change(f.candidate.as_mut().unwrap()))
    }

    #[test]
    fn a_healthy_pair_is_switchable() {
        assert!(against(|_| ()).is_empty());
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let told = against(|f| {
            f.to_is_up = false;
            f.fixed = true;
            f.jobs = vec!["job 3 (recovery)".into()];
            f.no_control = Some("far away".into());
            f.primary = Err("refused".into());
            f.candidate = Err("refused".into());
        });
        assert_eq!(told.len(), 6, "{told:?}");
    }

    #[test]
    fn what_a_primary_may_not_have() {
        let old = Transaction {
            pid: 4,
            user: "u".into(),
            database: "d".into(),
            application: "a".into(),
            state: "active".into(),
            age_s: 60,
        };
        assert!(primary(|p| p.transactions = vec![old.clone()])[0].contains("process 4, user u"));
        let mut facts = good();
        facts.primary.as_mut().unwrap().transactions = vec![old];
        assert!(judge(&facts, &Settings::default(), false).against.is_empty(), "who waits for it may begin");
        assert!(primary(|p| p.archive_waiting = Some(2)).is_empty());
        assert!(primary(|p| p.archive_waiting = Some(9))[0].starts_with("9 segments"));
        assert!(primary(|p| p.backups = 1)[0].contains("base backups"));
        assert!(primary(|p| p.timeline = 4).iter().any(|w| w.contains("epoch")));
        assert!(primary(|p| p.standbys.clear())[0].contains("does not stream"));
        assert!(primary(|p| p.standbys[0].state = "catchup".into())[0].contains("catchup"));
        assert!(primary(|p| p.standbys[0].lag_bytes = 17 << 20)[0].contains("behind"));
    }

    #[test]
    fn what_a_candidate_may_not_have() {
        assert!(candidate(|c| c.paused = true)[0].contains("paused"));
        assert!(candidate(|c| c.apply_delay_ms = 5)[0].contains("5 ms late"));
        assert!(candidate(|c| c.is_standby = false)[0].contains("no standby"));
        assert!(candidate(|c| c.timeline = Some(2))[0].contains("timeline 2"));
        assert!(candidate(|c| c.system_identifier = 1)[0].contains("another database system"));
        assert!(candidate(|c| c.sync_names_fixed = true).is_empty(), "empty names keep nobody waiting");
        let told = candidate(|c| {
            c.sync_names_fixed = true;
            c.sync_names = "pgmend_1".into();
        });
        assert!(told[0].contains("command line"));
    }
}
