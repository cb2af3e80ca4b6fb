//! Who gets in and who does not, and what each is told: encryption, protocol versions, rules, secrets, failures.

use crate::support::process::{run_for, wait_until};
use crate::support::raw::Message;
use crate::support::scratch::write_as_postgres;
use crate::support::{Cluster, Config, Pgmend, Ran, Raw, as_postgres, bin, run};
use pgmend::wire::frontend;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// psql through pgmend, with more of a connection string.
#[track_caller]
fn login(pgmend: &Pgmend, user: &str, password: &str, more: &str) -> Ran {
    let conninfo = format!("host=127.0.0.1 port={} user={user} dbname=app {more}", pgmend.config.port);
    let mut command = as_postgres(bin("psql"));
    command.env("PGPASSWORD", password).args(["-XAtqw", "-d", &conninfo, "-c", "SELECT current_user"]);
    run(&mut command)
}

/// A Python whose psycopg brings libpq 18, which speaks protocol 3.2.
fn python_with_libpq_18() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp has a parent");
    let python = target.join("libpq18/bin/python");
    assert!(python.exists(), "{} is missing: run `tests/setup test`", python.display());
    python
}

const LIBPQ_18: &str = r#"
import sys, threading, time, psycopg
assert psycopg.pq.version() >= 180000, psycopg.pq.version()
c = psycopg.connect(sys.argv[1], autocommit=True)
print("tls", c.pgconn.ssl_in_use, "protocol", c.pgconn.full_protocol_version)
assert c.execute("SELECT current_user").fetchone()[0] == "app"
other = psycopg.connect(sys.argv[1], autocommit=True)
def cancelled(c):
    try:
        c.execute("SELECT pg_sleep(20)")
    except psycopg.errors.QueryCanceled:
        return True
outcome = []
thread = threading.Thread(target=lambda: outcome.append(cancelled(c)))
thread.start()
# A cancel before the query has begun hits nothing, so it is repeated.
while thread.is_alive():
    other.cancel_safe()
    c.cancel_safe()
    thread.join(0.2)
assert outcome == [True], outcome
assert c.execute("SELECT 1").fetchone()[0] == 1 and other.execute("SELECT 2").fetchone()[0] == 2
"#;

#[track_caller]
fn with_libpq_18(pgmend: &Pgmend, more: &str) -> Ran {
    let conninfo = format!("host=127.0.0.1 port={} user=app password=secret dbname=app {more}", pgmend.config.port);
    // As the account that runs the stories: the folder of the wheel may be closed to others.
    run(Command::new(python_with_libpq_18()).env_remove("PYTHONPATH").args(["-c", LIBPQ_18, &conninfo]))
}

#[test]
fn libpq_18_logs_in_by_direct_tls_with_channel_binding_and_protocol_3_2() {
    let cluster = Cluster::scram();
    let mut config = Config::of(&cluster);
    config.scram().tls();
    let pgmend = config.start();
    let root = format!("sslrootcert={}/server.crt", cluster.folder().display());
    let direct = format!("sslnegotiation=direct sslmode=verify-full channel_binding=require {root}");
    for (more, says) in [
        (direct.clone(), "tls True protocol 30000"),
        (format!("{direct} min_protocol_version=3.2 max_protocol_version=latest"), "tls True protocol 30002"),
        ("sslmode=disable max_protocol_version=3.2".into(), "tls False protocol 30002"),
        (format!("sslmode=verify-full max_protocol_version=3.2 {root}"), "tls True protocol 30002"),
    ] {
        let ran = with_libpq_18(&pgmend, &more).must();
        assert!(ran.out.contains(says), "{more}: {}", ran.all());
    }
}

#[test]
fn direct_tls_where_there_is_none_ends_at_once() {
    let cluster = Cluster::scram();
    let mut config = Config::of(&cluster);
    let pgmend = config.scram().start();
    with_libpq_18(&pgmend, "sslnegotiation=direct sslmode=require").must_fail_saying("SSL");
    login(&pgmend, "app", "secret", "sslmode=require").must_fail_saying("server does not support SSL");
    login(&pgmend, "app", "secret", "").must();
}

