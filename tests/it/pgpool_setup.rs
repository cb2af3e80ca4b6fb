//! Debian's `pgpool_setup` builds and runs its cluster with pgmend in Pgpool-II's place.

use crate::support::load::{Door, Load, pgbench};
use crate::support::pgmend::binary_for_postgres;
use crate::support::process::{Ran, run_for, wait_until};
use crate::support::{Scratch, as_postgres, bin, free_port};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// One prefix that holds what the script looks for, and an `ssh` that runs the command here.
fn install(scratch: &Scratch) {
    let at = scratch.path().display();
    let binary = binary_for_postgres(scratch.path());
    let line = format!(
        "set -e; mkdir -p {at}/prefix/bin {at}/prefix/sbin {at}/prefix/etc {at}/stand-in {at}/cluster\n\
         ln -s {} {at}/prefix/bin/pgpool\n\
         for tool in /usr/sbin/pcp_* /usr/bin/pcp_*; do [ -x $tool ] && ln -sf $tool {at}/prefix/bin/; done\n\
         for tool in pg_md5 pg_enc pgproto; do p=$(PATH=/usr/sbin:/usr/bin command -v $tool || true); \
         [ -z \"$p\" ] || ln -sf $p {at}/prefix/sbin/; done\n\
         for tool in pg_md5 pg_enc; do ln -sf {at}/prefix/sbin/$tool {at}/prefix/bin/; done\n\
         for f in /usr/share/doc/pgpool2/examples/*.sample*; do b=$(basename $f .gz); \
         case $f in *.gz) gzip -dc $f > {at}/prefix/etc/$b;; *) cp $f {at}/prefix/etc/$b;; esac; done\n\
         for f in /etc/pgpool2/*; do b=$(basename $f); [ ! -r $f ] || [ -e {at}/prefix/etc/$b.sample ] || \
         cp $f {at}/prefix/etc/$b.sample; done",
        binary.display()
    );
    run_for(as_postgres("bash").args(["-c", &line]), Duration::from_secs(20)).must();
    scratch.write(
        "stand-in/ssh",
        "#!/bin/bash\n# Options and the host are dropped; the command runs here.\n\
         while [ $# -gt 0 ]; do case $1 in -[oipl]) shift 2;; -*) shift;; *) break;; esac; done\nshift\nexec bash -c \"$*\"\n",
        "755",
    );
}

/// A shell line in the cluster's folder, with the environment that the scripts expect.
fn shell(scratch: &Scratch, line: &str, limit: u64) -> Ran {
    let at = scratch.path().display().to_string();
    let mut command = as_postgres("bash");
    command.args(["-c", line]).current_dir(scratch.path().join("cluster"));
    environment(&mut command, &at);
    run_for(&mut command, Duration::from_secs(limit))
}

fn environment(command: &mut Command, at: &str) {
    let path = format!("{at}/stand-in:{}:{at}/prefix/bin:{at}/prefix/sbin:/usr/bin:/bin:/usr/sbin", bin("").display());
    command.env("PATH", path).env("PGHOST", "/tmp").env("USER", "postgres").env("LOGNAME", "postgres");
    command.env("PGPOOL_INSTALL_DIR", format!("{at}/prefix")).env("PGPOOLDIR", format!("{at}/prefix/etc"));
    command.env("PGBIN", bin("")).env("HOME", at).env("PCPPASSFILE", format!("{at}/cluster/pcppass"));
}

fn statuses(scratch: &Scratch, port: u16) -> Vec<String> {
    let ran = shell(scratch, &format!("psql -XAt -p {port} -U postgres -c 'show pool_nodes' test"), 20);
    ran.out.lines().filter_map(|line| Some(line.split('|').nth(3)?.to_owned())).collect()
}

#[test]
fn pgpool_setup_builds_runs_and_recovers_with_pgmend() {
    let _alone = alone();
    let scratch = Scratch::new();
    install(&scratch);
    let (base, pg_base) = (three_ports(), three_ports());
    let setup = format!("pgpool_setup -m s -n 2 -p {base} -pg {pg_base} --no-stop < /dev/null");
    let built = shell(&scratch, &setup, 170);
    let logs = || shell(&scratch, "tail -n 60 log/*.log pgpool*.log 2>/dev/null", 10).out;
    assert!(built.ok, "{}\n{}", built.all(), logs());
    let up = || statuses(&scratch, base) == ["up", "up"];
    wait_until("both nodes are up", Duration::from_secs(30), up);
    let status = shell(&scratch, &format!("psql -XAt -p {base} -c 'show pool_status' test"), 20).must().out;
    assert!(status.lines().count() > 10 && status.contains("port|"), "{status}");

    shell(&scratch, &format!("pgbench -i -q -p {base} -U postgres test"), 60).must();
    let door = Door { host: "/tmp".into(), port: base, user: "postgres".into(), database: "test".into() };
    pgbench(&door, &["-S", "-c", "4", "-t", "50"]);

    let load = Load::start(&door, scratch.path(), 8);
    let pcp = base + 1;
    let detach = shell(&scratch, &format!("pcp_detach_node -w -h localhost -p {pcp} -n 1"), 30).all();
    assert!(detach.contains("Command Successful"), "{detach}");
    shell(&scratch, "pg_ctl stop -m fast -w -D data1", 60).must();
    wait_until("node 1 is down", Duration::from_secs(20), || statuses(&scratch, base) == ["up", "down"]);
    let said = shell(&scratch, &format!("pcp_recovery_node -w -h localhost -p {pcp} -n 1"), 150).all();
    assert!(said.contains("Command Successful"), "{said}\n{}", logs());
    wait_until("both nodes are up again", Duration::from_secs(30), up);
    load.goes_on();
    load.finish();

    assert!(Path::new(&scratch.path().join("cluster/shutdownall")).exists());
    shell(&scratch, "./pgpool_reload", 30).must();
    assert!(up());
    shell(&scratch, "./shutdownall", 60);
    wait_until("pgmend has ended", Duration::from_secs(30), || {
        std::net::TcpStream::connect(("127.0.0.1", base)).is_err()
    });
}

