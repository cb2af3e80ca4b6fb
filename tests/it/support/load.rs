//! pgbench: as a check that ends by itself, and as a load that goes on until the story has seen enough.

use super::process::{Ran, as_postgres, bin, kill, run_for, wait_until};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime};

/// Where clients connect.
#[derive(Clone, Debug)]
pub struct Door {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub database: String,
}

impl Door {
    fn args(&self) -> Vec<String> {
        let port = self.port.to_string();
        ["-n", "-h", &self.host, "-p", &port, "-U", &self.user].iter().map(|a| (*a).to_owned()).collect()
    }
}

/// Runs pgbench to its end and fails the story on any error of any client. Returns the number of transactions.
#[track_caller]
pub fn pgbench(door: &Door, args: &[&str]) -> u64 {
    let mut command = as_postgres(bin("pgbench"));
    let ran = run_for(command.args(door.args()).args(args).arg(&door.database), Duration::from_secs(120));
    assert!(ran.ok && !troubled(&ran.all()), "pgbench {args:?} had errors:\n{}", ran.all());
    transactions(&ran)
}

/// pgbench in the background.
pub struct Load {
    child: Child,
    log: PathBuf,
    /// What pgbench writes of each transaction: the beginning of its files' names.
    each: PathBuf,
}

impl Load {
    /// Starts clients that go on until `finish`; returns when all of them work.
    pub fn start(door: &Door, folder: &std::path::Path, clients: u32) -> Self {
        Self::start_with(door, folder, clients, &[])
    }

    /// The same with more options for pgbench.
    pub fn start_with(door: &Door, folder: &std::path::Path, clients: u32, more: &[&str]) -> Self {
        let number = super::free_port();
        let (log, each) = (folder.join(format!("pgbench-{number}.log")), folder.join(format!("each-{number}")));
        let file = std::fs::File::create(&log).expect("the log can be made");
        let mut command = as_postgres(bin("pgbench"));
        command.args(door.args()).args(["-P", "1", "-T", "600", "-c", &clients.to_string()]).args(more);
        command.arg("--log").arg("--log-prefix").arg(&each).arg(&door.database);
        command.stdout(file.try_clone().expect("a second handle")).stderr(Stdio::from(file));
        let child = command.spawn().expect("pgbench starts");
        let load = Load { child, log, each };
        wait_until("the load works", Duration::from_secs(30), || load.text().contains("progress: "));
        load
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The longest transaction so far, the waiting for it included. The last few are not yet written down.
    pub fn longest(&self) -> Duration {
        self.longest_since(SystemTime::UNIX_EPOCH)
    }

    /// The longest of those that ended later.
    pub fn longest_since(&self, since: SystemTime) -> Duration {
        let file = format!("{}.{}", self.each.display(), self.child.id());
        let text = std::fs::read_to_string(file).expect("pgbench writes each transaction down");
        // client, transaction, microseconds, script, and its end: seconds and microseconds.
        let took = |line: &str| {
            let fields: Vec<u64> = line.split(' ').map_while(|field| field.parse().ok()).collect();
            let [_, _, took, _, seconds, micros, ..] = fields[..] else { return None };
            let ended = SystemTime::UNIX_EPOCH + Duration::new(seconds, 0) + Duration::from_micros(micros);
            (ended >= since).then_some(Duration::from_micros(took))
        };
        text.lines().filter_map(took).max().unwrap_or_default()
    }

    /// Seconds of progress that pgbench has reported.
    pub fn seconds(&self) -> usize {
        self.text().matches("progress: ").count()
    }

    /// Waits until the clients have worked for another while, which shows that none of them hangs.
    #[track_caller]
    pub fn goes_on(&self) {
        let before = self.seconds();
        wait_until("the load goes on", Duration::from_secs(20), || self.seconds() >= before + 2);
        let text = self.text();
        let last = text.lines().rfind(|line| line.starts_with("progress: ")).unwrap_or_default();
        assert!(!last.contains(" 0.0 tps"), "the load stands still: {last}");
    }

    /// Waits until the clients have written so many more rows, as a node tells: sooner than by their own reports.
    #[track_caller]
    pub fn writes(&self, count: impl Fn() -> u64, more: u64) {
        let before = count();
        wait_until("the load writes", Duration::from_secs(20), || count() >= before + more);
    }

    /// Ends the load; fails the story when any client had an error or had to leave. Returns the seconds it ran.
    #[track_caller]
    pub fn finish(mut self) -> usize {
        let running = matches!(self.child.try_wait(), Ok(None));
        let text = self.text();
        assert!(running && !troubled(&text), "clients had errors:\n{text}");
        self.seconds()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}

/// pgbench says all of these on errors only.
fn troubled(text: &str) -> bool {
    ["ERROR", "FATAL", "PANIC", "aborted", "pgbench: error", "unexpectedly", "could not"]
        .iter()
        .any(|w| text.contains(w))
        || text.lines().any(|line| line.starts_with("progress: ") && !line.contains(" 0 failed"))
        || text.lines().any(|l| l.starts_with("number of failed transactions: ") && !l.contains(": 0 "))
}

fn transactions(ran: &Ran) -> u64 {
    let line = ran.out.lines().find_map(|l| l.strip_prefix("number of transactions actually processed: "));
    line.and_then(|rest| rest.split('/').next()?.trim().parse().ok()).unwrap_or_default()
}
