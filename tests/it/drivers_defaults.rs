//! Drivers in transaction pooling, with their defaults: SCRAM, their caches of prepared statements over
//! more clients than there are servers, transactions, errors, batches, COPY. `tests/setup` installs them.

use crate::support::process::run_for;
use crate::support::{Cluster, Config, Pgmend, as_postgres, bin};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

/// A cluster with SCRAM and a daemon with two servers for everybody.
fn daemon() -> (Cluster, Pgmend) {
    daemon_with(&["default_pool_size = 2"])
}

/// A cluster with SCRAM and a daemon, in transaction pooling.
fn daemon_with(pool: &[&str]) -> (Cluster, Pgmend) {
    let cluster = Cluster::scram();
    let mut config = Config::of(&cluster);
    config.scram().tls();
    for line in pool {
        config.set("pool", line);
    }
    let pgmend = config.start();
    (cluster, pgmend)
}

/// What `tests/setup` puts into `target/`.
fn installed(what: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp has a parent");
    let path = target.join(what);
    assert!(path.exists(), "{} is missing: run tests/setup test", path.display());
    path
}

const ASYNCPG: &str = r#"
import asyncio, sys, asyncpg
async def worker(pool, n):
    for i in range(30):
        async with pool.acquire() as c:
            assert await c.fetchval(f"SELECT $1::int + {i % 7}", n) == n + i % 7
            async with c.transaction():
                await c.execute("INSERT INTO t VALUES ($1, $2)", n * 1000 + i, f"w{n}")
                assert await c.fetchval("SELECT name FROM t WHERE id = $1", n * 1000 + i) == f"w{n}"
            try:
                await c.fetchval("SELECT 1 / $1::int", 0)
                raise SystemExit("no error")
            except asyncpg.DivisionByZeroError:
                pass
            try:
                async with c.transaction():
                    await c.execute("INSERT INTO t VALUES ($1, 'again')", n * 1000 + i)
                raise SystemExit("no error")
            except asyncpg.UniqueViolationError:
                pass
async def main():
    port = int(sys.argv[1])
    pool = await asyncpg.create_pool(host="127.0.0.1", port=port, user="app", password="secret", database="app",
                                     min_size=8, max_size=8, ssl="require")
    async with pool.acquire() as c:
        await c.execute("CREATE TABLE t (id int PRIMARY KEY, name text)")
    await asyncio.gather(*(worker(pool, n) for n in range(8)))
    async with pool.acquire() as c:
        assert await c.fetchval("SELECT count(*) FROM t") == 240
        await c.executemany("INSERT INTO t VALUES ($1, $2)", [(10**6 + i, "many") for i in range(500)])
        await c.copy_records_to_table("t", records=[(2 * 10**6 + i, "copied") for i in range(500)])
        async with c.transaction():
            assert len([r async for r in c.cursor("SELECT id FROM t ORDER BY id", prefetch=50)]) == 1240
    await pool.close()
asyncio.run(main())
"#;

#[test]
fn asyncpg_works_with_its_defaults() {
    let (_cluster, pgmend) = daemon();
    let python = installed("libpq18/bin/python");
    run_for(Command::new(python).args(["-c", ASYNCPG, &pgmend.config.port.to_string()]), PATIENCE).must();
}

const NODE: &str = r#"
const { Pool } = require('pg');
const assert = require('assert');
const config = { host: '127.0.0.1', port: +process.argv[1], user: 'app', password: 'secret', database: 'app',
                 ssl: { rejectUnauthorized: false } };
async function worker(pool, n) {
  for (let i = 0; i < 30; i++) {
    const c = await pool.connect();
    const q = { name: 'plus' + i % 7, text: `SELECT $1::int + ${i % 7} AS x`, values: [n] };
    assert.strictEqual((await c.query(q)).rows[0].x, n + i % 7);
    await c.query('BEGIN');
    await c.query('INSERT INTO t VALUES ($1, $2)', [n * 1000 + i, 'w' + n]);
    assert.strictEqual((await c.query('SELECT name FROM t WHERE id = $1', [n * 1000 + i])).rows[0].name, 'w' + n);
    await c.query('COMMIT');
    await assert.rejects(c.query('SELECT 1 / $1::int', [0]), { code: '22012' });
    await assert.rejects(c.query({ name: 'dup', text: 'INSERT INTO t VALUES ($1)', values: [n * 1000 + i] }),
                         { code: '23505' });
    c.release();
  }
}
(async () => {
  const pool = new Pool({ ...config, max: 8 });
  await pool.query('CREATE TABLE t (id int PRIMARY KEY, name text)');
  await Promise.all([...Array(8).keys()].map((n) => worker(pool, n)));
  assert.strictEqual((await pool.query('SELECT count(*)::int AS n FROM t')).rows[0].n, 240);
  await pool.end();
})().catch((e) => { console.error(e); process.exit(1); });
"#;

