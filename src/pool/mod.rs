//! Who gets which server connection and when: limits per pool, database, user and node, one order of waiting.
//!
//! Read `core` (the pure budget), `shared` (one pool as all workers see it) and `local` (a worker's idle connections).
//! `rules` and `settings` say which limits and times are in force for whom.

mod budget;
mod core;
mod greetings;
mod local;
mod rate;
mod rules;
mod settings;
mod shared;

pub use budget::{Budget, Home};
pub use greetings::{APPLICATION_NAME, Reported};
pub use local::Local;
pub use rules::{Overrides, Rules};
pub use settings::{DatabaseSettings, PoolMode, Settings};
pub use shared::{Asked, Grant, Permit, PoolKey, Pooled, Refusal, SharedPool};
