//! Orders to the gate: given, taken back, ended by their own deadline. Gate and view are published together.

use super::{Board, Gate, Holder, Holdup, Published, Quiet, Scope, Unquiet, Wanted};
use std::sync::Arc;
use std::time::Instant;

/// An order was not given or not taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// A limit of the gate.
    #[error("there are {0} already, the most that there may be")]
    TooMany(usize),
}

/// An order in force. Dropping it takes the order back, so that a command that breaks off leaves the gate open.
#[derive(Debug)]
pub struct Hold {
    board: Arc<Board>,
    number: Option<u64>,
}

impl Hold {
    /// Its number.
    pub fn number(&self) -> u64 {
        self.number.unwrap_or_default()
    }

    /// Proof that every worker has acknowledged and nothing is left, or what is. To be asked again and again.
    pub fn quiet(&self) -> Result<Quiet, Unquiet> {
        Quiet::of(&self.board, self.number())
    }

    /// Who holds it up; a bounded list.
    pub fn holdups(&self) -> Vec<Holdup> {
        self.board.holdups(self.number())
    }

    /// Lets the order stand on its own until its deadline or until somebody takes it back. False: it has ended already.
    pub fn stand(mut self, until: Option<Instant>) -> bool {
        let number = self.number.take().unwrap_or_default();
        self.board.change_gate(|gate| {
            let order = gate.order(number)?;
            let wanted = Wanted { until, ..order.wanted.clone() };
            let mut next = gate.clone();
            let place = next.orders.iter_mut().find(|order| order.number == number)?;
            *place = Arc::new(super::GateOrder { number, wanted });
            Some(next)
        })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.board.take_back(|order_number, _, _| order_number == number);
        }
    }
}

impl Board {
    /// Gives an order.
    pub fn hold(self: &Arc<Self>, wanted: &Wanted) -> Result<Hold, GateError> {
        let mut given = Err(GateError::TooMany(0));
        self.change_gate(|gate| {
            let next = gate.with(wanted);
            given = next.as_ref().map(|(number, _)| *number).map_err(|error| *error);
            next.ok().map(|(_, gate)| gate)
        });
        given.map(|number| Hold { board: self.clone(), number: Some(number) })
    }

    /// Whether all is quiet for this order, whoever gave it.
    pub fn quiet(self: &Arc<Self>, number: u64) -> Result<Quiet, Unquiet> {
        Quiet::of(self, number)
    }

    /// Takes back the orders that `gone` says; true when there was one.
    pub fn take_back(&self, gone: impl Fn(u64, Holder, &Scope) -> bool) -> bool {
        self.change_gate(|gate| gate.without(|o| gone(o.number, o.wanted.holder, &o.wanted.scope)))
    }

    /// Ends the orders whose deadline has come. Whoever looks first does it; nobody depends on who gave them.
    pub fn end_overdue(&self, now: Instant) -> bool {
        self.read().gate.is_overdue(now) && self.change_gate(|gate| gate.without(|order| order.is_overdue(now)))
    }

    /// No new sessions for this database (DISABLE), or again (ENABLE). Ok(false): it was so already.
    pub fn disable(&self, database: &str, disabled: bool) -> Result<bool, GateError> {
        let mut full = None;
        let done = self.change_gate(|gate| {
            if gate.disabled.contains(database) == disabled {
                return None;
            }
            if !disabled {
                let mut next = gate.clone();
                next.disabled.remove(database);
                return Some(next);
            }
            let next = gate.disable(database);
            full = next.as_ref().err().copied();
            next.ok()
        });
        full.map_or(Ok(done), Err)
    }

    /// Tells the workers that server connections have to be opened anew.
    pub fn reconnect(&self) {
        self.change_gate(|gate| Some(Gate { reconnects: gate.reconnects + 1, ..gate.clone() }));
    }

    pub(super) fn change_gate(&self, change: impl FnMut(&Gate) -> Option<Gate>) -> bool {
        let mut change = change;
        self.publish(|now| {
            let gate = Arc::new(change(&now.gate)?);
            Some(Published { view: now.view.clone(), gate })
        })
    }
}
