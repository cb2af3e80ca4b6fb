//! From the stop of the old primary to the release of the clients: the time in which everybody waits.
//!
//! Up to the request to promote every failure goes back: the old primary is disarmed and started, and the clients go on with
//! it. With the request nobody goes back any more.

use super::look::{SHORT, text};
use super::run::{Promotion, Proof, Run, Window};
use super::server::Server;
use crate::base::Lsn;
use crate::cluster::Role;
use crate::keeper::ProbeReport;
use crate::node;
use crate::server::sql::{Sql, SqlError};
use crate::workflow::Failure;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Between two looks at the coming primary.
const LOOK: Duration = Duration::from_millis(2);
/// Between two looks whether somebody has started a server that shall stop.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Of the time in which clients may be held, kept for going back.
const RESERVE: Duration = Duration::from_secs(2);
/// A promotion that was asked for is waited for, also when clients are no longer held.
const PROMOTED_WITHIN: Duration = Duration::from_secs(120);
/// Listeners that stand ready need a round trip; beyond this clients do not wait for them.
const LISTENED: Duration = Duration::from_millis(100);
/// In a failover nothing could be made ready beforehand: listeners and clients' connections have this long, from the promotion
/// on.
const READY_WHEN_LOST: Duration = Duration::from_secs(1);
/// Between two looks at them.
const LISTEN_LOOK: Duration = Duration::from_millis(1);
/// After a rehearsal clients go on within this, and are counted.
const OPENED: Duration = Duration::from_millis(200);
/// A way back that is blocked is tried for so long before the server is asked whether it serves.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// A server that goes back needs a moment to be reachable.
const BACK_WITHIN: Duration = Duration::from_secs(60);

impl Run {
    fn window(&self) -> Result<Window, Failure> {
        self.held.ok_or_else(|| Failure::new("clients are not held"))
    }

    /// Armed, then stopped fast.
    pub(super) async fn stop_old(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        let (window, began) = (self.window()?, Instant::now());
        self.still_ours()?;
        let old = self.old()?.clone();
        self.stop_sent = true;
        let deadline = (began + self.limits.stop_timeout).min(window.until.checked_sub(RESERVE).unwrap_or(began));
        let halted = old.halt(deadline, self.lines(), stop).await.map_err(|e| {
            // Who refuses has changed nothing: there is nothing to start again.
            self.stop_sent = !e.changed_nothing();
            Failure::new("the old primary could not be stopped").detail(e.to_string())
        })?;
        self.told.parts.push(("stop", began.elapsed()));
        self.left = halted.left;
        if halted.stopped {
            return Ok(());
        }
        Err(Failure::new(format!("node {} did not stop within {:?}", self.from.id, self.limits.stop_timeout))
            .detail("a standby that takes no log, an archiver that hangs, or a backup can be the reason; see its log"))
    }

    /// The view is still the one that was judged.
    fn still_ours(&self) -> Result<(), Failure> {
        if self.resumed {
            // Nothing was probed yet; what counts was read off the servers.
            return Ok(());
        }
        let view = self.inner.board.view();
        let epoch = self.facts()?.epoch;
        let now = view.epoch.as_ref().map(|e| (e.system_identifier, e.timeline));
        if view.primary == Some(self.from.id) && now == epoch {
            return Ok(());
        }
        Err(Failure::new("the primary has changed meanwhile"))
    }

    /// Goes back: kicks what holds the stop up, disarms, starts.
    pub(super) async fn undo_stop(&mut self) -> Option<String> {
        if !matches!(self.promotion, Promotion::NotAsked | Promotion::Impossible) {
            return None;
        }
        let old = self.old.clone()?;
        let began = Instant::now();
        if let Err(error) = self.disarm(&old, began).await {
            return Some(error);
        }
        if !self.stop_sent {
            return None;
        }
        if old.is_elsewhere() && self.serves().await {
            return Some(format!("node {} never heard of the stop and goes on as the primary", self.from.id));
        }
        if old.runs().await.unwrap_or(true) {
            // Its stop cannot be taken back. Who holds it up is ended: a standby can ask again.
            self.kick(&old).await;
            self.stopped_for_good(&old, began + BACK_WITHIN).await;
        }
        if let Err(error) = old.start_again(BACK_WITHIN, self.lines()).await {
            return Some(format!("node {} could not be started again: {error}", self.from.id));
        }
        match self.inner.connect(&self.from).await {
            Ok(_) => Some(format!(
                "node {} runs again as the primary, after {:.0} ms",
                self.from.id,
                super::run::milliseconds(began.elapsed())
            )),
            Err(error) => Some(format!("node {} was started but does not answer: {error}", self.from.id)),
        }
    }

