//! Rewritten statements on real servers: two that never hear of each other run the same texts and end with the same rows.

use crate::support::Cluster;
use pgmend::routing::{Catalog, Kind, Parsed, Plan, Policy, Verdict};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// Everything that a column can take its value from.
const SCHEMA: &str = "
    SET client_min_messages = warning;
    CREATE TABLE orders (id serial PRIMARY KEY, item text, placed timestamptz NOT NULL DEFAULT now(), day date DEFAULT CURRENT_DATE,
        at_utc timestamp DEFAULT timezone('utc', now()), old date DEFAULT ('now'::text)::date, year int DEFAULT date_part('year', LOCALTIMESTAMP),
        double int GENERATED ALWAYS AS (length(item) * 2) STORED);
    CREATE TABLE \"Odd name\" (\"Id\" bigint GENERATED ALWAYS AS IDENTITY, \"When\" timestamptz DEFAULT transaction_timestamp(), note text);
    CREATE DOMAIN moment AS timestamptz DEFAULT now();
    CREATE TABLE events (what text, at moment, t time DEFAULT LOCALTIME, tz timetz(3) DEFAULT CURRENT_TIME(3));
    CREATE TABLE parts (a int, at timestamptz DEFAULT now()) PARTITION BY LIST (a);
    CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
    CREATE TABLE parts_2 PARTITION OF parts FOR VALUES IN (2);
    CREATE TABLE plain (a int, b text, at timestamptz);
    CREATE TABLE chance (id uuid DEFAULT gen_random_uuid(), a int);
    CREATE TABLE audited (a int PRIMARY KEY);
    CREATE TABLE below (a int REFERENCES audited ON DELETE CASCADE, n int);
    CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN coalesce(NEW, OLD); END';
    CREATE FUNCTION fixed() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 7';
    CREATE FUNCTION dice() RETURNS int LANGUAGE sql AS 'SELECT (random() * 6)::int';
    CREATE TRIGGER down AFTER DELETE ON below FOR EACH ROW EXECUTE FUNCTION log();
    CREATE TRIGGER first BEFORE INSERT ON parts_2 FOR EACH ROW EXECUTE FUNCTION log();
    CREATE VIEW today AS SELECT item, now() AS seen FROM orders;
    CREATE VIEW writable AS SELECT id, item FROM orders;
    CREATE TABLE ruled (a int);
    CREATE RULE noted AS ON DELETE TO ruled DO ALSO INSERT INTO events (what) VALUES (random()::text);
    CREATE SEQUENCE numbers;
    INSERT INTO plain VALUES (1, 'a', '2020-01-01'), (2, 'b', '2020-01-02')";

/// Texts that can be made equal, in the order in which they run.
const EQUAL: &[&str] = &[
    "INSERT INTO orders (item) VALUES ('one'), ('two') RETURNING id, now()",
    "INSERT INTO orders VALUES (DEFAULT, 'three', DEFAULT, DEFAULT, '2001-01-01')",
    "INSERT INTO orders DEFAULT VALUES",
    "INSERT INTO orders AS o (item, day) SELECT b, 'tomorrow' FROM plain ORDER BY a ON CONFLICT (id) DO UPDATE SET placed = DEFAULT",
    "INSERT INTO orders (item) SELECT 'x' || g FROM generate_series(1, 3) g UNION ALL SELECT 'y' -- the end\n",
    "INSERT INTO orders (item) (WITH q AS (SELECT b FROM plain ORDER BY a) SELECT DISTINCT b FROM q ORDER BY 1 LIMIT 5)",
    "INSERT INTO \"Odd name\" (note) VALUES ('it''s ' || now()), ($$ now() $$)",
    "INSERT INTO \"Odd name\" (\"Id\", note) OVERRIDING USER VALUE VALUES (77, 'x')",
    "INSERT INTO events (what) VALUES ('domain')",
    "INSERT INTO events VALUES ('all', 'now', 'now', CURRENT_TIME(2))",
    "INSERT INTO parts (a) VALUES (1), (2)",
    "INSERT INTO parts SELECT a FROM plain",
    "INSERT INTO plain SELECT * FROM plain",
    "INSERT INTO plain (a, at) VALUES (fixed(), date 'yesterday'), (8, timestamp(0) 'now'), (9, 'today'), (nextval('numbers')::int, localtimestamp(1))",
    "UPDATE plain SET at = now(), b = to_char(CURRENT_TIMESTAMP, 'HH24:MI:SS.US') || age(CURRENT_DATE, at) WHERE at < now() - interval '1 day'",
    "UPDATE orders SET (placed, item) = (DEFAULT, 'changed'), day = 'now' WHERE id = 1",
    "WITH gone AS (DELETE FROM events WHERE what = 'all' RETURNING at) INSERT INTO orders (item) SELECT at::text FROM gone",
    "MERGE INTO plain p USING (VALUES (1), (50)) v (x) ON p.a = v.x AND p.b IS NULL WHEN NOT MATCHED THEN INSERT VALUES (v.x, CURRENT_DATE::text, now())",
    "CREATE TABLE made AS SELECT now(), CURRENT_DATE AS d, 'now'::timestamp(2), LOCALTIME(0)",
    "ALTER TABLE plain ALTER COLUMN b TYPE text USING coalesce(b, now()::text)",
    "PREPARE p (text) AS INSERT INTO orders (item) VALUES ($1); EXECUTE p (now()::text); DEALLOCATE p",
    "BEGIN; INSERT INTO events (what) VALUES ('in a string'); SAVEPOINT s; INSERT INTO orders (item) SELECT now()::text; COMMIT",
    "DECLARE c CURSOR FOR SELECT now(); FETCH c",
    "SELECT setval('numbers', 40), nextval('numbers'::regclass)",
];

