//! A data directory as `initdb` leaves it, made once for each version and copied: `initdb` takes seconds of every story.
//!
//! Copies have one system identifier. So only the first cluster of a process, which is a story, is one; any other is another system.

use super::process::{Ran, as_postgres, bin, run};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

static USED: AtomicBool = AtomicBool::new(false);

/// Makes a data directory of superuser `postgres`.
pub fn data_directory(data: &Path) {
    if USED.swap(true, Ordering::Relaxed) {
        initdb(data).must();
        return;
    }
    run(as_postgres("cp").arg("-a").arg(template()).arg(data)).must();
}

fn initdb(data: &Path) -> Ran {
    run(as_postgres(bin("initdb")).args(["-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "-D"]).arg(data))
}

/// Named by the program and its version; whoever comes first makes it.
fn template() -> PathBuf {
    let folder = Path::new("/tmp/pgmend-it-templates");
    if !folder.exists() {
        run(as_postgres("mkdir").args(["-p", "-m", "755"]).arg(folder)).must();
    }
    let version = run(as_postgres(bin("initdb")).arg("--version")).must().out;
    let text = format!("{} {}", bin("initdb").display(), version.trim());
    let name: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let (made, begun) = (folder.join(&name), folder.join(format!("{name}.begun")));
    let lock = open(&std::env::temp_dir().join("pgmend-it-templates.lock"));
    let _held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e).expect("the lock");
    if !made.exists() {
        run(as_postgres("rm").arg("-rf").arg(&begun)).must();
        initdb(&begun).must();
        // It has its name only when it is whole.
        run(as_postgres("mv").arg(&begun).arg(&made)).must();
    }
    made
}

fn open(path: &Path) -> File {
    OpenOptions::new().create(true).truncate(false).write(true).open(path).expect("a file for the lock")
}
