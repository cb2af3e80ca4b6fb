//! What the client sends, carried out: a simple query statement by statement, a piece of a pipeline segment by segment.

use super::batch::{Change, Segment, frees, segments};
use super::bundle::Flow;
use super::everywhere::{INVALID_TERMINATION, Outcome, Work, connection_lost};
use super::session::{Session, Standing};
use super::texts::{How, Needs, Placement, Planned, Step};
use super::unit::Ends;
use crate::client::commands::own_statement;
use crate::client::fault::Fault;
use crate::net::Stream;
use crate::routing::Verdict;
use crate::wire::backend::{self, ErrorFields};
use crate::wire::frontend;

/// A statement of Pgpool-II's own is at most this long.
const MAX_COMMAND: usize = 1024;

impl Session {
    /// A simple query: its statements one after the other, as PostgreSQL does; outside of a transaction together in one.
    pub(super) async fn query(&mut self, client: &mut Stream, text: &[u8]) -> Result<(), Fault> {
        if self.command(text) {
            return Ok(());
        }
        self.whole_query();
        if self.prepare_unit(client).await? {
            match self.plan(client, text).await? {
                Err(error) => self.fail(client, &error).await?,
                Ok(planned) => self.statements(client, &planned).await?,
            }
        }
        self.finish(client).await
    }

    /// The statements of a query, of which each may change what the next ones mean.
    async fn statements(&mut self, client: &mut Stream, planned: &Planned) -> Result<(), Fault> {
        let alone = planned.steps.len() == 1;
        let mut outdated = false;
        for (step, written) in planned.steps.iter().zip(&planned.written) {
            let anew = match outdated {
                true => match self.plan(client, written).await? {
                    Ok(anew) => anew.steps.first().cloned(),
                    Err(error) => return self.fail(client, &error).await,
                },
                false => None,
            };
            let step = anew.as_ref().unwrap_or(step);
            let mut frames = Vec::new();
            backend::raw(&mut frames, b'Q', &[&step.text, &b"\0"[..]].concat());
            let was_failed = self.standing == Standing::Failed;
            if !self.step(client, step, &frames, alone).await? {
                return Ok(());
            }
            outdated |= step.needs.defines || was_failed && self.standing != Standing::Failed;
        }
        if planned.steps.is_empty() {
            backend::empty_query(self.front.out());
        }
        Ok(())
    }

    /// A function call: nobody knows what it does, so it is done everywhere.
    pub(super) async fn function(&mut self, client: &mut Stream, frame: &[u8]) -> Result<(), Fault> {
        if self.prepare_unit(client).await? {
            self.whole_query();
            // What it gives is compared, unless functions may do what they like.
            let blind = self.settings().policy.functions == Verdict::Allow;
            let needs = Needs { blind, ..Needs::default() };
            match self.with_number(client, frame).await? {
                Ok(frame) => {
                    let outcome = self.everywhere(client, Work::new(&frame, &needs, true)).await?;
                    self.follow(client, outcome, &needs).await?;
                }
                Err(error) => self.fail(client, &error).await?,
            }
        }
        self.finish(client).await
    }

