//! Sequences that one node has taken more numbers from than another: found under their lock, and set alike afterwards.
//!
//! Numbers are not given back when a transaction is undone. Where a statement was not carried out on all nodes, they may
//! have taken different ones.

use super::session::{Session, Standing};
use super::texts::Sequence;
use crate::base::{identifier, literal};
use crate::client::fault::Fault;
use crate::net::Stream;
use crate::server::Row;
use crate::wire::backend::ErrorFields;

/// Class of pgmend's advisory locks: those with two numbers, the first of which is this ("pgmd").
const LOCK_CLASS: i32 = 0x7067_6d64;

/// Locks a sequence for the transaction.
pub(super) fn lock(sequence: &Sequence) -> String {
    format!("SELECT pg_catalog.pg_advisory_xact_lock({LOCK_CLASS}, {})", key(sequence))
}

/// Where a sequence stands. Who may take numbers of it without any right to it (as of an identity column) learns nothing.
pub(super) fn state(sequence: &Sequence) -> String {
    let name = literal(&sequence.name);
    format!(
        "SELECT CASE WHEN pg_catalog.has_sequence_privilege({name}, 'USAGE, SELECT') \
         THEN pg_catalog.pg_sequence_last_value({name}::pg_catalog.regclass) END"
    )
}

/// As an int4 the number may be negative; it is a name and nothing else.
fn key(sequence: &Sequence) -> i32 {
    i32::from_ne_bytes(sequence.oid.to_ne_bytes())
}

fn number(row: Option<&Row>, at: usize) -> Option<i64> {
    let text = row?.get(at)?.as_ref()?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

impl Session {
    /// Under the lock the sequences must stand alike everywhere after the statement.
    pub(super) fn sequences_differ(&self, count: usize) -> Option<ErrorFields> {
        let (main, others) = self.legs.split_first()?;
        if main.account.error.is_some() || count == 0 {
            return None;
        }
        let states = |leg: &super::leg::Leg| {
            let own = &leg.account.own;
            own.get(own.len().saturating_sub(count)..).unwrap_or_default().to_vec()
        };
        let differs = others.iter().find(|leg| states(leg) != states(main))?;
        Some(
            ErrorFields::error("40001", "a sequence has not given the same numbers on all nodes")
                .with_detail(format!("Node {} and node {} differ.", main.node, differs.node))
                .with_hint("The sequence is set to the same value everywhere. Try the transaction again."),
        )
    }

    /// Sequences that what was undone has left different, now that its transaction is over.
    pub(super) async fn level_late(&mut self, client: &mut Stream) -> Result<(), Fault> {
        if self.standing != Standing::None || self.to_level.is_empty() {
            return Ok(());
        }
        self.lease_all(client).await?;
        for sequence in std::mem::take(&mut self.to_level) {
            self.level(client, &sequence).await?;
        }
        Ok(())
    }

    /// Sets a sequence to the furthest value of all nodes. Whoever holds its lock finds out for himself.
    async fn level(&mut self, client: &mut Stream, sequence: &Sequence) -> Result<(), Fault> {
        let all: Vec<usize> = (0..self.legs.len()).collect();
        let try_lock =
            format!("SELECT pg_catalog.pg_try_advisory_xact_lock({LOCK_CLASS}, {})::pg_catalog.int4", key(sequence));
        let Some(main) = self.legs.first_mut() else { return Ok(()) };
        main.send(&[], &[], 0, &["BEGIN".into(), try_lock]);
        self.round(client, &[0], None, None).await?;
        let locked = self.legs.first_mut().and_then(|main| number(main.last_own().first(), 0)) == Some(1);
        if locked {
            self.set_alike(client, sequence, &all).await?;
        }
        let Some(main) = self.legs.first_mut().filter(|main| main.is_in_transaction()) else { return Ok(()) };
        main.send(&[], &[], 0, &["COMMIT".into()]);
        self.round(client, &[0], None, None).await?;
        Ok(())
    }

    async fn set_alike(&mut self, client: &mut Stream, sequence: &Sequence, all: &[usize]) -> Result<(), Fault> {
        let name = literal(&sequence.name);
        let down = format!(
            "SELECT ({})::pg_catalog.int8, (SELECT s.seqincrement < 0 FROM pg_catalog.pg_sequence s \
             WHERE s.seqrelid = {name}::pg_catalog.regclass)::pg_catalog.int4",
            state(sequence)
        );
        self.legs.iter_mut().for_each(|leg| leg.send(&[], &[], 0, std::slice::from_ref(&down)));
        self.round(client, all, None, None).await?;
        let rows: Vec<Vec<Row>> = self.legs.iter_mut().map(super::leg::Leg::last_own).collect();
        let values: Vec<Option<i64>> = rows.iter().map(|rows| number(rows.first(), 0)).collect();
        if values.iter().all(|value| Some(value) == values.first()) {
            return Ok(());
        }
        let descends = rows.iter().any(|rows| number(rows.first(), 1) == Some(1));
        let called = values.into_iter().flatten();
        let Some(value) = (if descends { called.min() } else { called.max() }) else { return Ok(()) };
        let set = format!("SELECT pg_catalog.setval({name}::pg_catalog.regclass, {value}, true)");
        self.legs.iter_mut().for_each(|leg| leg.send(&[], &[], 0, std::slice::from_ref(&set)));
        self.round(client, all, None, None).await?;
        for leg in self.legs.iter().filter(|leg| leg.account.error.is_some() || leg.account.lost.is_some()) {
            tracing::warn!(event = "sequence.not_levelled", node = %leg.node, sequence = %sequence.name);
        }
        Ok(())
    }
}

/// Its name as SQL.
pub(super) fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", identifier(schema), identifier(name))
}
