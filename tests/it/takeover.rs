//! A new process takes over from a running one: no connection is refused, no client is cut, cancels find their way.

use crate::support::process::{is_alive, pause, signal, wait_until};
use crate::support::{Cluster, Config, Load};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(15);

#[test]
fn a_daemon_is_replaced_twice_under_load_without_an_error() {
    let cluster = Cluster::single();
    cluster.pgbench_tables("postgres", 4);
    let mut config = Config::of(&cluster);
    config.pcp().set("listen", "workers = 2");
    let first = config.start();
    let mut unix = first.door();
    unix.host = cluster.folder().display().to_string();
    let stays = Load::start(&first.door(), cluster.folder(), 8);
    let comes = Load::start_with(&first.door(), cluster.folder(), 4, &["-S", "-C"]);
    let comes_by_file = Load::start_with(&unix, cluster.folder(), 2, &["-S", "-C"]);
    let folder = cluster.folder().to_owned();
    let (stop, timed) = (folder.join("stop"), folder.join("timed"));
    std::thread::scope(|scope| {
        let script = format!(
            "import os\nlongest = 0\nwhile not os.path.exists('{}'):\n    began = time.monotonic()\n    c = connect()\n    \
             c.execute('SELECT 1')\n    c.close()\n    longest = max(longest, time.monotonic() - began)\n    \
             open('{}', 'w').write(str(round(longest * 1000)))\n",
            stop.display(),
            timed.display()
        );
        let prober = &first;
        let probing = scope.spawn(move || prober.psycopg("", &script));
        let second = config.take_over();
        assert!(is_alive(first.pid()), "the first one keeps its clients");
        stays.goes_on();
        let third = config.take_over();
        stays.goes_on();
        comes.goes_on();
        comes_by_file.goes_on();
        assert!(third.pcp("pcp_node_count", &[]).out.contains('1'), "PCP has gone along");
        println!("longest transaction of who stays {:?}, of who comes {:?}", stays.longest(), comes.longest());
        println!("longest login with a statement {} ms", std::fs::read_to_string(&timed).expect("it was written"));
        third.cli(&["pause"]).must();
        let servers = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'";
        assert_eq!(cluster.sql(0, "postgres", servers), "0", "a pause reaches the processes before too");
        third.cli(&["resume"]).must();
        comes.goes_on();
        stays.goes_on();
        stays.finish();
        wait_until("the first one ends with its last client", SOON, || !is_alive(first.pid()));
        wait_until("and so does the second", SOON, || !is_alive(second.pid()));
        comes.goes_on();
        comes.finish();
        comes_by_file.finish();
        std::fs::write(&stop, "").expect("the folder can be written");
        probing.join().expect("the probing client had no error");
        third.sql("SELECT 1").must();
        assert!(config.spawn().wait_end().write().exists(), "the lock has gone along: a further daemon is refused");
        third.sql("SELECT 1").must();
        assert!(third.stop("-TERM"));
    });
}

#[test]
fn cancels_reach_the_process_that_has_the_client() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("listen", "workers = 2");
    let first = config.start();
    let at = cluster.folder().to_owned();
    std::thread::scope(|scope| {
        let (prober, folder) = (&first, at.display());
        let script = format!(
            r#"
import os
running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
looker = connect()
def sleeps(c):
    ended = []
    def run():
        try: c.execute("SELECT pg_sleep(60)")
        except psycopg.Error as e: ended.append(e.sqlstate)
    t = threading.Thread(target=run)
    t.start()
    while looker.execute(running).fetchone()[0] == 0: assert t.is_alive(), ended
    return t, ended
def cancelled(c):
    t, ended = sleeps(c)
    c.cancel()
    t.join(20)
    assert ended == ["57014"], ended
old = connect()
cancelled(old)
open("{folder}/ready", "w")
while not os.path.exists("{folder}/go"): time.sleep(0.05)
# The first process has this client and the second takes the cancel.
cancelled(old)
new = connect()
cancelled(new)
open("{folder}/ready2", "w")
while not os.path.exists("{folder}/go2"): time.sleep(0.05)
for c in (old, new, connect()): cancelled(c)
"#
        );
        let client = scope.spawn(move || prober.psycopg("", &script));
        let wait_for = |name: &str| {
            while !at.join(name).exists() && !client.is_finished() {
                pause();
            }
        };
        wait_for("ready");
        let _second = config.take_over();
        std::fs::write(at.join("go"), "").expect("the folder can be written");
        wait_for("ready2");
        let _third = config.take_over();
        std::fs::write(at.join("go2"), "").expect("the folder can be written");
        client.join().expect("every cancel arrived");
    });
}

