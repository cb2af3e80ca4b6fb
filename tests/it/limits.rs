//! Limits on server connections and clients, by pool, database, user and node: kept, told, fair, and changed by reload.

use crate::servers::python;
use crate::support::process::wait_until;
use crate::support::{Cluster, Config, Raw};
use std::time::Duration;

fn straight(cluster: &Cluster) -> String {
    format!("host={} port={} user=postgres", cluster.folder().display(), cluster.nodes[0].port)
}

/// Connections by user and database, and waiting in threads.
const CLIENTS: &str = r#"
def refused(what, f):
    try:
        f()
    except psycopg.Error as e:
        return str(e)
    raise AssertionError("not refused: " + what)
class Waiter:
    def __init__(self, c, sql="SELECT 1"):
        self.done, self.error, self.took = threading.Event(), None, None
        begun = time.time()
        def work():
            try:
                c.execute(sql)
            except psycopg.Error as e:
                self.error = str(e)
            self.took = time.time() - begun
            self.done.set()
        threading.Thread(target=work, daemon=True).start()
def hold(c):
    c.execute("BEGIN")
    return c
"#;

fn story(cluster: &Cluster, config: &Config, script: &str) -> crate::support::Pgmend {
    let pgmend = config.start();
    python(&pgmend, &straight(cluster), &format!("{CLIENTS}{script}"));
    pgmend
}

fn three_users(cluster: &Cluster) {
    cluster.sql(0, "postgres", "CREATE USER a; CREATE USER b; CREATE USER c");
    cluster.sql(0, "postgres", "CREATE DATABASE one");
    cluster.sql(0, "postgres", "CREATE DATABASE two");
}

#[test]
fn a_database_may_be_another_one_of_the_servers_with_a_role_of_its_own() {
    let cluster = Cluster::single();
    three_users(&cluster);
    let mut config = Config::of(&cluster);
    config.set("pool.databases.alias", "dbname = \"one\"");
    config.set("pool.databases.shared", "dbname = \"two\"").set("pool.databases.shared", "user = \"c\"");
    config.set("pool.databases.shared", "pool_size = 1");
    config.set("pool.databases.\"*\"", "mode = \"session\"");
    let script = r#"
what = "SELECT current_database(), current_user"
assert connect("dbname=alias user=a").execute(what).fetchone() == ("one", "a")
a, b = connect("dbname=shared user=a"), connect("dbname=shared user=b")
assert a.execute(what).fetchone() == b.execute(what).fetchone() == ("two", "c")
# One pool for both users, and of one connection.
hold(a)
w = Waiter(b)
until("one is open and the other waits", lambda: count("datname = 'two'") == 1 and not w.done.is_set())
a.execute("COMMIT")
assert w.done.wait(5) and w.error is None, w.error
# Whoever has no section is under the wildcard: a session's own server.
s, t = connect("dbname=one user=a"), connect("dbname=one user=a")
pid = "SELECT pg_backend_pid()"
assert len({c.execute(pid).fetchone()[0] for c in (s, t, s, t)}) == 2
assert s.info.backend_pid == s.execute(pid).fetchone()[0]
"#;
    story(&cluster, &config, script);
}

