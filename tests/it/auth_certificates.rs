//! Certificates: of clients, of pgmend towards its servers, by the name that a client asks for; reloads and tickets.

use crate::support::cluster::psql;
use crate::support::pki::{authority, openssl, revoke, signed};
use crate::support::process::wait_until;
use crate::support::scratch::write_as_postgres;
use crate::support::{Cluster, Config, Pgmend, Ran, as_postgres, bin, run};
use std::time::Duration;

/// A server that trusts everybody; pgmend with a certificate, and with the authority `ca` for those of clients.
fn prepared(rules: &str) -> (Cluster, Config) {
    let cluster = Cluster::single();
    cluster.sql(0, "postgres", "CREATE DATABASE app");
    for user in ["anna", "bob", "app"] {
        cluster.sql(0, "postgres", &format!("CREATE USER {user}"));
    }
    authority(&cluster, "ca");
    authority(&cluster, "other");
    for (file, subject) in [("anna", "/OU=sales/CN=anna"), ("bob", "/CN=bob@example.com"), ("gone", "/CN=anna")] {
        signed(&cluster, "ca", file, subject, &[]);
    }
    signed(&cluster, "other", "foreign", "/CN=anna", &[]);
    write_as_postgres(&cluster.folder().join("hba.conf"), &format!("local all all trust\n{rules}"), "600");
    write_as_postgres(&cluster.folder().join("userlist.txt"), "\"anna\" \"pw\"\n\"bob\" \"pw\"\n", "600");
    let mut config = Config::of(&cluster);
    config.tls().set("auth", "hba_file = \"hba.conf\"").set("auth", "userlist_file = \"userlist.txt\"");
    config.set("tls", "client_ca_file = \"ca.crt\"");
    (cluster, config)
}

/// psql with the client certificate of that name; none for an empty one.
#[track_caller]
fn login(pgmend: &Pgmend, cluster: &Cluster, user: &str, certificate: &str, more: &str) -> Ran {
    let folder = cluster.folder().display();
    let files = match certificate {
        "" => "sslcert=none sslkey=none".to_owned(),
        name => format!("sslcert={folder}/{name}.crt sslkey={folder}/{name}.key"),
    };
    let port = pgmend.config.port;
    let conninfo = format!("host=127.0.0.1 port={port} user={user} dbname=app sslmode=require {files} {more}");
    let mut command = as_postgres(bin("psql"));
    command.env("PGPASSWORD", "pw").args(["-XAtqw", "-d", &conninfo, "-c", "SELECT current_user"]);
    run(&mut command)
}

const NEEDED: &str = "connection requires a valid client certificate";

#[test]
fn a_certificate_stands_for_the_user_that_it_names() {
    let (cluster, mut config) = prepared("hostssl all all all cert\n");
    let pgmend = config.start();
    assert_eq!(login(&pgmend, &cluster, "anna", "anna", "").must().out.trim(), "anna");
    login(&pgmend, &cluster, "bob", "anna", "").must_fail_saying("certificate authentication failed for user \"bob\"");
    login(&pgmend, &cluster, "anna", "", "").must_fail_saying(NEEDED);
    login(&pgmend, &cluster, "anna", "", "sslmode=disable").must_fail_saying("no pg_hba.conf entry");
    // Signed by nobody whom pgmend knows: the handshake itself fails.
    login(&pgmend, &cluster, "anna", "foreign", "").must_fail_saying("unknown ca");
    login(&pgmend, &cluster, "anna", "anna", "").must();
    drop(pgmend);
    // Without rules, as PgBouncer's auth_type = cert.
    let pgmend = config.set("auth", "hba_file = \"\"").set("auth", "method = \"cert\"").start();
    login(&pgmend, &cluster, "anna", "anna", "").must();
    login(&pgmend, &cluster, "bob", "anna", "").must_fail_saying("certificate authentication failed");
    login(&pgmend, &cluster, "anna", "", "").must_fail_saying(NEEDED);
    login(&pgmend, &cluster, "anna", "", "sslmode=disable").must_fail_saying("no pg_hba.conf entry");
}

