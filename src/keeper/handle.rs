//! What other folders hold of the keeper: orders to it, and a look at a node.

use super::actor::{Actor, Message, Prober};
use super::core::Core;
use super::freeze::{Freeze, Freezes};
use super::memory::Memory;
use super::probe::{ProbeError, ProbeReport};
use super::settings::Settings;
use crate::base::{NodeId, Secret};
use crate::cluster::{Board, NodeSpec, NodeStatus, Quiet};
use crate::net::ServerTls;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// TLS towards nodes as it is now; asked at each probe, as a reload may change it.
pub type ServerTlsOf = Arc<dyn Fn() -> Arc<ServerTls> + Send + Sync>;
/// Finds the password of a role in the secret stores.
pub type PasswordOf = Arc<dyn Fn(&str) -> Option<Secret> + Send + Sync>;

/// Finds how the data of the second node differ from those of the first, for people; empty when they are equal.
pub type Compare = Arc<dyn Fn(Arc<NodeSpec>, Arc<NodeSpec>) -> Comparing + Send + Sync>;
/// A comparison under way. Dropped, it ends.
pub type Comparing = Pin<Box<dyn Future<Output = Result<Vec<String>, String>> + Send>>;

/// Messages that may wait for the actor; senders wait beyond that.
const INBOX: usize = 64;
/// Added to what the probes of an attached node may take.
const GRACE: Duration = Duration::from_secs(10);

/// An order was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeeperError {
    /// No such node.
    #[error("node {0} is not configured")]
    NoSuchNode(NodeId),
    /// The node is not in use.
    #[error("node {0} is not in use")]
    Unused(NodeId),
    /// DISALLOW_TO_FAILOVER.
    #[error("failover is disallowed on node {0}")]
    Disallowed(NodeId),
    /// Its data are known to differ.
    #[error("node {node} has other data than the nodes in service ({reason}): recover it")]
    Diverged {
        /// Which.
        node: NodeId,
        /// How it came to that.
        reason: String,
    },
    /// Its data may differ.
    #[error(
        "nobody knows whether node {node} has the data of the nodes in service ({reason}): it must be compared or recovered"
    )]
    Unverified {
        /// Which.
        node: NodeId,
        /// Why it is out.
        reason: String,
    },
    /// Its attach was not behind a held gate.
    #[error("node {0} may only be attached while the gate is held")]
    NotQuiet(NodeId),
    /// There would be no node left.
    #[error("node {0} is the last one that is left: its data are the truth")]
    Last(NodeId),
    /// Something changed since the caller looked.
    #[error("node {node} or the primary changed meanwhile (generation {changed}, expected at most {expected})")]
    Outdated {
        /// Which.
        node: NodeId,
        /// The caller's generation.
        expected: u64,
        /// When it changed.
        changed: u64,
    },
    /// It was attached, but the probe did not find it well.
    #[error("node {node} was attached but is {status}: {reason}")]
    NotUp {
        /// Which.
        node: NodeId,
        /// What it is instead.
        status: NodeStatus,
        /// Why.
        reason: String,
    },
    /// The daemon is stopping.
    #[error("the keeper has stopped")]
    Stopped,
}

/// The keeper. Clones speak to the same actor, which ends with the token given to `start`.
#[derive(Clone)]
pub struct Keeper {
    board: Arc<Board>,
    inbox: mpsc::Sender<Message>,
    settings: watch::Sender<Settings>,
    look_now: watch::Sender<u64>,
    prober: Prober,
}

impl Keeper {
    /// Starts the actor and the probes for the nodes of the board's view, on the runtime that it is called on.
    pub fn start(
        board: Arc<Board>,
        memory: Arc<dyn Memory>,
        settings: Settings,
        tls: ServerTlsOf,
        password_of: PasswordOf,
        compare: Compare,
        token: CancellationToken,
    ) -> Keeper {
        let view = board.view();
        let (settings, settings_seen) = watch::channel(settings);
        let (look_now, now) = watch::channel(0);
        let (sender, inbox) = mpsc::channel(INBOX);
        let prober = Prober { settings: settings_seen, now, password_of, tls, freezes: Arc::<Freezes>::default() };
        let actor = Actor {
            board: board.clone(),
            memory,
            core: Core::new(&view),
            prober: prober.clone(),
            sender: sender.clone(),
            inbox,
            token,
            orders: Vec::new(),
            changed_in: vec![0; view.nodes.len()],
            epoch_changed_in: 0,
            entering: None,
            unsaved: false,
            compare,
            comparing: Vec::new(),
        };
        tokio::spawn(actor.run());
        Keeper { board, inbox: sender, settings, look_now, prober }
    }

    /// Returns when the actor has ended: nothing is saved or published by it any more.
    pub async fn ended(&self) {
        self.inbox.closed().await;
    }

    /// Puts a node in; it is up once a probe succeeded. A live node is left as it is.
    pub async fn attach(&self, node: NodeId, reason: &str) -> Result<(), KeeperError> {
        self.order_attach(node, (None, false, None), reason).await.map(|_| ())
    }

    /// Replicating modes: puts a node in as it is while no other one serves; somebody answers for its data.
    pub async fn attach_accepted(&self, node: NodeId, reason: &str) -> Result<(), KeeperError> {
        self.order_attach(node, (None, true, None), reason).await.map(|_| ())
    }

