//! Stand-ins for the daemon's other parts, for the tests of the surfaces.

use super::{Admin, BoxFuture, CommandError, Daemon, MaintenancePort, NodePort, RecoveryPort, StopMode, TrafficPort};
use crate::base::NodeId;
use crate::client::Pause;
use crate::cluster::{Board, DataState, Host, Mode, NodeSpec, NodeStatus, NodeView, Role, Scope, View};
use crate::maintenance::{Judgement, Plan, Planned, Verdict};
use crate::workflow::{JobSnapshot, Outcome, Progress};
use std::sync::{Arc, Mutex};

/// Writes down what was ordered. Knows job 7.
#[derive(Default)]
pub(crate) struct Fake(pub(crate) Mutex<Vec<String>>);

impl Fake {
    fn note(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
}

fn job(id: u64) -> JobSnapshot {
    JobSnapshot {
        id,
        kind: "recovery".into(),
        node: NodeId(1),
        stage: "FirstStage".into(),
        progress: Progress::default(),
        outcome: Outcome::Running,
        message: String::new(),
        output: Vec::new(),
        started_at_s: 1_700_000_000,
        ended_at_s: None,
    }
}

impl NodePort for Fake {
    fn attach(&self, node: NodeId, _accept_data: bool, _reason: String) -> BoxFuture<Result<(), String>> {
        self.note(format!("attach {node}"));
        Box::pin(async { Ok(()) })
    }
    fn detach(&self, node: NodeId, _reason: String) -> BoxFuture<Result<(), String>> {
        self.note(format!("detach {node}"));
        Box::pin(async { Err("the disk is full".into()) })
    }
}

impl RecoveryPort for Fake {
    fn start(&self, node: NodeId, overwrite: bool, accept_loss: bool) -> Result<u64, CommandError> {
        self.note(format!("recover {node} {overwrite} {accept_loss}"));
        Ok(7)
    }
    fn attach(&self, node: NodeId, accept_data: bool) -> Result<u64, CommandError> {
        self.note(format!("attach {node} {accept_data}"));
        Ok(7)
    }
    fn job(&self, id: u64) -> Option<JobSnapshot> {
        (id == 7).then(|| job(id))
    }
    fn jobs(&self) -> Vec<JobSnapshot> {
        vec![job(3), job(7)]
    }
    fn cancel(&self, id: u64) -> Result<(), String> {
        self.note(format!("cancel {id}"));
        Ok(())
    }
    fn wait(&self, id: u64) -> BoxFuture<Option<JobSnapshot>> {
        let job = self.job(id);
        Box::pin(async { job })
    }
}

impl TrafficPort for Fake {
    fn pause(&self, pause: Pause) -> BoxFuture<Result<String, CommandError>> {
        self.note(format!("pause {} {:?} {:?}", pause.scope, pause.timeout, pause.at_most));
        Box::pin(async { Ok("paused".into()) })
    }
    fn resume(&self, scope: Scope) -> Result<String, CommandError> {
        self.note(format!("resume {scope}"));
        Ok("resumed".into())
    }
    fn reconnect(&self, scope: Scope) -> String {
        self.note(format!("reconnect {scope}"));
        "reconnected".into()
    }
    fn kill(&self, scope: Scope) -> BoxFuture<Result<String, CommandError>> {
        self.note(format!("kill {scope}"));
        Box::pin(async { Ok("killed".into()) })
    }
    fn disable(&self, database: String, disabled: bool) -> Result<String, CommandError> {
        self.note(format!("disable {database} {disabled}"));
        Ok("done".into())
    }
}

impl MaintenancePort for Fake {
    fn begin(&self, work: Planned) -> Result<u64, CommandError> {
        self.note(format!("begin {work:?}"));
        Ok(7)
    }
    fn verdict(&self) -> Option<Verdict> {
        None
    }
    fn set_failover(&self, enabled: bool) -> Result<String, String> {
        self.note(format!("failover {enabled}"));
        Ok("done".into())
    }
    fn backed_up(&self) -> Result<String, String> {
        self.note("backed up".into());
        Ok("done".into())
    }
    fn plan(&self, work: Planned) -> BoxFuture<Result<Plan, CommandError>> {
        self.note(format!("plan {work:?}"));
        let plan = Plan { title: "plan".into(), judgement: Judgement::default(), steps: Vec::new() };
        Box::pin(async { Ok(plan) })
    }
}

impl Daemon for Fake {
    fn reload(&self) -> Result<String, String> {
        Err("pgmend.toml:3: no".into())
    }
    fn stop(&self, _mode: StopMode) {
        self.note("stop".into());
    }
    fn clients(&self) -> u64 {
        2
    }
    fn moved(&self) -> u64 {
        0
    }
    fn pending_restart(&self) -> Vec<String> {
        vec!["listen.backlog".into()]
    }
    fn listed_parameters(&self) -> Vec<(String, String, String)> {
        vec![("port".into(), "6432".into(), "where it listens".into())]
    }
}

fn node(id: u16, status: NodeStatus, role: Role, weight: f64) -> NodeView {
    NodeView {
        spec: Arc::new(NodeSpec {
            host: Host("/tmp".into()),
            port: 5432 + id,
            weight,
            allow_failover: id != 2,
            ..NodeSpec::sample(id)
        }),
        status,
        role,
        reachable: (id != 2).then_some(id == 0),
        changed_at_s: 1_709_210_096,
        reason: String::new(),
        data: DataState::Trusted,
        delay_bytes: (id == 1).then_some(42),
        replication_state: (id == 1).then(|| "streaming".into()),
        sync_state: (id == 1).then(|| "async".into()),
        position: None,
    }
}

/// Node 0 is the primary, node 1 is down, node 2 is up and not to be detached.
pub(crate) fn admin() -> (Arc<Fake>, Arc<Admin>) {
    let nodes = vec![
        node(0, NodeStatus::Up, Role::Primary, 1.0),
        node(1, NodeStatus::Down, Role::Standby, 2.0),
        node(2, NodeStatus::Waiting, Role::Unknown, 0.0),
    ];
    let board = Board::new(View { generation: 1, mode: Mode::default(), epoch: None, primary: Some(NodeId(0)), nodes });
    let fake = Arc::new(Fake::default());
    (fake.clone(), Admin::new(board, fake.clone(), fake.clone(), fake.clone(), fake.clone(), fake))
}
