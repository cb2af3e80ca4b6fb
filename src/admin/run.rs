//! Carries operators' commands out, whichever surface they came by, and refuses them in Pgpool-II's words.

use super::{
    BoxFuture, Command, CommandError, Daemon, MAX_PAUSE_TIMEOUT_S, MaintenancePort, NodePort, RecoveryPort, Reply,
    StopMode, TrafficPort,
};
use crate::base::NodeId;
use crate::client::Pause;
use crate::cluster::{Board, MAX_HOLDUPS, NodeStatus, Scope, View};
use crate::workflow::{JobSnapshot, Outcome};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const WHICH_NODES: &str = "`pgmend nodes` lists the nodes";
/// Pgpool-II's bound in its texts on node ids that are out of range.
const MAX_NODES: u16 = 128;

/// The one place that carries commands out; every surface holds it.
pub struct Admin {
    board: Arc<Board>,
    nodes: Arc<dyn NodePort>,
    recovery: Arc<dyn RecoveryPort>,
    traffic: Arc<dyn TrafficPort>,
    maintenance: Arc<dyn MaintenancePort>,
    daemon: Arc<dyn Daemon>,
    started_at_s: u64,
}

impl Admin {
    /// Made once, at the daemon's start, whose time it remembers.
    pub fn new(
        board: Arc<Board>,
        nodes: Arc<dyn NodePort>,
        recovery: Arc<dyn RecoveryPort>,
        traffic: Arc<dyn TrafficPort>,
        maintenance: Arc<dyn MaintenancePort>,
        daemon: Arc<dyn Daemon>,
    ) -> Arc<Admin> {
        // A clock before 1970 is shown as 1970; nothing depends on it.
        let started_at_s = SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default();
        Arc::new(Admin { board, nodes, recovery, traffic, maintenance, daemon, started_at_s })
    }

    /// Carries a command out. Dropping the future may leave it half done, so surfaces run it to its end.
    pub async fn run(&self, command: Command) -> Result<Reply, CommandError> {
        match command {
            Command::Status => Ok(self.status()),
            Command::Recover { node, overwrite, accept_loss } => self.recover(node, overwrite, accept_loss),
            Command::Attach { node, accept_data } => self.attach(node, accept_data).await,
            Command::Detach { node } => self.detach(node).await,
            Command::Planned { work, dry_run: true } => Ok(Reply::Plan { plan: self.maintenance.plan(work).await? }),
            Command::Planned { work, dry_run: false } => {
                let id = self.maintenance.begin(work)?;
                self.job(id)
            }
            Command::Failover { enabled } => {
                self.maintenance.set_failover(enabled).map(done).map_err(|why| failed("nothing was changed", why))
            }
            Command::BackedUp => self.maintenance.backed_up().map(done).map_err(|why| failed("nothing was noted", why)),
            Command::Pause { database, timeout_s, at_most_s, drain } => {
                self.pause(database, timeout_s, at_most_s, drain).await
            }
            Command::Resume { database } => self.traffic.resume(Scope::of(database)).map(done),
            Command::Reconnect { database } => Ok(done(self.traffic.reconnect(Scope::of(database)))),
            Command::Kill { database } => self.traffic.kill(Scope::of(database)).await.map(done),
            Command::Disable { database } => self.traffic.disable(database, true).map(done),
            Command::Enable { database } => self.traffic.disable(database, false).map(done),
            Command::Reload => self.daemon.reload().map(done).map_err(|why| failed("the configuration stays", why)),
            Command::Stop { mode } => {
                self.daemon.stop(mode);
                Ok(done(format!("{} stop has begun", stop_name(mode))))
            }
            Command::Jobs => {
                let mut jobs = self.recovery.jobs();
                jobs.sort_by_key(|job| std::cmp::Reverse(job.id));
                Ok(Reply::Jobs { jobs })
            }
            Command::Job { id } => self.job(id),
            Command::CancelJob { id } => self.cancel(id),
        }
    }

