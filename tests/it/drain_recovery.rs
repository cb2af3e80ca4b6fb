//! The second stage of a real recovery, with every kind of session.

use crate::drain::run;
use crate::support::Load;
use crate::two_stages::{assert_joined, assert_open, main_alone};

#[test]
fn a_recovery_holds_who_can_be_held_and_cuts_the_others_by_their_limits() {
    for mode in ["session", "transaction"] {
        let (cluster, config) = main_alone("builtin", |_, config| {
            config.set("pool", &format!("mode = \"{mode}\"")).set("pool", "query_wait_timeout = \"2s\"");
            config.set("recovery", "client_idle_limit_in_recovery = 3");
            config.set("recovery", "recovery_idle_in_transaction_limit = \"2s\"");
        });
        let pgmend = config.start();
        pgmend.wait_node(1, "down");
        let load = Load::start(&pgmend.door(), cluster.folder(), 8);
        run(
            &cluster,
            &pgmend,
            r#"
idle, bound, inside = connect(), connect(), connect()
idle.execute("SELECT 1")
bound.execute("CREATE TEMP TABLE mine (a int)")
inside.execute("BEGIN"); inside.execute("INSERT INTO orders (what) VALUES ('inside')")
recovery = subprocess.Popen([BIN, "--socket", SOCKET, "recover", "1"], stdout=-1, stderr=-1, text=True)
until("clients are held", lambda: "second stage" in status(), 60)
began = time.time()
late = aside(lambda: one(idle, "INSERT INTO orders (what) VALUES ('late') RETURNING id"))
bound_ended = aside(lambda: says(bound, REACHED(3), 1, 8))
says(inside, ("SFATAL", "C57000"), 1, 7)
bound_ended.done()
new = connect()
fresh = aside(lambda: one(new, "SELECT count(*) FROM orders WHERE what = 'inside'"))
out, err = recovery.communicate(timeout=100)
assert recovery.returncode == 0, (out, err)
print("held for", time.time() - began)
late.done()
assert fresh.done() == 0
idle.execute("INSERT INTO orders (what) VALUES ('afterwards')")
"#,
        );
        load.goes_on();
        println!("{mode}: longest wait {:?}", load.longest());
        load.finish();
        assert_joined(&cluster, &pgmend);
        assert_open(&pgmend);
    }
}
