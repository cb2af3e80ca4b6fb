//! Time limits on statements, transactions, pauses and logins: kept to the second, told as PostgreSQL tells its own, and
//! nothing left behind on the server or in the pool.

use crate::servers::python;
use crate::support::{Cluster, Config, Pgmend};

fn straight(cluster: &Cluster) -> String {
    format!("host={} port={} user=postgres", cluster.folder().display(), cluster.nodes[0].port)
}

/// `ends(client, code, words, least, most, work)`: the work fails like this, after so many seconds, and leaves nothing.
const ENDS: &str = r#"
def ends(c, code, words, least, most, work):
    begun = time.time()
    try:
        work()
    except psycopg.Error as e:
        took = time.time() - begun
        assert words in str(e), str(e)
        assert e.sqlstate == code or e.sqlstate is None, e.sqlstate
        assert least <= took <= most, took
    else:
        raise AssertionError("not ended: " + words)
    assert c.closed, "the session goes on"
    free()
def free():
    until("nothing is left of it", lambda: count("state <> 'idle'") == 0)
    # The place is free: the pool has one.
    other = connect()
    assert other.execute("SELECT 1").fetchone()[0] == 1
    other.close()
def read_on(c):
    # What the server of a client that only listens says to it.
    s = socket.socket(fileno=os.dup(c.fileno()))
    s.settimeout(20)
    data = b""
    while True:
        try:
            more = s.recv(65536)
        except ConnectionResetError:
            more = b""
        if not more:
            return data.decode(errors="replace")
        data += more
"#;

