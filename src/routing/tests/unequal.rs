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
            "ReadAll; LargeObject: lo_creat(); LargeObject: lo_create(); LargeObject: lo_from_bytea()",
            "",
        ),
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
