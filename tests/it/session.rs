//! What a client may expect of its session, whoever's server connection it is using.

use crate::support::cluster::psql;
use crate::support::process::wait_until;
use crate::support::{Cluster, Config, as_postgres, bin, run};
use std::time::Duration;

#[test]
fn each_client_keeps_its_startup_parameters() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "default_pool_size = 1");
    let pgmend = config.start();
    pgmend.psycopg(
        "",
        r#"
a = connect("client_encoding=LATIN1 application_name=alpha options='-c TimeZone=Asia/Tokyo -c search_path=pg_catalog'")
b = connect("client_encoding=UTF8 application_name=beta options='-c DateStyle=German'")
show = lambda c, n: c.execute("SHOW " + n).fetchone()[0]
for _ in range(5):
    assert show(a, "client_encoding") == "LATIN1", show(a, "client_encoding")
    assert show(b, "client_encoding") == "UTF8"
    assert show(a, "application_name") == "alpha"
    assert show(b, "application_name") == "beta"
    assert show(a, "TimeZone") == "Asia/Tokyo"
    assert show(b, "TimeZone") != "Asia/Tokyo"
    assert show(a, "search_path") == "pg_catalog"
    assert show(b, "search_path") != "pg_catalog"
    assert show(b, "DateStyle").startswith("German")
    assert a.execute("SELECT 'é'").fetchone()[0] == 'é'
a.execute("SET TimeZone = 'UTC'")
a.execute("SET application_name = 'gamma'")
for _ in range(3):
    assert show(b, "application_name") == "beta"
    assert show(a, "application_name") == "gamma"
    assert show(a, "TimeZone") == "UTC"
# What is told at the login: each its own name, and none to who gives none, though all else is alike.
for name in ["delta", "epsilon", "", "zeta"]:
    with connect("client_encoding=UTF8" + (name and " application_name=" + name)) as c:
        assert c.info.parameter_status("application_name") == name, c.info.parameter_status("application_name")
        assert show(c, "application_name") == name
"#,
    );
}

#[test]
fn a_cancel_reaches_only_its_own_query() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "default_pool_size = 3");
    let pgmend = config.start();
    pgmend.psycopg(
        "",
        r#"
outcome = {}
clients = {n: connect() for n in "abc"}
def sleep(n):
    try:
        clients[n].execute("SELECT pg_sleep(3)")
        outcome[n] = "done"
    except psycopg.errors.QueryCanceled:
        outcome[n] = "cancelled"
threads = [threading.Thread(target=sleep, args=(n,)) for n in clients]
[t.start() for t in threads]
looker = connect("dbname=template1")
running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(3)' AND state = 'active'"
while looker.execute(running).fetchone()[0] < 3: assert not outcome, outcome
clients["b"].cancel()
[t.join() for t in threads]
assert outcome == {"a": "done", "b": "cancelled", "c": "done"}, outcome
# A cancel that comes when nothing runs hits nobody.
clients["b"].cancel()
for c in clients.values():
    assert c.execute("SELECT 1").fetchone()[0] == 1
"#,
    );
}

#[test]
fn cancels_in_a_race_hit_nobody_else() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "default_pool_size = 1").set("listen", "workers = 2");
    let pgmend = config.start();
    // One server goes from client to client, and one of them is cancelled all the time: in its statements, before, behind.
    pgmend.psycopg(
        "",
        r#"
victim, others = connect(), [connect() for _ in range(3)]
over, cancelled, errors = threading.Event(), [], []
def suffer():
    while not over.is_set():
        try: victim.execute("SELECT pg_sleep(0.04 * random())")
        except psycopg.errors.QueryCanceled: cancelled.append(1)
def work(c):
    n = 0
    while not over.is_set():
        n += 1
        try: assert c.execute("SELECT pg_sleep(0.001), %s::int", (n,)).fetchone()[1] == n
        except psycopg.Error as e: return errors.append(str(e))
threads = [threading.Thread(target=suffer)] + [threading.Thread(target=work, args=(c,)) for c in others]
[t.start() for t in threads]
for _ in range(300): victim.cancel()
over.set()
[t.join() for t in threads]
assert not errors, errors
assert cancelled, "no cancel ever hit"
"#,
    );
}