    /// The job once it has ended; `None` when nobody remembers it.
    pub async fn wait_job(&self, id: u64) -> Option<JobSnapshot> {
        self.recovery.wait(id).await
    }

    /// The view in force.
    pub fn view(&self) -> Arc<View> {
        self.board.view()
    }

    /// The configuration as Pgpool-II lists it: name, value, description.
    pub fn listed_parameters(&self) -> Vec<(String, String, String)> {
        self.daemon.listed_parameters()
    }

    /// Clients connected now.
    pub fn clients(&self) -> u64 {
        self.daemon.clients()
    }

    /// Unix seconds of the daemon's start.
    pub fn started_at_s(&self) -> u64 {
        self.started_at_s
    }

    fn status(&self) -> Reply {
        let now = self.board.read();
        Reply::Status {
            view: View::clone(&now.view),
            gate: now.gate.to_string(),
            holdups: holdups(&self.board),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            clients: self.daemon.clients(),
            moved: self.daemon.moved(),
            pending_restart: self.daemon.pending_restart(),
            verdict: self.maintenance.verdict(),
        }
    }

    fn recover(&self, node: NodeId, overwrite: bool, accept_loss: bool) -> Result<Reply, CommandError> {
        if self.view().node(node).is_none() {
            let refused = failed("process recovery request failed", format!("node id {node} is not valid"));
            return Err(CommandError { hint: Some(WHICH_NODES.to_owned()), ..refused });
        }
        let id = self.recovery.start(node, overwrite, accept_loss)?;
        self.job(id)
    }

    async fn pause(
        &self,
        database: Option<String>,
        timeout_s: u64,
        at_most_s: Option<u64>,
        drain: bool,
    ) -> Result<Reply, CommandError> {
        if timeout_s > MAX_PAUSE_TIMEOUT_S {
            let why = format!("expected a timeout of at most {MAX_PAUSE_TIMEOUT_S} seconds, got {timeout_s}");
            return Err(failed("nothing was paused", why));
        }
        // A pause for longer than a year is one without an end.
        let at_most = at_most_s.filter(|s| *s < 365 * 24 * 3600).map(Duration::from_secs);
        let pause = Pause { scope: Scope::of(database), timeout: Duration::from_secs(timeout_s), at_most, drain };
        self.traffic.pause(pause).await.map(done)
    }

    async fn attach(&self, node: NodeId, accept_data: bool) -> Result<Reply, CommandError> {
        let status = self.view().node(node).map(|n| n.status).ok_or_else(|| out_of_range("failback", node))?;
        // Pgpool-II too answers this with success: what was asked for holds already.
        if status.is_live() {
            return Ok(done(format!("node {node} was {status} already")));
        }
        let not_attached = |why: String| failed(&format!("node {node} was not attached"), why);
        let view = self.view();
        if accept_data && !view.mode.replicates() {
            return Err(not_attached(format!("nothing is compared in {}, so there is nothing to accept", view.mode)));
        }
        if view.mode.replicates() && view.nodes.iter().any(|n| n.status.is_live()) {
            return self.attach_equal(node, accept_data).await;
        }
        let attached = self.nodes.attach(node, accept_data, "attached by an operator".to_owned()).await;
        attached.map_err(not_attached)?;
        Ok(done(format!("node {node} is attached")))
    }

    /// Beside equals that serve it enters while clients are held; that is a job.
    async fn attach_equal(&self, node: NodeId, accept_data: bool) -> Result<Reply, CommandError> {
        let job = self.recovery.attach(node, accept_data)?;
        match self.recovery.wait(job).await {
            Some(job) if job.outcome == Outcome::Succeeded => Ok(done(job.message)),
            ended => {
                let why = ended.map_or_else(|| format!("job {job} was forgotten"), |job| job.message);
                Err(failed(&format!("node {node} was not attached"), why))
            }
        }
    }

