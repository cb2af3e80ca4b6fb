//! PCP driven by Pgpool-II's own tools, and by raw bytes where the tools cannot err.

use super::{BoxFuture, Operator, bind};
use crate::admin::{Command, CommandError, PcpSettings, Reply, StopMode};
use crate::base::NodeId;
use crate::cluster::{DataState, Host, Mode, NodeSpec, NodeStatus, NodeView, Role, View};
use crate::maintenance::Planned;
use crate::workflow::{JobSnapshot, Outcome, Progress};
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

/// Remembers what it was told; recoveries of node 1 succeed, of node 2 fail, of node 0 are refused.
#[derive(Default)]
struct Fake {
    told: Mutex<Vec<Command>>,
}

fn node(id: u16, role: Role, status: NodeStatus) -> NodeView {
    NodeView {
        spec: Arc::new(NodeSpec {
            host: Host("127.0.0.1".into()),
            port: 5432 + id,
            weight: if id == 0 { 2.0 } else { 1.0 },
            ..NodeSpec::sample(id)
        }),
        status,
        role,
        reachable: (id < 2).then_some(true),
        changed_at_s: 1_700_000_000,
        reason: String::new(),
        data: DataState::Trusted,
        delay_bytes: (role == Role::Standby).then_some(4096),
        replication_state: (role == Role::Standby).then(|| "streaming".to_owned()),
        sync_state: (role == Role::Standby).then(|| "async".to_owned()),
        position: None,
    }
}

fn job(id: u64, outcome: Outcome) -> JobSnapshot {
    JobSnapshot {
        id,
        kind: "recovery".into(),
        node: NodeId(1),
        stage: "FirstStage".into(),
        progress: Progress::default(),
        outcome,
        message: "Script \"copy\" ended with status 3".into(),
        output: vec!["copying".into(), "No space left on device".into()],
        started_at_s: 1,
        ended_at_s: None,
    }
}

impl Operator for Fake {
    fn run(&self, command: Command) -> BoxFuture<Result<Reply, CommandError>> {
        self.told.lock().unwrap().push(command.clone());
        let refusal = |message: &str, detail: &str, fatal| {
            Err(CommandError { message: message.into(), detail: Some(detail.into()), hint: None, fatal })
        };
        let result = match command {
            Command::Recover { node: NodeId(0), .. } => refusal(
                "process recovery request failed",
                "primary server cannot be recovered by online recovery.",
                false,
            ),
            Command::Recover { node: NodeId(3), .. } => refusal("process recovery request failed", "already", true),
            Command::Planned { work: Planned::Switchover { node: Some(node), .. }, .. } => {
                let job = JobSnapshot { kind: "switchover".into(), ..job(u64::from(node.0), Outcome::Running) };
                Ok(Reply::Job { job })
            }
            Command::Recover { node, .. } => Ok(Reply::Job { job: job(u64::from(node.0), Outcome::Running) }),
            _ => Ok(Reply::Done { message: "done".into() }),
        };
        Box::pin(async move { result })
    }
    fn wait_job(&self, id: u64) -> BoxFuture<Option<JobSnapshot>> {
        Box::pin(async move {
            match id {
                1 => Some(job(1, Outcome::Succeeded)),
                2 => Some(job(2, Outcome::Failed)),
                _ => std::future::pending().await,
            }
        })
    }
    fn view(&self) -> Arc<View> {
        Arc::new(View {
            generation: 1,
            mode: Mode::default(),
            epoch: None,
            primary: Some(NodeId(0)),
            nodes: vec![
                node(0, Role::Primary, NodeStatus::Up),
                node(1, Role::Standby, NodeStatus::Waiting),
                node(2, Role::Unknown, NodeStatus::Down),
                node(3, Role::Unknown, NodeStatus::Down),
                node(4, Role::Unknown, NodeStatus::Unused),
            ],
        })
    }
    fn listed_parameters(&self) -> Vec<(String, String, String)> {
        let long = "x".repeat(3000);
        vec![("port".into(), "6432".into(), "where clients come".into()), ("n".repeat(200), long.clone(), long)]
    }
}

