//! What the two processes of a takeover say to each other: one JSON object per line.

use crate::base::NodeId;
use crate::cluster::{Board, Drain, Gate, GateOrder, Holder, Published, Scope, Servers, View, Wanted};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Version of this conversation; another one is refused, and nothing happens.
pub const VERSION: u32 = 1;
/// Longest line: a view of 128 nodes and a gate with all its orders fit.
pub const MAX_LINE: usize = 4 << 20;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "snake_case")]
pub enum Word {
    /// New to old: may I?
    Ask {
        /// `VERSION`.
        version: u32,
        /// Of the new process.
        pid: u32,
    },
    /// Old to new: not now. Nothing has changed.
    Refused {
        /// Why.
        why: String,
    },
    /// Old to new: the descriptors, that of the lock last.
    Here {
        /// Addresses of the listening sockets, in the order of their descriptors.
        listeners: Vec<String>,
    },
    /// New to old: everything that can fail has been done.
    Prepared,
    /// Old to new: my keeper has ended, I write nothing any more.
    Yours {
        /// As last published.
        view: View,
        /// What operators ordered.
        gate: GateWords,
    },
    /// New to old: clients are served.
    Serving,
    /// New to old: this is in force now.
    Published {
        /// Of the new process's keeper.
        view: View,
        /// What operators ordered.
        gate: GateWords,
    },
    /// Old to new: acknowledgement of the gate's orders.
    Report {
        /// Number of the last order seen.
        seen: u64,
        /// What is left of each order in force.
        left: Vec<(u64, usize)>,
    },
    /// Either way: a cancel whose key is unknown here.
    Cancel {
        /// Of this request.
        id: u64,
        /// The client's process id.
        pid: u32,
        /// The client's key.
        key: Vec<u8>,
    },
    /// Old to new: a node's data are not those of the others.
    Diverged {
        /// Of this request.
        id: u64,
        /// Which.
        node: NodeId,
        /// Of the view under which this was seen.
        generation: u64,
        /// For people.
        reason: String,
    },
    /// The answer: the generation in which the node is out, or why it was left.
    Parted {
        /// Of the request.
        id: u64,
        /// As the keeper says it.
        outcome: Result<u64, String>,
    },
    /// The answer: done, or known to nobody.
    Cancelled {
        /// Of the request.
        id: u64,
    },
}

impl Word {
    /// As a line.
    pub fn line(&self) -> Vec<u8> {
        // There is nothing in these types that JSON cannot say; an empty line would end the conversation.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// From a line.
    pub fn read(line: &[u8]) -> Result<Word, String> {
        serde_json::from_slice(line).map_err(|e| format!("a line was not understood: {e}"))
    }
}

/// A gate whose deadlines are told by what is left of them: the two clocks are not the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GateWords {
    orders: Vec<OrderWords>,
    last: u64,
    disabled: BTreeSet<String>,
    reconnects: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct OrderWords {
    number: u64,
    scope: Scope,
    holder: Holder,
    reason: String,
    servers: Servers,
    drain: Option<Drain>,
    end_sessions: bool,
    left_ms: Option<u64>,
}

impl GateWords {
    /// As it is now.
    pub fn of(gate: &Gate, now: Instant) -> GateWords {
        let orders = gate.orders.iter().map(|order| {
            let wanted = order.wanted.clone();
            let left = |until: Instant| u64::try_from(until.saturating_duration_since(now).as_millis());
            OrderWords {
                number: order.number,
                scope: wanted.scope,
                holder: wanted.holder,
                reason: wanted.reason,
                servers: wanted.servers,
                drain: wanted.drain,
                end_sessions: wanted.end_sessions,
                left_ms: wanted.until.map(|until| left(until).unwrap_or(u64::MAX)),
            }
        });
        let orders = orders.collect();
        GateWords { orders, last: gate.last, disabled: gate.disabled.clone(), reconnects: gate.reconnects }
    }

    /// As a gate of this process.
    pub fn gate(&self, now: Instant) -> Gate {
        let orders = self.orders.iter().cloned().map(|o| {
            // A deadline beyond the clock's range is none.
            let until = o.left_ms.and_then(|ms| now.checked_add(Duration::from_millis(ms)));
            let OrderWords { number, scope, holder, reason, servers, drain, end_sessions, left_ms: _ } = o;
            let wanted = Wanted { scope, holder, reason, servers, drain, end_sessions, until };
            Arc::new(GateOrder { number, wanted })
        });
        Gate { orders: orders.collect(), last: self.last, disabled: self.disabled.clone(), reconnects: self.reconnects }
    }
}

/// Puts the other process's view and gate in force here.
pub fn adopt(board: &Board, view: View, gate: Gate) {
    let (view, gate) = (Arc::new(view), Arc::new(gate));
    board.publish(|_| Some(Published { view: view.clone(), gate: gate.clone() }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_keeps_its_orders_and_what_is_left_of_their_deadlines() {
        let now = Instant::now();
        let wanted = Wanted {
            scope: Scope::of(Some("a".into())),
            holder: Holder::Operator,
            reason: "PAUSE".into(),
            servers: Servers::Close,
            drain: Some(Drain::default()),
            end_sessions: false,
            until: Some(now + Duration::from_secs(9)),
        };
        let gate = Gate { orders: vec![Arc::new(GateOrder { number: 4, wanted })], last: 7, ..Gate::default() };
        let line = Word::Yours {
            view: View {
                generation: 3,
                mode: crate::cluster::Mode::default(),
                epoch: None,
                primary: None,
                nodes: Vec::new(),
            },
            gate: GateWords::of(&gate, now),
        }
        .line();
        let Ok(Word::Yours { gate: words, .. }) = Word::read(&line) else { panic!("expected the same word") };
        assert_eq!(words.gate(now), gate);
        assert!(Word::read(b"{\"word\":\"hello\"}").unwrap_err().contains("hello"));
    }
}