    /// Waits for its stop. Whoever has started it meanwhile has a read-only server, which has written nothing: it is stopped
    /// again.
    async fn stopped_for_good(&self, old: &Server, deadline: Instant) {
        while Instant::now() < deadline {
            match old.stopped_by(deadline.min(Instant::now() + LOOK_AGAIN)).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => self.job.output(&format!("whether node {} has stopped: {error}", self.from.id)),
            }
            let Ok(sql) = self.inner.connect(&self.from).await else {
                tokio::time::sleep(LOOK).await;
                continue;
            };
            let recovers = sql.value("SELECT pg_is_in_recovery()", SHORT).await.ok().flatten();
            if recovers.as_deref() == Some("t") {
                self.job
                    .output(&format!("node {} was started meanwhile, read-only, and is stopped again", old.spec.id));
                drop(old.stop_by(deadline, self.lines(), &CancellationToken::new()).await);
            }
        }
    }

    /// Elsewhere that may take many tries; a server that never heard of the stop is not waited for, nor are clients kept from it.
    async fn disarm(&mut self, old: &Server, began: Instant) -> Result<(), String> {
        let id = self.from.id;
        loop {
            let error = match old.disarm(BETWEEN_LOOKS).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if self.serves().await {
                return Err(format!(
                    "node {id} goes on as the primary, but it may carry standby.signal, which must be removed before its next \
                     start: {error}"
                ));
            }
            if !matches!(error, node::NodeError::Unknown { .. }) || began.elapsed() > BACK_WITHIN {
                return Err(format!("node {id} could not be disarmed and started again: {error}"));
            }
        }
    }

    /// It lets people in and writes; one that was told to stop does not let anybody in any more.
    async fn serves(&self) -> bool {
        let Ok(sql) = self.inner.connect(&self.from).await else { return false };
        sql.value("SELECT pg_is_in_recovery()", SHORT).await.ok().flatten().as_deref() == Some("f")
    }

    async fn kick(&self, old: &Server) {
        let Some(Ok(primary)) = self.facts.as_ref().map(|f| &f.primary) else { return };
        let pids: Vec<u32> = primary.standbys.iter().map(|s| s.pid).collect();
        let kicked = old.kick(&pids).await.unwrap_or_default();
        for standby in primary.standbys.iter().filter(|s| kicked.contains(&s.pid)) {
            self.job.output(&format!("the log sender for {} was ended: it held the stop up", standby.name));
        }
    }

    /// Stopped and received: the old primary's last record is its shutdown, and the coming one has it.
    pub(super) async fn verify(&mut self) -> Result<(), Failure> {
        let (window, began) = (self.window()?, Instant::now());
        let (from, to) = (self.from.id, self.to.id);
        let not = |why: String| Failure::new(format!("node {to} was not promoted")).detail(why);
        let data = match self.left.take() {
            Some(data) => data,
            None => self.old()?.control_data().await.map_err(|e| not(e.to_string()))?,
        };
        let timeline = self.facts()?.primary.as_ref().map_err(|e| not(e.clone()))?.timeline;
        // One that was proven before, and that somebody has started since, read-only as it is armed, has written nothing.
        let was_proven = self.resumed && matches!(data.state.as_str(), "shut down in recovery" | "in archive recovery");
        if data.state != "shut down" && !was_proven {
            return Err(not(format!("node {from} did not shut down cleanly: its state is \"{}\"", data.state)));
        }
        if data.timeline != timeline {
            return Err(not(format!("node {from} ended on timeline {}, not {timeline}", data.timeline)));
        }
        let ask = "SELECT coalesce(pg_last_wal_receive_lsn(), '0/0'), coalesce(pg_last_wal_replay_lsn(), '0/0'), pg_is_in_recovery()";
        loop {
            let rows = self.candidate()?.rows_within(ask, SHORT).await.map_err(|e| not(e.to_string()))?;
            let lsn = |column| text(rows.first(), column).parse::<Lsn>().unwrap_or_default();
            let (received, replayed) = (lsn(0), lsn(1));
            if text(rows.first(), 2) != "t" {
                return Err(not(format!("node {to} is no longer in recovery")));
            }
            // The last replayed position is the end of a whole record: beyond the shutdown's start means all of it. What a
            // standby tells is an end, too.
            let has_all = |at: Lsn| at > data.position || was_proven && at == data.position;
            if has_all(received) && has_all(replayed) {
                self.proof = Some(Proof { shut_down_at: data.position, received, replayed, timeline });
                self.told.parts.push(("proof", began.elapsed()));
                break;
            }
            if Instant::now() + RESERVE >= window.until || began.elapsed() > SHORT {
                return Err(not(format!(
                    "node {from} shut down at {}, but node {to} has received up to {received} and replayed up to {replayed}",
                    data.position
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
        self.still_ours()
    }

    /// The point of no return.
    pub(super) async fn promote(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        // Looked at last: nobody was let through meanwhile.
        if !self.resumed && self.hold.as_ref().is_none_or(|hold| hold.quiet().is_err()) {
            return Err(Failure::new(format!("node {} was not promoted", self.to.id))
                .detail("clients are no longer held: max_hold has passed"));
        }
        self.promotion = Promotion::Asked;
        let asked = self.candidate()?.rows_within("SELECT pg_promote(false)", SHORT).await;
        if let Err(error) = &asked {
            self.job.output(&format!("the request to promote: {error}"));
        }
        while began.elapsed() < PROMOTED_WITHIN {
            match self.promoted().await {
                Ok(Some(timeline)) => {
                    self.promotion = Promotion::Done(timeline);
                    self.told.parts.push(("promotion", began.elapsed()));
                    return Ok(());
                }
                Ok(None) => tokio::time::sleep(LOOK).await,
                Err(error) => {
                    self.job.note(format!("node {} does not answer: {error}", self.to.id));
                    self.revive(&error).await?;
                }
            }
        }
        Err(Failure::new(format!("node {} was asked to become the primary and has not become it", self.to.id))
            .detail("nobody can tell whether it still will; the old primary stays stopped and armed")
            .hint("look at its log; `pg_ctl promote` it, or stop it for good and start the old primary without standby.signal"))
    }

    /// Its timeline, once it writes.
    async fn promoted(&self) -> Result<Option<u32>, SqlError> {
        let ask = "SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_lsn()) END";
        let file = self.candidate_sql()?.value(ask, SHORT).await?;
        Ok(file.and_then(|f| u32::from_str_radix(f.get(..8)?, 16).ok()))
    }

    fn candidate_sql(&self) -> Result<&Sql, SqlError> {
        self.candidate.as_ref().ok_or_else(|| SqlError::Lost("there is no connection".to_owned()))
    }

    /// The coming primary broke off: connects again; where it is dead, its directory tells whether its history was begun.
    async fn revive(&mut self, error: &SqlError) -> Result<(), Failure> {
        tokio::time::sleep(LOOK * 10).await;
        self.candidate = self.inner.connect(&self.to).await.ok();
        if self.candidate.is_some() {
            return Ok(());
        }
        let Ok(server) = Server::find(&self.inner, &self.to, self.job.id()).await else { return Ok(()) };
        // Where nobody can tell, it may be alive: it is asked again.
        if server.runs().await.unwrap_or(true) {
            return Ok(());
        }
        let timeline = self.facts()?.primary.as_ref().map_or(0, |p| p.timeline);
        let Ok(has_begun) = server.data.has_newer_history(timeline).await else { return Ok(()) };
        if has_begun {
            // Its promotion is in the log already: it goes on where it broke off.
            self.job.output(&format!("node {} died in its promotion and is started again", self.to.id));
            let started = server.start_again(BACK_WITHIN, self.lines()).await;
            started.map_err(|e| {
                Failure::new(format!("node {} died in its promotion and does not start", self.to.id))
                    .detail(e.to_string())
            })?;
            if let Ok(sql) = self.inner.connect(&self.to).await {
                // It may have died before the end of recovery; then the wish was lost with it.
                let _ = sql.rows_within("SELECT CASE WHEN pg_is_in_recovery() THEN pg_promote(false) END", SHORT).await;
                self.candidate = Some(sql);
            }
            return Ok(());
        }
        self.promotion = Promotion::Impossible;
        Err(Failure::new(format!("node {} died before its promotion began", self.to.id)).detail(error.to_string()))
    }

    pub(super) fn undo_promote(&mut self) -> Option<String> {
        match self.promotion {
            Promotion::Asked => {
                Some(format!("the old primary stays stopped and armed: node {} may be the primary", self.to.id))
            }
            Promotion::NotAsked | Promotion::Impossible | Promotion::Done(_) => None,
        }
    }

    /// Of a rehearsal: released as they were held.
    pub(super) async fn open(&mut self) -> Result<(), Failure> {
        self.told.window = self.held.map(|w| w.since.elapsed());
        self.hold = None;
        self.freeze = None;
        self.warm = None;
        // Until they have all gone on.
        tokio::time::sleep(OPENED).await;
        self.told.stalled = self.inner.board.stalls.take();
        Ok(())
    }

    pub(super) fn rehearsed(&self) -> String {
        let held = self.told.window.map(super::run::milliseconds).unwrap_or_default();
        let last = self.inner.jobs.list().into_iter().find(|j| j.kind == super::SWITCHOVER && !j.message.is_empty());
        let last = last.and_then(|j| j.message.lines().find(|l| l.contains("clients were held")).map(str::to_owned));
        let mut lines = vec![
            format!("rehearsal: clients were held for {held:.1} ms and released; nothing was stopped"),
            self.told.stalled.to_string(),
            "a switchover adds the stop, the proof and the promotion: 50 to 200 ms on a small cluster".to_owned(),
        ];
        lines.extend(last.map(|line| format!("at the last one here {line}")));
        lines.join("\n")
    }

    /// The epoch is saved, view and gate are published together: clients go on, on the new primary.
    pub(super) async fn release(&mut self) -> Result<(), Failure> {
        let (window, began) = (self.window()?, Instant::now());
        let Promotion::Done(timeline) = self.promotion else {
            return Err(Failure::new("nothing was promoted"));
        };
        let system = self.facts()?.primary.as_ref().ok().map(|p| p.system_identifier);
        let report = ProbeReport {
            role: Role::Primary,
            system_identifier: system,
            timeline: Some(timeline),
            position: self.proof.map(|p| p.replayed),
            received: None,
            standbys: Vec::new(),
            major: None,
        };
        let reason =
            format!("{} by job {}", if self.lost { super::FAILOVER } else { super::SWITCHOVER }, self.job.id());
        self.listened_to().await;
        let quiet = self.hold.as_ref().and_then(|hold| hold.quiet().ok());
        let switched = self.inner.keeper.switch(quiet, self.to.id, report, &reason).await;
        switched.map_err(|e| Failure::new("the new primary could not be published").detail(e.to_string()))?;
        self.told.parts.push(("release", began.elapsed()));
        self.told.window = Some(window.since.elapsed());
        self.hold = None;
        self.freeze = None;
        self.begin_strict();
        Ok(())
    }

    /// Who listens for clients does so there before the first of them can notify anybody.
    async fn listened_to(&mut self) {
        let Some(warm) = &self.warm else { return };
        let (began, within) = (Instant::now(), if self.lost { READY_WHEN_LOST } else { LISTENED });
        warm.promoted();
        while !(warm.all_listen() && (!self.lost || warm.look().settled)) && began.elapsed() < within {
            tokio::time::sleep(LISTEN_LOOK).await;
        }
        if !warm.all_listen() {
            tracing::warn!(event = "maintenance.listener_late", job = self.job.id(), node = self.to.id.0);
            self.told.lines.push(format!(
                "who listens for clients did not reach node {} within {within:?}: notifications of the first moment may be missed",
                self.to.id
            ));
        }
    }
}