#[test]
fn node_postgres_works_with_its_defaults() {
    let (_cluster, pgmend) = daemon();
    let modules = installed("node/node_modules");
    let mut node = Command::new("node");
    node.env("NODE_PATH", modules).args(["-e", NODE, &pgmend.config.port.to_string()]);
    run_for(&mut node, PATIENCE).must();
}

const JAVA: &str = r#"
import java.io.StringReader;
import java.sql.*;
import java.util.*;
import org.postgresql.PGConnection;

public class Story {
    static String url;

    static void check(boolean ok, String what) { if (!ok) throw new AssertionError(what); }

    static void work(int n) throws Exception {
        try (Connection c = DriverManager.getConnection(url)) {
            for (int i = 0; i < 30; i++) {
                c.setAutoCommit(true);
                // The fifth use of a text makes it a named statement on the server.
                try (PreparedStatement s = c.prepareStatement("SELECT ?::int + " + i % 4)) {
                    s.setInt(1, n);
                    ResultSet r = s.executeQuery();
                    check(r.next() && r.getInt(1) == n + i % 4, "sum");
                }
                c.setAutoCommit(false);
                try (PreparedStatement s = c.prepareStatement("INSERT INTO t VALUES (?, ?)")) {
                    for (int k = 0; k < 5; k++) {
                        s.setInt(1, n * 1000 + i * 5 + k);
                        s.setString(2, "w" + n);
                        s.addBatch();
                    }
                    check(s.executeBatch().length == 5, "batch");
                }
                Savepoint savepoint = c.setSavepoint();
                try (Statement s = c.createStatement()) {
                    s.execute("SELECT 1/0");
                    throw new AssertionError("no error");
                } catch (SQLException e) {
                    check(e.getSQLState().equals("22012"), e.toString());
                }
                c.rollback(savepoint);
                try (PreparedStatement s = c.prepareStatement("SELECT id FROM t WHERE name = ? ORDER BY id")) {
                    s.setFetchSize(3);
                    s.setString(1, "w" + n);
                    ResultSet r = s.executeQuery();
                    int rows = 0;
                    while (r.next()) rows++;
                    check(rows == (i + 1) * 5, "rows " + rows);
                }
                c.commit();
            }
            c.setAutoCommit(true);
            StringBuilder lines = new StringBuilder();
            for (int k = 0; k < 200; k++) lines.append(1000000 + n * 1000 + k).append("\tcopied\n");
            long copied = c.unwrap(PGConnection.class).getCopyAPI().copyIn("COPY t FROM STDIN",
                new StringReader(lines.toString()));
            check(copied == 200, "copied");
        }
    }

    public static void main(String[] args) throws Exception {
        url = "jdbc:postgresql://127.0.0.1:" + args[0] + "/app?user=app&password=secret&sslmode=require";
        try (Connection c = DriverManager.getConnection(url); Statement s = c.createStatement()) {
            s.execute("CREATE TABLE t (id int PRIMARY KEY, name text)");
        }
        List<Thread> threads = new ArrayList<>();
        List<Throwable> faults = Collections.synchronizedList(new ArrayList<>());
        for (int n = 0; n < 6; n++) {
            int number = n;
            threads.add(new Thread(() -> { try { work(number); } catch (Throwable t) { faults.add(t); } }));
        }
        for (Thread t : threads) t.start();
        for (Thread t : threads) t.join();
        for (Throwable t : faults) t.printStackTrace();
        System.exit(faults.isEmpty() ? 0 : 1);
    }
}
"#;

