//! The handle by which a worker reaches one of its sessions.

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
    /// `client_idle_limit`.
    Idle,
    /// The client closed without saying goodbye, and what it asked for takes long.
    Vanished,
    /// KILL.
    Killed,
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
}

/// The handle by which the worker reaches a session: its waker, and what it shall do.
#[derive(Debug, Default)]
pub struct Control {
    waker: RefCell<Option<Waker>>,
    ending: Cell<Option<Ending>>,
    /// Coarse seconds of its last sign of life.
    pub active_s: Cell<u64>,
    /// Until when (coarse seconds) it may wait for a server connection.
    wait_until_s: Cell<Option<u64>>,
    overdue: Cell<bool>,
    /// Since when (coarse seconds) it is closed while an answer is owed.
    pub closed_s: Cell<Option<u64>>,
    /// What it is at.
    pub doing: Cell<Doing>,
    /// Its database, once it has logged in.
    pub database: OnceCell<Rc<str>>,
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

    /// To be called once a second: ends what lasts too long.
    pub fn sweep(&self, now_s: u64) {
        if self.wait_until_s.get().is_some_and(|end| now_s >= end) && !self.overdue.replace(true) {
            self.wake();
        }
        if self.closed_s.get().is_some_and(|since| now_s > since) && self.ending.get().is_none() {
            self.end(Ending::Now(End::Vanished));
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Tells the session to end.
    pub fn end(&self, ending: Ending) {
        self.ending.set(Some(ending));
        self.wake();
    }

    /// True when it was told to end.
    pub fn is_ending(&self) -> bool {
        self.ending.get().is_some()
    }
}
