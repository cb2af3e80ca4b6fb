//! What both planes know of the cluster: its nodes, the view that only `keeper` publishes, and the gate.
//!
//! Pure words, no IO and no clock. Read `node`, `view`, `gate`, then `board`, where view and gate are published together;
//! `orders` give and take back what holds the gate, `drain` says what becomes of clients meanwhile, `quiet` is the proof that
//! nothing goes on behind it. `warm` and `stalls` serve a planned change of the primary: connections opened beforehand, and how
//! long clients waited.

mod board;
mod drain;
mod gate;
mod mode;
mod node;
mod orders;
mod quiet;
mod stalls;
mod status;
mod view;
mod warm;

pub use board::{Board, Published};
pub use drain::{Clients, Drain, IDLE_IN_TRANSACTION, IdleLimit, Newcomers};
pub use gate::{Gate, GateOrder, Holder, Scope, Servers, Wanted};
pub use mode::Mode;
pub use node::{Host, MaintainCommands, NodeSpec, SslMode};
pub use orders::{GateError, Hold};
pub use quiet::{Holdup, MAX_HOLDUPS, OpenServers, Quiet, Remains, Report, Seat, Unquiet};
pub use stalls::{Stalled, Stalls};
pub use status::{NodeStatus, Observation, transition};
pub use view::{DataState, Epoch, NodeView, Role, View};
pub use warm::{Listener, Warm, Warmer, Warming, Warmth};
