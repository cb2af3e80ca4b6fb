//! Passwords judged by PAM, each in a process of its own: this program again, by the order `pam-judge`.
//!
//! PAM's modules are foreign code. They block for as long as they please, start programs, change how signals are handled
//! and may crash; in another process all that ends with it, and a deadline is a kill. `judge` is that other process.
//! The question is fields that end with NUL, on its standard input, which stays open for as long as somebody wants the answer;
//! the answer is one line.

#[cfg(feature = "pam")]
mod judge;

use crate::base::Secret;
#[cfg(feature = "pam")]
pub use judge::answer;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io;
use std::net::IpAddr;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

/// Logins that ask at once, each a process of some megabytes; further ones wait, within their time. Many, for PAM has those
/// who are wrong wait for some seconds.
static AT_ONCE: Semaphore = Semaphore::const_new(32);
/// Bytes of an answer.
const MAX_ANSWER: u64 = 4096;
/// The answer that lets somebody in; any other is why not.
const GRANTED: &str = "granted";
/// What the judging process is called by. A file that was replaced meanwhile is still itself here.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// What went wrong; for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum JudgeError {
    /// No process, or no conversation with it.
    #[error("PAM could not be asked: {0}")]
    Io(#[from] io::Error),
    /// It ended without an answer: a module took it down.
    #[error("PAM's process ended without an answer ({0})")]
    Died(std::process::ExitStatus),
    /// The login was given up.
    #[error("the question to PAM was not finished")]
    Dropped,
}

/// Whose password it is.
pub(super) struct Question<'a> {
    /// PAM's service.
    pub service: &'a str,
    /// Role.
    pub user: &'a str,
    /// Where the client is; `None`: on a Unix socket.
    pub host: Option<IpAddr>,
    /// Modules are to hear the host's name.
    pub use_hostname: bool,
    /// What the client has sent.
    pub password: &'a Secret,
}

impl Question<'_> {
    /// `None` when a field has a NUL, which no password of PAM's has.
    fn encoded(&self) -> Option<Zeroizing<Vec<u8>>> {
        let host = self.host.map(|host| host.to_string()).unwrap_or_default();
        let names = if self.use_hostname { "1" } else { "0" };
        let fields = [self.service, self.user, &host, names, self.password.expose()];
        if fields.iter().any(|field| field.contains('\0')) {
            return None;
        }
        // Room for all of it: a vector that grows leaves copies behind.
        let length = fields.iter().map(|field| field.len() + 1).sum();
        let mut bytes = Zeroizing::new(Vec::with_capacity(length));
        for field in fields {
            bytes.extend_from_slice(field.as_bytes());
            bytes.push(0);
        }
        Some(bytes)
    }
}

/// Whether the password is the user's, and the account good. Whoever drops this ends the process and what its modules have
/// started.
pub(super) async fn judge(question: Question<'_>, aside: Option<&Handle>) -> Result<bool, JudgeError> {
    let Some(bytes) = question.encoded() else { return Ok(false) };
    let _turn = AT_ONCE.acquire().await.map_err(|_| JudgeError::Dropped)?;
    let task = match aside {
        Some(aside) => aside.spawn(ask(bytes)),
        None => tokio::spawn(ask(bytes)),
    };
    let answer = AbortOnDropHandle::new(task).await.map_err(|_| JudgeError::Dropped)??;
    if answer == GRANTED {
        return Ok(true);
    }
    tracing::info!(event = "pam.refused", user = question.user, service = question.service, why = answer);
    Ok(false)
}

async fn ask(question: Zeroizing<Vec<u8>>) -> Result<String, JudgeError> {
    let mut command = Command::new(THIS_PROGRAM);
    command.arg0("pgmend").arg("pam-judge").current_dir("/").process_group(0).kill_on_drop(true);
    // What modules print is theirs; they have the system's log.
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut group = Group::of(child.id());
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(JudgeError::Dropped);
    };
    // Whoever died before he read is found by his missing answer.
    let _ = input.write_all(&question).await;
    drop(question);
    let mut line = String::new();
    BufReader::new(output.take(MAX_ANSWER)).read_line(&mut line).await?;
    let status = child.wait().await?;
    group.has_ended();
    // Only now: its end would have told the process that nobody waits for it.
    drop(input);
    match line.strip_suffix('\n') {
        // Both, so that a module that ends the process grants nothing.
        Some(answer) if status.success() => Ok(answer.to_owned()),
        _ => Err(JudgeError::Died(status)),
    }
}

/// The process and what it has started; killed when dropped before its end.
struct Group(Option<Pid>);

impl Group {
    fn of(id: Option<u32>) -> Group {
        Group(id.and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }
    /// From now on the number may be another's.
    fn has_ended(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // It may have ended by itself just now.
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_five_fields_and_none_can_make_two() {
        let password = Secret::new("p w");
        let host = Some([10, 0, 0, 1].into());
        let question = Question { service: "s", user: "u", host, use_hostname: true, password: &password };
        assert_eq!(question.encoded().unwrap().as_slice(), b"s\0u\x0010.0.0.1\x001\0p w\0");
        assert!(Question { password: &Secret::new("a\0b"), ..question }.encoded().is_none());
    }
}