    /// Replicating modes: takes a node out at once whose data are not those of the others, and marks it so that only a
    /// recovery, or an operator who accepts its data, brings it back. `generation` is that of the view under which it was
    /// seen: a node that has been put in anew since then is not meant. Returns the generation in which it is out, once that
    /// is durable and published. The last node is never taken out. May be called from any runtime. Cancel safe: the order
    /// goes on without the one who waits.
    pub async fn report_diverged(&self, node: NodeId, generation: u64, reason: &str) -> Result<u64, KeeperError> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Diverged { node, generation, reason: reason.to_owned(), reply };
        self.inbox.send(message).await.map_err(|_| KeeperError::Stopped)?;
        answer.await.map_err(|_| KeeperError::Stopped)?
    }

    /// Attaches a node unless it, or the primary, changed after `expected_generation`, and waits until it is published
    /// as up. Returns that view's generation. Cancel safe: the attach goes on without the one who waits.
    ///
    /// The caller answers for its data. Beside equals that serve `quiet` is needed: the gate opens in the same step in which
    /// the node is published as up, and the node stays out when the gate has opened before.
    pub async fn attach_verified(
        &self,
        node: NodeId,
        expected_generation: u64,
        quiet: Option<Quiet>,
        reason: &str,
    ) -> Result<u64, KeeperError> {
        let mut changes = self.board.watch();
        let ordered_in = self.order_attach(node, (Some(expected_generation), true, quiet), reason).await?;
        let limit = {
            let s = self.settings.borrow();
            (s.timeout + s.retry_delay) * s.max_retries.saturating_add(1).min(100) + GRACE
        };
        let up = async {
            loop {
                let view = self.board.view();
                let Some(seen) = view.node(node) else { return Err(KeeperError::NoSuchNode(node)) };
                match seen.status {
                    NodeStatus::Up => return Ok(view.generation),
                    NodeStatus::Down | NodeStatus::Unused if view.generation >= ordered_in => {
                        let (status, reason) = (seen.status, seen.reason.clone());
                        return Err(KeeperError::NotUp { node, status, reason });
                    }
                    NodeStatus::Waiting | NodeStatus::Down | NodeStatus::Unused => {}
                }
                changes.changed().await.map_err(|_| KeeperError::Stopped)?;
            }
        };
        let late = || KeeperError::NotUp {
            node,
            status: NodeStatus::Waiting,
            reason: format!("no probe succeeded within {limit:?}"),
        };
        tokio::time::timeout(limit, up).await.unwrap_or_else(|_| Err(late()))
    }

    async fn order_attach(
        &self,
        node: NodeId,
        (expected, vouched, quiet): (Option<u64>, bool, Option<Quiet>),
        reason: &str,
    ) -> Result<u64, KeeperError> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Attach { node, expected, vouched, quiet, reason: reason.to_owned(), reply };
        self.inbox.send(message).await.map_err(|_| KeeperError::Stopped)?;
        answer.await.map_err(|_| KeeperError::Stopped)?
    }

    /// Takes a node out for planned work, also one on which failover is disallowed.
    pub async fn take_out(&self, node: NodeId, reason: &str) -> Result<(), KeeperError> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Detach { node, reason: reason.to_owned(), planned: true, reply };
        self.inbox.send(message).await.map_err(|_| KeeperError::Stopped)?;
        answer.await.map_err(|_| KeeperError::Stopped)?
    }

    /// Takes a node out, also the primary and the last one, as Pgpool-II does; clients then wait.
    pub async fn detach(&self, node: NodeId, reason: &str) -> Result<(), KeeperError> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Detach { node, reason: reason.to_owned(), planned: false, reply };
        self.inbox.send(message).await.map_err(|_| KeeperError::Stopped)?;
        answer.await.map_err(|_| KeeperError::Stopped)?
    }

    /// From now on until this is dropped, probes change nothing in the view.
    pub fn freeze(&self) -> Freeze {
        Freeze::new(&self.prober.freezes)
    }

    /// A planned change of the primary: `to` is it now, as `report` proves; the old one is out of routing. The view is
    /// published together with the opening of the gate, if `quiet` is still good. Returns the view's generation.
    pub async fn switch(
        &self,
        quiet: Option<Quiet>,
        to: NodeId,
        report: ProbeReport,
        reason: &str,
    ) -> Result<u64, KeeperError> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Switch { quiet, to, report, reason: reason.to_owned(), reply };
        self.inbox.send(message).await.map_err(|_| KeeperError::Stopped)?;
        answer.await.map_err(|_| KeeperError::Stopped)?
    }

    /// Looks at a node once, now. It changes nothing in the view: a failure was not retried, an answer may be overtaken.
    pub async fn probe(&self, node: NodeId) -> Result<ProbeReport, ProbeError> {
        let view = self.board.view();
        let seen = view.node(node).filter(|n| n.status != NodeStatus::Unused).ok_or(ProbeError::NoSuchNode(node))?;
        self.prober.look(&seen.spec).await
    }

    /// Wakes every probing task: somebody met an error.
    pub fn probe_now(&self) {
        self.look_now.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Takes new settings and nodes. Nodes that are new start as down.
    pub async fn reload(&self, settings: Settings, nodes: Vec<NodeSpec>) {
        self.settings.send_if_modified(|old| {
            let differs = *old != settings;
            *old = settings;
            differs
        });
        let (reply, done) = oneshot::channel();
        if self.inbox.send(Message::Reload { nodes, reply }).await.is_ok() {
            // An error means that the daemon stops.
            let _ = done.await;
        }
    }
}
