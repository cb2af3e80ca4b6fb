//! A node that pgmend keeps equal to others is lost, by its death or by standing still: it is detached and the others go on.

use crate::support::process::wait_until;
use crate::support::{Cluster, Config, Load};
use std::time::Duration;

/// By its health checks (see `Config::of`) a node that does not answer is out after some seconds.
const NOTICED: Duration = Duration::from_secs(20);

/// Loses one of three nodes under load; the two that are left are equal in the end.
fn loses(lost: usize, left: [&str; 3], equal: [usize; 2], lose: impl FnOnce(&Cluster)) {
    let cluster = Cluster::equals(3);
    for id in 0..3 {
        cluster.pgbench_tables_on(id, "postgres", 1);
    }
    let mut config = Config::of(&cluster);
    config.set("cluster", "backend_clustering_mode = \"native_replication\"");
    config.set("recovery", "recovery_user = \"postgres\"");
    let pgmend = config.start();
    let load = Load::start_with(&pgmend.door(), cluster.folder(), 8, &["--max-tries=100"]);
    load.goes_on();
    lose(&cluster);
    wait_until("the lost node is detached", NOTICED, || [0, 1, 2].map(|id| pgmend.node_status(id)) == left);
    load.goes_on();
    let longest = load.longest();
    println!("node {lost} is lost: longest wait {longest:?}");
    assert!(longest < NOTICED, "{longest:?}");
    load.finish();
    // What has been committed on one node is committed on all before the end.
    assert!(pgmend.stop("-TERM"));
    assert_eq!(cluster.digest(equal[0], "postgres"), cluster.digest(equal[1], "postgres"));
}

#[test]
fn a_node_that_is_lost_is_detached_and_the_load_goes_on() {
    loses(1, ["up", "down", "up"], [0, 2], |cluster| cluster.kill9(1));
}

#[test]
fn the_main_node_is_lost_and_the_next_one_takes_its_place() {
    loses(0, ["down", "up", "up"], [1, 2], |cluster| cluster.kill9(0));
}

/// Its connections stay open and nothing comes of them, in whatever the clients have begun there.
#[test]
fn a_node_that_stands_still_is_given_up() {
    loses(2, ["up", "up", "down"], [0, 1], |cluster| cluster.freeze(2));
}

#[test]
fn the_main_node_stands_still_and_the_next_one_takes_its_place() {
    loses(0, ["down", "up", "up"], [1, 2], |cluster| cluster.freeze(0));
}
