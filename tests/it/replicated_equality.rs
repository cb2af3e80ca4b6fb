//! What could leave nodes different without a word, or throw one out for nothing: each with the story that shows it does not.

use crate::support::cluster::psql;
use crate::support::pipeline::message;
use crate::support::process::wait_until;
use crate::support::raw::Message;
use crate::support::{Cluster, Config, Pgmend, Ran, Raw};
use std::time::Duration;

fn config(cluster: &Cluster) -> Config {
    let mut config = Config::of(cluster);
    config.set("cluster", "backend_clustering_mode = \"native_replication\"");
    config.set("recovery", "recovery_user = \"postgres\"");
    config
}

fn ask(pgmend: &Pgmend, sql: &str) -> Ran {
    psql("127.0.0.1", pgmend.door().port, "postgres", "postgres", sql)
}

fn statuses(pgmend: &Pgmend) -> [String; 2] {
    [0, 1].map(|id| pgmend.node_status(id))
}

/// A client that speaks the extended protocol message by message.
struct Client(Raw);

impl Client {
    fn of(pgmend: &Pgmend) -> Client {
        let mut raw = Raw::connect(pgmend.config.port);
        raw.start(0, &[("user", "postgres"), ("database", "postgres")]);
        raw.until_ready();
        Client(raw)
    }

    fn say(&mut self, messages: &[Vec<u8>]) -> Vec<Message> {
        self.0.send(&messages.concat());
        self.answers()
    }

    /// Up to ReadyForQuery, errors or not.
    fn answers(&mut self) -> Vec<Message> {
        let mut all = Vec::new();
        while all.last().is_none_or(|m: &Message| m.tag != b'Z') {
            all.push(self.0.message());
        }
        all
    }

    /// The types of the answers, one letter each; an error as its SQLSTATE.
    fn tags(&mut self, messages: &[Vec<u8>]) -> String {
        self.say(messages)
            .iter()
            .map(|m| if m.tag == b'E' { format!("({})", m.error().0) } else { char::from(m.tag).to_string() })
            .collect()
    }

    fn query(&mut self, sql: &str) -> String {
        self.tags(&[message(b'Q', &[sql.as_bytes(), b"\0"])])
    }
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"])
}

