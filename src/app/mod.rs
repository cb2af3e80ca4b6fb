//! The composition root: threads, signals, reload, drain.
//!
//! `data_plane` are the workers' threads, `adapters` join the folders, `runtime_config` is reload, `run` is a daemon's life.

mod adapters;
mod data_plane;
mod run;
mod runtime_config;

pub use run::{RunOptions, run};