/// Queries whose columns must keep names and types.
const READ: &[&str] = &[
    "SELECT now(), CURRENT_DATE, CURRENT_TIME, CURRENT_TIME(2), CURRENT_TIMESTAMP, CURRENT_TIMESTAMP(0), LOCALTIME, LOCALTIME(1), LOCALTIMESTAMP, LOCALTIMESTAMP(6)",
    "SELECT transaction_timestamp(), pg_catalog.now(), (now())::date, now()::text COLLATE \"C\", now() AT TIME ZONE 'utc', now() - interval '1 day'",
    "SELECT 'now'::timestamp, timestamp 'today', CAST('tomorrow' AS date), date 'yesterday', time(3) 'now', timestamptz(2) 'now', 'now'::timetz",
    "SELECT age(timestamp '2000-01-01'), age(date '2000-01-01'), age(timestamptz '2000-01-01'), date('now'), date_trunc('day', now())",
    "SELECT CASE WHEN true THEN 1 END, CASE WHEN a IS DISTINCT FROM 1 THEN at ELSE now() END, (SELECT now()), ARRAY[now()], coalesce(at, now()) FROM plain",
    "SELECT a, now() FROM plain GROUP BY a, now() HAVING count(*) > 0 ORDER BY now, a LIMIT 1",
    "SELECT DISTINCT now(), CURRENT_DATE FROM plain WHERE at < now() ORDER BY now()",
    "SELECT row_to_json(x), x.now, x.current_date FROM (SELECT now(), current_date, at FROM plain) x",
    "SELECT now() UNION SELECT CURRENT_TIMESTAMP(3) ORDER BY now",
    "WITH q AS (SELECT now(), 1 AS one) SELECT q.now, q.* FROM q",
    "SELECT count(*) FILTER (WHERE at > now()), percentile_disc(0.5) WITHIN GROUP (ORDER BY now()), max(at) OVER (ORDER BY now()) FROM plain GROUP BY at",
    "VALUES (now(), CURRENT_DATE)",
    "UPDATE plain SET at = now() RETURNING now(), at, CURRENT_DATE::text",
    "SELECT $1::int, now() WHERE now() > $2",
];