/// A served PCP and what the tools need to reach it.
struct Served {
    fake: Arc<Fake>,
    port: u16,
    folder: tempfile::TempDir,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn settings(folder: &Path, port: u16) -> PcpSettings {
    PcpSettings {
        addresses: vec!["127.0.0.1".into()],
        port,
        socket_directory: Some(folder.to_owned()),
        password_file: folder.join("pcp.conf"),
    }
}

fn write_passwords(file: PathBuf, text: &str) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

async fn served() -> Served {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    // md5 of "secret".
    std::fs::write(folder.path().join("pcp.conf"), "# users\n\nadmin:5ebe2294ecd0e0f08eab7690d2a6ee69\n").unwrap();
    write_passwords(folder.path().join("right"), "*:*:admin:secret\n");
    write_passwords(folder.path().join("wrong"), "*:*:admin:other\n");
    let (fake, stop) = (Arc::new(Fake::default()), CancellationToken::new());
    let bound = bind(&settings(folder.path(), port)).unwrap();
    let task = tokio::spawn(bound.serve(fake.clone(), stop.clone()));
    Served { fake, port, folder, stop, task }
}

impl Served {
    /// Output (both streams) and exit status of a stock tool. A missing tool fails the test.
    async fn tool_with(&self, passwords: &str, host: &Path, tool: &str, arguments: &[&str]) -> (String, i32) {
        let output = tokio::process::Command::new(format!("/usr/sbin/{tool}"))
            .env("PCPPASSFILE", self.folder.path().join(passwords))
            .args(["-w", "-U", "admin", "-p", &self.port.to_string(), "-h"])
            .arg(host)
            .args(arguments)
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(10), output).await.expect("the tool hangs");
        let output = output.unwrap_or_else(|e| panic!("{tool} of the package pgpool2 is needed: {e}"));
        let text = [output.stdout, output.stderr].concat();
        (String::from_utf8(text).unwrap(), output.status.code().unwrap())
    }

    async fn tool(&self, tool: &str, arguments: &[&str]) -> String {
        self.tool_with("right", Path::new("127.0.0.1"), tool, arguments).await.0
    }

    fn told(&self) -> Vec<Command> {
        std::mem::take(&mut *self.fake.told.lock().unwrap())
    }

    async fn raw(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    /// Logs in by hand.
    async fn logged_in(&self) -> TcpStream {
        let mut stream = self.raw().await;
        stream.write_all(b"M\0\0\0\x04").await.unwrap();
        let mut reply = [0; 9];
        stream.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply[..5], *b"m\0\0\0\x08");
        let salt = reply[5..9].try_into().unwrap();
        let digest = super::login::expected("5ebe2294ecd0e0f08eab7690d2a6ee69", "admin", salt);
        let mut request = b"R\0\0\0\x2badmin\0".to_vec();
        request.extend(digest.bytes());
        request.push(0);
        stream.write_all(&request).await.unwrap();
        assert_eq!(some(&mut stream).await, b"r\0\0\0\x15AuthenticationOK\0");
        stream
    }
}

async fn some(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let count = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut bytes)).await.unwrap().unwrap();
    bytes.truncate(count);
    bytes
}

async fn to_the_end(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
    bytes
}

#[tokio::test]
async fn stock_tools_read_the_nodes() {
    let s = served().await;
    assert_eq!(s.tool("pcp_node_count", &[]).await, "5\n");
    // The tools print local time, so the date is left out.
    let first = s.tool("pcp_node_info", &["0"]).await;
    assert!(first.starts_with("127.0.0.1 5432 2 0.333333 up up primary primary 0 none none 2023-11-1"), "{first}");
    let all = s.tool("pcp_node_info", &["-a"]).await;
    let rows: Vec<&str> = all.lines().collect();
    assert_eq!(rows.len(), 5, "{all}");
    assert!(rows[1].starts_with("127.0.0.1 5433 1 0.166667 waiting up standby standby 4096 streaming async "), "{all}");
    assert!(rows[2].starts_with("127.0.0.1 5434 3 0.166667 down unknown standby unknown 0 none none "), "{all}");
    assert!(rows[4].starts_with("127.0.0.1 5436 0 0.166667 unused unknown standby unknown "), "{all}");
    let verbose = s.tool("pcp_node_info", &["-v", "1"]).await;
    assert!(verbose.contains("Replication Delay      : 4096\n"), "{verbose}");
    let bad = s.tool("pcp_node_info", &["7"]).await;
    assert_eq!(bad, "ERROR:  informing node info failed\nDETAIL:  invalid node ID : 7\n\n");
    let over_unix = s.tool_with("right", s.folder.path(), "pcp_node_count", &[]).await;
    assert_eq!(over_unix, ("5\n".to_owned(), 0));
}