#[test]
fn limits_on_clients_are_told_by_name_and_changed_by_reload() {
    let cluster = Cluster::single();
    three_users(&cluster);
    let mut config = Config::of(&cluster);
    config.set("pool", "max_db_client_connections = 3").set("pool.users.a", "max_user_client_connections = 1");
    let script = r#"
kept = [connect("dbname=one user=a")]
said = refused("a second of a", lambda: connect("dbname=two user=a"))
assert 'too many connections for role "a" (max_user_client_connections = 1)' in said, said
kept.append(connect("dbname=one user=b")); kept.append(connect("dbname=one user=b"))
said = refused("a fourth of one", lambda: connect("dbname=one user=c"))
assert 'too many connections for database "one" (max_db_client_connections = 3)' in said, said
connect("dbname=two user=c")
kept.pop(0).close()
until("who left is counted out", lambda: (kept.append(connect("dbname=one user=a")), True)[1], 5)
"#;
    let pgmend = story(&cluster, &config, script);
    config.set("pool.users.a", "max_user_client_connections = 2").set("pool", "max_client_conn = 2");
    config.write();
    pgmend.cli(&["reload"]).must();
    let script = r#"
kept = [connect("dbname=one user=a"), connect("dbname=one user=a")]
said = refused("a third of all", lambda: connect("dbname=two user=b"))
assert "no more connections allowed (max_client_conn = 2)" in said, said
# A cancel needs a connection too, and must get through.
w = Waiter(kept[0], "SELECT pg_sleep(60)")
until("the statement runs", lambda: count("query LIKE '%pg_sleep(60)%'") == 1)
kept[0].cancel()
assert w.done.wait(5) and "canceling statement due to user request" in w.error, w.error
"#;
    python(&pgmend, &straight(&cluster), &format!("{CLIENTS}{script}"));
}

fn spanning(key: &str, users: [&str; 2], databases: [&str; 2], workers: u32) {
    let cluster = Cluster::single();
    three_users(&cluster);
    let mut config = Config::of(&cluster);
    config.set("pool", &format!("{key} = 2")).set("pool", "query_wait_timeout = \"2s\"");
    config.set("listen", &format!("workers = {workers}"));
    let script = format!(
        r#"
one = lambda: connect("user={} dbname={}")
two = lambda: connect("user={} dbname={}")
of_story = "usename IN ('a', 'b', 'c')"
# Two idle connections of one pool: those of the other evict them.
x, y = hold(one()), hold(one())
x.execute("COMMIT"); y.execute("COMMIT")
assert count(of_story) == 2, count(of_story)
v, w = two(), two()
took = []
for going, coming in (((x, y), (v, w)), ((v, w), (x, y)), ((x, y), (v, w))):
    [c.execute("COMMIT") for c in going]
    begun = time.time()
    [hold(c) for c in coming]
    took.append(time.time() - begun)
# Whatever else slows the machine: at its best it takes less than a sweep's period.
assert min(took) < 1, ("an idle connection was waited for", took)
until("no more than the limit", lambda: count(of_story) == 2)
said = refused("a third", lambda: x.execute("SELECT 1"))
assert "query_wait_timeout" in said and "{key}" in said, said
v.execute("COMMIT"); w.execute("COMMIT")
# Nothing was lost by it.
hold(one()); hold(one())
# Overload of one pool: a client of the other is not starved by it.
"#,
        users[0], databases[0], users[1], databases[1]
    );
    story(&cluster, &config, &script);
}

#[test]
fn who_leaves_while_he_waits_for_a_server_gives_up_his_place() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "max_client_conn = 3").set("pool", "max_db_client_connections = 3");
    config.set("pool", "default_pool_size = 1");
    let pgmend = config.start();
    let clients = |count: u64| {
        wait_until(&format!("{count} clients are counted"), Duration::from_secs(20), || {
            let status: serde_json::Value =
                serde_json::from_str(&pgmend.cli(&["status", "--json"]).out).unwrap_or_default();
            status["clients"].as_u64() == Some(count)
        });
    };
    let comes = || {
        let mut raw = Raw::connect(pgmend.config.port);
        raw.start(0, &[("user", "postgres"), ("database", "postgres")]);
        raw
    };
    let goodbye: &[u8] = b"X\0\0\0\x04";
    // For a server that somebody else has.
    let mut holder = comes();
    holder.until_ready();
    holder.send(b"Q\0\0\0\x0aBEGIN\0").until_ready();
    let mut waiting = [comes(), comes()];
    for client in &mut waiting {
        client.until_ready();
        client.send(b"Q\0\0\0\x0dSELECT 1\0");
    }
    waiting[1].send(goodbye);
    drop(waiting);
    clients(1);
    drop(holder);
    clients(0);
    // At the login, for a primary.
    cluster.stop(0);
    pgmend.wait_node(0, "down");
    let mut waiting = [comes(), comes(), comes()];
    clients(3);
    assert_eq!(comes().message().error().0, "53300");
    waiting[2].send(goodbye);
    drop(waiting);
    clients(0);
    // The places are free in every count: as many as before are served.
    let mut waiting = [comes(), comes(), comes()];
    cluster.start(0);
    for client in &mut waiting {
        assert_eq!(client.until_ready().last().map(|m| m.tag), Some(b'Z'));
    }
}

