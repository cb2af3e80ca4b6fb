//! `native_replication` and `snapshot_isolation`: writes go to all nodes, and the nodes stay equal.

use crate::support::cluster::psql;
use crate::support::load::pgbench;
use crate::support::pipeline::message;
use crate::support::process::wait_until;
use crate::support::scratch::write_as_postgres;
use crate::support::{Cluster, Config, Load, Pgmend, Ran, Raw, as_postgres, bin, run};
use std::time::Duration;

fn config(cluster: &Cluster, mode: &str) -> Config {
    let mut config = Config::of(cluster);
    config.set("cluster", &format!("backend_clustering_mode = \"{mode}\""));
    config.set("recovery", "recovery_user = \"postgres\"");
    config
}

fn native(cluster: &Cluster) -> Pgmend {
    config(cluster, "native_replication").start()
}

fn ask(pgmend: &Pgmend, sql: &str) -> Ran {
    psql("127.0.0.1", pgmend.door().port, "postgres", "postgres", sql)
}

/// A file of statements and COPY data, which go on after an error.
fn script(pgmend: &Pgmend, text: &str) -> Ran {
    let file = write_as_postgres(&pgmend.config.folder().join("script.sql"), text, "644");
    let port = pgmend.door().port.to_string();
    let mut psql = as_postgres(bin("psql"));
    run(psql.args(["-XAtq", "-h", "127.0.0.1", "-U", "postgres", "-p", &port, "-f"]).arg(file))
}

fn statuses(pgmend: &Pgmend, count: usize) -> Vec<String> {
    (0..count).map(|id| pgmend.node_status(id)).collect()
}

/// On all nodes, past pgmend.
fn everywhere(cluster: &Cluster, sql: &str) {
    (0..cluster.nodes.len()).for_each(|id| drop(cluster.sql(id, "postgres", sql)));
}

#[test]
fn pgbench_leaves_the_same_rows_on_all_nodes() {
    let cluster = Cluster::equals(2);
    for id in 0..2 {
        cluster.pgbench_tables_on(id, "postgres", 1);
    }
    everywhere(&cluster, "ALTER TABLE pgbench_history ADD COLUMN id serial, ADD COLUMN at timestamptz DEFAULT now()");
    for mode in ["transaction", "session"] {
        let mut config = config(&cluster, "native_replication");
        config.set("pool", &format!("mode = \"{mode}\""));
        let pgmend = config.start();
        for protocol in ["simple", "extended", "prepared"] {
            let done = pgbench(&pgmend.door(), &["-c", "8", "-t", "50", "-M", protocol]);
            assert_eq!(done, 400, "{mode} {protocol}");
            pgbench(&pgmend.door(), &["-c", "4", "-t", "50", "-S", "-M", protocol]);
        }
        cluster.must_be_equal("postgres");
    }
    assert_eq!(cluster.sql(0, "postgres", "SELECT count(*), max(id) FROM pgbench_history"), "2400|2400");
}

#[test]
fn snapshot_isolation_keeps_the_nodes_equal_and_its_transactions_see_the_same() {
    let cluster = Cluster::equals(3);
    for id in 0..3 {
        cluster.pgbench_tables_on(id, "postgres", 1);
    }
    let pgmend = config(&cluster, "snapshot_isolation").start();
    // Conflicts are serialization failures, which pgbench tries again.
    let tries = ["-c", "6", "-t", "40", "--max-tries=1000"];
    for protocol in ["simple", "extended", "prepared"] {
        pgbench(&pgmend.door(), &[&tries[..], &["-M", protocol]].concat());
    }
    cluster.must_be_equal("postgres");
    let refused = ask(&pgmend, "BEGIN ISOLATION LEVEL READ COMMITTED");
    assert!(refused.err.contains("not offered in snapshot_isolation"), "{}", refused.err);
}

