//! Leaving the servers: what a client's transaction has left on them goes with the client, or binds it to them.

use super::session::Session;
use crate::client::control::Doing;
use crate::client::fault::Fault;
use crate::client::leftovers;
use crate::client::scan::Traces;
use crate::client::session::LASTING;
use crate::pool::PoolMode;
use crate::server::SimpleError;

impl Session {
    /// Asked by a drain to give the servers up: does so when all that they know of the client can be carried.
    pub(super) async fn give_up(&mut self) -> Result<(), Fault> {
        self.control.drain.asked.set(false);
        self.control.set_doing(Doing::Moving);
        let reasons = self.take_leave().await?;
        if reasons.is_empty() {
            self.control.drain.clear();
            self.legs.iter_mut().for_each(|leg| leg.give_back(true));
            self.control.set_doing(Doing::Away);
        } else {
            self.control.drain.fix(reasons.join(", "), self.rounds, self.worker.now_s());
            self.control.set_doing(Doing::Bound);
        }
        Ok(())
    }

    /// After a transaction: what it has left on the servers goes with the client, or binds it to them.
    pub(super) async fn settle(&mut self) -> Result<(), Fault> {
        let traces = self.legs.iter().fold(Traces::NONE, |all, leg| all.with(leg.core.traces()));
        if !traces.touches(LASTING) && self.pin.is_none() {
            self.let_go(traces != Traces::NONE);
            return Ok(());
        }
        let reasons = self.take_leave().await?;
        if reasons.is_empty() || self.mode == PoolMode::Session {
            self.pin = None;
            self.let_go(true);
            return Ok(());
        }
        match &self.pin {
            Some(pin) => pin.update(reasons),
            None => {
                let pid = self.legs.iter().find_map(|leg| leg.pooled.as_ref()).map_or(0, |p| p.conn.pid);
                self.pin = Some(self.plane.pins.pin(&self.key, pid, reasons, self.max_pins).map_err(Fault::Pins)?);
            }
        }
        Ok(())
    }

    /// Asks the first server what the client has left on it (the others have the same): settings go with the client from
    /// now on; the rest is why it cannot leave.
    async fn take_leave(&mut self) -> Result<Vec<String>, Fault> {
        let traces = self.legs.iter().fold(Traces::NONE, |all, leg| all.with(leg.core.traces()));
        let (worker, database, user) = (self.worker.clone(), self.key.database.clone(), self.login.user.clone());
        // In session pooling, or bound, it may have left something long ago.
        let all = self.pin.is_some() || self.mode == PoolMode::Session;
        // Where one has ended unnoticed, the next one knows the same.
        let mut lost = None;
        let left = loop {
            let Some(leg) = self.legs.iter_mut().find(|leg| leg.pooled.is_some()) else { return Ok(Vec::new()) };
            let custom: Vec<String> = leg.core.custom().cloned().collect();
            let Some(pooled) = leg.pooled.as_mut() else { return Ok(Vec::new()) };
            let asked = leftovers::after(&worker, &database, &user, &mut pooled.conn, traces, all, custom).await;
            self.front.out().append(&mut pooled.conn.asides);
            match asked {
                Ok(Some(left)) => break left,
                Ok(None) => return Ok(Vec::new()),
                Err(SimpleError::Lost(why)) => {
                    leg.close();
                    if self.legs.iter().all(|leg| leg.pooled.is_none()) {
                        return Err(Fault::ServerLost(why));
                    }
                    lost = Some(why);
                }
                Err(SimpleError::Refused(error)) => return Ok(vec![format!("unknown: {}", error.message)]),
            }
        };
        let reasons = left.reasons();
        if let Some(why) = lost.filter(|_| !reasons.is_empty()) {
            // What it has left there is gone on one of them.
            return Err(Fault::ServerLost(why));
        }
        let wanted = worker.intern(leftovers::wanted(&self.initial, &left.settings));
        for leg in &mut self.legs {
            leg.core.forget_traces();
            leg.core.set_wanted(wanted.clone(), &self.plane.statements);
            leg.core.set_bound(!reasons.is_empty(), &self.plane.statements);
            if let Some(pooled) = &mut leg.pooled {
                pooled.conn.applied = wanted.clone();
                pooled.conn.unsure = true;
                pooled.conn.last_user = self.id;
            }
        }
        self.bound = !reasons.is_empty();
        Ok(reasons)
    }

    /// Servers go back, in transaction pooling; in session pooling they stay with the client.
    fn let_go(&mut self, forget: bool) {
        for leg in &mut self.legs {
            if forget {
                leg.core.forget_traces();
            }
            if self.mode == PoolMode::Transaction {
                leg.give_back(false);
            }
        }
    }
}
