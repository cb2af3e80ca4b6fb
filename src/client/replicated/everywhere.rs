//! A statement on all nodes: the main node first, so that locks are taken in one order, then the others at the same time;
//! then their answers are compared.

use super::bundle::Flow;
use super::session::{Session, Standing};
use super::texts::{Needs, Sequence};
use super::transaction::NOW;
use super::verdict::{self, Said, Undo, Verdict};
use crate::base::NodeId;
use crate::client::fault::Fault;
use crate::net::Stream;
use crate::wire::backend::ErrorFields;
use std::time::Duration;

/// For so long a server may take to obey a cancel.
const OBEY: Duration = Duration::from_secs(10);
/// Class of pgmend's advisory locks: those with two numbers, the first of which is this ("pgmd").
const LOCK_CLASS: i32 = 0x7067_6d64;

/// What is sent to all.
pub struct Work<'a> {
    /// The frames.
    pub frames: &'a [u8],
    /// The ReadyForQuery messages that they bring.
    pub parts: usize,
    /// What must be there before.
    pub needs: &'a Needs,
    /// It runs in a transaction: one of pgmend's own where the client has none. Else it commits by itself on each node.
    pub in_transaction: bool,
}

/// How it went.
#[derive(Debug)]
pub enum Outcome {
    /// All nodes did it.
    Done,
    /// All nodes have refused it alike, and the client knows.
    Failed,
    /// Nothing of it is left anywhere; the client must be told why.
    Undone(Box<ErrorFields>),
    /// The main node waits for COPY data, and so do the others.
    CopyIn,
}

impl Session {
    /// See the module. The main node's answer goes to the client when all have agreed.
    pub(super) async fn everywhere(&mut self, client: &mut Stream, work: Work<'_>) -> Result<Outcome, Fault> {
        // What commits by itself is brought to its end on all nodes, as a commit is.
        self.committing = !work.in_transaction && !work.needs.harmless;
        let outcome = self.carry_out(client, work).await;
        self.committing = false;
        outcome
    }

    async fn carry_out(&mut self, client: &mut Stream, work: Work<'_>) -> Result<Outcome, Fault> {
        if self.standing == Standing::None && !self.legs.iter().any(|leg| leg.is_in_transaction()) {
            self.lease_all(client).await?;
        }
        if work.in_transaction {
            if self.standing == Standing::None {
                self.standing = Standing::Internal;
            }
            if let Err(error) = self.take_snapshot(client).await? {
                return Ok(Outcome::Undone(Box::new(error)));
            }
        }
        // During a COPY nothing else may be sent.
        let checked = if work.needs.copy_in { &[][..] } else { work.needs.sequences.as_slice() };
        let after: Vec<String> = checked.iter().map(|s| sequence_state(&s.name)).collect();
        let before = self.before_main(&work);
        let asks_now = before.iter().any(|sql| sql == NOW);
        let Some(main) = self.legs.first_mut() else { return Err(lost("no node is in use")) };
        main.send(&before, work.frames, work.parts, &after);
        main.account.expect(work.needs);
        main.has_now |= asks_now;
        self.round(client, &[0], Some((0, Flow::Hold)), None).await?;
        self.locked.extend(work.needs.sequences.iter().map(|s| s.oid));
        let Some(main) = self.legs.first() else { return Err(lost("no node is in use")) };
        self.parsed = main.account.parsed;
        self.last_place = 0;
        if asks_now {
            let at = before.iter().position(|sql| sql == NOW).unwrap_or_default();
            let value = main.account.own.get(at).and_then(|rows| rows.first()?.first()?.clone());
            self.now = value.map(|v| String::from_utf8_lossy(&v).into_owned());
        }
        if main.account.lost.is_some() {
            return self.main_lost(client).await;
        }
        if let Some(error) = &main.account.error
            && (verdict::is_of_the_moment(&error.code) || self.now.is_none() && asks_now)
            && work.in_transaction
        {
            // The others have not begun with it.
            let error = error.clone();
            return Ok(Outcome::Undone(Box::new(error)));
        }
        let others: Vec<usize> = (1..self.legs.len()).collect();
        self.send_others(&work, &after);
        if !self.in_time(client, &others).await? {
            return Ok(Outcome::Undone(Box::new(deadlock())));
        }
        if !self.drop_lost(client).await? {
            return Ok(Outcome::Undone(Box::new(connection_lost())));
        }
        let undo = match (work.in_transaction, work.needs.harmless) {
            (true, _) => Undo::All,
            (false, true) => Undo::NoNeed,
            (false, false) => Undo::Nothing,
        };
        self.compare(client, undo, checked).await
    }

