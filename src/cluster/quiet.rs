//! Acknowledgements: what each worker still has of an order's scope, and the proof that it is nothing.

use super::{Board, Published, Scope, Servers};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is still going on within an order's scope, by number of clients or of server connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Clients whose server works for them.
    pub in_flight: usize,
    /// Clients that idle inside a transaction.
    pub idle_in_transaction: usize,
    /// Clients that keep a server between transactions: session pooling, or pinned.
    pub pinned: usize,
    /// Clients whose servers are being asked whether they can give them up.
    pub moving: usize,
    /// Clients that cannot give their servers up between transactions.
    pub not_movable: usize,
    /// Clients that wait at the gate or for a server.
    pub held: usize,
    /// Server connections that nobody uses.
    pub idle: usize,
    /// Server connections of another process that still serves clients (after a takeover).
    pub elsewhere: usize,
}

impl Remains {
    fn plus(self, other: Remains) -> Remains {
        Remains {
            in_flight: self.in_flight + other.in_flight,
            idle_in_transaction: self.idle_in_transaction + other.idle_in_transaction,
            pinned: self.pinned + other.pinned,
            moving: self.moving + other.moving,
            not_movable: self.not_movable + other.not_movable,
            held: self.held + other.held,
            idle: self.idle + other.idle,
            elsewhere: self.elsewhere + other.elsewhere,
        }
    }
}

/// Somebody who holds a drain up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdup {
    /// Number of the session.
    pub session: u64,
    /// As the client names it.
    pub user: String,
    /// As the client names it.
    pub database: String,
    /// What it is at, in words.
    pub reason: String,
}

impl fmt::Display for Holdup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Holdup { session, user, database, reason } = self;
        write!(f, "session {session} ({user} in {database}): {reason}")
    }
}

/// Sessions that are named of those that hold an order up.
pub const MAX_HOLDUPS: usize = 16;

/// A worker's acknowledgement: it has seen all orders up to this number and starts nothing against them.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Number of the last order seen.
    pub seen: u64,
    /// What is left of the orders in force, by number.
    pub remains: Vec<(u64, Remains)>,
    /// Who holds them up, at most [`MAX_HOLDUPS`] of each.
    pub holdups: Vec<(u64, Holdup)>,
}

/// Counts server connections, wherever they are: idle, leased, on their way between workers, being opened or reset.
pub trait OpenServers: Send + Sync + fmt::Debug {
    /// Within this scope.
    fn open(&self, scope: &Scope) -> usize;
}

/// Those who acknowledge.
#[derive(Debug, Default)]
pub(super) struct Seats {
    taken: Mutex<(u64, BTreeMap<u64, Report>)>,
    servers: Mutex<Option<Arc<dyn OpenServers>>>,
}

/// A place at the board for one who acknowledges; dropping it leaves.
#[derive(Debug)]
pub struct Seat {
    board: Arc<Board>,
    id: u64,
}

impl Seat {
    /// Acknowledges, and tells what is left.
    pub fn report(&self, report: Report) {
        self.board.seats.lock().1.insert(self.id, report);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.board.seats.lock().1.remove(&self.id);
    }
}

impl Seats {
    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Report>)> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Board {
    /// A worker, or another process that serves clients, takes its place. Nothing is quiet before it has acknowledged.
    pub fn take_seat(self: &Arc<Self>) -> Seat {
        let mut seats = self.seats.lock();
        seats.0 += 1;
        let id = seats.0;
        seats.1.insert(id, Report::default());
        drop(seats);
        Seat { board: self.clone(), id }
    }

    /// Who holds an order up, by the workers' last reports; a bounded list, the oldest sessions first.
    pub fn holdups(&self, number: u64) -> Vec<Holdup> {
        let seats = self.seats.lock();
        let all = seats.1.values().flat_map(|report| report.holdups.iter());
        let mut named: Vec<Holdup> = all.filter(|(of, _)| *of == number).map(|(_, who)| who.clone()).collect();
        drop(seats);
        named.sort_by_key(|who| who.session);
        named.truncate(MAX_HOLDUPS);
        named
    }

    /// Who counts server connections.
    pub fn count_servers_by(&self, servers: Arc<dyn OpenServers>) {
        *self.seats.servers.lock().unwrap_or_else(PoisonError::into_inner) = Some(servers);
    }
}

