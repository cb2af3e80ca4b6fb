//! Who gets which server connection and when.

mod settings;
pub use settings::{DatabaseSettings, PoolMode, Settings};
