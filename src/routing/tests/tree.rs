//! The table of nodes against the serialised form of real trees: no call, statement or cast is missed.

use crate::routing::tree::children;
use pg_query::{NodeEnum, NodeRef};
use serde_json::Value;
use std::collections::BTreeMap;

/// Statements with something in every corner of the grammar.
const CORNERS: &[&str] = &[
    "SELECT DISTINCT ON (f(1)) f(2) FILTER (WHERE f(3)), f(4) OVER (PARTITION BY f(5) ORDER BY f(6) ROWS f(7) PRECEDING), \
     f(8) WITHIN GROUP (ORDER BY f(9)) FROM f(10), LATERAL (SELECT f(11)) x JOIN t ON f(12), ROWS FROM (f(13), f(14)) WITH ORDINALITY \
     WHERE f(15) GROUP BY GROUPING SETS ((f(16)), CUBE (f(17))) HAVING f(18) WINDOW w AS (ORDER BY f(19)) \
     ORDER BY f(20) USING < LIMIT f(21) OFFSET f(22) FOR UPDATE OF t SKIP LOCKED",
    "WITH RECURSIVE a AS (SELECT f(1) UNION ALL SELECT f(2)) SEARCH DEPTH FIRST BY x SET y CYCLE x SET z USING p \
     SELECT CASE f(5) WHEN f(6) THEN f(7) ELSE f(8) END, COALESCE(f(9)), NULLIF(f(10), f(11)), GREATEST(f(12)), ARRAY[f(13)], \
     ARRAY(SELECT f(14)), ROW(f(15)), (f(16)).x, (f(17))[f(18):f(19)], f(20) IN (f(21)), f(22) BETWEEN f(23) AND f(24), \
     f(25) IS NULL, f(26) IS TRUE, f(27) COLLATE \"C\", CAST(f(28) AS int), f(29) AT TIME ZONE f(30), f(31) LIKE f(32) ESCAPE f(33), \
     x = ANY (f(34)), x > ALL (SELECT f(35)), f(a => f(36)), NOT f(37), f(38) AND f(39) OR f(40), EXTRACT(year FROM f(41)), \
     OVERLAY(f(42) PLACING f(43) FROM f(44))",
    "INSERT INTO t (a[f(1)], b) VALUES (f(2), DEFAULT), (f(3), f(4)) ON CONFLICT (f(5)) WHERE f(6) \
     DO UPDATE SET a = f(7), (b, c) = (SELECT f(8), f(9)) WHERE f(10) RETURNING f(11)",
    "UPDATE t SET a = f(1), (b, c) = ROW(f(2), f(3)) FROM u JOIN LATERAL f(4) x ON f(5) WHERE f(6) RETURNING f(7)",
    "DELETE FROM t USING f(1) x WHERE f(2) RETURNING f(3)",
    "MERGE INTO t USING (SELECT f(1)) s ON f(2) WHEN MATCHED AND f(3) THEN UPDATE SET a = f(4) \
     WHEN NOT MATCHED AND f(5) THEN INSERT (a) VALUES (f(6)) WHEN NOT MATCHED BY SOURCE THEN DELETE RETURNING f(7)",
    "SELECT xmlelement(name a, xmlattributes(f(1) AS b), f(2)), xmlforest(f(3)), xmlparse(document f(4)), \
     xmlserialize(content f(5) AS text), f(6) IS DOCUMENT",
    "SELECT * FROM xmltable(xmlnamespaces(f(1) AS x), f(2) PASSING f(3) COLUMNS a int PATH f(4) DEFAULT f(5)), \
     t TABLESAMPLE f(f(6)) REPEATABLE (f(7))",
    "SELECT json_object(f(1) : f(2)), json_array(f(3)), json_array(SELECT f(4)), json_objectagg(f(5) : f(6)) FILTER (WHERE f(7)), \
     json_arrayagg(f(8) ORDER BY f(9)), f(10) IS JSON, json(f(11)), json_scalar(f(12)), json_serialize(f(13)), \
     json_value(f(14), '$' PASSING f(15) AS x DEFAULT f(16) ON EMPTY DEFAULT f(17) ON ERROR)",
    "SELECT * FROM json_table(f(1), '$' PASSING f(2) AS p COLUMNS (a int PATH '$' DEFAULT f(3) ON EMPTY, \
     NESTED PATH '$' COLUMNS (b int DEFAULT f(4) ON ERROR)))",
    "ALTER TABLE t ADD COLUMN a int DEFAULT f(1) CHECK (f(2)) GENERATED ALWAYS AS (f(3)) STORED, ALTER COLUMN b TYPE int USING f(4), \
     ADD CHECK (f(5)), ADD EXCLUDE USING gist (f(6) WITH =) WHERE (f(7))",
    "CREATE TABLE t (a int DEFAULT f(1) REFERENCES u) PARTITION BY RANGE (f(2)); \
     CREATE TABLE p PARTITION OF t FOR VALUES FROM (f(3)) TO (f(4))",
    "CREATE INDEX ON t (f(1)) INCLUDE (a) WHERE f(2); CREATE VIEW v AS SELECT f(3); CREATE MATERIALIZED VIEW m AS SELECT f(4)",
    "CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW WHEN (f(1)) EXECUTE FUNCTION g(); \
     CREATE RULE r AS ON INSERT TO t WHERE f(2) DO ALSO (SELECT f(3); DELETE FROM u WHERE f(4))",
    "CREATE POLICY p ON t USING (f(1)) WITH CHECK (f(2)); CREATE DOMAIN d AS int DEFAULT f(3) CHECK (f(4)); \
     CREATE STATISTICS s ON (f(5)) FROM t",
    "CREATE FUNCTION g(a int DEFAULT f(1)) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT f(2); SELECT f(3); END",
    "PREPARE p AS SELECT f(1); EXECUTE p (f(2)); DECLARE c CURSOR FOR SELECT f(3); EXPLAIN ANALYZE SELECT f(4); CALL g(f(5)); \
     COPY (SELECT f(6)) TO STDOUT; COPY t FROM STDIN WHERE f(7)",
    "CREATE PUBLICATION p FOR TABLE t WHERE (f(1)); CREATE TABLE x AS SELECT f(2); SELECT f(3) INTO y; \
     ALTER DOMAIN d SET DEFAULT f(4); VALUES (f(5)) ORDER BY f(6)",
    "SELECT CURRENT_DATE, a FROM (VALUES (CURRENT_TIME)) x (a) WHERE a < CURRENT_TIMESTAMP + LOCALTIME - LOCALTIMESTAMP(3)",
];

