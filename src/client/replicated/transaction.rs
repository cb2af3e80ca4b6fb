//! A transaction over several nodes: its begin, its snapshot, its end. The others commit first and the main node last, so
//! that whoever waits for a lock on the main node finds everything done when he gets it.

use super::account::{Mark, asides};
use super::bundle::Flow;
use super::everywhere::connection_lost;
use super::leg::Leg;
use super::session::{Session, Standing, Told};
use super::snapshots::{Group, Inside};
use super::texts::Needs;
use crate::base::NodeId;
use crate::client::fault::Fault;
use crate::net::Stream;
use crate::wire::backend::ErrorFields;
use crate::wire::{frame, frontend};

/// Refused in a transaction, it makes it fail without doing anything else; before it has a portal, which would be left.
const SPOIL: &str = "SELECT \"pgmend: the transaction has failed on another node\"";
/// Takes the snapshot of a repeatable read transaction.
const SNAPSHOT: &str = "SELECT pg_catalog.current_setting('transaction_read_only')";
/// How a transaction ended on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ended {
    Committed,
    NotCommitted(String),
    /// It was not asked to commit, as no other node could.
    Withheld,
    Unknown(String),
}

impl Session {
    /// How a transaction of pgmend's own begins on every node.
    pub(super) fn begin_text(&self) -> String {
        match (self.standing, self.isolates()) {
            (Standing::Open | Standing::Failed, _) if !self.begin.is_empty() => self.begin.clone(),
            (_, true) => "BEGIN ISOLATION LEVEL REPEATABLE READ".into(),
            (_, false) => "BEGIN".into(),
        }
    }

    /// Nothing of the last transaction counts any more.
    pub(super) fn forget_transaction(&mut self) {
        self.now = None;
        self.has_snapshot = false;
        self.locked.clear();
        self.begin.clear();
        self.legs.iter_mut().for_each(|leg| leg.has_now = false);
    }

    /// Snapshot isolation: begins on all nodes and takes the snapshot while nobody commits.
    pub(super) async fn take_snapshot(&mut self, client: &mut Stream) -> Told<()> {
        if self.has_snapshot || !self.isolates() {
            return Ok(Ok(()));
        }
        self.lease_all(client).await?;
        let limit = self.settings().lock_timeout;
        let Some(_inside) = self.plane.snapshots.enter(Group::Snapshots, limit).await else {
            return Ok(Err(late("a snapshot")));
        };
        let begin = self.begin_text();
        let all: Vec<usize> = (0..self.legs.len()).collect();
        for leg in &mut self.legs {
            let before = if leg.is_in_transaction() { vec![] } else { vec![begin.clone()] };
            leg.send(&before, &[], 0, &[SNAPSHOT.to_owned()]);
        }
        self.round(client, &all, None, None).await?;
        if !self.drop_lost().await? {
            return Ok(Err(connection_lost()));
        }
        if let Some(error) = self.legs.iter().find_map(|leg| leg.account.error.clone()) {
            return Ok(Err(error));
        }
        self.has_snapshot = true;
        Ok(Ok(()))
    }

    /// After an error on one node the transaction has failed on all of them: the servers that do not know it yet are told,
    /// so that no COMMIT can succeed anywhere.
    pub(super) async fn spoil(&mut self, client: &mut Stream) -> Result<(), Fault> {
        let well = self.legs_where(|leg| leg.pooled.is_some() && leg.core.status() == b'T');
        for place in &well {
            if let Some(leg) = self.legs.get_mut(*place) {
                leg.send(&[], &[], 0, &[SPOIL.to_owned()]);
            }
        }
        if !well.is_empty() {
            self.round(client, &well, None, None).await?;
        }
        self.standing = Standing::Failed;
        Ok(())
    }

    /// Rolls an internal transaction back, wherever it is open.
    pub(super) async fn roll_back(&mut self, client: &mut Stream) -> Result<(), Fault> {
        let open = self.legs_where(|leg| leg.is_in_transaction() && leg.account.lost.is_none());
        for place in &open {
            if let Some(leg) = self.legs.get_mut(*place) {
                leg.send(&[], &[], 0, &["ROLLBACK".to_owned()]);
            }
        }
        if !open.is_empty() {
            self.round(client, &open, None, None).await?;
        }
        self.legs.iter_mut().filter(|leg| leg.account.lost.is_some() || leg.is_in_transaction()).for_each(Leg::close);
        self.standing = Standing::None;
        self.forget_transaction();
        Ok(())
    }