    /// What pgmend does on the main node first, in the same send: begin, fix the time, lock the sequences.
    fn before_main(&self, work: &Work<'_>) -> Vec<String> {
        let mut before = Vec::new();
        let Some(main) = self.legs.first() else { return before };
        if work.in_transaction && !main.is_in_transaction() {
            before.push(self.begin_text());
        }
        if work.needs.now && !main.has_now {
            before.push(self.now.as_deref().map_or(NOW.to_owned(), set_now));
        }
        for sequence in work.needs.sequences.iter().filter(|s| work.in_transaction && !self.locked.contains(&s.oid)) {
            // As an int4 the number may be negative; it is a name and nothing else.
            let key = i32::from_ne_bytes(sequence.oid.to_ne_bytes());
            before.push(format!("SELECT pg_catalog.pg_advisory_xact_lock({LOCK_CLASS}, {key})"));
        }
        before
    }

    fn send_others(&mut self, work: &Work<'_>, after: &[String]) {
        let begin = self.begin_text();
        let now = self.now.clone();
        for leg in self.legs.iter_mut().skip(1) {
            let mut before = Vec::new();
            if work.in_transaction && !leg.is_in_transaction() {
                before.push(begin.clone());
            }
            if work.needs.now
                && !leg.has_now
                && let Some(now) = &now
            {
                before.push(set_now(now));
                leg.has_now = true;
            }
            leg.send(&before, work.frames, work.parts, after);
            leg.account.expect(work.needs);
        }
    }

    /// The others' answers. One that takes much longer than the main node waits for a lock that somebody holds who waits
    /// for the main node: no server can see that, so time decides. False: they were cancelled.
    pub(super) async fn in_time(&mut self, client: &mut Stream, others: &[usize]) -> Result<bool, Fault> {
        let limit = self.settings().lock_timeout;
        if others.is_empty() || self.round(client, others, None, Some(limit)).await? {
            return Ok(true);
        }
        for leg in self.legs.iter().skip(1).filter(|leg| !leg.is_done()) {
            leg.borrower.slot.carry_out().await;
        }
        if !self.round(client, others, None, Some(OBEY)).await? {
            self.legs.iter_mut().skip(1).filter(|leg| !leg.is_done()).for_each(|leg| leg.close());
        }
        Ok(false)
    }

    pub(super) async fn compare(
        &mut self,
        client: &mut Stream,
        undo: Undo,
        checked: &[Sequence],
    ) -> Result<Outcome, Fault> {
        let said: Vec<Said<'_>> = self.legs.iter().map(|leg| Said { node: leg.node, account: &leg.account }).collect();
        let verdict = verdict::judge(&said, self.settings().choice, undo);
        match verdict {
            Verdict::Agreed => {}
            Verdict::RollBack(error) => return Ok(Outcome::Undone(error)),
            Verdict::Detach(nodes, why) => self.detach_all(nodes, &why).await,
        }
        if let Some(error) = self.sequences_differ(checked.len()) {
            let names: Vec<String> = checked.iter().map(|s| s.name.clone()).collect();
            self.roll_back_for(client).await?;
            self.level_sequences(client, &names).await?;
            return Ok(Outcome::Undone(Box::new(error)));
        }
        self.answer_of(0, Flow::Hold);
        let main = self.legs.first().ok_or_else(|| lost("no node is in use"))?;
        Ok(match (&main.account.error, main.core.awaits_client()) {
            (Some(_), _) => Outcome::Failed,
            (None, true) => Outcome::CopyIn,
            (None, false) => Outcome::Done,
        })
    }

