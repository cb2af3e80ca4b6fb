//! The daemon under test: writes its configuration, starts it as `postgres`, speaks to it by its own command line.

use super::cluster::{Cluster, psql};
use super::load::Door;
use super::process::{Ran, as_postgres, is_alive, kill, run_for, signal, wait_until};
use super::scratch::{free_port, write_as_postgres};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A configuration in the making: sections of TOML, each a list of lines.
#[derive(Clone)]
pub struct Config {
    sections: BTreeMap<&'static str, Vec<String>>,
    nodes: Vec<Vec<String>>,
    folder: PathBuf,
    pub port: u16,
    pub pcp_port: u16,
    pub user: String,
    pub database: String,
    env: Vec<(&'static str, String)>,
    under: Vec<String>,
}

impl Config {
    /// All nodes of a cluster, trust on both sides, transaction pooling, quick health checks.
    pub fn of(cluster: &Cluster) -> Self {
        let folder = cluster.folder().to_owned();
        let (port, pcp_port) = (free_port(), free_port());
        let at = folder.display();
        let mut config = Config {
            sections: BTreeMap::new(),
            nodes: Vec::new(),
            folder: folder.clone(),
            port,
            pcp_port,
            user: "postgres".into(),
            database: "postgres".into(),
            env: Vec::new(),
            under: Vec::new(),
        };
        for (id, node) in cluster.nodes.iter().enumerate() {
            config.nodes.push(vec![
                "host = \"127.0.0.1\"".into(),
                format!("port = {}", node.port),
                format!("data_directory = \"{}\"", node.data.display()),
                format!("application_name = \"pgmend_{id}\""),
            ]);
        }
        config.set("listen", "addresses = [\"127.0.0.1\"]").set("listen", &format!("port = {port}"));
        config.set("listen", &format!("unix_socket_directories = [\"{at}\"]"));
        if let Some(directory) = super::process::other_programs() {
            config.set("recovery", &format!("bin_directory = \"{}\"", directory.display()));
        }
        config.set("pool", "mode = \"transaction\"").set("auth", "method = \"trust\"");
        config.set("health", "health_check_period = \"1s\"").set("health", "health_check_timeout = \"2s\"");
        config.set("health", "health_check_retry_delay = \"500ms\"");
        config
            .set("admin", &format!("socket = \"{at}/pgmend.sock\""))
            .set("state", &format!("directory = \"{at}/state\""));
        config
    }

    /// Sets a key of a section: `set("pool", "mode = \"session\"")`. A later line replaces an earlier one of that key.
    pub fn set(&mut self, section: &'static str, line: &str) -> &mut Self {
        let key = |l: &str| l.split('=').next().unwrap_or_default().trim().to_owned();
        let lines = self.sections.entry(section).or_default();
        lines.retain(|old| key(old) != key(line));
        lines.push(line.to_owned());
        self
    }

    /// Sets a key of a node; it replaces an earlier one.
    pub fn node(&mut self, id: usize, line: &str) -> &mut Self {
        let key = |l: &str| l.split('=').next().unwrap_or_default().trim().to_owned();
        self.nodes[id].retain(|old| key(old) != key(line));
        self.nodes[id].push(line.to_owned());
        self
    }

    /// The last node leaves the configuration.
    pub fn forget_last_node(&mut self) {
        self.nodes.pop();
    }

    /// An environment variable of the daemon.
    pub fn env(&mut self, name: &'static str, value: &str) -> &mut Self {
        self.env.push((name, value.to_owned()));
        self
    }

    /// The daemon is started by this program, which is to become it (`strace -D`).
    pub fn under(&mut self, program: &[&str]) -> &mut Self {
        self.under = program.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// PCP on, user and password `postgres`.
    pub fn pcp(&mut self) -> &mut Self {
        // md5 of the word postgres, as pg_md5 prints it.
        let hash = "e8a48653851e28c69d0506508fb27fc5";
        write_as_postgres(&self.folder.join("pcp.conf"), &format!("postgres:{hash}\n"), "600");
        let (port, at) = (self.pcp_port, self.folder.display().to_string());
        self.set("admin", &format!("pcp_port = {port}")).set("admin", &format!("pcp_socket_dir = \"{at}\""));
        self.set("admin", &format!("pcp_file = \"{at}/pcp.conf\""))
    }

    /// SCRAM on the client's side, from a userlist; see `Cluster::scram`.
    pub fn scram(&mut self) -> &mut Self {
        let list = "\"app\" \"secret\"\n\"postgres\" \"postgres\"\n";
        write_as_postgres(&self.folder.join("userlist.txt"), list, "600");
        self.user = "app".into();
        self.database = "app".into();
        self.set("auth", "method = \"scram-sha-256\"").set("auth", "userlist_file = \"userlist.txt\"");
        self.set("health", "health_check_password = \"postgres\"")
    }

    /// A self-signed certificate for localhost.
    pub fn tls(&mut self) -> &mut Self {
        let at = self.folder.display();
        let (key, cert) = (format!("{at}/server.key"), format!("{at}/server.crt"));
        super::run(as_postgres("openssl").args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]).args(
            [
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost,IP:127.0.0.1",
                "-keyout",
                &key,
                "-out",
                &cert,
            ],
        ))
        .must();
        self.set("tls", "cert_file = \"server.crt\"").set("tls", "key_file = \"server.key\"")
    }

