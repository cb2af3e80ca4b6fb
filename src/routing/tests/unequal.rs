//! What is recognised as not equal on all nodes.

use super::check;

/// With its kind.
#[test]
fn what_may_differ_is_named() {
    let rows: &[(&str, &str, &str)] = &[
        ("INSERT INTO plain SELECT * FROM now()", "Write; Clock: a moment in a place where it cannot be rewritten", ""),
        ("INSERT INTO chance (a) VALUES (random())", "Write; Random: random(); Default: column chance.id", ""),
        ("INSERT INTO chance VALUES (gen_random_uuid(), 1)", "Write; Random: gen_random_uuid()", ""),
        ("INSERT INTO v (a) VALUES (1)", "Write; lock t_id_seq; Default: a column below view v", ""),
        ("INSERT INTO plain SELECT * FROM v", "Write; Clock: view v", ""),
        ("UPDATE guarded SET a = 1", "Write; Trigger: audit on guarded", ""),
        ("DELETE FROM guarded", "Write", ""),
        ("SELECT nextval('s'), nextval('s'::regclass), setval('s', 3)", "ReadAll; lock s", ""),
        ("SELECT nextval(a) FROM plain", "ReadAll; Sequence: nextval()", ""),
        (
            "SELECT volatile_one(), stable_one(), count(*) FROM vf",
            r#"ReadAll; Function: "public"."volatile_one"; Function: "volatile_one""#,
            "",
        ),
        ("SELECT random(), clock_timestamp()", "Read", ""),
        ("SELECT setval('s', (random() * 10)::int)", "ReadAll; lock s; Random: random()", ""),
        (
            "UPDATE plain SET a = 1 WHERE a = (SELECT a FROM plain LIMIT 1 FOR UPDATE SKIP LOCKED)",
            "Write; Order: LIMIT without ORDER BY; Order: SKIP LOCKED",
            "",
        ),
        ("CREATE MATERIALIZED VIEW m AS SELECT now()", "Ddl; Clock: a moment in a definition that is kept", ""),
        ("REFRESH MATERIALIZED VIEW v", "Ddl; Clock: view v", ""),
        (
            "ALTER TABLE t ADD COLUMN x timestamptz DEFAULT now()",
            "Ddl; Clock: a moment in a definition that is kept",
            "",
        ),
        (
            "ALTER TABLE t ALTER COLUMN a TYPE timestamptz USING now()",
            "Ddl",
            "ALTER TABLE t ALTER COLUMN a TYPE timestamptz USING (NOW)",
        ),
        ("ALTER TABLE t ADD COLUMN n serial", "Ddl; Order: the numbering of rows that are there already", ""),
        (
            "SELECT lo_creat(-1), lo_create(0), lo_create(77), lo_from_bytea(0, 'x'), lo_import('/x', 5)",
            "ReadAll",
            r#"SELECT pg_catalog.lo_create(pg_catalog.current_setting('pgmend.large_1')::oid) AS "lo_creat", lo_create(pg_catalog.current_setting('pgmend.large_2')::oid), lo_create(77), lo_from_bytea(pg_catalog.current_setting('pgmend.large_3')::oid, 'x'), lo_import('/x', 5)"#,
        ),
        (
            "INSERT INTO plain (a, b) VALUES (1, pg_catalog.lo_creat(x'60000'::int)), (2, lo_creat(-1))",
            "Write",
            "INSERT INTO plain (a, b) VALUES (1, pg_catalog.lo_create(pg_catalog.current_setting('pgmend.large_1')::oid)), \
             (2, pg_catalog.lo_create(pg_catalog.current_setting('pgmend.large_2')::oid))",
        ),
        // One number is not enough where there may be many rows, nor a constant where there is none.
        ("INSERT INTO plain (a) SELECT lo_create(0) FROM v", "Write; Clock: view v; LargeObject: lo_create()", ""),
        ("UPDATE plain SET a = lo_create(0)", "Write; LargeObject: lo_create()", ""),
        ("SELECT lo_create($1), x FROM lo_create(0) x", "ReadAll; LargeObject: lo_create()", ""),
        ("EXECUTE p (lo_create(0))", r#"Execute("p"); LargeObject: lo_create()"#, ""),
        ("EXECUTE p (nextval('s'))", r#"Execute("p"); lock s"#, ""),
        ("EXECUTE p (random())", r#"Execute("p"); Random: random()"#, ""),
        ("EXECUTE p ('now', 'a text of now')", r#"Execute("p"); Literal: a literal that may name a moment"#, ""),
        ("DO $$ BEGIN END $$", "Write; Opaque: DO", ""),
        ("CALL proc(1)", r#"Write; Function: "proc""#, ""),
        ("INSERT INTO far VALUES (1)", "Write; Opaque: foreign table far", ""),
        ("INSERT INTO ruled VALUES (1)", "Write; Rule: log on ruled", ""),
        (
            "INSERT INTO plain (a) SELECT nextval('s') FROM plain",
            "Write; lock s; Order: the order in which rows take numbers",
            "",
        ),
        ("INSERT INTO plain (a) VALUES (pg_current_wal_lsn()::text)", "Write; Server: pg_current_wal_lsn()", ""),
    ];
    check(rows);
}

/// Values, choices, code and definitions.
#[test]
fn more_that_may_differ() {
    let rows: &[(&str, &str, &str)] = &[
        (
            "INSERT INTO plain (b) VALUES (timeofday()), (statement_timestamp()::text), (txid_current()::text), (inet_server_addr()::text), (ext.uuid_generate_v4()::text)",
            "Write; Clock: timeofday(); Clock: statement_timestamp(); Server: txid_current(); Server: inet_server_addr(); Random: uuid_generate_v4()",
            "",
        ),
        ("UPDATE plain SET a = random() * 3 WHERE b = version()", "Write; Random: random(); Server: version()", ""),
        ("INSERT INTO plain (a) SELECT a FROM plain TABLESAMPLE system (10)", "Write; Random: TABLESAMPLE", ""),
        (
            "DELETE FROM plain WHERE ctid IN (SELECT ctid FROM plain LIMIT 10)",
            "Write; Server: a system column; Order: LIMIT without ORDER BY",
            "",
        ),
        ("UPDATE plain SET a = 1 WHERE xmin = '77' RETURNING ctid", "Write; Server: a system column", ""),
        ("UPDATE plain SET a = 1 WHERE EXISTS (SELECT 1 FROM t LIMIT 1)", "Write", ""),
        ("DELETE FROM plain WHERE at < 'today' OR b > 'now'", "Write; Literal: a literal that may name a moment", ""),
        (
            "DELETE FROM plain WHERE at < ANY ('{now}'::timestamptz[])",
            "Write; Clock: a moment in a place where it cannot be rewritten",
            "",
        ),
        (
            "INSERT INTO plain (a) VALUES (volatile_one()) RETURNING stable_one()",
            r#"Write; Function: "volatile_one""#,
            "",
        ),
        ("INSERT INTO plain (a) VALUES (nobody_knows())", r#"Write; Function: "nobody_knows""#, ""),
        ("INSERT INTO nobody_knows VALUES (1)", r#"Write; Opaque: table "nobody_knows", which is not known,"#, ""),
        ("UPDATE t SET id = nextval('s')", "Write; lock s; Order: the order in which rows take numbers", ""),
        (
            r#"INSERT INTO plain (a) VALUES (nextval('public.s'), nextval('other'), nextval($1), nextval('"bad'))"#,
            "Write; lock s; Sequence: nextval()",
            "",
        ),
        (
            "CREATE TABLE n AS SELECT nextval('s'), a FROM plain",
            "Ddl; lock s; Order: the order in which rows take numbers",
            "",
        ),
        (
            "SELECT lo_import('/x'), lo_import('/x', 0), lo_unlink(5), lo_put(5, 0, 'x')",
            "ReadAll; LargeObject: lo_import()",
            "",
        ),
        ("COPY chance (a) FROM STDIN", "CopyIn; Default: column chance.id", ""),
        ("COPY v FROM STDIN", "CopyIn; lock t_id_seq; Default: a column below view v", ""),
        (
            "MERGE INTO chance USING plain p ON false WHEN NOT MATCHED THEN INSERT (a) VALUES (1) RETURNING random()",
            "Write; Default: column chance.id",
            "",
        ),
        (
            "MERGE INTO guarded USING plain p ON guarded.a = p.a WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (p.a)",
            "Write; Trigger: audit on guarded",
            "",
        ),
        ("ALTER TABLE plain ADD COLUMN r float DEFAULT random()", "Ddl; Random: random()", ""),
        (
            "ALTER TABLE plain ADD COLUMN r int GENERATED ALWAYS AS IDENTITY",
            "Ddl; Order: the numbering of rows that are there already",
            "",
        ),
        ("ALTER TABLE plain ALTER COLUMN at SET DEFAULT now()", "Ddl", ""),
        ("PREPARE p AS INSERT INTO chance (a) VALUES ($1)", r#"Prepare("p") of Write; Default: column chance.id"#, ""),
        ("EXPLAIN ANALYZE UPDATE guarded SET a = random()", "Write; Trigger: audit on guarded; Random: random()", ""),
        ("COPY plain FROM PROGRAM 'cat /x'", "CopyFromServer; Opaque: a file or program of the server", ""),
        ("SELECT query_to_xml('SELECT 1', true, true, '')", "ReadAll", ""),
        (
            "INSERT INTO plain SELECT volatile_one() FROM vf",
            r#"Write; Function: "public"."volatile_one"; Function: "volatile_one""#,
            "",
        ),
        ("UPDATE vf SET a = 1", r#"Write; Function: "public"."volatile_one""#, ""),
        (
            "UPDATE plain SET a = age(at), b = age(now(), at)",
            "Write; Clock: age()",
            "UPDATE plain SET a = age(at), b = age((NOW), at)",
        ),
        ("DELETE FROM plain WHERE b IN ('x', 'today')", "Write; Literal: a literal that may name a moment", ""),
        (
            "INSERT INTO plain (at) VALUES (coalesce($1, 'now')), (greatest('yesterday', $2)), (CASE WHEN $3 THEN 'now' ELSE $4 END)",
            "Write; Literal: a literal that may name a moment",
            "",
        ),
        (
            "INSERT INTO plain (at, b) SELECT 'now', 'now' UNION ALL SELECT '2020-01-01', 'x'",
            "Write; Clock: the literal for column plain.at",
            "",
        ),
        (
            "INSERT INTO plain (at, b) SELECT upper('now'), 'now'",
            "Write; Literal: a literal that may name a moment",
            "",
        ),
        ("SELECT coalesce(at, 'now') FROM plain WHERE at > 'today'", "Read", ""),
    ];
    check(rows);
}