    async fn detach_all(&mut self, nodes: Vec<NodeId>, why: &str) {
        for node in nodes {
            self.detach_diverged(node, why.to_owned()).await;
        }
    }

    /// Under the lock the sequences must stand alike everywhere after the statement.
    fn sequences_differ(&self, count: usize) -> Option<ErrorFields> {
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
                .with_hint("The sequence has been set to the same value everywhere. Try the transaction again."),
        )
    }

    /// Rolls back on all nodes, also a transaction of the client's: afterwards it stands as failed, with nothing open.
    async fn roll_back_for(&mut self, client: &mut Stream) -> Result<(), Fault> {
        if self.standing == Standing::Internal {
            return self.roll_back(client).await;
        }
        self.spoil(client).await
    }

    /// Sets sequences to the greatest value of all nodes. In a failed transaction of the client's it must wait for its end.
    async fn level_sequences(&mut self, client: &mut Stream, names: &[String]) -> Result<(), Fault> {
        if self.standing != Standing::None {
            self.to_level.extend(names.iter().cloned());
            return Ok(());
        }
        self.lease_all(client).await?;
        let all: Vec<usize> = (0..self.legs.len()).collect();
        for name in names {
            for leg in &mut self.legs {
                leg.send(&[], &[], 0, &[format!("SELECT last_value, is_called::pg_catalog.int4 FROM {name}")]);
            }
            self.round(client, &all, None, None).await?;
            let states = self.legs.iter_mut().map(|leg| {
                let row = leg.last_own().into_iter().next().unwrap_or_default();
                let number = |at: usize| {
                    let text = row.get(at)?.as_ref()?;
                    std::str::from_utf8(text).ok()?.parse::<i64>().ok()
                };
                Some((number(0)?, number(1)?))
            });
            let Some((value, called)) = states.flatten().max() else { continue };
            let literal = crate::base::literal(name);
            for leg in &mut self.legs {
                let sql = format!("SELECT pg_catalog.setval({literal}::pg_catalog.regclass, {value}, {called} <> 0)");
                leg.send(&[], &[], 0, &[sql]);
            }
            self.round(client, &all, None, None).await?;
        }
        Ok(())
    }

    /// Sequences that a failed transaction has left different, now that it is over.
    pub(super) async fn level_late(&mut self, client: &mut Stream) -> Result<(), Fault> {
        let names: Vec<String> = std::mem::take(&mut self.to_level).into_iter().collect();
        if names.is_empty() { Ok(()) } else { self.level_sequences(client, &names).await }
    }

    /// The main node is lost in the middle of a transaction: what the others have done of it is undone.
    async fn main_lost(&mut self, client: &mut Stream) -> Result<Outcome, Fault> {
        self.drop_lost(client).await?;
        Ok(Outcome::Undone(Box::new(connection_lost())))
    }
}

fn set_now(now: &str) -> String {
    // Made by the main node of digits and signs; quoted all the same.
    format!("SELECT pg_catalog.set_config('pgmend.now', {}, true)", crate::base::literal(now))
}

fn sequence_state(name: &str) -> String {
    format!("SELECT last_value, is_called FROM {name}")
}

fn lost(why: &str) -> Fault {
    Fault::ServerLost(why.to_owned())
}

pub(super) fn deadlock() -> ErrorFields {
    ErrorFields::error(
        "40P01",
        "deadlock across nodes assumed: another node took too long for what the main node had done",
    )
    .with_hint("The transaction was rolled back on all nodes. Try it again; replication_lock_timeout is the limit.")
}

pub(super) fn connection_lost() -> ErrorFields {
    ErrorFields::error("40001", "a node's connection was lost, and the transaction was rolled back on all nodes")
        .with_hint("Try the transaction again.")
}