#[test]
fn max_db_connections_spans_the_users_of_a_database() {
    spanning("max_db_connections", ["a", "b"], ["one", "one"], 1);
}

#[test]
fn max_user_connections_spans_the_databases_of_a_user() {
    spanning("max_user_connections", ["a", "a"], ["one", "two"], 3);
}

#[test]
fn max_node_connections_spans_everything() {
    spanning("max_node_connections", ["a", "b"], ["one", "two"], 3);
}

#[test]
fn a_busy_pool_does_not_starve_another_under_the_same_limit() {
    let cluster = Cluster::single();
    three_users(&cluster);
    let mut config = Config::of(&cluster);
    config.set("pool", "max_node_connections = 2").set("listen", "workers = 3");
    let script = r#"
over, served = threading.Event(), {}
def load(user, database, n):
    key = user + database
    served[key] = served.get(key, 0)
    c = connect(f"user={user} dbname={database}")
    while not over.is_set():
        c.execute("SELECT pg_sleep(0.002)")
        served[key] += 1
kinds = [("a", "one")] * 20 + [("b", "one")] * 2 + [("c", "two")]
threads = [threading.Thread(target=load, args=(u, d, 1)) for u, d in kinds]
[t.start() for t in threads]
until("everybody gets on", lambda: len(served) == 3 and min(served.values()) >= 20, 60)
assert count("usename IN ('a', 'b', 'c')") <= 3, "one that ends, at most, beside the two"
over.set()
[t.join() for t in threads]
print(served)
"#;
    story(&cluster, &config, script);
}

#[test]
fn the_reserve_comes_in_when_a_client_has_waited() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "default_pool_size = 1").set("pool", "reserve_pool_size = 1");
    config.set("pool", "reserve_pool_timeout = \"2s\"");
    let script = r#"
a, b, c = connect(), connect(), connect()
hold(a)
w = Waiter(b, "BEGIN")
assert w.done.wait(10) and w.error is None, w.error
assert 1.5 < w.took < 5, w.took
v = Waiter(c)
assert not v.done.wait(4), "the reserve has one"
b.execute("COMMIT")
assert v.done.wait(2)
until("the reserve is given back", lambda: count("true") == 1)
"#;
    story(&cluster, &config, script);
}

#[test]
fn the_least_number_of_connections_is_kept_open() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "min_pool_size = 3").set("pool", "server_idle_timeout = \"1s\"");
    let script = r#"
c = connect()
until("three are open", lambda: count("true") == 3)
end_all("postgres")
until("three again", lambda: count("true") == 3)
pids = lambda: {r[0] for r in straight.execute("SELECT pid FROM pg_stat_activity WHERE application_name NOT LIKE 'pgmend node%' AND backend_type = 'client backend'")}
before = pids()
end = time.time() + 4
while time.time() < end:
    assert count("true") == 3
    time.sleep(0.1)
assert pids() == before, (before, pids(), [tuple(r) for r in straight.execute("SELECT pid, application_name, backend_start, state, query FROM pg_stat_activity")])
c.close()
until("without clients there is no such number", lambda: count("true") == 0)
"#;
    story(&cluster, &config, script);
}

