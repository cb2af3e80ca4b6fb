//! Connections to servers: how pgmend logs in, over what, and when a connection is used again.

use crate::support::process::{Ran, run_for, wait_until};
use crate::support::{Cluster, Config, Pgmend, as_postgres, bin, run};
use std::time::Duration;

/// Lets `app` (password `secret`) in over TCP by one method only; everybody else as the harness needs it.
fn asks_app_for(cluster: &Cluster, method: &str) {
    let hba = format!(
        "local all all trust\nhost all app 127.0.0.1/32 {method}\nhost all all 127.0.0.1/32 trust\n\
         local replication all trust\nhost replication all 127.0.0.1/32 trust\n"
    );
    cluster.write(0, "pg_hba.conf", &hba, "600");
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
}

fn with_app(encryption: &str, method: &str) -> Cluster {
    let cluster = Cluster::single();
    cluster.sql(0, "postgres", &format!("SET password_encryption = '{encryption}'; CREATE USER app PASSWORD 'secret'"));
    asks_app_for(&cluster, method);
    cluster
}

/// `app` through pgmend, by its password; the userlist as given.
fn for_app(cluster: &Cluster, client_method: &str, userlist: &str) -> Config {
    let mut config = Config::of(cluster);
    config.user = "app".into();
    config.set("auth", &format!("method = \"{client_method}\""));
    config.set("auth", "userlist_file = \"userlist.txt\"");
    config.set("pool", "query_wait_timeout = \"5s\"");
    cluster.scratch.write("userlist.txt", userlist, "600");
    config
}

fn ask(pgmend: &Pgmend, password: &str, statement: &str) -> Ran {
    let door = pgmend.door();
    let mut command = as_postgres(bin("psql"));
    command.env("PGPASSWORD", password).args(["-XAtq", "-h", &door.host, "-p", &door.port.to_string()]);
    run(command.args(["-U", &door.user, "-d", &door.database, "-c", statement]))
}

/// The server must have seen the method: else a rule that let us in otherwise would go unnoticed.
fn assert_method(cluster: &Cluster, pgmend: &Pgmend, method: &str) {
    cluster.sql(0, "postgres", "ALTER SYSTEM SET log_connections = on");
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
    close_idle(cluster);
    assert_eq!(ask(pgmend, "secret", "SELECT current_user").must().out.trim(), "app");
    let log = std::fs::read_to_string(cluster.folder().join("node0.log")).unwrap_or_default();
    assert!(log.contains(&format!("identity=\"app\" method={method}")), "the server's log:\n{log}");
}

/// Ends every server connection that serves clients, and waits until the server has.
fn close_idle(cluster: &Cluster) {
    let theirs = "FROM pg_stat_activity WHERE usename = 'app'";
    cluster.sql(0, "postgres", &format!("SELECT count(pg_terminate_backend(pid)) {theirs}"));
    wait_until("the server connections end", Duration::from_secs(10), || {
        cluster.sql(0, "postgres", &format!("SELECT count(*) {theirs}")) == "0"
    });
}

