//! A statement on all nodes: the main node first, so that locks are taken in one order, then the others at the same time;
//! then their answers are compared.

use super::bundle::Flow;
use super::large;
use super::level;
use super::session::{Session, Standing};
use super::texts::{Needs, Sequence};
use super::verdict::{self, Said, Undo, Verdict};
use crate::base::NodeId;
use crate::client::fault::Fault;
use crate::net::Stream;
use crate::wire::backend::ErrorFields;
use std::time::Duration;

/// For so long a server may take to obey a cancel.
const OBEY: Duration = Duration::from_secs(10);
/// SQLSTATE of a COMMIT or ROLLBACK inside of a procedure that was called in a transaction.
pub(super) const INVALID_TERMINATION: &str = "2D000";

/// What is sent to all.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    /// The frames, which bring one ReadyForQuery.
    pub frames: &'a [u8],
    /// What must be there before.
    pub needs: &'a Needs,
    /// It runs in a transaction: one of pgmend's own where the client has none. Else it commits by itself on each node.
    pub in_transaction: bool,
    /// It may commit in the middle. In a transaction that is refused, and then nothing of it is left.
    pub in_parts: bool,
    /// See [`super::account::Account::hushed`].
    pub hushed: bool,
}

impl<'a> Work<'a> {
    /// Something that is part of a transaction, or its begin.
    pub fn new(frames: &'a [u8], needs: &'a Needs, in_transaction: bool) -> Work<'a> {
        Work { frames, needs, in_transaction, in_parts: false, hushed: false }
    }

    /// Takes back what was set for it alone.
    fn resets(&self) -> Vec<String> {
        let mut resets = Vec::new();
        if !self.in_transaction && self.needs.now {
            resets.push("RESET pgmend.now".to_owned());
        }
        if !self.in_transaction {
            resets.extend((1..=self.needs.numbers).map(large::reset));
        }
        resets
    }

    /// What it does cannot be undone once a node has done it.
    fn is_final(&self) -> bool {
        !self.in_transaction && !self.needs.harmless
    }
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
        let outcome = self.carry_out(client, work).await;
        self.committing = false;
        if self.standing == Standing::None {
            // What it took for now was for it alone.
            self.now = None;
            self.legs.iter_mut().for_each(|leg| leg.has_now = false);
        }
        if matches!(outcome, Ok(Outcome::Undone(_))) {
            // Some nodes may have taken numbers, and others not.
            self.to_level.extend(work.needs.sequences.iter().cloned());
        }
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
        let commits = work.needs.finishes && self.isolates();
        let _inside = match self.enter_commits(commits).await {
            Ok(inside) => inside,
            Err(error) => return Ok(Outcome::Undone(Box::new(error))),
        };
        let numbers = match self.draw(client, work.needs.numbers).await? {
            Ok(numbers) => numbers,
            Err(error) => return Ok(Outcome::Undone(Box::new(error))),
        };
        let set: Vec<String> = (1..).zip(numbers).map(|(nth, n)| large::set(nth, n, work.in_transaction)).collect();
        let checked = checked(work.needs);
        let resets = work.resets().into_iter();
        let after: Vec<String> = resets.chain(checked.iter().map(level::state)).collect();
        if let Some(error) = self.on_main(client, &work, &set, &after).await? {
            let own = self.legs.first().and_then(|main| main.account.error.as_ref());
            if own != Some(&error) || work.in_parts && error.code == INVALID_TERMINATION {
                return Ok(Outcome::Undone(Box::new(error)));
            }
            // As the server has told it.
            self.answer_of(0, Flow::Hold);
            self.to_level.extend(work.needs.sequences.iter().cloned());
            return Ok(Outcome::Failed);
        }
        let others: Vec<usize> = (1..self.legs.len()).collect();
        self.send_others(&work, &set, &after);
        if work.is_final() {
            self.finally(client, &others).await?;
        } else if !work.in_transaction {
            // What changes no data (VACUUM) takes as long as it takes.
            self.round(client, &others, None, None).await?;
        } else if !self.in_time(client, &others).await? {
            return Ok(Outcome::Undone(Box::new(deadlock())));
        }
        if !self.drop_lost().await? {
            return Ok(Outcome::Undone(Box::new(connection_lost())));
        }
        let undo = match (work.in_transaction, work.needs.harmless) {
            (true, _) => Undo::All,
            (false, true) => Undo::NoNeed,
            (false, false) => Undo::Nothing,
        };
        self.compare(undo, checked).await
    }

    /// On the main node. An error is one with which the others need not begin: nothing of the work is left.
    async fn on_main(
        &mut self,
        client: &mut Stream,
        work: &Work<'_>,
        set: &[String],
        after: &[String],
    ) -> Result<Option<ErrorFields>, Fault> {
        let mut before = self.before_main(work);
        before.extend_from_slice(set);
        let now = now_of_main(work.in_transaction);
        let asked_now = before.iter().position(|sql| *sql == now);
        let Some(main) = self.legs.first_mut() else { return Err(lost("no node is in use")) };
        main.send(&before, work.frames, 1, after);
        main.account.expect(work.needs);
        main.account.hushed = work.hushed;
        main.has_now |= asked_now.is_some();
        // What commits by itself is brought to its end on all nodes, as a commit is.
        self.committing = work.is_final();
        let round = self.round(client, &[0], Some((0, Flow::Hold)), None).await;
        if let Err(fault) = round {
            if work.is_final() && self.legs.len() > 1 {
                self.detach_unfollowed(&[0], &fault).await;
            }
            return Err(fault);
        }
        if work.in_transaction {
            self.locked.extend(work.needs.sequences.iter().map(|s| s.oid));
        }
        let Some(main) = self.legs.first() else { return Err(lost("no node is in use")) };
        self.made = main.account.made;
        self.last_place = 0;
        if let Some(at) = asked_now {
            let value = main.account.own.get(at).and_then(|rows| rows.first()?.first()?.clone());
            self.now = value.map(|v| String::from_utf8_lossy(&v).into_owned());
        }
        if main.account.lost.is_some() {
            return self.main_lost(work).await.map(Some);
        }
        let ignorant = self.now.is_none() && asked_now.is_some();
        let ends = |error: &&ErrorFields| match work.in_transaction {
            true => {
                verdict::is_of_the_moment(&error.code) || ignorant || work.in_parts && error.code == INVALID_TERMINATION
            }
            // What PostgreSQL runs in no transaction is done as a whole or not at all (but for what CONCURRENTLY leaves,
            // which holds no data); only what commits in parts may have done some of them.
            false => verdict::is_of_the_moment(&error.code) && !work.in_parts,
        };
        Ok(main.account.error.as_ref().filter(ends).cloned())
    }

    /// The others follow the main node in what cannot be undone, however long it takes.
    async fn finally(&mut self, client: &mut Stream, others: &[usize]) -> Result<(), Fault> {
        self.shield().await;
        let round = self.round(client, others, None, None).await;
        self.unshield();
        if let Err(fault) = round {
            self.detach_unfollowed(others, &fault).await;
            return Err(fault);
        }
        self.detach_lost().await;
        Ok(())
    }

    /// What pgmend does on the main node first, in the same send: begin, fix the time, lock the sequences.
    fn before_main(&self, work: &Work<'_>) -> Vec<String> {
        let mut before = Vec::new();
        let Some(main) = self.legs.first() else { return before };
        if work.in_transaction && !main.is_in_transaction() {
            before.push(self.begin_text());
        }
        if work.needs.now && !main.has_now {
            let known = self.now.as_deref().map(|now| set_now(now, work.in_transaction));
            before.push(known.unwrap_or_else(|| now_of_main(work.in_transaction)));
        }
        for sequence in work.needs.sequences.iter().filter(|s| work.in_transaction && !self.locked.contains(&s.oid)) {
            before.push(level::lock(sequence));
        }
        before
    }

    fn send_others(&mut self, work: &Work<'_>, set: &[String], after: &[String]) {
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
                before.push(set_now(now, work.in_transaction));
                leg.has_now = true;
            }
            before.extend_from_slice(set);
            leg.send(&before, work.frames, 1, after);
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

    pub(super) async fn compare(&mut self, undo: Undo, checked: &[Sequence]) -> Result<Outcome, Fault> {
        let said: Vec<Said<'_>> = self.legs.iter().map(|leg| Said { node: leg.node, account: &leg.account }).collect();
        let verdict = verdict::judge(&said, self.settings().choice, undo);
        match verdict {
            Verdict::Agreed => {}
            Verdict::RollBack(error) => return Ok(Outcome::Undone(error)),
            Verdict::Detach(nodes, why) => self.detach_all(nodes, &why).await,
        }
        if let Some(error) = self.sequences_differ(checked.len()) {
            self.to_level.extend(checked.iter().cloned());
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

    /// The main node is lost in the middle of a transaction: what the others have done of it is undone. What cannot be
    /// undone it may have done or not, unless it has said why it ends.
    async fn main_lost(&mut self, work: &Work<'_>) -> Result<ErrorFields, Fault> {
        if work.is_final() && self.legs.len() > 1 {
            self.detach_lost().await;
        }
        self.drop_lost().await?;
        Ok(connection_lost())
    }
}

/// The sequences that are compared after the work. During a COPY nothing else may be sent, and between a Bind and its
/// Execute it would take the portal away.
fn checked(needs: &Needs) -> &[Sequence] {
    if needs.copy_in || needs.only_bound { &[] } else { &needs.sequences }
}

/// What commits by itself has no transaction for whose time a setting could stand: it stands until it is reset.
fn set_now(now: &str, local: bool) -> String {
    // Made by the main node of digits and signs; quoted all the same.
    format!("SELECT pg_catalog.set_config('pgmend.now', {}, {local})", crate::base::literal(now))
}

/// What the main node takes for now, as all nodes shall.
fn now_of_main(local: bool) -> String {
    format!(
        "SELECT pg_catalog.set_config('pgmend.now', pg_catalog.to_char(pg_catalog.now() AT TIME ZONE 'UTC', \
         'YYYY-MM-DD HH24:MI:SS.US') || '+00', {local})"
    )
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
