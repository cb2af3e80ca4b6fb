//! What both planes know of the cluster: its nodes, the view that only `keeper` publishes, and the gate.
//!
//! Pure words, no IO and no clock. Read `node`, `view`, `gate`, then `board`, where view and gate are published together.

mod board;
mod gate;
mod node;
mod status;
mod view;

pub use board::{Board, Published};
pub use gate::{Gate, GateState};
pub use node::{Host, NodeSpec, SslMode};
pub use status::{NodeStatus, Observation, transition};
pub use view::{Epoch, NodeView, Role, View};
