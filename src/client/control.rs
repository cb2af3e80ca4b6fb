//! The handle by which a worker reaches one of its sessions.

use super::activity::{Activity, Limit, Limits};
use super::drain::{Drained, Draining};
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
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

/// What a session is at, as far as the gate is concerned.
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

/// The handle by which the worker reaches a session: its waker, and what it shall do.
#[derive(Debug, Default)]
pub struct Control {
    waker: RefCell<Option<Waker>>,
    ending: Cell<Option<Ending>>,
    /// What it is doing; nothing during the login, which has a limit of its own.
    pub activity: Cell<Activity>,
    /// Its limits.
    pub limits: Cell<Limits>,
    /// Whose rules it follows: user and database as the client names them.
    pub who: OnceCell<(String, String)>,
    /// Until when (coarse seconds) it may wait for a server connection.
    wait_until_s: Cell<Option<u64>>,
    overdue: Cell<bool>,
    swept_s: Cell<u64>,
    /// Since when (coarse seconds) it is closed while an answer is owed.
    pub closed_s: Cell<Option<u64>>,
    /// What it is at.
    pub doing: Cell<Doing>,
    /// Its database, once it has logged in.
    pub database: OnceCell<Rc<str>>,
    /// Its part in a drain.
    pub drain: Draining,
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
        self.wait_until_s.set(end_s);
        self.overdue.set(false);
    }

    /// The wait has lasted too long.
    pub fn is_overdue(&self) -> bool {
        self.overdue.get()
    }

    /// To be called once a second: ends what lasts too long. `held`: at the gate, and that time does
    /// not count for who waits or has nothing to do.
    pub fn sweep(&self, now_s: u64, held: bool) {
        let passed_s = now_s.saturating_sub(self.swept_s.replace(now_s));
        if held {
            self.wait_until_s.set(self.wait_until_s.get().map(|end| end.saturating_add(passed_s)));
            self.activity.set(self.activity.get().held(passed_s));
        }
        if self.wait_until_s.get().is_some_and(|end| now_s >= end) && !self.overdue.replace(true) {
            self.wake();
        }
        if self.doing.get() == Doing::Waiting {
            // It looks whether its client is still there.
            self.wake();
        }
        if self.closed_s.get().is_some_and(|since| now_s > since) && self.ending.get().is_none() {
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
        if self.closed_s.get().is_none() {
            self.closed_s.set(Some(now_s));
        }
    }

    /// Tells the session to end.
    pub fn end(&self, ending: Ending) {
        self.ending.set(Some(ending));
        self.wake();
    }
}
