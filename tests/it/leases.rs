//! When a server connection is used again: only clean, not too long, by whichever worker has a client for it.

use crate::servers::python;
use crate::support::load::pgbench;
use crate::support::{Cluster, Config};

fn straight(cluster: &Cluster) -> String {
    format!("host={} port={} user=postgres", cluster.folder().display(), cluster.nodes[0].port)
}

/// A client by hand: what it sends can end anywhere.
const BY_HAND: &str = r#"
class Client:
    def __init__(self):
        door = dict(part.split("=") for part in C.split())
        self.s = socket.create_connection(("127.0.0.1", int(door["port"])))
        body = b"\0\3\0\0user\0postgres\0database\0postgres\0\0"
        self.s.sendall(struct.pack("!I", len(body) + 4) + body)
        self.until(b"Z")
    def exactly(self, n):
        data = b""
        while len(data) < n:
            more = self.s.recv(n - len(data))
            assert more, "closed"
            data += more
        return data
    def until(self, tag):
        while True:
            head = self.exactly(5)
            self.exactly(struct.unpack("!I", head[1:])[0] - 4)
            assert head[:1] != b"E" or tag == b"E", "an error came"
            if head[:1] == tag:
                return self
    def send(self, *frames):
        self.s.sendall(b"".join(t + struct.pack("!I", len(b) + 4) + b for t, b in frames))
        return self
    def bytes(self, data):
        self.s.sendall(data)
        return self
    def query(self, sql):
        return self.send((b"Q", sql.encode() + b"\0"))
    def leave(self, how):
        if how == "reset":
            self.s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.s.close()
def batch(sql):
    return [(b"P", b"\0" + sql.encode() + b"\0\0\0"), (b"B", b"\0\0\0\0\0\0\0\0"), (b"E", b"\0\0\0\0\0")]
"#;

fn clients_may_vanish_anywhere(mode: &str) {
    let cluster = Cluster::single();
    cluster.sql(0, "postgres", "CREATE TABLE t (x int)");
    let mut config = Config::of(&cluster);
    config.set("pool", &format!("mode = \"{mode}\"")).set("pool", "default_pool_size = 1");
    config.set("pool", "query_wait_timeout = \"10s\"");
    let pgmend = config.start();
    let script = r#"
insert = "INSERT INTO t VALUES (1)"
ways = {
    "in a transaction": lambda c: c.query("BEGIN; " + insert).until(b"Z"),
    "in a failed transaction": lambda c: c.query("BEGIN; " + insert).until(b"Z").query("SELECT 1/0").until(b"E").until(b"Z"),
    "in COPY IN": lambda c: c.query("COPY t FROM STDIN").until(b"G").send((b"d", b"1\n")),
    "inside a CopyData": lambda c: c.query("COPY t FROM STDIN").until(b"G").bytes(b"d\0\0\1\0" + b"1\n"),
    "in COPY OUT": lambda c: c.query("COPY (SELECT generate_series(1, 20000000)) TO STDOUT").until(b"d"),
    "in a huge result": lambda c: c.query("SELECT repeat('x', 1000) FROM generate_series(1, 20000000)").until(b"D"),
    "in a batch without Sync": lambda c: c.send(*batch(insert), (b"H", b"")).until(b"C"),
    "in a batch without anything": lambda c: c.send(*batch(insert)),
    "after an error without Sync": lambda c: c.send(*batch("SELECT 1/0"), (b"H", b"")).until(b"E"),
    "inside a Query": lambda c: c.bytes(b"Q\0\0\1\0INSERT INTO"),
}
for name, way in ways.items():
    for how in ("reset", "end"):
        way(Client()).leave(how)
        other = connect()
        assert other.execute("SELECT count(*) FROM t").fetchone()[0] == 0, name
        assert other.execute("SELECT pg_catalog.now() = pg_catalog.statement_timestamp()").fetchone()[0], name
        other.close()
        until("nothing is left of it: " + name, lambda: count("true") <= 1 and count("state LIKE 'idle in %'") == 0)
"#;
    python(&pgmend, &straight(&cluster), &format!("{BY_HAND}{script}"));
}

#[test]
fn clients_may_vanish_anywhere_in_transaction_pooling() {
    clients_may_vanish_anywhere("transaction");
}

#[test]
fn clients_may_vanish_anywhere_in_session_pooling() {
    clients_may_vanish_anywhere("session");
}

#[test]
fn the_reset_query_runs_between_sessions_and_its_failure_costs_the_connection() {
    let cluster = Cluster::single();
    cluster.sql(0, "postgres", "CREATE TABLE resets (pid int)");
    let mut config = Config::of(&cluster);
    config.set("pool", "mode = \"session\"").set("pool", "default_pool_size = 1");
    let pgmend =
        config.set("pool", "reset_query = \"INSERT INTO resets SELECT pg_backend_pid(); DISCARD TEMP\"").start();
    let script = r#"
def resets():
    return straight.execute("SELECT count(*) FROM resets").fetchone()[0]
def session():
    with connect() as c:
        return c.execute("SELECT pg_backend_pid()").fetchone()[0]
first = session()
until("the reset has run", lambda: resets() > 0)
assert session() == first, "a clean connection serves again"
straight.execute("DROP TABLE resets")
session()
until("a connection that could not be reset is closed", lambda: count(f"pid = {first}") == 0)
assert session() != first
"#;
    python(&pgmend, &straight(&cluster), script);
}

