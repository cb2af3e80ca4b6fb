//! Clients are held while the second stage runs: the gate's order, its deadline, and its end whatever happens.

use super::first_stage::CHECKPOINT_LIMIT;
use super::run::{Run, SHORT};
use super::stages::Stage;
use crate::cluster::{Hold, Holder, Quiet, Scope, Servers, Unquiet, Wanted};
use crate::workflow::Failure;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two looks whether all is quiet.
const LOOK: Duration = Duration::from_millis(5);
/// A stage that was broken off has this long to end what it started; clients are served meanwhile.
const GRACE: Duration = Duration::from_secs(20);

/// The order in force, if there is one. Whoever finds that the recovery fails opens the gate by it, at once.
#[derive(Clone, Debug, Default)]
pub(super) struct Gated(Arc<Mutex<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    hold: Option<Hold>,
    until: Option<Instant>,
    began: Option<Instant>,
    held: Duration,
}

impl Gated {
    fn close(&self, hold: Hold, until: Instant) {
        let mut inside = self.inside();
        *inside = Inside { hold: Some(hold), until: Some(until), began: Some(Instant::now()), held: Duration::ZERO };
    }

    /// Opens the gate, if it is held by us.
    pub fn open(&self) {
        let mut inside = self.inside();
        inside.until = None;
        if let Some(began) = inside.began.take() {
            inside.held = began.elapsed();
        }
        // Dropping the hold takes the order back.
        drop(inside.hold.take());
    }

    /// How long clients were held.
    pub fn held(&self) -> Duration {
        let inside = self.inside();
        inside.began.map_or(inside.held, |began| began.elapsed())
    }

    /// Proof that nothing goes on behind the gate.
    pub fn quiet(&self) -> Result<Quiet, Unquiet> {
        self.inside().hold.as_ref().map_or(Err(Unquiet::Ended), Hold::quiet)
    }

    /// What is left, and some of those whom it waits for.
    fn who(&self, busy: &Unquiet) -> String {
        let inside = self.inside();
        let named = inside.hold.as_ref().map(Hold::holdups).unwrap_or_default();
        let named: Vec<String> = named.iter().map(ToString::to_string).collect();
        if named.is_empty() { busy.to_string() } else { format!("{busy} ({})", named.join("; ")) }
    }

    /// What is left of the time.
    pub fn left(&self) -> Option<Duration> {
        self.inside().until.map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// Ends when the time is over; never when the gate is open.
    async fn over(&self) {
        while let Some(left) = self.left() {
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
        std::future::pending().await
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Run {
    /// Closes the gate, waits until nothing goes on behind it, then has the main node write everything out.
    pub(super) async fn gating(&self) -> Result<(), Failure> {
        // So that the one for which clients wait has little left to write.
        self.checkpoint("1st stage", CHECKPOINT_LIMIT).await?;
        let limit = self.settings.timeout;
        let until = Instant::now() + limit;
        let hold = self.inner.board.hold(&Wanted {
            scope: Scope::All,
            holder: Holder::Job(self.job.id()),
            reason: format!("recovery of node {}, second stage", self.target.id),
            // Everybody comes back with connections to the new set of nodes.
            servers: Servers::Close,
            drain: Some(self.settings.drain),
            end_sessions: false,
            // Of its own: the gate opens even if everything here is stuck.
            until: Some(until),
        });
        let hold = hold.map_err(|e| Failure::new("clients could not be held").detail(e.to_string()))?;
        self.gated.close(hold, until);
        tracing::info!(event = "recovery.gate_closed", job = self.job.id(), limit = ?limit);
        loop {
            match self.gated.quiet() {
                Ok(_) => break,
                Err(Unquiet::Ended) => return Err(not_quiet("")),
                Err(busy) if self.gated.left().is_none_or(|left| left <= LOOK) => {
                    return Err(not_quiet(&self.gated.who(&busy)));
                }
                Err(busy) => self.job.note(format!("waiting for clients: {}", self.gated.who(&busy))),
            }
            tokio::time::sleep(LOOK).await;
        }
        self.checkpoint("2nd stage", limit).await
    }

    /// Pgpool-II's CHECKPOINT before each of the two stages.
    pub(super) async fn checkpoint(&self, stage: &str, limit: Duration) -> Result<(), Failure> {
        self.job.note("CHECKPOINT");
        let source = self.connect_source().await?;
        let done = source.rows_within("CHECKPOINT", limit.max(SHORT)).await;
        done.map(|_| ()).map_err(|e| {
            Failure::new(format!("executing recovery, CHECKPOINT failed in the {stage}")).detail(e.to_string())
        })
    }

    /// A stage in which clients are held. The moment it fails, is cancelled or runs out of time the gate opens on the old
    /// set of nodes; only then it is cleaned up.
    pub(super) async fn behind_the_gate(&mut self, stage: Stage, stop: &CancellationToken) -> Result<(), Failure> {
        let (gated, inner, limit) = (self.gated.clone(), stop.child_token(), self.settings.timeout);
        let effect = self.effect(stage, &inner);
        tokio::pin!(effect);
        let over = tokio::select! {
            result = &mut effect => {
                if result.is_err() {
                    gated.open();
                }
                return result;
            }
            () = stop.cancelled() => false,
            () = gated.over() => true,
        };
        gated.open();
        inner.cancel();
        let ended = tokio::time::timeout(GRACE, &mut effect).await;
        if !over {
            return ended.unwrap_or_else(|_| Err(Failure::new("stopped")));
        }
        let why = Failure::new(format!("the second stage did not end within {} seconds", limit.as_secs()))
            .hint("recovery_timeout bounds it, from the closing of the gate to its reopening; clients go on as before");
        Err(match ended {
            Ok(Err(failure)) => why.detail(failure.detail.unwrap_or(failure.message)),
            Ok(Ok(())) | Err(_) => why,
        })
    }
}

/// In Pgpool-II's words.
fn not_quiet(left: &str) -> Failure {
    let failure = Failure::new("node recovery failed, waiting connection closed in the other pgpools timeout");
    let failure = failure.hint("recovery_timeout bounds the wait for transactions; clients go on as before");
    if left.is_empty() {
        failure.detail("the gate was opened meanwhile")
    } else {
        failure.detail(format!("left: {left}"))
    }
}