#[test]
fn maps_say_which_certificate_may_be_which_user() {
    let rules = "hostssl all anna all cert clientname=DN map=names\nhostssl all all all cert map=names\n";
    let (cluster, mut config) = prepared(rules);
    let map = "# system name, user\nnames \"CN=anna,OU=sales\" anna\nnames /^(.*)@example\\.com$ \\1\nnames anna app\n";
    write_as_postgres(&cluster.folder().join("ident.conf"), map, "600");
    let pgmend = config.set("auth", "ident_file = \"ident.conf\"").start();
    for (user, certificate, may) in [
        ("anna", "anna", true),
        ("anna", "gone", false),
        ("bob", "bob", true),
        ("app", "anna", true),
        ("app", "bob", false),
        ("bob", "anna", false),
    ] {
        let ran = login(&pgmend, &cluster, user, certificate, "");
        match may {
            true => assert_eq!(ran.must().out.trim(), user),
            false => drop(ran.must_fail_saying(&format!("certificate authentication failed for user \"{user}\""))),
        }
    }
    // A map that is changed counts after a reload; one that is missing is told with its line.
    write_as_postgres(&cluster.folder().join("ident.conf"), "names bob@example.com app\n", "600");
    login(&pgmend, &cluster, "app", "bob", "").must_fail_saying("certificate authentication failed");
    pgmend.cli(&["reload"]).must();
    login(&pgmend, &cluster, "app", "bob", "").must();
    write_as_postgres(&cluster.folder().join("ident.conf"), "mames x y\n", "600");
    pgmend.cli(&["reload"]).must_fail_saying("hba.conf:2: map \"names\" is not in ident_file");
    login(&pgmend, &cluster, "app", "bob", "").must();
}

#[test]
fn a_certificate_may_be_asked_for_beside_a_password() {
    let rules =
        "hostssl all anna all scram-sha-256 clientcert=verify-full\nhostssl all bob all md5 clientcert=verify-ca\n";
    let (cluster, mut config) = prepared(rules);
    let pgmend = config.start();
    login(&pgmend, &cluster, "anna", "anna", "").must();
    login(&pgmend, &cluster, "anna", "", "").must_fail_saying(NEEDED);
    login(&pgmend, &cluster, "anna", "anna", "password=wrong").must_fail_saying("password authentication failed");
    login(&pgmend, &cluster, "anna", "bob", "").must_fail_saying("certificate authentication failed");
    // Any certificate of the authority will do.
    login(&pgmend, &cluster, "bob", "anna", "").must();
    login(&pgmend, &cluster, "bob", "", "").must_fail_saying(NEEDED);
    drop(pgmend);
    // Rules that ask for certificates which nobody could judge are a mistake.
    config.set("tls", "client_ca_file = \"\"");
    let toml = config.write();
    let checked = run(as_postgres(cluster.folder().join("pgmend")).arg("check").arg(toml));
    checked.must_fail_saying("expected client_ca_file");
}

#[test]
fn revoked_certificates_are_refused_after_a_reload() {
    let (cluster, mut config) = prepared("hostssl all all all cert\n");
    revoke(&cluster, "ca", &[]);
    let pgmend = config.set("tls", "client_crl_file = \"ca.crl\"").start();
    login(&pgmend, &cluster, "anna", "gone", "").must();
    revoke(&cluster, "ca", &["gone"]);
    login(&pgmend, &cluster, "anna", "gone", "").must();
    pgmend.cli(&["reload"]).must();
    login(&pgmend, &cluster, "anna", "gone", "").must_fail_saying("revoked");
    login(&pgmend, &cluster, "anna", "anna", "").must();
}

