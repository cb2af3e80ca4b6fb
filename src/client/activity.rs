//! What a client is at and since when, and which of its time limits it has passed.
//!
//! Written in passing with the worker's coarse clock, judged by the worker's sweep: no timer is set for anybody.

use crate::pool::Rules;
use std::time::Duration;

/// A limit that ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `query_timeout`.
    Query,
    /// `transaction_timeout`.
    Transaction,
    /// `idle_transaction_timeout`.
    IdleTransaction,
    /// `client_idle_timeout`.
    ClientIdle,
}

/// What a session is at, as far as the gate and its limits are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Doing {
    /// It has no server and wants none.
    #[default]
    Away,
    /// It waits for one.
    Waiting,
    /// A server works for it.
    Working,
    /// It idles inside a transaction.
    InTransaction,
    /// It keeps a server between transactions.
    Bound,
    /// The server that it keeps is asked whether it can be given up.
    Moving,
}

impl Doing {
    /// Between transactions, with nothing to do.
    fn is_idle(self) -> bool {
        match self {
            Doing::Away | Doing::Bound | Doing::Moving => true,
            Doing::Waiting | Doing::Working | Doing::InTransaction => false,
        }
    }
}

/// What a session is at, and since when by the worker's clock. Small, as every idle client has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// What it is at.
    pub doing: Doing,
    /// Since when it is idle between transactions, pauses inside one, or has its statement worked at.
    since: Second,
    /// Since when its transaction is open.
    transaction: Second,
    /// Seconds of its idleness which count for no limit of the client's own: it was held.
    held_s: u32,
    /// Statements that the server has finished so far, at the last look.
    rounds: u32,
}

/// A second of the worker's clock, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Second(u32);

impl Default for Second {
    fn default() -> Second {
        Second::NONE
    }
}

impl Second {
    /// None.
    pub const NONE: Second = Second(u32::MAX);

    /// This one; the clock has its last after 136 years.
    pub fn of(now_s: u64) -> Second {
        Second(u32::try_from(now_s).unwrap_or(u32::MAX - 1).min(u32::MAX - 1))
    }

    /// Seconds of the clock.
    pub fn get(self) -> Option<u64> {
        (self != Second::NONE).then(|| self.0.into())
    }
}

/// Nothing that has a limit: the login has its own.
impl Default for Activity {
    fn default() -> Activity {
        Activity { doing: Doing::Away, since: Second::NONE, transaction: Second::NONE, held_s: 0, rounds: 0 }
    }
}

/// What the protocol tells of a session that has a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// No transaction is open and no answer is owed.
    pub clean: bool,
    /// No answer is owed.
    pub settled: bool,
    /// Statements finished so far; wraps.
    pub rounds: u32,
}

impl Activity {
    /// Waiting for the client's next transaction.
    pub fn idle(now_s: u64) -> Activity {
        Activity { since: Second::of(now_s), ..Activity::default() }
    }

    /// The same, when so many statements are finished.
    pub fn after(self, rounds: u32) -> Activity {
        Activity { rounds, ..self }
    }

    /// Waiting for a server connection, which has a limit of its own.
    pub fn waiting() -> Activity {
        Activity { doing: Doing::Waiting, ..Activity::default() }
    }

    /// At something else. Idleness goes on whatever it is called; anything else has its time from the next look on.
    pub fn at(self, doing: Doing) -> Activity {
        match (self.doing.is_idle(), doing.is_idle()) {
            (true, true) => Activity { doing, ..self },
            (false, false) if self.doing == doing => self,
            (_, true) => Activity { doing, rounds: self.rounds, ..Activity::default() },
            (_, false) => Activity { doing, since: Second::NONE, held_s: 0, ..self },
        }
    }