#[test]
fn moments_and_numbers_are_the_same_everywhere() {
    let cluster = Cluster::equals(2);
    let pgmend = native(&cluster);
    for sql in [
        "CREATE TABLE t (id serial PRIMARY KEY, d date DEFAULT current_date, at timestamptz DEFAULT now(), x text)",
        "INSERT INTO t (x) VALUES ('a'), ('b')",
        "INSERT INTO t (at, x) VALUES (now() - interval '1 day', current_timestamp::text)",
        "INSERT INTO t (x) SELECT 'c' || n FROM generate_series(1, 5) n ORDER BY n",
        "UPDATE t SET at = localtimestamp WHERE x = 'a'",
        "BEGIN; INSERT INTO t (x) VALUES ('d'); SAVEPOINT s; INSERT INTO t (x) VALUES ('e'); ROLLBACK TO s; \
         INSERT INTO t (x) VALUES ('f'); COMMIT",
        "SELECT nextval('t_id_seq')",
        "CREATE UNLOGGED TABLE u (at timestamp DEFAULT localtimestamp)",
        "INSERT INTO u DEFAULT VALUES",
    ] {
        ask(&pgmend, sql).must();
    }
    cluster.must_be_equal("postgres");
    let same = ask(&pgmend, "BEGIN; INSERT INTO t (x) VALUES ('same') RETURNING at = now(); COMMIT").must().out;
    assert_eq!(same.trim(), "t", "a transaction sees the moment that it stores");
    assert_eq!(ask(&pgmend, "SELECT count(*) FROM t").must().out.trim(), "11");
}

#[test]
fn what_cannot_be_made_equal_is_refused_or_warned_of() {
    let cluster = Cluster::equals(2);
    let pgmend = native(&cluster);
    ask(&pgmend, "CREATE TABLE t (x float8)").must();
    let refused = ask(&pgmend, "INSERT INTO t VALUES (random())");
    assert!(!refused.ok && refused.err.contains("could leave the nodes different"), "{}", refused.err);
    assert_eq!(ask(&pgmend, "SELECT count(*) FROM t WHERE random() >= 0").must().out.trim(), "0", "to ask is no harm");
    let body = "BEGIN RETURN 1; END";
    ask(&pgmend, &format!("CREATE FUNCTION f() RETURNS float8 LANGUAGE plpgsql AS '{body}'")).must();
    let warned = ask(&pgmend, "INSERT INTO t VALUES (f())").must();
    assert!(warned.err.contains("WARNING") && warned.err.contains("volatile"), "{}", warned.err);
    cluster.must_be_equal("postgres");
}

#[test]
fn an_error_on_one_node_is_undone_everywhere() {
    let cluster = Cluster::equals(2);
    let pgmend = native(&cluster);
    ask(&pgmend, "CREATE TABLE t (id int PRIMARY KEY)").must();
    // Node 1 has a row that node 0 has not.
    cluster.sql(1, "postgres", "INSERT INTO t VALUES (7)");
    let refused = ask(&pgmend, "INSERT INTO t VALUES (7)");
    assert!(!refused.ok && refused.err.contains("the nodes did not agree"), "{}", refused.err);
    let refused = ask(&pgmend, "BEGIN; INSERT INTO t VALUES (1); INSERT INTO t VALUES (7); COMMIT");
    assert!(!refused.ok, "{}", refused.out);
    assert_eq!(cluster.sql(0, "postgres", "SELECT count(*) FROM t"), "0");
    let refused = ask(&pgmend, "DELETE FROM t WHERE id = 7");
    assert!(refused.err.contains("Different rows"), "{}", refused.err);
    assert_eq!(cluster.sql(1, "postgres", "SELECT count(*) FROM t"), "1");
    // An error that all have alike is the client's own.
    ask(&pgmend, "INSERT INTO t VALUES (1)").must();
    let refused = ask(&pgmend, "INSERT INTO t VALUES (1)");
    assert!(refused.err.contains("duplicate key"), "{}", refused.err);
    assert_eq!(statuses(&pgmend, 2), ["up", "up"]);
}

#[test]
fn the_minority_is_detached_where_the_operator_says_so() {
    let cluster = Cluster::equals(3);
    let mut config = config(&cluster, "native_replication");
    config.set("cluster", "failover_if_affected_tuples_mismatch = true");
    config.set("cluster", "replication_stop_on_mismatch = true");
    let pgmend = config.start();
    ask(&pgmend, "CREATE TABLE t (id int PRIMARY KEY)").must();
    ask(&pgmend, "INSERT INTO t VALUES (1), (2)").must();
    cluster.sql(2, "postgres", "DELETE FROM t WHERE id = 2");
    assert_eq!(ask(&pgmend, "DELETE FROM t WHERE id = 2 RETURNING id").must().out.trim(), "2");
    wait_until("the odd one out is detached", Duration::from_secs(5), || statuses(&pgmend, 3) == ["up", "up", "down"]);
    ask(&pgmend, "INSERT INTO t VALUES (3)").must();
    assert_eq!(cluster.digest(0, "postgres"), cluster.digest(1, "postgres"));
    assert_eq!(cluster.sql(2, "postgres", "SELECT count(*) FROM t WHERE id = 3"), "0");
}

