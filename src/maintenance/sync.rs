//! pgmend owns `synchronous_standby_names`: what the operator wants is remembered, what is set names only who streams.

use super::Surroundings;
use super::look::{self, SHORT};
use super::prepare::set_sync_names;
use super::sync_names::SyncNames;
use crate::base::NodeId;
use crate::server::sql::Sql;
use crate::store::SyncKept;
use std::time::{Duration, Instant};

/// Writes that wait for a standby which was taken out must go on within this.
const WAITERS_GONE: Duration = Duration::from_secs(3);
/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

impl Surroundings {
    /// What the operator wants on this primary: what was remembered, unless somebody has changed the setting since.
    pub(super) async fn wanted_names(&self, primary: &Sql) -> Result<SyncNames, String> {
        let current = primary.value("SELECT current_setting('synchronous_standby_names')", SHORT).await;
        let current = current.map_err(|e| e.to_string())?.unwrap_or_default();
        let kept = self.store.upkeep().sync_names;
        let text =
            kept.filter(|k| k.set == current || k.before == current).map_or_else(|| current.clone(), |k| k.wanted);
        SyncNames::parse(&text).ok_or_else(|| format!("\"{text}\" is not understood"))
    }

    /// Sets on the primary what is wanted, as far as it streams and is not in `out`. Returns what was set.
    pub(super) async fn set_names(
        &self,
        primary: &Sql,
        wanted: &SyncNames,
        out: &[String],
    ) -> Result<SyncNames, String> {
        let current = primary.value("SELECT current_setting('synchronous_standby_names')", SHORT).await;
        let current = current.map_err(|e| e.to_string())?.unwrap_or_default();
        let mut streaming = look::who_streams(primary).await.map_err(|e| e.to_string())?;
        streaming.retain(|name| !out.iter().any(|o| o.eq_ignore_ascii_case(name)));
        let mut now = wanted.only(&streaming);
        if !out.is_empty() {
            // A star would name those too that are going.
            now = now.listed(&streaming);
        }
        let kept = SyncKept { wanted: wanted.to_string(), set: now.to_string(), before: current.clone() };
        // Before the change: if we die in its middle, both values are known as ours.
        self.store.change_upkeep(|u| u.sync_names = Some(kept)).map_err(|e| e.to_string())?;
        if SyncNames::parse(&current).as_ref() != Some(&now) {
            set_sync_names(primary, Some(&now.to_string())).await.map_err(|f| f.detail.unwrap_or(f.message))?;
        }
        Ok(now)
    }

    /// Nobody waits for a standby any more that was taken out.
    pub(super) async fn no_waiters(&self, primary: &Sql) -> Result<(), String> {
        let began = Instant::now();
        let ask = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND clock_timestamp() - state_change > interval '1 second'";
        loop {
            let waiting = primary.value(ask, SHORT).await.map_err(|e| e.to_string())?.unwrap_or_default();
            if waiting == "0" {
                return Ok(());
            }
            if began.elapsed() > WAITERS_GONE {
                return Err(format!("{waiting} writes still wait for a synchronous standby"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A node may lack acknowledged commits (or not any more): nobody promotes it by himself.
    pub(super) fn mark_eligible(&self, node: NodeId, eligible: bool) -> Result<(), String> {
        let change = |u: &mut crate::store::Upkeep| {
            if eligible {
                u.ineligible.remove(&node.0);
            } else {
                u.ineligible.insert(node.0);
            }
        };
        self.store.change_upkeep(change).map_err(|e| e.to_string())
    }
}