#[test]
fn jdbc_works_with_its_defaults() {
    let (cluster, pgmend) = daemon();
    let source = crate::support::scratch::write_as_postgres(&cluster.folder().join("Story.java"), JAVA, "644");
    let mut java = Command::new("java");
    java.args(["-cp", "/usr/share/java/postgresql.jar"]).arg(source).arg(pgmend.config.port.to_string());
    run_for(&mut java, PATIENCE).must();
}

#[test]
fn a_dump_and_its_restore_work_in_transaction_pooling() {
    let (cluster, pgmend) = daemon();
    cluster.pgbench_tables("app", 1);
    cluster.sql(0, "app", "GRANT ALL ON ALL TABLES IN SCHEMA public TO app");
    cluster.sql(0, "postgres", "CREATE DATABASE copy OWNER app");
    let door = format!("host=127.0.0.1 port={} user=app password=secret", pgmend.config.port);
    let (dump, psql) = (bin("pg_dump"), bin("psql"));
    let line = format!(
        "set -o pipefail; {} -O -x -d '{door} dbname=app' | {} -X -q -v ON_ERROR_STOP=1 -d '{door} dbname=copy' >/dev/null",
        dump.display(),
        psql.display()
    );
    run_for(Command::new("bash").args(["-c", &line]), PATIENCE).must();
    let count = "SELECT count(*), sum(aid) FROM public.pgbench_accounts";
    assert_eq!(cluster.sql(0, "copy", count), cluster.sql(0, "app", count));
    // pg_dump leaves search_path empty: that is nobody else's.
    let ask = format!("{} -XAtqc 'SHOW search_path' '{door} dbname=copy'", psql.display());
    for _ in 0..3 {
        assert_eq!(run_for(Command::new("bash").args(["-c", &ask]), PATIENCE).must().out.trim(), "\"$user\", public");
    }
}

#[test]
fn a_parallel_dump_and_its_parallel_restore_work_in_transaction_pooling() {
    let (cluster, pgmend) = daemon_with(&[]);
    cluster.pgbench_tables("app", 1);
    cluster.sql(0, "app", "CREATE INDEX ON pgbench_accounts (bid); GRANT ALL ON ALL TABLES IN SCHEMA public TO app");
    cluster.sql(0, "postgres", "CREATE DATABASE copy OWNER app");
    let door = format!("host=127.0.0.1 port={} user=app password=secret", pgmend.config.port);
    let folder = cluster.folder().join("dump");
    // The workers take over the snapshot that the first connection exports.
    let mut dump = as_postgres(bin("pg_dump"));
    dump.args(["-j", "2", "-F", "d", "-d", &format!("{door} dbname=app"), "-f"]).arg(&folder);
    run_for(&mut dump, PATIENCE).must();
    let mut restore = as_postgres(bin("pg_restore"));
    restore.args(["-j", "2", "-e", "-O", "-x", "-d", &format!("{door} dbname=copy")]).arg(&folder);
    run_for(&mut restore, PATIENCE).must();
    let count = "SELECT count(*), sum(aid) FROM public.pgbench_accounts";
    assert_eq!(cluster.sql(0, "copy", count), cluster.sql(0, "app", count));
    let indexes = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'public'";
    assert_eq!(cluster.sql(0, "copy", indexes), cluster.sql(0, "app", indexes));
}