/// Why it is not quiet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unquiet {
    /// The order is not in force any more: taken back, or its deadline has come.
    Ended,
    /// Something is left.
    Busy {
        /// What the workers have.
        remains: Remains,
        /// Server connections, all told.
        servers: usize,
        /// Workers that have not acknowledged yet.
        silent: usize,
    },
}

impl fmt::Display for Unquiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unquiet::Busy { remains, servers, silent } = self else {
            return f.write_str("the gate was opened meanwhile");
        };
        let bound = remains.pinned + remains.moving + remains.not_movable;
        let used = remains.in_flight + remains.idle_in_transaction + bound + remains.idle;
        let words = [
            (remains.in_flight, "in flight"),
            (remains.idle_in_transaction, "idle in transaction"),
            (remains.pinned, "bound to their servers between transactions (session pooling, or SHOW PINS)"),
            (remains.moving, "being asked whether they can be moved"),
            (remains.not_movable, "not movable (bound by temporary tables, session locks and the like)"),
            (remains.idle, "idle"),
            (servers.saturating_sub(used), "being opened, reset or closed"),
            (remains.elsewhere, "in the process before the takeover"),
            (*silent, "workers that have not answered"),
            (remains.held, "held"),
        ];
        let words: Vec<String> = words.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        f.write_str(&words.join(", "))
    }
}

/// Proof that every worker has acknowledged an order and nothing of its scope is left. It is good while the order is in
/// force: whoever acts on it consumes it together with what he publishes.
#[derive(Debug)]
pub struct Quiet {
    board: Arc<Board>,
    number: u64,
}

impl Quiet {
    pub(super) fn of(board: &Arc<Board>, number: u64) -> Result<Quiet, Unquiet> {
        let now = board.read();
        let order = now.gate.order(number).ok_or(Unquiet::Ended)?;
        let counter = board.seats.servers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (mut remains, mut silent) = (Remains::default(), 0);
        for report in board.seats.lock().1.values() {
            silent += usize::from(report.seen < number);
            let own = report.remains.iter().find(|(of, _)| *of == number).map(|(_, remains)| *remains);
            remains = remains.plus(own.unwrap_or_default());
        }
        // Counted after the reports: since they acknowledged, workers give no idle connection out.
        let servers = counter.map_or(0, |counter| counter.open(&order.wanted.scope));
        let may_stay = match order.wanted.servers {
            Servers::Keep => remains.idle,
            Servers::Close => 0,
        };
        if silent > 0 || servers > may_stay || remains.elsewhere > 0 {
            return Err(Unquiet::Busy { remains, servers, silent });
        }
        Ok(Quiet { board: board.clone(), number })
    }

    /// True while the order is in force.
    pub fn is_good(&self) -> bool {
        self.board.read().gate.order(self.number).is_some()
    }

