//! One database's listener: a connection to the primary that listens to every channel somebody wants, and tells who.
//!
//! Before a change of the primary that pgmend makes, it stands ready at the coming one; it listens there before any client goes
//! on, so that nothing is missed of what is notified afterwards.

use super::Inbox;
use crate::base::{NodeId, identifier};
use crate::client::Worker;
use crate::client::way::Way;
use crate::cluster::{Listener, Warming};
use crate::server::{self, Login, RouteId, ServerConn};
use crate::wire::{backend, frame, frontend};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

/// Between two tries to reach the primary.
const RETRY: Duration = Duration::from_millis(200);
/// Bound on a login.
const CONNECT: Duration = Duration::from_secs(15);
/// Bound on the login at a coming primary; meanwhile nothing is heard.
const READY: Duration = Duration::from_secs(2);
/// What a former primary may still have to say after the new one is listened to.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A message longer than this is none that a listener gets (a payload is below 8000 bytes).
const MAX_FRAME: usize = 1 << 20;

/// What clients want of a hub.
#[derive(Debug)]
pub enum Order {
    /// Listen to these for a client, from now on. `done` when the server has agreed; `told`, when the marker comes, how
    /// many of these channels' notifications have been delivered.
    Listen {
        /// The client.
        id: u64,
        /// Its inbox.
        inbox: Arc<Inbox>,
        /// By whom the hub may log in.
        login: Box<Login>,
        /// Channels that the client did not have.
        channels: Vec<String>,
        /// The notification that ends the count.
        marker: String,
        /// The hub listens.
        done: oneshot::Sender<()>,
        /// The count.
        told: oneshot::Sender<usize>,
    },
    /// Channels of a client that are no longer wanted.
    Unlisten {
        /// The client.
        id: u64,
        /// Which.
        channels: Vec<String>,
    },
    /// The client has gone.
    Forget {
        /// The client.
        id: u64,
    },
}

#[derive(Debug)]
struct Subscriber {
    inbox: Arc<Inbox>,
    channels: BTreeSet<String>,
    /// What is being counted.
    counts: Vec<Count>,
}

/// Notifications of a client's new channels, up to a marker.
#[derive(Debug)]
struct Count {
    marker: String,
    channels: Vec<String>,
    delivered: usize,
    told: oneshot::Sender<usize>,
}

/// The state of one hub.
pub struct Hub {
    worker: Rc<Worker>,
    login: Login,
    subscribers: BTreeMap<u64, Subscriber>,
    /// What the server has been asked for.
    listened: BTreeSet<String>,
    /// Who waits for the server to be asked.
    waiting: Vec<oneshot::Sender<()>>,
    /// Who waits for an answer of the server, in order.
    asked: VecDeque<Vec<oneshot::Sender<()>>>,
    /// For a change of the primary that pgmend makes.
    next: Option<Next>,
    /// That it is waited for then.
    place: Listener,
}

/// A connection to the coming primary. It cannot listen before that is the primary, but then at once, before any client goes
/// on there.
struct Next {
    wish: Arc<Warming>,
    stand: Stand,
}

/// How one stands there.
enum Stand {
    Ready(Box<Ear>),
    /// It could not be reached; once it is the primary that is tried once more.
    Unready,
    /// It is in use by now, or was given up.
    Over,
}

/// A connection and what has been read of it.
struct Ear {
    conn: ServerConn,
    input: Vec<u8>,
}

impl Hub {
    /// A hub without subscribers.
    pub fn new(worker: Rc<Worker>, login: Login) -> Hub {
        Hub {
            place: worker.plane.board.listener(),
            worker,
            login,
            subscribers: BTreeMap::new(),
            listened: BTreeSet::new(),
            waiting: Vec::new(),
            asked: VecDeque::new(),
            next: None,
        }
    }