fn bind(portal: &str, name: &str) -> Vec<u8> {
    message(b'B', &[portal.as_bytes(), b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"])
}

fn execute(portal: &str, rows: u32) -> Vec<u8> {
    message(b'E', &[portal.as_bytes(), b"\0", &rows.to_be_bytes()])
}

fn close(name: &str) -> Vec<u8> {
    message(b'C', &[b"S", name.as_bytes(), b"\0"])
}

fn sync() -> Vec<u8> {
    message(b'S', &[])
}

/// As drivers do after a few uses: a statement is named, bound and carried out in one batch, and bound again in the next one.
#[test]
fn a_named_statement_is_the_same_in_the_next_batch() {
    let cluster = Cluster::equals(2);
    let pgmend = config(&cluster).start();
    ask(&pgmend, "CREATE TABLE t (x int)").must();
    let mut client = Client::of(&pgmend);
    for round in 0..3 {
        assert_eq!(client.query("BEGIN"), "CZ");
        assert_eq!(client.query("INSERT INTO t VALUES (1)"), "CZ");
        let batch = [bind("", "c"), execute("", 0), sync()];
        let first = [vec![parse("c", "COMMIT")], batch.to_vec()].concat();
        let tags = if round == 0 { client.tags(&first) } else { client.tags(&batch) };
        assert_eq!(tags, if round == 0 { "12CZ" } else { "2CZ" });
    }
    assert_eq!(cluster.sql(1, "postgres", "SELECT count(*) FROM t"), "3");
    // What the server reports at the end of a transaction the client hears, whatever has ended it.
    assert_eq!(client.query("BEGIN; SET LOCAL TimeZone = 'UTC'").replace('S', ""), "CCZ");
    let told = client.say(&[bind("p", "c"), execute("p", 0), execute("p", 0), sync()]);
    let zone = |m: &Message| m.tag == b'S' && m.body.starts_with(b"TimeZone\0");
    assert!(told.iter().any(zone), "{told:?}");
    // Closed and made anew under the same name, in one batch.
    assert_eq!(client.tags(&[parse("s", "SELECT 1"), sync()]), "1Z");
    assert_eq!(client.tags(&[close("s"), parse("s", "INSERT INTO t VALUES (2)"), sync()]), "31Z");
    assert_eq!(client.tags(&[bind("", "s"), execute("", 0), sync()]), "2CZ");
    assert_eq!(client.tags(&[bind("", "nobody"), execute("", 0), sync()]), "(26000)Z");
    cluster.must_be_equal("postgres");
}

/// What a text comes to is found out once for all clients; not by one whose transaction has failed and who cannot ask.
#[test]
fn a_text_that_was_sent_in_a_failed_transaction_is_read_anew() {
    let cluster = Cluster::equals(2);
    let pgmend = config(&cluster).start();
    ask(&pgmend, "CREATE TABLE t (id serial, x int, at timestamptz DEFAULT now())").must();
    let mut client = Client::of(&pgmend);
    assert_eq!(client.query("BEGIN"), "CZ");
    assert_eq!(client.query("SELECT 1/0"), "(22012)Z");
    assert_eq!(client.query("INSERT INTO t (x) VALUES (1)"), "(25P02)Z");
    assert_eq!(client.query("ROLLBACK"), "CZ");
    assert_eq!(client.query("INSERT INTO t (x) VALUES (1)"), "CZ");
    cluster.must_be_equal("postgres");
}

/// A prepared statement whose table changes behind it.
#[test]
fn a_default_that_comes_later_is_the_same_on_all_nodes() {
    let cluster = Cluster::equals(2);
    let pgmend = config(&cluster).start();
    ask(&pgmend, "CREATE TABLE t (x int)").must();
    let mut client = Client::of(&pgmend);
    assert_eq!(client.tags(&[parse("s", "INSERT INTO t VALUES (1)"), sync()]), "1Z");
    let use_it = [bind("", "s"), execute("", 0), sync()];
    assert_eq!(client.tags(&use_it), "2CZ");
    assert_eq!(client.query("ALTER TABLE t ADD COLUMN at timestamptz"), "CZ");
    assert_eq!(client.query("ALTER TABLE t ALTER COLUMN at SET DEFAULT now()"), "CZ");
    assert_eq!(client.tags(&use_it), "2CZ");
    // In the transaction that changes it, too.
    assert_eq!(client.query("BEGIN; ALTER TABLE t ADD COLUMN id serial"), "CNCZ");
    assert_eq!(client.tags(&use_it), "2CZ");
    assert_eq!(client.query("COMMIT"), "CZ");
    assert_eq!(cluster.sql(0, "postgres", "SELECT count(at) FROM t"), "2");
    cluster.must_be_equal("postgres");
}

/// Where the others cannot commit, the main node, which comes last, does not do it either, and nobody is thrown out.
#[test]
fn a_commit_that_the_others_refuse_is_none() {
    let cluster = Cluster::equals(2);
    let pgmend = config(&cluster).start();
    ask(&pgmend, "CREATE TABLE t (x int UNIQUE DEFERRABLE INITIALLY DEFERRED)").must();
    cluster.sql(1, "postgres", "INSERT INTO t VALUES (7)");
    let mut client = Client::of(&pgmend);
    assert_eq!(client.query("INSERT INTO t VALUES (7)"), "C(23505)Z");
    assert_eq!(client.query("BEGIN; INSERT INTO t VALUES (7)"), "CCZ");
    assert_eq!(client.query("COMMIT"), "(23505)Z");
    assert_eq!(cluster.sql(0, "postgres", "SELECT count(*) FROM t"), "0");
    assert_eq!(client.query("INSERT INTO t VALUES (8)"), "CZ");
    assert_eq!(statuses(&pgmend), ["up", "up"]);
}

/// CREATE DATABASE and its like cannot be undone: a node that is busy with something else is no reason to lose one.
#[test]
fn what_cannot_be_undone_is_done_on_all_nodes_or_on_none() {
    let cluster = Cluster::equals(2);
    let mut config = config(&cluster);
    config.set("cluster", "replication_lock_timeout = \"1s\"");
    // Reads go to the node that is not the main one.
    config.node(0, "weight = 0");
    let pgmend = config.start();
    ask(&pgmend, "CREATE DATABASE busy").must();
    let mut visitor = Raw::connect(cluster.nodes[0].port);
    visitor.start(0, &[("user", "postgres"), ("database", "busy")]);
    visitor.until_ready();
    let refused = ask(&pgmend, "CREATE DATABASE copy TEMPLATE busy");
    assert!(refused.err.contains("being accessed by other users"), "{}", refused.err);
    assert_eq!(cluster.sql(1, "postgres", "SELECT count(*) FROM pg_database WHERE datname = 'copy'"), "0");
    let refused = ask(&pgmend, "SELECT 1; CREATE DATABASE copy");
    assert!(refused.err.contains("cannot run inside a transaction block"), "{}", refused.err);
    // Another node takes longer than it may take for something that can be undone.
    ask(&pgmend, "CREATE TABLE t (x int)").must();
    std::thread::scope(|scope| {
        scope.spawn(|| cluster.sql(1, "postgres", "BEGIN; INSERT INTO t VALUES (1); SELECT pg_sleep(4); ROLLBACK"));
        let sleeps =
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(4)%' AND wait_event = 'PgSleep'";
        wait_until("the row is there", Duration::from_secs(10), || cluster.sql(1, "postgres", sleeps) == "1");
        ask(&pgmend, "CREATE INDEX CONCURRENTLY i ON t (x)").must();
    });
    for id in 0..2 {
        assert_eq!(
            cluster.sql(id, "postgres", "SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass"),
            "t"
        );
    }
    assert_eq!(statuses(&pgmend), ["up", "up"]);
}

/// CALL and DO may commit in the middle; those that do not are undone like everything else.
#[test]
fn a_block_of_code_is_undone_where_it_can_be() {
    let cluster = Cluster::equals(2);
    let mut config = config(&cluster);
    config.set("cluster", "replication_lock_timeout = \"1s\"");
    let pgmend = config.start();
    ask(&pgmend, "CREATE TABLE t (x int); CREATE TABLE other (x int)").must();
    let body = "BEGIN INSERT INTO t VALUES (1); COMMIT; INSERT INTO t VALUES (2); END";
    ask(&pgmend, &format!("CREATE PROCEDURE twice() LANGUAGE plpgsql AS '{body}'")).must();
    ask(&pgmend, "CALL twice()").must();
    assert_eq!(ask(&pgmend, "SELECT count(*) FROM t").must().out.trim(), "2");
    let mut client = Client::of(&pgmend);
    assert_eq!(
        client.tags(&[parse("", "CALL twice()"), bind("", ""), execute("", 0), sync()]).trim_matches('N'),
        "12CZ"
    );
    assert_eq!(
        client.tags(&[parse("n", "CALL twice()"), bind("", "n"), execute("", 0), sync()]).trim_matches('N'),
        "12CZ"
    );
    cluster.must_be_equal("postgres");
    // A lock that somebody holds on the main node.
    std::thread::scope(|scope| {
        scope.spawn(|| cluster.sql(0, "postgres", "BEGIN; LOCK other; SELECT pg_sleep(3)"));
        let sleeps =
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(3)%' AND wait_event = 'PgSleep'";
        wait_until("the lock is held", Duration::from_secs(10), || cluster.sql(0, "postgres", sleeps) == "1");
        let code = "SET lock_timeout = '200ms'; INSERT INTO t VALUES (3); LOCK other;";
        let refused = ask(
            &pgmend,
            &format!(
                "DO $$ BEGIN PERFORM set_config('lock_timeout', '200ms', true); \
            INSERT INTO t VALUES (3); LOCK other; END $$ /* {} */",
                code.len()
            ),
        );
        assert!(refused.err.contains("lock timeout"), "{}", refused.err);
    });
    assert_eq!(statuses(&pgmend), ["up", "up"]);
    cluster.must_be_equal("postgres");
}

/// Numbers are not given back: what took some on one node only is set right before anybody else takes one.
#[test]
fn sequences_are_alike_whatever_was_undone() {
    let cluster = Cluster::equals(2);
    let pgmend = config(&cluster).start();
    ask(&pgmend, "CREATE TABLE t (id serial, x int)").must();
    ask(&pgmend, "CREATE TABLE shut (x int)").must();
    // The main node takes a number and then fails by what has nothing to do with the data.
    let slow = "INSERT INTO t (x) SELECT 1 FROM pg_sleep(2)";
    let refused =
        ask(&pgmend, &format!("BEGIN; SET LOCAL statement_timeout = '300ms'; INSERT INTO t (x) VALUES (1); {slow}"));
    assert!(refused.err.contains("statement timeout"), "{}", refused.err);
    let refused = ask(&pgmend, "INSERT INTO t (x) SELECT pg_sleep(g)::text::int FROM generate_series(0, 0) g");
    assert!(!refused.ok);
    ask(&pgmend, "INSERT INTO t (x) VALUES (2)").must();
    cluster.must_be_equal("postgres");
    // Somebody has taken numbers past pgmend: COPY finds out, too.
    cluster.sql(1, "postgres", "SELECT nextval('t_id_seq') FROM generate_series(1, 5)");
    let mut client = Client::of(&pgmend);
    let copy = |client: &mut Client| {
        client.0.send(&message(b'Q', &[b"COPY t (x) FROM STDIN\0"]));
        client.0.send(&[message(b'd', &[b"7\n8\n"]), message(b'c', &[])].concat());
        client.answers().iter().map(|m| char::from(m.tag)).collect::<String>()
    };
    assert_eq!(copy(&mut client), "GEZ");
    assert_eq!(copy(&mut client), "GCZ");
    cluster.must_be_equal("postgres");
}

/// Rights that PostgreSQL does not ask for pgmend does not need either.
#[test]
fn who_may_only_insert_may_insert() {
    let cluster = Cluster::equals(2);
    let pgmend = config(&cluster).start();
    ask(&pgmend, "CREATE TABLE a (id serial, x int); CREATE TABLE b (id int GENERATED ALWAYS AS IDENTITY, x int)")
        .must();
    ask(&pgmend, "CREATE ROLE worker LOGIN; GRANT INSERT ON a, b TO worker; GRANT USAGE ON a_id_seq TO worker").must();
    for table in ["a", "b"] {
        let sql = format!("INSERT INTO {table} (x) VALUES (1)");
        psql("127.0.0.1", pgmend.door().port, "worker", "postgres", &sql).must();
    }
    cluster.must_be_equal("postgres");
}

/// Rows that lie in another order on another node, fetched in portions.
#[test]
fn a_portal_in_portions_is_no_disagreement() {
    let cluster = Cluster::equals(2);
    let pgmend = config(&cluster).start();
    ask(&pgmend, "CREATE TABLE t (id serial, x int)").must();
    for (node, order) in [(0, "ASC"), (1, "DESC")] {
        cluster.sql(
            node,
            "postgres",
            &format!("INSERT INTO t (id, x) SELECT g, g FROM generate_series(1, 9) g ORDER BY g {order}"),
        );
    }
    let mut client = Client::of(&pgmend);
    assert_eq!(client.query("BEGIN"), "CZ");
    let rows = client.tags(&[parse("", "SELECT * FROM t FOR UPDATE"), bind("p", ""), execute("p", 4), sync()]);
    assert_eq!(rows, "12DDDDsZ");
    assert_eq!(client.tags(&[execute("p", 0), sync()]), "DDDDDCZ");
    // An unnamed portal whose statement takes numbers, bound in one piece and carried out in the next.
    client.0.send(&[parse("", "INSERT INTO t (x) VALUES (0)"), bind("", ""), message(b'H', &[])].concat());
    assert_eq!([client.0.message().tag, client.0.message().tag], *b"12");
    assert_eq!(client.tags(&[execute("", 0), sync()]), "CZ");
    assert_eq!(client.query("COMMIT"), "CZ");
    cluster.must_be_equal("postgres");
}

/// What the client has not opened it cannot close, and PostgreSQL says so.
#[test]
fn a_transaction_of_pgmends_own_is_none_to_the_client() {
    let cluster = Cluster::equals(2);
    let pgmend = config(&cluster).start();
    ask(&pgmend, "CREATE TABLE t (x int)").must();
    let mut client = Client::of(&pgmend);
    assert_eq!(client.query("INSERT INTO t VALUES (1); BEGIN; INSERT INTO t VALUES (2)"), "CCCZ");
    assert_eq!(client.query("COMMIT"), "CZ");
    assert_eq!(client.query("INSERT INTO t VALUES (3); COMMIT; SELECT 1"), "CNCTDCZ");
    assert_eq!(client.query("INSERT INTO t VALUES (4); ROLLBACK"), "CNCZ");
    assert_eq!(client.query("INSERT INTO t VALUES (4); SAVEPOINT a"), "C(25P01)Z");
    assert_eq!(client.query("SAVEPOINT a"), "(25P01)Z");
    assert_eq!(ask(&pgmend, "SELECT sum(x) FROM t").must().out.trim(), "6");
    // A setting is part of what it was sent with.
    let refused = client.query("SET work_mem = '5MB'; SELECT 1/0");
    assert!(refused.ends_with("(22012)Z"), "{refused}");
    assert_eq!(client.tags(&[parse("", "SET work_mem = '6MB'"), bind("", ""), execute("", 0), sync()]), "12CZ");
    let shown = client.say(&[message(b'Q', &[b"SHOW work_mem\0"])]);
    assert!(shown.iter().any(|m| m.tag == b'D' && m.body.ends_with(b"6MB")), "{shown:?}");
    // COPY data behind the Sync that came with the COPY.
    let begin = [parse("", "COPY t FROM STDIN"), bind("", ""), execute("", 0), sync()];
    let data = [message(b'd', &[b"9\n"]), message(b'c', &[]), sync()];
    assert_eq!(client.tags(&[begin.to_vec(), data.to_vec()].concat()), "12GCZ");
    assert_eq!(client.query("SELECT 'in step'"), "TDCZ");
    cluster.must_be_equal("postgres");
}

/// The last server leaves the configuration: clients work on, before and after the new process that knows two servers takes over.
#[test]
fn a_server_is_removed_and_clients_work_on() {
    let cluster = Cluster::equals(3);
    let mut config = config(&cluster);
    let pgmend = config.start();
    ask(&pgmend, "CREATE TABLE t (id serial, x int)").must();
    let mut client = Client::of(&pgmend);
    let mut works = || assert_eq!(client.query("INSERT INTO t (x) VALUES (1)"), "CZ");
    works();
    pgmend.cli(&["detach", "2"]).must();
    pgmend.wait_node(2, "down");
    works();
    config.forget_last_node();
    config.write();
    let told = pgmend.cli(&["reload"]).must().all();
    assert!(told.contains("node[2] (removed)"), "the reload tells what waits for a restart: {told}");
    works();
    cluster.stop(2);
    let next = config.take_over();
    works();
    ask(&next, "INSERT INTO t (x) VALUES (2)").must();
    assert_eq!(next.status().expect("it answers")["nodes"].as_array().map(Vec::len), Some(2));
    assert_eq!(statuses(&next), ["up", "up"]);
    assert_eq!(cluster.digest(0, "postgres"), cluster.digest(1, "postgres"));
    assert_eq!(cluster.sql(1, "postgres", "SELECT count(*) FROM t"), "5");
}

/// `\lo_import` and its kin let the server choose a number: pgmend chooses one for all.
#[test]
fn large_objects_have_the_same_number_on_all_nodes() {
    let cluster = Cluster::equals(2);
    let pgmend = config(&cluster).start();
    let file =
        crate::support::scratch::write_as_postgres(&pgmend.config.folder().join("picture"), "a large object", "644");
    for _ in 0..3 {
        let script = format!("\\lo_import {} comment", file.display());
        let path =
            crate::support::scratch::write_as_postgres(&pgmend.config.folder().join("import.sql"), &script, "644");
        let port = pgmend.door().port.to_string();
        let mut psql = crate::support::as_postgres(crate::support::bin("psql"));
        psql.args(["-XAt", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "postgres", "-p", &port, "-f"]).arg(&path);
        let told = crate::support::run(&mut psql).must().out;
        assert!(told.contains("lo_import"), "{told}");
    }
    let objects = "SELECT string_agg(loid || ':' || convert_from(data, 'utf8'), ',' ORDER BY loid) FROM pg_largeobject";
    let on_main = cluster.sql(0, "postgres", objects);
    assert_eq!(on_main.matches("a large object").count(), 3, "{on_main}");
    assert_eq!(cluster.sql(1, "postgres", objects), on_main);
    let comments =
        "SELECT string_agg(objoid::text, ',' ORDER BY objoid) FROM pg_description WHERE description = 'comment'";
    assert_eq!(cluster.sql(0, "postgres", comments), cluster.sql(1, "postgres", comments));
    // In SQL, too: alone, several at once, prepared and used again, and in a pipeline.
    ask(&pgmend, "CREATE TABLE picture (id serial, data oid)").must();
    ask(&pgmend, "SELECT lo_creat(-1)").must();
    ask(&pgmend, "INSERT INTO picture (data) VALUES (lo_create(0)), (lo_from_bytea(0, 'abc'))").must();
    let mut client = Client::of(&pgmend);
    let insert = parse("s", "INSERT INTO picture (data) VALUES (lo_creat(-1))");
    let twice = [bind("", "s"), execute("", 0), bind("", "s"), execute("", 0), sync()];
    assert_eq!(client.tags(&[vec![insert], twice.to_vec()].concat()), "12C2CZ");
    assert_eq!(client.tags(&twice), "2C2CZ");
    assert_eq!(client.query("PREPARE p AS INSERT INTO picture (data) VALUES (lo_create(0))"), "CZ");
    assert_eq!(client.query("EXECUTE p; EXECUTE p"), "CCZ");
    assert_eq!(cluster.sql(0, "postgres", "SELECT count(*), count(DISTINCT data) FROM picture"), "8|8");
    let refused = ask(&pgmend, "SELECT lo_creat(-1) FROM picture");
    assert!(refused.err.contains("number of the large object"), "{}", refused.err);
    cluster.must_be_equal("postgres");
    let numbers = "SELECT string_agg(oid::text, ',' ORDER BY oid) FROM pg_largeobject_metadata";
    assert_eq!(cluster.sql(0, "postgres", numbers), cluster.sql(1, "postgres", numbers));
    assert_eq!(statuses(&pgmend), ["up", "up"]);
}

/// Moments that come as a parameter, and defaults that a foreign key falls back to.
#[test]
fn moments_that_no_text_shows_are_noticed() {
    let cluster = Cluster::equals(2);
    let mut config = config(&cluster);
    config.set("cluster", "unequal_functions = \"refuse\"");
    let pgmend = config.start();
    ask(&pgmend, "CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE t (x int, at timestamptz, said text)").must();
    ask(&pgmend, "CREATE TABLE c (id int DEFAULT extract(epoch FROM now()) REFERENCES p ON DELETE SET DEFAULT)").must();
    let mut client = Client::of(&pgmend);
    let insert = |value: &str| {
        let length = u32::try_from(value.len()).expect("short").to_be_bytes();
        let bind = message(b'B', &[b"\0\0\0\0\0\x01", &length, value.as_bytes(), b"\0\0"]);
        [parse("", "INSERT INTO t (at) VALUES ($1)"), bind, execute("", 0), sync()]
    };
    assert_eq!(client.tags(&insert("tomorrow")), "(0A000)Z");
    assert_eq!(client.tags(&insert("2026-11-21")), "12CZ");
    assert_eq!(client.query("DELETE FROM p"), "(0A000)Z");
    assert_eq!(client.query("ALTER TABLE c ALTER COLUMN id SET DEFAULT 0"), "CZ");
    assert_eq!(client.query("DELETE FROM p"), "CZ");
    cluster.must_be_equal("postgres");
}

/// PREPARE and EXECUTE of SQL: what is executed takes the same moment and the same numbers everywhere, whatever has become of
/// its table since, and however it came.
#[test]
fn a_statement_prepared_by_sql_does_the_same_everywhere() {
    let cluster = Cluster::equals(2);
    let pgmend = config(&cluster).start();
    ask(&pgmend, "CREATE TABLE t (id serial, x int, at timestamptz DEFAULT now(), said text)").must();
    let mut client = Client::of(&pgmend);
    assert_eq!(client.query("PREPARE p (int) AS INSERT INTO t (x) VALUES ($1)"), "CZ");
    // A PREPARE that fails leaves the one that is there, and its needs.
    assert_eq!(client.query("PREPARE p AS SELECT 1"), "(42P05)Z");
    assert_eq!(client.query("EXECUTE p (1)"), "CZ");
    assert_eq!(client.tags(&[parse("", "EXECUTE p (2)"), bind("", ""), execute("", 0), sync()]), "12CZ");
    let prepare = parse("", "PREPARE q (timestamptz) AS INSERT INTO t (at) VALUES ($1)");
    assert_eq!(client.tags(&[prepare, bind("", ""), execute("", 0), sync()]), "12CZ");
    // The parameters have needs of their own.
    assert_eq!(client.query("EXECUTE q (now())"), "CZ");
    assert_eq!(client.query("EXECUTE q (clock_timestamp())"), "(0A000)Z");
    assert_eq!(client.query("EXECUTE p (nextval('t_id_seq')::int)"), "CZ");
    cluster.must_be_equal("postgres");
    // The text that the servers have does not know of this default.
    assert_eq!(client.query("ALTER TABLE t ADD COLUMN later timestamptz"), "CZ");
    assert_eq!(client.query("ALTER TABLE t ALTER COLUMN later SET DEFAULT now()"), "CZ");
    assert_eq!(client.query("EXECUTE p (3)"), "(0A000)Z");
    assert_eq!(client.query("DEALLOCATE p"), "CZ");
    assert_eq!(client.query("PREPARE p (int) AS INSERT INTO t (x) VALUES ($1)"), "CZ");
    assert_eq!(client.query("EXECUTE p (3)"), "CZ");
    assert_eq!(client.query("EXECUTE nobody"), "(26000)Z");
    assert_eq!(cluster.sql(0, "postgres", "SELECT count(*), count(later) FROM t"), "5|1");
    cluster.must_be_equal("postgres");
}

/// What commits in the middle takes its moment from the main node all the same, and leaves none to the next transaction.
#[test]
fn a_procedure_that_commits_is_given_the_same_moment_everywhere() {
    let cluster = Cluster::equals(2);
    let pgmend = config(&cluster).start();
    ask(&pgmend, "CREATE TABLE t (at timestamptz, step int)").must();
    let body = "BEGIN INSERT INTO t VALUES (at, 1); COMMIT; INSERT INTO t VALUES (at, 2); END";
    ask(&pgmend, &format!("CREATE PROCEDURE twice(at timestamptz) LANGUAGE plpgsql AS '{body}'")).must();
    let mut client = Client::of(&pgmend);
    let call = |client: &mut Client| client.query("CALL twice(now())").replace('N', "");
    assert_eq!(call(&mut client), "CZ");
    let batch = [parse("", "CALL twice(now())"), bind("", ""), execute("", 0), sync()];
    assert_eq!(client.tags(&batch).replace('N', ""), "12CZ");
    assert_eq!(client.query("INSERT INTO t VALUES (now(), 3)"), "CZ");
    assert_eq!(call(&mut client), "CZ");
    cluster.must_be_equal("postgres");
    assert_eq!(cluster.sql(1, "postgres", "SELECT count(*), count(DISTINCT at) FROM t"), "7|4");
}

/// A COMMIT in a pipeline that has no transaction block commits what came before, unless it fails itself.
#[test]
fn a_commit_that_fails_in_a_pipeline_keeps_nothing() {
    let cluster = Cluster::equals(2);
    let pgmend = config(&cluster).start();
    ask(&pgmend, "CREATE TABLE t (x int)").must();
    let mut client = Client::of(&pgmend);
    let insert = [parse("", "INSERT INTO t VALUES (1)"), bind("", ""), execute("", 0)].concat();
    let too_much = message(b'B', &[b"\0c\0\0\0\0\x01\0\0\0\x017\0\0"]);
    let bad = [insert.clone(), parse("c", "COMMIT"), too_much, execute("", 0), sync()];
    assert_eq!(client.tags(&bad), "12C1(08P01)Z");
    assert_eq!(cluster.sql(0, "postgres", "SELECT count(*) FROM t"), "0");
    let good = [insert.clone(), bind("", "c"), execute("", 0), insert, bind("", "nobody"), sync()];
    assert_eq!(client.tags(&good), "12C2NC12C(26000)Z");
    assert_eq!(cluster.sql(0, "postgres", "SELECT count(*) FROM t"), "1");
    cluster.must_be_equal("postgres");
    assert_eq!(statuses(&pgmend), ["up", "up"]);
}

/// What one statement of a text, or of a pipeline, defines counts for those behind it, and so does the end of a failed
/// transaction, in which nothing could be asked.
#[test]
fn what_is_defined_counts_for_what_follows_at_once() {
    let cluster = Cluster::equals(2);
    let pgmend = config(&cluster).start();
    let mut client = Client::of(&pgmend);
    let quiet = |tags: String| tags.replace('N', "");
    let defined = "ALTER TABLE t ADD COLUMN at timestamptz; ALTER TABLE t ALTER COLUMN at SET DEFAULT now()";
    let insert = "INSERT INTO t (x) VALUES (1)";
    assert_eq!(client.query(&format!("CREATE TABLE t (x int); {defined}; {insert}; {insert}")), "CCCCCZ");
    let alone = |sql: &str| [parse("", sql), bind("", ""), execute("", 0)].concat();
    let add = "ALTER TABLE t ADD COLUMN id serial";
    let batch = [alone(add), alone(insert), alone(insert), sync()];
    assert_eq!(quiet(client.tags(&batch)), "12C12C12CZ");
    for end in ["COMMIT", "ROLLBACK"] {
        assert_eq!(client.query("BEGIN; SELECT 1/0"), "C(22012)Z");
        assert_eq!(client.tags(&[alone(end), alone(insert), sync()]), "12C12CZ");
        assert_eq!(client.query("BEGIN; SELECT 1/0"), "C(22012)Z");
        assert_eq!(client.query(&format!("{end}; {insert}; {insert}")), "CCCZ");
    }
    assert_eq!(cluster.sql(0, "postgres", "SELECT count(*), count(at), count(DISTINCT id) FROM t"), "10|10|10");
    cluster.must_be_equal("postgres");
}

/// What brings a failed transaction back to life on one node only leaves it failed on all of them.
#[test]
fn a_transaction_that_has_failed_on_one_node_is_committed_on_none() {
    let cluster = Cluster::equals(2);
    let pgmend = config(&cluster).start();
    ask(&pgmend, "CREATE TABLE t (x int)").must();
    let mut client = Client::of(&pgmend);
    assert_eq!(client.query("BEGIN; INSERT INTO t VALUES (1)"), "CCZ");
    assert_eq!(client.tags(&[parse("back", "ROLLBACK TO a"), bind("p", "back"), sync()]), "12Z");
    assert_eq!(client.query("SAVEPOINT a; SELECT 1/0"), "C(22012)Z");
    // In a failed transaction the main node answers for all; the other one still has the portal, and stays failed.
    assert_eq!(client.tags(&[message(b'C', &[b"Pp\0"]), sync()]), "3Z");
    assert_eq!(client.tags(&[bind("p", "back"), execute("p", 0), sync()]), "(42P03)Z");
    assert_eq!(client.query("COMMIT"), "CZ");
    assert_eq!(cluster.sql(0, "postgres", "SELECT count(*) FROM t"), "0");
    cluster.must_be_equal("postgres");
    assert_eq!(statuses(&pgmend), ["up", "up"]);
}

/// The portal of a COMMIT is there on all nodes or the COMMIT fails on all of them, whichever node has had other portals.
#[test]
fn a_commit_is_carried_out_where_all_nodes_have_its_portal() {
    for reader in 0..2 {
        let cluster = Cluster::equals(2);
        let mut config = config(&cluster);
        config.node(1 - reader, "weight = 0");
        let pgmend = config.start();
        ask(&pgmend, "CREATE TABLE t (x int)").must();
        let mut client = Client::of(&pgmend);
        assert_eq!(client.tags(&[parse("c", "COMMIT"), parse("s", "SELECT 1"), sync()]), "11Z");
        let begin = "BEGIN; INSERT INTO t VALUES (1)";
        let close = |portal: &str| message(b'C', &[b"P", portal.as_bytes(), b"\0"]);
        // Taken by a portal of the reader's.
        assert_eq!(client.query(begin), "CCZ");
        assert_eq!(
            client.tags(&[bind("p", "s"), execute("p", 0), bind("p", "c"), execute("p", 0), sync()]),
            "2DC(42P03)Z"
        );
        assert_eq!(client.query("COMMIT"), "CZ");
        // A simple query has taken the unnamed one away where it was carried out.
        assert_eq!(client.query(begin), "CCZ");
        assert_eq!(client.tags(&[bind("", "c"), sync()]), "2Z");
        assert_eq!(client.query("SELECT 1"), "TDCZ");
        assert_eq!(client.tags(&[execute("", 0), sync()]), "(34000)Z");
        assert_eq!(client.query("COMMIT"), "CZ");
        // Closed and carried out, or made anew.
        for portal in ["", "p"] {
            assert_eq!(client.query(begin), "CCZ");
            assert_eq!(client.tags(&[bind(portal, "c"), sync()]), "2Z");
            assert_eq!(client.tags(&[close(portal), sync()]), "3Z");
            assert_eq!(client.tags(&[execute(portal, 0), sync()]), "(34000)Z");
            assert_eq!(client.query("COMMIT"), "CZ");
        }
        assert_eq!(cluster.sql(0, "postgres", "SELECT count(*) FROM t"), "0");
        assert_eq!(client.query(begin), "CCZ");
        let again = [bind("p", "c"), close("p"), sync()];
        assert_eq!(client.tags(&again), "23Z");
        assert_eq!(client.tags(&[bind("p", "c"), sync()]), "2Z");
        assert_eq!(client.tags(&[close("p"), bind("p", "c"), execute("p", 0), sync()]), "32CZ");
        assert_eq!(cluster.sql(0, "postgres", "SELECT count(*) FROM t"), "1");
        cluster.must_be_equal("postgres");
        assert_eq!(statuses(&pgmend), ["up", "up"]);
    }
}
