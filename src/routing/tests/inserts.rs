//! INSERT and UPDATE with defaults: what is added, what is locked.

use super::check;

/// A column that is left out gets its default in the text.
#[test]
fn defaults_of_the_moment_are_written_down() {
    let rows: &[(&str, &str, &str)] = &[
        (
            "INSERT INTO t (a) VALUES (1)",
            "Write; lock t_id_seq",
            r#"INSERT INTO t (a, "at", "day") VALUES (1, ((NOW)), ((NOW::date)))"#,
        ),
        (
            "INSERT INTO t (a) VALUES (1), (2), ( (3) )",
            "Write; lock t_id_seq",
            r#"INSERT INTO t (a, "at", "day") VALUES (1, ((NOW)), ((NOW::date))), (2, ((NOW)), ((NOW::date))), ( (3) , ((NOW)), ((NOW::date)))"#,
        ),
        (
            "INSERT INTO t VALUES (1, 2)",
            "Write",
            r#"INSERT INTO t ("id", "a", "at", "day") VALUES (1, 2, ((NOW)), ((NOW::date)))"#,
        ),
        (
            "INSERT INTO t VALUES (DEFAULT, 2, DEFAULT, DEFAULT)",
            "Write; lock t_id_seq",
            r#"INSERT INTO t ("id", "a", "b", "at", "day") VALUES (DEFAULT, 2, DEFAULT, ((NOW)), ((NOW::date)))"#,
        ),
        (
            "INSERT INTO t DEFAULT VALUES",
            "Write; lock t_id_seq",
            r#"INSERT INTO t ("at", "day") VALUES (((NOW)), ((NOW::date)))"#,
        ),
        (
            "INSERT INTO public.t AS x (a, b) SELECT a, b FROM plain ORDER BY a ON CONFLICT DO NOTHING RETURNING now()",
            "Write; lock t_id_seq",
            r#"INSERT INTO public.t AS x (a, b, "at", "day") SELECT a, b, ((NOW)), ((NOW::date)) FROM plain ORDER BY a ON CONFLICT DO NOTHING RETURNING (NOW) AS "now""#,
        ),
        (
            "INSERT INTO t (a) SELECT 1 UNION ALL SELECT 2 WHERE 1 IS DISTINCT FROM 2",
            "Write; lock t_id_seq",
            r#"INSERT INTO t (a, "at", "day") SELECT 1, ((NOW)), ((NOW::date)) UNION ALL SELECT 2, ((NOW)), ((NOW::date)) WHERE 1 IS DISTINCT FROM 2"#,
        ),
        (
            "INSERT INTO t (a) (SELECT a FROM plain)",
            "Write; lock t_id_seq; Order: the numbering of the rows inserted into t",
            r#"INSERT INTO t (a, "at", "day") (SELECT a, ((NOW)), ((NOW::date)) FROM plain)"#,
        ),
        (
            "INSERT INTO t (a) WITH c AS (SELECT 1 AS a) SELECT a FROM c",
            "Write; lock t_id_seq; Order: the numbering of the rows inserted into t",
            r#"INSERT INTO t (a, "at", "day") WITH c AS (SELECT 1 AS a) SELECT a, ((NOW)), ((NOW::date)) FROM c"#,
        ),
        (
            "INSERT INTO t SELECT * FROM plain",
            "Write",
            r#"INSERT INTO t ("id", "a", "b", "at", "day") SELECT *, ((NOW)), ((NOW::date)) FROM plain"#,
        ),
        (
            "INSERT INTO t SELECT p.*, 1 FROM plain p",
            "Write; lock t_id_seq; Default: column t.at; Default: column t.day; Order: the numbering of the rows inserted into t",
            "",
        ),
        (
            "INSERT INTO t (a) VALUES (1) -- x",
            "Write; lock t_id_seq",
            r#"INSERT INTO t (a, "at", "day") VALUES (1, ((NOW)), ((NOW::date))) -- x"#,
        ),
        ("INSERT INTO ident (id, a) OVERRIDING USER VALUE VALUES (1, 2)", "Write; lock ident_id_seq", ""),
        ("INSERT INTO ident VALUES (1, 2)", "Write", ""),
        (
            "INSERT INTO plain (at) VALUES ('now'), (now()), ('2020-01-01'), ('today 12:00')",
            "Write; Clock: the literal for column plain.at",
            "INSERT INTO plain (at) VALUES ((NOW)), ((NOW)), ('2020-01-01'), ('today 12:00')",
        ),
        (
            "UPDATE plain SET at = 'now', b = 'now' WHERE a = 1",
            "Write",
            "UPDATE plain SET at = (NOW), b = 'now' WHERE a = 1",
        ),
        (
            "UPDATE t SET at = DEFAULT, (day, a) = (DEFAULT, 1) WHERE b = 'today'",
            "Write; Literal: a literal that may name a moment",
            "UPDATE t SET at = ((NOW)), (day, a) = (((NOW::date)), 1) WHERE b = 'today'",
        ),
        (
            "MERGE INTO t USING plain p ON t.a = p.a WHEN MATCHED THEN UPDATE SET at = DEFAULT WHEN NOT MATCHED THEN INSERT (a) VALUES (p.a)",
            "Write; lock t_id_seq; Order: the numbering of the rows inserted into t",
            r#"MERGE INTO t USING plain p ON t.a = p.a WHEN MATCHED THEN UPDATE SET at = ((NOW)) WHEN NOT MATCHED THEN INSERT (a, "at", "day") VALUES (p.a, ((NOW)), ((NOW::date)))"#,
        ),
        (
            "MERGE INTO t USING plain p ON t.a = p.a WHEN NOT MATCHED AND p.b > (1) THEN INSERT OVERRIDING USER VALUE VALUES (1, CASE WHEN p.b THEN p.a END) WHEN NOT MATCHED AND true THEN INSERT DEFAULT VALUES WHEN NOT MATCHED THEN DO NOTHING",
            "Write; lock t_id_seq; Order: the numbering of the rows inserted into t",
            r#"MERGE INTO t USING plain p ON t.a = p.a WHEN NOT MATCHED AND p.b > (1) THEN INSERT ("id", "a", "at", "day") OVERRIDING USER VALUE VALUES (1, CASE WHEN p.b THEN p.a END, ((NOW)), ((NOW::date))) WHEN NOT MATCHED AND true THEN INSERT ("at", "day") VALUES (((NOW)), ((NOW::date))) WHEN NOT MATCHED THEN DO NOTHING"#,
        ),
        (
            // The words of a clause stand somewhere else, too.
            "MERGE INTO t USING plain p ON t.a = p.a WHEN MATCHED AND CASE WHEN true THEN insert END THEN DELETE WHEN NOT MATCHED THEN INSERT (a) VALUES (p.a)",
            "Write; lock t_id_seq; Default: column t.at; Default: column t.day; Order: the numbering of the rows inserted into t",
            "",
        ),
        (
            "WITH x AS (INSERT INTO t (a) VALUES (1) RETURNING id) SELECT * FROM x",
            "Write; lock t_id_seq",
            r#"WITH x AS (INSERT INTO t (a, "at", "day") VALUES (1, ((NOW)), ((NOW::date))) RETURNING id) SELECT * FROM x"#,
        ),
        (
            "WITH x AS (DELETE FROM plain RETURNING *) INSERT INTO t (a) SELECT a FROM x",
            "Write; lock t_id_seq; Order: the numbering of the rows inserted into t",
            r#"WITH x AS (DELETE FROM plain RETURNING *) INSERT INTO t (a, "at", "day") SELECT a, ((NOW)), ((NOW::date)) FROM x"#,
        ),
        (
            "PREPARE p AS INSERT INTO t (a) VALUES ($1)",
            r#"Prepare("p") of Write; lock t_id_seq"#,
            r#"PREPARE p AS INSERT INTO t (a, "at", "day") VALUES ($1, ((NOW)), ((NOW::date)))"#,
        ),
        (
            "/*NO INSERT LOCK*/ INSERT INTO t (a) VALUES (1)",
            "Write",
            r#"/*NO INSERT LOCK*/ INSERT INTO t (a, "at", "day") VALUES (1, ((NOW)), ((NOW::date)))"#,
        ),
        ("INSERT INTO tmp (a) VALUES (1)", "Write", ""),
        ("INSERT INTO old (a) VALUES (1)", "Write", r#"INSERT INTO old (a, "d") VALUES (1, (((NOW)::text)::date))"#),
    ];
    check(rows);
}

/// Rows, lists, brackets and comments.
#[test]
fn values_and_columns_keep_their_places() {
    let rows: &[(&str, &str, &str)] = &[
        (
            "INSERT INTO t(a)VALUES(1)",
            "Write; lock t_id_seq",
            r#"INSERT INTO t(a, "at", "day")VALUES(1, ((NOW)), ((NOW::date)))"#,
        ),
        (
            "INSERT INTO t (a) VALUES ((SELECT max(a) FROM plain)), (length(')')), ((ARRAY[1,2])[1])",
            "Write; lock t_id_seq",
            r#"INSERT INTO t (a, "at", "day") VALUES ((SELECT max(a) FROM plain), ((NOW)), ((NOW::date))), (length(')'), ((NOW)), ((NOW::date))), ((ARRAY[1,2])[1], ((NOW)), ((NOW::date)))"#,
        ),
        (
            "INSERT INTO t (a) VALUES (1), (DEFAULT), ($1)",
            "Write; lock t_id_seq",
            r#"INSERT INTO t (a, "at", "day") VALUES (1, ((NOW)), ((NOW::date))), (DEFAULT, ((NOW)), ((NOW::date))), ($1, ((NOW)), ((NOW::date)))"#,
        ),
        (
            "INSERT INTO t (a, at) VALUES (1, DEFAULT), (2, now()), (3, '2020-01-01')",
            "Write; lock t_id_seq",
            r#"INSERT INTO t (a, at, "day") VALUES (1, ((NOW)), ((NOW::date))), (2, (NOW), ((NOW::date))), (3, '2020-01-01', ((NOW::date)))"#,
        ),
        (
            "INSERT INTO t (a, at, day) VALUES (1, 'now', 'tomorrow') ON CONFLICT (id) DO UPDATE SET at = DEFAULT, day = excluded.day WHERE t.a < 1",
            "Write; lock t_id_seq",
            "INSERT INTO t (a, at, day) VALUES (1, (NOW), ((NOW::date) + 1)::timestamptz) ON CONFLICT (id) DO UPDATE SET at = ((NOW)), day = excluded.day WHERE t.a < 1",
        ),
        (
            r#"INSERT INTO "public"."t" AS "x y" ("a") VALUES (1) RETURNING *"#,
            "Write; lock t_id_seq",
            r#"INSERT INTO "public"."t" AS "x y" ("a", "at", "day") VALUES (1, ((NOW)), ((NOW::date))) RETURNING *"#,
        ),
        (
            "INSERT INTO t (a, b) VALUES (1, 'VALUES (2)') ON CONFLICT DO NOTHING",
            "Write; lock t_id_seq",
            r#"INSERT INTO t (a, b, "at", "day") VALUES (1, 'VALUES (2)', ((NOW)), ((NOW::date))) ON CONFLICT DO NOTHING"#,
        ),
        (
            "INSERT INTO t AS d DEFAULT VALUES RETURNING id",
            "Write; lock t_id_seq",
            r#"INSERT INTO t AS d ("at", "day") VALUES (((NOW)), ((NOW::date))) RETURNING id"#,
        ),
        (
            "INSERT INTO t VALUES (1, 2, 'x', now(), CURRENT_DATE)",
            "Write",
            "INSERT INTO t VALUES (1, 2, 'x', (NOW), (NOW::date))",
        ),
        (
            "INSERT INTO t (id, a, b, at, day) SELECT 1, 2, 'x', 'now', 'today'",
            "Write",
            "INSERT INTO t (id, a, b, at, day) SELECT 1, 2, 'x', (NOW), (NOW::date::timestamptz)",
        ),
        (
            "INSERT INTO t (a) SELECT DISTINCT ON (a) a FROM plain ORDER BY a, at DESC",
            "Write; lock t_id_seq",
            r#"INSERT INTO t (a, "at", "day") SELECT DISTINCT ON (a) a, ((NOW)), ((NOW::date)) FROM plain ORDER BY a, at DESC"#,
        ),
        (
            "INSERT INTO t (a) SELECT count(*) AS n FROM plain GROUP BY b HAVING count(*) > 1 ORDER BY n",
            "Write; lock t_id_seq",
            r#"INSERT INTO t (a, "at", "day") SELECT count(*) AS n, ((NOW)), ((NOW::date)) FROM plain GROUP BY b HAVING count(*) > 1 ORDER BY n"#,
        ),
        (
            "INSERT INTO t (a) SELECT a n FROM plain ORDER BY 1 LIMIT 3",
            "Write; lock t_id_seq",
            r#"INSERT INTO t (a, "at", "day") SELECT a n, ((NOW)), ((NOW::date)) FROM plain ORDER BY 1 LIMIT 3"#,
        ),
        (
            "INSERT INTO t (a) SELECT generate_series(1, 3)",
            "Write; lock t_id_seq",
            r#"INSERT INTO t (a, "at", "day") SELECT generate_series(1, 3), ((NOW)), ((NOW::date))"#,
        ),
        (
            "INSERT INTO t (a) SELECT g FROM generate_series(1, 3) g",
            "Write; lock t_id_seq",
            r#"INSERT INTO t (a, "at", "day") SELECT g, ((NOW)), ((NOW::date)) FROM generate_series(1, 3) g"#,
        ),
        (
            "INSERT INTO t (a) SELECT x FROM (VALUES (1), (2)) v (x)",
            "Write; lock t_id_seq",
            r#"INSERT INTO t (a, "at", "day") SELECT x, ((NOW)), ((NOW::date)) FROM (VALUES (1), (2)) v (x)"#,
        ),
        (
            "INSERT INTO t (a) TABLE plain",
            "Write; lock t_id_seq; Order: the numbering of the rows inserted into t",
            r#"INSERT INTO t (a, "at", "day") SELECT *, ((NOW)), ((NOW::date)) FROM plain"#,
        ),
        (
            "INSERT INTO t TABLE ONLY (plain) UNION ALL SELECT 1, 2, 3",
            "Write",
            r#"INSERT INTO t ("id", "a", "b", "at", "day") SELECT *, ((NOW)), ((NOW::date)) FROM ONLY (plain) UNION ALL SELECT 1, 2, 3, ((NOW)), ((NOW::date))"#,
        ),
        (
            "INSERT INTO t (a) VALUES (1) UNION VALUES (2)",
            "Write; lock t_id_seq; Default: column t.at; Default: column t.day; Order: the numbering of the rows inserted into t",
            "",
        ),
        ("INSERT INTO t (a) (VALUES (1))", "Write; lock t_id_seq; Default: column t.at; Default: column t.day", ""),
        (
            "WITH plain AS (SELECT 1) INSERT INTO t SELECT * FROM plain",
            "Write; lock t_id_seq; Default: column t.at; Default: column t.day; Order: the numbering of the rows inserted into t",
            "",
        ),
        (
            "WITH q AS (SELECT 1 AS a), w AS (INSERT INTO t (a) SELECT a FROM q RETURNING id) UPDATE plain SET a = w.id FROM w",
            "Write; lock t_id_seq; Order: the numbering of the rows inserted into t",
            r#"WITH q AS (SELECT 1 AS a), w AS (INSERT INTO t (a, "at", "day") SELECT a, ((NOW)), ((NOW::date)) FROM q RETURNING id) UPDATE plain SET a = w.id FROM w"#,
        ),
        ("INSERT INTO ident (a) VALUES (1)", "Write; lock ident_id_seq", ""),
        ("INSERT INTO ident (id, a) VALUES (DEFAULT, 1), (7, 2)", "Write; lock ident_id_seq", ""),
        ("INSERT INTO ident (id, a) OVERRIDING SYSTEM VALUE VALUES (5, 2)", "Write", ""),
        (
            "INSERT INTO t (nosuch) VALUES (1)",
            "Write; lock t_id_seq",
            r#"INSERT INTO t (nosuch, "at", "day") VALUES (1, ((NOW)), ((NOW::date)))"#,
        ),
        ("INSERT INTO old DEFAULT VALUES", "Write", r#"INSERT INTO old ("d") VALUES ((((NOW)::text)::date))"#),
        ("UPDATE t SET id = DEFAULT", "Write; lock t_id_seq; Order: the numbering of the rows updated in t", ""),
        (
            "UPDATE t SET at = DEFAULT, day = DEFAULT, b = DEFAULT RETURNING now()",
            "Write",
            r#"UPDATE t SET at = ((NOW)), day = ((NOW::date)), b = DEFAULT RETURNING (NOW) AS "now""#,
        ),
        (
            "EXPLAIN (ANALYZE, COSTS OFF) INSERT INTO t (a) VALUES (now()::text)",
            "Write; lock t_id_seq",
            r#"EXPLAIN (ANALYZE, COSTS OFF) INSERT INTO t (a, "at", "day") VALUES ((NOW)::text, ((NOW)), ((NOW::date)))"#,
        ),
        ("COPY t (id, a, b, at, day) FROM STDIN (FORMAT csv)", "CopyIn", ""),
        ("COPY ident (a) FROM STDIN", "CopyIn; lock ident_id_seq", ""),
        (
            "/*INSERT LOCK*/ INSERT INTO t (a) VALUES (1)",
            "Write; lock t_id_seq",
            r#"/*INSERT LOCK*/ INSERT INTO t (a, "at", "day") VALUES (1, ((NOW)), ((NOW::date)))"#,
        ),
    ];
    check(rows);
}
