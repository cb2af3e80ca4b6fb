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
            "Write; lock t_id_seq; Order: the numbering of the rows inserted into t",
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
            "Write",
            "UPDATE t SET at = ((NOW)), (day, a) = (((NOW::date)), 1) WHERE b = 'today'",
        ),
        (
            "MERGE INTO t USING plain p ON t.a = p.a WHEN MATCHED THEN UPDATE SET at = DEFAULT WHEN NOT MATCHED THEN INSERT (a) VALUES (p.a)",
            "Write; lock t_id_seq; Default: column t.at; Default: column t.day; Order: the numbering of the rows inserted into t",
            "MERGE INTO t USING plain p ON t.a = p.a WHEN MATCHED THEN UPDATE SET at = ((NOW)) WHEN NOT MATCHED THEN INSERT (a) VALUES (p.a)",
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
