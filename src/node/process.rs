//! One child process, bounded: its own group, its lines passed on, ended by TERM and then KILL.

use super::{NodeError, Owner};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Between TERM and KILL.
const TERM_GRACE: Duration = Duration::from_secs(5);
/// A grandchild may hold the pipe open after the child's end (a started server does); its words are not waited for.
const PIPE_GRACE: Duration = Duration::from_millis(300);
/// A line longer than this (bytes) is passed on in pieces.
const MAX_LINE_BYTES: usize = 1024;
/// Lines kept for the error message.
const WORDS_LINES: usize = 20;
/// Lines between the pipes and whoever takes them.
const QUEUE_LINES: usize = 64;

/// Who gets the lines.
pub type Lines = Arc<dyn Fn(&str) + Send + Sync>;

/// Where the child's output goes.
#[derive(Debug)]
pub enum Output {
    /// Line by line to whoever asked.
    Lines,
    /// To a file that outlives the child: a server that it starts keeps it open.
    File(File),
}

/// What to run.
#[derive(Debug)]
pub struct Child {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// As whom; `None`: as the daemon.
    pub owner: Option<Owner>,
    /// Added to the environment.
    pub environment: Vec<(String, OsString)>,
    /// Where it runs.
    pub directory: PathBuf,
    /// Where its output goes.
    pub output: Output,
    /// What it reads; its standard input then stays open until it has ended. `None`: it has none.
    pub input: Option<String>,
}

