//! A client's life where pgmend keeps several nodes equal: one piece of work after the other, each on one node or on all.

use super::account::asides;
use super::front::Front;
use super::leg::Leg;
use super::settings::Settings;
use super::texts::{Sequence, Texts};
use super::unit::{Ends, Unit};
use crate::base::NodeId;
use crate::client::activity::{Activity, Sight};
use crate::client::cancel::{CancelSlot, Listing};
use crate::client::control::{Control, Doing};
use crate::client::core::Rules;
use crate::client::fault::Fault;
use crate::client::lease::Borrower;
use crate::client::params;
use crate::client::pins::Pinned;
use crate::client::plane::Plane;
use crate::client::session::Greeting;
use crate::client::worker::Worker;
use crate::cluster::Mode;
use crate::net::Stream;
use crate::pool::{PoolKey, PoolMode};
use crate::server::{Login, ParamSet};
use crate::wire::backend::{self, ErrorFields};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

/// What can fail for the client alone: the inner error is its answer, and the session goes on.
pub(super) type Told<T> = Result<Result<T, ErrorFields>, Fault>;

/// Who the client is, and how it came.
pub struct Newcomer {
    /// User and database.
    pub key: PoolKey,
    /// How servers are logged in to for it.
    pub login: Login,
    /// As it gave them at startup.
    pub parameters: Vec<(String, String)>,
    /// Of its protocol version.
    pub minor: u16,
}

/// What comes next.
enum Next {
    /// The client's next piece of work.
    Unit(Unit),
    /// The client has gone.
    Closed,
    /// A drain asks for the servers.
    GiveUp,
}

/// Where the client's transaction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Between transactions.
    None,
    /// pgmend has opened one for what the client sends outside of any.
    Internal,
    /// The client has opened one.
    Open,
    /// It has failed: only its end is taken.
    Failed,
}

impl Standing {
    /// As ReadyForQuery tells it.
    pub fn status(self) -> u8 {
        match self {
            Standing::None | Standing::Internal => b'I',
            Standing::Open => b'T',
            Standing::Failed => b'E',
        }
    }
}

/// See the module.
pub struct Session {
    pub(super) worker: Rc<Worker>,
    pub(super) plane: Arc<Plane>,
    pub(super) control: Rc<Control>,
    /// One for each node in use, by node id: the main node first.
    pub(super) legs: Vec<Leg>,
    pub(super) front: Front,
    pub(super) texts: Texts,
    pub(super) standing: Standing,
    /// An error came in a pipeline: everything up to the client's Sync is skipped.
    pub(super) skipping: bool,
    /// The moment that the transaction takes for now, once it was asked for.
    pub(super) now: Option<String>,
    /// The transaction has its snapshot on every node (snapshot isolation).
    pub(super) has_snapshot: bool,
    /// Sequences that the transaction has locked.
    pub(super) locked: BTreeSet<u32>,
    /// How the client began its transaction: so it begins on every node.
    pub(super) begin: String,
    /// The answer to what has ended a transaction, while it is kept back.
    pub(super) kept: Vec<u8>,
    /// Some nodes may have committed, and not all: nothing ends the session now.
    pub(super) committing: bool,
    /// Sequences that what was undone may have left different.
    pub(super) to_level: BTreeSet<Sequence>,
    /// Of the last piece: how many Parses, Binds and Closes its server has done, and which leg that was.
    pub(super) made: usize,
    pub(super) last_place: usize,
    /// The last piece was of the extended protocol.
    pub(super) extended: bool,
    /// It can be sent to a server a second time.
    pub(super) repeatable: bool,
    /// Closes of the portals that it makes.
    pub(super) freeing: Vec<u8>,
    /// The type of the message behind it in the same batch.
    pub(super) follows: Option<u8>,
    /// The batch has asked for COPY data: its Sync came before them, and means nothing.
    pub(super) copied: bool,
    pub(super) rounds: u32,
    pub(super) slot: Arc<CancelSlot>,
    /// The node that reads go to, if it is in use.
    pub(super) reader: NodeId,
    pub(super) mode: PoolMode,
    /// Something of its own stands on its servers (a temporary table, say).
    pub(super) bound: bool,
    pub(super) pin: Option<Pinned>,
    pub(super) max_pins: usize,
    pub(super) key: PoolKey,
    pub(super) login: Rc<Login>,
    rules: Rules,
    pub(super) initial: ParamSet,
    pub(super) id: u64,
    _listing: Listing,
}