/// Texts that are recognised, with the kinds in which they may differ.
const UNEQUAL: &[(&str, &[Kind])] = &[
    ("INSERT INTO chance (a) VALUES (1)", &[Kind::Default]),
    ("INSERT INTO chance VALUES (gen_random_uuid(), 1)", &[Kind::Random]),
    ("INSERT INTO plain (a) VALUES (dice())", &[Kind::Function]),
    ("SELECT dice()", &[Kind::Function]),
    ("INSERT INTO plain (at) SELECT seen FROM today", &[Kind::Clock]),
    ("INSERT INTO writable (item) VALUES ('x')", &[Kind::Default]),
    ("DELETE FROM audited WHERE a = 1", &[Kind::Trigger]),
    ("INSERT INTO parts (a) VALUES (2)", &[Kind::Trigger]),
    ("DELETE FROM ruled", &[Kind::Rule]),
    ("UPDATE plain SET b = pg_backend_pid()::text", &[Kind::Server]),
    ("UPDATE plain SET at = clock_timestamp()", &[Kind::Clock]),
    ("UPDATE plain SET b = age(at)", &[Kind::Clock]),
    ("SELECT nextval(b::regclass) FROM plain", &[Kind::Sequence]),
    ("COPY orders (item) FROM STDIN", &[Kind::Default]),
    ("SELECT lo_creat(-1) FROM orders", &[Kind::LargeObject]),
    ("SELECT lo_creat(-1)", &[]),
    ("INSERT INTO orders (item) SELECT b FROM plain", &[Kind::Order]),
    ("SELECT random(), pg_backend_pid(), fixed(), count(*) FROM today, pg_locks", &[]),
];

struct Server {
    client: Client,
    // Ends with the server.
    _cluster: Cluster,
}

async fn server() -> Server {
    let cluster = Cluster::single();
    let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", cluster.nodes[0].port);
    let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.expect("login");
    tokio::spawn(connection);
    client.batch_execute(SCHEMA).await.expect("the schema");
    Server { client, _cluster: cluster }
}

