//! TLS to servers: every `sslmode` against real servers, with authorities and certificates made by openssl.

use crate::servers::python;
use crate::support::process::wait_until;
use crate::support::{Cluster, Config, Pgmend, as_postgres, run};
use std::time::Duration;

const TRUST: &str = "trust";

fn openssl(cluster: &Cluster, args: &[&str]) {
    let mut command = as_postgres("openssl");
    command.current_dir(cluster.folder()).args(["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"]);
    run(command.args(["-pkeyopt", "ec_paramgen_curve:P-256"]).args(args)).must();
}

/// `<name>.crt` and `<name>.key` of an authority.
fn authority(cluster: &Cluster, name: &str) {
    let (key, crt, subject) = (format!("{name}.key"), format!("{name}.crt"), format!("/CN={name}"));
    openssl(cluster, &["-subj", &subject, "-keyout", &key, "-out", &crt]);
}

/// Gives the server a certificate for a host, signed by the authority `ca`, and turns TLS on.
fn serve_tls(cluster: &Cluster, host: &str) {
    let names = format!("subjectAltName=DNS:{host}");
    let signed =
        ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE", "-addext", &names];
    let files = ["-subj", "/CN=server", "-keyout", "node0/server.key", "-out", "node0/server.crt"];
    openssl(cluster, &[&signed[..], &files[..]].concat());
    run(as_postgres("chmod").arg("600").arg(cluster.nodes[0].data.join("server.key"))).must();
    cluster.sql(0, "postgres", "ALTER SYSTEM SET ssl = on");
    cluster.sql(0, "postgres", "ALTER SYSTEM SET log_connections = on");
    reload(cluster);
    wait_until("the server offers TLS", Duration::from_secs(10), || cluster.sql(0, "postgres", "SHOW ssl") == "on");
}

fn reload(cluster: &Cluster) {
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
}

/// A server with a certificate for `host`, and a second authority `other` that has signed nothing.
fn with_tls(host: &str) -> Cluster {
    let cluster = Cluster::single();
    authority(&cluster, "ca");
    authority(&cluster, "other");
    serve_tls(&cluster, host);
    cluster
}

/// Which TCP connections the server takes: `host`, `hostssl` or `hostnossl`.
fn allow_only(cluster: &Cluster, kind: &str, method: &str) {
    let hba = format!("local all all trust\n{kind} all all 127.0.0.1/32 {method}\n");
    cluster.write(0, "pg_hba.conf", &hba, "600");
    reload(cluster);
}

fn config(cluster: &Cluster, sslmode: &str) -> Config {
    let mut config = Config::of(cluster);
    config.node(0, "host = \"localhost\"").node(0, &format!("sslmode = \"{sslmode}\""));
    config.set("tls", "server_ca_file = \"ca.crt\"").set("pool", "query_wait_timeout = \"2s\"");
    config
}

const IS_TLS: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

fn uses_tls(pgmend: &Pgmend) -> bool {
    pgmend.sql(IS_TLS).must().out.trim() == "t"
}

/// Clients get an error that says so within the bound, and the log tells the operator why.
#[track_caller]
fn assert_refused(config: &Config, why: &str) {
    let pgmend = config.spawn();
    wait_until(&format!("the log says `{why}`"), Duration::from_secs(15), || pgmend.log().contains(why));
    let said = pgmend.sql("SELECT 1");
    assert!(!said.ok && said.err.contains("no primary server could be reached"), "{}", said.all());
    assert!(pgmend.stop("-INT"));
}

#[test]
fn sslmode_decides_about_tls_on_both_planes() {
    let cluster = with_tls("localhost");
    let modes = [("disable", false), ("allow", false), ("prefer", true), ("require", true), ("verify-ca", true)];
    for (mode, tls) in modes.into_iter().chain([("verify-full", true)]) {
        let log = cluster.folder().join("node0.log");
        let before = std::fs::read_to_string(&log).unwrap_or_default().len();
        let pgmend = config(&cluster, mode).start();
        assert_eq!(uses_tls(&pgmend), tls, "{mode}");
        assert!(pgmend.stop("-INT"));
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let probes: Vec<&str> = text[before..]
            .lines()
            .filter(|line| line.contains("connection authorized") && line.contains("application_name=pgmend node 0"))
            .collect();
        assert!(
            !probes.is_empty() && probes.iter().all(|line| line.contains("SSL enabled") == tls),
            "{mode}: {probes:?}"
        );
    }
}

#[test]
fn allow_and_prefer_go_the_other_way_when_no_rule_lets_them_in() {
    let cluster = with_tls("localhost");
    for (kind, mode, tls) in [("hostssl", "allow", true), ("hostssl", "prefer", true), ("hostnossl", "prefer", false)] {
        allow_only(&cluster, kind, TRUST);
        let pgmend = config(&cluster, mode).start();
        assert_eq!(uses_tls(&pgmend), tls, "{kind} {mode}");
        assert!(pgmend.stop("-INT"));
    }
    allow_only(&cluster, "hostssl", TRUST);
    assert_refused(&config(&cluster, "disable"), "no encryption");
    allow_only(&cluster, "hostnossl", TRUST);
    assert_refused(&config(&cluster, "require"), "SSL encryption");
}

