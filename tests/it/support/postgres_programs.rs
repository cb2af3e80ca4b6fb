//! PostgreSQL's programs and a node's own commands, as a story wants them: slow, broken or hanging while a file says so.

use super::cluster::Cluster;
use super::pgmend::Config;
use super::process::{as_postgres, bin, is_alive, run};
use super::scratch::write_as_postgres;
use std::path::{Path, PathBuf};

/// Copies and rewinds leave it to the system when data reach the disk: it takes them seconds, and no story loses power. For
/// stories that recover again and again.
pub fn without_sync(cluster: &Cluster, config: &mut Config) {
    let programs = cluster.folder().join("without-sync");
    run(as_postgres("mkdir").arg(&programs)).must();
    for name in ["pg_ctl", "pg_controldata", "pg_waldump"] {
        run(as_postgres("ln").arg("-s").arg(bin(name)).arg(programs.join(name))).must();
    }
    for name in ["pg_basebackup", "pg_rewind"] {
        let text = format!("#!/bin/sh\nexec {} --no-sync \"$@\"\n", bin(name).display());
        write_as_postgres(&programs.join(name), &text, "755");
    }
    config.set("recovery", &format!("bin_directory = \"{}\"", programs.display()));
}

/// Switches pg_basebackup and node 1's commands by files in the cluster's folder.
pub struct Switches {
    folder: PathBuf,
}

impl Switches {
    /// Makes the programs and names them in the configuration. `own_commands`: node 1 gets commands of its own.
    pub fn install(cluster: &Cluster, config: &mut Config, own_commands: bool) -> Switches {
        let folder = cluster.folder().to_owned();
        let at = folder.display();
        let programs = folder.join("bin");
        run(as_postgres("mkdir").arg(&programs)).must();
        for name in ["pg_ctl", "pg_controldata", "pg_waldump", "pg_rewind"] {
            run(as_postgres("ln").arg("-s").arg(bin(name)).arg(programs.join(name))).must();
        }
        let copy = format!(
            "#!/bin/bash\n[ -e {at}/copy-fails ] && {{ echo the copy is broken >&2; exit 1; }}\n\
             [ -e {at}/copy-is-slow ] && slow=--max-rate=1M\nexec {} --no-sync $slow \"$@\"\n",
            bin("pg_basebackup").display()
        );
        write_as_postgres(&programs.join("pg_basebackup"), &copy, "755");
        config.set("recovery", &format!("bin_directory = \"{}\"", programs.display()));
        if own_commands {
            // pg_ctl status takes a dead process for a living one until its parent has asked after it.
            let runs = format!("{} -q -h 127.0.0.1 -p {}", bin("pg_isready").display(), cluster.nodes[1].port);
            let (pg_ctl, data) = (bin("pg_ctl").display().to_string(), cluster.nodes[1].data.display().to_string());
            let start = format!(
                "#!/bin/bash\necho start >> {at}/commands\nif [ -e {at}/start-hangs ]; then sleep 300 & echo $! > {at}/start.pid; wait; fi\n\
                 [ -e {at}/start-strays ] && set -- -o \"-c primary_conninfo='host=127.0.0.1 port=1'\"\n\
                 exec {pg_ctl} start -w -D {data} -l {at}/node1.log \"$@\"\n"
            );
            write_as_postgres(&folder.join("start"), &start, "755");
            let stop = format!(
                "#!/bin/bash\necho stop >> {at}/commands\n{runs} || exit 0\nexec {pg_ctl} stop -m fast -w -D {data}\n"
            );
            write_as_postgres(&folder.join("stop"), &stop, "755");
            let status = format!(
                "#!/bin/bash\necho status >> {at}/commands\n[ -e {at}/says-it-runs ] && exit 0\n{runs} || exit 3\n"
            );
            write_as_postgres(&folder.join("status"), &status, "755");
            for name in ["start", "stop", "status"] {
                config.node(1, &format!("{name}_command = \"{at}/{name}\""));
            }
        }
        Switches { folder }
    }

    pub fn on(&self, name: &str) {
        write_as_postgres(&self.folder.join(name), "", "644");
    }

    pub fn off(&self, name: &str) {
        std::fs::remove_file(self.folder.join(name)).expect("the switch was on");
    }

    /// The commands that ran so far, one a line.
    pub fn commands(&self) -> String {
        std::fs::read_to_string(self.folder.join("commands")).unwrap_or_default()
    }

    /// The process in which the start hangs.
    pub fn hanging_start(&self) -> Option<u32> {
        number_in(&self.folder.join("start.pid")).filter(|pid| is_alive(*pid))
    }

    /// pg_basebackup's processes that copy into this cluster.
    pub fn copies(&self) -> Vec<u32> {
        let wanted = self.folder.display().to_string();
        let entries = std::fs::read_dir("/proc").expect("there is /proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let copies = |pid: &u32| {
            let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
            read("comm").trim() == "pg_basebackup" && read("cmdline").contains(&wanted) && is_alive(*pid)
        };
        pids.filter(copies).collect()
    }
}

/// The number that a file holds.
pub fn number_in(file: &Path) -> Option<u32> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}
