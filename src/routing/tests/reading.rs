//! What can be read, how deep and how long; the parts of a text of several statements; what blocks allow.

use super::plan;
use crate::routing::parsed::MAX_TEXT;
use crate::routing::{Block, Catalog, Kind, Parsed, Policy, Unparsed, Verdict, Wants};

#[test]
fn some_statements_refuse_a_transaction_block() {
    let rows: &[(&str, Block)] = &[
        ("VACUUM plain", Block::Refused),
        ("ANALYZE plain", Block::Allowed),
        ("CREATE DATABASE x", Block::Refused),
        ("DROP DATABASE x", Block::Refused),
        ("ALTER DATABASE x SET TABLESPACE y", Block::Refused),
        ("ALTER DATABASE x SET work_mem = '1MB'", Block::Allowed),
        ("CREATE TABLESPACE x LOCATION '/x'", Block::Refused),
        ("ALTER SYSTEM SET work_mem = '1MB'", Block::Refused),
        ("CREATE INDEX CONCURRENTLY ON plain (a)", Block::Refused),
        ("CREATE INDEX ON plain (a)", Block::Allowed),
        ("DROP INDEX CONCURRENTLY i", Block::Refused),
        ("REINDEX INDEX CONCURRENTLY i", Block::Refused),
        ("REINDEX (CONCURRENTLY false) INDEX i", Block::Allowed),
        ("REINDEX DATABASE x", Block::Refused),
        ("CLUSTER", Block::Refused),
        ("CLUSTER plain USING i", Block::Allowed),
        ("ALTER TABLE t DETACH PARTITION p CONCURRENTLY", Block::Refused),
        ("ALTER TABLE t DETACH PARTITION p", Block::Allowed),
        ("COMMIT PREPARED 'x'", Block::Refused),
        ("DISCARD ALL", Block::Refused),
        ("DISCARD PLANS", Block::Allowed),
        ("CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p", Block::Refused),
        ("CALL proc(1)", Block::MayCommit),
        ("DO 'BEGIN END'", Block::MayCommit),
        ("INSERT INTO plain VALUES (1)", Block::Allowed),
    ];
    for (sql, block) in rows {
        assert_eq!(plan(sql).statements[0].block, *block, "{sql}");
    }
}

#[test]
fn only_what_needs_one_node_is_read_only() {
    for sql in
        ["SELECT 1", "", "SHOW ALL", "COPY plain TO STDOUT", "COPY (SELECT 1) TO STDOUT", "EXPLAIN DELETE FROM plain"]
    {
        assert!(plan(sql).read_only(), "{sql}");
    }
    for sql in [
        "SELECT * FROM plain FOR UPDATE",
        "SELECT nextval('s')",
        "SELECT 1; DELETE FROM plain",
        "COPY (SELECT nextval('s')) TO STDOUT",
        "BEGIN",
        "DECLARE c CURSOR FOR SELECT 1 FOR SHARE",
        "EXECUTE p",
        "LOCK plain",
    ] {
        assert!(!plan(sql).read_only(), "{sql}");
    }
}

#[test]
fn each_statement_of_a_text_has_its_part() {
    let sql = " BEGIN ;\n-- one\nINSERT INTO t (a) VALUES (1); /* two */ SELECT now() ; SELECT 'x;y';";
    let plan = plan(sql);
    let parts: Vec<_> = plan.statements.iter().map(|step| sql[step.range.clone()].trim()).collect();
    assert_eq!(parts, ["BEGIN", "-- one\nINSERT INTO t (a) VALUES (1)", "/* two */ SELECT now()", "SELECT 'x;y'"]);
    let sent: Vec<_> = plan.statements.iter().map(|step| step.rewritten.is_some()).collect();
    assert_eq!(sent, [false, true, true, false]);
    let whole: String = plan
        .statements
        .iter()
        .map(|step| format!("{};", step.rewritten.as_deref().unwrap_or(&sql[step.range.clone()])))
        .collect();
    let spaceless = |text: &str| text.replace(' ', "");
    assert_eq!(plan.rewritten.as_deref().map(spaceless), Some(spaceless(&whole)), "the whole is its parts");
    let sql = "BEGIN; SELECT now() /* x */ -- y\n ; ROLLBACK -- z";
    let plan = super::plan(sql);
    let parts: Vec<_> = plan.statements.iter().map(|step| &sql[step.range.clone()]).collect();
    assert_eq!(parts, ["BEGIN", " SELECT now()", " ROLLBACK"]);
    let plan = super::plan("INSERT INTO t (a) VALUES (1); SELECT now() ;");
    assert_eq!(plan.statements[0].locks, plan.locks);
    assert!(plan.statements[1].uses_now && plan.statements[1].locks.is_empty());
}

#[test]
fn what_cannot_be_read_is_known_by_its_words_alone() {
    let kinds = |sql: &str| -> Vec<Kind> {
        let fault = Parsed::of(sql).err().unwrap_or_else(|| panic!("{sql} can be read"));
        fault.unequal(sql).iter().map(|one| one.kind).collect()
    };
    assert_eq!(kinds("SELEC 1"), [Kind::Opaque]);
    assert_eq!(kinds("INSRT INTO t VALUES (now(), 'random()', Random())"), [Kind::Opaque, Kind::Clock, Kind::Random]);
    assert_eq!(kinds("x CURRENT_DATE nextval"), [Kind::Opaque, Kind::Clock, Kind::Sequence]);
    assert_eq!(kinds("SELECT 'open"), [Kind::Opaque]);
    assert_eq!(kinds("SELECT '\0'"), [Kind::Opaque]);
    let long = format!("SELECT '{}'", "x".repeat(MAX_TEXT));
    assert_eq!(Parsed::of(&long).err(), Some(Unparsed::TooLong));
}