#[test]
fn a_server_that_dies_in_a_statement_is_told_and_nothing_is_tried_again() {
    let cluster = Cluster::single();
    cluster.sql(0, "postgres", "CREATE TABLE t (x int); CREATE SEQUENCE tries");
    for mode in ["transaction", "session"] {
        let mut config = Config::of(&cluster);
        config.set("pool", &format!("mode = \"{mode}\""));
        let pgmend = config.start();
        pgmend.psycopg(
            "",
            r#"
looker = connect()
running = "SELECT pid FROM pg_stat_activity WHERE query ~ '^INSERT' AND state = 'active' AND pid <> pg_backend_pid()"
for begin in (False, True):
    c, told = connect(), []
    before = looker.execute("SELECT last_value FROM tries").fetchone()[0]
    def work():
        try:
            if begin: c.execute("BEGIN")
            c.execute("INSERT INTO t SELECT nextval('tries') FROM pg_sleep(60)")
        except psycopg.Error as e: told.append((e.sqlstate, str(e)))
    # The number is drawn first, so that a second try would draw another.
    c.execute("SELECT nextval('tries')")
    t = threading.Thread(target=work); t.start()
    while not (found := looker.execute(running).fetchall()): assert t.is_alive(), told
    looker.execute("SELECT pg_terminate_backend(%s)", found[0])
    t.join(20)
    assert len(told) == 1 and "terminating connection due to administrator command" in told[0][1], told
    assert c.closed
    assert not looker.execute(running).fetchall()
    assert looker.execute("SELECT count(*) FROM t").fetchone()[0] == 0
"#,
        );
        assert!(pgmend.stop("-TERM"));
    }
}

#[test]
fn a_startup_parameter_that_no_server_takes_is_told_at_the_login() {
    let cluster = Cluster::single();
    let pgmend = Config::of(&cluster).start();
    pgmend.psycopg(
        "",
        r#"
for wrong, words in (("-c work_mem=much", "work_mem"), ("-c no_such_thing=1", "no_such_thing"), ("-c =1", "option")):
    try:
        connect(f"options='{wrong}'")
        raise SystemExit("let in: " + wrong)
    except psycopg.OperationalError as e:
        assert words in str(e), e
assert connect().execute("SELECT 1").fetchone()[0] == 1
"#,
    );
}

#[test]
fn notifications_arrive_in_session_pooling() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "mode = \"session\"");
    let pgmend = config.start();
    pgmend.psycopg(
        "",
        r#"
listener, other, teller = connect(), connect(), connect()
listener.execute("LISTEN news")
teller.execute("NOTIFY news, 'hello'")
got = next(listener.notifies())
assert got.payload == "hello", got
# The next user of that server connection does not listen any more.
listener.close()
fresh = [connect() for _ in range(3)]
for c in fresh:
    assert c.execute("SELECT count(*) FROM pg_listening_channels()").fetchone()[0] == 0
"#,
    );
}

#[test]
fn nothing_of_a_session_reaches_the_next() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "mode = \"session\"").set("pool", "default_pool_size = 1");
    let pgmend = config.start();
    pgmend.psycopg(
        "",
        r#"
first = connect()
first.execute("SET work_mem = '7MB'; CREATE TEMP TABLE leak (x int); PREPARE leaky AS SELECT 1")
first.execute("SELECT pg_advisory_lock(42)")
pid = first.info.backend_pid
first.close()
second = connect()
assert second.execute("SHOW work_mem").fetchone()[0] != "7MB"
assert second.execute("SELECT to_regclass('leak')").fetchone()[0] is None
assert second.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()[0] == 0
assert second.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone()[0] == 0
"#,
    );
}

#[test]
fn a_client_that_leaves_in_a_transaction_leaves_nothing_behind() {
    let cluster = Cluster::single();
    cluster.sql(0, "postgres", "CREATE TABLE t (x int)");
    let mut config = Config::of(&cluster);
    config.set("pool", "default_pool_size = 1");
    let pgmend = config.start();
    pgmend.psycopg(
        "",
        r#"
import os, socket
gone = psycopg.connect(C)
gone.execute("INSERT INTO t VALUES (1)")
os.close(gone.fileno())
later = connect()
assert later.execute("SELECT count(*) FROM t").fetchone()[0] == 0
later.execute("INSERT INTO t VALUES (2)")
assert later.execute("SELECT count(*) FROM t").fetchone()[0] == 1
os._exit(0)
"#,
    );
}

