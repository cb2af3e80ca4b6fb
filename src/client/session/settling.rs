//! After a transaction that may have left something in its session: the server is asked what, and settings, channels and pins
//! follow from the answer.

use super::Session;
use crate::client::fault::Fault;
use crate::client::lease::Borrower;
use crate::client::leftovers::{self, Leftovers};
use crate::client::listen::Since;
use crate::client::scan::Traces;
use crate::pool::Pooled;
use crate::server::{ServerConn, SimpleError};

impl Session {
    /// After a transaction that may have left something: the server is asked. Settings go with the client; anything else
    /// binds it to this server for as long as it lasts.
    pub(super) async fn settle(&mut self, mut pooled: Box<Pooled>) -> Result<(), Fault> {
        let traces = self.core.traces();
        let left = match self.leftovers(&mut pooled.conn, traces).await {
            Ok(left) => left,
            Err(SimpleError::Lost(why)) => return Err(Fault::ServerLost(why)),
            // The question was not answered (a statement_timeout of the client's, say), so everything is possible.
            Err(SimpleError::Refused(error)) => {
                Some(Leftovers { pins: vec![format!("unknown: {}", error.message)], ..Leftovers::default() })
            }
        };
        let listens = left.as_ref().map(|l| l.channels.as_slice()).unwrap_or_default();
        self.unlisten(listens).await;
        let Some(mut left) = left else {
            self.core.due_fakes(self.down.own());
            self.core.forget_traces();
            self.borrower.give_back(pooled, self.core.is_clean(), false);
            return Ok(());
        };
        let worker = self.borrower.worker.clone();
        if left.pins.is_empty() && !left.channels.is_empty() {
            let login = &self.borrower.login;
            // Of a bound client's channels some may be older.
            let since = match self.core.listens_secretly() && self.pin.is_none() {
                true => Since::Now,
                false => Since::Listen,
            };
            let (listeners, all) = (&worker.plane.listeners, left.channels.clone());
            let mut subscription = self.subscription.take().map(|boxed| *boxed);
            let taken = listeners.take_over(&worker, login, &mut pooled.conn, all, since, &mut subscription).await;
            self.subscription = subscription.map(Box::new);
            match taken {
                Ok(true) => left.channels.clear(),
                Ok(false) => tracing::warn!(event = "listener.unreachable", database = %self.database()),
                Err(error) => return Err(Fault::ServerLost(error.to_string())),
            }
        }
        let reasons = left.reasons();
        self.core.due_fakes(self.down.own());
        self.down.own().append(&mut pooled.conn.asides);
        let known = !left.pins.iter().any(|p| p.starts_with("unknown"));
        if known {
            self.core.forget_traces();
            let wanted = worker.intern(leftovers::wanted(self.core.initial(), &left.settings));
            pooled.conn.applied = if *wanted == left.settings { wanted.clone() } else { left.settings.into() };
            self.core.set_wanted(wanted, &worker.plane.statements);
        }
        self.core.set_bound(!reasons.is_empty(), &worker.plane.statements);
        pooled.conn.unsure = true;
        pooled.conn.last_user = self.borrower.id();
        if reasons.is_empty() {
            self.pin = None;
            self.borrower.give_back(pooled, self.core.is_clean(), false);
            return Ok(());
        }
        match &self.pin {
            Some(pin) => pin.update(reasons),
            None => {
                let (pool, pid) = (&self.borrower.pool.shared.key, pooled.conn.pid);
                tracing::debug!(event = "client.pinned", user = %pool.user, database = %pool.database);
                let max_pins = worker.plane.settings.load().pool.max_pins;
                let pin = worker.plane.pins.pin(pool, pid, reasons, max_pins).map_err(Fault::Pins)?;
                self.pin = Some(pin);
            }
        }
        self.held = Some(pooled);
        Ok(())
    }

    /// Ends the channels that the client has ended itself and has not begun anew.
    pub(super) async fn unlisten(&mut self, but: &[String]) {
        let ended = self.core.take_unlistened();
        if let Some(subscription) = &mut self.subscription {
            for channel in ended {
                subscription.unlisten(channel, but).await;
            }
        }
    }

    /// What is left, or `None` when nothing can be.
    async fn leftovers(&mut self, conn: &mut ServerConn, traces: Traces) -> Result<Option<Leftovers>, SimpleError> {
        let custom: Vec<String> = self.core.custom().cloned().collect();
        let Borrower { worker, login, pool, .. } = &self.borrower;
        let database = &pool.shared.key.database;
        leftovers::after(worker, database, &login.user, conn, traces, self.pin.is_some(), custom).await
    }
}
