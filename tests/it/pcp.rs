//! Pgpool-II's stock control tools on a live daemon.

use crate::support::{Cluster, Config};

#[test]
fn the_stock_tools_work() {
    let cluster = Cluster::pair();
    let mut config = Config::of(&cluster);
    let pgmend = config.pcp().start();
    assert_eq!(pgmend.pcp("pcp_node_count", &[]).must().out.trim(), "2");
    let info = pgmend.pcp("pcp_node_info", &["-n", "1"]).must().out;
    assert!(info.contains(&cluster.nodes[1].port.to_string()) && info.contains("up"), "{info}");
    let verbose = pgmend.pcp("pcp_node_info", &["-n", "0", "-v"]).must().out;
    assert!(verbose.contains("Hostname") && verbose.contains("primary"), "{verbose}");
    let all = pgmend.pcp("pcp_node_info", &["-a"]).must().out;
    assert_eq!(all.lines().filter(|l| !l.is_empty()).count(), 2, "{all}");
    let said = pgmend.pcp("pcp_detach_node", &["-n", "1"]).all();
    assert!(said.contains("Command Successful"), "{said}");
    pgmend.wait_node(1, "down");
    let said = pgmend.pcp("pcp_attach_node", &["-n", "1"]).all();
    assert!(said.contains("Command Successful"), "{said}");
    pgmend.wait_node(1, "up");
    let said = pgmend.pcp("pcp_reload_config", &["-s", "l"]).all();
    assert!(said.contains("Command Successful"), "{said}");
}

#[test]
fn a_bad_node_id_is_refused() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    let pgmend = config.pcp().start();
    let said = pgmend.pcp("pcp_node_info", &["-n", "7"]).all();
    assert!(said.contains("ERROR") && said.to_lowercase().contains("invalid node id"), "{said}");
    assert_eq!(pgmend.pcp("pcp_node_count", &[]).must().out.trim(), "1");
}

#[test]
fn a_bad_password_is_refused() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    let pgmend = config.pcp().start();
    let said = pgmend.pcp_as("wrong", "pcp_node_count", &[]).all();
    assert!(said.contains("authentication failed"), "{said}");
}

#[test]
fn the_stop_tool_ends_the_daemon() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    let pgmend = config.pcp().start();
    let said = pgmend.pcp("pcp_stop_pgpool", &["-m", "f"]).all();
    assert!(said.contains("Command Successful"), "{said}");
    pgmend.wait_end();
}
