//! Start and stop of a node's PostgreSQL, and whether it lives.

use super::outcome::{Class, pause_after};
use super::{Child, Finished, Lines, NodeError, Order, Output, Owner, Programs, Site, process};
use crate::cluster::NodeSpec;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

/// The start log of a node is begun anew above this size (bytes).
const MAX_LOG_BYTES: u64 = 4 * 1024 * 1024;

/// Bound on a stop; pg_ctl's own is half of it.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Bound on a node's own status command.
const STATUS_LIMIT: Duration = Duration::from_secs(10);

/// What starts and stops one node: its own commands, or `pg_ctl`; here, or where its `remote_command` leads.
#[derive(Clone, Debug)]
pub struct Postmaster {
    /// The node.
    pub spec: Arc<NodeSpec>,
    /// Where it is.
    pub site: Site,
    /// PostgreSQL's programs of this machine.
    pub programs: Option<Programs>,
    /// The folder for `node-<id>.log`, where a server that we start here writes until its own logging is up.
    pub log_directory: PathBuf,
    /// On whose behalf.
    pub order: Order,
}

impl Postmaster {
    /// True when there is a way to start it.
    pub fn can_start(&self) -> bool {
        self.spec.start_command.is_some() || !matches!(self.site, Site::Elsewhere)
    }

    /// Starts it. `pg_ctl` waits until it answers or `within` is over.
    pub async fn start(&self, within: Duration, lines: Lines, stop: &CancellationToken) -> Result<(), NodeError> {
        if let Site::There(remote) = &self.site {
            return remote.start(within, stop).await;
        }
        let deadline = Instant::now() + within;
        let started = self.again(self.starter(), deadline, stop, || self.start_once(deadline, &lines, stop)).await;
        match started {
            // It failed, and may have done it all the same.
            Err(NodeError::Failed { .. }) if self.spec.start_command.is_some() && self.is_seen_running() => Ok(()),
            other => other,
        }
    }

    async fn start_once(
        &self,
        deadline: Instant,
        lines: &Lines,
        stop: &CancellationToken,
    ) -> Result<Finished, NodeError> {
        let log = self.log_directory.join(format!("node-{}.log", self.spec.id));
        let began = std::fs::metadata(&log).map_or(0, |m| m.len());
        let mut options = OpenOptions::new();
        if began > MAX_LOG_BYTES {
            options.truncate(true).write(true);
        } else {
            options.append(true);
        }
        let file = options.create(true).mode(0o600).open(&log).map_err(NodeError::file(&log))?;
        let left = deadline.saturating_duration_since(Instant::now());
        let seconds = left.as_secs().max(1).to_string();
        let mut child = self.child("start", left, &self.spec.start_command, &["start", "-w", "-t", &seconds])?;
        child.output = Output::File(file);
        let finished = process::run(child, lines.clone(), |_| (), stop).await?;
        let words = tail(&log, if began > MAX_LOG_BYTES { 0 } else { began });
        words.lines().for_each(|line| lines(line));
        Ok(Finished { words, ..finished })
    }

    /// Stops it, fast. Fine when it does not run.
    pub async fn stop(&self, lines: Lines, stop: &CancellationToken) -> Result<(), NodeError> {
        if let Site::There(remote) = &self.site {
            let halted = remote.halt(false, Instant::now() + STOP_LIMIT, stop).await?;
            return match halted.stopped {
                true => Ok(()),
                false => Err(NodeError::Stopped(format!("after {STOP_LIMIT:?} the stop"))),
            };
        }
        if self.spec.stop_command.is_none() && !self.is_seen_running() {
            return Ok(());
        }
        let deadline = Instant::now() + STOP_LIMIT;
        self.again("the stop command", deadline, stop, || async {
            let left = deadline.saturating_duration_since(Instant::now());
            let child = self.child("stop", left, &self.spec.stop_command, &["stop", "-m", "fast", "-w", "-t", "30"])?;
            bounded(child, lines.clone(), left, stop).await
        })
        .await
    }

