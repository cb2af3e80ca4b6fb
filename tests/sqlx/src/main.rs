//! sqlx with its defaults, against the address that it is given: prepared statements, transactions, errors, COPY, LISTEN.

use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolCopyExt, PgPoolOptions};
use sqlx::{Executor, Row};

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

const WORKERS: i32 = 8;
const ROUNDS: i32 = 30;

#[tokio::main]
async fn main() -> Outcome {
    let port = std::env::args().nth(1).ok_or("use: sqlx-story PORT")?.parse()?;
    let options = PgConnectOptions::new().host("127.0.0.1").port(port).username("app").password("secret").database("app");
    let pool = PgPoolOptions::new().max_connections(WORKERS.unsigned_abs()).connect_with(options.clone()).await?;
    pool.execute("CREATE TABLE t (id int PRIMARY KEY, name text); CREATE TYPE mood AS ENUM ('good', 'bad')").await?;
    let workers: Vec<_> = (0..WORKERS).map(|n| tokio::spawn(work(pool.clone(), n))).collect();
    for worker in workers {
        worker.await??;
    }
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&pool).await?;
    assert_eq!(count, i64::from(WORKERS * ROUNDS));
    let mut copy = pool.copy_in_raw("COPY t FROM STDIN").await?;
    for id in 0..500 {
        copy.send(format!("{}\tcopied\n", 1_000_000 + id).as_bytes()).await?;
    }
    assert_eq!(copy.finish().await?, 500);
    listen(&pool).await
}

/// More clients than there are servers, each with its own cache of prepared statements.
async fn work(pool: PgPool, n: i32) -> Outcome {
    for i in 0..ROUNDS {
        let text = format!("SELECT $1::int + {}", i % 7);
        let sum: i32 = sqlx::query_scalar(&text).bind(n).fetch_one(&pool).await?;
        assert_eq!(sum, n + i % 7);
        let mut transaction = pool.begin().await?;
        let name = format!("w{n}");
        sqlx::query("INSERT INTO t VALUES ($1, $2)").bind(n * 1000 + i).bind(&name).execute(&mut *transaction).await?;
        // A transaction inside it is a savepoint.
        let mut inner = sqlx::Acquire::begin(&mut transaction).await?;
        let again = sqlx::query("INSERT INTO t VALUES ($1, 'again')").bind(n * 1000 + i).execute(&mut *inner).await;
        assert_eq!(code(again), "23505");
        inner.rollback().await?;
        let row = sqlx::query("SELECT name, 'good'::mood FROM t WHERE id = $1").bind(n * 1000 + i);
        let row = row.fetch_one(&mut *transaction).await?;
        assert_eq!(row.get::<String, _>(0), name);
        transaction.commit().await?;
        // One that is dropped is rolled back.
        let mut dropped = pool.begin().await?;
        sqlx::query("DELETE FROM t").execute(&mut *dropped).await?;
        drop(dropped);
        assert_eq!(code(sqlx::query("SELECT 1 / $1::int").bind(0).fetch_one(&pool).await), "22012");
    }
    Ok(())
}

async fn listen(pool: &PgPool) -> Outcome {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen_all(["one", "two"]).await?;
    for n in 0..50 {
        let channel = ["one", "two"][n % 2];
        sqlx::query("SELECT pg_notify($1, $2)").bind(channel).bind(n.to_string()).execute(pool).await?;
    }
    for n in 0..50_usize {
        let notification = listener.recv().await?;
        assert_eq!((notification.channel(), notification.payload()), (["one", "two"][n % 2], n.to_string().as_str()));
    }
    Ok(())
}

fn code<T>(outcome: Result<T, sqlx::Error>) -> String {
    let error = outcome.err().expect("an error");
    error.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned()
}
