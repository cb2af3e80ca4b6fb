//! Logs: tracing to standard error, by outcome, never SQL text or secrets.

mod log;
pub use log::{LogError, init, set_level};
