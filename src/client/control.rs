//! The handle by which a worker reaches one of its sessions.

pub use super::activity::Doing;
use super::activity::{Activity, Limit, Limits, Second};
use super::drain::{Drained, Draining};
use super::tally::Who;
use std::cell::{Cell, OnceCell, RefCell};
use std::sync::Arc;
use std::task::{Context, Waker};

/// How a session is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// When it is between transactions.
    Clean(End),
    /// At once.
    Now(End),
}

/// Why a session is ended by pgmend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// pgmend stops.
    Shutdown,
    /// A time limit, in seconds.
    Limit(Limit, u64),
    /// The client closed without saying goodbye, and what it asked for takes long.
    Vanished,
    /// KILL.
    Killed,
    /// A drain's limit.
    Drained(Drained),
}

/// The handle by which the worker reaches a session: its waker, and what it shall do.
#[derive(Debug, Default)]
pub struct Control {
    waker: RefCell<Option<Waker>>,
    ending: Cell<Option<Ending>>,
    /// What it is at; nothing during the login, which has a limit of its own.
    pub activity: Cell<Activity>,
    /// Its limits.
    pub limits: Cell<Limits>,
    /// Whose rules it follows, once it has logged in.
    pub who: OnceCell<Arc<Who>>,
    /// Until when (coarse seconds) it may wait for a server connection.
    wait_until: Cell<Second>,
    overdue: Cell<bool>,
    /// When (coarse seconds) it was last looked at.
    swept: Cell<Second>,
    /// Since when (coarse seconds) it is closed while an answer is owed.
    closed: Cell<Second>,
    /// Its part in a drain.
    pub drain: Draining,
    /// Its place in its worker's list.
    pub place: Cell<u32>,
}

impl Control {
    /// To be called in each poll: lets the worker wake the session, and says whether it must end now.
    pub fn check(&self, cx: &Context<'_>, clean: bool) -> Option<End> {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        match self.ending.get()? {
            Ending::Clean(end) => clean.then_some(end),
            Ending::Now(end) => Some(end),
        }
    }

    /// Begins (or ends) a wait that the worker's sweep bounds.
    pub fn wait_until(&self, end_s: Option<u64>) {
        self.wait_until.set(end_s.map_or(Second::NONE, Second::of));
        self.overdue.set(false);
    }

    /// The wait has lasted too long.
    pub fn is_overdue(&self) -> bool {
        self.overdue.get()
    }

    /// To be called once a second: ends what lasts too long. `held`: at the gate, and that time does
    /// not count for who waits or has nothing to do.
    pub fn sweep(&self, now_s: u64, held: bool) {
        let passed_s = self.swept.replace(Second::of(now_s)).get().map_or(0, |before| now_s.saturating_sub(before));
        if held {
            let later = self.wait_until.get().get().map(|end| Second::of(end.saturating_add(passed_s)));
            self.wait_until.set(later.unwrap_or(Second::NONE));
            self.activity.set(self.activity.get().held(passed_s));
        }
        if self.wait_until.get().get().is_some_and(|end| now_s >= end) && !self.overdue.replace(true) {
            self.wake();
        }
        if self.doing() == Doing::Waiting {
            // It looks whether its client is still there.
            self.wake();
        }
        if self.closed.get().get().is_some_and(|since| now_s > since) && self.ending.get().is_none() {
            self.end(Ending::Now(End::Vanished));
        }
        let limits = self.limits.get();
        let Some(limit) = self.activity.get().passed(&limits, now_s).filter(|_| self.ending.get().is_none()) else {
            return;
        };
        let end = End::Limit(limit, limits.seconds(limit));
        // Who is idle may have sent something that was not read yet; then it ends after that.
        self.end(if limit == Limit::ClientIdle { Ending::Clean(end) } else { Ending::Now(end) });
    }

    /// The database that it has logged in to; nobody's before that.
    pub fn database(&self) -> Option<&str> {
        self.who.get().map(|who| who.database.as_str())
    }

    /// What it is at.
    pub fn doing(&self) -> Doing {
        self.activity.get().doing
    }

    /// It is at something else.
    pub fn set_doing(&self, doing: Doing) {
        self.activity.set(self.activity.get().at(doing));
    }

    /// Makes the session look at what it shall do.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// True when it has been told to end.
    pub fn is_ending(&self) -> bool {
        self.ending.get().is_some()
    }

    /// The client has closed its connection, or its direction of it; what it asked for may not take long any more.
    pub fn note_closed(&self, now_s: u64) {
        if self.closed.get() == Second::NONE {
            self.closed.set(Second::of(now_s));
        }
    }

    /// Tells the session to end.
    pub fn end(&self, ending: Ending) {
        self.ending.set(Some(ending));
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_at_the_gate_counts_for_no_wait_but_time_before_a_session_came_does_not_count_either() {
        let control = Control::default();
        control.wait_until(Some(1010));
        // The first look, at a clock that has run for long.
        control.sweep(1000, true);
        for now_s in 1001..1100 {
            control.sweep(now_s, true);
        }
        assert!(!control.is_overdue(), "held for 99 s");
        control.sweep(1108, false);
        assert!(!control.is_overdue());
        control.sweep(1109, false);
        assert!(control.is_overdue(), "10 s that were not at the gate");
    }
}
