//! Clients come to their transaction boundaries and wait there; who does not come is named, waited for, or ended.

use super::LongTransactions;
use super::facts::Transaction;
use super::look;
use super::run::{Run, Window};
use crate::cluster::{Drain, Hold, Holder, Scope, Servers, Unquiet, Wanted};
use crate::workflow::Failure;
use std::time::{Duration, Instant};

/// Between two looks whether it is quiet.
const LOOK: Duration = Duration::from_millis(1);
/// Between two looks at old transactions that are waited for.
const PATIENT_LOOK: Duration = Duration::from_millis(500);
/// Who was ended has this long to be gone.
const END_GRACE: Duration = Duration::from_secs(1);
/// Transactions younger than this are not worth a name.
const NAMED: Duration = Duration::from_millis(500);

impl Run {
    pub(super) async fn drain(&mut self) -> Result<(), Failure> {
        let mut last = String::new();
        for attempt in 1..=self.limits.drain_attempts.max(1) {
            if self.options.transactions == LongTransactions::Wait {
                self.wait_for_old_ones().await?;
            }
            self.job
                .note(format!("attempt {attempt} of {}: clients come to their boundaries", self.limits.drain_attempts));
            self.inner.board.stalls.begin();
            let since = Instant::now();
            let until = since + self.limits.max_hold;
            let hold = self.hold(until)?;
            match quiet_by(&hold, since + self.limits.drain_timeout).await {
                Ok(()) => return self.begin_window(hold, since, until),
                Err(left) => last = left.to_string(),
            }
            let mut who: Vec<String> = hold.holdups().iter().map(ToString::to_string).collect();
            let named = self.named().await;
            if self.options.transactions == LongTransactions::End {
                self.end(&named).await;
                if quiet_by(&hold, Instant::now() + END_GRACE).await.is_ok() {
                    return self.begin_window(hold, since, until);
                }
            }
            drop(hold);
            for transaction in &named {
                self.job.output(&format!("attempt {attempt}: {transaction}"));
            }
            for session in &who {
                self.job.output(&format!("attempt {attempt}: {session}"));
            }
            who.extend(named.iter().map(ToString::to_string));
            if !who.is_empty() {
                last = format!("{last}; {}", who.join("; "));
            }
            if attempt < self.limits.drain_attempts {
                self.job.note(format!("attempt {attempt} in vain, clients work on: {last}"));
                tokio::time::sleep(self.limits.drain_pause).await;
            }
        }
        self.inner.board.stalls.take();
        Err(Failure::new(format!(
            "clients did not come to their transaction boundaries within {:?}, {} times",
            self.limits.drain_timeout, self.limits.drain_attempts
        ))
        .detail(last)
        .hint("try again later, or with --transactions wait or --transactions end"))
    }

    fn hold(&self, until: Instant) -> Result<Hold, Failure> {
        let wanted = Wanted {
            scope: Scope::All,
            holder: Holder::Job(self.job.id()),
            reason: format!("switchover to node {}, job {}", self.to.id, self.job.id()),
            servers: Servers::Close,
            end_sessions: false,
            // Sessions that keep a server between transactions give it up; nobody is cut, and the wait counts for no limit.
            drain: Some(Drain { patient: true, ..Drain::GENTLE }),
            until: Some(until),
        };
        self.inner.board.hold(&wanted).map_err(|e| Failure::new("the gate cannot be held").detail(e.to_string()))
    }

    fn begin_window(&mut self, hold: Hold, since: Instant, until: Instant) -> Result<(), Failure> {
        self.told.parts.push(("drain", since.elapsed()));
        self.hold = Some(hold);
        self.held = Some(Window { since, until });
        // What probes see of servers that we stop and promote is nobody's business now.
        self.freeze = Some(self.inner.keeper.freeze());
        Ok(())
    }

    /// Releases the clients. Also where nothing was held any more.
    pub(super) fn undo_drain(&mut self) -> Option<String> {
        let held = self.held.take();
        self.hold = None;
        self.freeze = None;
        self.told.stalled = self.inner.board.stalls.take();
        held.map(|w| format!("clients go on after {:.0} ms", super::run::milliseconds(w.since.elapsed())))
    }

    async fn named(&self) -> Vec<Transaction> {
        match &self.primary {
            Some(sql) => look::transactions(sql, NAMED).await.unwrap_or_default(),
            None => Vec::new(),
        }
    }

    async fn end(&self, transactions: &[Transaction]) {
        let Some(sql) = &self.primary else { return };
        for transaction in transactions {
            self.job.output(&format!("ended: {transaction}"));
            let end = format!("SELECT pg_terminate_backend({})", transaction.pid);
            if let Err(error) = sql.rows_within(&end, look::SHORT).await {
                self.job.output(&format!("process {} could not be ended: {error}", transaction.pid));
            }
        }
    }

    async fn wait_for_old_ones(&self) -> Result<(), Failure> {
        let Some(sql) = &self.primary else { return Ok(()) };
        let began = Instant::now();
        loop {
            let old = look::transactions(sql, self.limits.drain_timeout).await;
            let old = old.map_err(|e| Failure::new("the transactions are not known").detail(e.to_string()))?;
            let Some(first) = old.first() else { return Ok(()) };
            if began.elapsed() >= self.limits.wait_timeout {
                return Err(Failure::new(format!("transactions did not end within {:?}", self.limits.wait_timeout))
                    .detail(old.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")));
            }
            self.job.note(format!("waiting for {} transactions, everybody works on; the oldest: {first}", old.len()));
            tokio::time::sleep(PATIENT_LOOK).await;
        }
    }
}

async fn quiet_by(hold: &Hold, deadline: Instant) -> Result<(), Unquiet> {
    loop {
        match hold.quiet() {
            Ok(_) => return Ok(()),
            Err(Unquiet::Busy { .. }) if Instant::now() < deadline => tokio::time::sleep(LOOK).await,
            Err(left) => return Err(left),
        }
    }
}