#[test]
fn expressions_within_each_other_are_read_or_refused() {
    let forms: [(&str, &str, &str, &str); 10] = [
        ("SELECT now()", " || now()", "", ""),
        ("SELECT ", "NOT ", "now() IS NULL", ""),
        ("SELECT ", "(SELECT ", "now()", ")"),
        ("SELECT ", "f(", "now()", ")"),
        ("SELECT ARRAY", "[", "now()", "]"),
        ("SELECT ", "CASE WHEN ", "now() IS NULL", " THEN 1 END"),
        ("SELECT now()", "::text", "", ""),
        ("SELECT now(), 1", " UNION ALL SELECT now(), 1", "", ""),
        ("SELECT now() FROM plain", " CROSS JOIN plain", "", ""),
        ("SELECT now() ", "FROM (SELECT now() ", "", ") x"),
    ];
    for (start, repeated, middle, closed) in forms {
        for times in [1, 10, 15, 16, 17, 20, 23, 24, 25, 30, 45, 50, 120, 5000] {
            let sql = format!("{start}{}{middle}{}", repeated.repeat(times), closed.repeat(times));
            match Parsed::of(&sql) {
                Ok(parsed) => {
                    let plan = parsed.plan(&Catalog::default(), &Policy::default());
                    let moments = plan.rewritten.as_deref().unwrap_or_default().matches("pgmend.now").count();
                    assert_eq!(moments, sql.matches("now()").count(), "{start}{repeated} {times}");
                }
                Err(fault) => assert!(times > 120, "{start}{repeated} {times}: {fault}"),
            }
        }
    }
}

#[test]
fn comments_in_front_are_taken_for_hints() {
    assert_eq!(plan("/*NO INSERT LOCK*/ INSERT INTO t (a) VALUES (1)").hints.insert_lock, Some(false));
    assert!(plan("-- x\n/* REPLICATION */ SELECT 1").hints.replicate);
    assert_eq!(plan("INSERT INTO t (a) /*NO INSERT LOCK*/ VALUES (1)").hints.insert_lock, None);
    let parsed = Parsed::of("INSERT INTO ident (a) VALUES (1)").expect("SQL");
    let catalog = super::catalog(parsed.wants());
    let off = Policy { insert_lock: false, ..Policy::default() };
    assert!(parsed.plan(&catalog, &off).locks.is_empty());
    let parsed = Parsed::of("SELECT 1").expect("SQL");
    let all = Policy { replicate_select: true, ..Policy::default() };
    assert!(!parsed.plan(&Catalog::default(), &all).read_only());
}

#[test]
fn the_policy_has_the_last_word() {
    let chance = plan("INSERT INTO plain (a) VALUES (random())");
    let values = |values| Policy { values, ..Policy::default() };
    assert_eq!(chance.verdict(&values(Verdict::Refuse)), Verdict::Refuse);
    assert_eq!(chance.verdict(&values(Verdict::Warn)), Verdict::Warn);
    assert_eq!(chance.verdict(&values(Verdict::Allow)), Verdict::Allow);
    assert_eq!(plan("SELECT 1").verdict(&Policy::default()), Verdict::Allow);
    assert_eq!(chance.unequal[0].to_string(), "random() gives another value on every node");
}

#[test]
fn a_catalog_asks_only_for_what_it_lacks() {
    let parsed = Parsed::of("INSERT INTO \"T\\'\" SELECT upper(a), other.f() FROM s.u, now()").expect("SQL");
    let wants = parsed.wants();
    let names: Vec<_> = wants.relations.iter().chain(&wants.functions).map(ToString::to_string).collect();
    assert_eq!(names, ["\"T\\'\"", "\"s\".\"u\"", "\"upper\"", "\"other\".\"f\""]);
    let question = wants.question().expect("a question");
    assert!(question.contains(r#" E'"T\\''"'"#) && question.contains("'upper'"), "{question}");
    assert!(Parsed::of(&question).is_ok());
    let mut catalog = super::catalog(wants);
    assert!(catalog.lacks(wants).is_empty() && catalog.len() == 4);
    assert_eq!(catalog.lacks(wants).question(), None);
    // What is not the answer is not learnt.
    let more = Parsed::of("SELECT lower(a) FROM w").expect("SQL");
    let strange = [
        vec![],
        vec![vec![Some("r".into()), Some("9".into()), Some("{}".into())]],
        vec![vec![Some("r".into()), Some("0".into()), Some("{}".into())]],
        vec![vec![Some("f".into()), Some("0".into()), Some("x".into())]],
        vec![vec![Some("f".into()), None, None]],
        vec![vec![Some("f".into())]],
    ];
    for rows in strange {
        assert!(catalog.learn(more.wants(), &rows).is_err(), "{rows:?}");
    }
    assert_eq!(catalog.len(), 4);
    assert!(Wants::default().question().is_none());
}
