//! What the gate and the view cost each transaction: a worker's look at the board, and what the look would cost without
//! the number that tells that nothing moved.

// Criterion's macros make functions that cannot carry documentation.
#![allow(missing_docs)]

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use pgmend::auth::{HbaRules, Method, Secrets};
use pgmend::base::NodeId;
use pgmend::client::startup::{StartupContext, Turns};
use pgmend::client::{Nudge, Plane, PlaneSettings, Worker};
use pgmend::cluster::{Board, DataState, Holder, Mode, NodeStatus, NodeView, Role, Scope, Servers, View, Wanted};
use pgmend::config;
use pgmend::pool::Home;
use std::hint::black_box;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A worker of a cluster with a primary and a standby, both up.
fn worker() -> Rc<Worker> {
    let text = include_str!("../conf/pgmend-minimal.toml");
    let config = config::parse_toml(Path::new("conf/pgmend-minimal.toml"), text).expect("the sample");
    let nodes = config.nodes.iter().map(|spec| NodeView {
        spec: Arc::new(spec.clone()),
        status: NodeStatus::Up,
        role: if spec.id == NodeId(0) { Role::Primary } else { Role::Standby },
        reachable: Some(true),
        changed_at_s: 0,
        reason: String::new(),
        data: DataState::Trusted,
        delay_bytes: None,
        replication_state: None,
        sync_state: None,
        position: None,
    });
    let view =
        View { generation: 1, mode: Mode::default(), epoch: None, primary: Some(NodeId(0)), nodes: nodes.collect() };
    let settings = PlaneSettings {
        replication: config.replication.clone(),
        client: config.client,
        pool: config.pool,
        server: config.server,
        drain: config.recovery.drain,
        recovery_timeout: config.recovery.timeout,
        server_tls: pgmend::net::ServerTls::load(&Default::default()).expect("no files"),
        keepalive: Duration::from_secs(60),
    };
    let startup = StartupContext {
        tls: None,
        hba: Arc::new(HbaRules::uniform(Method::Trust)),
        secrets: Arc::new(Secrets::new([], [0; 32])),
        query: None,
        ldap_tls: None,
        pam_service: "postgresql".into(),
        aside: None,
        login_timeout: Duration::from_secs(60),
        turns: Turns::new(0),
    };
    Worker::new(Plane::new(Board::new(view), settings, startup), Home(0), Nudge::default())
}

/// Publishes the gate anew, as an order does.
fn publish(board: &Arc<Board>, held: bool) {
    let wanted = Wanted {
        scope: Scope::All,
        holder: Holder::Operator,
        reason: String::new(),
        servers: Servers::Keep,
        drain: None,
        end_sessions: false,
        until: None,
    };
    let hold = board.hold(&wanted).expect("there are none");
    if held {
        board.take_back(|number, _, _| number != hold.number());
        hold.stand(None);
    }
}

fn gate(criterion: &mut Criterion) {
    let worker = worker();
    let key = pgmend::pool::PoolKey::of_primary("postgres".into(), "postgres".into());
    let board = &worker.plane.board;
    let mut group = criterion.benchmark_group("gate, one transaction");
    group.bench_function("a worker's look, nothing moved", |b| b.iter(|| black_box(worker.way_for(&key))));
    group.bench_function("the number alone", |b| b.iter(|| black_box(board.version())));
    group.bench_function("not done: view and gate read each time", |b| b.iter(|| black_box(board.read())));
    for (name, held) in [("held", true), ("open", false)] {
        let setup = || publish(board, held);
        group.bench_function(format!("a worker's first look after a change: {name}"), |b| {
            b.iter_batched(setup, |()| black_box(worker.way_for(&key)), BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, gate);
criterion_main!(benches);
