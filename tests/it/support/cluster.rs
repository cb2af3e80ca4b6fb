//! Real PostgreSQL servers: a primary and its standbys, in a story's folder.

use super::direct;
use super::process::{Ran, as_postgres, bin, is_alive, run, signal, wait_until};
use super::scratch::{Scratch, free_port, write_as_postgres};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One server.
pub struct Node {
    pub port: u16,
    pub data: PathBuf,
}

/// A primary (node 0) and standbys.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub scratch: Scratch,
}

const HBA_TRUST: &str = "local all all trust\nhost all all 127.0.0.1/32 trust\nlocal replication all trust\n\
     host replication all 127.0.0.1/32 trust\n";
const HBA_SCRAM: &str = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\nlocal replication all trust\n\
     host replication all 127.0.0.1/32 scram-sha-256\n";

impl Cluster {
    /// A primary alone.
    pub fn single() -> Self {
        Self::build(0, HBA_TRUST)
    }

    /// A primary and a standby that streams.
    pub fn pair() -> Self {
        Self::build(1, HBA_TRUST)
    }

    /// A primary alone that wants SCRAM over TCP. Superuser `postgres` with password `postgres`, and `app` with `secret`.
    pub fn scram() -> Self {
        let cluster = Self::build(0, HBA_SCRAM);
        cluster.sql(0, "postgres", "ALTER USER postgres PASSWORD 'postgres'; CREATE USER app PASSWORD 'secret'");
        cluster.sql(0, "postgres", "CREATE DATABASE app OWNER app");
        cluster
    }

    fn build(standbys: usize, hba: &str) -> Self {
        let scratch = Scratch::new();
        let data = scratch.path().join("node0");
        super::template::data_directory(&data);
        let port = free_port();
        let folder = scratch.path().display();
        append(
            &data.join("postgresql.conf"),
            &format!(
                "listen_addresses='127.0.0.1'\nport={port}\nunix_socket_directories='{folder}'\nfsync=off\n\
                 full_page_writes=on\nwal_log_hints=on\nmax_connections=200\nmax_wal_senders=10\nshared_buffers=32MB\n\
                 min_wal_size=32MB\nmax_wal_size=512MB\nlog_line_prefix='%m [%p] %a '\n"
            ),
        );
        write_as_postgres(&data.join("pg_hba.conf"), hba, "600");
        let mut cluster = Cluster { nodes: vec![Node { port, data }], scratch };
        cluster.start(0);
        for _ in 0..standbys {
            cluster.add_standby();
        }
        cluster
    }

    /// Servers that begin as copies of each other and know nothing of each other: pgmend keeps them equal.
    pub fn equals(count: usize) -> Self {
        let mut cluster = Self::build(0, HBA_TRUST);
        cluster.stop(0);
        for _ in 1..count {
            cluster.add_copy();
        }
        (0..count).for_each(|id| cluster.start(id));
        cluster
    }

    /// A copy of node 0, which is stopped.
    fn add_copy(&mut self) {
        let id = self.add_empty_node();
        let (from, to) = (self.nodes[0].data.clone(), self.nodes[id].data.clone());
        run(as_postgres("cp").arg("-a").arg(from).arg(&to)).must();
        append(&to.join("postgresql.conf"), &format!("port={}\n", self.nodes[id].port));
    }

    /// Adds a standby by pg_basebackup, with a slot, and waits until it streams.
    pub fn add_standby(&mut self) -> usize {
        let id = self.add_empty_node();
        let name = format!("pgmend_{id}");
        let data = self.nodes[id].data.clone();
        let source = format!("host=127.0.0.1 port={} user=postgres application_name={name}", self.nodes[0].port);
        run(as_postgres(bin("pg_basebackup"))
            .args(["-d", &source, "-R", "-C", "-S", &name])
            .args(["-X", "stream", "-c", "fast", "--no-sync", "-D"])
            .arg(&data))
        .must();
        append(&data.join("postgresql.conf"), &format!("port={}\n", self.nodes[id].port));
        self.start(id);
        self.wait_streaming(id);
        id
    }

    /// A node with a port and a data directory that does not exist yet.
    pub fn add_empty_node(&mut self) -> usize {
        let id = self.nodes.len();
        self.nodes.push(Node { port: free_port(), data: self.scratch.path().join(format!("node{id}")) });
        id
    }

    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    #[track_caller]
    pub fn start(&self, id: usize) {
        self.try_start(id).must();
    }

    pub fn try_start(&self, id: usize) -> Ran {
        let log = self.folder().join(format!("node{id}.log"));
        let mut start = as_postgres(bin("pg_ctl"));
        start.args(["start", "-w", "-t", "60", "-D"]).arg(&self.nodes[id].data).arg("-l").arg(log);
        run(&mut start)
    }

    pub fn stop(&self, id: usize) {
        run(as_postgres(bin("pg_ctl")).args(["stop", "-m", "fast", "-w", "-D"]).arg(&self.nodes[id].data)).must();
    }