#[test]
fn a_takeover_that_fails_changes_nothing() {
    let cluster = Cluster::single();
    cluster.pgbench_tables("postgres", 1);
    let mut config = Config::of(&cluster);
    let first = config.start();
    let load = Load::start_with(&first.door(), cluster.folder(), 4, &["-S", "-C"]);
    // PCP is to listen where PostgreSQL does: known only once the sockets have been handed over.
    config.pcp().set("admin", &format!("pcp_port = {}", cluster.nodes[0].port));
    config.spawn_also(&["--takeover"]).wait_end();
    wait_until("the first one tells it", Duration::from_secs(20), || first.log().contains("takeover.failed"));
    load.goes_on();
    assert!(first.cli(&["status", "--json"]).must().out.contains(&format!("\"pid\": {},", first.pid())));
    load.finish();
    assert!(first.stop("-TERM"));
}

#[test]
fn a_takeover_without_anybody_is_a_start_and_a_bound_ends_who_stays() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("admin", "takeover_timeout = \"1s\"");
    let first = config.spawn_also(&["--takeover"]);
    first.wait_ready();
    first.psycopg("", "connect().execute('SELECT 1')");
    let mut idle = crate::support::Raw::connect(config.port);
    idle.start(0, &[("user", "postgres"), ("database", "postgres")]).until_ready();
    first.cli(&["pause", "other"]).must();
    first.cli(&["disable", "third"]).must();
    let second = config.take_over();
    let status = second.cli(&["status"]).must().out;
    assert!(status.contains("held: PAUSE of database other; disabled: third"), "orders go along: {status}");
    wait_until("the first one ends", SOON, || !is_alive(first.pid()));
    assert_eq!(idle.message().error().0, "57P01");
    second.sql("SELECT 1").must();
}

#[test]
fn a_smart_stop_waits_for_transactions_until_its_bound_or_a_second_signal() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    let script = "c = connect()\nc.execute('BEGIN')\nopen(sys.argv[1].split()[-1].split('=')[1], 'w')\n\
                  try:\n    while True: c.execute('SELECT pg_sleep(0.1)')\nexcept psycopg.Error as e: assert 'administrator' in str(e), e";
    for (round, (bound, again)) in [("0s", true), ("1s", false)].into_iter().enumerate() {
        config.set("admin", &format!("shutdown_timeout = \"{bound}\""));
        let pgmend = config.start();
        let ready = cluster.folder().join(format!("ready{round}"));
        std::thread::scope(|scope| {
            let client = scope.spawn(|| pgmend.psycopg(&format!("application_name={}", ready.display()), script));
            wait_until("the transaction is open", SOON, || ready.exists() || client.is_finished());
            let began = std::time::Instant::now();
            signal(pgmend.pid(), "-TERM");
            wait_until("the stop has begun", SOON, || pgmend.log().contains("daemon.stopping"));
            while began.elapsed() < Duration::from_millis(700) {
                assert!(is_alive(pgmend.pid()), "it waits for the transaction");
                pause();
            }
            if again {
                signal(pgmend.pid(), "-TERM");
            }
            wait_until("it ends", Duration::from_secs(5), || !is_alive(pgmend.pid()));
            client.join().expect("the client was told");
        });
        config.forget_log();
    }
}
