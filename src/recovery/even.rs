//! With clients held: what a promoted copy lacks is made good, and the target is proven equal before it is attached.
//!
//! Sequences run ahead in the log (a promoted copy says 36 where the source says 4), and user scripts bump the source's alone:
//! those of every node are set to the source's. Unlogged tables are empty after a promotion.

use super::Unlogged;
use super::compare::{Depth, Login, compare_as};
use super::preflight::fields;
use super::run::{Run, SHORT};
use crate::cluster::NodeSpec;
use crate::server::sql::{Row, Sql, literal};
use crate::workflow::Failure;
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const POLL: Duration = Duration::from_millis(10);
/// Databases that are worked on at the same time.
const DATABASES_AT_ONCE: usize = 4;
/// Sequences that one statement asks for or sets.
const AT_ONCE: usize = 200;
/// Sequences and unlogged tables of one database at most.
const MAX_NAMES: usize = 1_000_000;

const DATABASES: &str = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn ORDER BY datname";
/// Quoted names of sequences and of unlogged tables, with their kinds.
const NAMES: &str = "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), c.relkind::text FROM pg_catalog.pg_class c \
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE (c.relkind = 'S' AND c.relpersistence <> 't') OR (c.relkind = 'r' AND c.relpersistence = 'u') ORDER BY 1";

/// Where a sequence stands: `last_value` and `is_called`.
type Standing = (String, String);

impl Run {
    /// Until the target can be written to; then its sequences and unlogged tables are those of the source, and so are the
    /// sequences of all other nodes.
    pub(super) async fn even_out(&mut self) -> Result<(), Failure> {
        self.wait_until_writable().await?;
        self.is_the_copy().await?;
        // Clients that go on shall not have to log in to it first.
        self.warm = Some(self.inner.board.warm(self.target.id));
        let source = self.connect_source().await?;
        let view = self.inner.board.view();
        let others: Vec<Arc<NodeSpec>> =
            view.live().filter(|n| n.spec.id != self.source.id).map(|n| n.spec.clone()).collect();
        let (mut set, mut unlogged) = (0, Vec::new());
        let databases = names(source.rows_within(DATABASES, SHORT).await.map_err(|e| uneven(e.to_string()))?);
        for some in databases.chunks(DATABASES_AT_ONCE) {
            for done in join_all(some.iter().map(|database| self.even_out_one(database, &others))).await {
                let (count, tables) = done?;
                set += count;
                unlogged.extend(tables);
            }
        }
        self.job.note("");
        if set > 0 {
            self.remarks.push(format!("{set} sequences were set"));
        }
        if !unlogged.is_empty() {
            let verb = match self.settings.unlogged {
                Unlogged::Copy => "copied",
                Unlogged::Report => "left empty",
            };
            let shown = unlogged.len().min(10);
            let more = if unlogged.len() > shown { ", …" } else { "" };
            let names = unlogged.get(..shown).unwrap_or_default().join(", ");
            self.remarks.push(format!("{} unlogged tables were {verb} ({names}{more})", unlogged.len()));
        }
        Ok(())
    }

    /// One database: how many sequences had to be set, and its unlogged tables.
    async fn even_out_one(&self, database: &str, others: &[Arc<NodeSpec>]) -> Result<(usize, Vec<String>), Failure> {
        let from = self.open(&self.source, database).await?;
        let (sequences, tables) = listed(&from).await?;
        let wanted = standings(&from, &sequences).await?;
        let mut set = 0;
        if !wanted.is_empty() {
            for node in others.iter().chain([&self.target]) {
                set += self.set_sequences(node, database, &wanted).await?;
            }
        }
        if !tables.is_empty() && self.settings.unlogged == Unlogged::Copy {
            self.copy_unlogged(&from, database, &tables).await?;
        }
        Ok((set, tables.into_iter().map(|table| format!("{database}: {table}")).collect()))
    }

