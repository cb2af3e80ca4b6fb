//! The words that may stand before a parenthesis without leaving anything behind in a session: clauses, types, and
//! functions of `pg_catalog`. Whatever is not here is suspected, which costs a question to the server and nothing else.

/// In the order of their bytes, for a binary search.
#[rustfmt::skip]
const HARMLESS: &[&str] = &[
    "abs", "acos", "acosh", "age", "all", "and", "any", "array", "array_agg", "array_append", "array_cat",
    "array_dims", "array_fill", "array_length", "array_lower", "array_ndims", "array_position", "array_positions",
    "array_prepend", "array_remove", "array_replace", "array_to_json", "array_to_string", "array_upper", "as", "asc",
    "ascii", "asin", "asinh", "atan", "atan2", "atanh", "avg", "bernoulli", "between", "bigint", "bit", "bit_and",
    "bit_count", "bit_length", "bit_or", "bit_xor", "bool", "bool_and", "bool_or", "boolean", "bound_box", "box",
    "bpchar", "broadcast", "btrim", "by", "bytea", "cardinality", "case", "cast", "cbrt", "ceil", "ceiling", "center",
    "char", "char_length", "character", "character_length", "chr", "cidr", "circle", "clock_timestamp", "coalesce",
    "col_description", "concat", "concat_ws", "conflict", "convert", "convert_from", "convert_to", "corr", "cos",
    "cosd", "cosh", "cot", "cotd", "count", "covar_pop", "covar_samp", "crc32", "crc32c", "cube", "cume_dist",
    "current_catalog", "current_database", "current_date", "current_query", "current_role", "current_schema",
    "current_schemas", "current_setting", "current_time", "current_timestamp", "current_user", "date", "date_add",
    "date_bin", "date_part", "date_subtract", "date_trunc", "daterange", "dec", "decimal", "decode", "degrees",
    "dense_rank", "desc", "diagonal", "diameter", "distinct", "div", "do", "else", "encode", "end", "enum_first",
    "enum_last", "enum_range", "erf", "erfc", "every", "except", "exists", "exp", "explain", "extract", "factorial",
    "false", "family", "fetch", "filter", "first", "first_value", "float", "float4", "float8", "floor", "for",
    "format", "format_type", "from", "full", "gcd", "gen_random_uuid", "generate_series", "generate_subscripts",
    "get_bit", "get_byte", "get_current_ts_config", "greatest", "group", "grouping", "has_any_column_privilege",
    "has_column_privilege", "has_database_privilege", "has_function_privilege", "has_schema_privilege",
    "has_sequence_privilege", "has_table_privilege", "having", "height", "host", "hostmask", "ilike", "in", "index",
    "inet", "inet_client_addr", "inet_client_port", "inet_merge", "inet_same_family", "inet_server_addr",
    "inet_server_port", "initcap", "inner", "int", "int2", "int4", "int4range", "int8", "int8range", "integer",
    "intersect", "interval", "is", "isclosed", "isempty", "isfinite", "isnull", "isopen", "join", "json", "json_agg",
    "json_array", "json_array_elements", "json_array_elements_text", "json_array_length", "json_build_array",
    "json_build_object", "json_each", "json_each_text", "json_exists", "json_extract_path", "json_extract_path_text",
    "json_object", "json_object_agg", "json_object_keys", "json_populate_record", "json_populate_recordset",
    "json_query", "json_strip_nulls", "json_table", "json_to_record", "json_to_recordset", "json_typeof",
    "json_value", "jsonb", "jsonb_agg", "jsonb_array_elements", "jsonb_array_elements_text", "jsonb_array_length",
    "jsonb_build_array", "jsonb_build_object", "jsonb_each", "jsonb_each_text", "jsonb_extract_path",
    "jsonb_extract_path_text", "jsonb_insert", "jsonb_object", "jsonb_object_agg", "jsonb_object_keys",
    "jsonb_path_exists", "jsonb_path_match", "jsonb_path_query", "jsonb_path_query_array", "jsonb_path_query_first",
    "jsonb_populate_record", "jsonb_populate_recordset", "jsonb_pretty", "jsonb_set", "jsonb_set_lax",
    "jsonb_strip_nulls", "jsonb_to_record", "jsonb_to_recordset", "jsonb_typeof", "justify_days", "justify_hours",
    "justify_interval", "key", "lag", "last_value", "lateral", "lcm", "lead", "least", "left", "length", "like",
    "limit", "line", "ln", "localtime", "localtimestamp", "log", "log10", "lower", "lower_inc", "lower_inf", "lpad",
    "lseg", "ltrim", "macaddr8_set7bit", "make_date", "make_interval", "make_time", "make_timestamp",
    "make_timestamptz", "masklen", "materialized", "max", "md5", "min", "min_scale", "mod", "mode", "multirange",
    "nchar", "netmask", "network", "next", "nextval", "normalize", "not", "notnull", "now", "npoints", "nth_value",
    "ntile", "null", "nullif", "nulls", "num_nonnulls", "num_nulls", "numeric", "numnode", "numrange",
    "obj_description", "octet_length", "offset", "oid", "on", "only", "or", "order", "outer", "over", "overlaps",
    "overlay", "parse_ident", "partition", "path", "pclose", "percent_rank", "percentile_cont", "percentile_disc",
    "pg_advisory_xact_lock", "pg_advisory_xact_lock_shared", "pg_backend_pid", "pg_client_encoding",
    "pg_column_compression", "pg_column_size", "pg_conf_load_time", "pg_current_snapshot", "pg_current_wal_flush_lsn",
    "pg_current_wal_insert_lsn", "pg_current_wal_lsn", "pg_current_xact_id", "pg_current_xact_id_if_assigned",
    "pg_database_size", "pg_encoding_to_char", "pg_function_is_visible", "pg_get_constraintdef", "pg_get_expr",
    "pg_get_function_arguments", "pg_get_function_identity_arguments", "pg_get_function_result", "pg_get_functiondef",
    "pg_get_indexdef", "pg_get_keywords", "pg_get_partkeydef", "pg_get_ruledef", "pg_get_serial_sequence",
    "pg_get_statisticsobjdef", "pg_get_triggerdef", "pg_get_userbyid", "pg_get_viewdef", "pg_has_role",
    "pg_indexes_size", "pg_is_in_recovery", "pg_is_other_temp_schema", "pg_last_wal_receive_lsn",
    "pg_last_wal_replay_lsn", "pg_last_xact_replay_timestamp", "pg_my_temp_schema", "pg_notify",
    "pg_postmaster_start_time", "pg_relation_filenode", "pg_relation_size", "pg_safe_snapshot_blocking_pids",
    "pg_size_bytes", "pg_size_pretty", "pg_sleep", "pg_sleep_for", "pg_sleep_until", "pg_snapshot_xip",
    "pg_stat_get_activity", "pg_table_is_visible", "pg_table_size", "pg_tablespace_location", "pg_tablespace_size",
    "pg_total_relation_size", "pg_try_advisory_xact_lock", "pg_try_advisory_xact_lock_shared", "pg_type_is_visible",
    "pg_typeof", "pg_wal_lsn_diff", "pg_walfile_name", "phraseto_tsquery", "pi", "plainto_tsquery", "point",
    "polygon", "popen", "position", "power", "querytree", "quote_ident", "quote_literal", "quote_nullable", "radians",
    "radius", "random", "random_normal", "range", "range_agg", "range_intersect_agg", "range_merge", "rank",
    "recursive", "regclass", "regexp_count", "regexp_instr", "regexp_like", "regexp_match", "regexp_matches",
    "regexp_replace", "regexp_split_to_array", "regexp_split_to_table", "regexp_substr", "regproc", "regr_avgx",
    "regr_avgy", "regr_count", "regr_intercept", "regr_r2", "regr_slope", "regr_sxx", "regr_sxy", "regr_syy",
    "regtype", "repeat", "replace", "returning", "reverse", "right", "rollup", "round", "row", "row_number",
    "row_to_json", "rows", "rpad", "rtrim", "scale", "select", "session_user", "set", "set_bit", "set_byte",
    "set_masklen", "sets", "setval", "setweight", "sha224", "sha256", "sha384", "sha512", "shobj_description", "sign",
    "similar", "sin", "sind", "sinh", "slope", "smallint", "some", "split_part", "sqrt", "starts_with",
    "statement_timestamp", "stddev", "stddev_pop", "stddev_samp", "string_agg", "string_to_array", "string_to_table",
    "strip", "strpos", "substr", "substring", "sum", "suppress_redundant_updates_trigger", "symmetric", "system_user",
    "table", "tablesample", "tan", "tand", "tanh", "text", "then", "time", "timeofday", "timestamp", "timestamptz",
    "timetz", "timezone", "to_ascii", "to_char", "to_date", "to_hex", "to_json", "to_jsonb", "to_number",
    "to_regclass", "to_regcollation", "to_regnamespace", "to_regoper", "to_regoperator", "to_regproc",
    "to_regprocedure", "to_regrole", "to_regtype", "to_timestamp", "to_tsquery", "to_tsvector",
    "transaction_timestamp", "translate", "treat", "trim", "trim_array", "trim_scale", "true", "trunc", "ts_debug",
    "ts_delete", "ts_filter", "ts_headline", "ts_lexize", "ts_parse", "ts_rank", "ts_rank_cd", "ts_rewrite",
    "ts_token_type", "tsquery_phrase", "tsrange", "tstzrange", "tsvector_to_array", "txid_current",
    "txid_current_if_assigned", "union", "unique", "unistr", "unnest", "update", "upper", "upper_inc", "upper_inf",
    "user", "using", "uuid", "uuid_generate_v4", "uuidv4", "uuidv7", "values", "var_pop", "var_samp", "varbit",
    "varchar", "variance", "varying", "verbose", "version", "websearch_to_tsquery", "when", "where", "width",
    "width_bucket", "window", "with", "within", "without", "xmlagg", "xmlattributes", "xmlcomment", "xmlconcat",
    "xmlelement", "xmlexists", "xmlforest", "xmlparse", "xmlpi", "xmlroot", "xmlserialize", "xpath", "xpath_exists",
    "zone",
];

/// True for a lower-case word that leaves nothing behind, whatever its arguments are.
pub fn is_harmless(word: &[u8]) -> bool {
    HARMLESS.binary_search_by(|known| known.as_bytes().cmp(word)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_can_be_searched() {
        assert!(HARMLESS.is_sorted());
        assert!(is_harmless(b"count") && !is_harmless(b"pg_advisory_lock") && !is_harmless(b"setseed"));
    }
}
