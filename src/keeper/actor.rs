//! The keeper's one actor, which owns the core and publishes, and the probing tasks, one per node, that report to it.

use super::core::{Comparison, Core, Event, Order};
use super::freeze::Freezes;
use super::handle::{Compare, KeeperError, PasswordOf, ServerTlsOf};
use super::memory::Memory;
use super::probe::{ProbeError, ProbeReport, probe};
use super::settings::Settings;
use crate::base::NodeId;
use crate::cluster::{Board, DataState, NodeSpec, NodeStatus, Published, Quiet, View};
use crate::server::sql::SqlTarget;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Between two looks while no primary is known, and the least that a period may be.
const HURRY: Duration = Duration::from_secs(1);
/// Between two tries to save what could not be saved.
const SAVE_AGAIN: Duration = Duration::from_secs(1);

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
        /// Somebody answers for its data: a recovery, a comparison, an operator.
        vouched: bool,
        /// Proof that nobody writes: the gate opens when the node comes up.
        quiet: Option<Quiet>,
        reason: String,
        reply: oneshot::Sender<Result<u64, KeeperError>>,
    },
    Diverged {
        node: NodeId,
        generation: u64,
        reason: String,
        reply: oneshot::Sender<Result<u64, KeeperError>>,
    },
    Detach {
        node: NodeId,
        reason: String,
        planned: bool,
        reply: oneshot::Sender<Result<(), KeeperError>>,
    },
    Compared {
        main: NodeId,
        node: NodeId,
        found: Comparison,
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
    /// The node that comes up with its first answer, and the proof that nobody writes meanwhile.
    pub entering: Option<(NodeId, Quiet)>,
    /// Compares two nodes.
    pub compare: Compare,
    /// Comparisons under way: main node, node.
    pub comparing: Vec<(NodeId, NodeId, CancellationToken)>,
    /// What is published could not be saved.
    pub unsaved: bool,
}

