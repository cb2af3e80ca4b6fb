//! TLS to servers: every `sslmode` against real servers, with authorities and certificates made by openssl.

use crate::servers::python;
use crate::support::process::{kill, wait_until};
use crate::support::{Cluster, Config, Pgmend, Ran, as_postgres, bin, free_port, run};
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

/// `<file>.crt` and `<file>.key` for a host, signed by the authority `ca`.
fn certificate(cluster: &Cluster, host: &str, file: &str) {
    let (key, crt, names) = (format!("{file}.key"), format!("{file}.crt"), format!("subjectAltName=DNS:{host}"));
    let signed =
        ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE", "-addext", &names];
    openssl(cluster, &[&signed[..], &["-subj", "/CN=server", "-keyout", &key, "-out", &crt]].concat());
}

/// Gives the server a certificate for a host, and turns TLS on.
fn serve_tls(cluster: &Cluster, host: &str) {
    certificate(cluster, host, "node0/server");
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

/// A statement of the configured user, whose password is `secret` if it has one.
fn ask(pgmend: &Pgmend) -> Ran {
    let door = pgmend.door();
    let mut command = as_postgres(bin("psql"));
    command.env("PGPASSWORD", "secret").args(["-X", "-h", &door.host, "-p", &door.port.to_string()]);
    run(command.args(["-U", &door.user, "-d", &door.database, "-c", "SELECT 1"]))
}

/// Waits until this daemon logs it; what earlier ones wrote into the same file does not count.
#[track_caller]
fn wait_for_words(pgmend: &Pgmend, words: &str) {
    let before = pgmend.log().len();
    let says = || pgmend.log().get(before..).is_some_and(|new| new.contains(words));
    wait_until(&format!("the log says `{words}`"), Duration::from_secs(15), says);
}

/// Clients get an error that says so within the bound, and the log tells the operator why.
#[track_caller]
fn assert_refused(config: &Config, why: &str) {
    config.forget_log();
    let pgmend = config.spawn();
    wait_for_words(&pgmend, why);
    let said = ask(&pgmend);
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
    config.forget_log();
    let pgmend = config.set("tls", "server_ca_file = \"other.crt\"").spawn();
    wait_for_words(&pgmend, "not signed by an authority");
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

/// Passes bytes between pgmend and the server, TLS on both sides: with a certificate of its own towards pgmend.
const MIDDLE: &str = r#"
import socket, ssl, sys, threading
listen, server, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
inner, outer = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
inner.check_hostname, inner.verify_mode = False, ssl.CERT_NONE
outer.load_cert_chain(folder + "/middle.crt", folder + "/middle.key")
def pump(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
    except OSError:
        pass
    for s in (a, b):
        try: s.shutdown(socket.SHUT_RDWR)
        except OSError: pass
def serve(s):
    request = s.recv(8)
    s.sendall(b"S")
    a = outer.wrap_socket(s, server_side=True)
    b = socket.create_connection(("127.0.0.1", server))
    b.sendall(request)
    assert b.recv(1) == b"S"
    b = inner.wrap_socket(b)
    threading.Thread(target=pump, args=(a, b)).start()
    pump(b, a)
door = socket.create_server(("127.0.0.1", listen))
while True:
    threading.Thread(target=serve, args=(door.accept()[0],)).start()
"#;

#[test]
fn scram_over_tls_is_bound_to_the_servers_certificate() {
    let cluster = with_tls("localhost");
    cluster.sql(0, "postgres", "ALTER USER postgres PASSWORD 'postgres'; CREATE USER app PASSWORD 'secret'");
    cluster.sql(0, "postgres", "CREATE DATABASE app OWNER app");
    allow_only(&cluster, "hostssl", "scram-sha-256");
    let mut config = config(&cluster, "verify-full");
    let app_asks = r#"assert connect("password=secret").execute("SELECT current_user").fetchone()[0] == "app""#;
    let pgmend = config.scram().start();
    python(&pgmend, &straight(&cluster), app_asks);
    assert!(pgmend.stop("-INT"));
    // Somebody in the middle, whom pgmend would believe: the same name, the same authority, another certificate.
    certificate(&cluster, "localhost", "middle");
    let port = free_port();
    let (listen, server) = (port.to_string(), cluster.nodes[0].port.to_string());
    let mut middle = as_postgres("/usr/bin/python3");
    middle.args(["-c", MIDDLE, &listen, &server]).arg(cluster.folder());
    let mut middle = middle.spawn().expect("python starts");
    config.node(0, &format!("port = {port}"));
    assert_refused(&config, "SCRAM channel binding check failed");
    // The health check by another method, the client's login by SCRAM.
    let hba =
        "local all all trust\nhostssl all postgres 127.0.0.1/32 trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n";
    cluster.write(0, "pg_hba.conf", hba, "600");
    reload(&cluster);
    let pgmend = config.start();
    let said = ask(&pgmend);
    assert!(!said.ok && said.err.contains("SCRAM channel binding check failed"), "{}", said.all());
    kill(&mut middle);
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