#[test]
fn copy_goes_to_all_nodes_and_fails_on_all() {
    let cluster = Cluster::equals(2);
    let pgmend = native(&cluster);
    ask(&pgmend, "CREATE TABLE t (id serial, x int CHECK (x < 100000))").must();
    let rows: String = (0..50_000).map(|n| format!("{n}\n")).collect();
    let copied = script(&pgmend, &format!("COPY t (x) FROM STDIN;\n{rows}\\.\n"));
    copied.must();
    cluster.must_be_equal("postgres");
    let failed = script(&pgmend, "COPY t (x) FROM STDIN;\n1\n100001\n\\.\nSELECT 'still here';\n");
    assert!(failed.err.contains("violates check constraint") && failed.out.contains("still here"), "{}", failed.all());
    assert_eq!(ask(&pgmend, "SELECT count(*) FROM t").must().out.trim(), "50000");
    ask(&pgmend, "INSERT INTO t (x) VALUES (1)").must();
    cluster.must_be_equal("postgres");
}

/// What a driver does beyond pgbench, in both pooling modes; the nodes are compared at the end.
const DRIVER: &str = r#"
c = connect()
c.execute("CREATE TABLE d (id serial PRIMARY KEY, x text, n int UNIQUE)")
# Prepared statements, with parameters, reused by name.
for n in range(20):
    c.execute("INSERT INTO d (x, n) VALUES (%s, %s)", ("p", n), prepare=True)
# now() as a parameter's neighbour, in a prepared statement that is used in several transactions.
for n in range(3):
    c.execute("UPDATE d SET x = now()::text WHERE n = %s", (n,), prepare=True)
# A pipeline: several statements before one Sync, one of which fails; then what came with it is undone.
with c.pipeline():
    cur = c.execute("INSERT INTO d (x, n) VALUES ('q', 100) RETURNING id")
assert cur.fetchone()[0] == 21, 'the sequence goes on'
try:
    with c.pipeline():
        c.execute("INSERT INTO d (x, n) VALUES ('r', 101)")
        c.execute("INSERT INTO d (x, n) VALUES ('r', 1)")
        c.execute("INSERT INTO d (x, n) VALUES ('r', 102)")
    assert False, 'the duplicate is an error'
except psycopg.errors.UniqueViolation:
    pass
assert c.execute("SELECT count(*) FROM d WHERE x = 'r'").fetchone()[0] == 0
# A transaction with savepoints, an error inside, and a cursor.
with c.transaction():
    c.execute("INSERT INTO d (x, n) VALUES ('s', 200)")
    try:
        with c.transaction():
            c.execute("INSERT INTO d (x, n) VALUES ('t', 201)")
            c.execute("SELECT 1/0")
    except psycopg.errors.DivisionByZero:
        pass
    c.execute("INSERT INTO d (x, n) VALUES ('u', 202)")
    cur = c.cursor(name='held')
    cur.execute("SELECT n FROM d ORDER BY n")
    assert len(cur.fetchmany(5)) == 5
    cur.close()
assert c.execute("SELECT string_agg(x, '' ORDER BY n) FROM d WHERE n >= 200").fetchone()[0] == 'su'
# A failed transaction stays failed on every node until its end.
c.execute("BEGIN")
try:
    c.execute("SELECT * FROM there_is_no_such_table")
except psycopg.errors.UndefinedTable:
    pass
try:
    c.execute("INSERT INTO d (x, n) VALUES ('never', 300)")
    assert False
except psycopg.errors.InFailedSqlTransaction:
    pass
c.execute("COMMIT")
assert c.execute("SELECT count(*) FROM d WHERE n = 300").fetchone()[0] == 0
# COPY both ways.
with c.cursor().copy("COPY d (x, n) FROM STDIN") as copy:
    for n in range(1000, 3000):
        copy.write_row(('copied', n))
with c.cursor().copy("COPY (SELECT n FROM d WHERE x = 'copied') TO STDOUT") as copy:
    assert len(list(copy.rows())) == 2000
