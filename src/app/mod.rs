//! The composition root: threads, signals, reload, drain.
//!
//! `takeover` replaces a running process by a new one, `stop` is a daemon's end.
//! `data_plane` are the workers' threads, `adapters` join the folders, `runtime_config` is reload, `run` is a daemon's life,
//! `descriptors` the limit of its open files.

mod adapters;
mod data_plane;
mod descriptors;
mod run;
mod runtime_config;
mod stop;
mod takeover;

pub use run::{RunOptions, run};
