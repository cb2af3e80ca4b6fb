//! Tables of texts with what they are and what is sent instead of them.

mod classes;
mod inserts;
mod moments;
mod passwords;
mod reading;
mod tree;
mod unequal;

use super::catalog::{Catalog, Row, Wants};
use super::{Name, Parsed, Plan, Policy};

/// The tables that the rows below write to, as the catalog's question describes them.
const TABLES: &[(&str, &str)] = &[
    (
        "plain",
        r#"{"oid":1,"schema":"public","name":"plain","kind":"r","persistence":"p","columns":[
        {"name":"a"},{"name":"b"},{"name":"at","temporal":true}]}"#,
    ),
    ("s", r#"{"oid":50,"schema":"public","name":"s","kind":"S","persistence":"p"}"#),
    (
        "tmp",
        r#"{"oid":2,"schema":"pg_temp_3","name":"tmp","kind":"r","persistence":"t","columns":[
        {"name":"id","default":"nextval('tmp_id_seq'::regclass)","calls":[{"schema":"pg_catalog","name":"nextval","volatile":true}],
         "sequences":[{"oid":51,"schema":"pg_temp_3","name":"tmp_id_seq"}]},{"name":"a"}]}"#,
    ),
    (
        "t",
        r#"{"oid":3,"schema":"public","name":"t","kind":"r","persistence":"p","columns":[
        {"name":"id","default":"nextval('t_id_seq'::regclass)","calls":[{"schema":"pg_catalog","name":"nextval","volatile":true}],
         "sequences":[{"oid":60,"schema":"public","name":"t_id_seq"}]},
        {"name":"a"},{"name":"b","default":"'x'::text"},
        {"name":"at","temporal":true,"default":"now()","calls":[{"schema":"pg_catalog","name":"now","volatile":false}]},
        {"name":"day","temporal":true,"default":"CURRENT_DATE","calls":[{"schema":"pg_catalog","name":"now","volatile":false}]},
        {"name":"sum","generated":true}]}"#,
    ),
    (
        "ident",
        r#"{"oid":4,"schema":"public","name":"ident","kind":"r","persistence":"p","columns":[
        {"name":"id","identity":true,"sequences":[{"oid":61,"schema":"public","name":"ident_id_seq"}]},{"name":"a"}]}"#,
    ),
    (
        "chance",
        r#"{"oid":5,"schema":"public","name":"chance","kind":"r","persistence":"p","columns":[
        {"name":"id","default":"gen_random_uuid()","calls":[{"schema":"pg_catalog","name":"gen_random_uuid","volatile":true}]},{"name":"a"}]}"#,
    ),
    (
        "guarded",
        r#"{"oid":6,"schema":"public","name":"guarded","kind":"r","persistence":"p","columns":[{"name":"a"}],
        "triggers":[{"name":"audit","on":"guarded","events":20,"function":{"schema":"public","name":"f","volatile":true}},
                    {"name":"calm","on":"guarded","events":8,"function":{"schema":"public","name":"g","volatile":false}}]}"#,
    ),
    (
        "v",
        r#"{"oid":7,"schema":"public","name":"v","kind":"v","persistence":"p","columns":[{"name":"a"},{"name":"moment"}],
        "reads":[{"schema":"pg_catalog","name":"now","volatile":false}],
        "below":[{"schema":"pg_catalog","name":"now","volatile":false},{"schema":"pg_catalog","name":"nextval","volatile":true}],
        "sequences_below":[{"oid":60,"schema":"public","name":"t_id_seq"}]}"#,
    ),
    (
        "vf",
        r#"{"oid":8,"schema":"public","name":"vf","kind":"v","persistence":"p","columns":[{"name":"a"}],
        "reads":[{"schema":"public","name":"volatile_one","volatile":true}]}"#,
    ),
    (
        "locks",
        r#"{"oid":9,"schema":"pg_catalog","name":"pg_locks","kind":"v","persistence":"p","columns":[{"name":"pid"}],
        "reads":[{"schema":"pg_catalog","name":"pg_lock_status","volatile":true}]}"#,
    ),
    (
        "ruled",
        r#"{"oid":10,"schema":"public","name":"ruled","kind":"r","persistence":"p","columns":[{"name":"a"}],
        "rules":[{"name":"log","event":"3","calls":[{"schema":"pg_catalog","name":"now","volatile":false}]}]}"#,
    ),
    ("far", r#"{"oid":11,"schema":"public","name":"far","kind":"f","persistence":"p","columns":[{"name":"a"}]}"#),
    (
        "old",
        r#"{"oid":12,"schema":"public","name":"old","kind":"r","persistence":"p","columns":[{"name":"a"},
        {"name":"d","temporal":true,"default":"('now'::text)::date"}]}"#,
    ),
];

