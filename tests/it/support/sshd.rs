//! A real sshd on loopback, with keys and a configuration of its own, as the user that owns the servers.

use super::cluster::Cluster;
use super::pgmend::Config;
use super::process::{as_postgres, kill, other_programs, run, wait_until};
use super::scratch::free_port;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

/// Another machine, as far as pgmend can see: nodes are reached through it only.
pub struct Sshd {
    folder: PathBuf,
    port: u16,
    user: String,
    child: Mutex<Child>,
}

impl Sshd {
    /// Makes keys and configuration, and starts it.
    pub fn start(cluster: &Cluster) -> Sshd {
        let folder = cluster.folder().join("ssh");
        run(as_postgres("mkdir").args(["-m", "700"]).arg(&folder)).must();
        for key in ["host", "key"] {
            run(as_postgres("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.join(key))).must();
        }
        let user = run(as_postgres("id").arg("-un")).must().out.trim().to_owned();
        let (port, at) = (free_port(), folder.display().to_string());
        let public = |name: &str| std::fs::read_to_string(folder.join(name)).expect("a key");
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host\nAuthorizedKeysFile {at}/key.pub\nPidFile {at}/pid\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nAllowUsers {user}\n\
             MaxStartups 100\nMaxSessions 100\n"
        );
        cluster.scratch.write("ssh/config", &config, "600");
        cluster.scratch.write("ssh/known", &format!("[127.0.0.1]:{port} {}", public("host.pub")), "600");
        // Every journey leaves a line; then the real ssh goes.
        let door = format!(
            "#!/bin/sh\necho way >> {at}/ways\nexec ssh -F none -i {at}/key -o IdentitiesOnly=yes -o UserKnownHostsFile={at}/known \
             -o StrictHostKeyChecking=yes -o BatchMode=yes -o ConnectTimeout=5 -p {port} {user}@127.0.0.1 \"$@\"\n"
        );
        cluster.scratch.write("ssh/door", &door, "755");
        // It has a child for each connection, and that one has another, which has let the user in. It is stopped first: else who
        // is cut off would be back before it is gone. A child may have ended by itself meanwhile.
        let family = format!(
            "#!/bin/sh\np=$(cat {at}/pid)\nkill -STOP $p\ns=$(pgrep -P $p)\nt=$(for c in $s; do pgrep -P $c; done)\n"
        );
        cluster.scratch.write("ssh/down", &format!("{family}kill -KILL $t $s 2>/dev/null\nkill -KILL $p\n"), "755");
        cluster.scratch.write("ssh/cut", &format!("{family}kill -KILL $t $s 2>/dev/null\nkill -CONT $p\n"), "755");
        let child = Mutex::new(spawn(&folder, port));
        Sshd { folder, port, user, child }
    }

    /// From now on these nodes are reached through it.
    pub fn leads_to(&self, config: &mut Config, nodes: &[usize]) {
        for id in nodes {
            config.node(*id, &format!("remote_command = \"{}\"", self.folder.join("door").display()));
            if let Some(directory) = other_programs() {
                config.node(*id, &format!("bin_directory = \"{}\"", directory.display()));
            }
        }
    }

    /// A command that ends it with all its connections.
    pub fn down(&self) -> String {
        self.folder.join("down").display().to_string()
    }

    /// A command that ends its connections; new ones are let in.
    pub fn cut(&self) -> String {
        self.folder.join("cut").display().to_string()
    }

    /// It runs again.
    pub fn up(&self) {
        let mut child = self.child.lock().expect("no panic");
        kill(&mut child);
        *child = spawn(&self.folder, self.port);
    }

    /// How often somebody set out.
    pub fn ways(&self) -> usize {
        std::fs::read_to_string(self.folder.join("ways")).unwrap_or_default().lines().count()
    }

    /// As whom one arrives.
    pub fn user(&self) -> &str {
        &self.user
    }
}

fn spawn(folder: &std::path::Path, port: u16) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).expect("a log");
    let mut command: Command = as_postgres("/usr/sbin/sshd");
    command.args(["-D", "-e", "-f"]).arg(folder.join("config"));
    let child = command.stdout(Stdio::null()).stderr(log).spawn().expect("sshd starts (tests/setup test)");
    wait_until("sshd answers", Duration::from_secs(20), || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    child
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let mut child = self.child.lock().expect("no panic");
        run(&mut Command::new(self.down()));
        kill(&mut child);
    }
}
