//! A story's own folder and ports. Dropping the folder ends every process that was started from it.

use super::process::{as_postgres, is_alive, run, signal, wait_until};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// A folder of user `postgres`, readable for all, removed at the end (kept when PGMEND_IT_KEEP is set).
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub fn new() -> Self {
        // Short, for a Unix socket's path has 107 bytes; below /tmp, for target/ may lie in a folder closed to postgres.
        let made = run(as_postgres("mktemp").args(["-d", "/tmp/pgmend-it.XXXXXX"])).must();
        let path = PathBuf::from(made.out.trim());
        run(as_postgres("chmod").arg("755").arg(&path)).must();
        Scratch { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file that belongs to `postgres`.
    pub fn write(&self, name: &str, text: &str, mode: &str) -> PathBuf {
        write_as_postgres(&self.path.join(name), text, mode)
    }
}

/// Writes a file that belongs to `postgres`, with an octal mode.
pub fn write_as_postgres(path: &Path, text: &str, mode: &str) -> PathBuf {
    std::fs::write(path, text).expect("the file can be written");
    if super::process::is_root() {
        run(std::process::Command::new("chown").arg("postgres:postgres").arg(path)).must();
    }
    run(std::process::Command::new("chmod").arg(mode).arg(path)).must();
    path.to_owned()
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let own = self.path.display().to_string();
        // A stopped process (SIGSTOP) dies of SIGKILL all the same. Twice: a script may be starting a child just now.
        for _ in 0..2 {
            let pids = processes_of(&own);
            pids.iter().for_each(|pid| signal(*pid, "-9"));
            if !std::thread::panicking() {
                wait_until("the story's processes end", Duration::from_secs(10), || !pids.iter().any(|p| is_alive(*p)));
            }
        }
        if std::env::var_os("PGMEND_IT_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Processes whose command line, working directory or environment names the folder: nobody else's.
fn processes_of(folder: &str) -> Vec<u32> {
    let own = std::process::id();
    let named = |bytes: std::io::Result<Vec<u8>>| {
        bytes.is_ok_and(|b| b.windows(folder.len()).any(|window| window == folder.as_bytes()))
    };
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            named(std::fs::read(format!("/proc/{pid}/cmdline")))
                || named(std::fs::read(format!("/proc/{pid}/environ")))
                || std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(folder))
        })
        .collect()
}

/// A port that no other story takes while this one runs: each is locked by a file, and lies below the range from which
/// the kernel takes ports for outgoing connections.
pub fn free_port() -> u16 {
    static HELD: Mutex<Vec<Flock<File>>> = Mutex::new(Vec::new());
    let folder = Path::new("/tmp/pgmend-it-ports");
    let _ = std::fs::create_dir(folder);
    let first = 20_000 + (std::process::id() % 900) as u16 * 10;
    for port in (first..30_000).chain(20_000..first) {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(folder.join(port.to_string()));
        let Ok(Ok(lock)) = file.map(|f| Flock::lock(f, FlockArg::LockExclusiveNonblock)) else { continue };
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            HELD.lock().expect("no panic while held").push(lock);
            return port;
        }
    }
    panic!("no free port");
}