/// Functions of users, and some of PostgreSQL's own.
const FUNCTIONS: &[(&str, &str)] = &[
    ("volatile_one", "v"),
    ("proc", "v"),
    ("stable_one", "s"),
    ("age", "sb"),
    ("count", "ib"),
    ("date", "sb"),
    ("date_trunc", "sb"),
    ("generate_series", "ib"),
    ("length", "ib"),
    ("max", "ib"),
    ("percentile_cont", "ib"),
    ("pg_current_wal_lsn", "vb"),
    ("timezone", "ib"),
    ("to_char", "sb"),
    ("upper", "ib"),
];

/// Everything that a text wants to have known, of the tables above.
fn catalog(wants: &Wants) -> Catalog {
    let mut rows: Vec<Row> = Vec::new();
    for (number, name) in wants.relations.iter().enumerate() {
        if let Some((_, json)) = TABLES.iter().find(|(table, _)| *table == name.name) {
            rows.push(vec![Some("r".into()), Some(number.to_string()), Some((*json).into())]);
        }
    }
    for (number, name) in wants.functions.iter().enumerate() {
        let known = FUNCTIONS.iter().find(|(function, _)| *function == name.name).map_or("-", |(_, known)| known);
        rows.push(vec![Some("f".into()), Some(number.to_string()), Some(known.into())]);
    }
    Catalog::from_rows(wants, &rows).expect("rows of the tables above")
}

fn plan(sql: &str) -> Plan {
    let parsed = Parsed::of(sql).unwrap_or_else(|fault| panic!("{sql}: {fault}"));
    parsed.plan(&catalog(parsed.wants()), &Policy::default())
}

/// A plan in one line: the class, the locks and what stays unequal, as far as there are any.
fn told(plan: &Plan) -> String {
    let mut out: Vec<String> = plan
        .statements
        .iter()
        .map(|step| match &step.inner {
            Some(inner) => format!("{:?} of {inner:?}", step.class),
            None => format!("{:?}", step.class),
        })
        .collect();
    out.extend(plan.locks.iter().map(|lock| format!("lock {}", lock.name)));
    out.extend(plan.unequal.iter().map(|one| format!("{:?}: {}", one.kind, one.what)));
    out.join("; ")
}

/// `sent` with `NOW` for the moment.
fn shortened(sent: &str) -> String {
    sent.replace("pg_catalog.current_setting('pgmend.now')::pg_catalog.timestamptz", "NOW")
        .replace("::pg_catalog.", "::")
}

/// What is sent for a text.
fn sent(sql: &str) -> String {
    let plan = plan(sql);
    if let Some(text) = &plan.rewritten {
        assert!(Parsed::of(text).is_ok(), "{sql} became {text}");
    }
    shortened(plan.rewritten.as_deref().unwrap_or(sql))
}

/// Rows of a text, what it is, and what is sent instead (nothing when it goes as it is).
fn check(rows: &[(&str, &str, &str)]) {
    let faults: Vec<String> = rows
        .iter()
        .filter_map(|(sql, wanted, sends)| {
            let (found, goes) = (told(&plan(sql)), sent(sql));
            let sends = if sends.is_empty() { sql } else { sends };
            (found != *wanted || goes != *sends).then(|| format!("{sql}\n  {found}\n  {goes}"))
        })
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_plan_counts_only_what_is_known() {
    let parsed = Parsed::of("INSERT INTO nobody_asked VALUES (other())").unwrap();
    assert!(parsed.wants().relations.contains(&Name::plain("nobody_asked")));
    let plan = parsed.plan(&Catalog::default(), &Policy::default());
    assert_eq!(told(&plan), "Write; Opaque: table \"nobody_asked\", which is not known,; Function: \"other\"");
}
