//! From files to checked settings: `pgmend.toml`, and Pgpool-II's `pgpool.conf`. Reload compares two of them.

mod settings;
pub use settings::Config;