#[test]
fn fifty_megabytes_go_both_ways_by_copy() {
    let cluster = Cluster::single();
    let pgmend = Config::of(&cluster).start();
    pgmend.psycopg(
        "",
        r#"
c = connect()
c.execute("CREATE TABLE big (x text)")
line = b"x" * 999 + b"\n"
with c.cursor().copy("COPY big FROM STDIN") as copy:
    for _ in range(50):
        copy.write(line * 1000)
assert c.execute("SELECT count(*) FROM big").fetchone()[0] == 50000
total = 0
with c.cursor().copy("COPY big TO STDOUT") as copy:
    for part in copy:
        total += len(part)
assert total == 50_000_000, total
# A copy that the client breaks off leaves a usable session.
try:
    with c.cursor().copy("COPY big FROM STDIN") as copy:
        copy.write(line)
        raise KeyError
except (KeyError, psycopg.errors.QueryCanceled):
    pass  # which of them depends on psycopg's version
assert c.execute("SELECT count(*) FROM big").fetchone()[0] == 50000
"#,
    );
}

#[test]
fn a_pipeline_larger_than_every_buffer_does_not_block() {
    let cluster = Cluster::single();
    let pgmend = Config::of(&cluster).start();
    pgmend.psycopg(
        "",
        r#"
c = connect()
with c.pipeline():
    cursors = []
    for i in range(1500):
        cursors.append(c.cursor().execute("SELECT %s::int, repeat('y', 20000), length(%s)", (i, "z" * 20000)))
    for i, cur in enumerate(cursors):
        row = cur.fetchone()
        assert row[0] == i and len(row[1]) == 20000 and row[2] == 20000
assert c.execute("SELECT 1").fetchone()[0] == 1
"#,
    );
}

#[test]
fn errors_inside_a_pipeline_stay_with_it() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "default_pool_size = 1");
    let pgmend = config.start();
    pgmend.psycopg(
        "",
        r#"
a, b = connect(), connect()
for _ in range(20):
    try:
        with a.pipeline():
            a.execute("SELECT 1/0")
            a.execute("SELECT 2")
        raise SystemExit("no error")
    except psycopg.errors.DivisionByZero:
        pass
    assert b.execute("SELECT 7").fetchone()[0] == 7
    assert a.execute("SELECT 8").fetchone()[0] == 8
"#,
    );
}

#[test]
fn an_unknown_user_fails_as_a_wrong_password_does() {
    let cluster = Cluster::scram();
    let mut config = Config::of(&cluster);
    let pgmend = config.scram().start();
    let door = pgmend.door();
    let attempt = |user: &str, password: &str| {
        let mut command = as_postgres(bin("psql"));
        command.env("PGPASSWORD", password).args([
            "-X",
            "-h",
            &door.host,
            "-p",
            &door.port.to_string(),
            "-c",
            "SELECT 1",
        ]);
        run(command.args(["-U", user, "-d", "app"]))
    };
    attempt("app", "secret").must();
    let wrong = attempt("app", "wrong").must_fail_saying("authentication failed").err.replace("\"app\"", "USER");
    let unknown =
        attempt("nobody", "wrong").must_fail_saying("authentication failed").err.replace("\"nobody\"", "USER");
    assert_eq!(wrong, unknown);
}

#[test]
fn a_query_waits_no_longer_than_its_bound_for_a_server() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "default_pool_size = 1").set("pool", "query_wait_timeout = \"2s\"");
    let pgmend = config.start();
    pgmend.psycopg(
        "",
        r#"
a, b = connect(), connect()
a.execute("BEGIN")
begun = time.time()
try:
    b.execute("SELECT 1")
    raise SystemExit("served from a pool that is full")
except psycopg.Error as e:
    assert 1.0 < time.time() - begun < 10, time.time() - begun
a.execute("COMMIT")
assert connect().execute("SELECT 1").fetchone()[0] == 1
"#,
    );
}

#[test]
fn server_errors_arrive_as_the_server_said_them() {
    let cluster = Cluster::single();
    let pgmend = Config::of(&cluster).start();
    pgmend.sql("SELECT * FROM no_such_table").must_fail_saying("relation \"no_such_table\" does not exist");
    psql("127.0.0.1", pgmend.config.port, "postgres", "no_such_database", "SELECT 1")
        .must_fail_saying("database \"no_such_database\" does not exist");
    pgmend.sql("SELECT 1").must();
}

#[test]
fn a_server_connection_that_dies_is_replaced() {
    let cluster = Cluster::single();
    let pgmend = Config::of(&cluster).start();
    pgmend.sql("SELECT 1").must();
    let end_all = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    cluster.sql(0, "postgres", end_all);
    wait_until("a new server connection serves", Duration::from_secs(10), || pgmend.sql("SELECT 1").ok);
}
