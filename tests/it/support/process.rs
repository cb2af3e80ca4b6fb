//! Running programs with a time limit, as the user `postgres`, and waiting for conditions.

use std::ffi::OsStr;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long a program may run when a story does not say otherwise.
pub const LIMIT: Duration = Duration::from_secs(60);

/// What a program left behind.
#[derive(Debug)]
pub struct Ran {
    pub ok: bool,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Fails the story unless the program succeeded.
    #[track_caller]
    pub fn must(self) -> Self {
        assert!(self.ok, "program failed\n-- out:\n{}\n-- err:\n{}", self.out, self.err);
        self
    }

    /// Fails the story unless the program failed and said this.
    #[track_caller]
    pub fn must_fail_saying(self, words: &str) -> Self {
        assert!(!self.ok, "should have failed, but said: {}", self.out);
        assert!(self.all().contains(words), "expected `{words}` in:\n{}", self.all());
        self
    }

    /// Standard output and standard error.
    pub fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// Where tests/setup puts servers of other versions: everybody may read it, other than a home directory.
const OTHER_SERVERS: &str = "/var/tmp/pgmend-servers";
static VERSION: OnceLock<PathBuf> = OnceLock::new();

/// From now on this process's servers are of another major version (16 or 18). Each story has a process of its own.
pub fn use_version(major: u32) {
    let directory = PathBuf::from(OTHER_SERVERS).join(major.to_string()).join("bin");
    assert!(directory.join("postgres").exists(), "no PostgreSQL {major} in {} (tests/setup test)", directory.display());
    VERSION.set(directory).expect("one version in one process");
}

/// PostgreSQL's programs elsewhere than in Debian's layout: another version, for the same stories.
pub fn other_programs() -> Option<PathBuf> {
    if let Some(directory) = VERSION.get() {
        return Some(directory.clone());
    }
    std::env::var_os("PGMEND_IT_BIN").filter(|d| !d.is_empty()).map(PathBuf::from)
}

/// PostgreSQL's programs: those of `PGMEND_IT_BIN`, else the newest version that Debian's layout holds.
pub fn bin(program: &str) -> PathBuf {
    if let Some(directory) = other_programs() {
        return directory.join(program);
    }
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed (tests/setup test)")
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .filter(|(_, path)| path.join("bin/postgres").exists())
        .collect();
    versions.sort();
    versions.pop().expect("a PostgreSQL server below /usr/lib/postgresql").1.join("bin").join(program)
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A command that runs as `postgres`: servers refuse to run as root. A developer's own account is used as it is.
pub fn as_postgres(program: impl AsRef<OsStr>) -> Command {
    let mut command = if is_root() {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
        setpriv
    } else {
        Command::new(program)
    };
    let inherited = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG"));
    for (name, _) in inherited {
        command.env_remove(name);
    }
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin("").display());
    command.env("PATH", path).env("LC_ALL", "C.UTF-8").env("HOME", "/tmp").current_dir("/tmp").stdin(Stdio::null());
    command
}

/// Runs a program to its end; kills it at the limit and fails.
#[track_caller]
pub fn run(command: &mut Command) -> Ran {
    run_for(command, LIMIT)
}

#[track_caller]
pub fn run_for(command: &mut Command, limit: Duration) -> Ran {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    // Pipes are drained on threads of their own; else a talkative program would block for ever.
    let out = drain(child.stdout.take());
    let err = drain(child.stderr.take());
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("the program can be waited for") {
            break status;
        }
        if begun.elapsed() > limit {
            kill(&mut child);
            panic!("{command:?} did not end within {limit:?}");
        }
        pause();
    };
    // A daemon that inherits the pipes (pg_ctl's server) must not hold the story: what has come by now counts.
    let text = |(kept, done): (Kept, std::sync::mpsc::Receiver<()>)| {
        let _ = done.recv_timeout(Duration::from_millis(500));
        String::from_utf8_lossy(&kept.lock().expect("no panic in drain")).into_owned()
    };
    Ran { ok: status.success(), out: text(out), err: text(err) }
}

pub fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// Sends a signal by name (`-STOP`, `-9`).
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").arg(name).arg(pid.to_string()).stderr(Stdio::null()).status();
}

pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('Z')))
}

/// Waits for a condition, never for a time; fails the story at the limit.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < limit, "waited {limit:?} in vain: {what}");
        pause();
    }
}

/// The one place that sleeps: between two looks at a condition.
#[allow(clippy::disallowed_methods)]
pub fn pause() {
    std::thread::sleep(Duration::from_millis(25));
}

type Kept = std::sync::Arc<std::sync::Mutex<Vec<u8>>>;

/// Collects a pipe; the receiver is released when the pipe ends.
fn drain(pipe: Option<impl Read + Send + 'static>) -> (Kept, std::sync::mpsc::Receiver<()>) {
    let kept = Kept::default();
    let (done, ended) = std::sync::mpsc::sync_channel(1);
    let into = kept.clone();
    std::thread::spawn(move || {
        let Some(mut pipe) = pipe else { return };
        let mut buffer = vec![0; 65536];
        while let Ok(n @ 1..) = pipe.read(&mut buffer) {
            into.lock().expect("no panic in drain").extend_from_slice(&buffer[..n]);
        }
        let _ = done.send(());
    });
    (kept, ended)
}