    /// What its own status command says, or elsewhere a look: `Some(true)` runs, `None` when nobody can tell.
    pub async fn status(&self, stop: &CancellationToken) -> Option<bool> {
        if let Site::There(remote) = &self.site {
            return remote.status(stop).await.ok().flatten();
        }
        self.spec.status_command.as_ref()?;
        let child = self.child("status", STATUS_LIMIT, &self.spec.status_command, &[]).ok()?;
        match bounded(child, Arc::new(|_: &str| ()), STATUS_LIMIT, stop).await.ok()?.code {
            Some(0) => Some(true),
            Some(3) => Some(false),
            _ => None,
        }
    }

    /// What starts it, for people.
    pub fn starter(&self) -> &'static str {
        if self.spec.start_command.is_some() { "the node's start_command" } else { "pg_ctl start" }
    }

    fn is_seen_running(&self) -> bool {
        self.site.here().is_some_and(|d| running_pid(d).is_some())
    }

    /// Runs it until it ends otherwise than with "try again", or until the deadline.
    async fn again<F>(
        &self,
        program: &str,
        deadline: Instant,
        stop: &CancellationToken,
        once: impl Fn() -> F,
    ) -> Result<(), NodeError>
    where
        F: Future<Output = Result<Finished, NodeError>>,
    {
        for tried in 0.. {
            let finished = once().await?;
            let words = finished.words.clone();
            match Class::of(finished.code) {
                Class::Done => return Ok(()),
                Class::Refused => return Err(NodeError::Refused { program: program.to_owned(), words }),
                Class::Unknown => return finished.success(program).map(drop),
                Class::Again => match pause_after(tried).filter(|pause| Instant::now() + *pause < deadline) {
                    Some(pause) => drop(stop.run_until_cancelled(tokio::time::sleep(pause)).await),
                    None => return Err(NodeError::Busy { program: program.to_owned(), words }),
                },
            }
        }
        Err(NodeError::Stopped(program.to_owned()))
    }

    fn child(&self, verb: &str, within: Duration, own: &Option<String>, pg_ctl: &[&str]) -> Result<Child, NodeError> {
        let here = self.site.here();
        let owner = here.map(|d| Owner::of(d)).transpose()?;
        if let Some(command) = own {
            let mut child = self.marked(Child::new(["sh", "-c", command], owner));
            let told = self.order.told(&self.spec, verb, within);
            child.environment.extend(told.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
            return Ok(child);
        }
        let (Some(directory), Some(programs)) = (here, &self.programs) else {
            return Err(NodeError::NoPrograms(format!(
                "node {} is on another machine and has no remote_command, or start_command and stop_command",
                self.spec.id
            )));
        };
        let program = programs.path("pg_ctl");
        let mut command = vec![program.into_os_string(), "-D".into(), directory.clone().into_os_string()];
        command.extend(pg_ctl.iter().map(Into::into));
        Ok(self.marked(Child::new(command, owner)))
    }

    fn marked(&self, child: Child) -> Child {
        match &self.order.mark {
            Some((name, value)) => child.env(name, value),
            None => child,
        }
    }
}

/// A command that hangs is ended with its group at its limit and counts as stopped.
async fn bounded(child: Child, lines: Lines, limit: Duration, stop: &CancellationToken) -> Result<Finished, NodeError> {
    let inner = stop.child_token();
    let work = process::run(child, lines, |_| (), &inner);
    tokio::pin!(work);
    match tokio::time::timeout(limit, &mut work).await {
        Ok(finished) => finished,
        Err(_) => {
            inner.cancel();
            work.await
        }
    }
}

/// The end of a log since `from`, at most 8 KiB.
fn tail(path: &Path, from: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(8192))))?;
        let mut bytes = Vec::new();
        file.take(8192).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).trim_end().to_owned()
}