# Settings go with the client, and a temporary table keeps it on its servers.
c.execute("SET search_path = pg_catalog, public")
c.execute("SET application_name = 'driver'")
assert c.execute("SHOW search_path").fetchone()[0] == 'pg_catalog, public'
c.execute("CREATE TEMP TABLE mine (a int)")
c.execute("INSERT INTO mine VALUES (1)")
assert c.execute("SELECT a FROM mine").fetchone()[0] == 1
c.execute("DROP TABLE mine")
# What cannot run in a transaction.
c.execute("VACUUM d")
c.execute("CREATE INDEX CONCURRENTLY ON d (x)")
c.execute("CREATE DATABASE another")
c.execute("DROP DATABASE another")
# A prepared transaction, a lock, a notification, a large object of a given number.
c.execute("PREPARE pq (int) AS INSERT INTO public.d (x, n) VALUES ('sql', $1)")
c.execute("EXECUTE pq (400)")
c.execute("DEALLOCATE pq")
c.execute("SELECT pg_advisory_lock(7)")
c.execute("SELECT pg_advisory_unlock(7)")
assert c.execute("SELECT lo_create(4711)").fetchone()[0] == 4711
c.execute("SELECT lo_put(4711, 0, 'abc'::bytea)")
c.execute("CREATE ROLE r1 LOGIN PASSWORD 'secret'")
# Several statements in one query, of which the last fails: nothing of them stays.
try:
    c.execute("INSERT INTO d (x, n) VALUES ('v', 500); INSERT INTO d (x, n) VALUES ('v', 500)")
    assert False
except psycopg.errors.UniqueViolation:
    pass
assert c.execute("SELECT count(*) FROM d WHERE n = 500").fetchone()[0] == 0
# A cancel ends the statement on whatever node it runs, and the session goes on.
timer = threading.Timer(0.3, c.cancel)
timer.start()
try:
    c.execute("INSERT INTO d (x, n) SELECT 'slow', 600 FROM pg_sleep(30)")
    assert False
except psycopg.errors.QueryCanceled:
    pass
timer.join()
assert c.execute("SELECT count(*) FROM d WHERE n = 600").fetchone()[0] == 0
# A result larger than all buffers, from a statement that writes.
rows = c.execute("UPDATE d SET x = repeat('y', 1000) WHERE x = 'copied' RETURNING *").fetchall()
assert len(rows) == 2000
"#;

#[test]
fn a_driver_finds_everything_in_transaction_pooling() {
    driver("native_replication", "transaction");
}

#[test]
fn a_driver_finds_everything_in_session_pooling() {
    driver("native_replication", "session");
}

#[test]
fn a_driver_finds_everything_in_snapshot_isolation() {
    driver("snapshot_isolation", "transaction");
}

fn driver(mode: &str, pooling: &str) {
    let cluster = Cluster::equals(2);
    let mut config = config(&cluster, mode);
    config.set("pool", &format!("mode = \"{pooling}\""));
    let pgmend = config.start();
    pgmend.psycopg("", DRIVER);
    cluster.must_be_equal("postgres");
    let lobs = "SELECT string_agg(loid || ':' || data::text, ',') FROM pg_largeobject";
    assert_eq!(cluster.sql(0, "postgres", lobs), "4711:\\x616263");
    for sql in [lobs, "SELECT rolpassword FROM pg_authid WHERE rolname = 'r1'"] {
        assert_eq!(cluster.sql(0, "postgres", sql), cluster.sql(1, "postgres", sql));
    }
    assert_eq!(statuses(&pgmend, 2), ["up", "up"]);
}