#[test]
fn the_queue_is_bounded_and_its_order_kept() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    // One worker takes what comes in its order.
    config.set("listen", "workers = 1");
    config.set("pool", "default_pool_size = 1").set("pool.users.postgres", "max_waiting_clients = 2");
    let script = r#"
a, b, c, d = connect(), connect(), connect(), connect()
straight.execute("CREATE TABLE came (n int)")
hold(a)
def ask(c, n):
    # On its way when this returns.
    c.pgconn.send_query(f"INSERT INTO came VALUES ({n})".encode())
    while c.pgconn.flush(): pass
def answered(c):
    while c.pgconn.is_busy(): c.pgconn.consume_input()
    return c.pgconn.get_result().status == psycopg.pq.ExecStatus.COMMAND_OK
ask(b, 1); ask(c, 2)
said = refused("a third in the queue", lambda: d.execute("SELECT 1"))
assert "max_waiting_clients = 2" in said, said
a.execute("COMMIT")
assert answered(b) and answered(c)
assert [r[0] for r in straight.execute("SELECT n FROM came ORDER BY xmin::text::int")] == [1, 2]
"#;
    story(&cluster, &config, script);
}

#[test]
fn new_connections_to_a_node_have_a_rate() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "max_new_connections = 10").set("listen", "workers = 3");
    let script = r#"
clients = [connect() for _ in range(21)]
begun = time.time()
waiters = [Waiter(c, "BEGIN") for c in clients]
assert all(w.done.wait(10) and w.error is None for w in waiters)
took = time.time() - begun
assert count("true") >= 20 and took > 1.7, took
"#;
    config.set("pool", "default_pool_size = 30");
    story(&cluster, &config, script);
}

#[test]
fn sizes_change_by_reload() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "default_pool_size = 1");
    let pgmend = config.start();
    let held = r#"
a, b = connect(), connect()
hold(a)
w = Waiter(b, "BEGIN")
open(F + "/waits", "w").close()
assert w.done.wait(20) and w.error is None, w.error
a.execute("COMMIT"); b.execute("COMMIT")
open(F + "/done", "w").close()
"#;
    let folder = cluster.folder().to_owned();
    std::thread::scope(|scope| {
        let story = scope.spawn(|| {
            let script = format!("{CLIENTS}F = {:?}\n{held}", folder.join("flags").display().to_string());
            python(&pgmend, &straight(&cluster), &script);
        });
        crate::support::run(crate::support::as_postgres("mkdir").arg(folder.join("flags"))).must();
        let limit = std::time::Duration::from_secs(20);
        crate::support::process::wait_until("a client waits", limit, || folder.join("flags/waits").exists());
        let mut larger = config.clone();
        larger.set("pool", "default_pool_size = 2").write();
        pgmend.cli(&["reload"]).must();
        story.join().expect("the client that waited was served");
    });
    // And smaller again: what is too much is closed though it is idle.
    config.write();
    pgmend.cli(&["reload"]).must();
    python(&pgmend, &straight(&cluster), "until('one is left', lambda: count('true') <= 1)");
}

#[test]
fn a_refused_login_is_not_asked_again_at_once_and_a_reload_forgets_it() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "server_login_retry = \"1h\"");
    let script = r#"
straight.execute("ALTER SYSTEM SET log_connections = on")
straight.execute("SELECT pg_reload_conf()")
for _ in range(5):
    assert 'database "later" does not exist' in refused("a database that is not there", lambda: connect("dbname=later"))
log = open(LOG).read()
assert log.count('database "later" does not exist') == 1, log
"#;
    let log = format!("LOG = {:?}\n", cluster.folder().join("node0.log").display().to_string());
    let pgmend = story(&cluster, &config, &format!("{log}{script}"));
    cluster.sql(0, "postgres", "CREATE DATABASE later");
    pgmend.cli(&["reload"]).must();
    python(&pgmend, &straight(&cluster), "connect('dbname=later').execute('SELECT 1')");
}
