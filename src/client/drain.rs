//! Draining: while an order with rules holds the gate, sessions that keep a server are asked to give it up, and who idles
//! for longer than the rules allow is cut.

use super::control::{Control, Doing, End, Ending};
use super::worker::Worker;
use crate::cluster::{Clients, Drain, Gate, Holdup, IdleLimit};
use crate::wire::backend::ErrorFields;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

/// Servers that one worker asks at once.
const MAX_ASKED: usize = 32;

/// Why a drain cuts a session; the texts are Pgpool-II's where it has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// `client_idle_limit_in_recovery = -1`.
    AtOnce,
    /// So many seconds of it are over.
    Idle(u32),
    /// A transaction has idled for longer than this.
    IdleInTransaction(u64),
}

impl Drained {
    /// What the client is told.
    pub fn response(self) -> ErrorFields {
        let fields = ErrorFields::fatal("57000", self.to_string());
        let forced = "child connection forced to terminate due to client_idle_limit_in_recovery";
        match self {
            Drained::AtOnce => fields.with_detail(format!("{forced} = -1")),
            Drained::Idle(seconds) => fields.with_detail(format!("{forced}:{seconds} is reached")),
            Drained::IdleInTransaction(_) => fields.with_hint(
                "The transaction was rolled back: the cluster is being maintained, and an idle transaction would have \
                 kept everybody waiting. Run it again.",
            ),
        }
    }
}

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Drained::AtOnce => f.write_str("connection terminated due to online recovery"),
            Drained::Idle(_) => f.write_str("unable to read data"),
            Drained::IdleInTransaction(seconds) => write!(
                f,
                "terminating connection due to a transaction that idled during a recovery \
                 (recovery_idle_in_transaction_limit, or client_idle_limit_in_recovery: {seconds}s)"
            ),
        }
    }
}

/// A session's part in a drain.
#[derive(Debug, Default)]
pub struct Draining {
    /// It shall give its server up when it is between transactions.
    pub asked: Cell<bool>,
    /// Its own `client_idle_limit_in_recovery`.
    pub own_limit: Cell<Option<IdleLimit>>,
    /// The number of the gate's last order when it came.
    pub came_at: Cell<u64>,
    /// Its number.
    pub session: Cell<u64>,
    // Boxed, as few have it: an idle client is small.
    fixed: RefCell<Option<Box<Fixed>>>,
}

/// It cannot give its server up.
#[derive(Debug)]
struct Fixed {
    reasons: String,
    /// Statements finished when that was found; since then it may have changed.
    rounds: u32,
    asked_s: u64,
}

impl Draining {
    /// It was asked and cannot.
    pub fn fix(&self, reasons: String, rounds: u32, now_s: u64) {
        self.asked.set(false);
        *self.fixed.borrow_mut() = Some(Box::new(Fixed { reasons, rounds, asked_s: now_s }));
    }

    /// It has given its server up, or there is no drain any more.
    pub fn clear(&self) {
        self.asked.set(false);
        *self.fixed.borrow_mut() = None;
    }

    /// True while it is known that it cannot.
    pub fn is_fixed(&self) -> bool {
        self.fixed.borrow().is_some()
    }
}

impl Control {
    /// Who holds a drain up, and how; `None` for who does not.
    pub fn holdup(&self) -> Option<Holdup> {
        let fixed = self.drain.fixed.borrow();
        let reason = match self.doing() {
            Doing::Away | Doing::Waiting => return None,
            Doing::Working => "a statement runs",
            Doing::InTransaction => "idle in transaction",
            Doing::Moving => "its server is being asked",
            Doing::Bound => fixed.as_ref().map_or("keeps its server", |fixed| fixed.reasons.as_str()),
        };
        let super::tally::Who { user, database } = self.who.get()?.as_ref().clone();
        Some(Holdup { session: self.drain.session.get(), user, database, reason: reason.to_owned() })
    }
}

/// What is known of a session when it is judged.
#[derive(Clone, Copy, Debug)]
struct Seen {
    doing: Doing,
    /// Since when (coarse seconds) it is idle between transactions, and inside one.
    idle_s: Option<u64>,
    pause_s: Option<u64>,
    /// It cannot give its server up, and nothing has happened since that was found.
    fixed: bool,
    /// It may be asked now.
    may_ask: bool,
    /// It came after the order.
    newcomer: bool,
}

/// What is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Leave,
    Ask,
    /// At the end of what it does.
    AskLater,
    /// Ended when it is between transactions.
    CutBetween(Drained),
    CutNow(Drained),
}