    /// Adds lines to a node's `postgresql.conf`.
    pub fn configure(&self, id: usize, lines: &str) {
        append(&self.nodes[id].data.join("postgresql.conf"), lines);
    }

    /// The postmaster's process id.
    pub fn pid(&self, id: usize) -> Option<u32> {
        let text = std::fs::read_to_string(self.nodes[id].data.join("postmaster.pid")).ok()?;
        text.lines().next()?.parse().ok()
    }

    /// Ends a server as a power cut would.
    pub fn kill9(&self, id: usize) {
        let pid = self.pid(id).expect("the server runs");
        signal(pid, "-9");
        let port = self.nodes[id].port;
        wait_until("the killed server is gone", Duration::from_secs(20), || {
            // Also as a zombie: PostgreSQL takes one for a server that runs. Another thread may have started the next one.
            let is_next = self.pid(id).is_some_and(|other| other != pid);
            !std::path::Path::new(&format!("/proc/{pid}")).exists()
                && (is_next || std::net::TcpStream::connect(("127.0.0.1", port)).is_err())
        });
    }

    /// Freezes (`-STOP`) or wakes (`-CONT`) a server's postmaster.
    pub fn signal(&self, id: usize, name: &str) {
        signal(self.pid(id).expect("the server runs"), name);
    }

    /// Freezes a server with all its processes, as when its machine stands still: nothing is answered, and nothing closed.
    pub fn freeze(&self, id: usize) {
        let postmaster = self.pid(id).expect("the server runs");
        // First of all the one that makes others.
        signal(postmaster, "-STOP");
        let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"));
        for child in children.expect("the kernel tells a process's children").split_whitespace() {
            signal(child.parse().expect("a number"), "-STOP");
        }
    }

    /// A statement straight to a node, over its Unix socket; the rows as psql prints them unaligned.
    #[track_caller]
    pub fn sql(&self, id: usize, database: &str, statement: &str) -> String {
        match direct::ask(self.folder(), self.nodes[id].port, database, statement) {
            Ok(rows) => rows,
            Err(why) => panic!("node {id}: {why}\n-- {statement}"),
        }
    }

    /// As `sql`, empty when the server does not answer.
    pub fn try_sql(&self, id: usize, database: &str, statement: &str) -> String {
        direct::ask(self.folder(), self.nodes[id].port, database, statement).unwrap_or_default()
    }

    pub fn wait_streaming(&self, id: usize) {
        wait_until("the standby streams", Duration::from_secs(30), || {
            self.try_sql(id, "postgres", "SELECT status FROM pg_stat_wal_receiver") == "streaming"
        });
    }

    /// True when both hold the same rows, once the standby has replayed what the primary has written.
    pub fn wait_same(&self, id: usize, database: &str, statement: &str) {
        wait_until("the standby holds the primary's rows", Duration::from_secs(30), || {
            self.try_sql(id, database, statement) == self.sql(0, database, statement)
        });
    }

    /// A file in a node's data directory, of user postgres.
    pub fn write(&self, id: usize, name: &str, text: &str, mode: &str) -> PathBuf {
        write_as_postgres(&self.nodes[id].data.join(name), text, mode)
    }

    /// Transactions of pgbench that a node holds.
    pub fn pgbench_transactions(&self, id: usize) -> u64 {
        self.sql(id, "postgres", "SELECT count(*) FROM pgbench_history").parse().expect("a number")
    }

    /// pgbench's tables in a database, straight on the primary.
    pub fn pgbench_tables(&self, database: &str, scale: u32) {
        self.pgbench_tables_on(0, database, scale);
    }

    /// The same on any node.
    pub fn pgbench_tables_on(&self, id: usize, database: &str, scale: u32) {
        let port = self.nodes[id].port.to_string();
        run(as_postgres(bin("pgbench"))
            .args(["-i", "-q", "-s", &scale.to_string(), "-U", "postgres", "-p", &port, "-h"])
            .arg(self.folder())
            .arg(database))
        .must();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The servers know best how to end; what is left, the folder's own end takes. A frozen one would hold pg_ctl.
        for id in 0..self.nodes.len() {
            if let Some(pid) = self.pid(id).filter(|pid| is_alive(*pid)) {
                signal(pid, "-QUIT");
                signal(pid, "-CONT");
            }
        }
    }
}

/// psql with one statement, unaligned, tuples only.
pub fn psql(host: &str, port: u16, user: &str, database: &str, statement: &str) -> Ran {
    let mut command = as_postgres(bin("psql"));
    command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", host, "-p", &port.to_string(), "-U", user, "-d", database]);
    run(command.args(["-c", statement]))
}

fn append(path: &Path, text: &str) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().append(true).open(path).expect("the file is there");
    file.write_all(text.as_bytes()).expect("the file can be written");
}
