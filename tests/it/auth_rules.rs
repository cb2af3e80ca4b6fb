//! Rules beyond names and ranges: the peer of a Unix socket, this host's networks, patterns, included files.

use crate::support::scratch::write_as_postgres;
use crate::support::{Cluster, Config, Pgmend, Ran, as_postgres, bin, run};
use std::process::Command;

fn ruled(rules: &str) -> (Cluster, Config) {
    let cluster = Cluster::single();
    for sql in ["CREATE DATABASE app_1", "CREATE DATABASE other", "CREATE USER anna", "CREATE USER bob"] {
        cluster.sql(0, "postgres", sql);
    }
    write_as_postgres(&cluster.folder().join("hba.conf"), rules, "600");
    let mut config = Config::of(&cluster);
    config.set("auth", "hba_file = \"hba.conf\"");
    (cluster, config)
}

fn login(mut command: Command, pgmend: &Pgmend, host: &str, user: &str, database: &str) -> Ran {
    let conninfo = format!("host={host} port={} user={user} dbname={database}", pgmend.config.port);
    run(command.args(["-XAtqw", "-d", &conninfo, "-c", "SELECT current_user"]))
}

fn psql(pgmend: &Pgmend, host: &str, user: &str, database: &str) -> Ran {
    login(as_postgres(bin("psql")), pgmend, host, user, database)
}

#[test]
fn the_kernel_says_who_is_at_the_other_end_of_a_unix_socket() {
    let (cluster, mut config) = ruled("local other all ident map=people\nlocal all all peer\n");
    write_as_postgres(&cluster.folder().join("ident.conf"), "people postgres anna\npeople /^(r.*t)$ x\\1\n", "600");
    cluster.sql(0, "postgres", "CREATE USER xroot");
    let pgmend = config.set("auth", "ident_file = \"ident.conf\"").start();
    let at = cluster.folder().display().to_string();
    assert_eq!(psql(&pgmend, &at, "postgres", "app_1").must().out.trim(), "postgres");
    psql(&pgmend, &at, "anna", "app_1").must_fail_saying("Peer authentication failed for user \"anna\"");
    assert_eq!(psql(&pgmend, &at, "anna", "other").must().out.trim(), "anna");
    psql(&pgmend, &at, "postgres", "other").must_fail_saying("Peer authentication failed for user \"postgres\"");
    if nix::unistd::geteuid().is_root() {
        let root = || Command::new(bin("psql"));
        assert_eq!(login(root(), &pgmend, &at, "xroot", "other").must().out.trim(), "xroot");
        login(root(), &pgmend, &at, "postgres", "app_1").must_fail_saying("Peer authentication failed");
    }
    psql(&pgmend, "127.0.0.1", "postgres", "app_1").must_fail_saying("no pg_hba.conf entry");
}

#[test]
fn networks_patterns_and_included_files_decide() {
    let (cluster, config) = ruled(
        "include_dir more\ninclude_if_exists nothing\nhost all @friends samehost trust\nhost all all samenet reject\n",
    );
    let folder = cluster.folder();
    run(as_postgres("mkdir").arg(folder.join("more"))).must();
    let first = "host \"/^app_\\d{1,3}$\" /^an samehost trust\nhost all bob 127.0.0.2/32 trust\n";
    write_as_postgres(&folder.join("more/1.conf"), first, "600");
    write_as_postgres(&folder.join("friends"), "postgres\n", "600");
    let pgmend = config.start();
    psql(&pgmend, "127.0.0.1", "anna", "app_1").must();
    psql(&pgmend, "127.0.0.1", "anna", "other").must_fail_saying("no pg_hba.conf entry");
    psql(&pgmend, "127.0.0.1", "bob", "app_1").must_fail_saying("no pg_hba.conf entry");
    psql(&pgmend, "127.0.0.1", "postgres", "other").must();
    write_as_postgres(&folder.join("friends"), "postgres, bob\n", "600");
    pgmend.cli(&["reload"]).must();
    psql(&pgmend, "127.0.0.1", "bob", "app_1").must();
    write_as_postgres(&folder.join("more/2.conf"), "\nhost all all all radius\n", "600");
    pgmend.cli(&["reload"]).must_fail_saying("more/2.conf:2: authentication method \"radius\" is not supported");
    psql(&pgmend, "127.0.0.1", "bob", "app_1").must();
}
