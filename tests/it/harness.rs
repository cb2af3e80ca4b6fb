//! The harness itself: what the stories rely on holds without pgmend.

use crate::support::load::{Door, pgbench};
use crate::support::{Cluster, Load};

#[test]
fn a_pair_streams_and_survives_a_load_and_a_crash_of_its_standby() {
    let cluster = Cluster::pair();
    cluster.pgbench_tables("postgres", 1);
    let host = cluster.folder().display().to_string();
    let door = Door { host, port: cluster.nodes[0].port, user: "postgres".into(), database: "postgres".into() };
    assert!(pgbench(&door, &["-S", "-c", "4", "-t", "50"]) == 200);
    let load = Load::start(&door, cluster.folder(), 2);
    cluster.kill9(1);
    load.goes_on();
    assert!(load.finish() >= 2);
    cluster.start(1);
    cluster.wait_same(1, "postgres", "SELECT sum(bbalance), count(*) FROM pgbench_history, pgbench_branches");
}
