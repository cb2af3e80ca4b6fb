//! Holding and draining clients where pgmend keeps several nodes equal.

use crate::drain::{SESSION, TRANSACTION, run};
use crate::support::{Cluster, Config, Load, Pgmend};

fn native(cluster: &Cluster, more: &[(&'static str, &str)]) -> Pgmend {
    let mut config = Config::of(cluster);
    config.set("cluster", "backend_clustering_mode = \"native_replication\"");
    config.set("recovery", "recovery_user = \"postgres\"");
    for (section, line) in more {
        config.set(section, line);
    }
    config.start()
}

#[test]
fn a_load_does_not_notice_that_all_its_servers_are_given_up() {
    let cluster = Cluster::equals(2);
    for id in 0..2 {
        cluster.pgbench_tables_on(id, "postgres", 4);
    }
    for mode in [SESSION, TRANSACTION] {
        let pgmend = native(&cluster, &[mode]);
        for protocol in ["simple", "prepared"] {
            let load = Load::start_with(&pgmend.door(), cluster.folder(), 8, &["-M", protocol]);
            for _ in 0..5 {
                pgmend.cli(&["pause", "--drain"]).must();
                pgmend.cli(&["resume"]).must();
                load.writes(|| cluster.pgbench_transactions(0), 32);
            }
            load.goes_on();
            println!("{mode:?} {protocol}: longest wait {:?}", load.longest());
            load.finish();
        }
        cluster.must_be_equal("postgres");
    }
}

#[test]
fn sessions_over_several_nodes_are_held_named_and_cut_alike() {
    let cluster = Cluster::equals(2);
    for id in 0..2 {
        cluster.sql(id, "postgres", "CREATE TABLE t (who text)");
    }
    for mode in [SESSION, TRANSACTION] {
        let limit = ("recovery", "client_idle_limit_in_recovery = 3");
        let transaction = ("recovery", "recovery_idle_in_transaction_limit = \"2s\"");
        let pgmend = native(&cluster, &[mode, limit, transaction, ("pool", "query_wait_timeout = \"1s\"")]);
        run(
            &cluster,
            &pgmend,
            r#"
c = connect()
c.execute("TRUNCATE t")
c.close()
idle, bound, inside, shorter = [connect() for _ in range(4)]
simple, extended, closes, vanishes, long, stays = clients = [connect() for _ in range(6)]
for c in (idle, *clients): c.execute("SELECT 1")
for c in (bound, shorter): c.execute("CREATE TEMP TABLE mine (a int)")
shorter.execute("PGPOOL SET client_idle_limit_in_recovery = -1")
assert one(shorter, "PGPOOL SHOW client_idle_limit_in_recovery") == "-1"
inside.execute("BEGIN"); inside.execute("INSERT INTO t VALUES ('inside')")
d = Drain(30)
shorter_ended = aside(lambda: says(shorter, AT_ONCE, 0, 2))
until("they are named", lambda: "temporary object mine" in status() and "idle in transaction" in status())
assert d.waits()
bound_ended = aside(lambda: says(bound, REACHED(3), 1, 7))
says(inside, ("SFATAL", "C57000"), 1, 6)
bound_ended.done(); shorter_ended.done()
d.done()
insert = "INSERT INTO t VALUES (%s)"
held = [aside(lambda: simple.execute("INSERT INTO t VALUES ('simple')")), aside(lambda: extended.execute(insert, ("extended",)))]
for c, who in ((closes, "closes"), (vanishes, "vanishes")):
    c.pgconn.send_query(f"INSERT INTO t VALUES ('{who}')".encode())
    c.pgconn.flush()
long.pgconn.send_query(b"INSERT INTO t VALUES ('long') /*" + b"x" * 100000 + b"*/")
long.pgconn.flush()
goes_on = aside(lambda: stays.execute("INSERT INTO t VALUES ('stays')"))
new = connect()
fresh = aside(lambda: one(new, "SELECT 8"))
time.sleep(1.5)
assert all(h.waits() for h in (*held, goes_on, fresh))
for c, h in zip((simple, extended), held):
    c.cancel()
    try: h.done(); assert False
    except psycopg.errors.QueryCanceled as e: assert e.sqlstate == "57014"
again = aside(lambda: one(simple, "SELECT 7"))
os.close(closes.fileno())
vanish(vanishes)
os.close(long.fileno())
time.sleep(0.3)
assert again.waits()
resume()
assert again.done() == 7 and one(extended, "SELECT %s::int", (8,)) == 8 and fresh.done() == 8
goes_on.done()
for c in [connect() for _ in range(4)]: c.execute("SELECT 1")
assert [r[0] for r in straight.execute("SELECT who FROM t")] == ["stays"], straight.execute("SELECT * FROM t").fetchall()
"#,
        );
        cluster.must_be_equal("postgres");
    }
}