#[test]
fn idle_server_connections_are_closed_in_time() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "server_idle_timeout = \"2s\"").set("pool", "server_lifetime = \"0s\"");
    let pgmend = config.start();
    let script = r#"
clients = [connect() for _ in range(4)]
for c in clients: c.execute("BEGIN")
for c in clients: c.execute("COMMIT")
begun = time.time()
assert count("true") == 4, count("true")
# One client keeps one connection busy, which is not idle.
def busy():
    clients[0].execute("SELECT 1")
    return count("true") == 1
until("the idle ones are closed", busy, 10)
assert 1 < time.time() - begun < 6, time.time() - begun
until("the last one too", lambda: count("true") == 0, 10)
assert clients[1].execute("SELECT 1").fetchone()[0] == 1
"#;
    python(&pgmend, &straight(&cluster), script);
}

#[test]
fn a_life_ends_when_the_connection_comes_back_and_not_before() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "server_idle_timeout = \"0s\"").set("pool", "server_lifetime = \"2s\"");
    let pgmend = config.set("pool", "default_pool_size = 2").start();
    let script = r#"
pid = lambda c: c.execute("SELECT pg_backend_pid()").fetchone()[0]
a, b = connect(), connect()
a.execute("BEGIN")
held = pid(a)
# A connection that is always in use is replaced too, between two transactions.
served = set()
def hurry():
    for _ in range(200):
        served.add(pid(b))
    return len(served) >= 3
until("the busy one is replaced in its turn", hurry, 20)
assert held not in served
assert pid(a) == held, "a transaction goes on beyond the life of its connection"
a.execute("COMMIT")
until("it ends when it comes back", lambda: count(f"pid = {held}") == 0)
assert pid(a) != held
until("an idle one ends by itself", lambda: count("true") == 0, 10)
"#;
    python(&pgmend, &straight(&cluster), script);
}

#[test]
fn a_connection_that_the_server_closed_is_not_handed_out() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    let pgmend = config.set("listen", "workers = 3").start();
    let script = r#"
clients = [connect() for _ in range(6)]
for _ in range(10):
    for c in clients: c.execute("BEGIN")
    for c in clients: c.execute("COMMIT")
    end_all("postgres")
    for c in clients: c.execute("SELECT 2")
"#;
    python(&pgmend, &straight(&cluster), script);
}

#[test]
fn one_connection_serves_the_clients_of_three_workers_in_turn() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("listen", "workers = 3").set("pool", "default_pool_size = 1");
    let pgmend = config.start();
    // Clients go to the least loaded worker: one each, then two each. Each asks again as soon as it has its answer, in the
    // order of the answers, so that all are waiting all the time. The server counts the turns: how fast anybody is matters not.
    // A turn takes longer than the grain of the order (a millisecond, within which who is nearer goes first).
    let script = r#"
import select
straight.execute("CREATE SEQUENCE turns")
def answer(c):
    while True:
        head = c.exactly(5)
        body = c.exactly(struct.unpack("!I", head[1:])[0] - 4)
        if head[:1] == b"D": number = int(body[6:])
        if head[:1] == b"Z": return number
for n in (3, 6):
    clients, turns = [Client() for _ in range(n)], {}
    ask = lambda i: clients[i].query("SELECT nextval('turns') FROM pg_sleep(0.002)")
    for i in range(n): ask(i)
    while len(turns) < 200 * n:
        ready = set(select.select([c.s for c in clients], [], [], 20)[0])
        assert ready, "nobody is served"
        came = sorted((answer(c), i) for i, c in enumerate(clients) if c.s in ready)
        turns.update(came)
        for _, i in came: ask(i)
    for i, c in enumerate(clients): turns[answer(c)] = i
    order = [turns[number] for number in sorted(turns)]
    first = min(turns)
    assert sorted(turns) == list(range(first, first + len(turns))), "a turn was lost or came twice"
    # In turn: each client comes again within 2n services. One that asks at the same moment as another may be passed by him; without
    # an order of waiting every seventh turn would be late.
    last, late = {}, 0
    for at, i in enumerate(order):
        late += at - last.get(i, at) > 2 * n
        last[i] = at
    assert late <= len(order) / 20, (late, len(order), order[:60])
    assert count("true") == 1, count("true")
    [c.leave("end") for c in clients]
"#;
    python(&pgmend, &straight(&cluster), &format!("{BY_HAND}{script}"));
    assert!(pgmend.moved() >= 1000, "{} moves", pgmend.moved());
}

#[test]
fn sessions_of_three_workers_share_one_connection() {
    let cluster = Cluster::single();
    cluster.pgbench_tables("postgres", 1);
    let mut config = Config::of(&cluster);
    config.set("listen", "workers = 3").set("pool", "default_pool_size = 1").set("pool", "mode = \"session\"");
    let pgmend = config.start();
    // Each transaction is a session of its own, with a reset behind it. In one thread: a login that waited for the only
    // connection while another of pgbench's clients holds it would never end.
    assert_eq!(pgbench(&pgmend.door(), &["-S", "-C", "-c", "6", "-t", "30"]), 180);
    assert!(pgmend.moved() >= 20, "{} moves", pgmend.moved());
}

#[test]
fn connections_stay_with_their_worker_while_there_are_enough() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    let pgmend = config.set("listen", "workers = 3").start();
    let script = r#"
clients = [connect() for _ in range(6)]
for _ in range(200):
    for c in clients: c.execute("SELECT 1")
"#;
    python(&pgmend, &straight(&cluster), script);
    assert_eq!(pgmend.moved(), 0);
}
