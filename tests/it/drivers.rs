//! psql, pg_dump, psycopg and tokio-postgres, with TLS and SCRAM.

use crate::support::process::run_for;
use crate::support::{Cluster, Config, as_postgres, bin, run};
use std::time::Duration;

#[test]
fn a_dump_travels_through_pgmend_twice() {
    let cluster = Cluster::single();
    cluster.pgbench_tables("postgres", 2);
    cluster.sql(0, "postgres", "CREATE DATABASE copy");
    let pgmend = Config::of(&cluster).start();
    let door = format!("host=127.0.0.1 port={} user=postgres", pgmend.config.port);
    let line = format!(
        "set -o pipefail; {} -d '{door} dbname=postgres' | {} -X -q -v ON_ERROR_STOP=1 -d '{door} dbname=copy' >/dev/null",
        bin("pg_dump").display(),
        bin("psql").display()
    );
    run_for(as_postgres("bash").args(["-c", &line]), Duration::from_secs(90)).must();
    let count = "SELECT count(*), sum(aid) FROM pgbench_accounts";
    assert_eq!(cluster.sql(0, "copy", count), cluster.sql(0, "postgres", count));
}

const PSYCOPG: &str = r#"
import sys, psycopg
c = psycopg.connect(sys.argv[1], autocommit=True)
assert c.execute("SELECT current_user").fetchone()[0] == "app"
c.execute("CREATE TABLE t (id int, name text)")
with c.cursor() as cur:
    cur.executemany("INSERT INTO t VALUES (%s, %s)", [(i, f"n{i}") for i in range(500)])
with c.transaction():
    c.execute("UPDATE t SET name = 'x' WHERE id < 10")
assert c.execute("SELECT count(*) FROM t WHERE name = 'x'", prepare=True).fetchone()[0] == 10
for i in range(20):
    assert c.execute("SELECT id FROM t WHERE name = %s", (f"n{i + 10}",)).fetchone()[0] == i + 10
with c.cursor(name="server_side") as cur:
    with c.transaction():
        cur.execute("SELECT id FROM t ORDER BY id")
        assert [r[0] for r in cur.fetchmany(5)] == [0, 1, 2, 3, 4]
try:
    c.execute("SELECT 1/0")
except psycopg.errors.DivisionByZero as e:
    assert e.sqlstate == "22012"
print(c.pgconn.ssl_in_use)
"#;

fn psycopg_with(mode: &str, ssl: &str, expected: &str) {
    let cluster = Cluster::scram();
    let mut config = Config::of(&cluster);
    config.scram().tls().set("pool", &format!("mode = \"{mode}\""));
    let pgmend = config.start();
    let root = cluster.folder().join("server.crt");
    let conninfo = format!(
        "host=127.0.0.1 port={} user=app password=secret dbname=app {ssl} sslrootcert={}",
        pgmend.config.port,
        root.display()
    );
    let ran = run(as_postgres("/usr/bin/python3").args(["-c", PSYCOPG, &conninfo])).must();
    assert!(ran.out.contains(expected), "{}", ran.all());
}

#[test]
fn psycopg_works_with_tls_and_scram_in_session_pooling() {
    psycopg_with("session", "sslmode=verify-full channel_binding=require", "True");
}

#[test]
fn psycopg_works_with_scram_without_tls() {
    psycopg_with("transaction", "sslmode=disable", "False");
}

#[test]
fn pgbench_works_with_tls_and_scram() {
    let cluster = Cluster::scram();
    cluster.pgbench_tables("app", 1);
    cluster.sql(0, "app", "GRANT ALL ON ALL TABLES IN SCHEMA public TO app");
    let mut config = Config::of(&cluster);
    config.scram().tls();
    let pgmend = config.start();
    let conninfo =
        format!("host=127.0.0.1 port={} user=app password=secret sslmode=require dbname=app", pgmend.config.port);
    for protocol in ["simple", "extended", "prepared"] {
        run(as_postgres(bin("pgbench")).args(["-n", "-S", "-M", protocol, "-c", "8", "-t", "50", &conninfo])).must();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokio_postgres_pipelines() {
    let cluster = Cluster::scram();
    let mut config = Config::of(&cluster);
    config.scram();
    let pgmend = config.start();
    let conninfo = format!("host=127.0.0.1 port={} user=app password=secret dbname=app", pgmend.config.port);
    let (client, connection) = tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await.expect("login");
    let driver = tokio::spawn(connection);
    let statement = client.prepare("SELECT $1::int4 + 1").await.expect("prepare");
    // Polled together, the requests go out as one pipeline.
    let client = std::sync::Arc::new(client);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200_i32 {
        let (client, statement) = (client.clone(), statement.clone());
        tasks.spawn(async move { (n, client.query_one(&statement, &[&n]).await.expect("row").get::<_, i32>(0)) });
    }
    let mut answers = 0;
    while let Some(done) = tasks.join_next().await {
        let (n, answer) = done.expect("no panic");
        assert_eq!(answer, n + 1);
        answers += 1;
    }
    assert_eq!(answers, 200);
    let token = client.cancel_token();
    let sleeper = client.clone();
    let sleep = tokio::spawn(async move { sleeper.simple_query("SELECT pg_sleep(30)").await });
    let failure = loop {
        token.cancel_query(tokio_postgres::NoTls).await.expect("cancel is taken");
        if sleep.is_finished() {
            break sleep.await.expect("no panic").expect_err("cancelled");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(failure.code(), Some(&tokio_postgres::error::SqlState::QUERY_CANCELED));
    drop((client, statement));
    driver.await.expect("no panic").expect("a clean end");
}
