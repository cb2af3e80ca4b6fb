//! One client from accept to close.
//!
//! Read `startup`, then `session` (the client's life), `relay` (the hot path) and `core` (its protocol state, without IO);
//! `worker` holds the sessions of one thread, `plane` what all threads share. Knows nothing of operators.

mod buffer;
mod cancel;
mod commands;
pub mod core;
mod fault;
mod lease;
mod leftovers;
mod listen;
mod params;
mod pins;
mod plane;
mod relay;
mod replication;
mod scan;
mod session;
mod settings;
pub mod startup;
mod worker;

pub use commands::{Answer, PoolCommands};
pub use core::Statements;
pub use plane::{Admitted, Plane, PlaneSettings};
pub use settings::Settings;
pub use worker::{Nudge, Order, Worker};
