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

/// One row for each kind of command.
#[test]
fn every_command_has_a_class() {
    let rows: &[(&str, &str, &str)] = &[
        (
            "START TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY, NOT DEFERRABLE",
            "Begin(Modes { isolation: Some(ReadCommitted), read_only: Some(true), deferrable: Some(false) })",
            "",
        ),
        (
            "BEGIN TRANSACTION ISOLATION LEVEL READ UNCOMMITTED",
            "Begin(Modes { isolation: Some(ReadUncommitted), read_only: None, deferrable: None })",
            "",
        ),
        ("END", "Commit { chain: false }", ""),
        ("COMMIT AND NO CHAIN", "Commit { chain: false }", ""),
        ("ABORT", "Rollback { chain: false }", ""),
        ("ROLLBACK AND CHAIN", "Rollback { chain: true }", ""),
        ("SAVEPOINT a", "Savepoint", ""),
        ("RELEASE a", "Savepoint", ""),
        ("ROLLBACK TO SAVEPOINT a", "Savepoint", ""),
        ("PREPARE TRANSACTION 'x'", "PrepareTransaction", ""),
        ("COMMIT PREPARED 'x'", "FinishPrepared", ""),
        ("ROLLBACK PREPARED 'x'", "FinishPrepared", ""),
        ("SET TIME ZONE 'UTC'", r#"Set { name: Some("timezone"), local: false }"#, ""),
        ("SET statement_timeout TO DEFAULT", r#"Set { name: Some("statement_timeout"), local: false }"#, ""),
        ("SET SESSION AUTHORIZATION bob", r#"Set { name: Some("session_authorization"), local: false }"#, ""),
        ("SET ROLE NONE", r#"Set { name: Some("role"), local: false }"#, ""),
        ("RESET search_path", r#"Set { name: Some("search_path"), local: false }"#, ""),
        ("SHOW ALL", "Show", ""),
        ("DISCARD ALL", "Discard { all: true }", ""),
        ("DISCARD TEMP", "Discard { all: false }", ""),
        ("PREPARE p (int) AS SELECT $1", r#"Prepare("p") of Read"#, ""),
        ("EXECUTE p(1)", r#"Execute("p")"#, ""),
        ("DEALLOCATE p", r#"Deallocate(Some("p"))"#, ""),
        ("DEALLOCATE ALL", "Deallocate(None)", ""),
        ("DECLARE c CURSOR FOR SELECT * FROM plain FOR UPDATE", r#"Declare { name: "c", hold: false } of ReadAll"#, ""),
        ("DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT 1", r#"Declare { name: "c", hold: true } of Read"#, ""),
        ("FETCH 3 FROM c", r#"Fetch("c")"#, ""),
        ("MOVE c", r#"Fetch("c")"#, ""),
        ("CLOSE c", r#"Close(Some("c"))"#, ""),
        ("CLOSE ALL", "Close(None)", ""),
        ("LISTEN x", "Listen", ""),
        ("NOTIFY x, 'y'", "Notify", ""),
        ("UNLISTEN *", "Unlisten", ""),
        ("LOCK TABLE plain IN SHARE MODE", "Lock", ""),
        ("COPY plain TO STDOUT", "CopyOut", ""),
        ("COPY (SELECT nextval('s')) TO STDOUT", "CopyOut of ReadAll; lock s", ""),
        ("COPY (DELETE FROM plain RETURNING a) TO STDOUT", "CopyOut of Write", ""),
        ("TRUNCATE guarded", "Ddl", ""),
        ("GRANT SELECT ON plain TO PUBLIC", "Ddl", ""),
        ("COMMENT ON TABLE plain IS 'now()'", "Ddl", ""),
        ("ANALYZE plain", "Utility", ""),
        ("CHECKPOINT", "Utility", ""),
        ("SET CONSTRAINTS ALL DEFERRED", "Utility", ""),
        ("LOAD 'x'", "Utility", ""),
        ("REINDEX TABLE plain", "Utility", ""),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT random()'", "Ddl", ""),
        ("DROP TABLE plain", "Ddl", ""),
        ("SELECT 1; UPDATE plain SET a = 1; SELECT 2", "Read; Write; Read", ""),
        ("EXPLAIN SELECT 1", "Read", ""),
        ("EXPLAIN ANALYZE SELECT 1", "Read", ""),
        ("EXPLAIN (ANALYZE) EXECUTE p", r#"Execute("p")"#, ""),
        ("EXPLAIN ANALYZE DELETE FROM plain", "Write", ""),
        ("WITH q AS (SELECT 1) SELECT * FROM q", "Read", ""),
        ("WITH q AS (UPDATE plain SET a = 1 RETURNING a) SELECT * FROM q", "Write", ""),
        ("SELECT * FROM plain FOR KEY SHARE", "ReadAll", ""),
        ("SELECT (SELECT a FROM plain LIMIT 1 FOR SHARE)", "ReadAll", ""),
        ("SELECT pg_notify('x', 'y')", "ReadAll", ""),
        ("SELECT pg_sleep(1), current_query(), currval('s'), lastval()", "Read", ""),
    ];
    check(rows);
}