fn with(mode: &str, more: &[(&'static str, &str)], script: &str) -> (Cluster, Config, Pgmend) {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", &format!("mode = \"{mode}\"")).set("pool", "default_pool_size = 1");
    config.set("pool", "query_wait_timeout = \"20s\"");
    for (section, line) in more {
        config.set(section, line);
    }
    let pgmend = config.start();
    python(&pgmend, &straight(&cluster), &format!("{ENDS}{script}"));
    (cluster, config, pgmend)
}

fn statements(mode: &str) {
    let script = r#"
c = connect()
for _ in range(6):
    c.execute("SELECT pg_sleep(0.7)")
ends(c, "57014", "terminating connection due to statement timeout (query_timeout = 2s)", 2, 5, lambda: c.execute("SELECT pg_sleep(60)"))
# In the middle of rows nothing can be told, but it ends all the same.
c = connect()
begun = time.time()
rows = c.cursor(name=None)
try:
    with c.cursor() as cur:
        for row in cur.stream("SELECT i, pg_sleep(0.0005) FROM generate_series(1, 1000000) i"): pass
    raise AssertionError("not ended")
except psycopg.Error as e:
    assert time.time() - begun < 6
free()
"#;
    with(mode, &[("pool", "query_timeout = \"2s\"")], script);
}

#[test]
fn a_statement_that_takes_too_long_is_cancelled_in_transaction_pooling() {
    statements("transaction");
}

#[test]
fn a_statement_that_takes_too_long_is_cancelled_in_session_pooling() {
    statements("session");
}

#[test]
fn a_transaction_has_a_limit_whatever_happens_in_it() {
    let script = r#"
c = connect()
c.execute("BEGIN")
def work():
    while True:
        c.execute("SELECT pg_sleep(0.1)")
ends(c, "25P04", "terminating connection due to transaction timeout (transaction_timeout = 3s)", 2.8, 6, work)
c = connect()
begun = time.time()
while time.time() - begun < 6:
    c.execute("SELECT pg_sleep(0.1)")
"#;
    with("transaction", &[("pool", "transaction_timeout = \"3s\"")], script);
}

fn pauses(mode: &str) {
    let script = r#"
c = connect()
c.execute("BEGIN")
for _ in range(5):
    c.execute("SELECT pg_sleep(2.5)") if _ == 2 else c.execute("SELECT 1")
    time.sleep(0.6)
begun = time.time()
said = read_on(c)
took = time.time() - begun
assert "25P03" in said and "terminating connection due to idle-in-transaction timeout (idle_transaction_timeout = 2s)" in said, said
assert 1 < took < 5, took
free()
# Nor does a failed transaction hold its server for ever.
c = connect()
try: c.execute("BEGIN; SELECT 1/0")
except psycopg.Error: pass
assert "25P03" in read_on(c)
free()
"#;
    with(mode, &[("pool", "idle_transaction_timeout = \"2s\"")], script);
}

#[test]
fn a_pause_inside_a_transaction_has_a_limit_in_transaction_pooling() {
    pauses("transaction");
}

#[test]
fn a_pause_inside_a_transaction_has_a_limit_in_session_pooling() {
    pauses("session");
}

#[test]
fn an_idle_client_is_told_to_go_and_one_that_waits_or_works_is_not() {
    let script = r#"
c = connect()
begun = time.time()
said = read_on(c)
assert "57P05" in said and "idle-session timeout (client_idle_timeout = 2s)" in said, said
assert 2 <= time.time() - begun < 5
# A statement, or the wait for a server, is no pause.
a, b = connect(), connect()
a.execute("BEGIN")
done = []
t = threading.Thread(target=lambda: done.append(b.execute("SELECT 7").fetchone()[0]))
t.start()
a.execute("SELECT pg_sleep(4)")
assert t.is_alive()
a.execute("COMMIT")
t.join(10)
assert done == [7], done
free()
"#;
    with("transaction", &[("pool", "client_idle_timeout = \"2s\"")], script);
}

#[test]
fn an_idle_session_gives_its_server_back() {
    let script = r#"
c = connect()
pid = c.execute("SELECT pg_backend_pid()").fetchone()[0]
assert "57P05" in read_on(c)
# The server was clean: the next session gets the same.
assert connect().execute("SELECT pg_backend_pid()").fetchone()[0] == pid
"#;
    with("session", &[("pool", "client_idle_timeout = \"1s\"")], script);
}

#[test]
fn users_and_databases_have_their_own_limits_and_a_reload_changes_them_for_who_is_there() {
    let cluster = Cluster::single();
    cluster.sql(0, "postgres", "CREATE USER batch; CREATE USER web");
    let mut config = Config::of(&cluster);
    config.set("pool", "query_timeout = \"1s\"").set("pool.users.batch", "query_timeout = \"0s\"");
    config.set("pool.databases.template1", "query_timeout = \"4s\"");
    let pgmend = config.start();
    let folder = cluster.folder().join("flags");
    crate::support::run(crate::support::as_postgres("mkdir").arg(&folder)).must();
    let script = r#"
batch, web = connect("user=batch"), connect("user=web")
batch.execute("SELECT pg_sleep(4)")
ends(web, "57014", "query_timeout = 1s", 1, 4, lambda: web.execute("SELECT pg_sleep(60)"))
other = connect("user=web dbname=template1")
other.execute("SELECT pg_sleep(3)")
ends(other, "57014", "query_timeout = 4s", 4, 7, lambda: other.execute("SELECT pg_sleep(60)"))
# A limit that is new in the middle of a statement holds for it too.
open(F + "/sleeping", "w").close()
ends(batch, "57014", "query_timeout = 2s", 1, 30, lambda: batch.execute("SELECT pg_sleep(60)"))
"#;
    let script = format!("{ENDS}F = {:?}\n{script}", folder.display().to_string());
    std::thread::scope(|scope| {
        let story = scope.spawn(|| python(&pgmend, &straight(&cluster), &script));
        let limit = std::time::Duration::from_secs(60);
        crate::support::process::wait_until("the long statement begins", limit, || {
            assert!(!story.is_finished(), "the story ended early");
            folder.join("sleeping").exists()
        });
        config.set("pool.users.batch", "query_timeout = \"2s\"").write();
        pgmend.cli(&["reload"]).must();
        story.join().expect("the story went well");
    });
}

#[test]
fn a_server_that_does_not_answer_a_login_is_given_up() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "server_connect_timeout = \"1s\"").set("pool", "query_wait_timeout = \"4s\"");
    config.set("health", "health_check_period = \"60s\"");
    let pgmend = config.start();
    let script = format!(
        r#"
c = connect()
a = connect()
a.execute("BEGIN")
c.execute("BEGIN")
d = connect()
os.kill({pid}, 19)
try:
    begun = time.time()
    try:
        d.execute("SELECT 1")
        raise AssertionError("served")
    except psycopg.Error as e:
        assert "query_wait_timeout" in str(e) and 3 <= time.time() - begun < 8, (str(e), time.time() - begun)
finally:
    os.kill({pid}, 18)
assert connect().execute("SELECT 1").fetchone()[0] == 1
"#,
        pid = cluster.pid(0).expect("the server runs")
    );
    python(&pgmend, &straight(&cluster), &script);
}
