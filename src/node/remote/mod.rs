//! A node on another machine, reached by its `remote_command`: a command that takes a shell there (ssh, or whatever leads there).
//!
//! The other machine needs a POSIX shell and PostgreSQL's programs, nothing of pgmend. Everything goes over standard input, so
//! that no path and no password is ever among the arguments of a program, here or there. Read `script` (how it is written so
//! that nothing in it is taken for shell), `session` (a shell that stands ready), `verbs.sh` (what is asked), `verbs` (the asking).

mod copy;
mod log;
mod script;
mod session;
mod survey;
mod verbs;

pub use survey::Survey;
pub use verbs::Halted;

use super::outcome::{Class, pause_after};
use super::{Child, NodeError, Order};
use crate::cluster::NodeSpec;
use session::{Answer, Broken, Session};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Bound on opening the way and having a shell answer.
const OPEN: Duration = Duration::from_secs(15);
/// What runs at the other end, in the place of `{}`.
const SHELL: &str = "sh -s";

/// The way to a node's machine; clones share its standing shell.
#[derive(Clone, Debug)]
pub struct Remote(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    spec: Arc<NodeSpec>,
    directory: String,
    /// The command with its place for the shell filled in.
    door: String,
    order: Order,
    session: Mutex<Option<Session>>,
}

impl Remote {
    /// `None` when the node has no `remote_command`, or no `data_directory`.
    pub fn of(spec: &Arc<NodeSpec>, order: Order) -> Option<Remote> {
        let door = door(spec.maintain.remote_command.as_deref()?);
        let directory = spec.data_directory.as_ref()?.to_str()?.to_owned();
        Some(Remote(Arc::new(Inner { spec: spec.clone(), directory, door, order, session: Mutex::new(None) })))
    }

    /// The data directory there.
    pub fn directory(&self) -> &Path {
        Path::new(&self.0.directory)
    }

    /// Opens the way, so that the next question costs one journey.
    pub async fn open(&self) -> Result<(), NodeError> {
        let mut slot = self.0.session.lock().await;
        if slot.is_none() {
            *slot = Some(self.session(OPEN).await?);
        }
        Ok(())
    }

    async fn session(&self, within: Duration) -> Result<Session, Broken> {
        let opening = Session::open(&self.0.door, self.0.order.mark.as_ref());
        match tokio::time::timeout(within.min(OPEN), opening).await {
            Ok(opened) => opened,
            Err(_) => Err(Broken(format!("no shell answered within {:?}", within.min(OPEN)))),
        }
    }

    /// Asks until the answer is another one than "try again", or the time is over.
    async fn ask(&self, what: &Question<'_>, stop: &CancellationToken) -> Result<String, NodeError> {
        let deadline = Instant::now() + what.within;
        for tried in 0.. {
            let left = deadline.saturating_duration_since(Instant::now());
            let script = self.script(what, left);
            let answer = tokio::select! {
                answer = self.once(&script, left) => answer?,
                () = stop.cancelled() => return Err(NodeError::Stopped(what.verb.to_owned())),
            };
            let (program, words) = (what.verb.to_owned(), answer.text.clone());
            match Class::of(Some(answer.code)) {
                Class::Done => return Ok(answer.text),
                Class::Refused => return Err(NodeError::Refused { program, words }),
                Class::Unknown => {
                    let how = format!("exited with status {}", answer.code);
                    return Err(NodeError::Unknown { program, how, words });
                }
                Class::Again => match pause_after(tried).filter(|pause| Instant::now() + *pause < deadline) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(NodeError::Busy { program, words }),
                },
            }
        }
        Err(NodeError::Stopped(what.verb.to_owned()))
    }

    /// One journey. A shell that stood ready and has gone meanwhile is replaced once: every verb may be repeated.
    async fn once(&self, script: &str, within: Duration) -> Result<Answer, Broken> {
        let mut slot = self.0.session.lock().await;
        let work = async {
            if let Some(mut standing) = slot.take()
                && let Ok(answer) = standing.ask(script).await
            {
                return Ok((standing, answer));
            }
            let mut session = self.session(within).await?;
            let answer = session.ask(script).await?;
            Ok((session, answer))
        };
        let (session, answer) = match tokio::time::timeout(within, work).await {
            Ok(done) => done?,
            // What was begun has been ended with its session.
            Err(_) => return Err(Broken(format!("did not end within {within:?} and was ended"))),
        };
        *slot = Some(session);
        Ok(answer)
    }

    fn script(&self, what: &Question<'_>, left: Duration) -> String {
        let own = what.own.unwrap_or_default();
        let environment = if own.is_empty() { String::new() } else { self.environment(what.verb, left) };
        format!("{environment}{}{}", self.variables(own, what.variables), what.call)
    }

    fn variables(&self, own: &str, more: &[(&str, &str)]) -> String {
        let bin = self.0.spec.maintain.bin_directory.as_deref().map(Path::to_string_lossy).unwrap_or_default();
        let always = [("D", self.0.directory.as_str()), ("B", &bin), ("C", own), ("M", ""), ("W", "")];
        script::variables(always.into_iter().chain(more.iter().copied()))
    }

    /// What the node's own commands are told.
    fn environment(&self, verb: &str, left: Duration) -> String {
        let told = self.0.order.told(&self.0.spec, verb, left);
        script::exported(told.iter().map(|(name, value)| (*name, value.as_str())))
    }

    /// A work that may take long, as a child of ours: when it is ended here, it ends there.
    pub(super) fn long(&self, call: &str, variables: &[(&str, &str)], secrets: &[(&str, &str)]) -> Child {
        let variables = [("D", self.0.directory.as_str()), ("C", "")].into_iter().chain(variables.iter().copied());
        let bin = self.0.spec.maintain.bin_directory.as_deref().map(Path::to_string_lossy).unwrap_or_default();
        // The work is a shell of its own, which gets its variables by the environment.
        let all = script::exported(variables.chain([("B", bin.as_ref())]).chain(secrets.iter().copied()));
        let mut child = Child::new(["sh", "-c", &self.0.door], None);
        child.input = Some(script::long(&all, call));
        child
    }

    /// The operator's own command, at the node's machine.
    pub fn own_work(&self, verb: &'static str, command: &str, within: Duration, more: &[(&str, &str)]) -> Child {
        let told = self.0.order.told(&self.0.spec, verb, within);
        let told: Vec<(&str, &str)> = told.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let all: Vec<(&str, &str)> = told.into_iter().chain(more.iter().copied()).collect();
        self.long("own \"$C\"", &[("C", command), ("M", ""), ("W", "")], &all)
    }
}

/// What is asked.
struct Question<'a> {
    verb: &'static str,
    /// Functions of `verbs.sh`, arguments quoted.
    call: String,
    /// The node's own command for it.
    own: Option<&'a str>,
    variables: &'a [(&'a str, &'a str)],
    within: Duration,
}

fn door(template: &str) -> String {
    match template.contains("{}") {
        true => template.replacen("{}", SHELL, 1),
        false => format!("{template} {SHELL}"),
    }
}

/// Paths that a script tells.
fn path_of(text: &str, key: &str) -> Option<PathBuf> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(PathBuf::from)
}

/// A value that a script tells.
fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::door;

    #[test]
    fn the_shell_goes_where_the_template_wants_it() {
        assert_eq!(door("ssh postgres@db2"), "ssh postgres@db2 sh -s");
        assert_eq!(door("ssh root@db2 sudo -u postgres {}"), "ssh root@db2 sudo -u postgres sh -s");
    }
}