/// Messages that drivers send in separate batches: the unnamed statement is prepared in one and used in another, a portal is
/// bound in one and executed in another.
#[test]
fn what_one_batch_prepares_another_one_uses() {
    let cluster = Cluster::equals(2);
    let pgmend = native(&cluster);
    ask(&pgmend, "CREATE TABLE t (id int, at timestamptz DEFAULT now())").must();
    let mut raw = Raw::connect(pgmend.config.port);
    raw.start(0, &[("user", "postgres"), ("database", "postgres")]);
    raw.until_ready();
    let (sync, execute) = (message(b'S', &[]), message(b'E', &[b"\0\0\0\0\0"]));
    let tags = |raw: &mut Raw, bytes: &[u8]| -> String {
        raw.send(bytes).until_ready().iter().map(|m| char::from(m.tag)).collect()
    };
    let parse = message(b'P', &[b"\0INSERT INTO t VALUES ($1, now())\0\0\0"]);
    let bind = message(b'B', &[b"\0\0\0\0\0\x01\0\0\0\x017\0\0"]);
    assert_eq!(tags(&mut raw, &[parse, message(b'D', &[b"S\0"]), sync.clone()].concat()), "1tnZ");
    for _ in 0..2 {
        assert_eq!(tags(&mut raw, &[bind.clone(), execute.clone(), sync.clone()].concat()), "2CZ");
    }
    // A portal that outlives its batch, in a transaction.
    assert_eq!(tags(&mut raw, &message(b'Q', &[b"BEGIN\0"])), "CZ");
    let parse = message(b'P', &[b"\0INSERT INTO t VALUES ($1, now())\0\0\0"]);
    assert_eq!(tags(&mut raw, &[parse, bind, sync.clone()].concat()), "12Z");
    assert_eq!(tags(&mut raw, &[execute, sync].concat()), "CZ");
    assert_eq!(tags(&mut raw, &message(b'Q', &[b"COMMIT\0"])), "CZ");
    assert_eq!(cluster.sql(1, "postgres", "SELECT count(*) FROM t WHERE id = 7"), "3");
    cluster.must_be_equal("postgres");
}

/// A lock that no server can see as part of a deadlock: here somebody holds it on one node past pgmend.
#[test]
fn a_node_that_waits_for_long_after_the_main_node_is_taken_for_a_deadlock() {
    let cluster = Cluster::equals(2);
    let mut config = config(&cluster, "native_replication");
    config.set("cluster", "replication_lock_timeout = \"1s\"");
    let pgmend = config.start();
    ask(&pgmend, "CREATE TABLE t (id int PRIMARY KEY, x int); INSERT INTO t VALUES (1, 1)").must();
    let holder = std::thread::scope(|scope| {
        let holder =
            scope.spawn(|| cluster.sql(1, "postgres", "BEGIN; SELECT x FROM t FOR UPDATE; SELECT pg_sleep(6)"));
        let held = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(6)' AND state = 'active' AND pid <> pg_backend_pid()";
        wait_until("the row is locked", Duration::from_secs(10), || cluster.sql(1, "postgres", held) == "1");
        let refused = ask(&pgmend, "UPDATE t SET x = 2");
        assert!(refused.err.contains("deadlock across nodes"), "{}", refused.err);
        holder.join().expect("no panic")
    });
    assert!(holder.contains('1'), "{holder}");
    assert_eq!(cluster.sql(0, "postgres", "SELECT x FROM t"), "1", "undone on the main node too");
    ask(&pgmend, "UPDATE t SET x = 3").must();
    cluster.must_be_equal("postgres");
    assert_eq!(statuses(&pgmend, 2), ["up", "up"]);
}

/// A sum that every transfer leaves as it is, asked of all nodes at once while transfers commit: under snapshot isolation no node
/// has seen a transfer that another one has not.
#[test]
fn snapshots_of_all_nodes_show_the_same_commits() {
    let cluster = Cluster::equals(3);
    let pgmend = config(&cluster, "snapshot_isolation").start();
    ask(&pgmend, "CREATE TABLE account (id int PRIMARY KEY, x int)").must();
    ask(&pgmend, "INSERT INTO account SELECT g, 100 FROM generate_series(1, 10) g ORDER BY g").must();
    let script = "\\set a random(1, 10)\n\\set b random(1, 10)\nBEGIN;\nUPDATE account SET x = x - 1 WHERE id = :a;\n\
                  UPDATE account SET x = x + 1 WHERE id = :b;\nCOMMIT;\n";
    let file = write_as_postgres(&cluster.folder().join("transfer.sql"), script, "644");
    let file = file.display().to_string();
    let load = Load::start_with(&pgmend.door(), cluster.folder(), 4, &["-f", &file, "--max-tries=10000"]);
    for _ in 0..150 {
        // What the nodes answer is compared, row by row; the client gets the main node's.
        let seen = ask(
            &pgmend,
            "/*REPLICATION*/ BEGIN; SELECT string_agg(id || ':' || x, ',' ORDER BY id), sum(x) FROM account; COMMIT",
        );
        assert!(seen.must().out.trim().ends_with("|1000"));
    }
    load.finish();
    assert_eq!(statuses(&pgmend, 3), ["up", "up", "up"]);
}
