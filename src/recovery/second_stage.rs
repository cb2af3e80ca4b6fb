//! The second stage, with clients held: the script, or the promotion of the copy that the first stage left streaming.

use super::catch_up::position;
use super::first_stage::Ordinal;
use super::run::{Run, SHORT, stoppable};
use super::{MARK, Runner};
use crate::base::Lsn;
use crate::node;
use crate::server::sql::Sql;
use crate::workflow::Failure;
use serde_json::json;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Clients wait for what is awaited here.
const POLL: Duration = Duration::from_millis(10);

impl Run {
    pub(super) async fn second_stage(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        if self.settings.runner == Runner::Builtin {
            stoppable(self.promote(), stop).await?;
            self.how.push_str(", promoted");
            return Ok(());
        }
        let script = self.settings.second_stage_command.clone();
        if script.is_empty() {
            self.how.push_str("; no second stage (recovery_2nd_stage_command is empty)");
            return Ok(());
        }
        self.script(Ordinal::Second, &script, stop).await?;
        self.how.push_str(&format!(", second by {script}"));
        Ok(())
    }

    /// The standby receives and replays what is left, then leaves recovery.
    async fn promote(&self) -> Result<(), Failure> {
        let id = self.target.id;
        let bad = |what: &str, why: String| {
            Failure::new(format!("node {id} {what}")).detail(why).hint("see the target's log")
        };
        let source = self.connect_source().await?;
        // All that clients did was flushed by the CHECKPOINT at the latest.
        let goal = position(&source, "SELECT pg_current_wal_flush_lsn()").await?;
        let target = self.connect(&self.target, "postgres").await;
        let target = target.map_err(|e| bad("does not answer", e.to_string()))?;
        self.record("SecondStage.Replay", json!({ "goal": goal.to_string() }))?;
        loop {
            let replayed = replayed(&target).await.map_err(|why| bad("cannot be asked how far it is", why))?;
            if replayed >= goal {
                break;
            }
            self.job.note(format!("replayed {replayed} of {goal}"));
            tokio::time::sleep(POLL).await;
        }
        self.record("SecondStage.Promote", json!({}))?;
        // The gate's deadline bounds it.
        let seconds = self.settings.timeout.as_secs().max(1);
        let promoted = target.rows(&format!("SELECT pg_promote(true, {seconds})")).await;
        match promoted.map(super::preflight::fields) {
            Ok(Some([answer])) if answer == "t" => Ok(()),
            Ok(answer) => Err(bad("was not promoted", format!("pg_promote returned {answer:?}"))),
            Err(error) => Err(bad("was not promoted", error.to_string())),
        }
    }

    /// Ends scripts that still run; tells of it.
    pub(super) async fn end_scripts(&self) -> Option<String> {
        let mut told = Vec::new();
        for group in node::marked_processes(MARK, &self.inner.mark(self.job.id())) {
            let gone = node::kill_group(group).await;
            told.push(format!("process group {group} {}", if gone { "ended" } else { "does not end" }));
        }
        (!told.is_empty()).then(|| told.join("; "))
    }
}

async fn replayed(target: &Sql) -> Result<Lsn, String> {
    let answer = target.value("SELECT pg_last_wal_replay_lsn()", SHORT).await.map_err(|e| e.to_string())?;
    answer.unwrap_or_default().parse().map_err(|e| format!("{e}"))
}
