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
            r#"SELECT (NOW)::timestamp AS "timestamp", ((NOW::date::timestamptz)::timestamp) AS "timestamp", CAST(((NOW::date) + 1)::timestamptz AS date) AS "date", (((NOW::date) - 1)::timestamptz::date) AS "date", ((NOW)::time(3)) AS "time", 'today 12:00'::timestamp"#,
        ),
        ("SELECT pg_catalog . now ( /* x */ ) -- c", "Read", r#"SELECT (NOW) AS "now" -- c"#),
        (
            "SELECT age(at), date('now'), date_trunc('day', now()) FROM plain",
            "Read",
            "SELECT age(at), date((NOW)), date_trunc('day', (NOW)) FROM plain",
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
        ("SELECT now() AS x INTO n", "Ddl", "SELECT (NOW) AS x INTO n"),
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
            r#"SELECT U&'d\0061t', (NOW)::timestamptz AS "timestamptz", 'now'::text, '{now}'::timestamptz[]"#,
        ),
    ];
    check(rows);
}

/// Nothing but moments is touched.
#[test]
fn literals_and_comments_stay() {
    let rows: &[(&str, &str, &str)] = &[
        (r#"SELECT 'now()', "now", $$ now() $$, $x$ CURRENT_DATE $x$, E'it\'s now()', U&'now' -- now()"#, "Read", ""),
        (
            r#"/*+ IndexScan(t) */ SELECT now() /* CURRENT_DATE */ FROM t WHERE "current_date" = 1"#,
            "Read",
            r#"/*+ IndexScan(t) */ SELECT (NOW) AS "now" /* CURRENT_DATE */ FROM t WHERE "current_date" = 1"#,
        ),
        ("SELECT t.now, x.current_date, (r).now FROM t, x, r", "Read", ""),
        (r#"SELECT now AS "now()" FROM t ORDER BY now"#, "Read", ""),
        (
            r#"select NOW(), Current_Timestamp, "now"() from plain"#,
            "Read",
            r#"select (NOW) AS "now", (NOW) AS "current_timestamp", (NOW) AS "now" from plain"#,
        ),
        (r#"SELECT now() "Moment", now() AS now, now()b"#, "Read", r#"SELECT (NOW) "Moment", (NOW) AS now, (NOW)b"#),
        (
            "SELECT now ( ), /* a */ pg_catalog /* b */ . now /* c */ ( /* d */ ) + '1 day'",
            "Read",
            r#"SELECT (NOW) AS "now", /* a */ (NOW) + '1 day'"#,
        ),
        ("SELECT schema1.now(), now(1), now(x => 2)", r#"ReadAll; Function: "schema1"."now""#, ""),
        (
            "SELECT U&'!006eow' UESCAPE '!' :: timestamptz, 'no'::text",
            "Read",
            r#"SELECT (NOW) :: timestamptz AS "timestamptz", 'no'::text"#,
        ),
        ("SELECT 'now', 'today'::text, 'now'::varchar, 'tomorrow' || 'x'", "Read", ""),
    ];
    check(rows);
}

/// The name that PostgreSQL would give is added where there is none.
#[test]
fn names_of_columns_stay() {
    let rows: &[(&str, &str, &str)] = &[
        ("SELECT (((now())))", "Read", r#"SELECT ((((NOW)))) AS "now""#),
        (
            "SELECT now()::timestamp(0)::text, CAST(now() AS date), CAST(CURRENT_DATE AS text)",
            "Read",
            r#"SELECT (NOW)::timestamp(0)::text AS "now", CAST((NOW) AS date) AS "now", CAST((NOW::date) AS text) AS "current_date""#,
        ),
        (
            "SELECT CASE WHEN true THEN now() END, CASE a WHEN 1 THEN now() ELSE CURRENT_DATE END FROM plain",
            "Read",
            r#"SELECT CASE WHEN true THEN (NOW) END, CASE a WHEN 1 THEN (NOW) ELSE (NOW::date) END AS "current_date" FROM plain"#,
        ),
        (
            "SELECT -now(), now() + '1 day', now() = now(), now() IS NULL, now() AT TIME ZONE 'utc', now() BETWEEN now() AND now()",
            "Read",
            "SELECT -(NOW), (NOW) + '1 day', (NOW) = (NOW), (NOW) IS NULL, (NOW) AT TIME ZONE 'utc', (NOW) BETWEEN (NOW) AND (NOW)",
        ),
        (
            "SELECT now(), a IS DISTINCT FROM 1, now() FROM plain",
            "Read",
            r#"SELECT (NOW) AS "now", a IS DISTINCT FROM 1, (NOW) AS "now" FROM plain"#,
        ),
        (
            "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a), now() FROM plain GROUP BY b",
            "Read",
            r#"SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a), (NOW) AS "now" FROM plain GROUP BY b"#,
        ),
        ("SELECT x.from, x.order, now() FROM x", "Read", r#"SELECT x.from, x.order, (NOW) AS "now" FROM x"#),
        ("SELECT now() INTO n FROM plain", "Ddl", r#"SELECT (NOW) AS "now" INTO n FROM plain"#),
        (
            "SELECT now() UNION ALL SELECT LOCALTIMESTAMP EXCEPT (SELECT now() LIMIT 1) ORDER BY 1",
            "Read",
            r#"SELECT (NOW) AS "now" UNION ALL SELECT (NOW::timestamp) AS "localtimestamp" EXCEPT (SELECT (NOW) AS "now" LIMIT 1) ORDER BY 1"#,
        ),
        ("SELECT now() LIMIT 1", "Read", r#"SELECT (NOW) AS "now" LIMIT 1"#),
        ("SELECT now() FOR UPDATE", "ReadAll", r#"SELECT (NOW) AS "now" FOR UPDATE"#),
        ("SELECT now() WINDOW w AS (ORDER BY 1)", "Read", r#"SELECT (NOW) AS "now" WINDOW w AS (ORDER BY 1)"#),
        (
            "SELECT a FROM (SELECT now(), 1 AS a) q WHERE now > CURRENT_DATE",
            "Read",
            r#"SELECT a FROM (SELECT (NOW) AS "now", 1 AS a) q WHERE now > (NOW::date)"#,
        ),
        (
            "SELECT * FROM plain WHERE at IN (SELECT now()) AND EXISTS (SELECT CURRENT_DATE)",
            "Read",
            r#"SELECT * FROM plain WHERE at IN (SELECT (NOW) AS "now") AND EXISTS (SELECT (NOW::date) AS "current_date")"#,
        ),
        (
            "WITH q AS MATERIALIZED (SELECT now()) SELECT now FROM q",
            "Read",
            r#"WITH q AS MATERIALIZED (SELECT (NOW) AS "now") SELECT now FROM q"#,
        ),
        (
            r#"SELECT ARRAY(SELECT now()), ROW(now()), (now())::text COLLATE "C""#,
            "Read",
            r#"SELECT ARRAY(SELECT (NOW) AS "now"), ROW((NOW)), ((NOW))::text COLLATE "C" AS "now""#,
        ),
        (
            "DELETE FROM plain RETURNING now(), CURRENT_DATE AS d, at",
            "Write",
            r#"DELETE FROM plain RETURNING (NOW) AS "now", (NOW::date) AS d, at"#,
        ),
        (
            "UPDATE plain SET at = CURRENT_TIMESTAMP WHERE at < LOCALTIMESTAMP(0) RETURNING now()",
            "Write",
            r#"UPDATE plain SET at = (NOW) WHERE at < (NOW::timestamp(0)) RETURNING (NOW) AS "now""#,
        ),
        (
            "SELECT upper(now()::text), to_char(CURRENT_DATE, 'YYYY'), coalesce(at, now()) FROM plain ORDER BY now() DESC",
            "Read",
            "SELECT upper((NOW)::text), to_char((NOW::date), 'YYYY'), coalesce(at, (NOW)) FROM plain ORDER BY (NOW) DESC",
        ),
        ("EXECUTE p (now(), CURRENT_DATE::text)", r#"Execute("p")"#, "EXECUTE p ((NOW), (NOW::date)::text)"),
        ("CALL proc(now())", r#"Write; Function: "proc""#, "CALL proc((NOW))"),
        (
            "UPDATE plain SET (at, b) = (now(), CURRENT_DATE), (a) = ROW (1) WHERE a = 1",
            "Write",
            "UPDATE plain SET (at, b) = ((NOW), (NOW::date)), (a) = ROW (1) WHERE a = 1",
        ),
        (
            "UPDATE plain SET (at, b) = (SELECT now(), 'x') RETURNING (SELECT now())",
            "Write",
            r#"UPDATE plain SET (at, b) = (SELECT (NOW) AS "now", 'x') RETURNING (SELECT (NOW) AS "now")"#,
        ),
    ];
    check(rows);
}
