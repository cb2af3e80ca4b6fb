//! One server under pgmend's own control: armed, stopped, looked at, started.

use super::Inner;
use crate::cluster::NodeSpec;
use crate::node::{
    self, ControlData, Data, DataDirectory, Halted, Lines, NodeError, Order, Owner, Postmaster, Programs, Remote, Site,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two looks whether a server has stopped. `pg_ctl` looks ten times a second, which clients would wait for.
const LOOK: Duration = Duration::from_millis(2);

/// A server that can be stopped and started: of this machine, or behind a `remote_command`.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub spec: Arc<NodeSpec>,
    pub data: Data,
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

/// A stop command that failed may have done it all the same: so long it is looked at.
const AFTER_FAILURE: Duration = Duration::from_secs(2);
/// Beyond its own bound, until a start is ended from outside.
const BEYOND: Duration = Duration::from_secs(3);
/// Bound on a node's own command for its automatic start.
const AUTOSTART: Duration = Duration::from_secs(60);

impl Server {
    /// Finds its directory and programs, or tells why it cannot be controlled from here. `job` marks its children; 0: none.
    /// Elsewhere the way stays open for as long as this lives.
    pub async fn find(inner: &Inner, spec: &NodeSpec, job: u64) -> Result<Server, String> {
        let path = spec.data_directory.clone().ok_or("its configuration names no data_directory")?;
        let spec = Arc::new(spec.clone());
        let mark = (job > 0).then(|| (super::MARK, format!("{}:{job}", inner.store.directory().display())));
        let order = Order::of(job, mark);
        let site = Site::of(&spec, order.clone()).await;
        let data = match &site {
            Site::Here(_) => here(inner, &spec, path)?,
            Site::There(remote) => there(remote).await?,
            Site::Elsewhere => {
                return Err("it runs on another machine, where pgmend cannot prove what it left behind: it has no \
                            remote_command"
                    .to_owned());
            }
        };
        let programs = match &data {
            Data::Here { programs, .. } => Some(programs.clone()),
            Data::There { .. } => None,
        };
        let log_directory = inner.store.directory().to_owned();
        let postmaster = Postmaster { spec: spec.clone(), site, programs, log_directory, order };
        Ok(Server { spec, data, postmaster })
    }

    /// From now on a start is read-only, whoever starts it.
    pub async fn arm(&self) -> Result<(), NodeError> {
        self.data.arm().await
    }

    /// It starts as what it was. Elsewhere it is tried for `patience`.
    pub async fn disarm(&self, patience: Duration) -> Result<(), NodeError> {
        self.data.disarm(patience).await
    }

    /// It is on another machine: an order may have been lost on its way.
    pub fn is_elsewhere(&self) -> bool {
        matches!(self.data, Data::There { .. })
    }

    /// Its postmaster lives.
    pub async fn runs(&self) -> Result<bool, NodeError> {
        self.data.runs().await
    }

    /// Armed, told to stop, fast, and waited for, at most until the deadline; elsewhere on one journey.
    pub async fn halt(&self, until: Instant, lines: Lines, stop: &CancellationToken) -> Result<Halted, NodeError> {
        if let Data::There { remote, .. } = &self.data {
            return remote.halt(true, until, stop).await;
        }
        self.arm().await.map_err(|e| NodeError::Refused { program: "standby.signal".into(), words: e.to_string() })?;
        Ok(Halted { stopped: self.stop_by(until, lines, stop).await?, left: None })
    }

    /// Tells it to stop, fast, and returns as soon as it has, or at the deadline with false.
    pub async fn stop_by(&self, deadline: Instant, lines: Lines, stop: &CancellationToken) -> Result<bool, NodeError> {
        let directory = match &self.data {
            Data::There { remote, .. } => return Ok(remote.halt(false, deadline, stop).await?.stopped),
            Data::Here { directory, .. } => directory,
        };
        if self.spec.stop_command.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            let inner = stop.child_token();
            let work = self.postmaster.stop(lines, &inner);
            tokio::pin!(work);
            match tokio::time::timeout(left, &mut work).await {
                Ok(Err(error)) if error.changed_nothing() => return Err(error),
                // It may have done it all the same: looked at below.
                Ok(Err(error)) if self.stopped_by((Instant::now() + AFTER_FAILURE).min(deadline)).await? => {
                    tracing::warn!(event = "node.stopped_all_the_same", node = self.spec.id.0, %error);
                }
                Ok(ended) => ended?,
                Err(_) => {
                    inner.cancel();
                    let _ = work.await;
                }
            }
        } else {
            node::signal_stop(&directory.0)?;
        }
        self.stopped_by(deadline).await
    }

    /// Switches its automatic start; false: it has no command for that.
    pub async fn autostart(&self, to: AutoStart, lines: Lines, stop: &CancellationToken) -> Result<bool, NodeError> {
        let commands = &self.spec.maintain;
        let (verb, command) = match to {
            AutoStart::On => ("autostart_on", &commands.autostart_on_command),
            AutoStart::Off => ("autostart_off", &commands.autostart_off_command),
        };
        let Some(command) = command else { return Ok(false) };
        if let Data::There { remote, .. } = &self.data {
            let said = remote.own(verb, command, AUTOSTART, stop).await?;
            said.lines().for_each(|line| lines(line));
            return Ok(true);
        }
        let mut child = node::Child::new(["sh", "-c", command.as_str()], None);
        for (name, value) in self.postmaster.order.told(&self.spec, verb, AUTOSTART) {
            child = child.env(name, value);
        }
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
    pub async fn stopped_by(&self, deadline: Instant) -> Result<bool, NodeError> {
        if let Data::There { remote, .. } = &self.data {
            return remote.gone(deadline).await;
        }
        while self.runs().await? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(true)
    }

    /// What it left behind.
    pub async fn control_data(&self) -> Result<ControlData, NodeError> {
        self.data.control_data(&CancellationToken::new()).await
    }

    /// Ends these processes of it, if they are its children; those that were told.
    pub async fn kick(&self, children: &[u32]) -> Result<Vec<u32>, NodeError> {
        match &self.data {
            Data::There { remote, .. } => remote.kick(children).await,
            Data::Here { directory, .. } => {
                Ok(children.iter().copied().filter(|pid| node::signal_child(&directory.0, *pid)).collect())
            }
        }
    }

    /// Ends it where it does not obey: an immediate stop, or its kill. True when it is gone.
    pub async fn immediate(&self, kill: bool, within: Duration) -> Result<bool, NodeError> {
        match &self.data {
            Data::There { remote, .. } => remote.immediate(kill, within).await,
            Data::Here { directory, .. } => {
                node::signal_immediate(&directory.0, kill);
                self.stopped_by(Instant::now() + within).await
            }
        }
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
        // Elsewhere the start itself looks first: a journey less.
        if matches!(self.data, Data::Here { .. }) && self.runs().await? {
            return Ok(());
        }
        let stop = CancellationToken::new();
        let limit = stop.clone();
        let work = self.postmaster.start(within, lines, &stop);
        tokio::pin!(work);
        match tokio::time::timeout(within + BEYOND, &mut work).await {
            Ok(started) => started,
            Err(_) => {
                limit.cancel();
                work.await
            }
        }
    }
}

fn here(inner: &Inner, spec: &NodeSpec, path: PathBuf) -> Result<Data, String> {
    let version = std::fs::read_to_string(path.join("PG_VERSION"))
        .map_err(|e| format!("{}: {e}", path.join("PG_VERSION").display()))?;
    let major = version.trim().parse().map_err(|_| format!("odd PG_VERSION in {}", path.display()))?;
    let configured = spec.maintain.bin_directory.clone().or((inner.access)().bin_directory);
    let programs = Programs::find(configured.as_deref(), major).map_err(|e| e.to_string())?;
    let owner = Owner::of(&path).map_err(|e| e.to_string())?;
    let us = nix::unistd::geteuid();
    if !us.is_root() && us.as_raw() != owner.uid {
        return Err(format!("its directory belongs to {}, and pgmend runs as another user", owner.name));
    }
    Ok(Data::Here { directory: DataDirectory(path), programs })
}

async fn there(remote: &Remote) -> Result<Data, String> {
    let survey = remote.survey(&[], None, &CancellationToken::new()).await.map_err(|e| e.to_string())?;
    if survey.major.is_none() {
        return Err(format!("there is no PG_VERSION in {}", remote.directory().display()));
    }
    Ok(Data::There { remote: remote.clone(), survey: Box::new(survey) })
}
