//! Arguments, output, exit codes; the client of the JSON API.

mod api;
mod arguments;
mod follow;
mod pgpool;
mod planned;
mod print;

use crate::admin::{Command, Reply};
use crate::app::RunOptions;
use crate::config::Source;
use crate::maintenance::Word;
use arguments::{Arguments, FailoverAction, JobAction, Order, Run};
use clap::Parser;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Something failed; standard error says what.
const FAILURE: u8 = 1;
/// The command line was wrong.
const USAGE: u8 = 2;
/// No daemon answers.
const NOT_REACHABLE: u8 = 3;

/// Runs the command line; `args` includes the program's name, by which `pgpool` is told from `pgmend`.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let name = args.first().map(Path::new).and_then(Path::file_name).map(OsString::from);
    if name.is_some_and(|name| name == "pgpool") {
        return pgpool::main(args);
    }
    match Arguments::try_parse_from(args) {
        Ok(arguments) => run(arguments),
        Err(error) => usage(&error),
    }
}

/// Prints clap's help (a success) or complaint.
fn usage(error: &clap::Error) -> ExitCode {
    // Nothing can be done when the terminal is gone.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}

fn fail(message: impl std::fmt::Display) -> ExitCode {
    eprintln!("pgmend: {message}");
    ExitCode::from(FAILURE)
}

fn run(arguments: Arguments) -> ExitCode {
    let Arguments { socket, config, json, order } = arguments;
    let mut follow = matches!(order, Order::Recover { detach: false, .. });
    let (mut check, mut watch) = (false, false);
    let nodes_only = matches!(order, Order::Nodes);
    let command = match order {
        Order::Run(run) => return daemon(run),
        Order::Check(check) => return check_configuration(&check.source()),
        #[cfg(feature = "pam")]
        Order::PamJudge => return crate::client::pam::answer(),
        Order::Status(how) => {
            (check, watch) = (how.check, how.watch);
            Command::Status
        }
        Order::Nodes => Command::Status,
        Order::Failover { action } => Command::Failover { enabled: action == FailoverAction::Enable },
        Order::BackedUp => Command::BackedUp,
        Order::Recover { node, overwrite, accept_loss, .. } => Command::Recover { node, overwrite, accept_loss },
        Order::Planned(order) => {
            let asked = order.asked();
            follow = asked.follow;
            Command::Planned { work: asked.work, dry_run: asked.dry_run }
        }
        Order::Attach { node, accept_data } => Command::Attach { node, accept_data },
        Order::Detach { node } => Command::Detach { node },
        Order::Pause { database, timeout, at_most, drain } => {
            Command::Pause { database, timeout_s: timeout, at_most_s: at_most, drain }
        }
        Order::Resume { database } => Command::Resume { database },
        Order::Reconnect { database } => Command::Reconnect { database },
        Order::Kill { database } => Command::Kill { database },
        Order::Disable { database } => Command::Disable { database },
        Order::Enable { database } => Command::Enable { database },
        Order::Reload => Command::Reload,
        Order::Stop { mode } => Command::Stop { mode: mode.into() },
        Order::Jobs => Command::Jobs,
        Order::Job { action: JobAction::Show { id } } => Command::Job { id },
        Order::Job { action: JobAction::Cancel { id } } => Command::CancelJob { id },
    };
    let socket = match find_socket(socket, config) {
        Ok(socket) => socket,
        Err(message) => return fail(message),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(format!("cannot start: {error}")),
    };
    if watch {
        return runtime.block_on(follow::watch(&socket));
    }
    let reply = match runtime.block_on(api::send(&socket, &command)) {
        Ok(reply) => reply,
        Err(error) => return failed_call(&error),
    };
    match reply {
        Reply::Status { ref verdict, .. } if check => {
            let good = verdict.as_ref().is_some_and(|v| v.word == Word::Switchable);
            show(&reply, nodes_only, json);
            if good { ExitCode::SUCCESS } else { ExitCode::from(FAILURE) }
        }
        Reply::Plan { plan } => {
            let possible = plan.judgement.against.is_empty();
            show(&Reply::Plan { plan }, nodes_only, json);
            if possible { ExitCode::SUCCESS } else { ExitCode::from(FAILURE) }
        }
        Reply::Job { job } if follow => runtime.block_on(follow::follow(&socket, job, json)),
        reply => {
            show(&reply, nodes_only, json);
            // `job show` of a failed job is a success: the question was answered.
            ExitCode::SUCCESS
        }
    }
}

fn show(reply: &Reply, nodes_only: bool, json: bool) {
    match serde_json::to_string_pretty(reply) {
        Ok(text) if json => println!("{text}"),
        Ok(_) | Err(_) => print!("{}", print::reply(reply, nodes_only, now_s())),
    }
}

fn now_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn failed_call(error: &api::CallError) -> ExitCode {
    eprintln!("pgmend: {error}");
    match error {
        api::CallError::NotReachable { .. } => {
            eprintln!(
                "hint: name the daemon's socket by --socket, or by -c the configuration file that it was started with"
            );
            ExitCode::from(NOT_REACHABLE)
        }
        api::CallError::Refused(refusal) => {
            if let Some(hint) = &refusal.hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(FAILURE)
        }
        api::CallError::Broken(_) => ExitCode::from(FAILURE),
    }
}

/// `--socket`, then the configuration file's, then `$PGMEND_SOCKET`, then the usual place.
fn find_socket(socket: Option<PathBuf>, config: Option<PathBuf>) -> Result<PathBuf, String> {
    if let Some(socket) = socket {
        return Ok(socket);
    }
    if let Some(config) = config {
        let source = if config.extension().is_some_and(|extension| extension == "conf") {
            Source::Pgpool { conf: config, pcp: None, hba: None, keyfile: None }
        } else {
            Source::Toml(config)
        };
        return source.load().map(|config| config.admin.socket).or_else(|errors| match crate::config::socket_of(&source) {
            Some(socket) => {
                eprintln!("pgmend: the configuration has mistakes (`pgmend check` tells them); its socket is used nevertheless");
                Ok(socket)
            }
            None => Err(errors.to_string()),
        });
    }
    let given = std::env::var_os("PGMEND_SOCKET").filter(|socket| !socket.is_empty());
    Ok(given.map_or_else(|| crate::config::DEFAULT_SOCKET.into(), PathBuf::from))
}

fn daemon(run: Run) -> ExitCode {
    let source = run.files.source();
    if run.files.is_pgpool()
        && run.detach
        && let Err(error) = nix::unistd::daemon(true, true)
    {
        return fail(format!("cannot go into the background: {error}"));
    }
    crate::app::run(source, RunOptions { discard_status: run.discard_status, takeover: run.takeover })
}

fn check_configuration(source: &Source) -> ExitCode {
    match source.load() {
        Ok(config) => {
            for (name, why) in &config.not_honoured {
                println!("not honoured: {name}: {why}");
            }
            for (key, why) in crate::config::remarks(&config) {
                println!("remark: {key}: {why}");
            }
            crate::config::control(&config).iter().for_each(|line| println!("{line}"));
            println!("configuration is good");
            ExitCode::SUCCESS
        }
        Err(errors) => {
            eprintln!("{errors}");
            ExitCode::from(FAILURE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_is_given_wins() {
        assert_eq!(find_socket(Some("/a".into()), Some("/nonexistent".into())), Ok("/a".into()));
        assert!(find_socket(None, Some("/nonexistent.toml".into())).unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn configuration_names_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pgmend.toml");
        std::fs::write(&file, "[[node]]\nhost = 'a'\n[admin]\nsocket = 'my.sock'\n").unwrap();
        assert_eq!(find_socket(None, Some(file.clone())), Ok(folder.path().join("my.sock")));
        // The daemon runs on with what it has read: it can be asked whatever became of the file.
        std::fs::write(&file, "[[nod]]\n[admin]\nsocket = 'my.sock'\n").unwrap();
        assert_eq!(find_socket(None, Some(file.clone())), Ok(folder.path().join("my.sock")));
        std::fs::write(&file, "[[nod]]\n").unwrap();
        assert!(find_socket(None, Some(file)).unwrap_err().contains("did you mean \"node\""));
    }
}