impl Actor {
    /// Runs until the token is cancelled; the probing tasks end with it.
    pub async fn run(mut self) {
        self.give_orders();
        let mut again = tokio::time::interval(SAVE_AGAIN);
        again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                () = self.token.cancelled() => None,
                _ = again.tick(), if self.unsaved => {
                    self.save(self.board.view()).await;
                    continue;
                }
                message = self.inbox.recv() => message,
            };
            let Some(message) = message else {
                if self.unsaved {
                    self.save(self.board.view()).await;
                }
                return;
            };
            self.take(message).await;
            self.give_orders();
            self.begin_comparisons();
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
            Message::Attach { node, expected, vouched, quiet, reason, reply } => {
                let may = self.may_attach(node, expected).and_then(|()| self.has_good_data(node, vouched));
                let answer = match may.and_then(|()| self.nobody_writes(node, quiet)) {
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
            Message::Diverged { node, generation, reason, reply } => {
                let answer = match self.may_be_diverged(node, generation) {
                    Ok(true) => Ok(self.apply(Event::Diverged(node, reason)).await),
                    Ok(false) => Ok(self.board.view().generation),
                    Err(error) => Err(error),
                };
                let _ = reply.send(answer);
            }
            Message::Compared { main, node, found } => {
                self.comparing.retain(|(m, n, _)| (*m, *n) != (main, node));
                self.apply(Event::Compared { main, node, found }).await;
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

    /// Where pgmend keeps the nodes equal, nobody enters whose data may differ.
    fn has_good_data(&self, node: NodeId, vouched: bool) -> Result<(), KeeperError> {
        let is_live = self.core.status(node).is_some_and(NodeStatus::is_live);
        match self.core.data(node) {
            Some(_) | None if vouched || is_live => Ok(()),
            None | Some((DataState::Trusted, _)) => Ok(()),
            Some((DataState::Diverged, reason)) => Err(KeeperError::Diverged { node, reason: reason.to_owned() }),
            // With nobody to differ from, the first one that is put in is the truth, unless another is known to be.
            Some((DataState::Unverified, _)) if !self.core.any_live() && !self.core.truth_is_out() => Ok(()),
            Some((DataState::Unverified, reason)) => Err(KeeperError::Unverified { node, reason: reason.to_owned() }),
        }
    }

    /// Beside equals that serve a node enters only while the gate is held: it must not miss a write.
    fn nobody_writes(&mut self, node: NodeId, quiet: Option<Quiet>) -> Result<(), KeeperError> {
        let must_enter = self.core.data(node).is_some()
            && self.core.any_live()
            && !self.core.status(node).is_some_and(NodeStatus::is_live);
        match quiet {
            Some(quiet) if quiet.is_good() => self.entering = Some((node, quiet)),
            Some(_) | None if must_enter => return Err(KeeperError::NotQuiet(node)),
            Some(_) | None => {}
        }
        Ok(())
    }

    /// False: it has left already. The last one is never taken out: it has the truth.
    fn may_be_diverged(&self, node: NodeId, generation: u64) -> Result<bool, KeeperError> {
        let status = self.core.status(node).ok_or(KeeperError::NoSuchNode(node))?;
        let changed = self.changed_in.get(node.index()).copied().unwrap_or(0);
        if status == NodeStatus::Unused {
            return Err(KeeperError::Unused(node));
        }
        if changed > generation {
            // What was seen is older than what was done about it; out it went, or it came back with other data.
            return if status.is_live() {
                Err(KeeperError::Outdated { node, expected: generation, changed })
            } else {
                Ok(self.core.data(node).is_some_and(|(data, _)| data == DataState::Unverified))
            };
        }
        if status.is_live() && self.core.is_last(node) {
            return Err(KeeperError::Last(node));
        }
        Ok(true)
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
    async fn apply_and_open(&mut self, event: Event, opening: Option<Quiet>) -> u64 {
        match self.apply_once(event, opening).await {
            Ok(generation) => generation,
            // Declined for one node, which then leaves; that cannot be declined.
            Err(late) => {
                self.apply_once(Event::TooLate(late), None).await.unwrap_or_else(|_| self.board.view().generation)
            }
        }
    }

    /// The error is a node that was to enter behind a gate that is open already; then nothing was published.
    async fn apply_once(&mut self, event: Event, opening: Option<Quiet>) -> Result<u64, NodeId> {
        let outcome = self.core.apply(event, now_s());
        for line in &outcome.told {
            tracing::warn!(event = "keeper.changed", "{line}");
        }
        let before = self.board.view();
        let mut next = self.core.view(before.generation);
        if next == *before {
            return Ok(before.generation);
        }
        next.generation = before.generation.saturating_add(1);
        let next = Arc::new(next);
        if outcome.save {
            self.save(next.clone()).await;
        }
        let generation = next.generation;
        let publish = |now: &Published| {
            (now.view.generation < generation).then(|| Published { view: next.clone(), gate: now.gate.clone() })
        };
        let status_in = |view: &View, id| view.node(id).map(|n| n.status);
        match self.entering.take() {
            Some((id, quiet)) if status_in(&next, id) == Some(NodeStatus::Up) => {
                if !quiet.consume(publish) {
                    return Err(id);
                }
            }
            entering => {
                // Of one that has failed meanwhile nothing is awaited any more.
                self.entering = entering.filter(|(id, _)| status_in(&next, *id) == Some(NodeStatus::Waiting));
                // Where the gate has opened by its own deadline there is nothing left to open.
                if !opening.is_some_and(|quiet| quiet.consume(publish)) {
                    self.board.publish(publish);
                }
            }
        }
        self.note_changes(&before, &next);
        Ok(generation)
    }

    /// The service goes on with what it knows also when it cannot be saved; only a restart would start from the older state. So
    /// it is tried until it is saved.
    async fn save(&mut self, view: Arc<View>) {
        let memory = self.memory.clone();
        let saved = tokio::task::spawn_blocking(move || memory.save(&view)).await;
        let error = match saved {
            Ok(saved) => saved.err(),
            Err(error) => Some(error.to_string()),
        };
        let before = std::mem::replace(&mut self.unsaved, error.is_some());
        match error {
            Some(error) if !before => {
                tracing::error!(event = "keeper.save_failed", %error, "it is tried again and again")
            }
            Some(_) => {}
            None if before => tracing::warn!(event = "keeper.saved_again"),
            None => {}
        }
    }

    fn note_changes(&mut self, before: &View, next: &View) {
        self.changed_in.resize(next.nodes.len(), 0);
        for (changed, node) in self.changed_in.iter_mut().zip(&next.nodes) {
            if before.node(node.spec.id).is_none_or(|b| b.status != node.status) {
                *changed = next.generation;
            }
        }
        let other_main = next.mode.replicates() && before.primary != next.primary;
        if before.epoch != next.epoch || other_main {
            self.epoch_changed_in = next.generation;
        }
    }

    /// Begins the comparisons that are wanted and ends those that are not any more.
    fn begin_comparisons(&mut self) {
        let wanted = self.core.comparison().cloned();
        let (main, nodes) = wanted.map_or((None, Vec::new()), |(main, nodes)| (Some(main), nodes));
        self.comparing.retain(|(m, n, token)| {
            let still = Some(*m) == main && nodes.contains(n);
            if !still {
                token.cancel();
            }
            still
        });
        let Some(main) = main else { return };
        for node in nodes {
            let runs = self.comparing.iter().any(|(_, n, _)| *n == node);
            let specs = self.core.order(main).map(|o| o.spec).zip(self.core.order(node).map(|o| o.spec));
            let Some((of, with)) = specs.filter(|_| !runs) else { continue };
            tracing::info!(event = "keeper.comparing", main = main.0, node = node.0);
            let limit = self.prober.settings.borrow().compare_timeout;
            let (work, token, sender) = ((self.compare)(of, with), self.token.child_token(), self.sender.clone());
            self.comparing.push((main, node, token.clone()));
            tokio::spawn(token.run_until_cancelled_owned(async move {
                let found = match tokio::time::timeout(limit, work).await {
                    Ok(Ok(differences)) if differences.is_empty() => Comparison::Equal,
                    Ok(Ok(differences)) => Comparison::Differs(differences.join(", ")),
                    Ok(Err(why)) => Comparison::Unknown(why),
                    Err(_) => Comparison::Unknown(format!("it took longer than compare_timeout, {limit:?}")),
                };
                // An error means that the daemon stops.
                let _ = sender.send(Message::Compared { main, node, found }).await;
            }));
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

#[cfg(test)]
mod tests {
    use super::super::memory::initial_view;
    use super::super::memory::tests::{Remembered, spec};
    use super::*;
    use crate::base::Secret;
    use crate::cluster::{DataState, Hold, Holder, Mode, Role, Scope, Servers, Wanted};

    fn settings() -> Settings {
        let second = Duration::from_secs(1);
        Settings {
            user: "u".into(),
            password: Secret::default(),
            database: "d".into(),
            period: second,
            timeout: second,
            max_retries: 0,
            retry_delay: second,
            compare_timeout: second,
        }
    }

    /// An actor of two nodes of which node 0 serves and node 1 is out. Nothing is probed.
    async fn actor() -> Actor {
        let memory = Arc::new(Remembered::default());
        let board = Board::new(initial_view(&[spec(0, 1), spec(1, 2)], Mode::NativeReplication, &*memory, 1));
        let (sender, inbox) = mpsc::channel(8);
        let prober = Prober {
            settings: watch::channel(settings()).1,
            now: watch::channel(0).1,
            password_of: Arc::new(|_| None),
            tls: Arc::new(|| panic!("nothing is probed")),
            freezes: Arc::default(),
        };
        let mut actor = Actor {
            core: Core::new(&board.view()),
            board,
            memory,
            prober,
            sender,
            inbox,
            token: CancellationToken::new(),
            orders: Vec::new(),
            changed_in: vec![0; 2],
            epoch_changed_in: 0,
            entering: None,
            unsaved: false,
            compare: Arc::new(|_, _| Box::pin(std::future::pending())),
            comparing: Vec::new(),
        };
        answers(&mut actor, 0).await;
        actor.apply(Event::Failed(NodeId(1), "refused".into())).await;
        assert_eq!(statuses(&actor), [NodeStatus::Up, NodeStatus::Down]);
        actor
    }

    async fn answers(actor: &mut Actor, node: u16) {
        let report = ProbeReport { role: Role::Primary, major: Some(17), ..ProbeReport::default() };
        actor.apply(Event::Answered(NodeId(node), report)).await;
    }

    fn statuses(actor: &Actor) -> Vec<NodeStatus> {
        actor.board.view().nodes.iter().map(|n| n.status).collect()
    }

    fn hold(actor: &Actor) -> Hold {
        let wanted = Wanted {
            scope: Scope::All,
            holder: Holder::Job(1),
            reason: "test".into(),
            servers: Servers::Keep,
            drain: None,
            end_sessions: false,
            until: None,
        };
        actor.board.hold(&wanted).unwrap()
    }

    async fn attach(actor: &mut Actor, quiet: Option<Quiet>) -> Result<u64, KeeperError> {
        let (reply, answer) = oneshot::channel();
        let expected = Some(actor.board.view().generation);
        let (node, reason) = (NodeId(1), "recovered".to_owned());
        actor.take(Message::Attach { node, expected, vouched: true, quiet, reason, reply }).await;
        answer.await.unwrap()
    }

    #[tokio::test]
    async fn a_node_enters_in_the_step_that_opens_the_gate() {
        let mut actor = actor().await;
        assert_eq!(attach(&mut actor, None).await, Err(KeeperError::NotQuiet(NodeId(1))));
        let hold = hold(&actor);
        attach(&mut actor, Some(hold.quiet().unwrap())).await.unwrap();
        assert!(!actor.board.read().gate.is_open());
        let version = actor.board.version();
        answers(&mut actor, 1).await;
        assert_eq!(statuses(&actor), [NodeStatus::Up, NodeStatus::Up]);
        assert_eq!((actor.board.read().gate.is_open(), actor.board.version()), (true, version + 1), "at once");
    }

    #[tokio::test]
    async fn a_node_stays_out_when_the_gate_was_opened_before() {
        let mut actor = actor().await;
        let hold = hold(&actor);
        attach(&mut actor, Some(hold.quiet().unwrap())).await.unwrap();
        // Its deadline came, or the recovery gave up.
        drop(hold);
        answers(&mut actor, 1).await;
        let view = actor.board.view();
        assert_eq!(statuses(&actor), [NodeStatus::Up, NodeStatus::Down]);
        assert_eq!(view.nodes[1].data, DataState::Unverified);
        assert_eq!(view.nodes[1].reason, "the gate was opened before it was attached");
    }

    #[tokio::test]
    async fn a_report_that_is_older_than_the_attach_takes_nobody_out() {
        let mut actor = actor().await;
        let old = actor.board.view().generation;
        let hold = hold(&actor);
        attach(&mut actor, Some(hold.quiet().unwrap())).await.unwrap();
        answers(&mut actor, 1).await;
        let now = actor.board.view().generation;
        let report = async |actor: &mut Actor, node: u16, generation: u64| {
            let (reply, answer) = oneshot::channel();
            let reason = "rows affected".to_owned();
            actor.take(Message::Diverged { node: NodeId(node), generation, reason, reply }).await;
            answer.await.unwrap()
        };
        assert!(matches!(report(&mut actor, 1, old).await, Err(KeeperError::Outdated { .. })));
        report(&mut actor, 0, now).await.unwrap();
        assert_eq!(statuses(&actor), [NodeStatus::Down, NodeStatus::Up]);
        assert_eq!(actor.board.view().main_node(), Some(NodeId(1)));
        assert_eq!(report(&mut actor, 1, now + 9).await, Err(KeeperError::Last(NodeId(1))));
        // Told twice: it is out already.
        report(&mut actor, 0, now).await.unwrap();
    }
}
