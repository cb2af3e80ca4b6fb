//! Whether nodes hold the same, row by row: every table and sequence of every database, unlogged ones too.

use super::Cluster;
use std::collections::BTreeMap;

/// Everything of a node, by `database: kind name`.
pub fn contents(cluster: &Cluster, id: usize) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let databases = cluster.sql(id, "postgres", "SELECT datname FROM pg_database WHERE datallowconn");
    for database in databases.lines() {
        let names = "SELECT format('%I.%I', nspname, relname) || ' ' || relkind::text FROM pg_class c JOIN pg_namespace n \
                     ON n.oid = relnamespace WHERE relkind IN ('r', 'S') AND relpersistence <> 't' \
                     AND nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')";
        for line in cluster.sql(id, database, names).lines() {
            let (name, kind) = line.rsplit_once(' ').expect("name and kind");
            let ask = match kind {
                "S" => format!("SELECT last_value, is_called FROM {name}"),
                _ => format!("SELECT count(*), md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {name} t"),
            };
            found.insert(format!("{database}: {kind} {name}"), cluster.sql(id, database, &ask));
        }
    }
    found
}

/// All of these nodes hold the same, and something at all.
#[track_caller]
pub fn assert_equal(cluster: &Cluster, nodes: &[usize]) {
    let first = contents(cluster, nodes[0]);
    assert!(!first.is_empty(), "node {} holds nothing", nodes[0]);
    for node in &nodes[1..] {
        assert_eq!(first, contents(cluster, *node), "nodes {} and {node}", nodes[0]);
    }
}
