//! `synchronized_standby_slots` (PostgreSQL 17 and later): logical subscribers get nothing that the standbys behind these slots
//! have not received. A slot that nobody uses would keep them waiting for ever, so pgmend owns it as it owns
//! `synchronous_standby_names`: what the operator wants is remembered, what is set names only slots in use.
//!
//! <https://www.postgresql.org/docs/17/runtime-config-replication.html#GUC-SYNCHRONIZED-STANDBY-SLOTS>

use super::Surroundings;
use super::look::{SHORT, text};
use super::prepare::set_by_system;
use crate::server::sql::{Sql, SqlError, literal};
use crate::store::SyncKept;

/// The setting's name.
pub(super) const NAME: &str = "synchronized_standby_slots";

/// The slots, in the operator's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StandbySlots(Vec<String>);

impl StandbySlots {
    /// Names of slots have only lower-case letters, digits and underscores, so quotes say nothing.
    pub fn parse(text: &str) -> StandbySlots {
        let names = text.split(',').map(|name| name.trim().trim_matches('"').to_owned());
        StandbySlots(names.filter(|name| !name.is_empty()).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same with one slot in the place of another.
    pub fn exchanged(&self, gone: &str, come: &str) -> StandbySlots {
        let mut names: Vec<String> = Vec::new();
        for name in &self.0 {
            let name = if name == gone { come } else { name };
            if !names.iter().any(|n| n == name) {
                names.push(name.to_owned());
            }
        }
        StandbySlots(names)
    }

    fn only(&self, used: &[String], out: &[String]) -> StandbySlots {
        StandbySlots(self.0.iter().filter(|n| used.contains(n) && !out.contains(n)).cloned().collect())
    }
}

impl std::fmt::Display for StandbySlots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.join(", "))
    }
}

/// Its value on a server; `None` before version 17.
pub(super) async fn current(sql: &Sql) -> Result<Option<String>, SqlError> {
    sql.value(&format!("SELECT current_setting('{NAME}', true)"), SHORT).await
}

/// The slot through which a standby streams.
pub(super) async fn used_by(primary: &Sql, standby: &str) -> Result<Option<String>, SqlError> {
    let ask = format!(
        "SELECT s.slot_name FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid \
         WHERE r.application_name = {}",
        literal(standby)
    );
    primary.value(&ask, SHORT).await
}

impl Surroundings {
    /// What the operator wants on this primary: what was remembered, unless somebody has changed the setting since. `None`: it
    /// has no such setting.
    pub(super) async fn wanted_slots(&self, primary: &Sql) -> Result<Option<StandbySlots>, String> {
        let Some(current) = current(primary).await.map_err(|e| e.to_string())? else { return Ok(None) };
        let kept = self.store.upkeep().standby_slots;
        let kept = kept.filter(|k| k.set == current || k.before == current);
        Ok(Some(StandbySlots::parse(&kept.map_or(current, |k| k.wanted))))
    }

    /// Sets on the primary those of the wanted slots that are in use, but none of `out`.
    pub(super) async fn set_slots(&self, primary: &Sql, wanted: &StandbySlots, out: &[String]) -> Result<(), String> {
        let words = |e: SqlError| e.to_string();
        let Some(before) = current(primary).await.map_err(words)? else { return Ok(()) };
        if wanted.is_empty() && before.is_empty() {
            return Ok(());
        }
        let ask = "SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'physical' AND active";
        let rows = primary.rows_within(ask, SHORT).await.map_err(words)?;
        let used: Vec<String> = rows.iter().map(|row| text(Some(row), 0)).collect();
        let now = wanted.only(&used, out);
        let kept = SyncKept { wanted: wanted.to_string(), set: now.to_string(), before: before.clone() };
        // Before the change: if we die in its middle, both values are known as ours.
        self.store.change_upkeep(|u| u.standby_slots = Some(kept)).map_err(|e| e.to_string())?;
        if StandbySlots::parse(&before) != now {
            set_by_system(primary, NAME, Some(&now.to_string())).await.map_err(|f| f.detail.unwrap_or(f.message))?;
        }
        Ok(())
    }

    /// The same for what is wanted already.
    pub(super) async fn keep_slots(&self, primary: &Sql) -> Result<(), String> {
        match self.wanted_slots(primary).await? {
            Some(wanted) => self.set_slots(primary, &wanted, &[]).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_slots_in_use_are_named_and_roles_are_exchanged() {
        let wanted = StandbySlots::parse(" pgmend_1,\"other\" ,, pgmend_2");
        assert_eq!(wanted.to_string(), "pgmend_1, other, pgmend_2");
        assert_eq!(wanted.exchanged("pgmend_1", "pgmend_0").to_string(), "pgmend_0, other, pgmend_2");
        assert_eq!(wanted.exchanged("pgmend_1", "other").to_string(), "other, pgmend_2");
        let used = ["pgmend_2".to_owned(), "other".to_owned()];
        assert_eq!(wanted.only(&used, &["other".to_owned()]).to_string(), "pgmend_2");
        assert!(StandbySlots::parse("").is_empty());
    }
}
