//! The command line of Pgpool-II 4.3, when the program is called `pgpool`.

use super::{FAILURE, fail, usage};
use crate::app::RunOptions;
use crate::config::{self, Source};
use clap::{ArgAction, Parser, ValueEnum};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long `stop` waits for the daemon to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Parser)]
#[command(name = "pgpool", about = "pgmend, called as Pgpool-II", disable_version_flag = true)]
struct Arguments {
    /// Path of pool_hba.conf.
    #[arg(short = 'a', long = "hba-file")]
    hba: Option<PathBuf>,
    /// Path of pgpool.conf.
    #[arg(short = 'f', long = "config-file", default_value = "/etc/pgpool2/pgpool.conf")]
    conf: PathBuf,
    /// Path of the key file.
    #[arg(short = 'k', long = "key-file")]
    key: Option<PathBuf>,
    /// Path of pcp.conf.
    #[arg(short = 'F', long = "pcp-file")]
    pcp: Option<PathBuf>,
    /// Without effect: there is no query cache.
    #[arg(short = 'C', long = "clear-oidmaps")]
    clear_oidmaps: bool,
    /// Without effect: there is no query cache.
    #[arg(short = 'c', long = "clear-cache")]
    clear_cache: bool,
    /// Stay in the foreground.
    #[arg(short = 'n', long = "dont-detach")]
    dont_detach: bool,
    /// Without effect.
    #[arg(short = 'x', long = "debug-assertions")]
    debug_assertions: bool,
    /// Forget the states of the nodes.
    #[arg(short = 'D', long = "discard-status")]
    discard_status: bool,
    /// Without effect: see RUST_LOG.
    #[arg(short = 'd', long = "debug")]
    debug: bool,
    /// How to stop: smart, fast or immediate.
    #[arg(short = 'm', long = "mode", default_value = "smart", value_parser = mode)]
    mode: Signal,
    /// Print the version.
    #[arg(short = 'v', long = "version", action = ArgAction::SetTrue)]
    version: bool,
    /// Nothing to start.
    #[arg(value_enum)]
    action: Option<Action>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Action {
    /// End the daemon.
    Stop,
    /// Read the configuration anew.
    Reload,
}

/// Smart, fast and immediate are SIGTERM, SIGINT and SIGQUIT to Pgpool-II as to PostgreSQL.
fn mode(text: &str) -> Result<Signal, String> {
    match text {
        "s" | "smart" => Ok(Signal::SIGTERM),
        "f" | "fast" => Ok(Signal::SIGINT),
        "i" | "immediate" => Ok(Signal::SIGQUIT),
        other => Err(not_a_mode(other)),
    }
}

fn not_a_mode(text: &str) -> String {
    format!("expected smart, fast or immediate, found \"{text}\"")
}

/// Starts, stops or reloads.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    if arguments.version {
        println!("pgpool-II version 4.3.5 (pgmend {})", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    match arguments.action {
        Some(Action::Stop) => stop(&arguments.conf, arguments.mode),
        Some(Action::Reload) => match signal(&arguments.conf, Signal::SIGHUP) {
            Ok(_) => ExitCode::SUCCESS,
            Err(message) => fail(message),
        },
        None => start(arguments),
    }
}

fn start(arguments: Arguments) -> ExitCode {
    let Arguments { conf, pcp, hba, key: keyfile, dont_detach, discard_status, .. } = arguments;
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    // The background process has no folder of its own, so all paths are made absolute first.
    let source = Source::Pgpool {
        conf: absolute(conf),
        pcp: pcp.map(absolute),
        hba: hba.map(absolute),
        keyfile: keyfile.map(absolute),
    };
    if !dont_detach {
        // Mistakes are told while there is still a terminal to tell them to.
        if let Err(errors) = source.load() {
            return fail(errors);
        }
        // No thread exists yet. Standard error stays where it was sent.
        if let Err(error) = nix::unistd::daemon(false, true) {
            return fail(format!("cannot go into the background: {error}"));
        }
    }
    crate::app::run(source, RunOptions { discard_status, takeover: false })
}

fn stop(conf: &Path, how: Signal) -> ExitCode {
    let pid = match signal(conf, how) {
        Ok(pid) => pid,
        Err(message) => return fail(message),
    };
    eprintln!("stop request sent to pgpool (pid: {pid}). waiting for termination...");
    let until = Instant::now() + STOP_TIMEOUT;
    while Instant::now() < until {
        if kill(pid, None).is_err() {
            eprintln!("done.");
            return ExitCode::SUCCESS;
        }
        // A command-line tool without a runtime: nothing else waits on this thread.
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(STOP_INTERVAL);
    }
    eprintln!("pgmend: process {pid} has not ended within {} s", STOP_TIMEOUT.as_secs());
    ExitCode::from(FAILURE)
}

/// Sends a signal to the process that the pid file names.
fn signal(conf: &Path, signal: Signal) -> Result<Pid, String> {
    let file = config::pgpool_pid_file(conf).map_err(|errors| errors.to_string())?;
    let pid = read_pid(&file)?;
    kill(pid, signal).map_err(|error| format!("cannot signal process {pid} of {}: {error}", file.display()))?;
    Ok(pid)
}

fn read_pid(file: &Path) -> Result<Pid, String> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| format!("cannot read the pid file {}: {error}; is it running?", file.display()))?;
    // 0 and negative numbers mean whole groups of processes to kill(2).
    match text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()) {
        Some(pid) if pid > 1 => Ok(Pid::from_raw(pid)),
        Some(_) | None => Err(format!("{} does not hold the number of a process", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Arguments {
        Arguments::try_parse_from(line.split(' ')).unwrap()
    }

    #[test]
    fn the_lines_of_pgpool_setup_are_read() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
        let start = parse("pgpool -D -n -f /x/pgpool.conf -F /x/pcp.conf -a /x/pool_hba.conf");
        assert!(start.discard_status && start.dont_detach && start.action.is_none());
        let stop = parse("pgpool -f /x/pgpool.conf -m f stop");
        assert_eq!(stop.mode, Signal::SIGINT);
        assert!(matches!(stop.action, Some(Action::Stop)));
        assert!(matches!(parse("pgpool -f /x/pgpool.conf reload").action, Some(Action::Reload)));
        assert_eq!(parse("pgpool -m immediate stop").mode, Signal::SIGQUIT);
        assert!(parse("pgpool --version").version);
    }

    #[test]
    fn a_pid_file_must_hold_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        assert!(read_pid(&file).unwrap_err().contains("is it running?"));
        std::fs::write(&file, "0\n").unwrap();
        assert!(read_pid(&file).is_err());
        std::fs::write(&file, "4711\n").unwrap();
        assert_eq!(read_pid(&file), Ok(Pid::from_raw(4711)));
    }
}