    /// The end of what pgmend has opened by itself. False: it was not committed, and the client knows.
    pub(super) async fn end_internal(&mut self, client: &mut Stream) -> Result<bool, Fault> {
        if self.standing != Standing::Internal {
            return Ok(true);
        }
        let mut commit = Vec::new();
        frontend::query(&mut commit, "COMMIT");
        // The client gets nothing of it but an error.
        let clean = match self.commit(client, &commit, &Needs::default(), (true, Flow::Drop)).await? {
            Ok(clean) => clean,
            Err(error) => {
                self.front.error(&error);
                false
            }
        };
        self.standing = Standing::None;
        self.forget_transaction();
        Ok(clean)
    }

    /// Sends what ends the transaction: to the others, then to the main node. The main node's answer goes to the client
    /// as `flow` says; true: without an error. The error is one that the client must be told besides. `keeps`: what was done
    /// is to be kept; if not, a server that is lost has undone it.
    pub(super) async fn commit(
        &mut self,
        client: &mut Stream,
        frames: &[u8],
        needs: &Needs,
        (keeps, flow): (bool, Flow),
    ) -> Told<bool> {
        let open = self.legs_where(Leg::is_in_transaction);
        let Some((main, others)) = open.split_first() else { return Ok(Ok(true)) };
        let _inside = match self.enter_commits(self.isolates() && self.has_snapshot).await {
            Ok(inside) => inside,
            Err(error) => {
                self.roll_back(client).await?;
                return Ok(Err(error));
            }
        };
        // From here on a cancel would hit one node and not the other.
        self.shield().await;
        self.committing = true;
        let rounds = self.commit_rounds(client, *main, others, frames, needs).await;
        self.committing = false;
        self.unshield();
        let ends = match rounds {
            Ok(ends) => ends,
            Err(fault) => {
                self.detach_unfollowed(others, &fault).await;
                return Err(fault);
            }
        };
        // If the main node is lost in the middle, another one tells the client of its commit; if it was not asked to commit,
        // the one that has refused says why.
        let answers = match ends.first() {
            Some((_, Ended::Unknown(_))) => ends
                .iter()
                .find(|(_, end)| *end == Ended::Committed)
                .or_else(|| ends.iter().find(|(_, end)| !matches!(end, Ended::Unknown(_)))),
            Some((_, Ended::Withheld)) => ends.get(1),
            first => first,
        };
        let mut clean = true;
        if let Some((place, _)) = answers {
            self.last_place = *place;
            if let Some(leg) = self.legs.get(*place) {
                self.made = leg.account.made;
                clean = leg.account.error.is_none();
            }
            self.answer_of(*place, flow);
        }
        let settled = self.settle_ends(&ends, keeps).await;
        self.close_lost();
        Ok(settled.map(|()| clean))
    }

    /// Before an Execute commits on any node, what comes before it (its Parse and Bind) is done on all of them, and all say
    /// that they have its portal. Where the Execute begins, and how many replies (as in [`super::account::Account::made`])
    /// there were; `None`: it failed, and the client knows.
    pub(super) async fn portal_everywhere(
        &mut self,
        client: &mut Stream,
        frames: &[u8],
        needs: &Needs,
    ) -> Result<Option<(usize, usize)>, Fault> {
        let open = self.legs_where(Leg::is_in_transaction);
        let Some((at, portal, is_fresh)) = executed(frames) else { return Ok(Some((0, 0))) };
        // An unnamed portal that is made beside it takes the place of any other.
        if open.len() < 2 || is_fresh && portal.is_empty() {
            return Ok(Some((0, 0)));
        }
        let mut asking = frames.get(..at).unwrap_or_default().to_vec();
        let parts = usize::from(!asking.is_empty());
        if parts > 0 {
            frontend::sync(&mut asking);
        }
        frontend::describe(&mut asking, b'P', portal);
        frontend::sync(&mut asking);
        for place in &open {
            if let Some(leg) = self.legs.get_mut(*place) {
                leg.send(&[], &asking, parts, &[]);
                leg.account.expect(needs);
            }
        }
        self.round(client, &open, open.first().map(|place| (*place, Flow::Keep)), None).await?;
        if !self.drop_lost().await? {
            self.fail(client, &connection_lost()).await?;
            return Ok(None);
        }
        let failed = self.legs.iter().position(|leg| leg.is_in_transaction() && leg.account.error.is_some());
        let place = failed.or_else(|| open.first().copied()).unwrap_or_default();
        let made = self.legs.get(place).map_or(0, |leg| leg.account.made);
        self.made = made;
        self.last_place = place;
        self.answer_of(place, Flow::Hold);
        if failed.is_some() {
            self.failed(client).await?;
            return Ok(None);
        }
        Ok(Some((at, made)))
    }