/// Asks for `name` and takes only a certificate of the authority `ca` that is for it.
fn by_name(pgmend: &Pgmend, cluster: &Cluster, name: &str) -> Ran {
    let root = format!("{}/ca.crt", cluster.folder().display());
    let more = format!("host={name} hostaddr=127.0.0.1 sslmode=verify-full sslrootcert={root}");
    login(pgmend, cluster, "anna", "", &format!("{more} channel_binding=require"))
}

#[test]
fn each_name_is_shown_its_own_certificate() {
    let (cluster, config) = prepared("hostssl all all all scram-sha-256\n");
    for (file, names) in [
        ("main", "DNS:db.example"),
        ("sales", "DNS:sales.example"),
        ("wild", "DNS:*.wild.example"),
        ("given", "DNS:x.y"),
    ] {
        // Another hash for each, so that channel binding knows which one was shown.
        signed(&cluster, "ca", file, "/CN=server", &["-addext", &format!("subjectAltName={names}")]);
    }
    let mut text = config.text();
    text = text.replace("\"server.crt\"", "\"main.crt\"").replace("\"server.key\"", "\"main.key\"");
    for file in ["sales", "wild"] {
        text += &format!("[[tls.certificate]]\ncert_file = \"{file}.crt\"\nkey_file = \"{file}.key\"\n");
    }
    text += "[[tls.certificate]]\ncert_file = \"given.crt\"\nkey_file = \"given.key\"\nserver_names = [\"Given.Example\"]\n";
    let pgmend = config.spawn_with(&text);
    pgmend.wait_ready();
    for name in ["db.example", "sales.example", "SALES.example", "a.wild.example"] {
        by_name(&pgmend, &cluster, name).must();
    }
    // These are shown what is not for them, and say so.
    by_name(&pgmend, &cluster, "given.example").must_fail_saying("server certificate for \"x.y\"");
    for name in ["unknown.example", "a.b.wild.example"] {
        by_name(&pgmend, &cluster, name).must_fail_saying("server certificate for \"db.example\"");
    }
}

#[test]
fn a_new_certificate_counts_after_a_reload_and_a_broken_one_never() {
    let (cluster, mut config) = prepared("hostssl all all all scram-sha-256\n");
    let names = ["-addext", "subjectAltName=DNS:db.example"];
    signed(&cluster, "other", "main", "/CN=server", &names);
    config.set("tls", "cert_file = \"main.crt\"").set("tls", "key_file = \"main.key\"");
    let pgmend = config.start();
    let shown_by_ca = || by_name(&pgmend, &cluster, "db.example").ok;
    assert!(!shown_by_ca());
    let folder = cluster.folder().display();
    let script = format!(
        r#"
import subprocess
c = connect("sslmode=require password=pw user=anna")
assert c.info.parameter_status("server_version")
open("{folder}/inside", "w").close()
while not __import__("os").path.exists("{folder}/reloaded"):
    assert c.execute("SELECT 1").fetchone()[0] == 1
    time.sleep(0.01)
assert c.execute("SELECT current_user").fetchone()[0] == "anna"
"#
    );
    std::thread::scope(|scope| {
        let session = scope.spawn(|| pgmend.psycopg("", &script));
        wait_until("somebody is within", Duration::from_secs(20), || cluster.folder().join("inside").exists());
        // Half of a pair, as a tool leaves it between two writes: the old one goes on, and the operator is told.
        signed(&cluster, "ca", "new", "/CN=server", &names);
        std::fs::copy(cluster.folder().join("new.crt"), cluster.folder().join("main.crt")).expect("a copy");
        pgmend.cli(&["reload"]).must_fail_saying("certificate and key do not go together");
        crate::support::process::signal(pgmend.pid(), "-HUP");
        let told = || pgmend.log().matches("config.reload_refused").count() >= 2;
        wait_until("the log tells it too", Duration::from_secs(10), told);
        let old = format!("sslmode=verify-full sslrootcert={folder}/other.crt host=db.example hostaddr=127.0.0.1");
        login(&pgmend, &cluster, "anna", "", &old).must();
        std::fs::copy(cluster.folder().join("new.key"), cluster.folder().join("main.key")).expect("a copy");
        crate::support::process::signal(pgmend.pid(), "-HUP");
        wait_until("the new certificate is shown", Duration::from_secs(10), shown_by_ca);
        write_as_postgres(&cluster.folder().join("reloaded"), "", "644");
        session.join().expect("the session went on");
    });
}