fn verifier(cluster: &Cluster, user: &str) -> String {
    cluster.sql(0, "postgres", &format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{user}'"))
}

#[test]
fn a_server_is_logged_in_to_by_trust() {
    let cluster = with_app("scram-sha-256", "trust");
    let pgmend = for_app(&cluster, "trust", "").start();
    assert_eq!(ask(&pgmend, "", "SELECT current_user").must().out.trim(), "app");
}

#[test]
fn a_server_is_logged_in_to_by_a_clear_password() {
    let cluster = with_app("scram-sha-256", "password");
    let pgmend = for_app(&cluster, "scram-sha-256", "\"app\" \"secret\"\n").start();
    assert_method(&cluster, &pgmend, "password");
}

#[test]
fn a_server_is_logged_in_to_by_md5_from_the_password_and_from_its_hash() {
    let cluster = with_app("md5", "md5");
    let hash = verifier(&cluster, "app");
    assert!(hash.starts_with("md5"), "{hash}");
    for (client_method, secret) in [("scram-sha-256", "secret"), ("md5", hash.as_str())] {
        let pgmend = for_app(&cluster, client_method, &format!("\"app\" \"{secret}\"\n")).start();
        assert_method(&cluster, &pgmend, "md5");
        assert!(pgmend.stop("-INT"));
    }
}

#[test]
fn a_server_is_logged_in_to_by_scram_from_the_password() {
    let cluster = with_app("scram-sha-256", "scram-sha-256");
    let pgmend = for_app(&cluster, "scram-sha-256", "\"app\" \"secret\"\n").start();
    assert_method(&cluster, &pgmend, "scram-sha-256");
}

#[test]
fn a_clients_scram_login_leaves_the_keys_for_the_servers() {
    let cluster = with_app("scram-sha-256", "scram-sha-256");
    let stored = verifier(&cluster, "app");
    assert!(stored.starts_with("SCRAM-SHA-256$"), "{stored}");
    let config = for_app(&cluster, "scram-sha-256", &format!("\"app\" \"{stored}\"\n"));
    // Nothing but the verifier is known; it serves for any number of server connections and for a new process too.
    let pgmend = config.start();
    assert_method(&cluster, &pgmend, "scram-sha-256");
    close_idle(&cluster);
    assert_eq!(ask(&pgmend, "secret", "SELECT current_user").must().out.trim(), "app");
    ask(&pgmend, "wrong", "SELECT 1").must_fail_saying("password authentication failed");
    drop(pgmend);
    // The same from a pool_passwd.
    cluster.scratch.write("pool_passwd", &format!("app:{stored}\n"), "600");
    cluster.scratch.write("userlist.txt", "", "600");
    let mut config = config;
    let pgmend = config.set("auth", "pool_passwd_file = \"pool_passwd\"").start();
    assert_method(&cluster, &pgmend, "scram-sha-256");
}

#[test]
fn one_session_with_keys_only_survives_the_end_of_its_server_connection() {
    let cluster = with_app("scram-sha-256", "scram-sha-256");
    let stored = verifier(&cluster, "app");
    let pgmend = for_app(&cluster, "scram-sha-256", &format!("\"app\" \"{stored}\"\n")).start();
    let admin = format!("host={} port={} user=postgres", cluster.folder().display(), cluster.nodes[0].port);
    python(
        &pgmend,
        &admin,
        r#"
c = connect("password=secret")
first = c.execute("SELECT pg_backend_pid()").fetchone()[0]
end_all("app")
second = c.execute("SELECT pg_backend_pid()").fetchone()[0]
assert first != second
"#,
    );
}

#[test]
fn a_secret_that_the_server_refuses_is_told_clearly_and_mended_by_a_reload() {
    let cluster = with_app("scram-sha-256", "scram-sha-256");
    // pgmend takes the client by a secret that is not the server's.
    let config = for_app(&cluster, "scram-sha-256", "\"app\" \"stale\"\n");
    let pgmend = config.start();
    let said = ask(&pgmend, "stale", "SELECT 1").must_fail_saying("password authentication failed for user \"app\"");
    assert!(said.err.contains("must be the server's own"), "{}", said.err);
    assert!(!said.err.contains("stale") && !pgmend.log().contains("stale"), "a secret was told");
    cluster.scratch.write("userlist.txt", "\"app\" \"secret\"\n", "600");
    pgmend.cli(&["reload"]).must();
    for _ in 0..3 {
        assert_eq!(ask(&pgmend, "secret", "SELECT 7").must().out.trim(), "7");
    }
}

#[test]
fn a_login_that_has_no_secret_for_the_server_fails_at_once() {
    let cluster = with_app("scram-sha-256", "scram-sha-256");
    // Clients come in without a password, so there is nothing to show to the server.
    let mut config = for_app(&cluster, "trust", "");
    let pgmend = config.set("pool", "query_wait_timeout = \"60s\"").start();
    let begun = std::time::Instant::now();
    ask(&pgmend, "", "SELECT 1").must_fail_saying("the server asks for SCRAM-SHA-256");
    assert!(begun.elapsed() < Duration::from_secs(20), "it waited for what will not come");
}

#[test]
fn a_host_that_begins_with_a_slash_is_a_unix_socket() {
    let cluster = Cluster::single();
    cluster.sql(0, "postgres", "ALTER SYSTEM SET listen_addresses = ''");
    cluster.stop(0);
    cluster.start(0);
    let mut config = Config::of(&cluster);
    // Unix sockets are plain whatever sslmode says, as with libpq.
    config.node(0, &format!("host = \"{}\"", cluster.folder().display())).node(0, "sslmode = \"verify-full\"");
    let pgmend = config.start();
    let from = "SELECT coalesce(client_addr::text, 'unix') FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    assert_eq!(pgmend.sql(from).must().out.trim(), "unix");
    assert_eq!(pgmend.node_status(0), "up");
}

/// psycopg through pgmend: `connect(more)`; `end_all(user)` ends that user's backends and waits; `count(where)` counts
/// backends, asked past pgmend.
pub fn python(pgmend: &Pgmend, straight: &str, script: &str) {
    let door = pgmend.door();
    let conninfo = format!("host=127.0.0.1 port={} user={} dbname={}", door.port, door.user, door.database);
    let head = r#"
import os, socket, struct, sys, threading, time, psycopg
C = sys.argv[1]
connect = lambda more='', **kw: psycopg.connect(C + ' ' + more, **{'autocommit': True, **kw})
straight = psycopg.connect(sys.argv[2] + " dbname=postgres", autocommit=True)
def count(where):
    return straight.execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' "
        "AND application_name NOT LIKE 'pgmend node%' AND pid <> pg_backend_pid() AND " + where).fetchone()[0]
def until(what, condition, seconds=20):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited in vain: " + what
        time.sleep(0.02)
def end_all(user):
    straight.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s "
        "AND application_name NOT LIKE 'pgmend node%%' AND pid <> pg_backend_pid()", (user,))
    until("the backends end", lambda: count(f"usename = '{user}'") == 0)
def vanish(c):
    # As a crash does: a reset, and no Terminate.
    s = socket.socket(fileno=os.dup(c.fileno()))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(c.fileno())
    s.close()
"#;
    // A connection whose socket was taken away must not be closed by Python at its end.
    let text = format!("{head}{script}\nsys.stdout.flush()\nos._exit(0)\n");
    run_for(as_postgres("/usr/bin/python3").args(["-c", &text, &conninfo, straight]), Duration::from_secs(120)).must();
}