    /// At work with a server.
    #[inline]
    pub fn seen(self, sight: Sight, now_s: u64) -> Activity {
        let (rounds, now) = (sight.rounds, Second::of(now_s));
        let same = self.rounds == rounds && self.since != Second::NONE;
        if sight.clean {
            // A transaction that begins and ends between two looks has been no pause of the client.
            let (since, held_s) = if self.doing.is_idle() && same { (self.since, self.held_s) } else { (now, 0) };
            return Activity { doing: Doing::Bound, since, transaction: Second::NONE, held_s, rounds };
        }
        let transaction = if self.transaction == Second::NONE { now } else { self.transaction };
        // Of statements that follow each other without a pause, each has its own time.
        let doing = if sight.settled { Doing::InTransaction } else { Doing::Working };
        let since = if self.doing == doing && same { self.since } else { now };
        Activity { doing, since, transaction, held_s: 0, rounds }
    }

    /// A time has passed that does not count for who has nothing to do.
    pub fn held(self, passed_s: u64) -> Activity {
        let passed_s = u32::try_from(passed_s).unwrap_or(u32::MAX);
        Activity { held_s: self.held_s.saturating_add(passed_s), ..self }
    }

    /// Since when (coarse seconds) it is idle between transactions.
    pub fn idle_s(&self) -> Option<u64> {
        self.since.get().filter(|_| self.doing.is_idle())
    }

    /// Since when it pauses inside a transaction.
    pub fn pause_s(&self) -> Option<u64> {
        self.since.get().filter(|_| self.doing == Doing::InTransaction)
    }

    /// Since when its statement is worked at.
    fn query_s(&self) -> Option<u64> {
        self.since.get().filter(|_| self.doing == Doing::Working)
    }

    /// Statements finished so far, at the last look.
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// The first limit that is passed. A session gets up to two seconds more than its limit, never less.
    pub fn passed(&self, limits: &Limits, now_s: u64) -> Option<Limit> {
        let past = |since: Option<u64>, limit_s: u32| {
            limit_s > 0 && since.is_some_and(|since| now_s.saturating_sub(since) > limit_s.into())
        };
        let idle_s = self.idle_s().map(|since| since.saturating_add(self.held_s.into()));
        [
            (self.query_s(), limits.query_s, Limit::Query),
            (self.pause_s(), limits.idle_transaction_s, Limit::IdleTransaction),
            (self.transaction.get(), limits.transaction_s, Limit::Transaction),
            (idle_s, limits.client_idle_s, Limit::ClientIdle),
        ]
        .into_iter()
        .find_map(|(since, limit_s, limit)| past(since, limit_s).then_some(limit))
    }
}

/// A session's limits in whole seconds; zero = none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    query_s: u32,
    transaction_s: u32,
    idle_transaction_s: u32,
    client_idle_s: u32,
}

impl Limits {
    /// By the rules for the client.
    pub fn of(rules: &Rules) -> Limits {
        // A part of a second is a whole one in the clock's grain; none would mean no limit.
        let whole = |limit: Duration| {
            u32::try_from(limit.as_secs()).unwrap_or(u32::MAX).saturating_add(u32::from(limit.subsec_nanos() > 0))
        };
        Limits {
            query_s: whole(rules.query_timeout),
            transaction_s: whole(rules.transaction_timeout),
            idle_transaction_s: whole(rules.idle_transaction_timeout),
            client_idle_s: whole(rules.client_idle_timeout),
        }
    }

