//! One standing shell behind a node's `remote_command`: opened before it is needed, so that a question costs one journey.

use super::super::NodeError;
use super::script::{VERBS, question};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// An answer longer than this (bytes) is refused: nothing that is asked has one.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// Lines of the command's own complaints that are kept, and their length (bytes).
const WORDS_LINES: usize = 20;
const MAX_LINE_BYTES: u64 = 1024;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub code: i32,
    pub text: String,
}

/// Why there is none. Whether what was asked was done, nobody knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken(pub String);

/// A shell that waits.
#[derive(Debug)]
pub(super) struct Session {
    child: Child,
    group: i32,
    input: ChildStdin,
    output: ChildStdout,
    token: String,
    said: Arc<Mutex<VecDeque<String>>>,
}

impl Session {
    /// Runs the command and waits until a shell answers at its other end. The caller bounds it.
    pub async fn open(door: &str, mark: Option<&(&'static str, OsString)>) -> Result<Session, Broken> {
        let mut command = Command::new("sh");
        command.args(["-c", door]).current_dir("/").process_group(0).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some((name, value)) = mark {
            command.env(name, value);
        }
        let mut child = command.spawn().map_err(|e| Broken(e.to_string()))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).unwrap_or_default();
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Broken("it has no pipes".to_owned()));
        };
        let said = Arc::default();
        if let Some(pipe) = child.stderr.take() {
            tokio::spawn(keep_words(pipe, Arc::clone(&said)));
        }
        let token = token().map_err(Broken)?;
        let mut session = Session { child, group, input, output, token, said };
        session.send(VERBS).await?;
        // What a login script printed comes before and is passed over.
        session.ask(":").await?;
        Ok(session)
    }

    /// Asks. After an error, or when the future is dropped, the session is of no use. The caller bounds it.
    pub async fn ask(&mut self, script: &str) -> Result<Answer, Broken> {
        let question = question(script, &self.token);
        self.send(&question).await?;
        let mut bytes = Vec::new();
        let mut piece = [0_u8; 16 * 1024];
        loop {
            let count = self.output.read(&mut piece).await.map_err(|e| Broken(e.to_string()))?;
            if count == 0 {
                return Err(self.ended().await);
            }
            bytes.extend(piece.iter().take(count));
            if let Some(answer) = finished(&bytes, &self.token) {
                return Ok(answer);
            }
            if bytes.len() > MAX_ANSWER_BYTES {
                return Err(Broken("its answer is too long".to_owned()));
            }
        }
    }

    async fn send(&mut self, text: &str) -> Result<(), Broken> {
        let sent = async {
            self.input.write_all(text.as_bytes()).await?;
            self.input.flush().await
        };
        match sent.await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.ended().await),
        }
    }

    /// How the command ended, with its last words.
    async fn ended(&mut self) -> Broken {
        let status = tokio::time::timeout(Duration::from_secs(1), self.child.wait()).await;
        // Its complaints come by another pipe.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let words = said.iter().map(String::as_str).collect::<Vec<_>>().join("; ");
        let how = match status {
            Ok(Ok(status)) => status.code().map_or("a signal".to_owned(), |code| format!("status {code}")),
            Ok(Err(_)) | Err(_) => "no status".to_owned(),
        };
        Broken(if words.is_empty() { format!("it ended with {how}") } else { format!("it ended with {how}: {words}") })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // One that was waited for has given its number back.
        if self.group > 1
            && self.child.id().is_some()
            && let Err(error) =
                nix::sys::signal::killpg(nix::unistd::Pid::from_raw(self.group), nix::sys::signal::Signal::SIGTERM)
        {
            tracing::trace!(event = "remote.session_gone", group = self.group, %error);
        }
    }
}

/// The answer, once its last line has come.
fn finished(bytes: &[u8], token: &str) -> Option<Answer> {
    let text = bytes.strip_suffix(b"\n")?;
    let at = text.iter().rposition(|b| *b == b'\n')?;
    let last = std::str::from_utf8(text.get(at + 1..)?).ok()?;
    let code = last.strip_prefix(token)?.strip_prefix(' ')?.parse().ok()?;
    let text = String::from_utf8_lossy(text.get(..at)?);
    Some(Answer { code, text: text.trim_end_matches('\n').to_owned() })
}

fn token() -> Result<String, String> {
    let mut bytes = [0_u8; 12];
    getrandom::fill(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes.iter().fold("pgmend-".to_owned(), |text, byte| format!("{text}{byte:02x}")))
}

async fn keep_words(pipe: tokio::process::ChildStderr, said: Arc<Mutex<VecDeque<String>>>) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    while (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await.is_ok_and(|count| count > 0) {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= WORDS_LINES {
            said.pop_front();
        }
        said.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
        line.clear();
    }
}

impl From<Broken> for NodeError {
    fn from(broken: Broken) -> NodeError {
        NodeError::Unknown { program: "remote_command".to_owned(), how: broken.0, words: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_last_line() {
        let read = |text: &str| finished(text.as_bytes(), "t");
        assert_eq!(read("one\ntwo\n\nt 0\n"), Some(Answer { code: 0, text: "one\ntwo".into() }));
        assert_eq!(read("\nt 20\n"), Some(Answer { code: 20, text: String::new() }));
        assert_eq!(read("one\n\nt 0"), None);
        assert_eq!(read("one\nt x\n"), None);
        assert_eq!(read("one\n"), None);
    }

    #[tokio::test]
    async fn a_shell_is_asked_again_and_again() {
        let mut session = Session::open("echo welcome; exec sh -s", None).await.unwrap();
        let answer = session.ask("echo \"it's $((1 + 1))\"; echo two >&2; exit 10").await.unwrap();
        assert_eq!(answer, Answer { code: 10, text: "it's 2\ntwo".into() });
        assert_eq!(session.ask("printf x").await.unwrap(), Answer { code: 0, text: "x".into() });
        let broken = session.ask("kill -s KILL $$").await.unwrap_err();
        assert!(broken.0.contains("ended"), "{broken:?}");
    }

    #[tokio::test]
    async fn who_cannot_be_reached_says_why() {
        let broken = Session::open("echo no route to host >&2; exit 255", None).await.unwrap_err();
        assert!(broken.0.contains("status 255: no route to host"), "{broken:?}");
    }
}