impl Session {
    /// From authentication to the first ReadyForQuery.
    pub async fn begin(
        worker: Rc<Worker>,
        new: Newcomer,
        control: Rc<Control>,
        stream: &mut Stream,
        unsent: &mut Vec<u8>,
    ) -> Result<Box<Session>, Fault> {
        let Newcomer { key, login, parameters, minor } = new;
        let plane = worker.plane.clone();
        let initial = worker.intern(params::wanted(&parameters).map_err(Fault::Protocol)?);
        let settings = plane.settings.load_full();
        let listing =
            plane.cancels.register(minor, None).map_err(|e| Fault::Limit(format!("no random numbers: {e}")))?;
        let mode = settings.pool.rules(&key.user, &key.database).mode;
        if mode == PoolMode::Statement {
            return Err(Fault::Limit("statement pooling is not offered where pgmend replicates".into()));
        }
        let rules = Rules {
            // Statements have names of pgmend's own on servers in session pooling too: a node that comes back in the middle
            // of a session gets them as they are used.
            transactions: true,
            single_statements: false,
            max_message: super::unit::MAX_MESSAGE,
            max_prepared: settings.pool.max_prepared,
            pool_commands: false,
            share_unnamed: false,
        };
        let id = plane.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        control.drain.session.set(id);
        let mut session = Box::new(Session {
            worker,
            plane,
            control,
            legs: Vec::new(),
            front: Front::default(),
            texts: Texts::default(),
            standing: Standing::None,
            skipping: false,
            now: None,
            has_snapshot: false,
            locked: BTreeSet::new(),
            begin: String::new(),
            kept: Vec::new(),
            committing: false,
            to_level: BTreeSet::new(),
            made: 0,
            last_place: 0,
            extended: false,
            repeatable: true,
            freeing: Vec::new(),
            follows: None,
            copied: false,
            rounds: 0,
            slot: listing.slot.clone(),
            reader: NodeId(0),
            mode,
            bound: false,
            pin: None,
            max_pins: settings.pool.max_pins,
            key,
            login: Rc::new(login),
            rules,
            initial,
            id,
            _listing: listing,
        });
        session.refresh()?;
        session.choose_reader()?;
        // Any node tells what all report; the main node is asked where it is not known yet.
        let first = session.legs.first().map_or(NodeId(0), |leg| leg.node);
        let leg = session.new_leg(first)?;
        let mut greeting = Vec::new();
        Greeting::find(&leg.borrower, stream, &session.initial).await?.write(&mut greeting);
        session.front.out().append(unsent);
        session.front.report_all(&greeting);
        session.front.tell_reported();
        backend::backend_key_data(session.front.out(), session.slot.pid, &session.slot.key);
        session.front.ready(b'I');
        poll_fn(|cx| session.front.poll_send(stream, cx)).await?;
        Ok(session)
    }

    /// A leg without a connection, that knows what the client has prepared.
    pub(super) fn new_leg(&self, node: NodeId) -> Result<Leg, Fault> {
        let key = PoolKey { node: Some(node), ..self.key.clone() };
        let too_many = || Fault::Limit("too many different users and databases at once".into());
        let pool = self.worker.pool(&key).ok_or_else(too_many)?;
        let login = pool.share_login((*self.login).clone());
        let borrower = Borrower {
            worker: self.worker.clone(),
            pool,
            login,
            slot: CancelSlot::unlisted(),
            control: self.control.clone(),
        };
        let wanted = self.legs.first().map_or(&self.initial, |leg| leg.core.wanted()).clone();
        let mut leg = Leg::new(node, borrower, self.rules.clone(), wanted, &self.plane.statements);
        self.texts.bodies().try_for_each(|body| leg.core.learn(body, &self.plane.statements))?;
        Ok(leg)
    }

    /// Draws the node that this session reads from, by weight, as Pgpool-II does once per session.
    fn choose_reader(&mut self) -> Result<(), Fault> {
        let view = self.plane.board.view();
        let weights: Vec<(NodeId, f64)> = self
            .legs
            .iter()
            .filter_map(|leg| view.node(leg.node).map(|node| (leg.node, node.spec.weight.max(0.0))))
            .collect();
        let sum: f64 = weights.iter().map(|(_, weight)| weight).sum();
        let random = getrandom::u32().map_err(|e| Fault::Limit(format!("no random numbers: {e}")))?;
        let mut left = f64::from(random) / (f64::from(u32::MAX) + 1.0) * sum;
        self.reader = self.legs.first().map_or(NodeId(0), |leg| leg.node);
        for (node, weight) in weights {
            if left < weight {
                self.reader = node;
                break;
            }
            left -= weight;
        }
        Ok(())
    }

    /// The session's life; whatever ends it, clean servers go back.
    pub async fn run(&mut self, client: &mut Stream) -> Result<(), Fault> {
        let ended = self.work(client).await;
        self.pin = None;
        for leg in &mut self.legs {
            if leg.core.is_clean() { leg.give_back(true) } else { leg.close() }
        }
        ended
    }

    /// Something of pgmend's own may follow what the client has got.
    pub fn is_between_answers(&self) -> bool {
        self.front.is_sent()
    }

    async fn work(&mut self, client: &mut Stream) -> Result<(), Fault> {
        loop {
            let unit = match self.next(client).await? {
                Next::Closed | Next::Unit(Unit::Terminate) => return Ok(()),
                Next::GiveUp => {
                    self.give_up().await?;
                    continue;
                }
                Next::Unit(unit) => unit,
            };
            self.control.set_doing(Doing::Working);
            match self.serve(client, &unit).await {
                Err(Fault::Cancelled) => self.refuse(client, &unit).await?,
                served => served?,
            }
        }
    }

