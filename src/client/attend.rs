//! A worker attends to the gate: sees what is ordered, closes what shall be closed, and acknowledges with what is left.

use super::control::{Control, Doing, End, Ending};
use super::worker::Worker;
use crate::cluster::{GateOrder, Holdup, MAX_HOLDUPS, Remains, Report, Scope, Servers};
use std::time::Instant;

impl Worker {
    /// Looks at the board. Called at every change of it, and again and again while the gate is held.
    pub(super) fn attend(&self) {
        let board = &self.plane.board;
        board.end_overdue(Instant::now());
        let gate = board.read().gate.clone();
        let (seen, reconnects) = self.attended.replace((gate.last, gate.reconnects));
        if gate.reconnects != reconnects {
            self.pools.borrow().values().for_each(|pool| pool.drop_outdated());
        }
        if gate.is_open() && gate.last == seen {
            self.drain(&gate);
            // Sets what transactions look at, and so whether to come back before the next change.
            self.way();
            return;
        }
        // The acknowledgement comes before the number that tells transactions to look: they look again for themselves.
        self.look_again();
        for order in gate.orders.iter().filter(|order| order.number > seen && order.wanted.end_sessions) {
            self.end_sessions(&order.wanted.scope);
        }
        self.drain(&gate);
        let mut holdups = Vec::new();
        let remains = gate.orders.iter().map(|order| (order.number, self.remains(order, &mut holdups))).collect();
        self.seat.report(Report { seen: gate.last, remains, holdups });
        self.way();
    }

    fn remains(&self, order: &GateOrder, holdups: &mut Vec<(u64, Holdup)>) -> Remains {
        let named_before = holdups.len();
        let mut remains = Remains::default();
        for (key, pool) in self.pools.borrow().iter().filter(|(key, _)| order.wanted.scope.covers(&key.database)) {
            if order.wanted.servers == Servers::Close {
                tracing::trace!(event = "gate.closing", user = %key.user, database = %key.database, idle = pool.idle());
                pool.clear();
            }
            remains.idle += pool.idle();
        }
        for control in self.sessions.borrow().iter().filter(|control| is_of(control, &order.wanted.scope)) {
            match control.doing() {
                Doing::Away => {}
                Doing::Waiting => remains.held += 1,
                Doing::Working => remains.in_flight += 1,
                Doing::InTransaction => remains.idle_in_transaction += 1,
                Doing::Bound if control.drain.is_fixed() => remains.not_movable += 1,
                Doing::Bound => remains.pinned += 1,
                Doing::Moving => remains.moving += 1,
            }
            if holdups.len() - named_before < MAX_HOLDUPS
                && let Some(who) = control.holdup()
            {
                holdups.push((order.number, who));
            }
        }
        remains
    }

    fn end_sessions(&self, scope: &Scope) {
        for control in self.sessions.borrow().iter().filter(|control| is_of(control, scope)) {
            control.end(Ending::Now(End::Killed));
        }
    }
}

/// One that has not logged in yet is of no database.
fn is_of(control: &Control, scope: &Scope) -> bool {
    control.database().is_some_and(|database| scope.covers(database))
}