    /// A promotion that the script began may still be under way.
    async fn wait_until_writable(&self) -> Result<(), Failure> {
        let mut last = String::new();
        // The gate's deadline bounds it.
        loop {
            match self.connect(&self.target, "postgres").await {
                Ok(target) => match target.value("SELECT pg_is_in_recovery()", SHORT).await {
                    Ok(Some(answer)) if answer == "f" => return Ok(()),
                    Ok(_) => {
                        self.note_once(&mut last, "the target is still in recovery: the second stage has to promote it")
                    }
                    Err(error) => self.note_once(&mut last, &error.to_string()),
                },
                Err(error) => self.note_once(&mut last, &error.to_string()),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn note_once(&self, last: &mut String, words: &str) {
        if last != words {
            words.clone_into(last);
            self.job.note(words);
            // It stays in the output when the time is over.
            self.job.output(words);
        }
    }

    async fn open(&self, node: &NodeSpec, database: &str) -> Result<Sql, Failure> {
        let sql = self.connect(node, database).await;
        let bad = |why: String| uneven(format!("node {}, database {database}: {why}", node.id));
        let sql = sql.map_err(|e| bad(e.to_string()))?;
        sql.rows_within("SET statement_timeout = 0; SET search_path = pg_catalog", SHORT)
            .await
            .map_err(|e| bad(e.to_string()))?;
        Ok(sql)
    }

    /// How many had to be set.
    async fn set_sequences(
        &self,
        node: &NodeSpec,
        database: &str,
        wanted: &BTreeMap<String, Standing>,
    ) -> Result<usize, Failure> {
        self.job.note(format!("comparing sequences of node {}, database {database}", node.id));
        let to = self.open(node, database).await?;
        let (sequences, _) = listed(&to).await?;
        let has = standings(&to, &sequences).await?;
        if let Some(missing) = wanted.keys().find(|name| !has.contains_key(*name)) {
            return Err(uneven(format!("node {}, database {database}: sequence {missing} is missing", node.id)));
        }
        let differing: Vec<_> = wanted.iter().filter(|(name, standing)| has.get(*name) != Some(standing)).collect();
        for part in differing.chunks(AT_ONCE) {
            let set: Vec<String> = part
                .iter()
                .map(|(name, (last, called))| format!("SELECT setval({}, {last}, {})", literal(name), literal(called)))
                .collect();
            to.rows(&set.join(";")).await.map_err(|e| uneven(e.to_string()))?;
        }
        Ok(differing.len())
    }

    async fn copy_unlogged(&self, from: &Sql, database: &str, tables: &[String]) -> Result<(), Failure> {
        let to = self.open(&self.target, database).await?;
        // Neither triggers nor foreign keys: the rows are good as they are.
        let prepare = "SET session_replication_role = replica; SET row_security = off";
        to.rows_within(prepare, SHORT).await.map_err(|e| uneven(e.to_string()))?;
        for table in tables {
            self.job.note(format!("copying unlogged table {table} of database {database}"));
            let bad = |why: String| uneven(format!("unlogged table {table} of database {database}: {why}"));
            to.rows(&format!("DELETE FROM ONLY {table}")).await.map_err(|e| bad(e.to_string()))?;
            let (out, into) = (format!("COPY {table} TO STDOUT"), format!("COPY {table} FROM STDIN"));
            from.copy_to(&out, &to, &into).await.map_err(|e| bad(e.to_string()))?;
        }
        Ok(())
    }

    fn not_the_copy(&self, detail: String) -> Failure {
        Failure::new(format!("node {} is not what it should be after its recovery", self.target.id)).detail(detail)
    }

    /// The target can be written to and is of the source's system.
    async fn is_the_copy(&self) -> Result<(), Failure> {
        let (facts, bad) = (self.facts()?, |detail| self.not_the_copy(detail));
        let ask = "SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system())";
        let target = self.connect(&self.target, "postgres").await.map_err(|e| bad(e.to_string()))?;
        let rows = target.rows_within(ask, SHORT).await.map_err(|e| bad(e.to_string()))?;
        let [in_recovery, system] = fields(rows).ok_or_else(|| bad("it does not answer".into()))?;
        if in_recovery != "f" {
            return Err(bad("it is in recovery: nothing can be written to it".into()));
        }
        if system != facts.system_identifier.to_string() {
            return Err(bad(format!("its system identifier is {system}, not {}", facts.system_identifier)));
        }
        Ok(())
    }

    /// It is the copy still, and has what the source has as far as that can be told without reading its rows.
    pub(super) async fn verify_equal(&self) -> Result<(), Failure> {
        self.is_the_copy().await?;
        self.job.note("comparing databases, roles, tables and sequences with the source's");
        match compare_as(&self.login(), &self.source, &self.target, Depth::Outline).await {
            Ok(differences) if differences.is_empty() => Ok(()),
            Ok(found) => Err(self.not_the_copy(format!("other than on the source: {}", found.join(", ")))),
            Err(error) => Err(self.not_the_copy(error)),
        }
    }
}

impl Run {
    fn login(&self) -> Login {
        Login {
            user: self.settings.user.clone(),
            password: self.settings.password.clone(),
            database: self.settings.database.clone(),
            tls: (self.inner.tls)(),
        }
    }

    /// Of an attach: everything is read on both nodes, while nobody writes.
    pub(super) async fn compare(&mut self) -> Result<(), Failure> {
        self.job.note("comparing all rows with the main node's");
        let id = self.target.id;
        self.warm = Some(self.inner.board.warm(id));
        match compare_as(&self.login(), &self.source, &self.target, Depth::Whole).await {
            Ok(differences) if differences.is_empty() => {
                self.how = "its data are equal".to_owned();
                Ok(())
            }
            Ok(differences) => {
                Err(Failure::new(format!("the data of node {id} are not those of node {}", self.source.id))
                    .detail(differences.join(", "))
                    .hint(format!("recover it: pgmend recover {id}")))
            }
            Err(error) => Err(Failure::new(format!("node {id} could not be compared")).detail(error)),
        }
    }
}

/// Sequences, and unlogged tables.
async fn listed(sql: &Sql) -> Result<(Vec<String>, Vec<String>), Failure> {
    let rows = sql.rows(NAMES).await.map_err(|e| uneven(e.to_string()))?;
    if rows.len() > MAX_NAMES {
        return Err(uneven(format!("there are more than {MAX_NAMES} sequences and unlogged tables")));
    }
    let (mut sequences, mut tables) = (Vec::new(), Vec::new());
    for row in rows {
        let Some([name, kind]) = fields(vec![row]) else { continue };
        if kind == "S" { sequences.push(name) } else { tables.push(name) }
    }
    Ok((sequences, tables))
}

async fn standings(sql: &Sql, sequences: &[String]) -> Result<BTreeMap<String, Standing>, Failure> {
    let mut found = BTreeMap::new();
    for part in sequences.chunks(AT_ONCE) {
        let ask: Vec<String> = part
            .iter()
            .map(|name| format!("SELECT {}, last_value::text, is_called::text FROM {name}", literal(name)))
            .collect();
        for row in sql.rows(&ask.join(" UNION ALL ")).await.map_err(|e| uneven(e.to_string()))? {
            let [name, last, called] = fields(vec![row]).ok_or_else(|| uneven("odd sequence".to_owned()))?;
            found.insert(name, (last, called));
        }
    }
    Ok(found)
}

fn names(rows: Vec<Row>) -> Vec<String> {
    rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect()
}

fn uneven(why: String) -> Failure {
    Failure::new("the nodes could not be made equal").detail(why)
}