    /// COMMIT or ROLLBACK in a pipeline without a transaction block: it ends the transaction that pgmend has opened for the
    /// pipeline, and where a message with it fails nothing of that is kept, as PostgreSQL has it. False: so it was.
    pub(super) async fn end_pipelined(
        &mut self,
        client: &mut Stream,
        frames: &[u8],
        needs: &Needs,
        keeps: bool,
    ) -> Result<bool, Fault> {
        let clean = match self.commit(client, frames, needs, (keeps, Flow::Keep)).await? {
            Ok(clean) => clean,
            Err(error) => return Ok(self.not_committed(&error)),
        };
        let answer = std::mem::take(&mut self.kept);
        if !clean {
            self.front.out().extend_from_slice(&answer);
            self.roll_back(client).await?;
            return Ok(false);
        }
        self.standing = Standing::None;
        self.forget_transaction();
        // The server warns that there is no transaction, before the tag.
        let (before, tag) = answer.split_at_checked(tag_at(&answer)).unwrap_or((&answer, &[]));
        self.front.out().extend_from_slice(before);
        if let Some(main) = self.legs.first_mut().filter(|main| main.pooled.is_some()) {
            main.send(&[], &[], 0, &[if keeps { "COMMIT" } else { "ROLLBACK" }.to_owned()]);
            self.round(client, &[0], Some((0, Flow::Drop)), None).await?;
            self.close_lost();
        }
        self.front.out().extend_from_slice(tag);
        Ok(true)
    }

    /// No node has committed, and nothing of the transaction is left. False: what ended it has failed.
    pub(super) fn not_committed(&mut self, error: &ErrorFields) -> bool {
        self.standing = Standing::None;
        self.forget_transaction();
        self.front.error(error);
        false
    }

    /// Snapshot isolation: a commit waits until nobody takes a snapshot.
    pub(super) async fn enter_commits(&self, commits: bool) -> Result<Option<Inside>, ErrorFields> {
        if !commits {
            return Ok(None);
        }
        let limit = self.settings().lock_timeout;
        self.plane.snapshots.enter(Group::Commits, limit).await.map(Some).ok_or_else(|| late("a commit"))
    }

    /// The others, then the main node; how it ended on each, the main node's end first. Where none of the others could
    /// commit, nothing is committed anywhere yet: then the main node does not do it either.
    async fn commit_rounds(
        &mut self,
        client: &mut Stream,
        main: usize,
        others: &[usize],
        frames: &[u8],
        needs: &Needs,
    ) -> Result<Vec<(usize, Ended)>, Fault> {
        for place in others {
            if let Some(leg) = self.legs.get_mut(*place) {
                leg.send(&[], frames, 1, &[]);
                leg.account.expect(needs);
            }
        }
        // Any of them may have to answer for the main node.
        self.round(client, others, others.first().map(|place| (*place, Flow::Keep)), None).await?;
        let mut ends: Vec<(usize, Ended)> = others.iter().map(|place| (*place, self.ended(*place))).collect();
        let withheld = !others.is_empty() && others.iter().all(|place| self.has_refused(*place));
        if let Some(leg) = self.legs.get_mut(main) {
            if withheld {
                leg.send(&[], &[], 0, &["ROLLBACK".to_owned()]);
            } else {
                leg.send(&[], frames, 1, &[]);
                leg.account.expect(needs);
            }
        }
        self.round(client, &[main], Some((main, Flow::Hold)), None).await?;
        ends.insert(0, (main, if withheld { Ended::Withheld } else { self.ended(main) }));
        Ok(ends)
    }

    /// Its transaction is over, and was not committed, by an error of the commit.
    fn has_refused(&self, place: usize) -> bool {
        let over = |leg: &Leg| {
            let account = &leg.account;
            let did = account.marks.iter().any(|mark| matches!(mark, Mark::Command { .. }));
            account.lost.is_none() && account.error.is_some() && !did && leg.core.status() == b'I'
        };
        self.legs.get(place).is_some_and(over)
    }

    /// The main node's held answer goes to the client.
    pub(super) fn answer_of(&mut self, place: usize, flow: Flow) {
        let Some(leg) = self.legs.get_mut(place) else { return };
        match flow {
            Flow::Keep => self.kept = std::mem::take(&mut leg.out),
            Flow::Hold | Flow::Stream => self.front.out().append(&mut leg.out),
            Flow::Drop => {
                // Not the tag, but what is wrong, and what else has happened.
                self.front.out().extend_from_slice(&asides(&leg.out));
                if let Some(error) = leg.account.error.clone() {
                    crate::wire::backend::error_response(self.front.out(), &error);
                }
                leg.out.clear();
            }
        }
    }

