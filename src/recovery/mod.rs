//! Online recovery: a lost node is rebuilt from the primary while clients work.

mod settings;
pub use settings::{Runner, Settings};
