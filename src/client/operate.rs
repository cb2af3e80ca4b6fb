//! What may be ordered of the data plane for one database or all: PAUSE, RESUME, RECONNECT, KILL, DISABLE, ENABLE.
//!
//! The words and their meanings are PgBouncer's (<https://www.pgbouncer.org/usage.html#process-controlling-commands>).

use super::plane::Plane;
use crate::cluster::{Drain, GateError, Hold, Holder, Scope, Servers, Unquiet, Wanted};
use std::time::{Duration, Instant};

/// Between two looks whether it is quiet.
const LOOK: Duration = Duration::from_millis(2);
/// A pause that is not quiet in time is taken back by who waits for it, and if he should be stuck, this much later by itself.
const GRACE: Duration = Duration::from_secs(5);
/// What is killed has this long to be gone.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// How a pause is wished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Which databases.
    pub scope: Scope,
    /// How long the transactions under way are waited for; then the gate opens again.
    pub timeout: Duration,
    /// How long the pause lasts at most once it is quiet; `None` = until RESUME.
    pub at_most: Option<Duration>,
    /// With the rules of a recovery for clients, to see what they do.
    pub drain: bool,
}

/// An order that was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperateError {
    /// It is held already.
    #[error("{0} is held already: {1}")]
    Held(Scope, String),
    /// Not paused.
    #[error("{0} is not paused")]
    NotPaused(Scope),
    /// Paused by another order than the one that would be taken back.
    #[error("{0} is held by another order: {1}")]
    HeldOtherwise(Scope, String),
    /// Not quiet in time.
    #[error("{scope} did not become quiet within {timeout:?}; {became}; there were: {left}")]
    NotQuiet {
        /// Which.
        scope: Scope,
        /// The bound.
        timeout: Duration,
        /// What becomes of it.
        became: &'static str,
        /// What was left.
        left: String,
    },
    /// A limit.
    #[error("{0}")]
    Gate(#[from] GateError),
}

impl Plane {
    /// Holds new transactions and waits until no server connection of these databases is open. Returns how long that took.
    /// When it breaks off or takes too long, the gate is open again.
    pub async fn pause(&self, pause: Pause) -> Result<Duration, OperateError> {
        let Pause { scope, timeout, at_most, drain } = pause;
        let rules = if drain { self.settings.load().drain } else { Drain::GENTLE };
        let until = Some(Instant::now() + timeout + GRACE);
        let hold = self.hold(&scope, format!("PAUSE of {scope}"), rules, false, until)?;
        let began = Instant::now();
        if let Err(left) = quiet_within(&hold, timeout).await {
            let became = "the gate is open again";
            return Err(OperateError::NotQuiet { scope, timeout, became, left: told(left, &hold) });
        }
        if !hold.stand(at_most.map(|at_most| Instant::now() + at_most)) {
            let left = Unquiet::Ended.to_string();
            return Err(OperateError::NotQuiet { scope, timeout, became: "the gate is open again", left });
        }
        Ok(began.elapsed())
    }

    /// Takes a PAUSE or KILL back.
    pub fn resume(&self, scope: &Scope) -> Result<(), OperateError> {
        let gate = self.board.read().gate.clone();
        // As with PgBouncer, RESUME of all leaves a database that was paused by its name, and the other way round.
        if self.board.take_back(|_, holder, of| holder == Holder::Operator && of == scope) {
            return Ok(());
        }
        let holds = gate.orders.iter().find(|order| *scope == Scope::All || order.wanted.scope == Scope::All);
        Err(match holds {
            Some(order) => OperateError::HeldOtherwise(scope.clone(), order.wanted.reason.clone()),
            None => OperateError::NotPaused(scope.clone()),
        })
    }

    /// Every server connection that is open now is closed as soon as nobody uses it.
    pub fn reconnect(&self, scope: &Scope) {
        self.outdate(scope);
        self.board.reconnect();
    }

    /// The same for who publishes it himself.
    pub fn outdate(&self, scope: &Scope) {
        self.pools_of(scope).iter().for_each(|pool| pool.reconnect());
    }

    /// Ends all sessions and server connections at once. New ones wait until RESUME.
    pub async fn kill(&self, scope: &Scope) -> Result<Duration, OperateError> {
        let hold = self.hold(scope, format!("KILL of {scope}"), Drain::GENTLE, true, None)?;
        let began = Instant::now();
        let quiet = quiet_within(&hold, KILL_WAIT).await;
        hold.stand(None);
        match quiet {
            Ok(()) => Ok(began.elapsed()),
            Err(left) => {
                let became = "it is held until RESUME";
                Err(OperateError::NotQuiet { scope: scope.clone(), timeout: KILL_WAIT, became, left: left.to_string() })
            }
        }
    }

    /// Takes no new sessions (or takes them again). Ok(false): it was so already.
    pub fn disable(&self, database: &str, disabled: bool) -> Result<bool, OperateError> {
        Ok(self.board.disable(database, disabled)?)
    }

    fn hold(
        &self,
        scope: &Scope,
        reason: String,
        drain: Drain,
        end_sessions: bool,
        until: Option<Instant>,
    ) -> Result<Hold, OperateError> {
        let gate = self.board.read().gate.clone();
        let same = |order: &&std::sync::Arc<crate::cluster::GateOrder>| order.wanted.scope == *scope;
        // A KILL goes over a PAUSE; a second PAUSE is a mistake, as with PgBouncer.
        if let Some(order) = gate.orders.iter().find(same).filter(|_| !end_sessions) {
            return Err(OperateError::Held(scope.clone(), order.wanted.reason.clone()));
        }
        let wanted = Wanted {
            scope: scope.clone(),
            holder: Holder::Operator,
            reason,
            servers: Servers::Close,
            drain: Some(drain),
            end_sessions,
            until,
        };
        Ok(self.board.hold(&wanted)?)
    }
}

/// What is left, and of whom.
fn told(left: Unquiet, hold: &Hold) -> String {
    let who: Vec<String> = hold.holdups().iter().map(ToString::to_string).collect();
    if who.is_empty() { left.to_string() } else { format!("{left} ({})", who.join("; ")) }
}

async fn quiet_within(hold: &Hold, timeout: Duration) -> Result<(), Unquiet> {
    let deadline = Instant::now() + timeout;
    loop {
        match hold.quiet() {
            Ok(_) => return Ok(()),
            Err(Unquiet::Busy { .. }) if Instant::now() < deadline => tokio::time::sleep(LOOK).await,
            Err(left) => return Err(left),
        }
    }
}