/// The table of the manual's page on recovery. `order_s`: since when the order is known here; only what is after it counts.
fn judge(rules: &Drain, limit: IdleLimit, seen: Seen, order_s: u64, now_s: u64) -> Step {
    let past = |since: Option<u64>, limit_s: u64| {
        since.is_some_and(|since| now_s.saturating_sub(since.max(order_s)) > limit_s)
    };
    let ask = if seen.may_ask { Step::Ask } else { Step::Leave };
    let too_long = match limit {
        IdleLimit::AtOnce => Some(Drained::AtOnce),
        IdleLimit::Seconds(seconds) => past(seen.idle_s, seconds.into()).then_some(Drained::Idle(seconds)),
        IdleLimit::Never => None,
    };
    let may_move = rules.clients == Clients::Hold && !seen.fixed && seen.may_ask;
    let later = if may_move { Step::AskLater } else { Step::Leave };
    match seen.doing {
        Doing::Moving => Step::Leave,
        Doing::Working => later,
        Doing::InTransaction => {
            let limit_s = rules.transaction_idle_s(limit).filter(|limit_s| past(seen.pause_s, *limit_s));
            limit_s.map_or(later, |limit_s| Step::CutNow(Drained::IdleInTransaction(limit_s)))
        }
        // Who may still turn out to be movable is asked first.
        Doing::Bound if rules.clients == Clients::Hold && !seen.fixed => ask,
        Doing::Bound => too_long.map_or(ask, Step::CutBetween),
        Doing::Away | Doing::Waiting if rules.clients == Clients::Hold || seen.newcomer => Step::Leave,
        // A statement that waits is no idleness.
        Doing::Waiting if too_long != Some(Drained::AtOnce) => Step::Leave,
        Doing::Away | Doing::Waiting => too_long.map_or(Step::Leave, Step::CutBetween),
    }
}

impl Worker {
    /// Applies the rules of the orders in force to each session. Called every few milliseconds while the gate is held, and
    /// once when it opens.
    pub(super) fn drain(&self, gate: &Gate) {
        let now_s = self.now_s();
        let mut drains = self.drains.borrow_mut();
        if drains.is_empty() && gate.is_open() {
            return;
        }
        drains.retain(|(number, _)| gate.order(*number).is_some());
        for order in gate.orders.iter().filter(|order| order.wanted.drain.is_some()) {
            if !drains.iter().any(|(number, _)| *number == order.number) {
                drains.push((order.number, now_s));
            }
        }
        let sessions = self.sessions.borrow();
        let is_asked = |c: &&Rc<Control>| match c.doing() {
            Doing::Moving => true,
            Doing::Bound | Doing::Working | Doing::InTransaction => c.drain.asked.get(),
            Doing::Away | Doing::Waiting => false,
        };
        let busy = sessions.iter().filter(is_asked).count();
        let mut room = MAX_ASKED.saturating_sub(busy);
        for control in sessions.iter() {
            let rules = control.database().and_then(|database| gate.drains(database));
            let Some((order, rules)) = rules else {
                control.drain.clear();
                continue;
            };
            let order_s = drains.iter().find(|(number, _)| *number == order.number).map_or(now_s, |(_, since)| *since);
            let limit = control.drain.own_limit.get().unwrap_or(rules.idle_limit);
            match judge(&rules, limit, control.seen(order.number, room > 0, now_s), order_s, now_s) {
                Step::Leave => {}
                // Whoever begins one transaction after the other is hardly ever met between two: he finds the wish there.
                Step::AskLater => {
                    room -= 1;
                    control.drain.asked.set(true);
                }
                Step::Ask => {
                    room -= 1;
                    control.drain.asked.set(true);
                    control.wake();
                }
                Step::CutBetween(why) => control.cut(Ending::Clean(End::Drained(why))),
                Step::CutNow(why) => control.cut(Ending::Now(End::Drained(why))),
            }
        }
    }
}

impl Control {
    fn seen(&self, order: u64, has_room: bool, now_s: u64) -> Seen {
        let activity = self.activity.get();
        let fixed = self.drain.fixed.borrow();
        let (is_fixed, is_due) = match fixed.as_ref() {
            None => (false, true),
            // What it does may have made it movable; asking again has its price.
            Some(fixed) => {
                (fixed.rounds == activity.rounds(), fixed.rounds != activity.rounds() && now_s > fixed.asked_s)
            }
        };
        Seen {
            doing: activity.doing,
            idle_s: activity.idle_s(),
            pause_s: activity.pause_s(),
            fixed: is_fixed || fixed.is_some() && !is_due,
            may_ask: has_room && is_due && !self.drain.asked.get(),
            newcomer: self.drain.came_at.get() >= order,
        }
    }