    /// The TOML as it stands.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for lines in &self.nodes {
            text += &format!("[[node]]\n{}\n", lines.join("\n"));
        }
        for (section, lines) in &self.sections {
            text += &format!("[{section}]\n{}\n", lines.join("\n"));
        }
        text
    }

    /// Where everything of this daemon lies.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// Writes the file; what a reload then reads.
    pub fn write(&self) -> PathBuf {
        write_as_postgres(&self.folder.join("pgmend.toml"), &self.text(), "644")
    }

    /// Takes the log of earlier daemons away, so that what is found in it is the next one's.
    pub fn forget_log(&self) {
        // There may be none yet.
        let _ = std::fs::remove_file(self.folder.join("pgmend.log"));
    }

    /// Starts the daemon and waits until it says that all nodes are known.
    #[track_caller]
    pub fn start(&self) -> Pgmend {
        let pgmend = self.spawn();
        pgmend.wait_ready();
        pgmend
    }

    /// Starts a daemon that takes the place of the one that runs, and waits until it is the daemon.
    #[track_caller]
    pub fn take_over(&self) -> Pgmend {
        let pgmend = self.spawn_also(&["--takeover"]);
        wait_until("the new process is the daemon", Duration::from_secs(20), || {
            assert!(is_alive(pgmend.pid()), "the new process has ended:\n{}", pgmend.log());
            pgmend.cli(&["status", "--json"]).out.contains(&format!("\"pid\": {},", pgmend.pid()))
        });
        pgmend.wait_ready();
        pgmend
    }

    /// Starts the daemon and waits for nothing.
    pub fn spawn(&self) -> Pgmend {
        self.spawn_as(&self.text(), &[])
    }

    /// The same with a file that holds more than `set` can say.
    pub fn spawn_with(&self, text: &str) -> Pgmend {
        self.spawn_as(text, &[])
    }

    /// The same with more arguments.
    pub fn spawn_also(&self, more: &[&str]) -> Pgmend {
        self.spawn_as(&self.text(), more)
    }

    fn spawn_as(&self, text: &str, more: &[&str]) -> Pgmend {
        let file = write_as_postgres(&self.folder.join("pgmend.toml"), text, "644");
        let binary = binary_for_postgres(&self.folder);
        let log = self.folder.join("pgmend.log");
        let out = std::fs::OpenOptions::new().create(true).append(true).open(&log).expect("the log can be made");
        let mut command = match self.under.split_first() {
            Some((program, words)) => {
                let mut command = as_postgres(program);
                command.args(words).arg(&binary);
                command
            }
            None => as_postgres(&binary),
        };
        command.arg("run").arg(file).args(more).envs(self.env.iter().map(|(k, v)| (*k, v)));
        command.stdout(out.try_clone().expect("a second handle")).stderr(Stdio::from(out));
        let child = command.spawn().expect("the daemon starts");
        Pgmend { child, config: self.clone(), binary, log }
    }
}

/// The binary where `postgres` may run it: `target/` may lie in a folder that only its owner enters.
pub fn binary_for_postgres(folder: &std::path::Path) -> PathBuf {
    let copy = folder.join("pgmend");
    if !copy.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_pgmend"), &copy).expect("the binary can be copied");
        super::run(Command::new("chmod").arg("755").arg(&copy)).must();
    }
    copy
}

/// A daemon that runs.
pub struct Pgmend {
    child: Child,
    pub config: Config,
    pub binary: PathBuf,
    pub log: PathBuf,
}

impl Pgmend {
    #[track_caller]
    pub fn wait_ready(&self) {
        wait_until(&format!("the daemon is ready; its log:\n{}", self.log()), Duration::from_secs(20), || {
            assert!(is_alive(self.pid()), "the daemon has ended:\n{}", self.log());
            self.status().is_some_and(|s| {
                let known = |node: &Value| node["status"].as_str().is_some_and(|s| !s.eq_ignore_ascii_case("waiting"));
                s["nodes"].as_array().is_some_and(|nodes| nodes.iter().all(known))
            })
        });
    }

    /// The process id; setpriv has replaced itself by the daemon.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// TCP, the configured user and database.
    pub fn door(&self) -> Door {
        let c = &self.config;
        Door { host: "127.0.0.1".into(), port: c.port, user: c.user.clone(), database: c.database.clone() }
    }

