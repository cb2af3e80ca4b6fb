//! Follows a job to its end: a bar on a terminal, else lines.

use super::{FAILURE, api, print};
use crate::admin::{Command, Reply};
use crate::workflow::{JobSnapshot, Outcome};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks at the job.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Least time between two lines of progress in one stage, when there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(2);
/// Looks in a row that may fail, such as while the daemon is busy; the job itself goes on.
const MAX_FAILED_LOOKS: u32 = 20;

/// Until the job ends (0 only when it succeeded) or Ctrl-C, which leaves it running.
pub async fn follow(socket: &Path, mut job: JobSnapshot, json: bool) -> ExitCode {
    let mut display = Display::new(std::io::stderr().is_terminal());
    let mut failed_looks = 0;
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    while job.outcome == Outcome::Running {
        display.show(&job);
        let next = async {
            tokio::time::sleep(LOOK_INTERVAL).await;
            api::send(socket, &Command::Job { id: job.id }).await
        };
        let looked = tokio::select! {
            _ = &mut interrupt => {
                display.end();
                eprintln!("job {} goes on; `pgmend job show {}` looks at it, `pgmend job cancel {}` ends it", job.id, job.id, job.id);
                return ExitCode::from(FAILURE);
            }
            looked = next => looked,
        };
        match looked {
            Ok(Reply::Job { job: newer }) => {
                job = newer;
                failed_looks = 0;
            }
            Ok(_) => return lost(&mut display, job.id, "the daemon answered something else"),
            Err(error) if failed_looks >= MAX_FAILED_LOOKS => return lost(&mut display, job.id, &error.to_string()),
            Err(_) => failed_looks += 1,
        }
    }
    display.end();
    let ended = if json { job.clone() } else { print::worth_showing(job.clone()) };
    super::show(&Reply::Job { job: ended }, false, json);
    if job.outcome == Outcome::Succeeded { ExitCode::SUCCESS } else { ExitCode::from(FAILURE) }
}

/// The state and what runs, again and again, until Ctrl-C or until the daemon is gone.
pub async fn watch(socket: &Path) -> ExitCode {
    let terminal = std::io::stdout().is_terminal();
    let mut last = String::new();
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let mut text = match api::send(socket, &Command::Status).await {
            Ok(reply) => print::reply(&reply, false, super::now_s()),
            Err(error) => return super::failed_call(&error),
        };
        if let Ok(Reply::Jobs { jobs }) = api::send(socket, &Command::Jobs).await {
            for job in jobs.iter().filter(|job| job.outcome == Outcome::Running) {
                text.push_str(&format!("job {}: {} of node {}: {}\n", job.id, job.kind, job.node, print::stage(job)));
            }
        }
        if text != last {
            // Home and clear on a terminal; elsewhere one state after the other.
            let clear = if terminal { "\x1b[H\x1b[2J" } else { "" };
            println!("{clear}{text}");
            last = text;
        }
        tokio::select! {
            _ = &mut interrupt => return ExitCode::SUCCESS,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

fn lost(display: &mut Display, id: u64, why: &str) -> ExitCode {
    display.end();
    eprintln!("pgmend: lost sight of job {id}: {why}");
    ExitCode::from(FAILURE)
}

struct Display {
    bar: Option<ProgressBar>,
    stage: String,
    line: String,
    printed_at: Option<Instant>,
}

impl Display {
    fn new(terminal: bool) -> Self {
        let bar = terminal.then(ProgressBar::new_spinner);
        Display { bar, stage: String::new(), line: String::new(), printed_at: None }
    }

    fn show(&mut self, job: &JobSnapshot) {
        match &self.bar {
            Some(bar) => draw(bar, job, self.stage != job.stage),
            None => {
                let line = print::stage(job);
                let due = self.printed_at.is_none_or(|at| at.elapsed() >= LINE_INTERVAL);
                if self.stage != job.stage || (due && line != self.line) {
                    eprintln!("job {}: {line}", job.id);
                    self.printed_at = Some(Instant::now());
                    self.line = line;
                }
            }
        }
        self.stage.clone_from(&job.stage);
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn draw(bar: &ProgressBar, job: &JobSnapshot, new_stage: bool) {
    if new_stage {
        bar.reset();
    }
    let template = match job.progress.total_bytes {
        Some(_) => "{prefix} [{bar:30}] {percent}% {bytes}/{total_bytes} {bytes_per_sec} {eta} {wide_msg}",
        None => "{spinner} {prefix} {elapsed} {wide_msg}",
    };
    // The templates are constants; a wrong one leaves the style as it is.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    if let Some(total) = job.progress.total_bytes {
        bar.set_length(total);
    }
    bar.set_prefix(job.stage.clone());
    bar.set_message(job.progress.note.clone());
    bar.set_position(job.progress.done_bytes);
    bar.tick();
}
