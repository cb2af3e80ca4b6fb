//! Plans: every step with what takes it back, and everything that stands against it. Nothing is changed.

use super::stages::Step;
use super::{Judgement, LongTransactions, Maintenance, Plan, Planned, Reason, Refused, SwitchOptions, choose};
use super::{begin, facts, finish, rolling, stages};

impl Maintenance {
    /// What planned work would do, and what stands against it.
    pub async fn plan(&self, work: Planned) -> Result<Plan, Refused> {
        self.refuse_where_all_are_written()?;
        match work {
            Planned::Switchover { node, transactions, strict } => {
                let options = SwitchOptions { to: node, transactions, strict };
                let (title, judgement) = self.judge_switch(options, false).await?;
                Ok(Plan { steps: self.switch_steps(options)?, title, judgement })
            }
            Planned::Rehearse { node, transactions } => {
                let options = SwitchOptions { to: node, transactions, strict: false };
                let (title, judgement) = self.judge_switch(options, false).await?;
                let rehearsed = |step: &Step| stages::REHEARSAL_ROWS.iter().any(|row| row.name == step.name);
                let steps = self.switch_steps(options)?.into_iter().filter(rehearsed).collect();
                Ok(Plan { title: format!("rehearsal, {title}"), judgement, steps })
            }
            Planned::Begin { node } => {
                let spec = self.known(node)?;
                let judgement = begin::judge(&self.0, &spec).await;
                Ok(Plan { title: format!("node {node} goes into maintenance"), judgement, steps: begin::steps(node) })
            }
            Planned::Finish { node, rebuild } => {
                let spec = self.known(node)?;
                let judgement = finish::judge(&self.0, &spec).await;
                let title = format!("node {node} comes back from maintenance");
                Ok(Plan { title, judgement, steps: finish::steps(node, rebuild) })
            }
            Planned::RollingUpdate(options) => {
                let judgement = match self.judge_switch(options.switch(None), true).await {
                    Ok((_, judgement)) => judgement,
                    Err(refused) => {
                        let reason = Reason { what: refused.to_string(), hint: String::new() };
                        Judgement { against: vec![reason], remarks: Vec::new() }
                    }
                };
                let steps = rolling::steps(&self.0, &options);
                Ok(Plan { title: "rolling update".to_owned(), judgement, steps })
            }
        }
    }

    fn switch_steps(&self, options: SwitchOptions) -> Result<Vec<Step>, Refused> {
        let (from, to) = choose(&self.0.board.view(), options.to)?;
        let label = |spec: &crate::cluster::NodeSpec| format!("node {}", spec.id);
        Ok(stages::steps(&label(&from), &label(&to), options.strict, &(self.0.settings)()))
    }

    async fn judge_switch(&self, options: SwitchOptions, rolling: bool) -> Result<(String, Judgement), Refused> {
        let (from, to) = choose(&self.0.board.view(), options.to)?;
        let limits = (self.0.settings)();
        let facts = self.0.look(&from, &to, &limits, &[]).await;
        let mut judgement = facts::judge(&facts, &limits, options.transactions == LongTransactions::Retry);
        if options.strict {
            self.0.judge_strict(&from, to.id, rolling, &mut judgement).await;
        }
        Ok((format!("from node {} to node {}", from.id, to.id), judgement))
    }
}
