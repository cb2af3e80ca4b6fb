//! The composition root: threads, signals, reload, drain.
mod data_plane;

/// How a daemon is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunOptions {
    /// `-D`: forget the states of the nodes.
    pub discard_status: bool,
}

/// Runs the daemon to its end.
pub fn run(_source: crate::config::Source, _options: RunOptions) -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
