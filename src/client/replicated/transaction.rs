//! A transaction over several nodes: its begin, its snapshot, its end. The others commit first and the main node last, so
//! that whoever waits for a lock on the main node finds everything done when he gets it.

use super::account::Mark;
use super::bundle::Flow;
use super::leg::Leg;
use super::session::{Session, Standing};
use super::snapshots::Group;
use crate::base::NodeId;
use crate::client::fault::Fault;
use crate::net::Stream;
use crate::wire::backend::ErrorFields;
use crate::wire::frontend;

/// Refused in a transaction, it makes it fail without doing anything else.
const SPOIL: &str = "ROLLBACK TO SAVEPOINT \"pgmend: the transaction has failed on another node\"";
/// Takes the snapshot of a repeatable read transaction.
const SNAPSHOT: &str = "SELECT pg_catalog.current_setting('transaction_read_only')";
/// What the main node takes for now, as all nodes shall.
pub const NOW: &str = "SELECT pg_catalog.set_config('pgmend.now', pg_catalog.to_char(pg_catalog.now() \
    AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00', true)";

/// How a transaction ended on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ended {
    Committed,
    NotCommitted(String),
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
    pub(super) async fn take_snapshot(&mut self, client: &mut Stream) -> Result<Result<(), ErrorFields>, Fault> {
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
        if let Some(error) = self.legs.iter().find_map(|leg| leg.account.error.clone()) {
            return Ok(Err(error));
        }
        self.drop_lost(client).await?;
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

    /// The end of what pgmend has opened by itself.
    pub(super) async fn end_internal(&mut self, client: &mut Stream) -> Result<(), Fault> {
        if self.standing != Standing::Internal {
            return Ok(());
        }
        let mut commit = Vec::new();
        frontend::query(&mut commit, "COMMIT");
        // The client gets nothing of it but an error.
        if let Err(error) = self.commit(client, &commit, Flow::Drop).await? {
            self.front.error(&error);
        }
        self.standing = Standing::None;
        self.forget_transaction();
        Ok(())
    }

    /// Sends what ends the transaction: to the others, then to the main node. The main node's answer goes to the client
    /// as `flow` says; the error is one that the client must be told besides.
    pub(super) async fn commit(
        &mut self,
        client: &mut Stream,
        frames: &[u8],
        flow: Flow,
    ) -> Result<Result<(), ErrorFields>, Fault> {
        let open = self.legs_where(Leg::is_in_transaction);
        let Some((main, others)) = open.split_first() else { return Ok(Ok(())) };
        let limit = self.settings().lock_timeout;
        let _inside = match self.isolates() && self.has_snapshot {
            true => match self.plane.snapshots.enter(Group::Commits, limit).await {
                Some(inside) => Some(inside),
                None => {
                    self.roll_back(client).await?;
                    return Ok(Err(late("a commit")));
                }
            },
            false => None,
        };
        // From here on a cancel would hit one node and not the other.
        self.shield().await;
        self.committing = true;
        let rounds = self.commit_rounds(client, *main, others, frames).await;
        self.committing = false;
        self.unshield();
        let ends = match rounds {
            Ok(ends) => ends,
            Err(fault) => {
                // Nobody knows what they have done.
                let unknown: Vec<NodeId> =
                    others.iter().filter_map(|place| self.legs.get(*place)).map(|leg| leg.node).collect();
                for node in unknown {
                    self.detach_diverged(node, format!("its commit could not be followed: {fault}")).await;
                }
                return Err(fault);
            }
        };
        // If the main node is lost in the middle, another one tells the client of its commit.
        let answers = match ends.first() {
            Some((_, Ended::Unknown(_))) => ends.iter().find(|(_, end)| *end == Ended::Committed),
            first => first,
        };
        if let Some((place, _)) = answers {
            self.answer_of(*place, flow);
        }
        Ok(self.settle_ends(&ends).await)
    }

    /// The others, then the main node; how it ended on each, the main node's end first.
    async fn commit_rounds(
        &mut self,
        client: &mut Stream,
        main: usize,
        others: &[usize],
        frames: &[u8],
    ) -> Result<Vec<(usize, Ended)>, Fault> {
        for place in others {
            if let Some(leg) = self.legs.get_mut(*place) {
                leg.send(&[], frames, 1, &[]);
            }
        }
        let spare = others.first().map(|place| (*place, Flow::Hold));
        self.round(client, others, spare, None).await?;
        let mut ends: Vec<(usize, Ended)> = others.iter().map(|place| (*place, self.ended(*place))).collect();
        if let Some(leg) = self.legs.get_mut(main) {
            leg.send(&[], frames, 1, &[]);
        }
        self.round(client, &[main], Some((main, Flow::Hold)), None).await?;
        ends.insert(0, (main, self.ended(main)));
        Ok(ends)
    }

    /// The main node's held answer goes to the client.
    pub(super) fn answer_of(&mut self, place: usize, flow: Flow) {
        let Some(leg) = self.legs.get_mut(place) else { return };
        match flow {
            Flow::Hold | Flow::Stream => self.front.out().append(&mut leg.out),
            Flow::Drop => {
                // Not the tag, but what is wrong.
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
    async fn settle_ends(&mut self, ends: &[(usize, Ended)]) -> Result<(), ErrorFields> {
        let Some(main) = ends.first() else { return Ok(()) };
        let committed = ends.iter().any(|(_, end)| *end == Ended::Committed);
        let right = match &main.1 {
            Ended::Committed => true,
            Ended::NotCommitted(_) => false,
            Ended::Unknown(_) => committed,
        };
        let mut astray: Vec<(NodeId, String)> = Vec::new();
        for (place, end) in ends {
            let Some(leg) = self.legs.get(*place) else { continue };
            let why = match end {
                Ended::Committed if right => continue,
                Ended::NotCommitted(_) if !right => continue,
                Ended::Committed => "it has committed what the main node has not".to_owned(),
                Ended::NotCommitted(why) => format!("it has not committed what others have: {why}"),
                Ended::Unknown(why) => format!("it was lost during a commit: {why}"),
            };
            astray.push((leg.node, why));
        }
        let all_unknown = !committed && !ends.iter().any(|(_, end)| matches!(end, Ended::NotCommitted(_)));
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
    async fn shield(&mut self) {
        for leg in &mut self.legs {
            if !leg.borrower.slot.returned() {
                leg.borrower.slot.landed().await;
            }
        }
    }

    fn unshield(&mut self) {
        self.legs.iter_mut().for_each(Leg::can_be_cancelled);
    }

    pub(super) fn legs_where(&self, which: impl Fn(&Leg) -> bool) -> Vec<usize> {
        self.legs.iter().enumerate().filter(|(_, leg)| which(leg)).map(|(place, _)| place).collect()
    }

    /// The nodes whose servers were lost before anything was committed: a node that is alive has only lost this
    /// connection, and the transaction with it; one that cannot be reached is detached, and the others go on.
    /// True: the transaction can go on.
    pub(super) async fn drop_lost(&mut self, client: &mut Stream) -> Result<bool, Fault> {
        let lost = self.legs_where(|leg| leg.account.lost.is_some());
        let mut goes_on = true;
        for place in lost.into_iter().rev() {
            let Some(leg) = self.legs.get_mut(place) else { continue };
            let why = leg.account.lost.clone().unwrap_or_default();
            let is_main = place == 0;
            leg.close();
            if leg.borrower.answers().await {
                leg.account.lost = Some(why);
                goes_on = false;
                continue;
            }
            let node = leg.node;
            let generation = self.plane.board.view().generation;
            self.report(node, generation, format!("its connection was lost and it does not answer: {why}")).await;
            goes_on &= !is_main && !self.worker.live_nodes().contains(&node);
            self.legs.remove(place);
        }
        let _ = client;
        Ok(goes_on)
    }

    /// Nothing is answered to the client before the node is out.
    async fn report(&self, node: NodeId, generation: u64, why: String) {
        let Some(divergences) = self.plane.divergences.load_full() else { return };
        if let Err(kept) = divergences.report(node, generation, why).await {
            tracing::error!(event = "node.not_detached", %node, why = %kept);
        }
    }

    /// Detaches a node whose data may differ, and forgets it here.
    pub(super) async fn detach_diverged(&mut self, node: NodeId, why: String) {
        tracing::error!(event = "node.diverged", %node, %why);
        let generation = self.plane.board.view().generation;
        self.report(node, generation, why).await;
        self.legs.retain_mut(|leg| {
            if leg.node == node {
                leg.close();
            }
            leg.node != node
        });
    }
}

fn late(what: &str) -> ErrorFields {
    ErrorFields::error("40001", format!("{what} had to wait for too long for those of other transactions"))
        .with_hint("Try the transaction again; replication_lock_timeout bounds the wait.")
}
