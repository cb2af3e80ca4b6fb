//! What planned work shows of the cluster, and what operators may say of it: the verdict, failover on and off, backups.

use super::verdict::{Verdict, verdict};
use super::{FAILOVER, Maintenance, ROLLING, SWITCHOVER};
use crate::base::NodeId;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A changed word is told when it has held for this long: a restart of a server is not news.
const SETTLED: Duration = Duration::from_millis(500);

impl Maintenance {
    /// The cluster in one word, and why. Waits for no server; how much room there is where data lie elsewhere is what was heard
    /// last.
    pub fn verdict(&self) -> Verdict {
        let view = self.0.board.view();
        let switching = [SWITCHOVER, FAILOVER].iter().any(|kind| self.0.jobs.running(kind).is_some());
        let disks: Vec<Option<u64>> = view.nodes.iter().map(|n| self.1.of(&n.spec)).collect();
        let mut verdict = verdict(&view, &self.0.store.upkeep(), switching, &disks);
        if let Some(id) = self.0.jobs.running(ROLLING) {
            verdict.remarks.push(format!("a rolling update is running: job {id}"));
        }
        verdict
    }

    /// Why an operator may not attach this node; `None`: he may.
    pub fn kept_out(&self, node: NodeId) -> Option<String> {
        let is_noted = self.0.store.upkeep().nodes.contains_key(&node.0);
        is_noted.then(|| format!("it is in maintenance; `pgmend maintenance finish {node}` brings it back"))
    }

    /// Automatic promotion and detaching, off or on again.
    pub fn set_failover(&self, enabled: bool) -> Result<String, String> {
        self.0.store.change_upkeep(|u| u.failover_disabled = !enabled).map_err(|e| e.to_string())?;
        tracing::warn!(event = "failover.switched", enabled);
        Ok(match enabled {
            true => "automatic failover is enabled".to_owned(),
            false => "automatic failover is disabled: nobody is promoted or detached by himself".to_owned(),
        })
    }

    /// The operator has made the backup that was due.
    pub fn backed_up(&self) -> Result<String, String> {
        let due = self.0.store.upkeep().backup_due_since_s.is_some();
        self.0.store.change_upkeep(|u| u.backup_due_since_s = None).map_err(|e| e.to_string())?;
        Ok(if due { "noted: the backup is made".to_owned() } else { "no backup was due".to_owned() })
    }

    /// Runs `status_change_command` whenever the word has changed, until the token is cancelled.
    pub async fn watch(self, token: CancellationToken) {
        let mut changes = self.0.board.watch();
        let mut word = self.verdict().word;
        loop {
            let next = tokio::select! {
                () = token.cancelled() => return,
                next = changes.changed() => next,
            };
            if next.is_err() {
                return;
            }
            tokio::time::sleep(SETTLED).await;
            changes.borrow_and_update();
            let now = self.verdict().word;
            if now != word {
                tracing::info!(event = "cluster.status_changed", from = %word, to = %now);
                self.0.exit_status_change(&word.to_string(), &now.to_string()).await;
                word = now;
            }
        }
    }
}
