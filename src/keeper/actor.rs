//! The keeper's one actor, which owns the core and publishes, and the probing tasks, one per node, that report to it.

use super::core::{Core, Event, Order};
use super::freeze::Freezes;
use super::handle::{KeeperError, PasswordOf, ServerTlsOf};
use super::memory::Memory;
use super::probe::{ProbeError, ProbeReport, probe};
use super::settings::Settings;
use crate::base::NodeId;
use crate::cluster::{Board, NodeSpec, NodeStatus, Published, Quiet, View};
use crate::server::sql::SqlTarget;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Between two looks while no primary is known, and the least that a period may be.
const HURRY: Duration = Duration::from_secs(1);

/// What the actor is told.
pub(super) enum Message {
    Probed {
        node: NodeId,
        incarnation: u64,
        mark: u64,
        result: Result<ProbeReport, ProbeError>,
    },
    Attach {
        node: NodeId,
        expected: Option<u64>,
        reason: String,
        reply: oneshot::Sender<Result<u64, KeeperError>>,
    },
    Detach {
        node: NodeId,
        reason: String,
        planned: bool,
        reply: oneshot::Sender<Result<(), KeeperError>>,
    },
    Switch {
        quiet: Option<Quiet>,
        to: NodeId,
        report: ProbeReport,
        reason: String,
        reply: oneshot::Sender<Result<u64, KeeperError>>,
    },
    Reload {
        nodes: Vec<NodeSpec>,
        reply: oneshot::Sender<()>,
    },
}

/// What probing needs besides the node.
#[derive(Clone)]
pub(super) struct Prober {
    pub settings: watch::Receiver<Settings>,
    pub now: watch::Receiver<u64>,
    pub password_of: PasswordOf,
    pub tls: ServerTlsOf,
    pub freezes: Arc<Freezes>,
}

impl Prober {
    /// Looks at a node once.
    pub async fn look(&self, spec: &NodeSpec) -> Result<ProbeReport, ProbeError> {
        let settings = self.settings.borrow().clone();
        let password = match settings.password.is_empty() {
            false => settings.password,
            true => (self.password_of)(&settings.user).unwrap_or_default(),
        };
        let target = SqlTarget::of(spec, &settings.database, &settings.user, &password, (self.tls)());
        probe(&target, settings.timeout.max(Duration::from_millis(100))).await
    }
}

/// The actor. When it was last changed stands beside each node so that an attach can be fenced by a generation.
pub(super) struct Actor {
    pub board: Arc<Board>,
    pub memory: Arc<dyn Memory>,
    pub core: Core,
    pub prober: Prober,
    pub sender: mpsc::Sender<Message>,
    pub inbox: mpsc::Receiver<Message>,
    pub token: CancellationToken,
    pub orders: Vec<(watch::Sender<Order>, CancellationToken)>,
    /// Generation in which each node's status last changed.
    pub changed_in: Vec<u64>,
    /// Generation in which the epoch last changed.
    pub epoch_changed_in: u64,
}

impl Actor {
    /// Runs until the token is cancelled; the probing tasks end with it.
    pub async fn run(mut self) {
        self.give_orders();
        loop {
            let message = tokio::select! {
                () = self.token.cancelled() => return,
                message = self.inbox.recv() => message,
            };
            let Some(message) = message else { return };
            self.take(message).await;
            self.give_orders();
        }
    }

