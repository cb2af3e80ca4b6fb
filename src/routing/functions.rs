//! PostgreSQL's own functions that matter when one statement runs on several nodes.
//!
//! Volatility alone does not tell: `random()` and `pg_advisory_lock()` are both volatile, `inet_server_addr()` is stable.
//! Tables: <https://www.postgresql.org/docs/current/functions.html>.

use super::name::Name;
use super::policy::Kind;

/// What a call does to the equality of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nature {
    /// Nothing.
    Plain,
    /// Another value at each call, by chance.
    Random,
    /// The moment of the call.
    Clock,
    /// A value of this server: process, transaction, file, size.
    Server,
    /// Takes a number from a sequence, or sets it.
    TakesNumber,
    /// Leaves something on the server, the same on each node: locks, settings, notices.
    Effect,
    /// Makes a large object whose number the server chooses, unless one is given.
    LargeObject,
    /// A moment, rewritten where the text has it.
    Moment,
}

const RANDOM: &[&str] = &[
    "random",
    "random_normal",
    "gen_random_uuid",
    "uuidv4",
    "uuidv7",
    "gen_random_bytes",
    "gen_salt",
    "uuid_generate_v1",
    "uuid_generate_v1mc",
    "uuid_generate_v4",
];
const CLOCK: &[&str] =
    &["clock_timestamp", "statement_timestamp", "timeofday", "pg_postmaster_start_time", "pg_conf_load_time"];
const MOMENT: &[&str] = &["now", "transaction_timestamp"];
/// Stable, or volatile and called for their value.
const SERVER: &[&str] = &[
    "pg_backend_pid",
    "pg_current_xact_id",
    "pg_current_xact_id_if_assigned",
    "pg_current_snapshot",
    "txid_current",
    "txid_current_if_assigned",
    "txid_current_snapshot",
    "inet_server_addr",
    "inet_server_port",
    "inet_client_addr",
    "inet_client_port",
    "pg_my_temp_schema",
    "pg_relation_filenode",
    "pg_relation_filepath",
    "mxid_age",
    "version",
];
const TAKES_NUMBER: &[&str] = &["nextval", "setval"];
const EFFECT: &[&str] = &[
    "set_config",
    "setseed",
    "pg_notify",
    "lo_open",
    "lo_close",
    "lo_get",
    "lo_put",
    "lo_lseek",
    "lo_lseek64",
    "lo_tell",
    "lo_tell64",
    "lo_truncate",
    "lo_truncate64",
    "lo_unlink",
    "lo_export",
    "loread",
    "lowrite",
    "pg_reload_conf",
    "pg_rotate_logfile",
    "pg_switch_wal",
    "pg_create_restore_point",
    "pg_logical_emit_message",
    "pg_export_snapshot",
    "pg_import_system_collations",
    "pg_extension_config_dump",
    "gin_clean_pending_list",
    "brin_desummarize_range",
    "brin_summarize_new_values",
    "brin_summarize_range",
    "pg_create_physical_replication_slot",
    "pg_create_logical_replication_slot",
    "pg_copy_physical_replication_slot",
    "pg_copy_logical_replication_slot",
    "pg_drop_replication_slot",
    "pg_replication_slot_advance",
    "pg_logical_slot_get_changes",
    "pg_logical_slot_get_binary_changes",
    "pg_wal_replay_pause",
    "pg_wal_replay_resume",
    "pg_promote",
    "pg_restore_relation_stats",
    "pg_restore_attribute_stats",
    "pg_clear_relation_stats",
    "pg_clear_attribute_stats",
];
const EFFECT_BEGINS: &[&str] =
    &["pg_advisory_", "pg_try_advisory_", "pg_stat_reset", "pg_replication_origin_", "binary_upgrade_"];
/// Run text that nothing here sees.
const RUNS_TEXT: &[&str] =
    &["query_to_xml", "query_to_xmlschema", "query_to_xml_and_xmlschema", "ts_rewrite", "ts_stat"];
const LARGE_OBJECT: &[&str] = &["lo_creat", "lo_create", "lo_import", "lo_from_bytea"];
/// Volatile, and yet the same everywhere.
const PLAIN: &[&str] = &[
    "currval",
    "pg_sleep",
    "pg_sleep_for",
    "pg_sleep_until",
    "lastval",
    "current_query",
    "pg_partition_tree",
    "pg_partition_ancestors",
    "pg_collation_actual_version",
    "suppress_redundant_updates_trigger",
    "tsvector_update_trigger",
    "tsvector_update_trigger_column",
];

/// What is known of a name without the catalog; `None` when it must be asked for.
pub(super) fn known(name: &Name) -> Option<Nature> {
    if RANDOM.contains(&name.name.as_str()) {
        // Of PostgreSQL or of the extensions pgcrypto and uuid-ossp.
        return Some(Nature::Random);
    }
    if !name.may_be_builtin() {
        return None;
    }
    by_name(&name.name)
}

/// What is known of one of PostgreSQL's own functions; volatile ones that are not listed are called for their value.
pub(super) fn builtin(name: &str, volatile: bool) -> Nature {
    by_name(name).unwrap_or(if volatile { Nature::Server } else { Nature::Plain })
}

/// A word of a text that cannot be read, when it is known to give another value on every node.
pub(super) fn suspected(word: &str) -> Option<Kind> {
    const WORDS: &[&str] = &["current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"];
    let word = word.to_ascii_lowercase();
    if WORDS.contains(&word.as_str()) {
        return Some(Kind::Clock);
    }
    match by_name(&word)? {
        Nature::Random => Some(Kind::Random),
        Nature::Clock | Nature::Moment => Some(Kind::Clock),
        Nature::Server => Some(Kind::Server),
        Nature::TakesNumber => Some(Kind::Sequence),
        Nature::LargeObject => Some(Kind::LargeObject),
        Nature::Plain | Nature::Effect => None,
    }
}

fn by_name(name: &str) -> Option<Nature> {
    let listed = |list: &[&str]| list.contains(&name);
    Some(if listed(RANDOM) {
        Nature::Random
    } else if listed(CLOCK) {
        Nature::Clock
    } else if listed(MOMENT) {
        Nature::Moment
    } else if listed(SERVER) || name.starts_with("pg_stat_get_") {
        Nature::Server
    } else if listed(TAKES_NUMBER) {
        Nature::TakesNumber
    } else if listed(EFFECT) || listed(RUNS_TEXT) || EFFECT_BEGINS.iter().any(|start| name.starts_with(start)) {
        Nature::Effect
    } else if listed(LARGE_OBJECT) {
        Nature::LargeObject
    } else if listed(PLAIN) {
        Nature::Plain
    } else {
        return None;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_users_schema_is_asked_for() {
        assert_eq!(known(&Name::plain("nextval")), Some(Nature::TakesNumber));
        assert_eq!(known(&Name::of_schema("pg_catalog", "nextval")), Some(Nature::TakesNumber));
        assert_eq!(known(&Name::of_schema("app", "nextval")), None);
        assert_eq!(known(&Name::of_schema("ext", "gen_random_uuid")), Some(Nature::Random));
        assert_eq!(known(&Name::plain("lower")), None);
    }

    #[test]
    fn volatile_functions_of_postgresql_are_called_for_their_value() {
        assert_eq!(builtin("pg_current_wal_lsn", true), Nature::Server);
        assert_eq!(builtin("pg_try_advisory_xact_lock", true), Nature::Effect);
        assert_eq!(builtin("to_char", false), Nature::Plain);
    }
}
