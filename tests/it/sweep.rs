//! pgmend is killed after every journal record of planned work and of a failover, however many there are. The next daemon says
//! what it found, and finishes it or takes it back: one node writes, nothing acknowledged is lost, and the next order works.

use crate::failover::automatic;
use crate::support::postgres_programs::without_sync;
use crate::support::process::{is_alive, wait_until};
use crate::support::{Cluster, Config, Ledger, Pgmend};
use crate::switchover::quick;
use crate::switchover_crash::settled;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

const DIES_AFTER: &str = "PGMEND_CRASH_AFTER_RECORD";
/// Transactions that show that clients work: five of each.
const ENOUGH: u64 = 20;
/// More records than any of these jobs has.
const MANY: usize = 60;

/// A cluster under a load whose clients come again whenever they have lost their daemon.
struct Bench {
    cluster: Cluster,
    config: Config,
    load: Ledger,
}

/// A daemon died; what it wrote last, and the next one.
struct Died {
    record: String,
    pgmend: Pgmend,
}

impl Bench {
    fn new(more: impl FnOnce(&Cluster) -> Config) -> Bench {
        let cluster = Cluster::pair();
        quick(&cluster);
        for id in 0..2 {
            cluster.sql(id, "postgres", "ALTER SYSTEM SET synchronous_standby_names = 'pgmend_1'");
            cluster.sql(id, "postgres", "SELECT pg_reload_conf()");
        }
        let mut config = more(&cluster);
        // What dies is noticed soon: there are many rounds, and nobody looks at how long that takes.
        config.set("health", "health_check_period = \"300ms\"").set("health", "health_check_retry_delay = \"100ms\"");
        config.set("maintenance", "failover_confirm = \"300ms\"");
        without_sync(&cluster, &mut config);
        let pgmend = config.start();
        let load = Ledger::start_calm(&cluster, 0, &pgmend.door(), 4);
        assert!(pgmend.stop("-INT"));
        Bench { cluster, config, load }
    }

    /// Lets a daemon die right after the `number`-th record of the next job of this kind, in the middle of `work`, and starts
    /// the next one after `meanwhile`. None: the job has fewer records.
    fn dies(
        &self,
        kind: &str,
        number: usize,
        work: impl FnOnce(&Self, &Pgmend) + Send,
        meanwhile: impl FnOnce(&Self),
    ) -> Option<Died> {
        self.config.forget_log();
        let before = journals(&self.config).last().map_or(0, |(id, _)| *id);
        let of_it = || {
            let new = journals(&self.config).into_iter().filter(|(id, _)| *id > before);
            let mut names = new.filter_map(|(_, records)| names_of(kind, &records));
            names.next().unwrap_or_default()
        };
        let mut doomed = self.config.clone();
        let doomed = doomed.env(DIES_AFTER, &format!("{kind}#{number}")).start();
        self.load.does(ENOUGH);
        let over = || {
            let names = of_it();
            names.len() < number && names.last().is_some_and(|name| name == "Done" || name == "Aborted")
        };
        let next = std::thread::scope(|scope| {
            scope.spawn(|| work(self, &doomed));
            wait_until(&format!("{kind} comes to its record {number}"), Duration::from_secs(90), || {
                !is_alive(doomed.pid()) || over()
            });
            if is_alive(doomed.pid()) {
                return None;
            }
            meanwhile(self);
            // The tool looks for its job there.
            Some(self.config.start())
        });
        let Some(pgmend) = next else {
            assert_eq!(of_it().last().map(String::as_str), Some("Done"), "{kind}: {}", doomed.log());
            assert!(doomed.stop("-INT"));
            return None;
        };
        let record = of_it().get(number - 1).cloned().expect("it was written");
        let told = pgmend.log();
        let wanted = format!("was interrupted; last journal record {record}");
        assert!(record == "Done" || told.contains(&wanted), "{kind} {number}: no `{wanted}` in\n{told}");
        Some(Died { record, pgmend })
    }