    /// Publishes what `change` makes and opens the gate, both at once, if the order is still in force. False: it is not, or
    /// `change` declined, and nothing was published.
    pub fn consume(self, change: impl Fn(&Published) -> Option<Published>) -> bool {
        self.board.publish(|now| {
            now.gate.order(self.number)?;
            let next = change(now)?;
            let gate = next.gate.without(|order| order.number == self.number)?;
            Some(Published { view: next.view, gate: Arc::new(gate) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Gate, Hold, Holder, View, Wanted};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    #[derive(Debug, Default)]
    struct Count(AtomicUsize);

    impl OpenServers for Count {
        fn open(&self, scope: &Scope) -> usize {
            if scope.covers("a") { self.0.load(Ordering::Relaxed) } else { 0 }
        }
    }

    fn board() -> Arc<Board> {
        Board::new(View {
            generation: 1,
            mode: crate::cluster::Mode::default(),
            epoch: None,
            primary: None,
            nodes: Vec::new(),
        })
    }

    fn wanted(database: Option<&str>, servers: Servers) -> Wanted {
        Wanted {
            scope: Scope::of(database.map(str::to_owned)),
            holder: Holder::Operator,
            reason: "test".into(),
            servers,
            drain: None,
            end_sessions: false,
            until: None,
        }
    }

    fn acknowledge(seat: &Seat, hold: &Hold, idle: usize) {
        let remains = Remains { idle, ..Remains::default() };
        seat.report(Report { seen: hold.number(), remains: vec![(hold.number(), remains)], holdups: Vec::new() });
    }

    #[test]
    fn quiet_needs_every_worker_and_no_server_in_use() {
        let (board, count) = (board(), Arc::new(Count::default()));
        board.count_servers_by(count.clone());
        let seats = [board.take_seat(), board.take_seat()];
        count.0.store(2, Ordering::Relaxed);
        let hold = board.hold(&wanted(Some("a"), Servers::Keep)).unwrap();
        acknowledge(&seats[0], &hold, 1);
        assert!(matches!(hold.quiet(), Err(Unquiet::Busy { silent: 1, servers: 2, .. })));
        acknowledge(&seats[1], &hold, 0);
        assert!(hold.quiet().is_err(), "one of the two is in use");
        acknowledge(&seats[1], &hold, 1);
        assert!(hold.quiet().is_ok());
        let close = board.hold(&wanted(Some("a"), Servers::Close)).unwrap();
        seats.iter().for_each(|seat| acknowledge(seat, &close, 1));
        assert_eq!(close.quiet().unwrap_err().to_string(), "2 idle", "which are being closed");
        count.0.store(0, Ordering::Relaxed);
        assert!(close.quiet().is_ok());
        let other = board.hold(&wanted(Some("b"), Servers::Close)).unwrap();
        drop(seats);
        count.0.store(7, Ordering::Relaxed);
        assert!(other.quiet().is_ok(), "who has left need not acknowledge, and other databases do not count");
    }

    #[test]
    fn who_holds_it_up_is_named_and_the_list_is_bounded() {
        let board = board();
        let hold = board.hold(&wanted(None, Servers::Close)).unwrap();
        let seats = [board.take_seat(), board.take_seat()];
        let who = |session| Holdup { session, user: "u".into(), database: "d".into(), reason: "busy".into() };
        for (seat, first) in seats.iter().zip([100, 0]) {
            let holdups = (first..first + 12).map(|n| (hold.number(), who(n))).chain([(99, who(5))]).collect();
            seat.report(Report { seen: hold.number(), remains: Vec::new(), holdups });
        }
        let named = hold.holdups();
        assert_eq!((named.len(), named[0].session, named[15].session), (MAX_HOLDUPS, 0, 103));
        assert_eq!(named[0].to_string(), "session 0 (u in d): busy");
        drop(seats);
        assert!(hold.holdups().is_empty());
    }

    #[test]
    fn a_token_is_void_once_the_gate_is_open() {
        let board = board();
        let hold = board.hold(&wanted(None, Servers::Keep)).unwrap();
        let quiet = hold.quiet().unwrap();
        assert!(quiet.is_good());
        drop(hold);
        assert!(!quiet.is_good() && !quiet.consume(|now| Some(now.clone())));
        let hold = board.hold(&wanted(None, Servers::Keep)).unwrap();
        let version = board.version();
        assert!(hold.quiet().unwrap().consume(|now| {
            let view = Arc::new(View { generation: 2, ..View::clone(&now.view) });
            Some(Published { view, gate: now.gate.clone() })
        }));
        assert_eq!((board.view().generation, board.version()), (2, version + 1), "view and gate at once");
        assert!(board.read().gate.is_open());
    }

    #[test]
    fn an_order_ends_by_itself_and_a_dropped_one_is_taken_back() {
        let (board, now) = (board(), Instant::now());
        let until = Some(now + Duration::from_secs(5));
        let hold = board.hold(&Wanted { until, ..wanted(None, Servers::Keep) }).unwrap();
        assert!(!board.end_overdue(now + Duration::from_secs(4)));
        assert!(board.end_overdue(now + Duration::from_secs(5)));
        assert!(matches!(hold.quiet(), Err(Unquiet::Ended)));
        assert!(!hold.stand(None), "it cannot be made to stand any more");
        drop(board.hold(&wanted(Some("a"), Servers::Keep)).unwrap());
        assert!(board.read().gate.is_open());
        assert!(board.hold(&wanted(Some("a"), Servers::Keep)).unwrap().stand(None));
        assert!(board.read().gate.holds("a").is_some() && board.read().gate.holds("b").is_none());
        assert_eq!(board.disable("c", true), Ok(true));
        assert_eq!(board.disable("c", true), Ok(false));
        assert_eq!(board.read().gate.to_string(), "held: test; disabled: c");
        assert!(board.take_back(|_, holder, _| holder == Holder::Operator));
        assert_eq!(board.disable("c", false), Ok(true));
        assert_eq!(Gate { last: 0, ..Gate::clone(&board.read().gate) }, Gate::default());
    }
}
