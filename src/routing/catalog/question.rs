//! The SELECT that asks the main node's catalog for relations and functions.
//!
//! Stored expressions are read as trees (`adbin`, `ev_action`), in which each call has its function's oid: names could
//! mislead. Everything is named with `pg_catalog`, since the connection has the client's `search_path`.

use super::Wants;
use crate::base::literal;
use crate::routing::name::Name;

pub(super) fn of(wants: &Wants) -> Option<String> {
    let relations = (!wants.relations.is_empty()).then(|| relations(wants.relations.iter()));
    let functions = (!wants.functions.is_empty()).then(|| functions(wants.functions.iter()));
    match (relations, functions) {
        (Some(relations), Some(functions)) => Some(format!("({relations}) UNION ALL ({functions})")),
        (one, other) => one.or(other),
    }
}

fn functions<'a>(names: impl Iterator<Item = &'a Name>) -> String {
    let values = names.enumerate().map(|(number, name)| {
        let schema = name.schema.as_deref().map_or("NULL".into(), literal);
        format!("({number}, {schema}, {})", literal(&name.name))
    });
    let values = values.collect::<Vec<_>>().join(", ");
    format!(
        "SELECT 'f', w.n::text, coalesce(pg_catalog.max(p.provolatile::text) \
         || CASE WHEN pg_catalog.bool_and(p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace) THEN 'b' ELSE '' END, '-') \
         FROM (VALUES {values}) w(n, schema, name) LEFT JOIN pg_catalog.pg_proc p ON p.proname = w.name \
         AND CASE WHEN w.schema IS NULL THEN pg_catalog.pg_function_is_visible(p.oid) \
         ELSE p.pronamespace = (SELECT s.oid FROM pg_catalog.pg_namespace s WHERE s.nspname = w.schema) END GROUP BY w.n"
    )
}

fn relations<'a>(names: impl Iterator<Item = &'a Name>) -> String {
    let values = names.enumerate().map(|(number, name)| format!("({number}, {})", literal(&name.to_string())));
    let values = values.collect::<Vec<_>>().join(", ");
    RELATIONS
        .replace("{values}", &values)
        .replace("{column_calls}", &calls("d.tree"))
        .replace("{rule_calls}", &calls("w.ev_action"))
        .replace(
            "{view_calls}",
            &calls(
                "pg_catalog.array_to_string(ARRAY(SELECT w.ev_action::text FROM below b JOIN pg_catalog.pg_rewrite w \
                ON w.ev_class = b.oid AND w.ev_type = '1' WHERE b.n = q.n), ' ')",
            ),
        )
        .replace(
            "{set_default_calls}",
            &calls(
                "pg_catalog.array_to_string(ARRAY(SELECT d.adbin::text FROM written w JOIN pg_catalog.pg_constraint k \
                ON k.confrelid = w.oid AND k.contype = 'f' AND 'd' IN (k.confdeltype, k.confupdtype) \
                JOIN pg_catalog.pg_attrdef d ON d.adrelid = k.conrelid AND d.adnum = ANY (k.conkey) WHERE w.n = q.n), ' ')",
            ),
        )
        .replace(
            "{below_calls}",
            &calls(
                "pg_catalog.array_to_string(ARRAY(SELECT d.adbin::text FROM below b JOIN pg_catalog.pg_attrdef d \
                ON d.adrelid = b.oid WHERE b.n = q.n AND b.oid <> c.oid), ' ')",
            ),
        )
}

/// The functions in the text of stored trees, unless immutable. The words of the standard for a moment have nodes of their own.
fn calls(tree: &str) -> String {
    format!(
        "(SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_object('schema', f.schema, 'name', f.name, 'volatile', f.volatile)), '[]') \
         FROM (SELECT DISTINCT s.nspname AS schema, p.proname AS name, p.provolatile = 'v' AS volatile \
         FROM pg_catalog.regexp_matches({tree}::text, ':(?:funcid|opfuncid|aggfnoid|winfnoid) ([0-9]+)', 'g') m \
         JOIN pg_catalog.pg_proc p ON p.oid = m[1]::pg_catalog.oid JOIN pg_catalog.pg_namespace s ON s.oid = p.pronamespace \
         WHERE p.provolatile <> 'i' UNION SELECT 'pg_catalog', 'now', false WHERE {tree}::text ~ '[{{]SQLVALUEFUNCTION :op [0-8] ') f)"
    )
}