#[tokio::test]
async fn stock_tools_command() {
    let s = served().await;
    assert_eq!(s.tool("pcp_attach_node", &["1"]).await, "pcp_attach_node -- Command Successful\n");
    assert_eq!(s.tool("pcp_detach_node", &["1"]).await, "pcp_detach_node -- Command Successful\n");
    assert_eq!(s.tool("pcp_detach_node", &["-g", "2"]).await, "pcp_detach_node -- Command Successful\n");
    assert_eq!(s.tool("pcp_reload_config", &[]).await, "pcp_reload_config -- Command Successful\n");
    assert_eq!(s.tool("pcp_stop_pgpool", &["-m", "fast"]).await, "pcp_stop_pgpool -- Command Successful\n");
    // The order to stop follows the answer.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while s.fake.told.lock().unwrap().len() < 5 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (one, two) = (NodeId(1), NodeId(2));
    let expected = [
        Command::Attach { node: one, accept_data: false },
        Command::Detach { node: one },
        Command::Detach { node: two },
        Command::Reload,
        Command::Stop { mode: StopMode::Fast },
    ];
    assert_eq!(s.told(), expected);
    let bad = s.tool("pcp_attach_node", &["9"]).await;
    assert!(bad.starts_with("ERROR:  invalid failback request, node id: 9 is out of range. node id must be"), "{bad}");
    let bad = s.tool("pcp_detach_node", &["9"]).await;
    assert!(bad.starts_with("ERROR:  invalid degenerate backend request, node id: 9 is out of range."), "{bad}");
    assert_eq!(s.told(), []);
}

#[tokio::test]
async fn stock_tools_recover() {
    let s = served().await;
    assert_eq!(s.tool("pcp_recovery_node", &["1"]).await, "pcp_recovery_node -- Command Successful\n");
    assert_eq!(s.told(), [Command::Recover { node: NodeId(1), overwrite: false, accept_loss: false }]);
    let failed = s.tool("pcp_recovery_node", &["2"]).await;
    let expected = "ERROR:  script \"copy\" ended with status 3\nDETAIL:  copying\nNo space left on device\n\n";
    assert_eq!(failed, expected);
    let refused = s.tool("pcp_recovery_node", &["0"]).await;
    let expected = "ERROR:  process recovery request failed\n\
                    DETAIL:  primary server cannot be recovered by online recovery.\n\n";
    assert_eq!(refused, expected);
    let fatal = s.tool("pcp_recovery_node", &["3"]).await;
    assert_eq!(fatal, "FATAL:  process recovery request failed\nDETAIL:  already\n\n");
    let bad = s.tool("pcp_recovery_node", &["9"]).await;
    assert_eq!(bad, "ERROR:  process recovery request failed\nDETAIL:  node id 9 is not valid\n\n");
}

#[tokio::test]
async fn stock_tools_with_a_wrong_password_are_refused_until_the_file_says_otherwise() {
    let s = served().await;
    let host = Path::new("127.0.0.1");
    let (text, status) = s.tool_with("wrong", host, "pcp_node_count", &[]).await;
    let expected = "FATAL:  authentication failed for user \"admin\"\n\
                    DETAIL:  username and/or password does not match\n\n";
    assert_eq!((text.as_str(), status), (expected, 1));
    // md5 of "other".
    std::fs::write(s.folder.path().join("pcp.conf"), "admin:795f3202b17cb6bc3d4b771d8c6c9eaf\n").unwrap();
    assert_eq!(s.tool_with("wrong", host, "pcp_node_count", &[]).await.0, "5\n");
    std::fs::remove_file(s.folder.path().join("pcp.conf")).unwrap();
    assert_eq!(s.tool_with("wrong", host, "pcp_node_count", &[]).await.1, 1);
}

#[tokio::test]
async fn stock_tools_list_parameters_and_are_told_what_is_not_there_yet() {
    let s = served().await;
    let listed = s.tool("pcp_pool_status", &[]).await;
    assert!(listed.starts_with("name : port\nvalue: 6432\ndesc : where clients come\n"), "{listed}");
    for (tool, arguments) in [
        ("pcp_proc_count", &[][..]),
        ("pcp_proc_info", &[]),
        ("pcp_health_check_stats", &["0"]),
        ("pcp_watchdog_info", &[]),
    ] {
        assert_eq!(s.tool(tool, arguments).await, format!("ERROR:  {tool} is not supported by pgmend yet\n\n"));
    }
}

