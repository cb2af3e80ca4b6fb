//! Starts the jobs of planned work, by themselves or as a part of another one.

use super::begin::{self, Begin};
use super::finish::{self, Finish};
use super::rolling::{self, Rolling, RollingOptions};
use super::run::Run;
use super::{
    BEGIN, FINISH, LongTransactions, Maintenance, REHEARSAL, ROLLING, Rebuilding, Refused, SWITCHOVER, SwitchOptions,
    choose, stages,
};
use crate::base::NodeId;
use crate::cluster::NodeSpec;
use crate::workflow::{Failure, JobHandle, Outcome, Row, Work};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

impl Maintenance {
    fn job(&self, kind: &str, node: NodeId, data: Value) -> Result<JobHandle, Refused> {
        self.0.jobs.begin(kind, node, data).map_err(|e| Refused {
            message: "nothing was begun".to_owned(),
            detail: Some(e.to_string()),
            fatal: false,
        })
    }

    fn spawn<W>(job: JobHandle, rows: &'static [Row<W::Stage>], mut work: W) -> u64
    where
        W: Work + 'static,
    {
        let id = job.id();
        tokio::spawn(async move {
            crate::workflow::run(&job, rows, &mut work).await;
        });
        id
    }

    pub(super) fn start_switch(
        &self,
        options: SwitchOptions,
        stay_down: bool,
        parent: Option<u64>,
    ) -> Result<u64, Refused> {
        let (from, to) = choose(&self.0.board.view(), options.to)?;
        let data = json!({
            "from": from.id.0,
            "to": to.id.0,
            "stay_down": stay_down,
            // The next daemon keeps the promise if this one dies.
            "strict": options.strict,
        });
        let job = self.job(SWITCHOVER, to.id, data)?;
        let mut work = Run::new(self.0.clone(), job.clone(), options, from, to);
        work.stay_down = stay_down;
        work.parent = parent;
        Ok(Self::spawn(job, stages::ROWS, work))
    }

    pub(super) fn start_rehearsal(&self, options: SwitchOptions) -> Result<u64, Refused> {
        if options.transactions == LongTransactions::End {
            return Err(Refused::new("a rehearsal ends nobody's transaction"));
        }
        let (from, to) = choose(&self.0.board.view(), options.to)?;
        let job = self.job(REHEARSAL, to.id, json!({ "from": from.id.0, "to": to.id.0 }))?;
        let mut work = Run::new(self.0.clone(), job.clone(), options, from, to);
        work.rehearsal = true;
        Ok(Self::spawn(job, stages::REHEARSAL_ROWS, work))
    }

    pub(super) fn start_begin(&self, node: &Arc<NodeSpec>, parent: Option<u64>) -> Result<u64, Refused> {
        let job = self.job(BEGIN, node.id, json!({ "parent": parent }))?;
        let work = Begin::new(self.0.clone(), job.clone(), node.clone());
        Ok(Self::spawn(job, begin::ROWS, work))
    }

    pub(super) fn start_finish(&self, node: &Arc<NodeSpec>, how: Rebuilding) -> Result<u64, Refused> {
        let job = self.job(FINISH, node.id, json!({ "rebuild": how }))?;
        let work = Finish::new(self.0.clone(), job.clone(), node.clone(), how);
        Ok(Self::spawn(job, finish::ROWS, work))
    }

    pub(super) fn start_rolling(&self, options: RollingOptions) -> Result<u64, Refused> {
        let primary = self.0.board.view().primary.ok_or_else(|| Refused::new("no primary is known"))?;
        let job = self.job(ROLLING, primary, json!({ "options": options }))?;
        let work = Rolling::new(self.clone(), job.clone(), options);
        Ok(Self::spawn(job, rolling::ROWS, work))
    }

    pub(super) async fn nested_begin(
        &self,
        node: &Arc<NodeSpec>,
        parent: &JobHandle,
        stop: &CancellationToken,
    ) -> Result<String, Failure> {
        self.ended(self.start_begin(node, Some(parent.id())), stop).await
    }

    pub(super) async fn nested_finish(
        &self,
        node: &Arc<NodeSpec>,
        how: Rebuilding,
        stop: &CancellationToken,
    ) -> Result<String, Failure> {
        self.ended(self.start_finish(node, how), stop).await
    }

    pub(super) async fn nested_switch(
        &self,
        options: SwitchOptions,
        stay_down: bool,
        parent: &JobHandle,
        stop: &CancellationToken,
    ) -> Result<String, Failure> {
        self.ended(self.start_switch(options, stay_down, Some(parent.id())), stop).await
    }

    /// Waits for a part's end; a cancel of the whole cancels the part, whose undo is awaited.
    async fn ended(&self, begun: Result<u64, Refused>, stop: &CancellationToken) -> Result<String, Failure> {
        let id = begun.map_err(|e| Failure::new(e.to_string()))?;
        let ended = tokio::select! {
            job = self.0.jobs.wait(id) => job,
            () = stop.cancelled() => {
                // It may have ended in between.
                drop(self.0.jobs.cancel(id));
                self.0.jobs.wait(id).await
            }
        };
        match ended {
            Some(job) if job.outcome == Outcome::Succeeded => Ok(job.message),
            Some(job) => {
                let first = job.message.lines().next().unwrap_or_default().to_owned();
                Err(Failure::new(format!("job {id} ({}): {first}", job.kind)).detail(job.message))
            }
            None => Err(Failure::new(format!("job {id} is not remembered"))),
        }
    }
}