    /// An ending that is due already stays.
    fn cut(&self, ending: Ending) {
        if !self.is_ending() {
            self.end(ending);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(doing: Doing) -> Seen {
        Seen { doing, idle_s: Some(50), pause_s: Some(50), fixed: false, may_ask: true, newcomer: false }
    }

    fn limit(number: i64) -> IdleLimit {
        IdleLimit::of(number).unwrap()
    }

    /// What becomes of a session, by limit (0, 5, -1), when the order is 3 and then 6 seconds old.
    fn cells(clients: Clients, seen: Seen) -> [(Step, Step); 3] {
        let rules = Drain { clients, ..Drain::default() };
        [0, 5, -1].map(|n| {
            let at = |now_s| judge(&rules, limit(n), seen, 100, now_s);
            (at(103), at(106))
        })
    }

    const LEAVE: (Step, Step) = (Step::Leave, Step::Leave);
    const IDLE: (Step, Step) = (Step::Leave, Step::CutBetween(Drained::Idle(5)));
    const CUT: (Step, Step) = (Step::CutBetween(Drained::AtOnce), Step::CutBetween(Drained::AtOnce));

    #[test]
    fn who_can_be_held_is_held_whatever_the_limit() {
        for doing in [Doing::Away, Doing::Waiting, Doing::Moving] {
            assert_eq!(cells(Clients::Hold, seen(doing)), [LEAVE; 3], "{doing:?}");
        }
        assert_eq!(cells(Clients::Hold, seen(Doing::Working)), [(Step::AskLater, Step::AskLater); 3]);
        assert_eq!(cells(Clients::Hold, seen(Doing::Bound)), [(Step::Ask, Step::Ask); 3]);
        let waits = Seen { may_ask: false, ..seen(Doing::Bound) };
        assert_eq!(cells(Clients::Hold, waits), [LEAVE; 3], "its turn to be asked comes");
    }

    #[test]
    fn who_cannot_be_held_has_the_limit() {
        let fixed = Seen { fixed: true, may_ask: false, ..seen(Doing::Bound) };
        assert_eq!(cells(Clients::Hold, fixed), [LEAVE, IDLE, CUT]);
        assert_eq!(cells(Clients::Disconnect, fixed), [LEAVE, IDLE, CUT]);
    }

    #[test]
    fn disconnect_gives_everybody_the_limit() {
        assert_eq!(cells(Clients::Disconnect, seen(Doing::Away)), [LEAVE, IDLE, CUT]);
        assert_eq!(cells(Clients::Disconnect, seen(Doing::Waiting)), [LEAVE, LEAVE, CUT], "it has a statement");
        assert_eq!(cells(Clients::Disconnect, seen(Doing::Working)), [LEAVE; 3]);
        let [never, seconds, at_once] = cells(Clients::Disconnect, seen(Doing::Bound));
        assert_eq!((never, at_once), ((Step::Ask, Step::Ask), CUT));
        assert_eq!(seconds, (Step::Ask, Step::CutBetween(Drained::Idle(5))));
        let new = Seen { newcomer: true, ..seen(Doing::Away) };
        assert_eq!(cells(Clients::Disconnect, new), [LEAVE; 3], "who comes now is held");
    }

    #[test]
    fn a_transaction_that_idles_has_a_limit_of_its_own() {
        let cut = |s| Step::CutNow(Drained::IdleInTransaction(s));
        for (clients, none_yet) in [(Clients::Hold, Step::AskLater), (Clients::Disconnect, Step::Leave)] {
            let [never, seconds, at_once] = cells(clients, seen(Doing::InTransaction));
            let leave = (none_yet, none_yet);
            assert_eq!((never, seconds, at_once), (leave, (none_yet, cut(5)), leave));
            let rules = Drain { clients, ..Drain::default() };
            let at = |n, now_s| judge(&rules, limit(n), seen(Doing::InTransaction), 100, now_s);
            assert_eq!((at(0, 110), at(0, 111), at(-1, 111)), (none_yet, cut(10), cut(10)));
            let none = Drain { idle_in_transaction: None, ..rules };
            assert_eq!(judge(&none, limit(0), seen(Doing::InTransaction), 100, 9999), none_yet);
        }
    }

    #[test]
    fn the_texts_are_pgpools() {
        let at_once = Drained::AtOnce.response();
        assert_eq!((at_once.severity.as_str(), at_once.code.as_str()), ("FATAL", "57000"));
        assert_eq!(at_once.message, "connection terminated due to online recovery");
        let detail = "child connection forced to terminate due to client_idle_limit_in_recovery = -1";
        assert_eq!(at_once.detail.as_deref(), Some(detail));
        let idle = Drained::Idle(7).response();
        assert_eq!(idle.message, "unable to read data");
        let detail = "child connection forced to terminate due to client_idle_limit_in_recovery:7 is reached";
        assert_eq!(idle.detail.as_deref(), Some(detail));
        assert_eq!(Drained::IdleInTransaction(3).response().code, "57000");
    }
}
