//! A statement straight to a server, with no program between: stories ask often, and a psql each time costs more than the question.

use std::path::Path;
use std::time::Duration;
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

/// Nothing that a story asks takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a string of statements over the Unix socket as `postgres`; the rows as psql prints them unaligned, or the error's words.
pub fn ask(folder: &Path, port: u16, database: &str, statement: &str) -> Result<String, String> {
    let mut config = Config::new();
    config.host_path(folder).port(port).user("postgres").dbname(database).application_name("psql");
    // On a thread of its own: a story may stand in a runtime already.
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let answer = tokio::time::timeout(LIMIT, simple(&config, statement)).await;
                answer.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")))
            })
        });
        asked.join().expect("no panic")
    })
}

async fn simple(config: &Config, statement: &str) -> Result<String, String> {
    let words = |error: tokio_postgres::Error| {
        error.as_db_error().map_or_else(|| error.to_string(), |e| format!("{}:  {}", e.severity(), e.message()))
    };
    let (client, connection) = config.connect(NoTls).await.map_err(words)?;
    let connection = tokio::spawn(connection);
    let messages = client.simple_query(statement).await.map_err(words)?;
    let mut lines = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            let fields: Vec<&str> = (0..row.len()).map(|at| row.get(at).unwrap_or_default()).collect();
            lines.push(fields.join("|"));
        }
    }
    drop(client);
    // Its session has ended when this returns: what is counted next does not see it.
    let _ = connection.await;
    Ok(lines.join("\n").trim().to_owned())
}
