//! One logged-in connection to a node, as the pool keeps it: the stream and what is known of its session.

use super::login::Connected;
use super::prepared::Prepared;
use crate::base::NodeId;
use crate::net::Stream;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::task::{Context, Waker};

/// Run-time parameters by lower-case name, as a client wants them or a server has them beyond its defaults.
pub type ParamSet = Arc<BTreeMap<String, String>>;

/// Which node and which of its histories a connection belongs to. A connection of another route is never used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteId {
    /// The node.
    pub node: NodeId,
    /// Its timeline; 0 while unknown.
    pub timeline: u32,
}

/// A server connection.
#[derive(Debug)]
pub struct ServerConn {
    /// The socket, logged in.
    pub stream: Stream,
    /// Where it leads.
    pub route: RouteId,
    /// Process id of the backend.
    pub pid: u32,
    /// Its cancel key.
    pub cancel_key: Arc<[u8]>,
    /// What the server reported of its parameters, by the server's spelling.
    pub reported: HashMap<String, String>,
    /// What pgmend set on it for a client.
    pub applied: ParamSet,
    /// Statements that it holds (transaction pooling only).
    pub prepared: Prepared,
    /// Notifications that came while pgmend's own statement ran: frames for the client that listens.
    pub asides: Vec<u8>,
    /// The client that used it last: a number that the pool's users choose.
    pub last_user: u64,
    /// It may have settings that nobody knows of.
    pub unsure: bool,
    /// True when the unnamed statement on it is the present client's.
    pub unnamed_is_ours: bool,
    /// Coarse seconds of the worker's clock when it was opened.
    pub opened_at_s: u64,
    /// Coarse seconds when it last came back.
    pub idle_since_s: u64,
    /// It must not be used again: its state is unknown.
    pub broken: bool,
}

impl ServerConn {
    /// Wraps a fresh login.
    pub fn new(connected: Connected, route: RouteId, now_s: u64) -> ServerConn {
        ServerConn {
            stream: connected.stream,
            route,
            pid: connected.pid,
            cancel_key: connected.cancel_key.into(),
            reported: connected.parameters.into_iter().collect(),
            applied: ParamSet::default(),
            prepared: Prepared::default(),
            asides: Vec::new(),
            last_user: 0,
            unsure: false,
            unnamed_is_ours: false,
            opened_at_s: now_s,
            idle_since_s: now_s,
            broken: false,
        }
    }

    /// Nothing arrived while it was idle: it was neither closed nor has it something to say. Costs no system call, since
    /// the runtime knows whether the socket became readable. Of TLS nothing is known without reading.
    pub fn is_quiet(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.stream.is_tls() || self.stream.poll_read_ready(&mut cx).is_pending()
    }

    /// Everything that a session had on it is gone (`DISCARD ALL`).
    pub fn forget_session(&mut self) {
        self.applied = ParamSet::default();
        self.prepared.clear();
        self.unsure = false;
        self.asides.clear();
    }
}