    async fn take(&mut self, message: Message) {
        match message {
            Message::Probed { node, incarnation, mark, result } => {
                if !self.core.is_current(node, incarnation) || !self.prober.freezes.believes(mark) {
                    return;
                }
                let event = match result {
                    Ok(report) => Event::Answered(node, report),
                    Err(ProbeError::Unreachable(why)) => Event::Failed(node, why.to_string()),
                    Err(why) => {
                        tracing::warn!(event = "keeper.probe_refused", node = node.0, error = %why);
                        Event::Refused(node)
                    }
                };
                self.apply(event).await;
            }
            Message::Attach { node, expected, reason, reply } => {
                let answer = match self.may_attach(node, expected) {
                    Ok(()) => Ok(self.apply(Event::Attach(node, reason)).await),
                    Err(error) => Err(error),
                };
                // Whoever asked may be gone.
                let _ = reply.send(answer);
            }
            Message::Detach { node, reason, planned, reply } => {
                let answer = match self.may_detach(node) {
                    Err(error) if !planned || !matches!(error, KeeperError::Disallowed(_)) => Err(error),
                    Ok(()) | Err(_) => {
                        self.apply(Event::Detach(node, reason)).await;
                        Ok(())
                    }
                };
                let _ = reply.send(answer);
            }
            Message::Switch { quiet, to, report, reason, reply } => {
                let answer = match self.core.status(to) {
                    None => Err(KeeperError::NoSuchNode(to)),
                    Some(NodeStatus::Unused) => Err(KeeperError::Unused(to)),
                    Some(NodeStatus::Waiting | NodeStatus::Up | NodeStatus::Down) => {
                        Ok(self.apply_and_open(Event::Switched(to, report, reason), quiet).await)
                    }
                };
                let _ = reply.send(answer);
            }
            Message::Reload { nodes, reply } => {
                self.apply(Event::Nodes(nodes)).await;
                let _ = reply.send(());
            }
        }
    }

    fn may_attach(&self, node: NodeId, expected: Option<u64>) -> Result<(), KeeperError> {
        match self.core.status(node) {
            None => return Err(KeeperError::NoSuchNode(node)),
            Some(NodeStatus::Unused) => return Err(KeeperError::Unused(node)),
            Some(NodeStatus::Waiting | NodeStatus::Up | NodeStatus::Down) => {}
        }
        let changed = self.changed_in.get(node.index()).copied().unwrap_or(0).max(self.epoch_changed_in);
        match expected {
            Some(expected) if changed > expected => Err(KeeperError::Outdated { node, expected, changed }),
            Some(_) | None => Ok(()),
        }
    }

    fn may_detach(&self, node: NodeId) -> Result<(), KeeperError> {
        let status = self.core.status(node).ok_or(KeeperError::NoSuchNode(node))?;
        let allowed = self.core.order(node).is_some_and(|o| o.spec.allow_failover);
        match status {
            NodeStatus::Unused => Err(KeeperError::Unused(node)),
            NodeStatus::Waiting | NodeStatus::Up | NodeStatus::Down if !allowed => Err(KeeperError::Disallowed(node)),
            NodeStatus::Waiting | NodeStatus::Up | NodeStatus::Down => Ok(()),
        }
    }

    /// Applies an event, saves what must survive, then publishes. Returns the generation in force.
    async fn apply(&mut self, event: Event) -> u64 {
        self.apply_and_open(event, None).await
    }

    /// The same; with a token the gate opens together with the publication.
    async fn apply_and_open(&mut self, event: Event, quiet: Option<Quiet>) -> u64 {
        let outcome = self.core.apply(event, now_s());
        for line in &outcome.told {
            tracing::warn!(event = "keeper.changed", "{line}");
        }
        let before = self.board.view();
        let mut next = self.core.view(before.generation);
        if next == *before {
            return before.generation;
        }
        next.generation = before.generation.saturating_add(1);
        let next = Arc::new(next);
        if outcome.save {
            self.save(next.clone()).await;
        }
        self.note_changes(&before, &next);
        let generation = next.generation;
        let publish = |now: &Published| {
            (now.view.generation < generation).then(|| Published { view: next.clone(), gate: now.gate.clone() })
        };
        // Where the gate has opened by its own deadline there is nothing left to open.
        if !quiet.is_some_and(|quiet| quiet.consume(publish)) {
            self.board.publish(publish);
        }
        generation
    }

    async fn save(&self, view: Arc<View>) {
        let memory = self.memory.clone();
        let saved = tokio::task::spawn_blocking(move || memory.save(&view)).await;
        // The service goes on with what it knows; only a restart would start from the older state.
        match saved {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(event = "keeper.save_failed", %error),
            Err(error) => tracing::error!(event = "keeper.save_failed", %error),
        }
    }