#[test]
fn certificates_that_end_soon_are_told() {
    let (cluster, mut config) = prepared("hostssl all all all scram-sha-256\n");
    let names = ["-addext", "subjectAltName=DNS:db.example"];
    signed(&cluster, "ca", "long", "/CN=server", &[&names[..], &["-days", "300"]].concat());
    signed(&cluster, "ca", "short", "/CN=pgmend", &["-days", "7"]);
    config.set("tls", "cert_file = \"long.crt\"").set("tls", "key_file = \"long.key\"");
    let check = |config: &Config| run(as_postgres(cluster.folder().join("pgmend")).arg("check").arg(config.write()));
    let pgmend = config.start();
    assert!(!check(&config).must().all().contains("expire"));
    config.set("tls", "server_cert_file = \"short.crt\"").set("tls", "server_key_file = \"short.key\"");
    let told = check(&config).must().all();
    assert!(told.contains("short.crt expires in "), "{told}");
    pgmend.cli(&["reload"]).must();
    assert!(pgmend.log().contains("short.crt expires in "), "{}", pgmend.log());
}

/// Three connections of one TLS context; prints for each whether the session was resumed.
const RESUME: &str = r#"
import socket, ssl, struct, sys
port, folder, certificate = int(sys.argv[1]), sys.argv[2], sys.argv[3]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
if sys.argv[4] == "1.2":
    context.maximum_version = ssl.TLSVersion.TLSv1_2
if certificate:
    context.load_cert_chain(f"{folder}/{certificate}.crt", f"{folder}/{certificate}.key")
session, told = None, []
for turn in range(3):
    s = socket.create_connection(("127.0.0.1", port), 20)
    s.sendall(struct.pack("!ii", 8, 80877103)); assert s.recv(1) == b"S"
    t = context.wrap_socket(s, session=session)
    body = struct.pack("!i", 196608) + b"user\0anna\0database\0app\0\0"
    t.sendall(struct.pack("!i", len(body) + 4) + body)
    answer = t.recv(1000)
    assert answer[:1] == b"R" and answer[8] == 0, answer
    session = t.session
    told.append("again" if t.session_reused else "new")
    t.close()
print(*told)
"#;

#[test]
fn tls_sessions_are_resumed_with_the_certificate_that_they_began_with() {
    let (cluster, mut config) = prepared("hostssl all all all cert\n");
    let script = write_as_postgres(&cluster.folder().join("resume.py"), RESUME, "644");
    let connect = |pgmend: &Pgmend, version: &str| {
        let port = pgmend.config.port.to_string();
        let mut python = as_postgres("/usr/bin/python3");
        python.arg(&script).arg(port).arg(cluster.folder()).args(["anna", version]);
        run(&mut python).must().out.trim().to_owned()
    };
    let pgmend = config.start();
    for version in ["1.3", "1.2"] {
        assert_eq!(connect(&pgmend, version), "new again again", "TLS {version}");
    }
    drop(pgmend);
    let pgmend = config.set("tls", "session_tickets = false").start();
    for version in ["1.3", "1.2"] {
        assert_eq!(connect(&pgmend, version), "new new new", "TLS {version}");
    }
}