    /// `pgmend --socket … <args>`.
    #[track_caller]
    pub fn cli(&self, args: &[&str]) -> Ran {
        Self::cli_of(&self.binary, &self.config, args)
    }

    /// The same, for who does not have the daemon because somebody is about to kill it.
    #[track_caller]
    pub fn cli_of(binary: &std::path::Path, config: &Config, args: &[&str]) -> Ran {
        let mut command = as_postgres(binary);
        command.arg("--socket").arg(config.folder.join("pgmend.sock")).args(args);
        run_for(&mut command, Duration::from_secs(180))
    }

    /// The view as JSON; `None` when the daemon does not answer.
    pub fn status(&self) -> Option<Value> {
        let ran = self.cli(&["status", "--json"]);
        let value: Value = serde_json::from_str(&ran.out).ok().filter(|_| ran.ok)?;
        // The reply as the API gives it, whether or not the tool keeps its envelope.
        Some(value.get("view").cloned().unwrap_or(value))
    }

    /// Server connections that went from one worker to another.
    pub fn moved(&self) -> u64 {
        let reply: Value = serde_json::from_str(&self.cli(&["status", "--json"]).must().out).expect("JSON");
        reply["moved"].as_u64().expect("the status counts them")
    }

    /// `up`, `down`, `waiting` or `unused`.
    pub fn node_status(&self, id: usize) -> String {
        let status = self.status().unwrap_or_default();
        status["nodes"][id]["status"].as_str().unwrap_or_default().to_ascii_lowercase()
    }

    /// The same of all nodes.
    pub fn node_statuses(&self) -> Vec<String> {
        let status = self.status().unwrap_or_default();
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().map(|n| n["status"].as_str().unwrap_or_default().to_ascii_lowercase()).collect()
    }

    #[track_caller]
    pub fn wait_node(&self, id: usize, status: &str) {
        wait_until(&format!("node {id} is {status}"), Duration::from_secs(40), || self.node_status(id) == status);
    }

    /// A node's server ends as by a power cut, and the daemon notices.
    #[track_caller]
    pub fn loses(&self, cluster: &Cluster, id: usize) {
        cluster.kill9(id);
        self.wait_node(id, "down");
    }

    /// A statement through pgmend.
    pub fn sql(&self, statement: &str) -> Ran {
        let door = self.door();
        psql(&door.host, door.port, &door.user, &door.database, statement)
    }

    /// Runs a Python script with psycopg at hand: `connect(more)` gives an autocommitting connection through pgmend. It
    /// fails the test when the script fails.
    #[track_caller]
    pub fn psycopg(&self, extra: &str, script: &str) {
        let door = self.door();
        let info = format!("host=127.0.0.1 port={} user={} dbname={} {extra}", door.port, door.user, door.database);
        let head = "import sys, threading, time, psycopg\nC = sys.argv[1]\nconnect = lambda more='': \
                    psycopg.connect(C + ' ' + more, autocommit=True)\n";
        let mut python = as_postgres("/usr/bin/python3");
        run_for(python.args(["-c", &format!("{head}{script}"), &info]), Duration::from_secs(90)).must();
    }

    /// A stock `pcp_*` tool. They exit 0 even on failure: read what they print.
    pub fn pcp(&self, tool: &str, args: &[&str]) -> Ran {
        self.pcp_as("postgres", tool, args)
    }

    pub fn pcp_as(&self, password: &str, tool: &str, args: &[&str]) -> Ran {
        let line = format!("*:*:postgres:{password}\n");
        let pass = write_as_postgres(&self.config.folder.join("pcppass"), &line, "600");
        let mut command = as_postgres(tool);
        command.env("PCPPASSFILE", pass).args(["-w", "-h", "127.0.0.1", "-U", "postgres", "-p"]);
        run_for(command.arg(self.config.pcp_port.to_string()).args(args), Duration::from_secs(180))
    }

    /// Ends the daemon as a crash would.
    pub fn kill9(mut self) -> Config {
        kill(&mut self.child);
        self.config.clone()
    }

    /// Asks the daemon to end and waits until it has; true when it ended well.
    #[track_caller]
    pub fn stop(mut self, signal_name: &str) -> bool {
        signal(self.pid(), signal_name);
        let mut status = None;
        wait_until("the daemon ends", Duration::from_secs(20), || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        status.is_some_and(|s| s.success())
    }

    /// Waits for the daemon to end by itself.
    #[track_caller]
    pub fn wait_end(mut self) -> Config {
        wait_until("the daemon ends by itself", Duration::from_secs(90), || {
            matches!(self.child.try_wait(), Ok(Some(_)))
        });
        self.config.clone()
    }
}

impl Drop for Pgmend {
    fn drop(&mut self) {
        kill(&mut self.child);
        if std::thread::panicking() {
            eprintln!("-- the daemon's log:\n{}", self.log());
        }
    }
}
