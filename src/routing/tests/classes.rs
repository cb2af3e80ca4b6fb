//! What each statement is.

use super::check;

/// By the tree and the catalog.
#[test]
fn statements_have_their_class() {
    let rows: &[(&str, &str, &str)] = &[
        ("select 1", "Read", ""),
        ("SELECT * FROM locks", "Read", ""),
        ("SELECT * FROM plain FOR UPDATE SKIP LOCKED", "ReadAll", ""),
        ("CREATE VIEW vv AS SELECT now()", "Ddl", ""),
        ("CREATE TABLE q (a int DEFAULT random(), b timestamptz DEFAULT now())", "Ddl", ""),
        ("COPY t (a) FROM STDIN", "CopyIn; lock t_id_seq; Default: column t.at; Default: column t.day", ""),
        ("COPY t FROM STDIN", "CopyIn", ""),
        ("COPY plain FROM '/tmp/x'", "CopyFromServer; Opaque: a file or program of the server", ""),
        ("COPY plain TO PROGRAM 'cat'", "CopyToServer", ""),
        ("EXPLAIN INSERT INTO t (a) VALUES (random())", "Read", ""),
        (
            "EXPLAIN ANALYZE INSERT INTO t (a) VALUES (1)",
            "Write; lock t_id_seq",
            r#"EXPLAIN ANALYZE INSERT INTO t (a, "at", "day") VALUES (1, ((NOW)), ((NOW::date)))"#,
        ),
        ("EXPLAIN (ANALYZE false) INSERT INTO t (a) VALUES (1)", "Read", ""),
        (
            "BEGIN; INSERT INTO plain VALUES (1, now()::text); SELECT now(); COMMIT AND CHAIN",
            "Begin(Modes { isolation: None, read_only: None, deferrable: None }); Write; Read; Commit { chain: true }",
            r#"BEGIN; INSERT INTO plain VALUES (1, (NOW)::text); SELECT (NOW) AS "now"; COMMIT AND CHAIN"#,
        ),
        (
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY DEFERRABLE",
            "Begin(Modes { isolation: Some(RepeatableRead), read_only: Some(true), deferrable: Some(true) })",
            "",
        ),
        (
            "START TRANSACTION READ WRITE",
            "Begin(Modes { isolation: None, read_only: Some(false), deferrable: None })",
            "",
        ),
        (
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SetTransaction { modes: Modes { isolation: Some(Serializable), read_only: None, deferrable: None }, session: false }",
            "",
        ),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SetTransaction { modes: Modes { isolation: None, read_only: Some(true), deferrable: None }, session: true }",
            "",
        ),
        ("SET LOCAL search_path = a, b", r#"Set { name: Some("search_path"), local: true }"#, ""),
        ("RESET ALL", "Set { name: None, local: false }", ""),
        ("VACUUM", "Utility", ""),
        ("CREATE INDEX CONCURRENTLY i ON t (a)", "Ddl", ""),
        ("/*REPLICATION*/ SELECT 1", "ReadAll", ""),
        ("TRUNCATE t RESTART IDENTITY", "Ddl", ""),
        ("TABLE plain", "Read", ""),
        ("SELECT pg_advisory_lock(1), set_config('a.b', 'c', false)", "ReadAll", ""),
        ("-- only a comment", "", ""),
    ];
    check(rows);
}