#[tokio::test]
async fn strangers_and_nonsense_end_the_connection() {
    let s = served().await;
    let mut stranger = s.raw().await;
    stranger.write_all(b"L\0\0\0\x04").await.unwrap();
    let expected =
        b"E\0\0\0\x61SFATAL\0CXX000\0Mauthentication failed for new PCP connection\0Dconnection not authorized\0\0";
    assert_eq!(to_the_end(stranger).await[5..], expected[5..]);
    let mut no_salt = s.raw().await;
    no_salt.write_all(b"R\0\0\0\x07a\0b").await.unwrap();
    assert!(String::from_utf8_lossy(&to_the_end(no_salt).await).contains("authentication failed for user \"a\""));
    let mut long = s.raw().await;
    long.write_all(b"M\0\0\x01\x04").await.unwrap();
    assert!(String::from_utf8_lossy(&to_the_end(long).await).contains("Dincorrect packet length (260)\0"));
    let mut unknown = s.logged_in().await;
    unknown.write_all(b"q\0\0\0\x04").await.unwrap();
    assert!(String::from_utf8_lossy(&to_the_end(unknown).await).contains("Dunknown PCP packet type \"q\"\0"));
}

#[tokio::test]
async fn one_connection_serves_many_requests_even_after_an_error() {
    let s = served().await;
    let mut stream = s.logged_in().await;
    // All at once: an unsupported command, a bad node, a parameter, the count, the end.
    let requests = b"N\0\0\0\x04I\0\0\0\x06x\0A\0\0\0\x1eclient_min_messages\0debug\0L\0\0\0\x04X\0\0\0\x04";
    stream.write_all(requests).await.unwrap();
    let text = String::from_utf8_lossy(&to_the_end(stream).await).into_owned();
    assert!(text.contains("Dinvalid node ID : x\0"), "{text:?}");
    assert!(text.ends_with("a\0\0\0\x14CommandComplete\0l\0\0\0\x16CommandComplete\x005\0"), "{text:?}");
}

#[tokio::test]
async fn waiting_clients_are_told_that_the_daemon_ends_and_the_sockets_go() {
    let s = served().await;
    // Node 4's recovery never ends.
    let mut waiting = s.logged_in().await;
    waiting.write_all(b"O\0\0\0\x064\0").await.unwrap();
    while s.fake.told.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    s.stop.cancel();
    assert!(String::from_utf8_lossy(&to_the_end(waiting).await).contains("Mrecovery failed\0Dpgmend ends"));
    tokio::time::timeout(Duration::from_secs(5), s.task).await.unwrap().unwrap().unwrap();
    assert!(!s.folder.path().join(format!(".s.PGSQL.{}", s.port)).exists());
}

#[tokio::test]
async fn a_client_that_leaves_during_a_recovery_frees_its_place() {
    let s = served().await;
    for _ in 0..super::MAX_CONNECTIONS + 1 {
        let mut waiting = s.logged_in().await;
        waiting.write_all(b"O\0\0\0\x064\0").await.unwrap();
        while s.told().is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        drop(waiting);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn one_connection_too_many_is_refused() {
    let s = served().await;
    let mut held = Vec::new();
    for _ in 0..super::MAX_CONNECTIONS {
        held.push(s.logged_in().await);
    }
    let text = String::from_utf8_lossy(&to_the_end(s.raw().await).await).into_owned();
    assert!(text.contains("FATAL\0CXX000\0Mtoo many PCP connections\0"), "{text:?}");
}

#[tokio::test]
async fn a_living_socket_is_left_alone_and_a_stale_one_replaced() {
    let s = served().await;
    let mut other = settings(s.folder.path(), s.port);
    other.addresses.clear();
    assert!(bind(&other).is_err());
    assert!(UnixStream::connect(s.folder.path().join(format!(".s.PGSQL.{}", s.port))).await.is_ok());
    let stale = tempfile::tempdir().unwrap();
    let path = stale.path().join(".s.PGSQL.9898");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let mut again = settings(stale.path(), 9898);
    again.addresses.clear();
    assert!(bind(&again).is_ok());
}
