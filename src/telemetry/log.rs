//! The log's form and its level, which can change while the daemon runs.

use std::io::IsTerminal;
use std::sync::OnceLock;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// The subscriber is one for the process, and so is the handle on its level.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// The log could not be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The level is not one.
    #[error(
        "log level \"{0}\" is not one of error, warn, info, debug, trace, or a list as \"info,pgmend::pool=debug\""
    )]
    Level(String),
    /// The process has a log already.
    #[error("the log is set up already")]
    Already,
    /// `set_level` before `init`.
    #[error("the log is not set up")]
    NotSetUp,
}

/// Logs to standard error from `level` up: compact lines, UTC time, colours only on a terminal.
pub fn init(level: &str) -> Result<(), LogError> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let lines = fmt::layer().compact().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr);
    // One line for each event, whatever its values hold: names come from clients, and must not forge lines.
    let fields = fmt::format::debug_fn(|to, field, value| match field.name() {
        "message" => write!(to, "{}", one_line(&format!("{value:?}"))),
        name => write!(to, "{name}={}", one_line(&format!("{value:?}"))),
    });
    let lines = lines.fmt_fields(fields.delimited(" "));
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|_| LogError::Already)?;
    LEVEL.set(handle).map_err(|_| LogError::Already)
}

/// Changes the level of the running log.
pub fn set_level(level: &str) -> Result<(), LogError> {
    let filter = filter(level)?;
    LEVEL.get().ok_or(LogError::NotSetUp)?.reload(filter).map_err(|_| LogError::NotSetUp)
}

/// Control characters, line ends among them, written out.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let bad = || LogError::Level(level.to_owned());
    // An unknown word alone would be taken as the name of a module and silence everything else.
    let first = level.split(',').next().unwrap_or_default().trim();
    first.parse::<tracing::level_filters::LevelFilter>().map_err(|_| bad())?;
    EnvFilter::builder().parse(level).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_stays_on_its_line() {
        assert_eq!(one_line("für \"x\"\n\u{1b}[1m\ty"), "für \"x\"\\n\\u{1b}[1m\\ty");
    }

    #[test]
    fn the_level_changes_while_it_runs() {
        assert!(matches!(init("loud"), Err(LogError::Level(_))));
        init("warn").unwrap();
        assert!(!tracing::enabled!(tracing::Level::INFO));
        set_level("info,pgmend::pool=debug").unwrap();
        assert!(tracing::enabled!(tracing::Level::INFO));
        assert_eq!(set_level("loud"), Err(LogError::Level("loud".into())));
        assert_eq!(init("info"), Err(LogError::Already));
    }
}
