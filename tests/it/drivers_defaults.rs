//! Drivers of other languages in transaction pooling, with their defaults: SCRAM, their caches of prepared statements over
//! more clients than there are servers, transactions, errors, batches, COPY. `tests/setup` installs them.

use crate::support::process::run_for;
use crate::support::{Cluster, Config, Pgmend};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(90);

/// A cluster with SCRAM and a daemon with two servers for everybody.
fn daemon() -> (Cluster, Pgmend) {
    let cluster = Cluster::scram();
    let mut config = Config::of(&cluster);
    config.scram().tls().set("pool", "default_pool_size = 2");
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
    let (dump, psql) = (crate::support::bin("pg_dump"), crate::support::bin("psql"));
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