/// Node 0 offers TLS as `localhost` and asks for certificates of the authority `ca`; over TCP only this rule lets in.
fn asks_for_certificates(cluster: &Cluster, rule: &str) {
    signed(cluster, "ca", "node0/server", "/CN=server", &["-addext", "subjectAltName=DNS:localhost"]);
    run(as_postgres("chmod").arg("600").arg(cluster.nodes[0].data.join("server.key"))).must();
    cluster.write(0, "pg_hba.conf", &format!("local all all trust\n{rule}\n"), "600");
    cluster.sql(0, "postgres", "ALTER SYSTEM SET ssl = on");
    let ca = cluster.folder().join("ca.crt");
    cluster.sql(0, "postgres", &format!("ALTER SYSTEM SET ssl_ca_file = '{}'", ca.display()));
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
    wait_until("the server offers TLS", Duration::from_secs(10), || cluster.sql(0, "postgres", "SHOW ssl") == "on");
}

#[test]
fn a_database_may_have_a_certificate_of_its_own_towards_the_servers() {
    let cluster = Cluster::single();
    cluster.sql(0, "postgres", "CREATE DATABASE app");
    authority(&cluster, "ca");
    for name in ["pgmend", "sales", "others", "newer"] {
        signed(&cluster, "ca", name, &format!("/CN={name}"), &[]);
    }
    cluster.write(0, "pg_ident.conf", "of-sales sales postgres\nof-sales newer postgres\n", "600");
    let rules = "hostssl template1 all 127.0.0.1/32 cert map=of-sales\nhostssl all,replication all 127.0.0.1/32 trust";
    asks_for_certificates(&cluster, rules);
    let mut config = Config::of(&cluster);
    config.node(0, "host = \"localhost\"").node(0, "sslmode = \"verify-full\"");
    config.set("tls", "server_ca_file = \"ca.crt\"").set("tls", "server_cert_file = \"pgmend.crt\"");
    config.set("tls", "server_key_file = \"pgmend.key\"");
    config.set("pool.databases.sales", "dbname = \"template1\"");
    for (section, name) in [("pool.databases.sales", "sales"), ("pool.databases.\"*\"", "others")] {
        config.set(section, &format!("server_cert_file = \"{name}.crt\""));
        config.set(section, &format!("server_key_file = \"{name}.key\""));
    }
    config.set("pool.databases.postgres", "pool_size = 3");
    let pgmend = config.start();
    let shown = |database: &str| {
        let ask = "SELECT client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        psql("127.0.0.1", pgmend.config.port, "postgres", database, ask).must().out.trim().to_owned()
    };
    assert_eq!(shown("sales"), "/CN=sales");
    assert_eq!(shown("app"), "/CN=others");
    assert_eq!(shown("postgres"), "/CN=pgmend", "a section of its own without a certificate");
    // The same by a replication connection, and after a reload for new connections.
    let door = format!("host=127.0.0.1 port={} user=postgres dbname=app replication=database", pgmend.config.port);
    run(as_postgres(bin("psql")).args(["-XAtq", "-d", &door, "-c", "IDENTIFY_SYSTEM"])).must();
    config.set("pool.databases.sales", "server_key_file = \"newer.key\"").write();
    pgmend.cli(&["reload"]).must_fail_saying("certificate and key do not go together");
    config.set("pool.databases.sales", "server_cert_file = \"newer.crt\"").write();
    pgmend.cli(&["reload"]).must();
    pgmend.cli(&["reconnect", "sales"]).must();
    wait_until("the new certificate is shown", Duration::from_secs(10), || shown("sales") == "/CN=newer");
}

