//! The SQL of a comparison. Every question gives rows of (name, digest); names are unique within a database.

/// So that the text of a value is the same on both nodes whatever they are configured with, and nothing is found by a
/// search path.
pub const SESSION: &str = "SET search_path = pg_catalog; SET statement_timeout = 0; SET lock_timeout = 0; \
    SET idle_in_transaction_session_timeout = 0; SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; \
    SET timezone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = 'hex'; SET xmloption = 'content'; \
    SET row_security = off; SET default_transaction_read_only = on; SET lc_monetary = 'C'";

/// Databases that can be connected to.
pub const DATABASES: &str = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname";

/// What all databases share.
pub const SHARED: &str = "SELECT 'role ' || rolname, md5(concat_ws('|', rolsuper, rolinherit, rolcreaterole, rolcreatedb, \
        rolcanlogin, rolreplication, rolbypassrls, rolconnlimit, rolvaliduntil, rolpassword)) FROM pg_authid \
        WHERE rolname !~ '^pg_' \
    UNION ALL SELECT DISTINCT 'membership of ' || m.rolname || ' in ' || r.rolname, '' FROM pg_auth_members a \
        JOIN pg_roles m ON m.oid = a.member JOIN pg_roles r ON r.oid = a.roleid \
    UNION ALL SELECT 'database ' || datname, md5(concat_ws('|', pg_encoding_to_char(encoding), datcollate, datctype, \
        datistemplate, datallowconn, datconnlimit, pg_get_userbyid(datdba))) FROM pg_database \
    UNION ALL SELECT 'settings of ' || coalesce(r.rolname, 'all roles') || ' in ' || coalesce(d.datname, 'all databases'), \
        md5(s.setconfig::text) FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole \
        LEFT JOIN pg_database d ON d.oid = s.setdatabase";

/// What the objects of a database are.
pub const DEFINITIONS: &str = "WITH own AS (SELECT oid, nspname FROM pg_namespace \
        WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'), \
    relation AS (SELECT c.*, own.nspname, format('%I.%I', own.nspname, c.relname) AS name \
        FROM pg_class c JOIN own ON own.oid = c.relnamespace WHERE c.relpersistence <> 't') \
    SELECT 'schema ' || nspname, '' FROM own \
    UNION ALL SELECT 'definition of ' || r.name, md5(concat_ws('|', r.relkind, r.relpersistence, r.relrowsecurity, \
        pg_get_userbyid(r.relowner), r.relacl::text, (SELECT string_agg(concat_ws(' ', a.attname, \
        format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, \
        pg_get_expr(d.adbin, d.adrelid)), ',' ORDER BY a.attnum) FROM pg_attribute a LEFT JOIN pg_attrdef d \
        ON d.adrelid = a.attrelid AND d.adnum = a.attnum WHERE a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped))) \
        FROM relation r WHERE r.relkind IN ('r', 'p', 'm', 'v', 'f', 'c') \
    UNION ALL SELECT 'view ' || r.name, md5(pg_get_viewdef(r.oid)) FROM relation r WHERE r.relkind IN ('v', 'm') \
    UNION ALL SELECT 'index ' || r.name, md5(concat_ws('|', pg_get_indexdef(r.oid), i.indisvalid)) FROM relation r \
        JOIN pg_index i ON i.indexrelid = r.oid WHERE r.relkind IN ('i', 'I') \
    UNION ALL SELECT 'constraint ' || c.conname || ' of ' || coalesce(r.name, t.typname), \
        md5(string_agg(pg_get_constraintdef(c.oid), ',' ORDER BY pg_get_constraintdef(c.oid))) \
        FROM pg_constraint c JOIN own ON own.oid = c.connamespace \
        LEFT JOIN relation r ON r.oid = c.conrelid LEFT JOIN pg_type t ON t.oid = c.contypid \
        GROUP BY c.conname, r.name, t.typname \
    UNION ALL SELECT 'trigger ' || t.tgname || ' of ' || r.name, md5(concat_ws('|', pg_get_triggerdef(t.oid), t.tgenabled)) \
        FROM pg_trigger t JOIN relation r ON r.oid = t.tgrelid WHERE NOT t.tgisinternal \
    UNION ALL SELECT 'rule ' || w.rulename || ' of ' || r.name, md5(pg_get_ruledef(w.oid)) FROM pg_rewrite w \
        JOIN relation r ON r.oid = w.ev_class WHERE w.rulename <> '_RETURN' \
    UNION ALL SELECT 'policy ' || p.polname || ' of ' || r.name, md5(concat_ws('|', p.polcmd, p.polpermissive, \
        pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))) FROM pg_policy p \
        JOIN relation r ON r.oid = p.polrelid \
    UNION ALL SELECT 'function ' || format('%I.%I(%s)', own.nspname, p.proname, pg_get_function_identity_arguments(p.oid)), \
        md5(concat_ws('|', p.prokind, p.prosrc, p.probin, p.provolatile, p.prosecdef, p.proisstrict, \
        pg_get_function_result(p.oid), p.proconfig::text, p.proacl::text)) FROM pg_proc p JOIN own ON own.oid = p.pronamespace \
    UNION ALL SELECT 'type ' || format('%I.%I', own.nspname, t.typname), md5(concat_ws('|', t.typtype, \
        format_type(t.typbasetype, t.typtypmod), t.typnotnull, t.typdefault, (SELECT string_agg(e.enumlabel, ',' \
        ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid))) FROM pg_type t \
        JOIN own ON own.oid = t.typnamespace WHERE t.typtype IN ('d', 'e', 'r', 'm') \
    UNION ALL SELECT 'extension ' || extname, extversion FROM pg_extension \
    UNION ALL SELECT 'large objects', concat_ws(' ', count(*), sum(('x' || left(md5(concat_ws('|', loid, pageno, \
        encode(data, 'hex'))), 16))::bit(64)::bigint::numeric)) FROM pg_largeobject";

/// Names of the relations with rows of their own, quoted: of temporary tables and catalogues none is equal anyway.
pub const TABLES: &str = "SELECT format('%I.%I', n.nspname, c.relname), c.relkind::text FROM pg_class c \
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'm', 'S') AND c.relpersistence <> 't' \
    AND (c.relkind <> 'm' OR c.relispopulated) \
    AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1";

/// The rows of one table, whatever their order: their number and the sum of their digests.
pub fn rows_of(table: &str) -> String {
    // The alias is one that no column has, so that it means the whole row.
    format!(
        "SELECT concat_ws(' ', count(*), sum(('x' || left(md5((\"pgmend row\")::text), 16))::bit(64)::bigint::numeric)) \
         FROM ONLY {table} AS \"pgmend row\""
    )
}

/// Where these sequences stand.
pub fn standings(sequences: &[String]) -> String {
    let each = sequences.iter().map(|name| {
        let text = crate::server::sql::literal(name);
        format!("SELECT {text}, concat_ws(' ', last_value, is_called) FROM {name}")
    });
    each.collect::<Vec<_>>().join(" UNION ALL ")
}