#[test]
fn channels_are_bound_to_certificates_of_every_kind() {
    let cluster = Cluster::scram();
    let mut config = Config::of(&cluster);
    config.scram().tls();
    let folder = cluster.folder().display().to_string();
    // What RFC 5929 makes of each signature; for Ed25519 it says nothing, and neither side then binds.
    for (kind, binds) in [
        (&["-newkey", "rsa:2048", "-sha512"][..], true),
        (&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-sha384"], true),
        (&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-sha256"], true),
        (&["-newkey", "ed25519"], false),
    ] {
        let (key, cert) = (format!("{folder}/server.key"), format!("{folder}/server.crt"));
        let make = &mut as_postgres("openssl");
        make.args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"]).args(kind);
        run(make.args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", &key, "-out", &cert])).must();
        let pgmend = config.start();
        let verified = format!("sslmode=verify-full sslrootcert={cert}");
        login(&pgmend, "app", "secret", &verified).must();
        let bound = login(&pgmend, "app", "secret", &format!("{verified} channel_binding=require"));
        match binds {
            true => assert_eq!(bound.must().out.trim(), "app"),
            false => drop(bound.must_fail_saying("channel binding is required")),
        }
    }
}

fn key_data(messages: &[Message]) -> (u32, Vec<u8>) {
    let body = &messages.iter().find(|m| m.tag == b'K').expect("BackendKeyData").body;
    (u32::from_be_bytes(body[..4].try_into().expect("4 bytes")), body[4..].to_vec())
}

#[test]
fn versions_are_negotiated_and_the_long_key_cancels() {
    let cluster = Cluster::single();
    let pgmend = Config::of(&cluster).start();
    let port = pgmend.config.port;
    let names = [("user", "postgres"), ("database", "postgres")];
    let options = [("user", "postgres"), ("_pq_.foo", "1"), ("database", "postgres"), ("_pq_.bar", "")];
    for (minor, parameters, negotiated, key_length) in [
        (0, &names[..], None, 4),
        (2, &names[..], None, 32),
        (1, &names[..], Some(&b"\0\x03\0\0\0\0\0\0"[..]), 4),
        (9, &names[..], Some(&b"\0\x03\0\x02\0\0\0\0"[..]), 32),
        (0, &options[..], Some(&b"\0\x03\0\0\0\0\0\x02_pq_.foo\0_pq_.bar\0"[..]), 4),
        (9, &options[..], Some(&b"\0\x03\0\x02\0\0\0\x02_pq_.foo\0_pq_.bar\0"[..]), 32),
    ] {
        let mut raw = Raw::connect(port);
        let all = raw.start(minor, parameters).until_ready();
        let told = all.first().filter(|m| m.tag == b'v').map(|m| m.body.as_slice());
        assert_eq!(told, negotiated, "3.{minor}");
        let (pid, key) = key_data(&all);
        assert_eq!(key.len(), key_length, "3.{minor}");
        raw.say(|out| frontend::query(out, "SELECT pg_sleep(20)"));
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(20)' AND state = 'active'";
        wait_until("it runs", Duration::from_secs(10), || cluster.sql(0, "postgres", running) == "1");
        // Keys that are nearly right: one bit off, cut to four bytes, one byte too many.
        let mut off = key.clone();
        off[key_length - 1] ^= 1;
        for wrong in [off, key[..4].to_vec(), [key.as_slice(), b"x"].concat()].iter().filter(|wrong| **wrong != key) {
            let mut cancel = Raw::connect(port);
            cancel.say(|out| frontend::cancel_request(out, pid, wrong)).must_end();
        }
        assert_eq!(cluster.sql(0, "postgres", running), "1", "a wrong key cancels nothing");
        Raw::connect(port).say(|out| frontend::cancel_request(out, pid, &key)).must_end();
        assert_eq!(raw.until_ready().last().expect("an answer").error().0, "57014");
    }
}

#[test]
fn encryption_by_gssapi_is_declined_and_tls_or_plain_text_follows() {
    let cluster = Cluster::scram();
    let mut config = Config::of(&cluster);
    let pgmend = config.scram().start();
    let mut raw = Raw::connect(pgmend.config.port);
    assert_eq!(raw.say(frontend::gss_request).byte(), b'N');
    assert_eq!(raw.say(frontend::ssl_request).byte(), b'N');
    assert_eq!(raw.start(0, &[("user", "app")]).message().auth(), Some(10));
    drop((raw, pgmend));
    let pgmend = config.tls().start();
    let script = r#"
import socket, ssl, struct, sys
SSL = struct.pack("!ii", 8, 80877103)
connect = lambda: socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20)
encrypt = lambda s: ssl.create_default_context(cafile=sys.argv[2]).wrap_socket(s, server_hostname="localhost")
s = connect()
s.sendall(struct.pack("!ii", 8, 80877104)); assert s.recv(1) == b"N"
s.sendall(SSL); assert s.recv(1) == b"S"
t = encrypt(s)
body = struct.pack("!i", 196608) + b"user\0app\0\0"
t.sendall(struct.pack("!i", len(body) + 4) + body)
answer = t.recv(1000)
assert b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0" in answer, answer
# Within TLS neither kind of encryption can be asked for again.
s = connect()
s.sendall(SSL); assert s.recv(1) == b"S"
u = encrypt(s)
u.sendall(SSL)
answer = u.recv(1000)
assert answer[:1] == b"E" and b"C0A000\0" in answer, answer
"#;
    let certificate = cluster.folder().join("server.crt");
    let port = pgmend.config.port.to_string();
    run(as_postgres("/usr/bin/python3").args(["-c", script, &port]).arg(certificate)).must();
}

const RULES: &str = r#"
local      all      all                                 trust
host       app      refused     all                     reject
hostssl    app      by_tls      127.0.0.1/32            scram-sha-256
hostnossl  app      by_plain    127.0.0.1 255.0.0.0     scram-sha-256
host       app      clear       all                     password
host       app      hashed      all                     md5
host       app      "strong"    ::1/128,                trust   # no such field: one address only
"#;

/// A server that lets everybody in, so that only pgmend decides; each user of the rules has the password `pw`.
fn ruled(users: &[&str], rules: &str) -> (Cluster, Config) {
    let cluster = Cluster::single();
    cluster.sql(0, "postgres", "CREATE DATABASE app");
    cluster.sql(0, "postgres", "CREATE DATABASE own");
    users.iter().for_each(|user| drop(cluster.sql(0, "postgres", &format!("CREATE USER {user}"))));
    let list: String = users.iter().map(|user| format!("\"{user}\" \"pw\"\n")).collect();
    write_as_postgres(&cluster.folder().join("userlist.txt"), &list, "600");
    write_as_postgres(&cluster.folder().join("hba.conf"), rules, "600");
    let mut config = Config::of(&cluster);
    config.set("auth", "hba_file = \"hba.conf\"").set("auth", "userlist_file = \"userlist.txt\"").tls();
    (cluster, config)
}

#[test]
fn each_rule_decides_for_whom_it_fits() {
    let rules = RULES.replace("::1/128,                trust   # no such field: one address only", "all scram-sha-256")
        + "host app far 10.0.0.0/8 trust\nhost app free all trust\nhost sameuser own all trust\n";
    let users = ["refused", "by_tls", "by_plain", "clear", "hashed", "strong", "far", "free", "own"];
    let (cluster, config) = ruled(&users, &rules);
    let pgmend = config.start();
    let (tls, plain) = ("sslmode=require", "sslmode=disable");
    let refusal = |user: &str, how: &str| {
        format!("no pg_hba.conf entry for host \"127.0.0.1\", user \"{user}\", database \"app\", {how}")
    };
    for (user, more, password, expected) in [
        ("free", plain, "", Ok(0)),
        ("free", tls, "", Ok(0)),
        ("clear", plain, "pw", Ok(3)),
        ("hashed", plain, "pw", Ok(5)),
        ("strong", plain, "pw", Ok(10)),
        ("by_plain", plain, "pw", Ok(10)),
        ("by_tls", tls, "pw", Ok(10)),
        ("refused", plain, "pw", Err("no encryption")),
        ("refused", tls, "pw", Err("SSL encryption")),
        ("by_tls", plain, "pw", Err("no encryption")),
        ("by_plain", tls, "pw", Err("SSL encryption")),
        ("far", plain, "pw", Err("no encryption")),
        ("nobody", plain, "pw", Err("no encryption")),
        // A rule for `sameuser` fits in the database of that name only.
        ("own", plain, "", Err("no encryption")),
    ] {
        let ran = login(&pgmend, user, password, more);
        match expected {
            Ok(code) => {
                assert_eq!(ran.must().out.trim(), user);
                if more == plain {
                    let mut raw = Raw::connect(pgmend.config.port);
                    let asked = raw.start(0, &[("user", user), ("database", "app")]).message().auth();
                    assert_eq!(asked, Some(code), "{user}");
                }
                if code != 0 {
                    let words = format!("FATAL:  password authentication failed for user \"{user}\"");
                    login(&pgmend, user, "wrong", more).must_fail_saying(&words);
                }
            }
            Err(how) => drop(ran.must_fail_saying(&refusal(user, how))),
        }
    }
    login(&pgmend, "own", "", "dbname=own").must();
    // The rule for Unix sockets: everybody is trusted there.
    let folder = cluster.folder().display();
    login(&pgmend, "refused", "", &format!("host={folder}")).must();
}

#[test]
fn a_reload_changes_the_rules_for_the_next_logins_only() {
    let (cluster, config) = ruled(&["anna"], "host all anna all trust\nlocal all all trust\n");
    let pgmend = config.start();
    let mut session = Raw::connect(pgmend.config.port);
    session.start(0, &[("user", "anna"), ("database", "app")]).until_ready();
    let file = cluster.folder().join("hba.conf");
    write_as_postgres(&file, "host all anna all kerberos\n", "600");
    pgmend.cli(&["reload"]).must_fail_saying("hba.conf:1: unknown authentication method \"kerberos\"");
    login(&pgmend, "anna", "", "").must();
    write_as_postgres(&file, "host all anna all scram-sha-256\nlocal all all trust\n", "600");
    pgmend.cli(&["reload"]).must();
    login(&pgmend, "anna", "", "").must_fail_saying("no password supplied");
    login(&pgmend, "anna", "pw", "").must();
    // New secrets come with a reload too.
    write_as_postgres(&cluster.folder().join("userlist.txt"), "\"anna\" \"new\"\n", "600");
    login(&pgmend, "anna", "pw", "").must();
    pgmend.cli(&["reload"]).must();
    login(&pgmend, "anna", "pw", "").must_fail_saying("password authentication failed for user \"anna\"");
    login(&pgmend, "anna", "new", "").must();
    // Who was let in stays.
    let all = session.say(|out| frontend::query(out, "SELECT 1")).until_ready();
    assert!(all.iter().any(|m| m.tag == b'D'));
}

#[test]
fn every_kind_of_pool_passwd_opens_a_server_that_asks_again() {
    let cluster = Cluster::single();
    let make = |user: &str, kind: &str| {
        let sql = format!("SET password_encryption = '{kind}'; CREATE USER {user} PASSWORD 'pass word'");
        cluster.sql(0, "postgres", &sql);
        cluster.sql(0, "postgres", &format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{user}'"))
    };
    cluster.sql(0, "postgres", "CREATE DATABASE app");
    let (hashed, verifier) = (make("hashed", "md5"), make("verified", "scram-sha-256"));
    for user in ["bare", "text", "aes"] {
        make(user, "scram-sha-256");
    }
    // With `md5` a server takes either kind. The probes come as postgres.
    let hba = "local all all trust\nhost all postgres all trust\nhost all all all md5\n";
    cluster.write(0, "pg_hba.conf", hba, "600");
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
    // Pgpool-II's own tool makes the AES entry.
    let key = write_as_postgres(&cluster.folder().join(".pgpoolkey"), "a key of words\n", "600");
    let made = run(as_postgres("pg_enc").arg("-k").arg(&key).arg("pass word")).must();
    let aes = made.out.lines().find_map(|line| line.strip_prefix("pool_passwd string: ")).expect("an entry").to_owned();
    assert!(aes.starts_with("AES"), "{aes}");
    let list = format!("bare:pass word\ntext:TEXTpass word\nhashed:{hashed}\nverified:{verifier}\naes:{aes}\n");
    write_as_postgres(&cluster.folder().join("pool_passwd"), &list, "600");
    let mut config = Config::of(&cluster);
    config.set("auth", "pool_passwd_file = \"pool_passwd\"").set("auth", "key_file = \".pgpoolkey\"");
    config.set("auth", "method = \"md5\"");
    for method in ["md5", "scram-sha-256", "password"] {
        config.set("auth", &format!("method = \"{method}\""));
        let pgmend = config.start();
        for user in ["bare", "text", "hashed", "verified", "aes"] {
            let right = login(&pgmend, user, "pass word", "");
            // From an md5 hash no SCRAM can be made: as in PostgreSQL it fails as a wrong password does.
            if user == "hashed" && method == "scram-sha-256" {
                right.must_fail_saying("password authentication failed for user \"hashed\"");
            } else {
                assert_eq!(right.must().out.trim(), user, "{method}");
            }
            let words = format!("password authentication failed for user \"{user}\"");
            login(&pgmend, user, "Pass word", "").must_fail_saying(&words);
        }
    }
    // Without its key the file is refused, by line and without the secret.
    config.set("auth", "key_file = \"server_key_of_another\"");
    write_as_postgres(&cluster.folder().join("server_key_of_another"), "other\n", "600");
    let toml = config.write();
    let checked = run(as_postgres(cluster.folder().join("pgmend")).arg("check").arg(toml));
    assert!(!checked.must_fail_saying("pool_passwd:5: unable to decrypt").all().contains(&aes[3..]));
}

#[test]
fn the_salt_of_an_unknown_user_stays_as_a_real_one_does() {
    let cluster = Cluster::scram();
    let mut config = Config::of(&cluster);
    config.scram();
    let salts = |pgmend: &Pgmend| {
        ["app", "nobody"].map(|user| {
            let mut raw = Raw::connect(pgmend.config.port);
            raw.start(0, &[("user", user)]).message();
            let challenge = raw.say(|out| frontend::sasl_initial(out, "SCRAM-SHA-256", b"n,,n=,r=abc")).message();
            let text = String::from_utf8_lossy(&challenge.body[4..]).into_owned();
            text.split_once(',').expect("a nonce and more").1.to_owned()
        })
    };
    let pgmend = config.start();
    let first = salts(&pgmend);
    assert_ne!(first[0], first[1]);
    write_as_postgres(&cluster.folder().join("userlist.txt"), "\"app\" \"secret\"\n\"new\" \"one\"\n", "600");
    pgmend.cli(&["reload"]).must();
    assert_eq!(salts(&pgmend), first, "after a reload");
    drop(pgmend);
    assert_eq!(salts(&config.start()), first, "after a restart");
}

#[test]
fn many_plain_passwords_delay_neither_the_start_nor_a_login() {
    let cluster = Cluster::scram();
    let mut config = Config::of(&cluster);
    config.scram();
    let mut list: String = (0..60).map(|n| format!("\"u{n}\" \"pw\"\n")).collect();
    list += "\"app\" \"secret\"\n";
    write_as_postgres(&cluster.folder().join("userlist.txt"), &list, "600");
    let pgmend = config.start();
    login(&pgmend, "app", "secret", "").must();
    login(&pgmend, "u30", "wrong", "").must_fail_saying("password authentication failed");
    wait_until("the rest is derived in the background", Duration::from_secs(60), || {
        pgmend.log().contains("event=\"secrets.ready\" users=61")
    });
    login(&pgmend, "app", "secret", "").must();
    login(&pgmend, "u30", "wrong", "").must_fail_saying("password authentication failed");
}

#[test]
fn who_fails_to_log_in_is_told_clearly_and_the_daemon_goes_on() {
    let cluster = Cluster::scram();
    let mut config = Config::of(&cluster);
    config.scram().set("auth", "authentication_timeout = \"2s\"");
    for method in ["password", "md5", "scram-sha-256"] {
        let pgmend = config.set("auth", &format!("method = \"{method}\"")).start();
        for (user, password) in [("app", "wrong"), ("nobody", "secret"), ("app", "SECRET"), ("APP", "secret")] {
            let words = format!("FATAL:  password authentication failed for user \"{user}\"");
            login(&pgmend, user, password, "").must_fail_saying(&words);
        }
        login(&pgmend, "app", "", "").must_fail_saying("no password supplied");
        // An empty password, sent.
        let mut raw = Raw::connect(pgmend.config.port);
        let asked = raw.start(0, &[("user", "app")]).message().auth();
        if asked != Some(10) {
            let refused = raw.say(|out| frontend::password(out, "")).message().error();
            assert_eq!(refused.0, "28P01", "{refused:?}");
            raw.must_end();
        }
        // Megabytes, of which the header is enough.
        let mut raw = Raw::connect(pgmend.config.port);
        raw.start(0, &[("user", "app")]).message();
        let mut long = Vec::new();
        frontend::password(&mut long, &"x".repeat(8 << 20));
        raw.stream.write_all(&long).expect("it is taken to its end");
        // A client that sends it all before it reads, as libpq does, still reads why it was in vain.
        assert_eq!(raw.message().error(), ("08P01".into(), "invalid message length 8388613".into()));
        assert_eq!(raw.stream.read(&mut [0]).expect("an end, no reset"), 0);
        // The longest that is read.
        login(&pgmend, "app", &"x".repeat(9000), "").must_fail_saying("password authentication failed");
        // Gives up in the middle, at each step.
        for steps in 0..3 {
            let mut raw = Raw::connect(pgmend.config.port);
            if steps > 0 {
                raw.start(0, &[("user", "app")]).message();
            }
            if steps > 1 {
                raw.send(b"p\0\0\0\x30half");
            }
        }
        // Says nothing, or falls silent in the middle.
        let mut silent = Raw::connect(pgmend.config.port);
        let mut half = Raw::connect(pgmend.config.port);
        half.start(0, &[("user", "app")]).message();
        half.send(b"p\0\0\0\x30half");
        let timeout = ("57014".to_owned(), "canceling authentication due to timeout".to_owned());
        assert_eq!(silent.message().error(), timeout);
        assert_eq!(half.message().error(), timeout);
        silent.must_end();
        login(&pgmend, "app", "secret", "").must();
        assert!(!pgmend.log().contains("panic"), "{}", pgmend.log());
    }
}

#[test]
fn clients_that_say_nothing_do_not_keep_others_out() {
    let cluster = Cluster::scram();
    let mut config = Config::of(&cluster);
    config.scram().set("auth", "authentication_timeout = \"2s\"").set("pool", "max_client_conn = 300");
    let pgmend = config.start();
    // As many as may connect at all; each holds a place for as long as a login may take.
    let silent: Vec<Raw> = (0..300).map(|_| Raw::connect(pgmend.config.port)).collect();
    wait_until("one gets in when the silent ones are sent away", Duration::from_secs(15), || {
        login(&pgmend, "app", "secret", "").ok
    });
    drop(silent);
    let command = &mut as_postgres(bin("pgbench"));
    let door = format!("host=127.0.0.1 port={} user=app password=secret dbname=app", pgmend.config.port);
    cluster.pgbench_tables("app", 1);
    cluster.sql(0, "app", "GRANT ALL ON ALL TABLES IN SCHEMA public TO app");
    run_for(command.args(["-n", "-S", "-C", "-c", "4", "-t", "20", &door]), Duration::from_secs(90)).must();
}