/// The process id in `postmaster.pid` when that process lives and is a PostgreSQL server.
pub fn running_pid(directory: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(directory.join("postmaster.pid")).ok()?;
    let pid: u32 = text.lines().next()?.trim().parse().ok()?;
    // After a crash the number may belong to anybody, or to a dead process that its parent has not asked after yet.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let is_server = matches!(field("Name:"), Some("postgres" | "postmaster" | "edb-postgres"));
    let is_dead = field("State:").is_some_and(|state| state.starts_with(['Z', 'X']));
    (is_server && !is_dead).then_some(pid)
}

/// Asks a server of this machine for a fast stop (SIGINT) and does not wait. Fine when it does not run.
pub fn signal_stop(directory: &Path) -> Result<(), NodeError> {
    let Some(pid) = running_pid(directory).and_then(|pid| i32::try_from(pid).ok()) else { return Ok(()) };
    match kill(Pid::from_raw(pid), Signal::SIGINT) {
        // It has ended in between.
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(NodeError::Failed {
            program: format!("the stop of process {pid}"),
            how: format!("was refused: {error}"),
            words: String::new(),
        }),
    }
}

/// Ends a server of this machine that does not obey: an immediate stop (SIGQUIT), or its kill. A frozen one is woken to hear it.
pub fn signal_immediate(directory: &Path, kill_it: bool) {
    let Some(pid) = running_pid(directory).and_then(|pid| i32::try_from(pid).ok()) else { return };
    let how = if kill_it { Signal::SIGKILL } else { Signal::SIGQUIT };
    for signal in [how, Signal::SIGCONT] {
        if let Err(error) = kill(Pid::from_raw(pid), signal) {
            tracing::debug!(event = "node.not_signalled", pid, %error);
        }
    }
}

/// Ends a process of a server of this machine (SIGTERM), if it still is one: its parent is the postmaster.
pub fn signal_child(directory: &Path, pid: u32) -> bool {
    let Some(postmaster) = running_pid(directory) else { return false };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|l| l.strip_prefix("PPid:")).and_then(|p| p.trim().parse::<u32>().ok());
    let Some(pid) = i32::try_from(pid).ok().filter(|_| parent == Some(postmaster)) else { return false };
    kill(Pid::from_raw(pid), Signal::SIGTERM).is_ok()
}

/// True when anybody accepts a connection at the node's address.
pub async fn answers(spec: &NodeSpec, timeout: Duration) -> bool {
    let connect = async {
        match spec.host.0.as_str() {
            host if host.is_empty() || host.starts_with('/') => {
                let directory = if host.is_empty() { "/var/run/postgresql" } else { host };
                UnixStream::connect(format!("{directory}/.s.PGSQL.{}", spec.port)).await.is_ok()
            }
            host => TcpStream::connect((host, spec.port)).await.is_ok(),
        }
    };
    tokio::time::timeout(timeout, connect).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The start by a command of its own, and how often that ran.
    async fn start(command: &str) -> (Result<(), NodeError>, usize) {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("count");
        let command = format!("echo x >> {0}; n=$(wc -l < {0}); {command}", count.display());
        let spec = NodeSpec { port: 1, start_command: Some(command), ..NodeSpec::sample(1) };
        let postmaster = Postmaster {
            spec: Arc::new(spec),
            site: Site::Elsewhere,
            programs: None,
            log_directory: dir.path().to_owned(),
            order: Order::of(7, None),
        };
        let lines: Lines = Arc::new(|_| ());
        let started = postmaster.start(Duration::from_secs(20), lines, &CancellationToken::new()).await;
        (started, std::fs::read_to_string(count).unwrap().lines().count())
    }

    #[tokio::test]
    async fn a_nodes_own_command_is_tried_again_or_believed_as_it_says() {
        assert_eq!(start("[ $n -ge 3 ] || exit 10").await, (Ok(()), 3));
        let (refused, times) = start("echo no $PGMEND_OPERATION $PGMEND_VERB; exit 20").await;
        assert_eq!(refused.unwrap_err().to_string(), "the node's start_command refused: no 7 start");
        assert_eq!(times, 1);
        let (failed, times) = start("exit 30").await;
        assert!(matches!(failed, Err(NodeError::Failed { .. })) && times == 1);
    }
}
