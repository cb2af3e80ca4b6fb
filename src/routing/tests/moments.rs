//! `now()` and kin: what is sent instead, with the names of columns kept.

use super::check;

/// Wherever an expression may stand.
#[test]
fn moments_are_rewritten() {
    let rows: &[(&str, &str, &str)] = &[
        ("SELECT now()", "Read", r#"SELECT (NOW) AS "now""#),
        (
            "SELECT now(), CURRENT_DATE, CURRENT_TIMESTAMP(3) AS x, current_time(0), localtime, LOCALTIMESTAMP(6), transaction_timestamp()",
            "Read",
            r#"SELECT (NOW) AS "now", (NOW::date) AS "current_date", (NOW(3)) AS x, (NOW::timetz(0)) AS "current_time", (NOW::time) AS "localtime", (NOW::timestamp(6)) AS "localtimestamp", (NOW) AS "transaction_timestamp""#,
        ),
        (
            r#"SELECT (now())::date, now()::text COLLATE "C", CASE WHEN a IS DISTINCT FROM b THEN 1 ELSE now() END FROM plain"#,
            "Read",
            r#"SELECT ((NOW))::date AS "now", (NOW)::text COLLATE "C" AS "now", CASE WHEN a IS DISTINCT FROM b THEN 1 ELSE (NOW) END AS "now" FROM plain"#,
        ),
        (
            "SELECT 'now'::timestamp, timestamp 'today', CAST('tomorrow' AS date), date 'yesterday', time(3) 'now', 'today 12:00'::timestamp",
            "Read",
            r#"SELECT (NOW)::timestamp AS "timestamp", ((NOW::date::timestamptz)::timestamp) AS "timestamp", CAST(((NOW::date) + 1)::timestamptz AS date) AS "date", (((NOW::date) - 1)::timestamptz::date) AS "date", ((NOW)::time(3)) AS "time", 'today 12:00'::timestamp AS "timestamp""#,
        ),
        ("SELECT pg_catalog . now ( /* x */ ) -- c", "Read", r#"SELECT (NOW) AS "now" -- c"#),
        (
            "SELECT age(at), date('now'), date_trunc('day', now()) FROM plain",
            "Read",
            "SELECT age((NOW::date), at), date((NOW)), date_trunc('day', (NOW)) FROM plain",
        ),
        ("SELECT * FROM now()", "Read", ""),
        (
            "DELETE FROM plain WHERE at < now() - interval '1 day' RETURNING random(), ctid",
            "Write",
            "DELETE FROM plain WHERE at < (NOW) - interval '1 day' RETURNING random(), ctid",
        ),
        (
            "CREATE TABLE n AS SELECT now() AS x, random()",
            "Ddl; Random: random()",
            "CREATE TABLE n AS SELECT (NOW) AS x, random()",
        ),
        ("SELECT now() AS x INTO n", "Write", "SELECT (NOW) AS x INTO n"),
        ("COPY (SELECT now()) TO STDOUT", "CopyOut of Read", r#"COPY (SELECT (NOW) AS "now") TO STDOUT"#),
        ("EXECUTE p (now())", r#"Execute("p")"#, "EXECUTE p ((NOW))"),
        (
            "DECLARE c CURSOR WITH HOLD FOR SELECT now()",
            r#"Declare { name: "c", hold: true } of Read"#,
            r#"DECLARE c CURSOR WITH HOLD FOR SELECT (NOW) AS "now""#,
        ),
        (
            "SELECT a, now() FROM plain GROUP BY a, now() ORDER BY now",
            "Read",
            r#"SELECT a, (NOW) AS "now" FROM plain GROUP BY a, (NOW) ORDER BY now"#,
        ),
        (
            "SELECT DISTINCT now() FROM plain ORDER BY now()",
            "Read",
            r#"SELECT DISTINCT (NOW) AS "now" FROM plain ORDER BY (NOW)"#,
        ),
        (
            "SELECT (SELECT now()), ARRAY[now()], EXISTS (SELECT now()), (now()), coalesce(now(), now())",
            "Read",
            r#"SELECT (SELECT (NOW) AS "now"), ARRAY[(NOW)], EXISTS (SELECT (NOW) AS "now"), ((NOW)) AS "now", coalesce((NOW), (NOW))"#,
        ),
        ("SELECT 1 UNION SELECT now()", "Read", r#"SELECT 1 UNION SELECT (NOW) AS "now""#),
        ("VALUES (now())", "Read", "VALUES ((NOW))"),
        ("SELECT CURRENT_USER, current_schema", "Read", ""),
        ("SELECT pg_current_wal_lsn()", "Read", ""),
        ("SELECT now() FROM plain; ; SELECT 2;", "Read; Read", r#"SELECT (NOW) AS "now" FROM plain; ; SELECT 2;"#),
        (
            r#"SELECT U&'d\0061t', E'now'::timestamptz, 'now'::text, '{now}'::timestamptz[]"#,
            "Read",
            r#"SELECT U&'d\0061t', (NOW)::timestamptz AS "timestamptz", 'now'::text, '{now}'::timestamptz[] AS "timestamptz""#,
        ),
    ];
    check(rows);
}