/// `prepare_threshold` is 5 and `prepared_max` 100: with 7 texts used often and 150 used in turn, psycopg prepares and
/// deallocates by itself.
const PSYCOPG: &str = r#"
connect().execute("CREATE TABLE t (id int PRIMARY KEY, name text)")
faults = []
def work(n):
    c = connect()
    for i in range(30):
        assert c.execute(f"SELECT %s::int + {i % 7}", (n,)).fetchone()[0] == n + i % 7
        with c.transaction():
            c.execute("INSERT INTO t VALUES (%s, %s)", (n * 1000 + i, f"w{n}"))
            try:
                with c.transaction(): c.execute("INSERT INTO t VALUES (%s, 'again')", (n * 1000 + i,))
                raise SystemExit("no error")
            except psycopg.errors.UniqueViolation: pass
            assert c.execute("SELECT name FROM t WHERE id = %s", (n * 1000 + i,)).fetchone()[0] == f"w{n}"
        try:
            c.execute("SELECT 1 / %s::int", (0,))
            raise SystemExit("no error")
        except psycopg.errors.DivisionByZero: pass
    for i in range(900):
        assert c.execute(f"SELECT %s::int + {i % 150}", (n,)).fetchone()[0] == n + i % 150
    with c.cursor() as cur:
        cur.executemany("INSERT INTO t VALUES (%s, 'many')", [(10**6 + n * 1000 + i,) for i in range(300)])
        with cur.copy("COPY t FROM STDIN") as copy:
            for i in range(300): copy.write_row((2 * 10**6 + n * 1000 + i, "copied"))
    with c.transaction(), c.cursor(name="far") as cur:
        cur.execute("SELECT id FROM t WHERE id / 1000 IN (%s, %s, %s) ORDER BY id", (n, 1000 + n, 2000 + n))
        assert len(cur.fetchall()) == 630
    with c.pipeline():
        got = [c.execute("SELECT %s::int", (i,)) for i in range(50)]
        assert [g.fetchone()[0] for g in got] == list(range(50))
    c.close()
def run(n):
    try: work(n)
    except BaseException as e: faults.append(e); raise
threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
assert not faults, faults
"#;

#[test]
fn psycopg_works_with_its_defaults() {
    let (_cluster, pgmend) = daemon();
    pgmend.psycopg("password=secret sslmode=require", PSYCOPG);
}

#[test]
fn sqlx_works_with_its_defaults() {
    let (_cluster, pgmend) = daemon();
    let mut story = Command::new(installed("sqlx/debug/sqlx-story"));
    run_for(story.arg(pgmend.config.port.to_string()), PATIENCE).must();
}

/// One client of tokio-postgres: its own cache of type queries, prepared statements, transactions, COPY.
async fn tokio_client(conninfo: String, n: i32) {
    let (mut client, connection) = tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await.expect("login");
    let driver = tokio::spawn(connection);
    let sum = client.prepare("SELECT $1::int4 + 1, 'good'::mood").await.expect("prepare");
    for i in 0..30_i32 {
        assert_eq!(client.query_one(&sum, &[&n]).await.expect("a row").get::<_, i32>(0), n + 1);
        let transaction = client.transaction().await.expect("begin");
        let (id, name) = (n * 1000 + i, format!("w{n}"));
        transaction.execute("INSERT INTO t VALUES ($1, $2)", &[&id, &name]).await.expect("insert");
        let row = transaction.query_one("SELECT name FROM t WHERE id = $1", &[&id]).await.expect("a row");
        assert_eq!(row.get::<_, String>(0), name);
        // A portal lives on over several requests.
        let portal = transaction.bind("SELECT generate_series(1, 5)", &[]).await.expect("a portal");
        assert_eq!(transaction.query_portal(&portal, 3).await.expect("rows").len(), 3);
        assert_eq!(transaction.query_portal(&portal, 3).await.expect("rows").len(), 2);
        transaction.commit().await.expect("commit");
        // One that is dropped is rolled back.
        let dropped = client.transaction().await.expect("begin");
        dropped.execute("DELETE FROM t", &[]).await.expect("delete");
        drop(dropped);
        let error = client.query("SELECT 1 / $1::int4", &[&0_i32]).await.expect_err("no division by zero");
        assert_eq!(error.code(), Some(&tokio_postgres::error::SqlState::DIVISION_BY_ZERO));
    }
    drop((client, sum));
    driver.await.expect("no panic").expect("a clean end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokio_postgres_works_with_its_defaults() {
    let (cluster, pgmend) = daemon();
    cluster.sql(0, "app", "CREATE TABLE t (id int PRIMARY KEY, name text); ALTER TABLE t OWNER TO app");
    cluster.sql(0, "app", "CREATE TYPE mood AS ENUM ('good', 'bad')");
    let conninfo = format!("host=127.0.0.1 port={} user=app password=secret dbname=app", pgmend.config.port);
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..8 {
        clients.spawn(tokio_client(conninfo.clone(), n));
    }
    while let Some(done) = clients.join_next().await {
        done.expect("no panic");
    }
    assert_eq!(cluster.sql(0, "app", "SELECT count(*) FROM t"), "240");
}