    fn ended(&self, place: usize) -> Ended {
        let Some(leg) = self.legs.get(place) else { return Ended::Unknown("the node is not in use any more".into()) };
        let account = &leg.account;
        match (&account.lost, &account.error) {
            (Some(why), _) => Ended::Unknown(why.clone()),
            (None, Some(error)) => Ended::NotCommitted(format!("{} ({})", error.message, error.code)),
            (None, None) => match account.marks.last() {
                Some(Mark::Command { tag, .. }) if tag == "ROLLBACK" => Ended::NotCommitted("rolled back".into()),
                _ => Ended::Committed,
            },
        }
    }

    /// Who has not ended as the main node did has gone astray. If the main node is lost in the middle, those that have
    /// committed are right: the client gets its commit.
    async fn settle_ends(&mut self, ends: &[(usize, Ended)], keeps: bool) -> Result<(), ErrorFields> {
        let Some(main) = ends.first() else { return Ok(()) };
        let committed = ends.iter().any(|(_, end)| *end == Ended::Committed);
        let right = match &main.1 {
            Ended::Committed => true,
            Ended::NotCommitted(_) | Ended::Withheld => false,
            Ended::Unknown(_) => committed,
        };
        let mut astray: Vec<(NodeId, String)> = Vec::new();
        for (place, end) in ends {
            let Some(leg) = self.legs.get(*place) else { continue };
            let why = match end {
                Ended::Committed if right => continue,
                Ended::NotCommitted(_) if !right => continue,
                Ended::Withheld => continue,
                Ended::Unknown(_) if !keeps => continue,
                Ended::Committed => "it has committed what the main node has not".to_owned(),
                Ended::NotCommitted(why) => format!("it has not committed what others have: {why}"),
                Ended::Unknown(why) => format!("it was lost during a commit: {why}"),
            };
            astray.push((leg.node, why));
        }
        let all_unknown =
            !committed && !ends.iter().any(|(_, end)| matches!(end, Ended::NotCommitted(_) | Ended::Withheld));
        if all_unknown && !keeps {
            return Err(connection_lost());
        }
        if all_unknown {
            // Nobody knows; to detach everybody would help nobody. The health checks find out who lives.
            return Err(ErrorFields::error("08007", "the connection to every node was lost during the commit")
                .with_hint("Whether the transaction has been committed is not known."));
        }
        for (node, why) in astray {
            self.detach_diverged(node, why).await;
        }
        Ok(())
    }

    /// Cancels do not reach the servers while a transaction ends.
    pub(super) async fn shield(&mut self) {
        for leg in &mut self.legs {
            if !leg.borrower.slot.returned() {
                leg.borrower.slot.landed().await;
            }
        }
    }

    pub(super) fn unshield(&mut self) {
        self.legs.iter_mut().for_each(Leg::can_be_cancelled);
    }

    pub(super) fn legs_where(&self, which: impl Fn(&Leg) -> bool) -> Vec<usize> {
        self.legs.iter().enumerate().filter(|(_, leg)| which(leg)).map(|(place, _)| place).collect()
    }
}

/// Where the last Execute begins, its portal, and whether a Bind comes before it.
fn executed(frames: &[u8]) -> Option<(usize, &[u8], bool)> {
    let (mut found, mut is_fresh, mut rest) = (None, false, frames);
    while let Ok(Some(split)) = frame::split(rest) {
        match split.tag {
            b'B' => is_fresh = true,
            b'E' => {
                let portal = split.body.split(|byte| *byte == 0).next().unwrap_or_default();
                found = Some((frames.len() - rest.len(), portal, is_fresh));
            }
            _ => {}
        }
        rest = split.rest;
    }
    found
}

/// Where CommandComplete stands.
fn tag_at(answer: &[u8]) -> usize {
    let mut at = 0;
    while let Ok(Some(header)) = frame::peek(answer.get(at..).unwrap_or_default()) {
        if header.tag == b'C' {
            break;
        }
        at += header.total;
    }
    at
}

fn late(what: &str) -> ErrorFields {
    ErrorFields::error("40001", format!("{what} had to wait for too long for those of other transactions"))
        .with_hint("Try the transaction again; replication_lock_timeout bounds the wait.")
}