    /// Seconds of one of them.
    pub fn seconds(&self, limit: Limit) -> u64 {
        let seconds = match limit {
            Limit::Query => self.query_s,
            Limit::Transaction => self.transaction_s,
            Limit::IdleTransaction => self.idle_transaction_s,
            Limit::ClientIdle => self.client_idle_s,
        };
        seconds.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { query_s: 3, transaction_s: 10, idle_transaction_s: 5, client_idle_s: 20 };

    fn sight(clean: bool, settled: bool, rounds: u32) -> Sight {
        Sight { clean, settled, rounds }
    }

    #[test]
    fn a_statement_has_its_time_and_the_next_one_a_new_one() {
        let begun = Activity::waiting().seen(sight(false, false, 0), 100);
        let on = begun.seen(sight(false, false, 0), 103);
        assert_eq!((on.passed(&LIMITS, 103), on.passed(&LIMITS, 104)), (None, Some(Limit::Query)));
        let next = on.seen(sight(false, false, 1), 104);
        assert_eq!((next.passed(&LIMITS, 107), next.passed(&LIMITS, 108)), (None, Some(Limit::Query)));
    }

    #[test]
    fn a_pause_inside_a_transaction_is_not_a_statement() {
        let paused = Activity::waiting().seen(sight(false, false, 0), 100).seen(sight(false, true, 1), 101);
        assert_eq!((paused.passed(&LIMITS, 106), paused.passed(&LIMITS, 107)), (None, Some(Limit::IdleTransaction)));
        // A statement too short to be seen ends the pause all the same.
        assert_eq!(paused.seen(sight(false, true, 2), 106).passed(&LIMITS, 109), None);
    }

    #[test]
    fn a_transaction_is_counted_from_its_first_statement() {
        let mut at = Activity::waiting();
        for second in 100..=110 {
            at = at.seen(sight(false, second % 2 == 0, second as u32), second);
            assert_eq!(at.passed(&LIMITS, second), None);
        }
        assert_eq!(at.passed(&LIMITS, 111), Some(Limit::Transaction));
        assert_eq!(at.seen(sight(true, true, 200), 111).passed(&LIMITS, 112), None);
    }

    #[test]
    fn who_is_idle_may_be_so_for_long_but_not_for_ever() {
        let idle = Activity::idle(100);
        assert_eq!((idle.passed(&LIMITS, 120), idle.passed(&LIMITS, 121)), (None, Some(Limit::ClientIdle)));
        assert_eq!(Activity::waiting().passed(&LIMITS, 1000), None);
        // With a server of its own (session pooling) too.
        let clean = Activity::waiting().seen(sight(true, true, 1), 100).seen(sight(true, true, 1), 110);
        assert_eq!(clean.passed(&LIMITS, 121), Some(Limit::ClientIdle));
        assert_eq!(clean.seen(sight(true, true, 2), 115).passed(&LIMITS, 121), None);
    }

    #[test]
    fn who_is_held_is_not_idle_meanwhile() {
        let held = Activity::idle(100).held(1).held(30);
        assert_eq!((held.passed(&LIMITS, 151), held.passed(&LIMITS, 152)), (None, Some(Limit::ClientIdle)));
        let bound = Activity::waiting().seen(sight(true, true, 1), 100).held(30).seen(sight(true, true, 1), 130);
        assert_eq!((bound.passed(&LIMITS, 150), bound.passed(&LIMITS, 151)), (None, Some(Limit::ClientIdle)));
        assert_eq!(bound.seen(sight(true, true, 2), 140).passed(&LIMITS, 161), Some(Limit::ClientIdle), "idle anew");
    }

    #[test]
    fn idleness_goes_on_by_another_name_and_work_begins_anew() {
        let asked = Activity::idle(100).at(Doing::Bound).at(Doing::Moving);
        assert_eq!((asked.idle_s(), asked.at(Doing::Away).passed(&LIMITS, 121)), (Some(100), Some(Limit::ClientIdle)));
        let worked = asked.at(Doing::Working);
        assert_eq!((worked.idle_s(), worked.passed(&LIMITS, 1000)), (None, None), "not looked at yet");
        let seen = worked.seen(sight(false, false, 0), 200);
        assert_eq!((seen.passed(&LIMITS, 203), seen.passed(&LIMITS, 204)), (None, Some(Limit::Query)));
        // The transaction goes on while the client waits for another server.
        let waits = seen.at(Doing::Waiting);
        assert_eq!((waits.passed(&LIMITS, 210), waits.passed(&LIMITS, 211)), (None, Some(Limit::Transaction)));
    }

    #[test]
    fn a_part_of_a_second_is_a_limit() {
        let rules = Rules { query_timeout: Duration::from_millis(1), ..Rules::default() };
        assert_eq!(Limits::of(&rules), Limits { query_s: 1, ..Limits::default() });
    }
}