/// Its scripts keep a file in `/tmp`, so that two of them on one machine take each other's.
fn alone() -> nix::fcntl::Flock<std::fs::File> {
    let file = std::fs::File::create("/tmp/pgmend-pgpool_setup.lock").expect("the lock file can be made");
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).expect("it can be locked")
}

/// Its modes r and i: every node but the first is made by an online recovery of two stages, with the script's own scripts.
fn builds_and_recovers_equals(mode: &str) {
    let _alone = alone();
    let scratch = Scratch::new();
    install(&scratch);
    let (base, pg_base) = (three_ports(), three_ports());
    let setup = format!("pgpool_setup -m {mode} -n 2 -p {base} -pg {pg_base} --no-stop < /dev/null");
    let built = shell(&scratch, &setup, 170);
    let logs = || shell(&scratch, "tail -n 60 log/*.log log/*/*.log data1/log/* 2>/dev/null", 10).out;
    assert!(built.ok, "{}\n{}", built.all(), logs());
    let up = || statuses(&scratch, base) == ["up", "up"];
    wait_until("both nodes are up", Duration::from_secs(30), up);
    let roles = shell(&scratch, &format!("psql -XAt -p {base} -U postgres -c 'show pool_nodes' test"), 20).must().out;
    assert!(roles.contains("|main|main|") && roles.contains("|replica|replica|"), "{roles}");

    let both = |sql: &str| -> Vec<String> {
        (0..2)
            .map(|n| shell(&scratch, &format!("psql -XAt -p {} -c \"{sql}\" test", pg_base + n), 20).must().out)
            .collect()
    };
    shell(&scratch, &format!("pgbench -i -q -p {base} -U postgres test"), 60).must();
    let sums = "SELECT sum(abalance), count(*) FROM pgbench_accounts";
    assert_eq!(both(sums)[0], both(sums)[1], "both were written to");

    let door = Door { host: "/tmp".into(), port: base, user: "postgres".into(), database: "test".into() };
    // Under repeatable read some have to try again.
    let load = Load::start_with(&door, scratch.path(), 8, &["--max-tries", "1000"]);
    let pcp = base + 1;
    let detach = shell(&scratch, &format!("pcp_detach_node -w -h localhost -p {pcp} -n 1"), 30).all();
    assert!(detach.contains("Command Successful"), "{detach}");
    // Transactions that had begun on it end there.
    let open = "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() \
                AND backend_type = 'client backend'";
    wait_until("nobody works on node 1 any more", Duration::from_secs(20), || {
        let ran = shell(&scratch, &format!("psql -XAt -p {} -c \"{open}\" test", pg_base + 1), 20);
        ran.must().out.trim() == "0"
    });
    shell(&scratch, "pg_ctl stop -m fast -w -D data1", 60).must();
    wait_until("node 1 is down", Duration::from_secs(20), || statuses(&scratch, base) == ["up", "down"]);
    load.goes_on();
    let said = shell(&scratch, &format!("pcp_recovery_node -w -h localhost -p {pcp} -n 1"), 150).all();
    assert!(said.contains("Command Successful"), "{said}\n{}", logs());
    wait_until("both nodes are up again", Duration::from_secs(30), up);
    load.goes_on();
    load.finish();
    let history = "SELECT count(*), sum(delta), sum(abalance) FROM pgbench_history, pgbench_accounts WHERE pgbench_history.aid = pgbench_accounts.aid";
    wait_until("the clients' last transactions have ended", Duration::from_secs(20), || {
        both(history)[0] == both(history)[1]
    });
    shell(&scratch, "./shutdownall", 60);
}

#[test]
fn pgpool_setup_builds_and_recovers_native_replication() {
    builds_and_recovers_equals("r");
}

#[test]
fn pgpool_setup_builds_and_recovers_snapshot_isolation() {
    builds_and_recovers_equals("i");
}

/// The script takes ports in a row: the first of three that are free.
fn three_ports() -> u16 {
    let first = free_port();
    assert!(free_port() > first && free_port() > first);
    first
}
