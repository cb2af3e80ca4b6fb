//! Who gets which server connection and when: a budget per user and database over all workers, one order of waiting.
//!
//! Each worker keeps its own idle connections ([`Local`]); [`SharedPool`] counts what is open and who waits.

mod greetings;
mod local;
mod settings;
mod shared;

pub use local::Local;
pub use settings::{DatabaseSettings, PoolMode, Settings};
pub use shared::{Asked, Grant, Permit, PoolKey, Pooled, SharedPool};
