//! `native_replication`: writes go to all nodes, and the nodes stay equal.

use crate::support::load::pgbench;
use crate::support::{Cluster, Config};

fn native(cluster: &Cluster) -> Config {
    let mut config = Config::of(cluster);
    config.set("cluster", "backend_clustering_mode = \"native_replication\"");
    config.set("recovery", "recovery_user = \"postgres\"");
    config
}

#[test]
fn pgbench_leaves_the_same_rows_on_all_nodes() {
    let cluster = Cluster::equals(2);
    for id in 0..2 {
        cluster.pgbench_tables_on(id, "postgres", 1);
    }
    for mode in ["transaction", "session"] {
        let mut config = native(&cluster);
        config.set("pool", &format!("mode = \"{mode}\""));
        let pgmend = config.start();
        for protocol in ["simple", "extended", "prepared"] {
            let done = pgbench(&pgmend.door(), &["-c", "8", "-t", "50", "-M", protocol]);
            assert_eq!(done, 400, "{mode} {protocol}");
            pgbench(&pgmend.door(), &["-c", "4", "-t", "50", "-S", "-M", protocol]);
        }
        cluster.must_be_equal("postgres");
    }
    assert_eq!(cluster.sql(0, "postgres", "SELECT count(*) FROM pgbench_history"), "2400");
}
