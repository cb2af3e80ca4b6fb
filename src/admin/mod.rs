//! Operators' surfaces over one command list: PCP, the JSON API, `SHOW POOL_*`.

mod command;
pub mod pcp;
mod settings;
pub use command::{Command, CommandError, Reply, StopMode};
pub use settings::{PcpSettings, Settings};