#[test]
fn pgmend_shows_its_servers_a_certificate_on_both_planes() {
    let cluster = Cluster::single();
    cluster.sql(0, "postgres", "CREATE DATABASE app; ");
    cluster.sql(0, "postgres", "CREATE USER anna");
    authority(&cluster, "ca");
    authority(&cluster, "other");
    signed(&cluster, "ca", "pgmend", "/CN=pgmend", &[]);
    signed(&cluster, "other", "foreign", "/CN=pgmend", &[]);
    let data = &cluster.nodes[0].data;
    cluster.write(0, "pg_ident.conf", "planes pgmend postgres\nplanes pgmend anna\n", "600");
    asks_for_certificates(&cluster, "hostssl all all 127.0.0.1/32 cert map=planes");
    let mut config = Config::of(&cluster);
    config.node(0, "host = \"localhost\"").node(0, "sslmode = \"verify-full\"");
    config.set("tls", "server_ca_file = \"ca.crt\"").set("pool", "query_wait_timeout = \"3s\"");
    config.user = "anna".into();
    config.database = "app".into();
    let ask = "SELECT current_user, client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    // Without a certificate neither plane gets in, and the log says why.
    let pgmend = config.spawn();
    let told = || pgmend.log().contains("connection requires a valid client certificate");
    wait_until("the log tells it", Duration::from_secs(15), told);
    assert!(!pgmend.sql(ask).ok);
    config.set("tls", "server_cert_file = \"pgmend.crt\"").set("tls", "server_key_file = \"pgmend.key\"").write();
    pgmend.cli(&["reload"]).must();
    pgmend.wait_ready();
    assert_eq!(pgmend.sql(ask).must().out.trim(), "anna|/CN=pgmend");
    let probes = "SELECT count(*) > 0 FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) \
                  WHERE usename = 'anna' AND client_dn = '/CN=pgmend'";
    assert_eq!(cluster.sql(0, "postgres", probes), "t");
    // A pair that does not fit changes nothing; one of another authority is refused by the server, and the log tells.
    config.set("tls", "server_key_file = \"foreign.key\"").write();
    pgmend.cli(&["reload"]).must_fail_saying("certificate and key do not go together");
    pgmend.sql(ask).must();
    drop(pgmend);
    config.set("tls", "server_cert_file = \"foreign.crt\"");
    config.forget_log();
    let pgmend = config.spawn();
    let told = || pgmend.log().contains("must be signed by an authority in the server's ssl_ca_file");
    wait_until("the log tells it", Duration::from_secs(15), told);
    drop(pgmend);
    // A server whose certificate was revoked is not believed.
    config.set("tls", "server_cert_file = \"pgmend.crt\"").set("tls", "server_key_file = \"pgmend.key\"");
    revoke(&cluster, "ca", &[]);
    let pgmend = config.set("tls", "server_crl_file = \"ca.crl\"").start();
    pgmend.sql(ask).must();
    std::fs::copy(data.join("server.crt"), cluster.folder().join("server.crt")).expect("a copy");
    revoke(&cluster, "ca", &["server"]);
    openssl(&cluster, &["crl", "-in", "ca.crl", "-noout"]);
    drop(pgmend);
    config.forget_log();
    let pgmend = config.spawn();
    let told = || pgmend.log().contains("revoked by a list in server_crl_file");
    wait_until("the log tells it", Duration::from_secs(15), told);
}

#[test]
fn a_recovery_and_the_standby_that_it_makes_show_the_certificate_too() {
    let cluster = Cluster::pair();
    authority(&cluster, "ca");
    signed(&cluster, "ca", "pgmend", "/CN=postgres", &[]);
    cluster.stop(1);
    asks_for_certificates(&cluster, "hostssl all,replication all 127.0.0.1/32 cert");
    let mut config = Config::of(&cluster);
    for node in [0, 1] {
        config.node(node, "host = \"localhost\"").node(node, "sslmode = \"verify-full\"");
    }
    config.set("tls", "server_ca_file = \"ca.crt\"").set("tls", "server_cert_file = \"pgmend.crt\"");
    let pgmend = config.set("tls", "server_key_file = \"pgmend.key\"").start();
    pgmend.wait_node(1, "down");
    pgmend.cli(&["recover", "1"]).must();
    cluster.wait_streaming(1);
    let dn = "SELECT client_dn FROM pg_stat_ssl JOIN pg_stat_replication USING (pid)";
    assert_eq!(cluster.sql(0, "postgres", dn), "/CN=postgres");
}