#[test]
fn a_server_without_tls_serves_prefer_and_is_refused_by_require() {
    let cluster = Cluster::single();
    authority(&cluster, "ca");
    assert!(!uses_tls(&config(&cluster, "prefer").start()));
    assert_refused(&config(&cluster, "require"), "it offers none, but sslmode requires it; set ssl = on at the server");
}

#[test]
fn a_certificate_of_an_unknown_authority_is_refused_until_it_is_known() {
    let cluster = with_tls("localhost");
    for mode in ["verify-ca", "verify-full"] {
        let mut config = config(&cluster, mode);
        config.set("tls", "server_ca_file = \"other.crt\"");
        assert_refused(
            &config,
            "not signed by an authority in server_ca_file; put the certificate of its authority there",
        );
    }
    // The operator does as he is told: a reload is enough, for both planes.
    let mut config = config(&cluster, "verify-full");
    let pgmend = config.set("tls", "server_ca_file = \"other.crt\"").spawn();
    wait_until("it is refused", Duration::from_secs(15), || pgmend.log().contains("not signed by an authority"));
    config.set("tls", "server_ca_file = \"ca.crt\"").write();
    pgmend.cli(&["reload"]).must();
    pgmend.wait_ready();
    assert!(uses_tls(&pgmend));
}

#[test]
fn a_certificate_for_another_host_satisfies_verify_ca_and_not_verify_full() {
    let cluster = with_tls("db.example");
    assert!(uses_tls(&config(&cluster, "verify-ca").start()));
    assert_refused(
        &config(&cluster, "verify-full"),
        "set the node's host to a name in the certificate's subjectAltName",
    );
}

#[test]
fn a_certificate_that_changes_under_a_running_daemon_is_told_to_clients_at_once() {
    let cluster = with_tls("localhost");
    let mut config = config(&cluster, "verify-full");
    let pgmend = config.set("pool", "query_wait_timeout = \"60s\"").start();
    assert!(uses_tls(&pgmend));
    authority(&cluster, "ca2");
    // The same name, signed by an authority that pgmend does not know.
    std::fs::copy(cluster.folder().join("ca.crt"), cluster.folder().join("known.crt")).expect("a copy");
    for end in ["crt", "key"] {
        std::fs::copy(cluster.folder().join(format!("ca2.{end}")), cluster.folder().join(format!("ca.{end}")))
            .expect("a copy");
    }
    serve_tls(&cluster, "localhost");
    std::fs::copy(cluster.folder().join("known.crt"), cluster.folder().join("ca.crt")).expect("a copy");
    end_client_backends(&cluster);
    let begun = std::time::Instant::now();
    pgmend.sql("SELECT 1").must_fail_saying("no TLS as sslmode demands it");
    assert!(begun.elapsed() < Duration::from_secs(20), "it waited for what will not come");
    assert!(pgmend.log().contains("not signed by an authority"), "{}", pgmend.log());
}

fn end_client_backends(cluster: &Cluster) {
    let theirs = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    cluster.sql(0, "postgres", &format!("SELECT count(pg_terminate_backend(pid)) {theirs}"));
    let open = format!("SELECT count(*) {theirs} AND application_name NOT LIKE 'pgmend node%'");
    wait_until("the backends end", Duration::from_secs(10), || cluster.sql(0, "postgres", &open) == "0");
}

#[test]
fn scram_over_tls_binds_the_channel() {
    let cluster = with_tls("localhost");
    cluster.sql(0, "postgres", "ALTER USER postgres PASSWORD 'postgres'; CREATE USER app PASSWORD 'secret'");
    cluster.sql(0, "postgres", "CREATE DATABASE app OWNER app");
    allow_only(&cluster, "hostssl", "scram-sha-256");
    let mut config = config(&cluster, "verify-full");
    let pgmend = config.scram().start();
    python(
        &pgmend,
        &straight(&cluster),
        r#"
c = connect("password=secret")
assert c.execute("SELECT current_user").fetchone()[0] == "app"
"#,
    );
}

fn straight(cluster: &Cluster) -> String {
    format!("host={} port={} user=postgres", cluster.folder().display(), cluster.nodes[0].port)
}

#[test]
fn a_tls_connection_that_the_server_closed_is_not_handed_out() {
    let cluster = with_tls("localhost");
    let pgmend = config(&cluster, "require").start();
    python(
        &pgmend,
        &straight(&cluster),
        r#"
c = connect()
for _ in range(5):
    c.execute("SELECT 1")
    end_all("postgres")
    c.execute("SELECT 2")
"#,
    );
}

#[test]
fn tls_connections_move_between_workers() {
    let cluster = with_tls("localhost");
    let mut config = config(&cluster, "require");
    config.set("listen", "workers = 3").set("pool", "default_pool_size = 1");
    let pgmend = config.start();
    python(
        &pgmend,
        &straight(&cluster),
        r#"
clients = [connect() for _ in range(3)]
for turn in range(60):
    for n, c in enumerate(clients):
        assert c.execute("SELECT %s::int", (n,)).fetchone()[0] == n
assert count("true") == 1, count("true")
"#,
    );
    assert!(pgmend.moved() >= 60, "{} moves", pgmend.moved());
}
