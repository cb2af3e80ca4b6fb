//! The questions and orders for a server elsewhere, one function each. Every one may be repeated.

use super::super::{ControlData, DiskRoom, NodeError};
use super::script::command;
use super::{Question, Remote, Survey, path_of, value_of};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Bound on a question, the way to the machine included.
const SHORT: Duration = Duration::from_secs(20);
/// What a verb may take beyond the wait that it was told: the way, and telling what it found.
const BEYOND: Duration = Duration::from_secs(3);
/// After an end of which nobody knows what it did, it is looked again, after these pauses.
const AGAIN_MS: [u64; 5] = [50, 100, 200, 500, 1000];

/// How a stop ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Halted {
    /// It has stopped; else it still runs at the end of the time.
    pub stopped: bool,
    /// What it left behind, when that was read on the same journey.
    pub left: Option<ControlData>,
}

impl Remote {
    async fn short(&self, verb: &'static str, call: String, stop: &CancellationToken) -> Result<String, NodeError> {
        self.ask(&Question { verb, call, own: None, variables: &[], within: SHORT }, stop).await
    }

    /// As `short`, and again after an end of which nobody knows what it did, until the deadline. For orders that may be
    /// repeated, where somebody waits for the outcome.
    async fn patient(&self, question: &Question<'_>, until: Instant) -> Result<String, NodeError> {
        let never = CancellationToken::new();
        let mut pauses = AGAIN_MS.iter().copied().map(Duration::from_millis);
        loop {
            let within = question.within.min(until.saturating_duration_since(Instant::now()));
            let asked = self.ask(&Question { within, call: question.call.clone(), ..*question }, &never).await;
            let Err(error) = asked else { return asked };
            let pause = pauses.next().filter(|pause| Instant::now() + *pause < until);
            match pause.filter(|_| matches!(error, NodeError::Unknown { .. })) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            }
        }
    }

    /// Everything about the directory. `others`: directories of other nodes on that machine. `major`: of the programs, where the
    /// directory cannot tell.
    pub async fn survey(
        &self,
        others: &[PathBuf],
        major: Option<u32>,
        stop: &CancellationToken,
    ) -> Result<Survey, NodeError> {
        let words = std::iter::once("survey".into()).chain(others.iter().map(|o| o.to_string_lossy()));
        let major = major.map(|m| m.to_string()).unwrap_or_default();
        let variables = [("M", major.as_str())];
        let question =
            Question { verb: "survey", call: command(words), own: None, variables: &variables, within: SHORT };
        Ok(Survey::parse(&self.ask(&question, stop).await?))
    }

    /// Room where the directory is or will be; `all`: also what it takes there itself.
    pub async fn disk(&self, all: bool, stop: &CancellationToken) -> Result<DiskRoom, NodeError> {
        let call = command(["disk", if all { "all" } else { "free" }]);
        Ok(Survey::parse(&self.short("disk", call, stop).await?).disk)
    }

    /// What `pg_controldata` says.
    pub async fn control_data(&self, stop: &CancellationToken) -> Result<ControlData, NodeError> {
        let text = self.short("control", "control".to_owned(), stop).await?;
        ControlData::parse(&text).ok_or_else(|| NodeError::Failed {
            program: "pg_controldata".into(),
            how: "printed something unexpected".into(),
            words: text,
        })
    }

    /// Writes `standby.signal`, durably.
    pub async fn arm(&self) -> Result<(), NodeError> {
        self.short("arm", "arm".to_owned(), &CancellationToken::new()).await.map(drop)
    }

    /// Takes that back; tried until the deadline, for a server that shall serve again depends on it.
    pub async fn disarm(&self, until: Instant) -> Result<(), NodeError> {
        let question = Question { verb: "disarm", call: "disarm".to_owned(), own: None, variables: &[], within: SHORT };
        self.patient(&question, until).await.map(drop)
    }

    /// Stops it, fast, by its own command where it has one; with `arm` it is armed first. One journey, and more only while
    /// nobody knows what became of the last: then the first thing that happens is a look whether it runs.
    pub async fn halt(&self, arm: bool, until: Instant, stop: &CancellationToken) -> Result<Halted, NodeError> {
        let left = until.saturating_duration_since(Instant::now());
        let seconds = left.as_secs().max(1).to_string();
        let call = command(["halt", seconds.as_str(), "INT", if arm { "arm" } else { "as-it-is" }]);
        let own = self.0.spec.stop_command.as_deref();
        let question = Question { verb: "stop", call, own, variables: &[], within: left + BEYOND };
        let text = tokio::select! {
            text = self.patient(&question, until) => text?,
            () = stop.cancelled() => return Err(NodeError::Stopped("the stop".to_owned())),
        };
        Ok(Halted { stopped: value_of(&text, "stopped") == Some("yes"), left: ControlData::parse(&text) })
    }

    /// Waits until it has stopped by itself; false at the deadline.
    pub async fn gone(&self, until: Instant) -> Result<bool, NodeError> {
        let left = until.saturating_duration_since(Instant::now());
        let call = format!("gone {}", left.as_secs().max(1));
        let question = Question { verb: "look", call, own: None, variables: &[], within: left + BEYOND };
        Ok(value_of(&self.patient(&question, until).await?, "stopped") == Some("yes"))
    }

    /// Starts it, if it does not run, by its own command where it has one.
    pub async fn start(&self, within: Duration, stop: &CancellationToken) -> Result<(), NodeError> {
        let call = format!("start {}", within.as_secs().max(1));
        let own = self.0.spec.start_command.as_deref();
        let question = Question { verb: "start", call, own, variables: &[], within: within + BEYOND };
        let started = self.ask(&question, stop).await;
        match started {
            // Looked again: a command may fail and a connection break, and the server runs all the same.
            Err(NodeError::Unknown { program, how, words }) => match self.postmaster(stop).await {
                Ok(true) => Ok(()),
                Ok(false) | Err(_) => Err(NodeError::Unknown { program, how, words }),
            },
            other => other.map(drop),
        }
    }

    /// Whether its postmaster lives.
    pub async fn postmaster(&self, stop: &CancellationToken) -> Result<bool, NodeError> {
        Ok(self.runs_by(None, stop).await?.unwrap_or(true))
    }

    /// What its own status command says, or its postmaster; `None`: the command cannot tell.
    pub async fn status(&self, stop: &CancellationToken) -> Result<Option<bool>, NodeError> {
        self.runs_by(self.0.spec.status_command.as_deref(), stop).await
    }

    async fn runs_by(&self, own: Option<&str>, stop: &CancellationToken) -> Result<Option<bool>, NodeError> {
        let question = Question { verb: "status", call: "runs".to_owned(), own, variables: &[], within: SHORT };
        let text = self.ask(&question, stop).await?;
        Ok(match value_of(&text, "runs") {
            Some("yes") => Some(true),
            Some("no") => Some(false),
            Some(_) | None => None,
        })
    }

    /// Ends one that does not obey: an immediate stop, or its kill. True when it is gone.
    pub async fn immediate(&self, kill: bool, within: Duration) -> Result<bool, NodeError> {
        let call = format!("immediate {} {}", if kill { "KILL" } else { "QUIT" }, within.as_secs().max(1));
        let question = Question { verb: "fence", call, own: None, variables: &[], within: within + BEYOND };
        let text = self.ask(&question, &CancellationToken::new()).await?;
        Ok(value_of(&text, "stopped") == Some("yes"))
    }

    /// Ends children of its postmaster; those that were.
    pub async fn kick(&self, children: &[u32]) -> Result<Vec<u32>, NodeError> {
        let words = std::iter::once("kick".to_owned()).chain(children.iter().map(u32::to_string));
        let text = self.short("kick", command(words), &CancellationToken::new()).await?;
        Ok(text.lines().filter_map(|line| line.strip_prefix("kicked=")?.parse().ok()).collect())
    }

    /// Its `postgresql.auto.conf`; empty when there is none.
    pub async fn settings(&self) -> Result<String, NodeError> {
        let text = self.short("settings", "settings".to_owned(), &CancellationToken::new()).await?;
        Ok(if text.is_empty() { text } else { text + "\n" })
    }

    /// Makes it a standby with this `postgresql.auto.conf`.
    pub async fn configure(&self, text: &str) -> Result<(), NodeError> {
        let variables = [("T", text)];
        let question = Question {
            verb: "configure",
            call: "configure".to_owned(),
            own: None,
            variables: &variables,
            within: SHORT,
        };
        self.ask(&question, &CancellationToken::new()).await.map(drop)
    }

    /// One of the node's own commands, with the four kinds of ends.
    pub async fn own(
        &self,
        verb: &'static str,
        own: &str,
        within: Duration,
        stop: &CancellationToken,
    ) -> Result<String, NodeError> {
        let question = Question { verb, call: "own \"$C\"".to_owned(), own: Some(own), variables: &[], within };
        self.ask(&question, stop).await
    }

    /// Processes with files open in these places, as far as the user there may see them.
    pub async fn users(&self, places: &[PathBuf], stop: &CancellationToken) -> Result<Vec<String>, NodeError> {
        let words = std::iter::once("users".into()).chain(places.iter().map(|p| p.to_string_lossy()));
        let text = self.short("users", command(words), stop).await?;
        Ok(text.lines().filter_map(|line| line.strip_prefix("user=").map(str::to_owned)).collect())
    }

    /// What stands against a tablespace's place.
    pub async fn room(
        &self,
        place: &Path,
        source: &str,
        major: u32,
        stop: &CancellationToken,
    ) -> Result<Room, NodeError> {
        let major = major.to_string();
        let variables = [("M", major.as_str())];
        let call = command(["room", &place.to_string_lossy(), source]);
        let question = Question { verb: "room", call, own: None, variables: &variables, within: SHORT };
        let text = self.ask(&question, stop).await?;
        let same = path_of(&text, "real").is_some_and(|real| Some(real) == path_of(&text, "source"));
        Ok(Room { is_the_sources: same, foreign: value_of(&text, "foreign").map(str::to_owned) })
    }
}

/// A tablespace's place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// It is what the other path leads to on the same machine.
    pub is_the_sources: bool,
    /// An entry that is not of this major version.
    pub foreign: Option<String>,
}