/// `below`: the relation and, for a view, what stands below it. `written`: `below`, with children, partitions and what
/// foreign keys change.
const RELATIONS: &str = "\
WITH RECURSIVE wanted(n, oid) AS (
    SELECT v.n, pg_catalog.to_regclass(v.name)::pg_catalog.oid FROM (VALUES {values}) v(n, name)
), below(n, oid) AS (
    SELECT n, oid FROM wanted WHERE oid IS NOT NULL
    UNION
    SELECT b.n, d.refobjid FROM below b
    JOIN pg_catalog.pg_class v ON v.oid = b.oid AND v.relkind IN ('v', 'm')
    JOIN pg_catalog.pg_rewrite w ON w.ev_class = b.oid AND w.ev_type = '1'
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = w.oid
        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid <> b.oid
), written(n, oid, cascaded) AS (
    SELECT n, oid, false FROM below
    UNION
    SELECT r.n, x.oid, x.cascaded FROM written r CROSS JOIN LATERAL (
        SELECT i.inhrelid, r.cascaded FROM pg_catalog.pg_inherits i WHERE i.inhparent = r.oid
        UNION ALL
        SELECT k.conrelid, true FROM pg_catalog.pg_constraint k WHERE k.confrelid = r.oid AND k.contype = 'f'
            AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd'))
    ) x(oid, cascaded)
)
SELECT 'r', q.n::text, pg_catalog.json_build_object(
    'oid', c.oid::pg_catalog.int8, 'schema', s.nspname, 'name', c.relname, 'kind', c.relkind::text, 'persistence', c.relpersistence::text,
    'columns', (SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
            'name', a.attname, 'temporal', t.typcategory = 'D', 'identity', a.attidentity <> '', 'generated', a.attgenerated <> '',
            'default', d.expression, 'calls', {column_calls},
            'sequences', (SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_object('oid', e.oid::pg_catalog.int8, 'schema', es.nspname, 'name', e.relname)), '[]')
                FROM pg_catalog.pg_class e JOIN pg_catalog.pg_namespace es ON es.oid = e.relnamespace
                WHERE e.relkind = 'S' AND (e.oid IN (SELECT g.refobjid FROM pg_catalog.pg_depend g
                        WHERE g.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND g.objid = d.oid
                        AND g.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass)
                    OR e.oid IN (SELECT g.objid FROM pg_catalog.pg_depend g WHERE a.attidentity <> ''
                        AND g.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND g.deptype = 'i'
                        AND g.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND g.refobjid = a.attrelid AND g.refobjsubid = a.attnum)))
        ) ORDER BY a.attnum), '[]')
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
        LEFT JOIN pg_catalog.pg_attrdef ad ON ad.adrelid = a.attrelid AND ad.adnum = a.attnum AND a.attgenerated = ''
        CROSS JOIN LATERAL (SELECT ad.oid,
            coalesce(pg_catalog.pg_get_expr(ad.adbin, ad.adrelid), pg_catalog.pg_get_expr(t.typdefaultbin, 0)) AS expression,
            coalesce(ad.adbin::text, t.typdefaultbin::text) AS tree) d
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'f', 'v')),
    'triggers', (SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
            'name', g.tgname, 'on', tc.relname, 'events', g.tgtype, 'cascaded', r.cascaded,
            'function', pg_catalog.json_build_object('schema', fs.nspname, 'name', f.proname, 'volatile', f.provolatile = 'v'))), '[]')
        FROM (SELECT w.oid, pg_catalog.bool_and(w.cascaded) AS cascaded FROM written w WHERE w.n = q.n GROUP BY w.oid) r
        JOIN pg_catalog.pg_trigger g ON g.tgrelid = r.oid AND NOT g.tgisinternal AND g.tgenabled IN ('O', 'A')
        JOIN pg_catalog.pg_class tc ON tc.oid = r.oid
        JOIN pg_catalog.pg_proc f ON f.oid = g.tgfoid JOIN pg_catalog.pg_namespace fs ON fs.oid = f.pronamespace),
    'rules', (SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_object('name', w.rulename, 'event', w.ev_type::text, 'calls', {rule_calls})), '[]')
        FROM pg_catalog.pg_rewrite w WHERE w.ev_class = c.oid AND w.ev_type <> '1' AND w.ev_enabled IN ('O', 'A')),
    'reads', {view_calls},
    'set_defaults', {set_default_calls},
    'below', CASE WHEN c.relkind = 'v' THEN {below_calls} ELSE '[]' END,
    'sequences_below', (SELECT coalesce(pg_catalog.json_agg(DISTINCT pg_catalog.jsonb_build_object('oid', e.oid::pg_catalog.int8, 'schema', es.nspname, 'name', e.relname)), '[]')
        FROM below b JOIN pg_catalog.pg_depend g ON g.deptype IN ('n', 'i', 'a') AND c.relkind = 'v' AND b.n = q.n AND (
            (g.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND g.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                AND g.objid IN (SELECT d.oid FROM pg_catalog.pg_attrdef d WHERE d.adrelid = b.oid))
            OR (g.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND g.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                AND g.refobjid = b.oid AND g.deptype = 'i'))
        JOIN pg_catalog.pg_class e ON e.relkind = 'S' AND e.oid IN (g.objid, g.refobjid)
        JOIN pg_catalog.pg_namespace es ON es.oid = e.relnamespace)
)::text
FROM wanted q JOIN pg_catalog.pg_class c ON c.oid = q.oid JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace";
