//! What must survive: node states, generation, epoch, journals of jobs, and the lock that keeps a second daemon out. A folder of files today.

mod settings;
pub use settings::Settings;