    async fn detach(&self, node: NodeId) -> Result<Reply, CommandError> {
        let view = self.view();
        let known = view.node(node).ok_or_else(|| out_of_range("degenerate backend", node))?;
        if !known.status.is_live() {
            return Err(not_live(node, known.status));
        }
        if !known.spec.allow_failover {
            let pid = std::process::id();
            return Err(CommandError {
                message: format!(
                    "degenerate backend request for node_id: {node} from pid [{pid}] is canceled because failover is disallowed on the node"
                ),
                detail: None,
                hint: Some("the node's flag says DISALLOW_TO_FAILOVER".to_owned()),
                fatal: false,
            });
        }
        let detached = self.nodes.detach(node, "detached by an operator".to_owned()).await;
        detached.map_err(|why| failed(&format!("node {node} was not detached"), why))?;
        Ok(done(format!("node {node} is detached")))
    }

    fn job(&self, id: u64) -> Result<Reply, CommandError> {
        self.recovery.job(id).map(|job| Reply::Job { job }).ok_or_else(|| unknown_job(id))
    }

    fn cancel(&self, id: u64) -> Result<Reply, CommandError> {
        if self.recovery.job(id).is_none() {
            return Err(unknown_job(id));
        }
        self.recovery.cancel(id).map_err(|why| failed(&format!("job {id} was not cancelled"), why))?;
        Ok(done(format!("job {id} was asked to end; it undoes what it can")))
    }
}

fn done(message: String) -> Reply {
    Reply::Done { message }
}

fn failed(message: &str, detail: String) -> CommandError {
    CommandError { message: message.to_owned(), detail: Some(detail), hint: None, fatal: false }
}

fn unknown_job(id: u64) -> CommandError {
    CommandError {
        message: format!("there is no job {id}"),
        detail: None,
        hint: Some("`pgmend jobs` lists those that are remembered".to_owned()),
        fatal: false,
    }
}

fn out_of_range(request: &str, node: NodeId) -> CommandError {
    CommandError {
        message: format!(
            "invalid {request} request, node id: {node} is out of range. node id must be between [0 and {MAX_NODES}]"
        ),
        detail: None,
        hint: Some(WHICH_NODES.to_owned()),
        fatal: false,
    }
}

fn not_live(node: NodeId, status: NodeStatus) -> CommandError {
    let code = status.code();
    CommandError {
        message: format!(
            "invalid degenerate backend request, node id : {node} status: [{code}] is not valid for failover"
        ),
        detail: Some(format!("node {node} is {status}")),
        hint: None,
        fatal: false,
    }
}

fn stop_name(mode: StopMode) -> &'static str {
    match mode {
        StopMode::Smart => "smart",
        StopMode::Fast => "fast",
        StopMode::Immediate => "immediate",
    }
}

/// `Admin` as PCP's operator.
pub struct PcpOperator(pub Arc<Admin>);

impl super::pcp::Operator for PcpOperator {
    fn run(&self, command: Command) -> BoxFuture<Result<Reply, CommandError>> {
        let admin = self.0.clone();
        Box::pin(async move { admin.run(command).await })
    }

    fn wait_job(&self, id: u64) -> BoxFuture<Option<JobSnapshot>> {
        let admin = self.0.clone();
        Box::pin(async move { admin.wait_job(id).await })
    }

    fn view(&self) -> Arc<View> {
        self.0.view()
    }

    fn listed_parameters(&self) -> Vec<(String, String, String)> {
        self.0.listed_parameters()
    }
}

