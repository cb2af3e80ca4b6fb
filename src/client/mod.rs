//! One client from accept to close.

mod settings;
pub mod startup;
pub use settings::Settings;