/// Asks the catalog for what a text wants, and plans.
async fn planned(client: &Client, sql: &str) -> Plan {
    let parsed = Parsed::of(sql).unwrap_or_else(|fault| panic!("{sql}: {fault}"));
    let wants = parsed.wants();
    let mut rows = Vec::new();
    if let Some(question) = wants.question() {
        for message in client.simple_query(&question).await.unwrap_or_else(|fault| panic!("{sql}: {fault:?}")) {
            if let SimpleQueryMessage::Row(row) = message {
                rows.push((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect());
            }
        }
    }
    let catalog = Catalog::from_rows(wants, &rows).unwrap_or_else(|fault| panic!("{sql}: {fault}: {rows:?}"));
    assert!(catalog.lacks(wants).is_empty());
    parsed.plan(&catalog, &Policy::default())
}

/// A text in a transaction with the moment.
async fn run(client: &Client, moment: &str, sql: &str) {
    let begin = format!("BEGIN; SELECT set_config('pgmend.now', '{moment}', true)");
    client.batch_execute(&begin).await.expect("a transaction");
    client.batch_execute(sql).await.unwrap_or_else(|fault| panic!("{sql}: {fault:?}"));
    client.batch_execute("COMMIT").await.expect("a commit");
}

async fn text(client: &Client, sql: &str) -> String {
    let rows = client.query(sql, &[]).await.unwrap_or_else(|fault| panic!("{sql}: {fault:?}"));
    rows.first().and_then(|row| row.get::<_, Option<String>>(0)).unwrap_or_default()
}

/// All rows of all tables, and all sequences.
async fn everything(client: &Client) -> Vec<String> {
    let mut all = Vec::new();
    for table in ["orders", "\"Odd name\"", "events", "parts", "plain", "made"] {
        // One is made on the way.
        if text(client, &format!("SELECT to_regclass('{table}')::text")).await.is_empty() {
            continue;
        }
        all.push(text(client, &format!("SELECT string_agg(t::text, E'\\n' ORDER BY t::text) FROM {table} t")).await);
    }
    for sequence in ["orders_id_seq", "\"Odd name_Id_seq\"", "numbers"] {
        all.push(text(client, &format!("SELECT last_value || ' ' || is_called FROM {sequence}")).await);
    }
    all
}

const MOMENT: &str = "SELECT to_char(now() AT TIME ZONE 'utc', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'";

#[tokio::test]
async fn what_is_sent_leaves_the_same_rows_on_servers_that_never_met() {
    let (main, other) = (server().await, server().await);
    // The other node's sessions may stand in another time zone only if the client's do: both do as one.
    for node in [&main, &other] {
        node.client.batch_execute("SET timezone = 'Asia/Kolkata'").await.expect("a setting");
    }
    for sql in EQUAL {
        let plan = planned(&main.client, sql).await;
        assert!(plan.verdict(&Policy::default()) < Verdict::Refuse, "{sql}: {:?}", plan.unequal);
        let moment = text(&main.client, MOMENT).await;
        let sent = plan.rewritten.as_deref().unwrap_or(sql);
        assert_eq!(plan.uses_now, sent.contains("pgmend.now"), "{sql}");
        for node in [&main, &other] {
            run(&node.client, &moment, sent).await;
        }
        assert_eq!(everything(&main.client).await, everything(&other.client).await, "{sql}\n{sent}");
    }
    // The oracle can tell: the same text as it was written.
    for node in [&main, &other] {
        run(&node.client, "", "INSERT INTO orders (item) VALUES ('differs')").await;
    }
    assert_ne!(everything(&main.client).await, everything(&other.client).await);
}

#[tokio::test]
async fn columns_keep_their_names_and_types() {
    let server = server().await;
    server.client.batch_execute("CREATE TABLE made ()").await.expect("a table");
    let mut changed = 0;
    for sql in READ.iter().chain(EQUAL) {
        let plan = planned(&server.client, sql).await;
        let Some(sent) = plan.rewritten.filter(|_| plan.statements.len() == 1) else { continue };
        if sql.starts_with("PREPARE") || sql.starts_with("ALTER") {
            continue;
        }
        let columns = async |sql: &str| {
            let statement = server.client.prepare(sql).await.unwrap_or_else(|fault| panic!("{sql}: {fault:?}"));
            let columns = statement.columns().iter().map(|column| format!("{} {}", column.name(), column.type_()));
            (columns.collect::<Vec<_>>(), statement.params().to_vec())
        };
        assert_eq!(columns(&sent).await, columns(sql).await, "{sql}\n{sent}");
        changed += 1;
    }
    assert!(changed > 20, "{changed}");
}

#[tokio::test]
async fn a_rewritten_moment_is_that_of_the_transaction() {
    let server = server().await;
    for (expression, of) in [
        ("now()", "now()"),
        ("CURRENT_DATE", "now()::date"),
        ("LOCALTIMESTAMP(3)", "now()::timestamp(3)"),
        ("CURRENT_TIME", "now()::timetz"),
        ("'tomorrow'::timestamptz", "(now()::date + 1)::timestamptz"),
        ("date 'yesterday'", "now()::date - 1"),
        ("time 'now'", "now()::time"),
    ] {
        for zone in ["UTC", "America/St_Johns", "Asia/Kolkata"] {
            let plan = planned(&server.client, &format!("SELECT {expression} AS x")).await;
            let sent = plan.rewritten.expect("it is rewritten");
            let query = format!(
                "SET LOCAL timezone = '{zone}'; SET LOCAL datestyle = 'SQL, DMY'; \
                 SELECT set_config('pgmend.now', to_char(now() AT TIME ZONE 'utc', 'YYYY-MM-DD HH24:MI:SS.US') || '+00', true); \
                 SELECT CASE WHEN x::text = y::text THEN 'same' ELSE x::text || ' is not ' || y::text END FROM ({sent}) a, (SELECT {of} AS y) b"
            );
            let messages = server.client.simple_query(&query).await.expect("it runs");
            let last = messages.iter().rev().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            });
            assert_eq!(last.as_deref(), Some("same"), "{expression} in {zone}");
        }
    }
}

#[tokio::test]
async fn what_may_differ_is_recognised_from_the_catalog() {
    let server = server().await;
    for (sql, kinds) in UNEQUAL {
        let plan = planned(&server.client, sql).await;
        let found: Vec<Kind> = plan.unequal.iter().map(|one| one.kind).collect();
        assert!(kinds.iter().all(|kind| found.contains(kind)), "{sql}: {:?}", plan.unequal);
        assert_eq!(kinds.is_empty(), found.is_empty(), "{sql}: {:?}", plan.unequal);
    }
    let plan = planned(&server.client, "INSERT INTO orders (item) VALUES ('x')").await;
    let oid = text(&server.client, "SELECT 'orders_id_seq'::regclass::oid::text").await;
    let locks: Vec<_> = plan.locks.iter().map(|lock| (lock.oid.to_string(), lock.name.as_str())).collect();
    assert_eq!(locks, [(oid, "orders_id_seq")]);
}