/// Of all orders in force; who holds several up is named once.
fn holdups(board: &Board) -> Vec<String> {
    let orders = board.read().gate.orders.clone();
    let named: BTreeSet<(u64, String)> = orders
        .iter()
        .flat_map(|order| board.holdups(order.number))
        .map(|who| (who.session, who.to_string()))
        .take(MAX_HOLDUPS)
        .collect();
    named.into_iter().map(|(_, who)| who).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake;

    #[tokio::test]
    async fn refusals_have_pgpools_words() {
        let (fake, admin) = fake::admin();
        let p = std::process::id();
        let words = [
            (
                Command::Attach { node: NodeId(3), accept_data: false },
                "invalid failback request, node id: 3 is out of range. node id must be between [0 and 128]".to_owned(),
            ),
            (
                Command::Detach { node: NodeId(3) },
                "invalid degenerate backend request, node id: 3 is out of range. node id must be between [0 and 128]"
                    .to_owned(),
            ),
            (
                Command::Detach { node: NodeId(1) },
                "invalid degenerate backend request, node id : 1 status: [3] is not valid for failover: node 1 is down"
                    .to_owned(),
            ),
            (
                Command::Detach { node: NodeId(2) },
                format!(
                    "degenerate backend request for node_id: 2 from pid [{p}] is canceled because failover is disallowed on the node"
                ),
            ),
            (
                Command::Recover { node: NodeId(3), overwrite: false, accept_loss: false },
                "process recovery request failed: node id 3 is not valid".to_owned(),
            ),
            (Command::Job { id: 8 }, "there is no job 8".to_owned()),
            (Command::CancelJob { id: 8 }, "there is no job 8".to_owned()),
            (Command::Reload, "the configuration stays: pgmend.toml:3: no".to_owned()),
        ];
        for (command, expected) in words {
            assert_eq!(admin.run(command).await.unwrap_err().to_string(), expected);
        }
        assert!(fake.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn orders_reach_their_ports() {
        let (fake, admin) = fake::admin();
        admin.run(Command::Attach { node: NodeId(0), accept_data: false }).await.unwrap();
        admin.run(Command::Attach { node: NodeId(1), accept_data: false }).await.unwrap();
        let error = admin.run(Command::Detach { node: NodeId(0) }).await.unwrap_err();
        assert_eq!(error.to_string(), "node 0 was not detached: the disk is full");
        let recover = Command::Recover { node: NodeId(1), overwrite: true, accept_loss: false };
        let Reply::Job { job } = admin.run(recover).await.unwrap() else { panic!("no job") };
        assert_eq!(job.id, 7);
        let Reply::Jobs { jobs } = admin.run(Command::Jobs).await.unwrap() else { panic!("no jobs") };
        assert_eq!(jobs.iter().map(|j| j.id).collect::<Vec<_>>(), [7, 3]);
        admin.run(Command::CancelJob { id: 7 }).await.unwrap();
        admin.run(Command::Stop { mode: StopMode::Fast }).await.unwrap();
        let orders = fake.0.lock().unwrap().clone();
        assert_eq!(orders, ["attach 1", "detach 0", "recover 1 true false", "cancel 7", "stop"]);
        fake.0.lock().unwrap().clear();
        let db = || "d".to_owned();
        let pause = |timeout_s| Command::Pause { database: Some(db()), timeout_s, at_most_s: Some(9), drain: false };
        admin.run(pause(7)).await.unwrap();
        assert!(admin.run(pause(3601)).await.unwrap_err().to_string().contains("at most 3600 seconds"));
        admin.run(Command::Resume { database: Some(db()) }).await.unwrap();
        admin.run(Command::Reconnect { database: None }).await.unwrap();
        admin.run(Command::Kill { database: None }).await.unwrap();
        admin.run(Command::Disable { database: db() }).await.unwrap();
        admin.run(Command::Enable { database: db() }).await.unwrap();
        let work = crate::maintenance::Planned::Begin { node: NodeId(1) };
        admin.run(Command::Planned { work: work.clone(), dry_run: false }).await.unwrap();
        admin.run(Command::Planned { work, dry_run: true }).await.unwrap();
        let planned: Vec<String> = fake.0.lock().unwrap().drain(6..).collect();
        assert_eq!(planned, ["begin Begin { node: NodeId(1) }", "plan Begin { node: NodeId(1) }"]);
        let all = ["reconnect all databases", "kill all databases", "disable d true", "disable d false"];
        assert_eq!(
            *fake.0.lock().unwrap(),
            [&["pause database d 7s Some(9s)", "resume database d"][..], &all].concat()
        );
        assert_eq!(admin.wait_job(7).await.unwrap().id, 7);
    }
}