impl Child {
    /// A child in `/` whose lines are passed on.
    pub fn new<I: Into<OsString>>(command: impl IntoIterator<Item = I>, owner: Option<Owner>) -> Child {
        let command = command.into_iter().map(Into::into).collect();
        Child {
            command,
            owner,
            environment: Vec::new(),
            directory: PathBuf::from("/"),
            output: Output::Lines,
            input: None,
        }
    }
    /// Adds a variable.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Child {
        self.environment.push((name.to_owned(), value.into()));
        self
    }
    fn name(&self) -> String {
        self.command.first().map(|c| c.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Signal.
    pub signal: Option<i32>,
    /// Its last lines.
    pub words: String,
}

impl Finished {
    /// `exited with status 1` or `was killed by signal 9`.
    pub fn how(&self) -> String {
        match (self.code, self.signal) {
            (Some(code), _) => format!("exited with status {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended".to_owned(),
        }
    }
    /// An error unless it exited with 0.
    pub fn success(self, program: &str) -> Result<Finished, NodeError> {
        if self.code == Some(0) {
            return Ok(self);
        }
        Err(NodeError::Failed { program: program.to_owned(), how: self.how(), words: self.words })
    }
}

/// Runs it to its end. `started` hears the process group before anything is awaited. When `stop` is cancelled the whole
/// group is ended and `Stopped` returned. Not cancel safe: a dropped future leaves the direct child killed, not its group.
pub async fn run(
    child: Child,
    lines: Lines,
    started: impl FnOnce(i32) + Send,
    stop: &CancellationToken,
) -> Result<Finished, NodeError> {
    let name = child.name();
    let input = child.input.clone();
    let mut process = spawn(child, &name)?;
    let feeder = input.zip(process.stdin.take()).map(|(text, pipe)| tokio::spawn(feed(pipe, text)));
    let _feeder = feeder.map(AbortOnDrop);
    let group = process.id().and_then(|id| i32::try_from(id).ok()).unwrap_or_default();
    started(group);
    let (send, mut receive) = mpsc::channel::<String>(QUEUE_LINES);
    let readers = [
        process.stdout.take().map(|pipe| tokio::spawn(read_lines(pipe, send.clone()))),
        process.stderr.take().map(|pipe| tokio::spawn(read_lines(pipe, send.clone()))),
    ];
    drop(send);
    let mut words = VecDeque::new();
    let mut open = true;
    let status = loop {
        tokio::select! {
            status = process.wait() => break status,
            line = receive.recv(), if open => match line {
                Some(line) => keep(&mut words, line, &lines),
                None => open = false,
            },
            () = stop.cancelled() => {
                end_group(group, &mut process).await;
                readers.iter().flatten().for_each(tokio::task::JoinHandle::abort);
                return Err(NodeError::Stopped(name));
            }
        }
    };
    while let Ok(Some(line)) = tokio::time::timeout(PIPE_GRACE, receive.recv()).await {
        keep(&mut words, line, &lines);
    }
    readers.iter().flatten().for_each(tokio::task::JoinHandle::abort);
    let status: ExitStatus = status.map_err(|e| NodeError::Spawn { program: name, why: e.to_string() })?;
    let words = words.into_iter().collect::<Vec<_>>().join("\n");
    Ok(Finished { code: status.code(), signal: status.signal(), words })
}

/// Its standard input stays open while it runs: what it starts elsewhere ends when that is closed.
async fn feed(mut pipe: tokio::process::ChildStdin, text: String) {
    if let Err(error) = pipe.write_all(text.as_bytes()).await {
        // It has ended, and says why itself.
        tracing::debug!(event = "process.input_not_taken", %error);
    }
    drop(pipe.flush().await);
    std::future::pending::<()>().await;
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn spawn(child: Child, name: &str) -> Result<tokio::process::Child, NodeError> {
    let bad = |why: String| NodeError::Spawn { program: name.to_owned(), why };
    let stdin = if child.input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut words = child.command.into_iter();
    let mut command = tokio::process::Command::new(words.next().ok_or_else(|| bad("no command".into()))?);
    command.args(words).current_dir(&child.directory).stdin(stdin).process_group(0).kill_on_drop(true);
    match child.output {
        Output::Lines => command.stdout(Stdio::piped()).stderr(Stdio::piped()),
        Output::File(file) => {
            let twin = file.try_clone().map_err(|e| bad(e.to_string()))?;
            command.stdout(file).stderr(twin)
        }
    };
    if let Some(owner) = &child.owner {
        // The standard library drops the supplementary groups too when it changes the user.
        if nix::unistd::geteuid().is_root() {
            command.uid(owner.uid).gid(owner.gid);
        }
        command.env("HOME", &owner.home).env("USER", &owner.name).env("LOGNAME", &owner.name);
    }
    command.envs(child.environment);
    command.spawn().map_err(|e| bad(e.to_string()))
}

fn keep(words: &mut VecDeque<String>, line: String, lines: &Lines) {
    lines(&line);
    if words.len() >= WORDS_LINES {
        words.pop_front();
    }
    words.push_back(line);
}

async fn end_group(group: i32, process: &mut tokio::process::Child) {
    signal_group(group, Signal::SIGTERM);
    drop(tokio::time::timeout(TERM_GRACE, process.wait()).await);
    // Whoever is left in the group ignored TERM or came late.
    signal_group(group, Signal::SIGKILL);
    drop(tokio::time::timeout(TERM_GRACE, process.wait()).await);
}

/// Passes on lines; carriage returns (progress displays) end a line too.
async fn read_lines(mut pipe: impl AsyncRead + Unpin, send: mpsc::Sender<String>) {
    let mut line = Vec::new();
    let mut buffer = [0_u8; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        for byte in buffer.iter().take(count) {
            let ends = matches!(byte, b'\n' | b'\r');
            if !ends {
                line.push(*byte);
            }
            if (ends && !line.is_empty()) || line.len() >= MAX_LINE_BYTES {
                if send.send(String::from_utf8_lossy(&line).into_owned()).await.is_err() {
                    return;
                }
                line.clear();
            }
        }
    }
    if !line.is_empty() {
        drop(send.send(String::from_utf8_lossy(&line).into_owned()).await);
    }
}

fn signal_group(group: i32, signal: Signal) {
    // Group 0 and 1 would mean our own and init's.
    if group > 1
        && let Err(error) = killpg(Pid::from_raw(group), signal)
    {
        tracing::debug!(event = "process.signal_failed", group, %error);
    }
}

/// True while any process of the group lives.
pub fn group_is_alive(group: i32) -> bool {
    group > 1 && !matches!(killpg(Pid::from_raw(group), None), Err(nix::errno::Errno::ESRCH))
}

/// Ends a group that an earlier daemon left: TERM, then KILL. True when it is gone.
pub async fn kill_group(group: i32) -> bool {
    for (signal, tries) in [(Signal::SIGTERM, 25), (Signal::SIGKILL, 25)] {
        signal_group(group, signal);
        for _ in 0..tries {
            if !group_is_alive(group) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    !group_is_alive(group)
}

/// The groups of processes whose environment holds `variable=value`: children of a crashed daemon and what they started,
/// also when they left their group. Servers (`postgres`) are left out.
pub fn marked_processes(variable: &str, value: &str) -> Vec<i32> {
    let wanted = format!("{variable}={value}");
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut groups: Vec<i32> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let environment = std::fs::read(entry.path().join("environ")).ok()?;
            let marked = environment.split(|b| *b == 0).any(|v| v == wanted.as_bytes());
            let command = std::fs::read_to_string(entry.path().join("comm")).ok()?;
            if !marked || matches!(command.trim(), "postgres" | "postmaster") {
                return None;
            }
            nix::unistd::getpgid(Some(Pid::from_raw(pid))).ok().map(Pid::as_raw)
        })
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn sink() -> (Lines, Arc<Mutex<Vec<String>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let to = seen.clone();
        (Arc::new(move |line: &str| to.lock().unwrap().push(line.to_owned())), seen)
    }

    #[tokio::test]
    async fn lines_and_status_come_back() {
        let (lines, seen) = sink();
        let child = Child::new(["sh", "-c", "echo one; echo two >&2; exit 3"], None);
        let finished = run(child, lines, |_| (), &CancellationToken::new()).await.unwrap();
        assert_eq!(finished.code, Some(3));
        let mut seen = seen.lock().unwrap().clone();
        seen.sort();
        assert_eq!(seen, ["one", "two"]);
        assert_eq!(finished.success("script").unwrap_err().to_string(), "script exited with status 3");
    }

    #[tokio::test]
    async fn stop_ends_the_whole_group() {
        let stop = CancellationToken::new();
        let group = Arc::new(Mutex::new(0));
        let (told, canceller) = (group.clone(), stop.clone());
        let child = Child::new(["sh", "-c", "sleep 100 & sleep 100"], None);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            canceller.cancel();
        });
        let ended = run(child, sink().0, move |g| *told.lock().unwrap() = g, &stop).await;
        assert_eq!(ended, Err(NodeError::Stopped("sh".into())));
        let group = *group.lock().unwrap();
        for _ in 0..50 {
            if !group_is_alive(group) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("group {group} lives");
    }
}