    /// Nothing runs any more, both nodes are in their places, and nothing of the work is left. Returns the node that writes.
    #[track_caller]
    fn whole(&self, pgmend: &Pgmend, what: &str) -> usize {
        self.load.does(ENOUGH);
        let writer = settled(&self.cluster, pgmend, what);
        let other = 1 - writer;
        let names = || self.cluster.sql(writer, "postgres", "SHOW synchronous_standby_names");
        wait_until(&format!("{what}: node {other} is synchronous"), Duration::from_secs(20), || {
            names().contains(&format!("pgmend_{other}"))
        });
        let slots = "SELECT count(*) FILTER (WHERE active) || ' of ' || count(*) FROM pg_replication_slots";
        wait_until(&format!("{what}: slots are in use or gone"), Duration::from_secs(20), || {
            self.cluster.sql(writer, "postgres", slots) == "1 of 1"
                && self.cluster.sql(other, "postgres", slots) == "0 of 0"
        });
        assert!(!self.cluster.nodes[writer].data.join("standby.signal").exists(), "{what}: the primary is not armed");
        assert!(self.cluster.nodes[other].data.join("standby.signal").exists(), "{what}: the standby is armed");
        let left = upkeep(&self.config)["nodes"].as_object().map_or(0, serde_json::Map::len);
        assert_eq!(left, 0, "{what}: nobody is in maintenance");
        writer
    }

    /// The last check: a switchover works, and the books are in order.
    fn close(self) {
        let pgmend = self.config.start();
        let before = self.whole(&pgmend, "at the end");
        pgmend.cli(&["switchover"]).must();
        assert_eq!(self.whole(&pgmend, "after the last switchover"), 1 - before);
        self.load.close().assert_kept(&self.cluster, 1 - before);
    }
}

/// All journals with their records, by number.
fn journals(config: &Config) -> Vec<(u64, Vec<Value>)> {
    let entries = std::fs::read_dir(config.folder().join("state")).expect("the state directory").flatten();
    let number = |path: &PathBuf| {
        path.file_name()?.to_str()?.strip_prefix("journal-")?.strip_suffix(".jsonl")?.parse::<u64>().ok()
    };
    let paths = entries.map(|entry| entry.path()).filter_map(|path| Some((number(&path)?, path)));
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let mut all: Vec<_> = paths.map(|(id, path)| (id, read(&path))).collect();
    all.sort_by_key(|(id, _)| *id);
    all
}

/// The names of a journal's records, if it is of this kind.
fn names_of(kind: &str, records: &[Value]) -> Option<Vec<String>> {
    let is_it = records.first().is_some_and(|first| first["data"]["kind"] == kind);
    is_it.then(|| records.iter().filter_map(|r| r["name"].as_str().map(str::to_owned)).collect())
}

