//! One client from accept to close.
//!
//! Read `startup`, then `session` (the client's life), `relay` (the hot path) and `core` (its protocol state, without IO);
//! `worker` holds the sessions of one thread (`way`: where their transactions go), `control` its handle on each, `attend` and `drain` its part in holding the gate; `plane` is
//! what all threads share, `operate` what may be ordered of it. Knows nothing of operators.

mod activity;
mod attend;
pub mod auth_query;
mod authenticate;
mod buffer;
mod cancel;
mod commands;
mod control;
pub mod core;
mod divergence;
mod drain;
mod fault;
mod ldap;
mod lease;
mod leftovers;
mod listen;
mod operate;
mod own_limit;
pub mod pam;
mod params;
mod pins;
mod plane;
mod queue;
mod relay;
pub mod replicated;
mod replication;
mod roster;
mod scan;
mod session;
mod settings;
pub mod startup;
mod tally;
mod topup;
mod warm;
mod way;
mod worker;

pub use cancel::Elsewhere;
pub use commands::{Answer, PoolCommands};
pub use core::Statements;
pub use divergence::Divergences;
pub use operate::{OperateError, Pause};
pub use plane::{Admitted, BEYOND, Plane, PlaneSettings};
pub use settings::Settings;
pub use worker::{Nudge, Order, Worker};