    /// Serves until nobody listens any more.
    pub async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut former: Option<Ear> = None;
        loop {
            let Some(mut ear) = self.connect(&mut orders).await else { return };
            if self.ask(&mut ear).await.is_ok() {
                if let Some(old) = former.take() {
                    // Clients may wait for this answer; what the former one still has to say waits for it.
                    self.agreed(&mut ear).await;
                    self.last_words(old).await;
                }
                match self.listen(&mut ear, &mut orders).await {
                    Ended::Nobody => return,
                    Ended::Moved => former = Some(ear),
                    Ended::Lost(why) => {
                        tracing::warn!(event = "listener.lost", database = %self.login.database, why);
                    }
                }
            }
            self.listened.clear();
            self.asked.clear();
            // Their markers went by unheard.
            self.subscribers.values_mut().for_each(|subscriber| subscriber.counts.clear());
        }
    }

    /// Stands ready at the node that is wished for, if one is.
    async fn make_ready(&mut self) {
        let wish = self.worker.plane.board.warming();
        if wish.as_ref().map(|wish| wish.number) == self.next.as_ref().map(|next| next.wish.number) {
            return;
        }
        self.next = None;
        let Some(wish) = wish else { return };
        let stand = self.reach(wish.node).await.map_or(Stand::Unready, |ear| Stand::Ready(Box::new(ear)));
        wish.listener_ready(self.place.number);
        self.next = Some(Next { wish, stand });
    }

    /// A connection to a node that is, or will be, the primary before the view says so.
    async fn reach(&self, node: NodeId) -> Option<Ear> {
        let target = self.worker.target_of(node)?;
        match server::connect(&target, &self.login, READY).await {
            Ok(connected) => {
                // The timeline is not known yet.
                let conn = ServerConn::new(connected, RouteId { node, timeline: 0 }, self.worker.now_s());
                Some(Ear { conn, input: Vec::new() })
            }
            Err(error) => {
                tracing::info!(event = "listener.not_ready", database = %self.login.database, %error);
                None
            }
        }
    }

    /// The connection that stood ready, once its node is the primary. Who waits for it is told when it listens.
    async fn promoted(&mut self) -> Option<Ear> {
        let next = self.next.as_mut().filter(|next| next.wish.is_promoted())?;
        let wish = next.wish.clone();
        let ear = match std::mem::replace(&mut next.stand, Stand::Over) {
            Stand::Ready(ear) => Some(*ear),
            Stand::Unready => self.reach(wish.node).await,
            Stand::Over => return None,
        };
        let number = self.place.number;
        if ear.is_none() {
            wish.listener_done(number);
            return None;
        }
        let (done, listens) = oneshot::channel();
        self.waiting.push(done);
        tokio::task::spawn_local(async move {
            // Also where it was lost: then nobody shall wait.
            let _ = listens.await;
            wish.listener_done(number);
        });
        ear
    }

    fn is_due(&self) -> bool {
        self.next.as_ref().is_some_and(|next| !matches!(next.stand, Stand::Over) && next.wish.is_promoted())
    }

    /// A connection to the primary; orders are taken meanwhile. `None`: nobody wants one any more.
    async fn connect(&mut self, orders: &mut mpsc::Receiver<Order>) -> Option<Ear> {
        let mut board = self.worker.plane.board.watch();
        loop {
            self.make_ready().await;
            if let Some(ear) = self.promoted().await {
                return Some(ear);
            }
            while let Ok(order) = orders.try_recv() {
                self.note(order);
            }
            if self.subscribers.is_empty() {
                match tokio::time::timeout(RETRY, orders.recv()).await {
                    Ok(Some(order)) => self.note(order),
                    Ok(None) | Err(_) => return None,
                }
                continue;
            }
            let Way::Open(route) = self.worker.way() else {
                let _ = tokio::time::timeout(RETRY, board.changed()).await;
                continue;
            };
            let connecting = server::connect(&route.target, &self.login, CONNECT);
            tokio::pin!(connecting);
            let connected = loop {
                tokio::select! {
                    connected = &mut connecting => break Some(connected),
                    _ = board.changed() => {}
                }
                // A server that was lost meanwhile may answer never.
                if self.is_called_away(route.id) {
                    break None;
                }
            };
            let Some(connected) = connected else { continue };
            match connected {
                Ok(connected) => {
                    let conn = ServerConn::new(connected, route.id, self.worker.now_s());
                    return Some(Ear { conn, input: Vec::new() });
                }
                Err(error) => {
                    tracing::warn!(event = "listener.unreachable", database = %self.login.database, %error);
                    let _ = tokio::time::timeout(RETRY, board.changed()).await;
                }
            }
        }
    }

    /// Another primary is there or will be.
    fn is_called_away(&self, from: RouteId) -> bool {
        let wished = self.worker.plane.board.warming().map(|wish| wish.number);
        let is_new = wished.is_some() && wished != self.next.as_ref().map(|next| next.wish.number);
        is_new || !matches!(self.worker.way(), Way::Open(now) if now.id == from)
    }

    async fn listen(&mut self, ear: &mut Ear, orders: &mut mpsc::Receiver<Order>) -> Ended {
        let mut board = self.worker.plane.board.watch();
        loop {
            self.make_ready().await;
            if self.is_due() || self.has_moved(&mut ear.conn) {
                return Ended::Moved;
            }
            tokio::select! {
                order = orders.recv() => {
                    let Some(order) = order else { return Ended::Nobody };
                    self.note(order);
                    while let Ok(more) = orders.try_recv() {
                        self.note(more);
                    }
                    if self.subscribers.is_empty() {
                        return Ended::Nobody;
                    }
                    if let Err(why) = self.ask(ear).await {
                        return Ended::Lost(why);
                    }
                }
                read = ear.conn.stream.read_buf(&mut ear.input) => match read {
                    Ok(1..) => if let Err(why) = self.hear(ear) { return Ended::Lost(why) },
                    Ok(0) => return Ended::Lost("the server closed the connection".into()),
                    Err(error) => return Ended::Lost(error.to_string()),
                },
                _ = board.changed() => {}
            }
        }
    }

    fn has_moved(&self, conn: &mut ServerConn) -> bool {
        let Way::Open(now) = self.worker.way() else { return false };
        if conn.route.timeline == 0 && now.id.node == conn.route.node {
            conn.route = now.id;
        }
        // One that was promoted a moment ago is ahead of the view.
        let is_ahead = conn.route.timeline == 0 && self.next.as_ref().is_some_and(|next| self.is_wished(next));
        now.id != conn.route && !is_ahead
    }

    fn is_wished(&self, next: &Next) -> bool {
        self.worker.plane.board.warming().is_some_and(|wish| wish.number == next.wish.number)
    }

    /// Takes an order down.
    fn note(&mut self, order: Order) {
        match order {
            Order::Listen { id, inbox, login, channels, marker, done, told } => {
                self.login = *login;
                let new = || Subscriber { inbox, channels: BTreeSet::new(), counts: Vec::new() };
                let subscriber = self.subscribers.entry(id).or_insert_with(new);
                subscriber.channels.extend(channels.iter().cloned());
                subscriber.counts.push(Count { marker, channels, delivered: 0, told });
                self.waiting.push(done);
            }
            Order::Unlisten { id, channels } => {
                if let Some(subscriber) = self.subscribers.get_mut(&id) {
                    subscriber.channels.retain(|c| !channels.contains(c));
                    subscriber.counts.retain(|count| !count.told.is_closed());
                }
            }
            Order::Forget { id } => drop(self.subscribers.remove(&id)),
        }
    }

    fn wanted(&self) -> BTreeSet<String> {
        let names = |s: &Subscriber| {
            let markers = s.counts.iter().map(|count| &count.marker);
            markers.chain(&s.channels).cloned().collect::<Vec<_>>()
        };
        self.subscribers.values().flat_map(names).collect()
    }

    /// Brings the server to what is wanted, in one statement; who waits learns when it has agreed.
    async fn ask(&mut self, ear: &mut Ear) -> Result<(), String> {
        let wanted = self.wanted();
        let listen = wanted.difference(&self.listened).map(|c| format!("LISTEN {};", identifier(c)));
        let unlisten = self.listened.difference(&wanted).map(|c| format!("UNLISTEN {};", identifier(c)));
        let sql: String = listen.chain(unlisten).collect();
        self.listened = wanted;
        let mut out = Vec::new();
        frontend::query(&mut out, &sql);
        self.asked.push_back(std::mem::take(&mut self.waiting));
        ear.conn.stream.write_all(&out).await.map_err(|e| e.to_string())?;
        ear.conn.stream.flush().await.map_err(|e| e.to_string())
    }

    /// Takes apart what has been read.
    fn hear(&mut self, ear: &mut Ear) -> Result<(), String> {
        let mut at = 0;
        while let Some(split) = frame::split(ear.input.get(at..).unwrap_or_default()).map_err(|e| e.to_string())? {
            let next = ear.input.len() - split.rest.len();
            match split.tag {
                b'A' => self.tell(ear.input.get(at..next).unwrap_or_default(), split.body),
                b'E' => return Err(backend::parse_error(split.body).message),
                b'Z' => {
                    for done in self.asked.pop_front().unwrap_or_default() {
                        // A client that does not wait any more has gone.
                        let _ = done.send(());
                    }
                }
                _ => {}
            }
            at = next;
        }
        ear.input.drain(..at);
        if ear.input.len() > MAX_FRAME { Err("a message is too long".into()) } else { Ok(()) }
    }

    /// Passes a notification on; a marker ends a count.
    fn tell(&mut self, frame: &[u8], body: &[u8]) {
        let Ok(notification) = backend::parse_notification(body) else { return };
        let Ok(channel) = std::str::from_utf8(notification.channel) else { return };
        for subscriber in self.subscribers.values_mut() {
            if let Some(at) = subscriber.counts.iter().position(|count| count.marker == channel) {
                let count = subscriber.counts.remove(at);
                // A client that does not wait any more has gone.
                let _ = count.told.send(count.delivered);
            } else if subscriber.channels.contains(channel) {
                subscriber.inbox.put(frame);
                let of_it = subscriber.counts.iter_mut().filter(|c| c.channels.iter().any(|name| name == channel));
                of_it.for_each(|count| count.delivered += 1);
            }
        }
    }

    /// Until the server has agreed to everything, if it does soon. What is wrong with it is found by the next who reads.
    async fn agreed(&mut self, ear: &mut Ear) {
        let agreed = async {
            while !self.asked.is_empty() {
                match ear.conn.stream.read_buf(&mut ear.input).await {
                    Ok(1..) if self.hear(ear).is_ok() => {}
                    Ok(_) | Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(READY, agreed).await;
    }

    /// What the former primary's connection still has; the new one is listened to already.
    async fn last_words(&mut self, mut old: Ear) {
        let words = async {
            while let Ok(1..) = old.conn.stream.read_buf(&mut old.input).await {
                if self.hear(&mut old).is_err() {
                    return;
                }
            }
        };
        // A former primary that goes on as a standby closes nothing: its time is bounded.
        let _ = tokio::time::timeout(LAST_WORDS, words).await;
    }
}

enum Ended {
    Nobody,
    Moved,
    Lost(String),
}