fn upkeep(config: &Config) -> Value {
    let text = std::fs::read_to_string(config.folder().join("state/upkeep.json")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// An order that may be broken off: the daemon is about to die.
fn order(args: &[&str]) -> impl FnOnce(&Bench, &Pgmend) + Send {
    let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
    move |bench, doomed| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Pgmend::cli_of(&doomed.binary, &bench.config, &args);
    }
}

#[track_caller]
fn assert_swept(records: &[String], from: &str) {
    println!("{} records: {}", records.len(), records.join(" "));
    assert_eq!(records.first().map(String::as_str), Some(from));
    assert_eq!(records.last().map(String::as_str), Some("Done"));
}

#[test]
fn of_a_switchover() {
    let bench = Bench::new(Config::of);
    let mut swept = Vec::new();
    for number in 1..MANY {
        let Some(Died { record, pgmend }) = bench.dies("switchover", number, order(&["switchover"]), |_| ()) else {
            break;
        };
        let writer = bench.whole(&pgmend, &record);
        println!("after {record}: node {writer} writes");
        assert!(pgmend.stop("-INT"));
        swept.push(record);
    }
    assert_swept(&swept, "Requested");
    bench.close();
}

/// An operator's own commands for the automatic start: a file is there while it is off.
fn with_autostart(cluster: &Cluster) -> Config {
    let mut config = Config::of(cluster);
    for id in 0..2 {
        let file = cluster.folder().join(format!("off-{id}"));
        config.node(id, &format!("autostart_off_command = \"touch {}\"", file.display()));
        config.node(id, &format!("autostart_on_command = \"rm -f {}\"", file.display()));
    }
    config
}

fn autostart_is_off(bench: &Bench, node: usize) -> bool {
    bench.cluster.folder().join(format!("off-{node}")).exists()
}

#[test]
fn of_a_maintenance_that_begins() {
    let bench = Bench::new(with_autostart);
    let mut swept = Vec::new();
    for number in 1..MANY {
        let begin = order(&["maintenance", "begin", "1"]);
        let Some(Died { record, pgmend }) = bench.dies("maintenance-begin", number, begin, |_| ()) else { break };
        if record == "Done" {
            assert!(autostart_is_off(&bench, 1));
            pgmend.cli(&["maintenance", "finish", "1"]).must();
        }
        assert_eq!(bench.whole(&pgmend, &record), 0);
        assert!(!autostart_is_off(&bench, 1), "{record}");
        assert!(pgmend.stop("-INT"));
        swept.push(record);
    }
    assert_swept(&swept, "Requested");
    // The last round ended with the node in its maintenance.
    let pgmend = bench.config.start();
    pgmend.cli(&["maintenance", "finish", "1"]).must();
    assert!(pgmend.stop("-INT"));
    bench.close();
}

#[test]
fn of_a_maintenance_that_ends() {
    let bench = Bench::new(with_autostart);
    let mut swept = Vec::new();
    for number in 1..MANY {
        let both = |bench: &Bench, doomed: &Pgmend| {
            doomed.cli(&["maintenance", "begin", "1"]).must();
            order(&["maintenance", "finish", "1"])(bench, doomed);
        };
        let Some(Died { record, pgmend }) = bench.dies("maintenance-finish", number, both, |_| ()) else { break };
        assert_eq!(bench.whole(&pgmend, &record), 0);
        assert!(!autostart_is_off(&bench, 1), "{record}");
        assert!(pgmend.stop("-INT"));
        swept.push(record);
    }
    assert_swept(&swept, "Requested");
    bench.close();
}

/// One rolling update whose daemon dies there, and is gone on with. False: there is no such record.
fn rolling_update(bench: &Bench, kind: &str, number: usize) -> Option<String> {
    let at = bench.cluster.folder().display().to_string();
    let patched = bench.cluster.folder().join("patched");
    let patch = format!("test ! -e $PGMEND_DATA_DIRECTORY/postmaster.pid && echo $PGMEND_NODE >> {at}/patched");
    let args = ["rolling-update", "--run", &patch];
    let _ = std::fs::remove_file(&patched);
    let Died { record, pgmend } = bench.dies(kind, number, order(&args), |_| ())?;
    wait_until("what was begun is settled", Duration::from_secs(60), || !pgmend.cli(&["jobs"]).out.contains("running"));
    bench.load.does(ENOUGH);
    let is_left = !upkeep(&bench.config)["rolling"].is_null();
    if is_left {
        pgmend.cli(&[&args[..], &["--resume"]].concat()).must();
    } else if record != "Done" || kind != "rolling-update" {
        // It had not begun.
        pgmend.cli(&args).must();
    }
    bench.whole(&pgmend, &format!("{kind} {record}"));
    let text = std::fs::read_to_string(&patched).unwrap_or_default();
    for node in ["0", "1"] {
        let times = text.split_whitespace().filter(|word| *word == node).count();
        // A daemon that died beside the command, or before it noted the node as done, cannot know that it had run.
        let again = usize::from(matches!(record.as_str(), "Node.Run") || kind != "rolling-update");
        assert!((1..=1 + again).contains(&times), "{kind} {record}: node {node} was patched {times} times");
    }
    assert!(pgmend.stop("-INT"));
    Some(record)
}

#[test]
fn of_a_rolling_update() {
    let bench = Bench::new(Config::of);
    let swept: Vec<String> = (1..MANY).map_while(|number| rolling_update(&bench, "rolling-update", number)).collect();
    assert_swept(&swept, "Requested");
    bench.close();
}

/// Each part has been swept by itself; as parts of a whole every third of their records is enough.
#[test]
fn of_the_parts_of_a_rolling_update() {
    let bench = Bench::new(Config::of);
    for kind in ["maintenance-begin", "switchover", "maintenance-finish"] {
        let swept: Vec<String> =
            (2..MANY).step_by(3).map_while(|number| rolling_update(&bench, kind, number)).collect();
        println!("{kind}: {}", swept.join(" "));
        assert!(swept.len() >= 2, "{kind}: {swept:?}");
    }
    bench.close();
}

/// The primary is lost, the daemon dies in its failover; the lost one stays lost, or comes back by itself before the next daemon.
fn failovers(comes_back: bool) {
    let bench = Bench::new(automatic);
    let mut swept = Vec::new();
    let mut writer = 0;
    for number in 1..MANY {
        let lose = |bench: &Bench, doomed: &Pgmend| {
            bench.wait_learnt(writer, doomed);
            bench.cluster.kill9(writer);
        };
        let meanwhile = |bench: &Bench| {
            if comes_back {
                // Children of the dead one keep its shared memory for a moment.
                wait_until("it starts again", Duration::from_secs(20), || bench.cluster.try_start(writer).ok);
            }
        };
        let Some(Died { record, pgmend }) = bench.dies("failover", number, lose, meanwhile) else { break };
        bench.load.does(ENOUGH);
        let ask = "SELECT pg_is_in_recovery()";
        let other = 1 - writer;
        let has_moved = bench.cluster.try_sql(other, "postgres", ask) == "f";
        assert!(has_moved || comes_back, "{record}: the other one is the primary");
        if has_moved {
            assert_ne!(bench.cluster.try_sql(writer, "postgres", ask), "f", "{record}: never two primaries");
            wait_until("the failover has ended", Duration::from_secs(60), || {
                !pgmend.cli(&["jobs"]).out.contains("running")
            });
            if bench.cluster.pid(writer).is_some_and(is_alive) {
                bench.cluster.stop(writer);
            }
            pgmend.wait_node(writer, "down");
            pgmend.cli(&["recover", &writer.to_string(), "--accept-loss"]).must();
            writer = other;
        }
        println!("after {record}: node {writer} writes");
        assert_eq!(bench.whole(&pgmend, &record), writer);
        assert!(pgmend.stop("-INT"));
        swept.push(record);
    }
    assert_swept(&swept, "Requested");
    // The last round was a failover that nobody disturbed.
    let pgmend = bench.config.start();
    pgmend.wait_node(writer, "down");
    pgmend.cli(&["recover", &writer.to_string(), "--accept-loss"]).must();
    bench.whole(&pgmend, "an undisturbed failover");
    assert!(pgmend.stop("-INT"));
    bench.close();
}

impl Bench {
    /// The daemon knows that the other node has everything that was acknowledged.
    fn wait_learnt(&self, writer: usize, pgmend: &Pgmend) {
        let name = format!("pgmend_{}", 1 - writer);
        let synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        wait_until("who is synchronous is learnt", Duration::from_secs(30), || {
            let kept = upkeep(&self.config);
            let is_set = kept["sync_names"]["set"].as_str().is_some_and(|set| set.contains(&name));
            let all_eligible = kept["ineligible"].as_array().is_some_and(Vec::is_empty);
            let both_up = pgmend.node_status(0) == "up" && pgmend.node_status(1) == "up";
            is_set && all_eligible && both_up && self.cluster.sql(writer, "postgres", synchronous) == "1"
        });
    }
}

#[test]
fn of_a_failover_whose_primary_stays_lost() {
    failovers(false);
}

#[test]
fn of_a_failover_whose_primary_comes_back() {
    failovers(true);
}