/// Kinds that decide something; the rest only leads to them.
const COUNTED: &[&str] = &[
    "FuncCall",
    "SqlvalueFunction",
    "SelectStmt",
    "InsertStmt",
    "UpdateStmt",
    "DeleteStmt",
    "MergeStmt",
    "TypeCast",
    "AConst",
];

fn by_table(node: NodeRef<'_>, found: &mut BTreeMap<String, usize>) {
    let kind = format!("{node:?}");
    let kind = kind.split('(').next().unwrap_or_default();
    if COUNTED.contains(&kind) {
        *found.entry(kind.to_owned()).or_default() += 1;
    }
    children(node, &mut |child| by_table(child, found));
}

/// The kind of an object by its fields: where the grammar leaves no choice, a node stands without its kind's name.
fn kind_by_fields(fields: &serde_json::Map<String, Value>) -> Option<&'static str> {
    let has = |name: &str| fields.contains_key(name);
    Some(match () {
        () if has("funcname") && has("agg_star") => "FuncCall",
        () if has("values_lists") && has("larg") => "SelectStmt",
        () if has("on_conflict_clause") => "InsertStmt",
        () if has("merge_when_clauses") => "MergeStmt",
        () if has("using_clause") && has("relation") => "DeleteStmt",
        () if has("isnull") && has("val") => "AConst",
        () => return None,
    })
}

fn serialised(value: &Value, found: &mut BTreeMap<String, usize>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| serialised(item, found)),
        Value::Object(fields) => {
            let mut count = |kind: &str| *found.entry(kind.to_owned()).or_default() += 1;
            if let Some(kind) = kind_by_fields(fields) {
                count(kind);
            }
            fields
                .keys()
                .filter(|name| matches!(name.as_str(), "SqlvalueFunction" | "TypeCast" | "UpdateStmt"))
                .for_each(|name| count(name));
            fields.values().for_each(|below| serialised(below, found));
        }
        _ => {}
    }
}

#[test]
fn the_walk_misses_nothing() {
    for sql in CORNERS {
        let tree = pg_query::parse(sql, 0).unwrap_or_else(|fault| panic!("{sql}: {fault}")).protobuf;
        let mut wanted = BTreeMap::new();
        serialised(&serde_json::to_value(&tree).expect("a tree is JSON"), &mut wanted);
        let mut found = BTreeMap::new();
        let statements = tree.stmts.iter().filter_map(|raw| raw.stmt.as_ref()?.node.as_ref());
        statements.map(NodeEnum::to_ref).for_each(|node| by_table(node, &mut found));
        assert_eq!(found, wanted, "{sql}");
    }
}