    fn note_changes(&mut self, before: &View, next: &View) {
        self.changed_in.resize(next.nodes.len(), 0);
        for (changed, node) in self.changed_in.iter_mut().zip(&next.nodes) {
            if before.node(node.spec.id).is_none_or(|b| b.status != node.status) {
                *changed = next.generation;
            }
        }
        if before.epoch != next.epoch {
            self.epoch_changed_in = next.generation;
        }
    }

    /// Tells every probing task what it shall do; makes and ends tasks as nodes come and go.
    fn give_orders(&mut self) {
        for (_, token) in self.orders.drain(self.core.len().min(self.orders.len())..) {
            token.cancel();
        }
        for at in 0..self.core.len() {
            let Ok(id) = u16::try_from(at) else { return };
            let Some(order) = self.core.order(NodeId(id)) else { return };
            match self.orders.get(at) {
                Some((sender, _)) => {
                    sender.send_if_modified(|old| {
                        let wake = old.spec != order.spec
                            || old.incarnation != order.incarnation
                            || (order.wanted && !old.wanted)
                            || (order.hurry && !old.hurry);
                        *old = order;
                        wake
                    });
                }
                None => {
                    let (sender, orders) = watch::channel(order);
                    let token = self.token.child_token();
                    let task = watch_node(NodeId(id), orders, self.prober.clone(), self.sender.clone());
                    let stop = token.clone();
                    tokio::spawn(async move {
                        tokio::select! { () = stop.cancelled() => {}, () = task => {} }
                    });
                    self.orders.push((sender, token));
                }
            }
        }
    }
}

/// One node's probing task: a round, then a pause that an order, new settings or a wish to look now cuts short.
async fn watch_node(
    node: NodeId,
    mut orders: watch::Receiver<Order>,
    mut prober: Prober,
    sender: mpsc::Sender<Message>,
) {
    loop {
        let order = orders.borrow_and_update().clone();
        prober.settings.borrow_and_update();
        prober.now.borrow_and_update();
        let mark = prober.freezes.mark();
        if order.wanted {
            let Some(result) = round(node, &order, &mut orders, &prober).await else { continue };
            let message = Message::Probed { node, incarnation: order.incarnation, mark, result };
            if sender.send(message).await.is_err() {
                return;
            }
        }
        let pause = pause(prober.settings.borrow().period, orders.borrow().hurry && order.wanted);
        let woken = tokio::select! {
            changed = orders.changed() => changed,
            changed = prober.settings.changed() => changed,
            changed = prober.now.changed() => changed,
            () = tokio::time::sleep(pause.unwrap_or(HURRY)) , if pause.is_some() => Ok(()),
        };
        if woken.is_err() {
            return;
        }
    }
}

/// One health check with its retries; `None` when an order outdated it.
async fn round(
    node: NodeId,
    order: &Order,
    orders: &mut watch::Receiver<Order>,
    prober: &Prober,
) -> Option<Result<ProbeReport, ProbeError>> {
    let mut tries_left = if order.retries { prober.settings.borrow().max_retries } else { 0 };
    loop {
        let result = prober.look(&order.spec).await;
        match &result {
            Err(error) if error.is_failure() && tries_left > 0 => {
                tracing::warn!(event = "keeper.probe_failed", node = node.0, tries_left, %error);
            }
            Err(_) | Ok(_) => return Some(result),
        }
        tries_left -= 1;
        let delay = prober.settings.borrow().retry_delay;
        tokio::select! {
            changed = orders.changed() => { changed.ok()?; if orders.borrow().incarnation != order.incarnation { return None; } }
            () = tokio::time::sleep(delay) => {}
        }
    }
}

/// How long to pause; `None`: until somebody asks.
fn pause(period: Duration, hurry: bool) -> Option<Duration> {
    match (period.is_zero(), hurry) {
        (true, false) => None,
        (true, true) => Some(HURRY),
        (false, true) => Some(period.min(HURRY)),
        (false, false) => Some(period),
    }
}

/// The clock of status changes.
pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