    /// A piece of a pipeline, without its Sync.
    pub(super) async fn batch(&mut self, client: &mut Stream, frames: &[u8], ends: Ends) -> Result<(), Fault> {
        if frames.is_empty() {
            return Ok(());
        }
        if !self.prepare_unit(client).await? {
            self.skipping = true;
            return Ok(());
        }
        let mut rest = frames;
        while !rest.is_empty() {
            let (items, count) = match self.read_batch(client, rest).await? {
                Ok(read) => read,
                Err(error) => {
                    self.fail(client, &error).await?;
                    self.skipping = true;
                    return Ok(());
                }
            };
            rest = rest.get(count..).unwrap_or_default();
            // What is not the whole of what comes before the Sync shares one transaction with the rest.
            let whole =
                ends == Ends::Sync && rest.is_empty() && (count == frames.len() || self.standing == Standing::None);
            let bare_ends = matches!(self.standing, Standing::None | Standing::Internal);
            if !self.pieces(client, segments(items, bare_ends), whole, rest.first().copied()).await? {
                self.skipping = true;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Segments of a pipeline, one after the other. False: one failed. `whole`: nothing else belongs to their transaction.
    async fn pieces(
        &mut self,
        client: &mut Stream,
        segments: Vec<Segment>,
        whole: bool,
        behind: Option<u8>,
    ) -> Result<bool, Fault> {
        let alone = whole && segments.len() == 1;
        let mut segments = segments.into_iter().peekable();
        while let Some(segment) = segments.next() {
            let Segment { mut step, mut frames, changes, works, lacks_unnamed } = segment;
            if let Some(unnamed) = self.texts.find(b"").filter(|_| lacks_unnamed) {
                // Statements of pgmend's own have taken it away from the servers, or they never had it.
                let mut whole = Vec::new();
                backend::raw(&mut whole, b'P', &unnamed.body);
                whole.append(&mut frames);
                frames = whole;
                step.needs.own_parses = 1;
            }
            frontend::sync(&mut frames);
            self.extended = true;
            self.made = 0;
            self.repeatable = changes.iter().all(Change::is_of_unnamed);
            self.freeing = frees(&changes);
            self.follows = segments.peek().and_then(|next| next.frames.first().copied()).or(behind);
            let went_on = self.step(client, &step, &frames, alone || !works).await?;
            self.note_changes(changes)?;
            if !went_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What comes is no part of a pipeline.
    fn whole_query(&mut self) {
        self.extended = false;
        self.repeatable = true;
        self.follows = None;
    }

    /// One statement, or one segment of a pipeline. False: it failed, and what follows is skipped.
    async fn step(&mut self, client: &mut Stream, step: &Step, frames: &[u8], alone: bool) -> Result<bool, Fault> {
        if self.standing == Standing::Failed {
            return self.in_failed(client, step, frames).await;
        }
        if !step.warns_late {
            self.warn(step);
        }
        match &step.how {
            How::Refused(error) => {
                let error = error.clone();
                self.fail(client, &error).await?;
                Ok(false)
            }
            How::Begin { text } => self.open(client, text, frames, &step.needs).await,
            How::End { keeps, chain } => self.end(client, frames, &step.needs, *keeps, *chain).await,
            How::Savepoint if self.standing != Standing::Open => self.outside(client, frames, &step.needs).await,
            How::Savepoint => {
                let outcome = self.everywhere(client, Work::new(frames, &step.needs, true)).await?;
                self.forget_since_savepoint();
                self.follow(client, outcome, &step.needs).await
            }
            How::All => {
                let went_on = self.change(client, step, frames, alone).await?;
                if went_on && step.warns_late {
                    self.warn(step);
                }
                Ok(went_on)
            }
            How::One => self.read(client, step, frames, alone).await,
            How::Main => self.on_one_after(client, 0, vec![], frames, &step.needs).await,
        }
    }

    fn warn(&mut self, step: &Step) {
        step.notices.iter().for_each(|notice| backend::notice_response(self.front.out(), notice));
    }

    /// What goes to all nodes.
    async fn change(&mut self, client: &mut Stream, step: &Step, frames: &[u8], alone: bool) -> Result<bool, Fault> {
        let needs = match self.needs_of(client, step).await? {
            Ok(needs) => needs,
            Err(error) => {
                self.fail(client, &error).await?;
                return Ok(false);
            }
        };
        let is_first = self.standing == Standing::None;
        let in_transaction = match step.placement {
            Placement::Inside => true,
            Placement::Either => !is_first || !alone,
            // What may end its transaction is tried inside of one, where all of it can be undone.
            Placement::InParts => !is_first || !alone || self.repeatable,
            Placement::Outside => !is_first,
        };
        let in_parts = step.placement == Placement::InParts && is_first && alone;
        let work = Work { in_parts, ..Work::new(frames, &needs, in_transaction) };
        let mut outcome = self.everywhere(client, work).await?;
        if in_parts
            && in_transaction
            && let Outcome::Undone(error) = &outcome
            && error.code == INVALID_TERMINATION
        {
            self.legs.iter_mut().for_each(|leg| leg.out.clear());
            self.roll_back(client).await?;
            outcome = self.everywhere(client, Work { in_transaction: false, ..work }).await?;
        }
        let went_on = self.follow(client, outcome, &needs).await?;
        self.note_named(&step.names, went_on);
        Ok(went_on)
    }

    /// What PostgreSQL refuses outside of a transaction block; what the query or pipeline has done before is undone with it.
    async fn outside(&mut self, client: &mut Stream, frames: &[u8], needs: &Needs) -> Result<bool, Fault> {
        if self.standing == Standing::Internal {
            self.roll_back(client).await?;
        }
        self.on_one(client, frames, needs).await
    }

    /// Inside a failed transaction: all nodes get what may end it, the main node refuses the rest.
    async fn in_failed(&mut self, client: &mut Stream, step: &Step, frames: &[u8]) -> Result<bool, Fault> {
        match &step.how {
            How::End { keeps, chain } => self.end(client, frames, &step.needs, *keeps, *chain).await,
            How::All if step.needs.binds_control => self.bind_in_failed(client, step, frames).await,
            How::Savepoint => {
                // It changes nothing by itself: whoever wants the session to end may end it.
                let needs = harmless(&step.needs);
                let outcome = self.everywhere(client, Work::new(frames, &needs, false)).await?;
                self.forget_since_savepoint();
                let goes_on = matches!(outcome, Outcome::Done);
                if goes_on && self.legs.iter().all(|leg| leg.core.status() == b'T') {
                    self.standing = Standing::Open;
                } else {
                    // On some nodes it may have been brought back to life.
                    self.spoil(client).await?;
                }
                if let Outcome::Undone(error) = outcome {
                    self.legs.iter_mut().for_each(|leg| leg.out.clear());
                    self.fail(client, &error).await?;
                }
                Ok(goes_on)
            }
            How::All | How::One | How::Main | How::Begin { .. } | How::Refused(_) => {
                if self.legs.first().is_some_and(|leg| leg.core.status() == b'E') {
                    return self.on_one(client, frames, &step.needs).await;
                }
                Ok(self.aborted())
            }
        }
    }

    /// A portal of what may end a failed transaction: the main node's answer counts. Another node that did not see an earlier
    /// error as the main node did may have one of that name.
    async fn bind_in_failed(&mut self, client: &mut Stream, step: &Step, frames: &[u8]) -> Result<bool, Fault> {
        if self.legs.first().is_none_or(|leg| leg.core.status() != b'E') {
            return Ok(self.aborted());
        }
        let went_on = self.on_one(client, frames, &step.needs).await?;
        if went_on {
            let mut all = std::mem::take(&mut self.freeing);
            all.extend_from_slice(frames);
            let others: Vec<usize> = (1..self.legs.len()).collect();
            for leg in self.legs.iter_mut().skip(1) {
                leg.send(&[], &all, 1, &[]);
                leg.account.expect(&step.needs);
            }
            self.round(client, &others, None, None).await?;
        }
        Ok(went_on)
    }

    /// The servers that the failed transaction was on have gone.
    fn aborted(&mut self) -> bool {
        self.front.error(&ErrorFields::error(
            "25P02",
            "current transaction is aborted, commands ignored until end of transaction block",
        ));
        false
    }

    async fn open(&mut self, client: &mut Stream, text: &str, frames: &[u8], needs: &Needs) -> Result<bool, Fault> {
        let before = self.standing;
        if before == Standing::None {
            self.forget_transaction();
            self.begin = text.to_owned();
        }
        let needs = harmless(needs);
        let work = Work { hushed: before == Standing::Internal, ..Work::new(frames, &needs, false) };
        let outcome = self.everywhere(client, work).await?;
        match (&outcome, before) {
            // Of several statements in one query, or in one pipeline: what came before belongs to it.
            (Outcome::Done, _) => self.standing = Standing::Open,
            // On some nodes it may have begun.
            (Outcome::Undone(_) | Outcome::Failed, Standing::None) => {
                self.legs.iter_mut().for_each(|leg| leg.out.clear());
                self.roll_back(client).await?;
            }
            _ => {}
        }
        self.follow(client, outcome, &needs).await
    }

    async fn end(
        &mut self,
        client: &mut Stream,
        frames: &[u8],
        needs: &Needs,
        keeps: bool,
        chain: bool,
    ) -> Result<bool, Fault> {
        let mut rest = frames;
        let mut made = 0;
        if keeps && self.standing != Standing::Failed {
            match self.portal_everywhere(client, frames, needs).await? {
                Some((at, done)) => (rest, made) = (frames.get(at..).unwrap_or_default(), done),
                None => return Ok(false),
            }
        }
        let ended = self.end_now(client, rest, needs, keeps, chain).await;
        self.made += made;
        ended
    }

    async fn end_now(
        &mut self,
        client: &mut Stream,
        frames: &[u8],
        needs: &Needs,
        keeps: bool,
        chain: bool,
    ) -> Result<bool, Fault> {
        if self.standing == Standing::Internal {
            let open = self.legs.iter().any(|leg| leg.is_in_transaction());
            if open && !chain && self.extended && !needs.prepares {
                return self.end_pipelined(client, frames, needs, keeps).await;
            }
            // To the client there is none: what it has done so far is committed or not, and the server warns it.
            if keeps && !chain {
                if !self.end_internal(client).await? {
                    return Ok(false);
                }
            } else {
                self.roll_back(client).await?;
            }
            return self.on_one(client, frames, needs).await;
        }
        let begin = self.begin.clone();
        let open = self.legs.iter().any(|leg| leg.is_in_transaction());
        if !open && self.standing == Standing::Failed {
            // All servers of the transaction have gone; it is over.
            backend::command_complete(self.front.out(), "ROLLBACK");
            self.standing = Standing::None;
            self.forget_transaction();
            return Ok(true);
        }
        if !open {
            // No transaction is open: the server warns.
            return self.on_one(client, frames, needs).await;
        }
        if self.legs.iter().any(|leg| leg.core.status() == b'E') {
            // What has failed anywhere is committed nowhere.
            self.spoil(client).await?;
        }
        let keeps = keeps && self.standing == Standing::Open;
        let clean = match self.commit(client, frames, needs, (keeps, Flow::Hold)).await? {
            Ok(clean) => clean,
            Err(error) => return Ok(self.not_committed(&error)),
        };
        // In a pipeline an error may have come before what ends it; and AND CHAIN begins the next one at once.
        let status = self.legs.iter().find(|leg| leg.pooled.is_some()).map_or(b'I', |leg| leg.core.status());
        self.standing = match status {
            b'I' => Standing::None,
            b'E' => Standing::Failed,
            _ => Standing::Open,
        };
        if self.standing == Standing::None || clean {
            self.forget_transaction();
        }
        if chain && self.standing == Standing::Open {
            self.begin = begin;
        }
        if self.standing == Standing::None && self.legs.iter().any(|leg| leg.is_in_transaction()) {
            // One that had not the portal of the ROLLBACK is still in the transaction.
            self.roll_back(client).await?;
        }
        Ok(clean)
    }

    /// What one node can answer. Inside a transaction it is one that takes part in it.
    async fn read(&mut self, client: &mut Stream, step: &Step, frames: &[u8], alone: bool) -> Result<bool, Fault> {
        let open = self.standing != Standing::None;
        // Together with other statements it is part of what they do.
        let wrap = open || !alone;
        if wrap && let Err(error) = self.take_snapshot(client).await? {
            self.fail(client, &error).await?;
            return Ok(false);
        }
        // The time that all nodes shall take is the main node's.
        let place = if step.needs.now && wrap { 0 } else { self.reader_place() };
        if !wrap {
            return self.on_one_after(client, place, vec![], frames, &step.needs).await;
        }
        if self.standing == Standing::None {
            // All of them now: a transaction that has begun must not wait for a gate that closes meanwhile.
            self.lease_all(client).await?;
            self.standing = Standing::Internal;
        }
        let before = match self.legs.get(place) {
            Some(leg) if leg.is_in_transaction() => vec![],
            _ => vec![self.begin_text()],
        };
        self.on_one_after(client, place, before, frames, &step.needs).await
    }

    fn reader_place(&self) -> usize {
        self.legs.iter().position(|leg| leg.node == self.reader).unwrap_or(0)
    }

    /// On the main node, which answers for all.
    async fn on_one(&mut self, client: &mut Stream, frames: &[u8], needs: &Needs) -> Result<bool, Fault> {
        self.on_one_after(client, 0, vec![], frames, needs).await
    }

    async fn on_one_after(
        &mut self,
        client: &mut Stream,
        place: usize,
        before: Vec<String>,
        frames: &[u8],
        needs: &Needs,
    ) -> Result<bool, Fault> {
        let again_already = needs.again;
        let mut place = place;
        // What the main node was to do no other one does instead of it.
        let at_main = place == 0;
        while self.legs.get(place).is_none_or(|leg| leg.pooled.is_none()) {
            if self.legs.is_empty() || !self.lease(client, &[place]).await? {
                self.refresh()?;
                place = if at_main { 0 } else { self.reader_place() };
                if self.legs.is_empty() {
                    self.lease_all(client).await?;
                }
            }
        }
        let Some(leg) = self.legs.get_mut(place) else { return Ok(false) };
        leg.send(&before, frames, 1, &[]);
        leg.account.expect(needs);
        self.round(client, &[place], Some((place, Flow::Stream)), None).await?;
        let Some(leg) = self.legs.get(place) else { return Ok(false) };
        self.made = leg.account.made;
        self.last_place = place;
        if leg.account.lost.is_some() {
            let again = leg.account.is_untouched() && before.is_empty() && self.standing == Standing::None;
            self.drop_lost().await?;
            if again && !again_already {
                // A read of which nothing has come is another node's as well.
                self.refresh()?;
                return Box::pin(self.on_one_after(client, 0, before, frames, &Needs { again: true, ..needs.clone() }))
                    .await;
            }
            self.fail(client, &connection_lost()).await?;
            return Ok(false);
        }
        if leg.account.error.is_some() {
            self.failed(client).await?;
            return Ok(false);
        }
        Ok(true)
    }

    /// What follows from an outcome on all nodes. False: it failed.
    async fn follow(&mut self, client: &mut Stream, outcome: Outcome, needs: &Needs) -> Result<bool, Fault> {
        match outcome {
            Outcome::Done => Ok(true),
            Outcome::Failed => {
                self.failed(client).await?;
                Ok(false)
            }
            Outcome::Undone(error) => {
                self.legs.iter_mut().for_each(|leg| leg.out.clear());
                self.fail(client, &error).await?;
                Ok(false)
            }
            Outcome::CopyIn => {
                let outcome = self.copy_in(client, &needs.sequences).await?;
                Box::pin(self.follow(client, outcome, needs)).await
            }
        }
    }

    /// An error for the client, and what it means for the transaction.
    pub(super) async fn fail(&mut self, client: &mut Stream, error: &ErrorFields) -> Result<(), Fault> {
        match error.severity.as_str() {
            // The end of a server is not the end of the client's session.
            "FATAL" | "PANIC" => self.front.error(&connection_lost()),
            _ => self.front.error(error),
        }
        self.failed(client).await
    }

    pub(super) async fn failed(&mut self, client: &mut Stream) -> Result<(), Fault> {
        match self.standing {
            Standing::None => Ok(()),
            Standing::Internal => self.roll_back(client).await,
            Standing::Open => self.spoil(client).await,
            Standing::Failed => Ok(()),
        }
    }

    /// What was learnt or locked since a savepoint may be undone with it; it is asked for again.
    fn forget_since_savepoint(&mut self) {
        self.locked.clear();
        self.legs.iter_mut().for_each(|leg| leg.has_now = false);
    }

    /// A statement that pgmend answers itself, outside of transactions.
    fn command(&mut self, text: &[u8]) -> bool {
        let offered = self.plane.settings.load().client.pool_commands && self.standing == Standing::None;
        let Some(sql) = own_statement(text).filter(|_| offered && text.len() <= MAX_COMMAND) else { return false };
        let Some(told) = self.plane.answer(&sql, self.database(), &self.control) else { return false };
        told.write(self.front.out());
        true
    }

    /// Before a piece of work: the nodes in use may have changed. False: it cannot be done, and the client knows.
    async fn prepare_unit(&mut self, client: &mut Stream) -> Result<bool, Fault> {
        if !self.refresh()? {
            return Ok(true);
        }
        self.fail(client, &connection_lost()).await?;
        Ok(false)
    }
}

/// Of what begins or ends something: it changes no data by itself.
fn harmless(needs: &Needs) -> Needs {
    Needs { harmless: true, own_parses: needs.own_parses, ..Needs::default() }
}
