//! The names of `pgpool.conf` (4.3 and newer), their defaults, and what becomes of each here.

/// What pgmend does with a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Read and honoured; the text describes it.
    Used(&'static str),
    /// Listed at start when it is set to another value than the default; the text says why it has no effect.
    Ignored(&'static str),
    /// As `Ignored`, and listed also when the default is in force, because that default promises something.
    IgnoredDefault(&'static str),
    /// An error when it is set: ignoring it would change what is safe.
    Refused(&'static str),
}

/// One parameter without a node number.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// In lower case, except where Pgpool-II writes it otherwise.
    pub name: &'static str,
    /// As compiled into Pgpool-II.
    pub default: &'static str,
    /// What becomes of it.
    pub fate: Fate,
}

const fn p(name: &'static str, default: &'static str, fate: Fate) -> Parameter {
    Parameter { name, default, fate }
}

use Fate::{Ignored, IgnoredDefault, Refused, Used};

/// The parameter of that name, in any case.
pub fn find(name: &str) -> Option<&'static Parameter> {
    PARAMETERS.iter().find(|parameter| parameter.name.eq_ignore_ascii_case(name))
}

/// Names that carry a node number, and what becomes of them. Those of the health check exist without a number too.
pub const NUMBERED: &[(&str, Fate)] = &[
    ("backend_hostname", Used("host of the node")),
    ("backend_port", Used("port of the node")),
    ("backend_weight", Used("share of the reads")),
    ("backend_data_directory", Used("data directory of the node")),
    ("backend_flag", Used("whether the node may fail over")),
    ("backend_application_name", Used("name under which the standby streams")),
    ("health_check_period", Used("seconds between two checks of the node")),
    ("health_check_timeout", Used("bound on a check of the node")),
    ("health_check_user", Used("who probes the node")),
    ("health_check_password", Used("its password")),
    ("health_check_database", Used("its database")),
    ("health_check_max_retries", Used("further tries before the node counts as failed")),
    ("health_check_retry_delay", Used("seconds between tries")),
    ("connect_timeout", Used("milliseconds to connect to the node")),
    ("hostname", Ignored(WATCHDOG)),
    ("wd_port", Ignored(WATCHDOG)),
    ("pgpool_port", Ignored(WATCHDOG)),
    ("heartbeat_hostname", Ignored(WATCHDOG)),
    ("heartbeat_port", Ignored(WATCHDOG)),
    ("heartbeat_device", Ignored(WATCHDOG)),
];

const LOG: &str = "pgmend logs to standard error in its own format";
const ROUTING: &str = "statements are not routed by content as yet: all go to the primary";
const DELAY: &str = "statements are not sent to standbys as yet, whose delay then does not matter";
const FAILOVER: &str = "pgmend does not fail over as yet";
const WATCHDOG: &str = "there is no watchdog as yet: this pgmend does not know of others";
const RELCACHE: &str = "there is no catalogue cache as yet";
const CACHE: &str = "there is no query cache";
const CHILDREN: &str = "there are no child processes";

/// All of them, in the order of the sample file.
pub const PARAMETERS: &[Parameter] = &[
    // Clustering.
    p("backend_clustering_mode", "streaming_replication", Used("clustering mode")),
    p("replication_mode", "off", Refused("native replication is not built yet")),
    // Listen.
    p("listen_addresses", "localhost", Used("addresses to listen on")),
    p("port", "9999", Used("port to listen on")),
    p("socket_dir", "/tmp", Used("Unix socket directory")),
    p("unix_socket_directories", "/tmp", Used("Unix socket directories")),
    p("unix_socket_group", "", Ignored("the group of the Unix socket is not changed")),
    p("unix_socket_permissions", "0777", Used("mode of the Unix socket")),
    p("reserved_connections", "0", Used("clients refused before num_init_children is reached")),
    p("pcp_listen_addresses", "localhost", Used("addresses for PCP")),
    p("pcp_port", "9898", Used("port for PCP")),
    p("pcp_socket_dir", "/tmp", Used("Unix socket directory for PCP")),
    p("listen_backlog_multiplier", "2", Used("length of the listen queue in terms of num_init_children")),
    p("serialize_accept", "off", Ignored("one process accepts: there is nothing to serialize")),
    // Authentication.
    p("enable_pool_hba", "off", Used("pool_hba.conf decides how clients log in")),
    p("pool_passwd", "pool_passwd", Used("file of passwords")),
    p("authentication_timeout", "60", Used("seconds to log in")),
    p(
        "allow_clear_text_frontend_auth",
        "off",
        Ignored("a password in clear is asked for only where pool_hba.conf says `password`"),
    ),
    // TLS.
    p("ssl", "off", Used("TLS")),
    p("ssl_key", "", Used("private key")),
    p("ssl_cert", "", Used("certificate")),
    p("ssl_ca_cert", "", Used("certificate authorities")),
    p("ssl_ca_cert_dir", "", Refused("name one file of authorities with ssl_ca_cert; a directory is not read")),
    p(
        "ssl_crl_file",
        "",
        Refused("revocation lists are not read, so revoked certificates would be accepted; remove it to accept that"),
    ),
    p("ssl_ciphers", "HIGH:MEDIUM:+3DES:!aNULL", Ignored("rustls offers only ciphers that are thought safe")),
    p("ssl_prefer_server_ciphers", "off", Ignored("rustls chooses")),
    p("ssl_ecdh_curve", "prime256v1", Ignored("rustls chooses")),
    p("ssl_dh_params_file", "", Ignored("rustls has no finite-field Diffie-Hellman")),
    p("ssl_passphrase_command", "", Ignored("the key must not be encrypted")),
    // Pool.
    p("num_init_children", "32", Used("clients served at a time")),
    p("min_spare_children", "5", Ignored(CHILDREN)),
    p("max_spare_children", "10", Ignored(CHILDREN)),
    p("process_management_mode", "static", Ignored(CHILDREN)),
    p("process_management_strategy", "gentle", Ignored(CHILDREN)),
    p("max_pool", "4", Ignored("pools are by user and database, each up to num_init_children")),
    p("child_life_time", "300", Used("seconds after which an idle server connection is closed")),
    p("child_max_connections", "0", Ignored(CHILDREN)),
    p("connection_life_time", "0", Used("seconds after which an idle server connection is closed")),
    p("client_idle_limit", "0", Used("seconds after which an idle client is disconnected")),
    p("connection_cache", "on", Ignored("server connections are always kept")),
    p("reset_query_list", "ABORT;DISCARD ALL", Used("statements between two sessions")),
    // Log.
    p("log_destination", "stderr", Ignored(LOG)),
    p("log_line_prefix", "%m: %a pid %p: ", Ignored(LOG)),
    p("log_connections", "off", Ignored(LOG)),
    p("log_disconnections", "off", Ignored(LOG)),
    p("log_hostname", "off", Ignored(LOG)),
    p("log_statement", "off", Ignored(LOG)),
    p("log_per_node_statement", "off", Ignored(LOG)),
    p("notice_per_node_statement", "off", Ignored(LOG)),
    p("log_client_messages", "off", Ignored(LOG)),
    p("log_backend_messages", "none", Ignored(LOG)),
    p("log_standby_delay", "if_over_threshold", Ignored(LOG)),
    p("log_pcp_processes", "off", Ignored(LOG)),
    p("syslog_facility", "LOCAL0", Ignored(LOG)),
    p("syslog_ident", "pgpool", Ignored(LOG)),
    p("log_error_verbosity", "default", Ignored(LOG)),
    p("client_min_messages", "notice", Ignored(LOG)),
    p("log_min_messages", "warning", Ignored(LOG)),
    p("logging_collector", "off", Ignored(LOG)),
    p("log_directory", "/tmp/pgpool_logs", Ignored(LOG)),
    p("log_filename", "pgpool-%Y-%m-%d_%H%M%S.log", Ignored(LOG)),
    p("log_file_mode", "0600", Ignored(LOG)),
    p("log_truncate_on_rotation", "off", Ignored(LOG)),
    p("log_rotation_age", "1440", Ignored(LOG)),
    p("log_rotation_size", "10240", Ignored(LOG)),
    // Files.
    p("pid_file_name", "/var/run/pgpool/pgpool.pid", Used("file of the process id")),
    p("logdir", "/tmp", Used("directory of pgpool_status and pgmend's journal")),
    p("work_dir", "/tmp", Used("directory of pgpool_status and pgmend's journal")),
    // Replication.
    p("replicate_select", "off", Used("SELECT on all nodes, in the replicating modes")),
    p("insert_lock", "on", Used("locks sequences, on the main node and not the table")),
    p("lobj_lock_table", "", Used("lo_creat gets a number from pgmend in any case; no table is locked")),
    p("replication_stop_on_mismatch", "off", Used("detaches the minority; else the transaction is rolled back")),
    p(
        "failover_if_affected_tuples_mismatch",
        "off",
        Used("detaches the minority; else the transaction is rolled back"),
    ),
    // Load balancing.
    p("load_balance_mode", "on", IgnoredDefault("all statements go to the primary as yet")),
    p("ignore_leading_white_space", "on", Ignored(ROUTING)),
    p("read_only_function_list", "", Ignored(ROUTING)),
    p("write_function_list", "", Ignored(ROUTING)),
    p("primary_routing_query_pattern_list", "", Ignored(ROUTING)),
    p("user_redirect_preference_list", "", Ignored(ROUTING)),
    p("database_redirect_preference_list", "", Ignored(ROUTING)),
    p("app_name_redirect_preference_list", "", Ignored(ROUTING)),
    p("allow_sql_comments", "off", Ignored(ROUTING)),
    p("disable_load_balance_on_write", "transaction", Ignored(ROUTING)),
    p("dml_adaptive_object_relationship_list", "", Ignored(ROUTING)),
    p("statement_level_load_balance", "off", Ignored(ROUTING)),
    p("track_table_mutation_cold_start_duration", "2000", Ignored(ROUTING)),
    p("track_table_mutation_max_staleness", "60000", Ignored(ROUTING)),
    p("track_table_mutation_table_buckets", "1024", Ignored(ROUTING)),
    p("track_table_mutation_table_size", "2048", Ignored(ROUTING)),
    p("track_table_mutation_ttl_factor", "5.0", Ignored(ROUTING)),
    // Streaming.
    p("sr_check_period", "10", Ignored("standbys are looked at by the health check")),
    p("sr_check_user", "", Used("who probes when health_check_user is empty")),
    p("sr_check_password", "", Used("its password")),
    p("sr_check_database", "postgres", Used("its database")),
    p("delay_threshold", "0", Ignored(DELAY)),
    p("delay_threshold_by_time", "0", Ignored(DELAY)),
    p("prefer_lower_delay_standby", "off", Ignored(DELAY)),
    p("replication_delay_source_cmd", "", Ignored(DELAY)),
    p("replication_delay_source_timeout", "10", Ignored(DELAY)),
    p("follow_primary_command", "", Ignored("pgmend does not fail over as yet, so there is no new primary to follow")),
    // Health check.
    p("health_check_period", "0", Used("seconds between two checks")),
    p("health_check_timeout", "20", Used("bound on a check")),
    p("health_check_user", "", Used("who probes")),
    p("health_check_password", "", Used("its password")),
    p("health_check_database", "postgres", Used("its database")),
    p("health_check_max_retries", "0", Used("further tries before a node counts as failed")),
    p("health_check_retry_delay", "1", Used("seconds between tries")),
    p("health_check_test", "off", Ignored("backend_down_request is not read")),
    p("connect_timeout", "10000", Used("milliseconds to connect to a node")),
    // Failover.
    p("failover_command", "", Ignored(FAILOVER)),
    p("failback_command", "", Ignored(FAILOVER)),
    p("failover_on_backend_error", "on", Ignored(FAILOVER)),
    p("fail_over_on_backend_error", "on", Ignored(FAILOVER)),
    p("failover_on_backend_shutdown", "off", Ignored(FAILOVER)),
    p("detach_false_primary", "off", Ignored(FAILOVER)),
    p("search_primary_node_timeout", "300", Ignored(FAILOVER)),
    p("auto_failback", "off", Ignored("nodes are attached by recovery or by hand")),
    p("auto_failback_interval", "60", Ignored("nodes are attached by recovery or by hand")),
    // Recovery.
    p("recovery_user", "", Used("who recovers: a superuser")),
    p("recovery_password", "", Used("its password")),
    p("recovery_database", "template1", Used("its database")),
    p("recovery_1st_stage_command", "", Used("script of the first stage")),
    p("recovery_2nd_stage_command", "", Used("script of the second stage, in the replicating modes")),
    p("recovery_timeout", "90", Used("bound on the waits of a recovery, seconds")),
    p(
        "client_idle_limit_in_recovery",
        "0",
        Used("seconds that a client may idle while a recovery holds clients; -1 = none"),
    ),
    p("recovery_clients", "hold", Used("pgmend's: hold or disconnect clients that could be held")),
    p("recovery_new_connections", "hold", Used("pgmend's: hold or reject who comes during a second stage")),
    p(
        "recovery_idle_in_transaction_limit",
        "10s",
        Used("pgmend's: how long a transaction may idle meanwhile; 0 = for ever"),
    ),
    p("admin_users", "", Used("pgmend's: who may lengthen his client_idle_limit_in_recovery, separated by commas")),
    // Watchdog.
    p("use_watchdog", "off", Ignored(WATCHDOG)),
    p("trusted_servers", "", Ignored(WATCHDOG)),
    p("trusted_server_command", "ping -q -c3 %h", Ignored(WATCHDOG)),
    p("ping_path", "/bin", Ignored(WATCHDOG)),
    p("wd_priority", "1", Ignored(WATCHDOG)),
    p("wd_authkey", "", Ignored(WATCHDOG)),
    p("wd_ipc_socket_dir", "/tmp", Ignored(WATCHDOG)),
    p("delegate_IP", "", Ignored(WATCHDOG)),
    p("if_cmd_path", "/sbin", Ignored(WATCHDOG)),
    p("if_up_cmd", "/usr/bin/sudo /sbin/ip addr add $_IP_$/24 dev eth0 label eth0:0", Ignored(WATCHDOG)),
    p("if_down_cmd", "/usr/bin/sudo /sbin/ip addr del $_IP_$/24 dev eth0", Ignored(WATCHDOG)),
    p("arping_path", "/usr/sbin", Ignored(WATCHDOG)),
    p("arping_cmd", "/usr/bin/sudo /usr/sbin/arping -U $_IP_$ -w 1 -I eth0", Ignored(WATCHDOG)),
    p("clear_memqcache_on_escalation", "on", Ignored(WATCHDOG)),
    p("wd_escalation_command", "", Ignored(WATCHDOG)),
    p("wd_de_escalation_command", "", Ignored(WATCHDOG)),
    p("failover_when_quorum_exists", "on", Ignored(WATCHDOG)),
    p("failover_require_consensus", "on", Ignored(WATCHDOG)),
    p("allow_multiple_failover_requests_from_node", "off", Ignored(WATCHDOG)),
    p("enable_consensus_with_half_votes", "off", Ignored(WATCHDOG)),
    p("wd_remove_shutdown_nodes", "off", Ignored(WATCHDOG)),
    p("wd_lost_node_removal_timeout", "0", Ignored(WATCHDOG)),
    p("wd_no_show_node_removal_timeout", "0", Ignored(WATCHDOG)),
    p("wd_monitoring_interfaces_list", "", Ignored(WATCHDOG)),
    p("wd_lifecheck_method", "heartbeat", Ignored(WATCHDOG)),
    p("wd_interval", "10", Ignored(WATCHDOG)),
    p("wd_heartbeat_keepalive", "2", Ignored(WATCHDOG)),
    p("wd_heartbeat_deadtime", "30", Ignored(WATCHDOG)),
    p("wd_heartbeat_listen_addresses", "", Ignored(WATCHDOG)),
    p("wd_heartbeat_listen_port", "0", Ignored(WATCHDOG)),
    p("wd_listen_address", "", Ignored(WATCHDOG)),
    p("wd_listen_port", "0", Ignored(WATCHDOG)),
    p("wd_life_point", "3", Ignored(WATCHDOG)),
    p("wd_lifecheck_query", "SELECT 1", Ignored(WATCHDOG)),
    p("wd_lifecheck_dbname", "template1", Ignored(WATCHDOG)),
    p("wd_lifecheck_user", "", Ignored(WATCHDOG)),
    p("wd_lifecheck_password", "", Ignored(WATCHDOG)),
    // Relcache.
    p("relcache_expire", "0", Ignored(RELCACHE)),
    p("relcache_size", "256", Ignored(RELCACHE)),
    p("check_temp_table", "catalog", Ignored(RELCACHE)),
    p("check_unlogged_table", "on", Ignored(RELCACHE)),
    p("enable_shared_relcache", "on", Ignored(RELCACHE)),
    p("relcache_query_target", "primary", Ignored(RELCACHE)),
    // Query cache.
    p("memory_cache_enabled", "off", Ignored(CACHE)),
    p("memqcache_method", "shmem", Ignored(CACHE)),
    p("memqcache_memcached_host", "localhost", Ignored(CACHE)),
    p("memqcache_memcached_port", "11211", Ignored(CACHE)),
    p("memqcache_total_size", "67108864", Ignored(CACHE)),
    p("memqcache_max_num_cache", "1000000", Ignored(CACHE)),
    p("memqcache_expire", "0", Ignored(CACHE)),
    p("memqcache_auto_cache_invalidation", "on", Ignored(CACHE)),
    p("memqcache_maxcache", "409600", Ignored(CACHE)),
    p("memqcache_cache_block_size", "1048576", Ignored(CACHE)),
    p("memqcache_oiddir", "/var/log/pgpool/oiddir", Ignored(CACHE)),
    p("cache_safe_memqcache_table_list", "", Ignored(CACHE)),
    p("cache_unsafe_memqcache_table_list", "", Ignored(CACHE)),
];
