//! One server under pgmend's own control: armed, stopped, looked at, started.

use super::Inner;
use crate::cluster::NodeSpec;
use crate::node::{self, ControlData, DataDirectory, Lines, NodeError, Owner, Postmaster, Programs, is_this_machine};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two looks whether a server has stopped. `pg_ctl` looks ten times a second, which clients would wait for.
const LOOK: Duration = Duration::from_millis(2);

/// A server of this machine.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub spec: Arc<NodeSpec>,
    pub directory: DataDirectory,
    pub owner: Owner,
    pub programs: Programs,
    pub postmaster: Postmaster,
}

/// Between two tries to start a server that crashed.
const AGAIN: Duration = Duration::from_millis(200);

/// Whether a node's server starts with its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AutoStart {
    On,
    Off,
}

/// Bound on a node's own command for its automatic start.
const AUTOSTART: Duration = Duration::from_secs(60);

impl Server {
    /// Finds its directory and programs, or tells why it cannot be controlled from here. `job` marks its children; 0: none.
    pub async fn find(inner: &Inner, spec: &NodeSpec, job: u64) -> Result<Server, String> {
        let directory = spec.data_directory.clone().ok_or("its configuration names no data_directory")?;
        let host = spec.host.0.clone();
        // Name resolution blocks.
        let local = tokio::task::spawn_blocking(move || is_this_machine(&host)).await.unwrap_or(false);
        if !local {
            return Err("it runs on another machine, where pgmend cannot prove what it left behind".to_owned());
        }
        Server::at(inner, spec, directory, job)
    }

    fn at(inner: &Inner, spec: &NodeSpec, path: PathBuf, job: u64) -> Result<Server, String> {
        let version = std::fs::read_to_string(path.join("PG_VERSION"))
            .map_err(|e| format!("{}: {e}", path.join("PG_VERSION").display()))?;
        let major = version.trim().parse().map_err(|_| format!("odd PG_VERSION in {}", path.display()))?;
        let programs = Programs::find((inner.access)().bin_directory.as_deref(), major).map_err(|e| e.to_string())?;
        let owner = Owner::of(&path).map_err(|e| e.to_string())?;
        let us = nix::unistd::geteuid();
        if !us.is_root() && us.as_raw() != owner.uid {
            return Err(format!("its directory belongs to {}, and pgmend runs as another user", owner.name));
        }
        let spec = Arc::new(spec.clone());
        let postmaster = Postmaster {
            spec: spec.clone(),
            local: Some(path.clone()),
            programs: programs.clone(),
            log_directory: inner.store.directory().to_owned(),
            mark: (job > 0).then(|| (super::MARK, format!("{}:{job}", inner.store.directory().display()))),
        };
        Ok(Server { spec, directory: DataDirectory(path), owner, programs, postmaster })
    }

    /// From now on a start is read-only, whoever starts it.
    pub fn arm(&self) -> Result<(), NodeError> {
        node::arm_standby(&self.directory.0, &self.owner)
    }

    /// It starts as what it was.
    pub fn disarm(&self) -> Result<(), NodeError> {
        node::disarm_standby(&self.directory.0)
    }

    /// Its postmaster lives.
    pub fn runs(&self) -> bool {
        node::running_pid(&self.directory.0).is_some()
    }

    /// Tells it to stop, fast, and returns as soon as it has, or at the deadline with false.
    pub async fn stop_by(&self, deadline: Instant, lines: Lines, stop: &CancellationToken) -> Result<bool, NodeError> {
        if self.spec.stop_command.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            let inner = stop.child_token();
            let work = self.postmaster.stop(lines, &inner);
            tokio::pin!(work);
            if let Ok(stopped) = tokio::time::timeout(left, &mut work).await {
                stopped?;
            } else {
                inner.cancel();
                let _ = work.await;
            }
        } else {
            node::signal_stop(&self.directory.0)?;
        }
        Ok(self.stopped_by(deadline).await)
    }

    /// Switches its automatic start; false: it has no command for that.
    pub async fn autostart(&self, to: AutoStart, lines: Lines, stop: &CancellationToken) -> Result<bool, NodeError> {
        let commands = &self.spec.maintain;
        let command = match to {
            AutoStart::On => &commands.autostart_on_command,
            AutoStart::Off => &commands.autostart_off_command,
        };
        let Some(command) = command else { return Ok(false) };
        let child = node::Child::new(["sh", "-c", command.as_str()], None).env("PGMEND_NODE", self.spec.id.to_string());
        let inner = stop.child_token();
        let work = node::run(child, lines, |_| (), &inner);
        tokio::pin!(work);
        let finished = match tokio::time::timeout(AUTOSTART, &mut work).await {
            Ok(finished) => finished?,
            Err(_) => {
                inner.cancel();
                work.await?
            }
        };
        finished.success("the command for its automatic start").map(|_| true)
    }

    /// Waits until it has stopped.
    pub async fn stopped_by(&self, deadline: Instant) -> bool {
        while self.runs() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(LOOK).await;
        }
        true
    }

    /// What it left behind.
    pub async fn control_data(&self) -> Result<ControlData, NodeError> {
        self.directory.control_data(&self.programs, &CancellationToken::new()).await
    }

    /// Starts it, again and again: after a crash the children of the old postmaster keep its shared memory for a moment, and
    /// no new one starts.
    pub async fn start_again(&self, within: Duration, lines: Lines) -> Result<(), NodeError> {
        let began = Instant::now();
        loop {
            match self.start(within, lines.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) if began.elapsed() >= within => return Err(error),
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Starts it, if it does not run.
    pub async fn start(&self, within: Duration, lines: Lines) -> Result<(), NodeError> {
        if self.runs() {
            return Ok(());
        }
        let stop = CancellationToken::new();
        let limit = stop.clone();
        let work = self.postmaster.start(within, lines, &stop);
        tokio::pin!(work);
        match tokio::time::timeout(within, &mut work).await {
            Ok(started) => started,
            Err(_) => {
                limit.cancel();
                work.await
            }
        }
    }
}
