//! Online recovery against real servers, below the daemon: each runner, a failing and a hanging script, a cancel.
//!
//! Runs as root (servers then run as the user `postgres`) or as any user that may run PostgreSQL.

use pgmend::base::{NodeId, Secret};
use pgmend::cluster::{
    Board, DataState, Host, Mode, NodeSpec, NodeStatus, NodeView, Published, Quiet, Role, SslMode, View,
};
use pgmend::recovery::{Attach, RecoverOptions, Recovery, Runner, Settings, Unlogged};
use pgmend::store::{self, Store};
use pgmend::workflow::{JobSnapshot, Jobs, Outcome};
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn bin(name: &str) -> PathBuf {
    let mut places: Vec<PathBuf> =
        std::fs::read_dir("/usr/lib/postgresql").unwrap().map(|e| e.unwrap().path()).collect();
    places.sort();
    places.pop().unwrap().join("bin").join(name)
}

fn as_postgres(command: &[&str]) -> String {
    let mut all = Vec::new();
    if nix::unistd::geteuid().is_root() {
        all.extend(["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    all.extend(command);
    let output = Command::new(all[0]).args(&all[1..]).current_dir("/").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn no_tls() -> Arc<pgmend::net::ServerTls> {
    pgmend::net::ServerTls::load(&Default::default()).unwrap()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

struct Cluster {
    root: PathBuf,
    ports: [u16; 2],
}

impl Cluster {
    fn new() -> Cluster {
        let root = as_postgres(&["mktemp", "-d", "/tmp/pgmend-recovery-XXXXXX"]).trim().to_owned();
        let cluster = Cluster { root: root.into(), ports: [free_port(), free_port()] };
        let data = cluster.data(0);
        as_postgres(&[bin("initdb").to_str().unwrap(), "-A", "trust", "-U", "postgres", "-N", "-k", "-D", &data]);
        let conf = format!(
            "port = {}\nunix_socket_directories = '{}'\nlisten_addresses = '127.0.0.1'\nfsync = off\nwal_log_hints = on\n",
            cluster.ports[0],
            cluster.root.display()
        );
        std::fs::write(format!("{data}/postgresql.conf"), conf).unwrap();
        cluster.pg_ctl(0, &["start", "-w"]);
        cluster.sql(0, "CREATE TABLE t AS SELECT generate_series(1, 100000) AS n");
        cluster
    }
    fn data(&self, node: usize) -> String {
        format!("{}/data{node}", self.root.display())
    }
    fn pg_ctl(&self, node: usize, words: &[&str]) {
        let (program, data) = (bin("pg_ctl"), self.data(node));
        let log = format!("{}/log{node}", self.root.display());
        let mut command = vec![program.to_str().unwrap(), "-D", &data, "-l", &log];
        command.extend(words);
        as_postgres(&command);
    }
    fn sql(&self, node: usize, sql: &str) -> String {
        let port = self.ports[node].to_string();
        as_postgres(&["psql", "-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-AtXqc", sql]).trim().to_owned()
    }
    fn script(&self, name: &str, text: &str) {
        let path = format!("{}/{name}", self.data(0));
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    fn spec(&self, node: usize) -> NodeSpec {
        NodeSpec {
            id: NodeId(u16::try_from(node).unwrap()),
            host: Host("127.0.0.1".into()),
            port: self.ports[node],
            data_directory: Some(self.data(node).into()),
            weight: 1.0,
            application_name: format!("pgmend_{node}"),
            allow_failover: true,
            always_primary: false,
            start_command: None,
            stop_command: None,
            status_command: None,
            sslmode: SslMode::Prefer,
            maintain: pgmend::cluster::MaintainCommands::default(),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 0..2 {
            let pid = std::fs::read_to_string(format!("{}/postmaster.pid", self.data(node))).unwrap_or_default();
            if let Some(Ok(pid)) = pid.lines().next().map(str::parse::<i32>) {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGQUIT).ok();
            }
        }
        // A Drop cannot await; the servers need a moment to let go of the folder.
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(Duration::from_millis(500));
        drop(std::fs::remove_dir_all(&self.root));
    }
}

/// Publishes the node as up, as keeper would.
struct Keeper(Arc<Board>);

impl Attach for Keeper {
    fn attach(
        &self,
        node: NodeId,
        generation: u64,
        _: Option<Quiet>,
        _: String,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        set_status(&self.0, node, NodeStatus::Up);
        let moved = self.0.view().generation == generation + 1;
        Box::pin(async move { if moved { Ok(()) } else { Err("the view moved".into()) } })
    }
}

fn set_status(board: &Board, node: NodeId, status: NodeStatus) {
    board.publish(|now| {
        let mut view = View::clone(&now.view);
        view.generation += 1;
        view.nodes[node.index()].status = status;
        Some(Published { view: Arc::new(view), gate: now.gate.clone() })
    });
}

struct Bench {
    cluster: Cluster,
    board: Arc<Board>,
    store: Store,
    jobs: Jobs,
    recovery: Recovery,
    settings: Arc<Mutex<Settings>>,
}

impl Bench {
    fn new() -> Bench {
        let cluster = Cluster::new();
        let node = |id: usize, status| NodeView {
            spec: Arc::new(cluster.spec(id)),
            status,
            role: Role::Unknown,
            reachable: None,
            changed_at_s: 0,
            reason: String::new(),
            data: DataState::Trusted,
            delay_bytes: None,
            replication_state: None,
            sync_state: None,
            position: None,
        };
        let nodes = vec![node(0, NodeStatus::Up), node(1, NodeStatus::Down)];
        let board =
            Board::new(View { generation: 1, mode: Mode::default(), epoch: None, primary: Some(NodeId(0)), nodes });
        let directory = cluster.root.join("state");
        let store = Store::open(&store::Settings { directory, pgpool_status: false, discard_status: false }).unwrap();
        let jobs = Jobs::new(store.clone()).unwrap();
        let settings = Arc::new(Mutex::new(Settings {
            runner: Runner::Builtin,
            user: "postgres".into(),
            password: Secret::default(),
            password_is_hash: false,
            database: "postgres".into(),
            first_stage_command: "copy.sh".into(),
            second_stage_command: String::new(),
            unlogged: Unlogged::Copy,
            timeout: Duration::from_secs(30),
            first_stage_timeout: Duration::ZERO,
            no_progress_timeout: Duration::from_secs(30),
            replication_user: String::new(),
            replication_password: Secret::default(),
            bin_directory: Some(bin("").to_owned()),
            use_rewind: true,
            drain: Default::default(),
        }));
        let now = settings.clone();
        let ask = Arc::new(move || now.lock().unwrap().clone());
        let keeper = Arc::new(Keeper(board.clone()));
        let recovery = Recovery::new(board.clone(), keeper, store.clone(), jobs.clone(), ask, Arc::new(no_tls));
        Bench { cluster, board, store, jobs, recovery, settings }
    }

    fn change(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings.lock().unwrap());
    }

    async fn recover(&self, options: RecoverOptions) -> JobSnapshot {
        let id = self.recovery.start(NodeId(1), options).unwrap();
        self.jobs.wait(id).await.unwrap()
    }

    async fn recovers(&self, how: &str) -> JobSnapshot {
        let job = self.recover(RecoverOptions::default()).await;
        assert_eq!(job.outcome, Outcome::Succeeded, "{how}: {} {:#?}", job.message, job.output);
        assert!(job.message.contains(how), "{}", job.message);
        assert_eq!(self.cluster.sql(1, "SELECT pg_is_in_recovery(), count(*) FROM t"), "t|100000");
        assert_eq!(self.board.view().node(NodeId(1)).unwrap().status, NodeStatus::Up);
        job
    }

    fn lose(&self) {
        self.cluster.pg_ctl(1, &["stop", "-m", "immediate", "-w"]);
        set_status(&self.board, NodeId(1), NodeStatus::Down);
    }

    async fn fails(&self, words: &[&str]) -> JobSnapshot {
        let job = self.recover(RecoverOptions::default()).await;
        assert_eq!(job.outcome, Outcome::Failed, "{}", job.message);
        for word in words {
            assert!(job.message.contains(word), "{word}: {}", job.message);
        }
        assert_eq!(self.board.view().node(NodeId(1)).unwrap().status, NodeStatus::Down);
        job
    }
}

fn sample(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/recovery").join(name);
    let text = std::fs::read_to_string(path).unwrap();
    text.replacen("set -eu", &format!("set -eu\nexport PATH={}:$PATH", bin("").display()), 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_standby_is_rebuilt_by_each_runner_and_a_failure_leaves_it_down() {
    let bench = Bench::new();

    // The very first copy, into nothing, without a script.
    bench.recovers("pg_basebackup").await;
    let refused = bench.recovery.start(NodeId(1), RecoverOptions::default()).unwrap_err();
    assert_eq!(refused.message, "node recovery failed, node id: 1 is alive");
    let refused = bench.recovery.start(NodeId(0), RecoverOptions::default()).unwrap_err();
    assert_eq!(refused.detail.unwrap(), "primary server cannot be recovered by online recovery.");
    let refused = bench.recovery.start(NodeId(7), RecoverOptions::default()).unwrap_err();
    assert_eq!(refused.detail.unwrap(), "node id 7 is not valid");

    // A target that still runs is never touched.
    set_status(&bench.board, NodeId(1), NodeStatus::Down);
    bench.fails(&["is not stopped"]).await;

    // Lost and rebuilt over its old data.
    bench.lose();
    bench.recovers("pg_basebackup").await;
    assert_eq!(bench.cluster.sql(0, "SELECT slot_name, active FROM pg_replication_slots"), "pgmend_1|t");

    // A script run by pgmend.
    bench.cluster.script("copy.sh", &sample("first_stage.sample.sh"));
    bench.cluster.script("pgpool_remote_start", &sample("pgpool_remote_start.sample.sh"));
    for (runner, how) in [(Runner::Local, "(local)"), (Runner::Program, "(program)")] {
        bench.lose();
        bench.change(|s| s.runner = runner);
        let job = bench.recovers(how).await;
        assert!(job.output.iter().any(|l| l == "copied"), "{:?}", job.output);
    }

    // The SQL function of Pgpool-II's own extension.
    bench.lose();
    bench.cluster.sql(0, "CREATE EXTENSION pgpool_recovery");
    bench.change(|s| s.runner = Runner::Sql);
    bench.recovers("(sql)").await;

    // Its words reach the operator when it fails.
    bench.lose();
    bench.cluster.script("copy.sh", "#!/bin/sh\necho 'the dog ate it' >&2\nexit 3\n");
    for runner in [Runner::Local, Runner::Program] {
        bench.change(|s| s.runner = runner);
        bench
            .fails(&["executing recovery, execution of command failed at \"1st stage\"", "status 3", "the dog ate it"])
            .await;
    }
    bench.change(|s| s.runner = Runner::Sql);
    bench.fails(&["execution of command failed", "does not pass on the script's output", "log"]).await;

    // A script that hangs ends by the limit, and by a cancel; nothing of it is left.
    bench.cluster.script("copy.sh", "#!/bin/sh\nsleep 987654\n");
    bench.change(|s| s.no_progress_timeout = Duration::from_secs(2));
    for runner in [Runner::Local, Runner::Program] {
        bench.change(|s| s.runner = runner);
        bench.fails(&["no progress"]).await;
    }
    bench.change(|s| s.no_progress_timeout = Duration::from_secs(60));
    for runner in [Runner::Local, Runner::Program] {
        bench.change(|s| s.runner = runner);
        let id = bench.recovery.start(NodeId(1), RecoverOptions::default()).unwrap();
        assert!(bench.recovery.start(NodeId(1), RecoverOptions::default()).unwrap_err().fatal);
        while bench.jobs.get(id).unwrap().stage != "FirstStage" {
            bench.jobs.changed(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        bench.jobs.cancel(id).unwrap();
        assert_eq!(bench.jobs.wait(id).await.unwrap().outcome, Outcome::Cancelled);
    }
    let left = Command::new("pgrep").args(["-f", "sleep 98765[4]"]).output().unwrap();
    assert!(left.stdout.is_empty(), "{}", String::from_utf8_lossy(&left.stdout));

    // And it can be run again.
    bench.change(|s| s.runner = Runner::Builtin);
    bench.recovers("pg_basebackup").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_would_be_lost_or_belong_to_others_are_kept() {
    let bench = Bench::new();
    bench.recovers("pg_basebackup").await;
    // The standby is promoted behind everybody's back and writes. pg_rewind needs a common checkpoint in its log.
    bench.cluster.sql(0, "CHECKPOINT");
    bench.cluster.sql(0, "CREATE TABLE after_checkpoint (n int)");
    let end = bench.cluster.sql(0, "SELECT pg_current_wal_lsn()");
    while bench.cluster.sql(1, &format!("SELECT pg_last_wal_replay_lsn() >= '{end}'")) != "t" {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bench.cluster.pg_ctl(1, &["promote", "-w"]);
    bench.cluster.sql(1, "CREATE TABLE only_here (n int); CHECKPOINT");
    bench.cluster.pg_ctl(1, &["stop", "-m", "fast", "-w"]);
    set_status(&bench.board, NodeId(1), NodeStatus::Down);
    bench.fails(&["ahead of the source", "--accept-loss"]).await;
    let job = bench.recover(RecoverOptions { accept_loss: true, ..RecoverOptions::default() }).await;
    assert_eq!(job.outcome, Outcome::Succeeded, "{} {:#?}", job.message, job.output);
    assert!(job.message.contains("pg_rewind"), "{} {:#?}", job.message, job.output);

    // Another system's data.
    bench.lose();
    std::fs::remove_dir_all(bench.cluster.data(1)).unwrap();
    let data = bench.cluster.data(1);
    as_postgres(&[bin("initdb").to_str().unwrap(), "-A", "trust", "-N", "-D", &data]);
    bench.fails(&["another system", "--overwrite"]).await;
    let job = bench.recover(RecoverOptions { overwrite: true, ..RecoverOptions::default() }).await;
    assert_eq!(job.outcome, Outcome::Succeeded, "{}", job.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_left_is_ended_told_and_can_be_run_again() {
    let bench = Bench::new();
    // As a daemon killed in the middle of a copy leaves it: an open journal, a script in its own group, half a copy.
    let mut journal = bench.store.journal(41).unwrap();
    let data = bench.cluster.data(1);
    journal.append("Requested", serde_json::json!({ "job": 41, "kind": "recovery", "node": 1 })).unwrap();
    journal.append("FirstStage.Empty", serde_json::json!({ "directory": data })).unwrap();
    drop(journal);
    as_postgres(&["mkdir", "-p", "-m", "700", &format!("{data}/base")]);
    let mark = format!("PGMEND_JOB={}:41", bench.store.directory().display());
    let mut child = Command::new("setsid").args(["env", &mark, "sleep", "987655"]).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let waiter = std::thread::spawn(move || child.wait().unwrap());
    let told = bench.recovery.cleanup_after_crash().await;
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("1 process group(s) of it were ended"), "{told:?}");
    assert!(!waiter.join().unwrap().success());
    assert_eq!(bench.jobs.get(41).unwrap().outcome, Outcome::Interrupted);
    assert!(bench.recovery.cleanup_after_crash().await.is_empty());
    bench.recovers("pg_basebackup").await;
    assert_eq!(bench.jobs.list()[0].id, 42);
}
