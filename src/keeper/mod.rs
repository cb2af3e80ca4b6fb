//! Probes the nodes and is the only writer of the view.

mod settings;
pub use settings::Settings;
