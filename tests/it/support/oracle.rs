//! Whether nodes hold the same, row by row: every table and sequence of every database, unlogged ones too.

use super::Cluster;
use std::collections::BTreeMap;

/// One question for all tables and sequences of a database: for each table the number and a sum over its rows that does not
/// depend on their order, for each sequence where it stands.
const QUESTION: &str = "SELECT string_agg(CASE relkind \
     WHEN 'S' THEN format('SELECT %L, last_value::text, is_called::text FROM %s', c.oid::regclass, c.oid::regclass) \
     ELSE format('SELECT %L, count(*)::text, sum(hashtextextended(t::text, 0))::text FROM %s t', c.oid::regclass, c.oid::regclass) \
     END, ' UNION ALL ' ORDER BY c.oid::regclass::text) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
     WHERE relkind IN ('r', 'S') AND relpersistence <> 't' AND nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')";

impl Cluster {
    /// What there is in a database. Equal texts are equal data.
    #[track_caller]
    pub fn digest(&self, id: usize, database: &str) -> String {
        let question = self.sql(id, database, QUESTION);
        if question.is_empty() { String::new() } else { self.sql(id, database, &question) }
    }

    /// Fails the story unless all nodes hold the same in this database.
    #[track_caller]
    pub fn must_be_equal(&self, database: &str) {
        let first = self.digest(0, database);
        for id in 1..self.nodes.len() {
            assert_eq!(self.digest(id, database), first, "node {id} differs from node 0");
        }
    }
}

/// Everything of a node, by database.
#[track_caller]
pub fn contents(cluster: &Cluster, id: usize) -> BTreeMap<String, String> {
    let databases = cluster.sql(id, "postgres", "SELECT datname FROM pg_database WHERE datallowconn");
    databases.lines().map(|database| (database.to_owned(), cluster.digest(id, database))).collect()
}

/// All of these nodes hold the same, and something at all.
#[track_caller]
pub fn assert_equal(cluster: &Cluster, nodes: &[usize]) {
    let first = contents(cluster, nodes[0]);
    assert!(first.values().any(|held| !held.is_empty()), "node {} holds nothing", nodes[0]);
    for node in &nodes[1..] {
        assert_eq!(first, contents(cluster, *node), "nodes {} and {node}", nodes[0]);
    }
}
