//! A daemon's end: by a signal, by an operator, or because a new process has taken over; and how long it may take.

use super::run::ThisDaemon;
use super::takeover::{Giver, Place};
use crate::admin::{Daemon, StopMode};
use crate::client::Order;
use crate::workflow::Jobs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// How long a fast stop waits for the farewells to clients.
const FAST_STOP: Duration = Duration::from_secs(5);
/// How long a stop waits for running jobs to undo what they can.
const JOBS_STOP: Duration = Duration::from_secs(10);
/// Between two looks whether the last client has gone.
const LOOK: Duration = Duration::from_millis(50);

/// All that the end is about.
pub struct End {
    /// The daemon.
    pub daemon: Arc<ThisDaemon>,
    /// Operators' orders to stop.
    pub orders: mpsc::Receiver<StopMode>,
    /// What may be running.
    pub jobs: Jobs,
    /// Who gives the daemon away.
    pub giver: Arc<Giver>,
}

/// The signals that a daemon hears, for its whole life.
struct Signals {
    hangup: Signal,
    term: Signal,
    int: Signal,
    quit: Signal,
}

impl Signals {
    fn listen() -> Result<Signals, String> {
        let listen = |kind| signal(kind).map_err(|e| format!("signals: {e}"));
        Ok(Signals {
            hangup: listen(SignalKind::hangup())?,
            term: listen(SignalKind::terminate())?,
            int: listen(SignalKind::interrupt())?,
            quit: listen(SignalKind::quit())?,
        })
    }
}

impl End {
    /// Waits for the end, whichever it is, and carries it out. True when nothing was broken off and nobody has taken over.
    pub async fn when_it_comes(mut self, directory: &Path) -> Result<bool, String> {
        let mut signals = Signals::listen()?;
        let giver = self.giver.clone();
        let given = async {
            match Place::open(directory) {
                Ok(place) => giver.until_given(place).await,
                Err(error) => {
                    tracing::warn!(event = "takeover.impossible", directory = %directory.display(), %error);
                    std::future::pending().await
                }
            }
        };
        let ordered = tokio::select! {
            mode = until_stopped(&self.daemon, &mut self.orders, &mut signals) => Some(mode),
            () = given => None,
        };
        let ours = ordered.is_some();
        let mode = match ordered {
            Some(mode) => {
                let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
                mode
            }
            None => self.outlive(&mut signals).await,
        };
        // Nothing of ours keeps a socket open on which nobody accepts.
        self.giver.forget_sockets();
        Ok(self.stop(mode, &mut signals).await && ours)
    }

    /// Another process is the daemon now: this one keeps its clients until they leave, or for `takeover_timeout`; and until
    /// the process that it took over itself has ended, whose cancels come through here.
    async fn outlive(&mut self, signals: &mut Signals) -> StopMode {
        let data = self.daemon.data.clone();
        data.close_doors();
        tracing::info!(event = "takeover.outliving", clients = data.clients());
        let giver = self.giver.clone();
        let left = async {
            while data.clients() > 0 || giver.links.has_before() {
                tokio::time::sleep(LOOK).await;
            }
        };
        let limit = self.daemon.runtime.now().ending.takeover_timeout;
        tokio::select! {
            () = left => StopMode::Smart,
            () = after(limit) => StopMode::Smart,
            mode = until_stopped(&self.daemon, &mut self.orders, signals) => mode,
        }
    }

    /// Smart: until the last client has ended its transaction, or a harder order comes, or `shutdown_timeout` has passed.
    /// Fast: until clients were told. True when the data plane came to its end.
    async fn stop(&mut self, mode: StopMode, signals: &mut Signals) -> bool {
        let data = self.daemon.data.clone();
        tracing::info!(event = "daemon.stopping", ?mode, clients = data.clients());
        data.close_doors();
        let mut mode = mode;
        if mode == StopMode::Smart {
            data.order(|| Order::StopSmart);
            let limit = self.daemon.runtime.now().ending.shutdown_timeout;
            tokio::select! {
                () = until_finished(&self.daemon) => {}
                () = after(limit) => {
                    tracing::warn!(event = "daemon.stops_fast", clients = data.clients(), "shutdown_timeout has passed");
                    mode = StopMode::Fast;
                }
                // A second SIGTERM is harder than the first.
                again = until_stopped(&self.daemon, &mut self.orders, signals) => mode = again,
            }
        }
        if mode == StopMode::Immediate {
            return false;
        }
        if !data.is_finished() {
            data.order(|| Order::StopFast);
            let _ = tokio::time::timeout(FAST_STOP, until_finished(&self.daemon)).await;
        }
        let finished = data.is_finished();
        self.jobs.stop(JOBS_STOP).await;
        finished
    }
}

/// Waits for signals and orders; the first that ends the daemon is returned.
async fn until_stopped(
    daemon: &Arc<ThisDaemon>,
    orders: &mut mpsc::Receiver<StopMode>,
    signals: &mut Signals,
) -> StopMode {
    loop {
        tokio::select! {
            _ = signals.hangup.recv() => {
                let daemon = daemon.clone();
                // Files are read, on a thread that may block. The outcome stands in the log.
                tokio::task::spawn_blocking(move || { let _ = daemon.reload(); });
            }
            _ = signals.term.recv() => return StopMode::Smart,
            _ = signals.int.recv() => return StopMode::Fast,
            _ = signals.quit.recv() => return StopMode::Immediate,
            order = orders.recv() => return order.unwrap_or(StopMode::Fast),
        }
    }
}

async fn until_finished(daemon: &ThisDaemon) {
    while !daemon.data.is_finished() {
        tokio::time::sleep(LOOK).await;
    }
}

/// After a time; zero = never.
async fn after(limit: Duration) {
    match limit {
        Duration::ZERO => std::future::pending().await,
        limit => tokio::time::sleep(limit).await,
    }
}
