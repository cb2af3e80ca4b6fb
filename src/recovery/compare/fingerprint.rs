//! The digests of one node.

use super::Depth;
use super::questions::{DATABASES, DEFINITIONS, SESSION, SHARED, TABLES, rows_of, standings};
use crate::base::Secret;
use crate::cluster::NodeSpec;
use crate::net::ServerTls;
use crate::server::sql::{Row, Sql, SqlError, SqlTarget};
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Bound on a connect. Everything else is bounded by the caller: a scan may take hours.
const CONNECT: Duration = Duration::from_secs(10);
/// Objects of one node at most; what has more is not compared.
const MAX_OBJECTS: usize = 1_000_000;

/// Databases that are read at the same time.
const AT_ONCE: usize = 4;
/// Sequences that one statement asks for.
const SEQUENCES: usize = 200;

/// By name, with the database in front of it.
pub type Fingerprint = BTreeMap<String, String>;

/// Who compares: a superuser, since everything is read.
#[derive(Clone, Debug)]
pub struct Login {
    /// Role.
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// Database to begin in.
    pub database: String,
    /// TLS towards the nodes.
    pub tls: Arc<ServerTls>,
}

impl Login {
    async fn connect(&self, node: &NodeSpec, database: &str) -> Result<Sql, SqlError> {
        let mut target = SqlTarget::of(node, database, &self.user, &self.password, self.tls.clone());
        target.application_name = "pgmend_compare".to_owned();
        let sql = Sql::connect(&target, CONNECT).await?;
        sql.rows(SESSION).await?;
        Ok(sql)
    }
}

/// Everything of one node. Without a bound of its own.
pub async fn fingerprint(login: &Login, node: &NodeSpec, depth: Depth) -> Result<Fingerprint, String> {
    let words = |error: SqlError| error.to_string();
    let shared = login.connect(node, &login.database).await.map_err(words)?;
    let mut found = Fingerprint::new();
    add(&mut found, "", shared.rows(SHARED).await.map_err(words)?)?;
    let names = shared.rows(DATABASES).await.map_err(words)?;
    let databases: Vec<String> = names.into_iter().filter_map(first).collect();
    for some in databases.chunks(AT_ONCE) {
        for part in join_all(some.iter().map(|name| of_database(login, node, name, depth))).await {
            found.extend(part?);
            bounded(&found)?;
        }
    }
    Ok(found)
}

async fn of_database(login: &Login, node: &NodeSpec, database: &str, depth: Depth) -> Result<Fingerprint, String> {
    let within = |error: SqlError| format!("database {database}: {error}");
    let mut found = Fingerprint::new();
    let sql = login.connect(node, database).await.map_err(within)?;
    let prefix = format!("{database}: ");
    if depth == Depth::Whole {
        add(&mut found, &prefix, sql.rows(DEFINITIONS).await.map_err(within)?)?;
    }
    let mut sequences = Vec::new();
    for row in sql.rows(TABLES).await.map_err(within)? {
        let is_sequence = row.get(1).and_then(Option::as_deref) == Some("S");
        let Some(name) = first(row) else { continue };
        if is_sequence {
            sequences.push(name);
            continue;
        }
        let digest = match depth {
            Depth::Outline => String::new(),
            Depth::Whole => {
                let rows = sql.rows(&rows_of(&name)).await.map_err(|e| format!("{prefix}table {name}: {e}"))?;
                rows.into_iter().next().and_then(first).unwrap_or_default()
            }
        };
        insert(&mut found, format!("{prefix}table {name}"), digest)?;
    }
    for some in sequences.chunks(SEQUENCES) {
        let prefix = format!("{prefix}sequence ");
        add(&mut found, &prefix, sql.rows(&standings(some)).await.map_err(within)?)?;
    }
    Ok(found)
}

fn add(found: &mut Fingerprint, prefix: &str, rows: Vec<Row>) -> Result<(), String> {
    for row in rows {
        let mut fields = row.into_iter().map(Option::unwrap_or_default);
        let (Some(name), Some(digest)) = (fields.next(), fields.next()) else { continue };
        insert(found, format!("{prefix}{name}"), digest)?;
    }
    Ok(())
}

fn insert(found: &mut Fingerprint, name: String, digest: String) -> Result<(), String> {
    bounded(found)?;
    // Names that are not unique would hide a difference.
    found.entry(name).and_modify(|known| known.push_str(&format!(" {digest}"))).or_insert(digest);
    Ok(())
}

fn bounded(found: &Fingerprint) -> Result<(), String> {
    if found.len() >= MAX_OBJECTS {
        return Err(format!("there are more than {MAX_OBJECTS} objects"));
    }
    Ok(())
}

fn first(row: Row) -> Option<String> {
    row.into_iter().next().flatten()
}
