//! What becomes of clients while the gate is held by a job: who is held, who may stay and for how long, who is refused.
//!
//! The words are Pgpool-II's where it has them (`client_idle_limit_in_recovery`).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// The rules of an order that wants sessions to give their servers up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// `recovery_clients`.
    pub clients: Clients,
    /// `client_idle_limit_in_recovery`; a session may have one of its own.
    pub idle_limit: IdleLimit,
    /// `recovery_idle_in_transaction_limit`; `None` = never.
    pub idle_in_transaction: Option<Duration>,
    /// `recovery_new_connections`.
    pub newcomers: Newcomers,
    /// Time at the gate counts for none of the clients' own limits (`query_wait_timeout`, `client_idle_timeout`).
    pub patient: bool,
}

/// `recovery_clients`: what becomes of a client that could be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clients {
    /// It is held, whatever the limit says.
    #[default]
    Hold,
    /// The limit is for it too, as with Pgpool-II.
    Disconnect,
}

/// `recovery_new_connections`: what becomes of clients that come while the gate is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Newcomers {
    /// They log in, and are held.
    #[default]
    Hold,
    /// They are told to come later.
    Reject,
}

/// `client_idle_limit_in_recovery`: how long a client may idle. Ordered by strictness, the strictest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdleLimit {
    /// -1.
    AtOnce,
    /// So many seconds, at least one.
    Seconds(u32),
    /// 0.
    #[default]
    Never,
}

impl IdleLimit {
    /// From Pgpool-II's number.
    pub fn of(number: i64) -> Option<IdleLimit> {
        match number {
            -1 => Some(IdleLimit::AtOnce),
            0 => Some(IdleLimit::Never),
            1.. => u32::try_from(number).ok().map(IdleLimit::Seconds),
            _ => None,
        }
    }

    /// As Pgpool-II writes it.
    pub fn number(self) -> i64 {
        match self {
            IdleLimit::AtOnce => -1,
            IdleLimit::Seconds(seconds) => seconds.into(),
            IdleLimit::Never => 0,
        }
    }

    /// Why a recovery with this time limit could not go with it: Pgpool-II demands that the limit be strictly smaller.
    pub fn is_below(self, recovery_timeout: Duration) -> bool {
        match self {
            IdleLimit::AtOnce | IdleLimit::Never => true,
            IdleLimit::Seconds(seconds) => Duration::from_secs(seconds.into()) < recovery_timeout,
        }
    }
}

impl fmt::Display for IdleLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

/// `recovery_idle_in_transaction_limit` where nothing else is said.
pub const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(10);

impl Default for Drain {
    fn default() -> Drain {
        Drain {
            clients: Clients::Hold,
            idle_limit: IdleLimit::Never,
            idle_in_transaction: Some(IDLE_IN_TRANSACTION),
            newcomers: Newcomers::Hold,
            patient: true,
        }
    }
}

impl Drain {
    /// Who can be held is held, and nobody is cut: a pause.
    pub const GENTLE: Drain = Drain {
        clients: Clients::Hold,
        idle_limit: IdleLimit::Never,
        idle_in_transaction: None,
        newcomers: Newcomers::Hold,
        patient: false,
    };

    /// Seconds for which a transaction may idle: the smaller of its own limit and of the client's, if that is in seconds.
    pub fn transaction_idle_s(&self, own: IdleLimit) -> Option<u64> {
        // A part of a second is a whole one in the clock's grain.
        let limit = self.idle_in_transaction.map(|limit| limit.as_secs() + u64::from(limit.subsec_nanos() > 0));
        match (own, limit) {
            (IdleLimit::Seconds(seconds), limit) => Some(limit.map_or(seconds.into(), |l| l.min(seconds.into()))),
            (IdleLimit::AtOnce | IdleLimit::Never, limit) => limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strictest_comes_first() {
        let of = |n| IdleLimit::of(n).unwrap();
        assert!(of(-1) < of(1) && of(1) < of(90) && of(90) < of(0));
        assert_eq!([-2, i64::MAX].map(IdleLimit::of), [None, None]);
        assert_eq!([-1, 0, 7].map(|n| of(n).to_string()), ["-1", "0", "7"]);
    }

    #[test]
    fn a_limit_must_be_smaller_than_the_time_limit() {
        let timeout = Duration::from_secs(90);
        let fits = |n| IdleLimit::of(n).unwrap().is_below(timeout);
        assert_eq!([-1, 0, 89, 90, 91].map(fits), [true, true, true, false, false]);
    }

    #[test]
    fn a_transaction_has_the_smaller_of_two_limits() {
        let drain = Drain::default();
        assert_eq!(drain.transaction_idle_s(IdleLimit::Never), Some(10));
        assert_eq!(drain.transaction_idle_s(IdleLimit::AtOnce), Some(10), "it is not idle between two statements");
        assert_eq!(drain.transaction_idle_s(IdleLimit::Seconds(3)), Some(3));
        assert_eq!(drain.transaction_idle_s(IdleLimit::Seconds(30)), Some(10));
        assert_eq!(Drain::GENTLE.transaction_idle_s(IdleLimit::Seconds(30)), Some(30));
        assert_eq!(Drain::GENTLE.transaction_idle_s(IdleLimit::Never), None);
    }
}
