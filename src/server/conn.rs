//! One logged-in connection to a node, as the pool keeps it: the stream and what is known of its session.

use super::login::Connected;
use super::open::Target;
use super::prepared::Prepared;
use crate::base::NodeId;
use crate::net::Stream;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Run-time parameters by lower-case name, as a client wants them or a server has them beyond its defaults.
pub type ParamSet = Arc<BTreeMap<String, String>>;

/// Lives end up to this part of `server_lifetime` early, so that connections opened together do not end together.
const LIFETIME_SPREAD: u64 = 10;

/// Which node and which of its histories a connection belongs to. A connection of another route is never used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteId {
    /// The node.
    pub node: NodeId,
    /// Its timeline; 0 while unknown.
    pub timeline: u32,
}

/// Where a cancel of what a connection does goes.
#[derive(Debug)]
pub struct CancelTarget {
    /// Where.
    pub server: Arc<Target>,
    /// Backend.
    pub pid: u32,
    /// Its key.
    pub key: Arc<[u8]>,
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
    /// What was read of it and belongs to nothing that was asked: messages that a server may send at any time, the last
    /// one perhaps not whole.
    pub unread: Vec<u8>,
    /// The client that used it last: a number that the pool's users choose.
    pub last_user: u64,
    /// It may have settings that nobody knows of.
    pub unsure: bool,
    /// True when the unnamed statement on it is the present client's.
    pub unnamed_is_ours: bool,
    /// As last asked for.
    cancel: Option<Arc<CancelTarget>>,
    /// The runtime that watches the socket.
    home: tokio::runtime::Id,
    /// Coarse seconds of the data plane's clock when it was opened.
    pub opened_at_s: u64,
    /// Coarse seconds when it last came back.
    pub idle_since_s: u64,
    /// It must not be used again: its state is unknown.
    pub broken: bool,
}

impl ServerConn {
    /// Wraps a fresh login of the current runtime.
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
            unread: Vec::new(),
            last_user: 0,
            unsure: false,
            unnamed_is_ours: false,
            cancel: None,
            home: Handle::current().id(),
            opened_at_s: now_s,
            idle_since_s: now_s,
            broken: false,
        }
    }

    /// True when the socket is watched by the current runtime.
    pub fn is_at_home(&self) -> bool {
        self.home == Handle::current().id()
    }

    /// The same connection, watched by the current runtime.
    pub fn into_this_runtime(self) -> io::Result<ServerConn> {
        Ok(ServerConn { stream: self.stream.into_this_runtime()?, home: Handle::current().id(), ..self })
    }

    /// Nothing arrived while it was idle: it was neither closed nor has it something to say. Costs no system call. To be
    /// asked where it is at home.
    pub fn is_quiet(&mut self) -> bool {
        self.stream.is_quiet()
    }

    /// Where its cancels go, by this address of its node: one allocation for all that use the connection.
    pub fn cancel_target(&mut self, server: &Arc<Target>) -> Arc<CancelTarget> {
        match &self.cancel {
            Some(known) if Arc::ptr_eq(&known.server, server) => known.clone(),
            _ => {
                let target = CancelTarget { server: server.clone(), pid: self.pid, key: self.cancel_key.clone() };
                self.cancel.insert(Arc::new(target)).clone()
            }
        }
    }

    /// True when its life is over; `lifetime_s` zero = never. The life of each is shorter by a share of its own.
    pub fn is_past(&self, now_s: u64, lifetime_s: u64) -> bool {
        let (age_s, spread_s) = (now_s.saturating_sub(self.opened_at_s), lifetime_s / LIFETIME_SPREAD);
        // Asked after each transaction: most are far from it.
        if lifetime_s == 0 || age_s < lifetime_s - spread_s {
            return false;
        }
        // Backends' process ids follow each other; the factor (of Fibonacci hashing) spreads neighbours far apart.
        let early = u64::from(self.pid.wrapping_mul(2_654_435_769) >> 16) % (spread_s + 1);
        age_s >= lifetime_s - early
    }

    /// Everything that a session had on it is gone (`DISCARD ALL`).
    pub fn forget_session(&mut self) {
        self.applied = ParamSet::default();
        self.prepared.clear();
        self.unsure = false;
        self.asides.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use tokio::net::UnixStream;

    fn conn(pid: u32) -> ServerConn {
        let stream = Stream::from(UnixStream::pair().unwrap().0);
        let connected = Connected { stream, parameters: Vec::new(), pid, cancel_key: Vec::new() };
        ServerConn::new(connected, RouteId { node: NodeId(0), timeline: 1 }, 100)
    }

    #[tokio::test]
    async fn lives_end_in_time_but_not_all_at_once() {
        let ends: HashSet<u64> = (5000..5020)
            .map(|pid| {
                let conn = conn(pid);
                assert!(!conn.is_past(100 + 3239, 3600) && conn.is_past(100 + 3600, 3600));
                assert!(!conn.is_past(u64::MAX, 0), "no limit");
                (100..4000).find(|now| conn.is_past(*now, 3600)).unwrap()
            })
            .collect();
        assert!(ends.len() >= 15, "20 lives end at {} moments: {ends:?}", ends.len());
    }
}
