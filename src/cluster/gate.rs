//! The gate that every transaction passes: orders hold it, for all databases or for some, each with a deadline of its own.

use super::{Drain, GateError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// Orders in force at once.
const MAX_ORDERS: usize = 1000;
/// Databases disabled at once.
const MAX_DISABLED: usize = 10_000;

/// Which databases an order is about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All of them, also those that nobody has named yet.
    All,
    /// These.
    Databases(BTreeSet<String>),
}

impl Scope {
    /// One database, or all when none is named.
    pub fn of(database: Option<String>) -> Scope {
        database.map_or(Scope::All, |name| Scope::Databases(BTreeSet::from([name])))
    }

    /// True when the database is meant.
    pub fn covers(&self, database: &str) -> bool {
        match self {
            Scope::All => true,
            Scope::Databases(names) => names.contains(database),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::All => f.write_str("all databases"),
            Scope::Databases(names) => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                write!(f, "database {}", names.join(", "))
            }
        }
    }
}

/// What becomes of server connections that nobody uses while the gate is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Servers {
    /// They stay: the same servers go on afterwards.
    Keep,
    /// They are closed: nothing of the scope is connected once it is quiet.
    Close,
}

/// Who gave an order; only he takes it back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// PAUSE or KILL.
    Operator,
    /// A recovery, a switchover: this job.
    Job(u64),
}

/// What is wanted of the gate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Which databases.
    pub scope: Scope,
    /// By whom.
    pub holder: Holder,
    /// Why, for people.
    pub reason: String,
    /// What becomes of idle server connections.
    pub servers: Servers,
    /// What becomes of clients that keep a server, or come; `None`: they keep it, and whoever gave the order waits.
    pub drain: Option<Drain>,
    /// Sessions of the scope are ended at once, whatever they do (KILL).
    pub end_sessions: bool,
    /// When it opens by itself, even if everything else is stuck; `None` = never.
    pub until: Option<Instant>,
}

/// An order in force: a new transaction of the scope waits at its boundary, those under way go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GateOrder {
    /// Grows with each order; workers acknowledge by it.
    pub number: u64,
    /// What is wanted.
    pub wanted: Wanted,
}

/// The gate as published: open where no order holds it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Gate {
    /// In force, oldest first.
    pub orders: Vec<Arc<GateOrder>>,
    /// The number of the last order ever given.
    pub last: u64,
    /// Databases that take no new sessions (DISABLE).
    pub disabled: BTreeSet<String>,
    /// How often server connections were told to be opened anew (RECONNECT).
    pub reconnects: u64,
}

impl Gate {
    /// The order that holds this database.
    pub fn holds(&self, database: &str) -> Option<&Arc<GateOrder>> {
        self.orders.iter().find(|order| order.wanted.scope.covers(database))
    }

    /// The order that drains this database: the first of those that hold it and have rules.
    pub fn drains(&self, database: &str) -> Option<(&Arc<GateOrder>, Drain)> {
        let mut covering = self.orders.iter().filter(|order| order.wanted.scope.covers(database));
        covering.find_map(|order| order.wanted.drain.map(|drain| (order, drain)))
    }

    /// True where nothing is held.
    pub fn is_open(&self) -> bool {
        self.orders.is_empty()
    }

    /// The order with this number, while it is in force.
    pub fn order(&self, number: u64) -> Option<&Arc<GateOrder>> {
        self.orders.iter().find(|order| order.number == number)
    }

    /// True when an order should have ended by now.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.orders.iter().any(|order| order.is_overdue(now))
    }

    pub(super) fn with(&self, wanted: &Wanted) -> Result<(u64, Gate), GateError> {
        if self.orders.len() >= MAX_ORDERS {
            return Err(GateError::TooMany(MAX_ORDERS));
        }
        let mut next = self.clone();
        next.last = self.last + 1;
        next.orders.push(Arc::new(GateOrder { number: next.last, wanted: wanted.clone() }));
        Ok((next.last, next))
    }

    pub(super) fn without(&self, gone: impl Fn(&GateOrder) -> bool) -> Option<Gate> {
        let mut next = self.clone();
        next.orders.retain(|order| !gone(order));
        (next.orders.len() < self.orders.len()).then_some(next)
    }

    pub(super) fn disable(&self, database: &str) -> Result<Gate, GateError> {
        if self.disabled.len() >= MAX_DISABLED {
            return Err(GateError::TooMany(MAX_DISABLED));
        }
        let mut next = self.clone();
        next.disabled.insert(database.to_owned());
        Ok(next)
    }
}

impl GateOrder {
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.wanted.until.is_some_and(|until| until <= now)
    }
}

/// For people: `open`, or who holds what, and what is disabled.
impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons: Vec<&str> = self.orders.iter().map(|order| order.wanted.reason.as_str()).collect();
        match reasons.as_slice() {
            [] => f.write_str("open")?,
            reasons => write!(f, "held: {}", reasons.join("; "))?,
        }
        if !self.disabled.is_empty() {
            let names: Vec<&str> = self.disabled.iter().map(String::as_str).collect();
            write!(f, "; disabled: {}", names.join(", "))?;
        }
        Ok(())
    }
}