    async fn serve(&mut self, client: &mut Stream, unit: &Unit) -> Result<(), Fault> {
        match unit {
            Unit::Terminate | Unit::Stray => Ok(()),
            // PostgreSQL reads and drops them, too, up to the Sync.
            Unit::Query(_) | Unit::Function(_) if self.skipping => Ok(()),
            Unit::Query(text) => self.query(client, text).await,
            Unit::Function(frame) => self.function(client, frame).await,
            Unit::Batch { frames, ends } => {
                self.copied = false;
                if !self.skipping {
                    self.batch(client, frames, *ends).await?;
                }
                if *ends == Ends::Sync && !self.copied {
                    self.skipping = false;
                    self.finish(client).await?;
                }
                Ok(())
            }
        }
    }

    /// The client has cancelled what waited for servers: no server has seen it.
    async fn refuse(&mut self, client: &mut Stream, unit: &Unit) -> Result<(), Fault> {
        let fields = ErrorFields::error("57014", Fault::Cancelled.to_string());
        self.fail(client, &fields).await?;
        match unit {
            Unit::Batch { ends: Ends::Open, .. } => {
                self.skipping = true;
                Ok(())
            }
            _ => self.finish(client).await,
        }
    }

    /// The client's request is answered: an internal transaction ends, the client is told where it stands, and servers go
    /// back where nothing keeps them.
    pub(super) async fn finish(&mut self, client: &mut Stream) -> Result<(), Fault> {
        self.end_internal(client).await?;
        self.level_late(client).await?;
        self.front.ready(self.standing.status());
        if self.standing == Standing::None {
            self.texts.forget_portals();
            self.settle().await?;
        }
        Ok(())
    }

    /// Waits for work, sending what is left of the last answer.
    async fn next(&mut self, client: &mut Stream) -> Result<Next, Fault> {
        let keeps = self.legs.iter().any(|leg| leg.pooled.is_some());
        let clean = self.standing == Standing::None;
        if clean {
            // Who only was asked something by pgmend idles on.
            let sight = Sight { clean, settled: true, rounds: self.rounds };
            let activity = &self.control.activity;
            activity.set(activity.get().seen(sight, self.worker.now_s()));
        }
        let doing = match self.standing {
            Standing::None if keeps => Doing::Bound,
            Standing::None => Doing::Away,
            Standing::Internal | Standing::Open | Standing::Failed => Doing::InTransaction,
        };
        self.control.set_doing(doing);
        poll_fn(|cx| {
            if !clean {
                self.note(true);
            }
            for leg in &mut self.legs {
                leg.poll_idle(cx, &self.plane.statements)?;
            }
            if let Some(main) = self.legs.first_mut() {
                self.front.out().extend_from_slice(&asides(&std::mem::take(&mut main.out)));
                std::mem::take(&mut main.account.reports).into_iter().for_each(|report| self.front.report(report));
                self.front.tell_reported();
            }
            for leg in self.legs.iter_mut().skip(1) {
                leg.out.clear();
                leg.account.reports.clear();
            }
            loop {
                if let Poll::Ready(sent) = self.front.poll_send(client, cx) {
                    sent?;
                }
                if let Some(end) = self.control.check(cx, clean) {
                    return Poll::Ready(Err(end.into()));
                }
                // Before the next piece of work: a client that never pauses would keep its servers for ever.
                if clean && keeps && self.control.drain.asked.get() {
                    return Poll::Ready(Ok(Next::GiveUp));
                }
                if let Some(unit) = self.front.cut()? {
                    return Poll::Ready(Ok(Next::Unit(unit)));
                }
                if self.front.closed {
                    return Poll::Ready(Ok(Next::Closed));
                }
                std::task::ready!(self.front.poll_fill(client, cx));
                if clean {
                    let idle = Activity::idle(self.worker.now_s()).after(self.rounds);
                    self.control.activity.set(idle.at(doing));
                }
            }
        })
        .await
    }

    /// For the time limits: the session works.
    pub(super) fn note_working(&self) {
        self.note(false);
    }

    fn note(&self, settled: bool) {
        let sight = Sight { clean: false, settled, rounds: self.rounds };
        let activity = &self.control.activity;
        activity.set(activity.get().seen(sight, self.worker.now_s()));
    }

    /// What is in force of the operator's choices.
    pub(super) fn settings(&self) -> Settings {
        self.plane.settings.load().replication.clone()
    }

    /// Snapshots are coordinated.
    pub(super) fn isolates(&self) -> bool {
        self.plane.board.view().mode == Mode::SnapshotIsolation
    }

    /// Whose session it is: role on the servers, and database.
    pub(super) fn who(&self) -> (String, String) {
        (self.key.user.clone(), self.key.database.clone())
    }

    /// The name of the database as the client knows it.
    pub(super) fn database(&self) -> &str {
        &self.key.database
    }
}
