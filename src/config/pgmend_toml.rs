//! `pgmend.toml`: every key, its default and its limits.

use super::checks;
use super::drain_section::drain;
use super::error::{ConfigError, ConfigErrors};
use super::pool_section::pool;
use super::section::{Notes, Section};
use super::{Config, Ending, values};
use crate::auth::{QuerySettings, StoredSecret, pam, pool_secret, read_key};
use crate::base::{NodeId, Secret};
use crate::cluster::{Host, MaintainCommands, NodeSpec, SslMode};
use crate::recovery::{Runner, Unlogged};
use std::path::{Path, PathBuf};
use std::time::Duration;

const RUNNERS: &[(&str, Runner)] =
    &[("builtin", Runner::Builtin), ("sql", Runner::Sql), ("local", Runner::Local), ("program", Runner::Program)];
const UNLOGGED: &[(&str, Unlogged)] = &[("copy", Unlogged::Copy), ("report", Unlogged::Report)];
const SSL_MODES: &[(&str, SslMode)] = &[
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];
const METHODS: &[(&str, &str)] = &[
    ("scram-sha-256", "scram-sha-256"),
    ("md5", "md5"),
    ("password", "password"),
    ("cert", "cert"),
    ("pam", "pam"),
    ("trust", "trust"),
];
const LEVELS: &[(&str, &str)] =
    &[("error", "error"), ("warn", "warn"), ("info", "info"), ("debug", "debug"), ("trace", "trace")];
/// Largest message that is held whole when it must be looked at: 64 MiB.
pub const MAX_MESSAGE: usize = 64 << 20;

/// How long nodes are compared at the start unless it is set.
pub const DEFAULT_COMPARE_TIMEOUT: &str = "60s";

/// Clients that may log in at once unless it is set.
pub const DEFAULT_LOGINS: u32 = 256;

/// Reads and checks the text of a `pgmend.toml`; relative paths are taken from the folder of `file`.
pub fn parse(file: &Path, text: &str) -> Result<Config, ConfigErrors> {
    let notes = Notes::new(file, text);
    let root = match toml::de::DeTable::parse(text) {
        Ok(root) => root,
        Err(error) => {
            let line = error.span().map_or(0, |span| notes.line_at(span.start));
            let message = error.message().to_owned();
            return Err(ConfigErrors(vec![ConfigError { file: file.to_owned(), line, key: String::new(), message }]));
        }
    };
    let config = read(&notes, Section::root(&notes, root.get_ref()), file);
    let mut errors = notes.errors.into_inner();
    errors.extend(checks::check(&config, file, &notes.lines.into_inner()));
    errors.sort_by_key(|error| error.line);
    if errors.is_empty() {
        Ok(Config { listed: notes.listed.into_inner(), ..config })
    } else {
        Err(ConfigErrors(errors))
    }
}

fn read<'a>(notes: &'a Notes<'a>, root: Section<'a>, file: &Path) -> Config {
    let folder = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    let mut listen = listen(root.section("listen"), folder);
    let cluster = super::cluster_section::read(root.section("cluster"), DEFAULT_COMPARE_TIMEOUT);
    let nodes = root.sections("node");
    if nodes.is_empty() {
        notes.error(0, "node", "expected at least one [[node]] with host and port");
    }
    let nodes = nodes.into_iter().enumerate().map(|(number, section)| node(section, number)).collect();
    let (pool, reset_query) = pool(root.section("pool"), folder);
    let (auth, login_timeout, max_logins) = auth(root.section("auth"), folder);
    let (towards_clients, mut tls) = super::tls_section::read(root.section("tls"), folder);
    listen.tls = towards_clients;
    let own = |(name, database): (&String, &crate::pool::DatabaseSettings)| {
        Some((name.clone(), database.certificate.clone()?))
    };
    tls.databases = pool.databases.iter().filter_map(own).collect();
    let server = crate::server::Settings { reset_query, tls };
    let health = health(root.section("health"), auth.key_file.as_deref());
    let health = crate::keeper::Settings { compare_timeout: cluster.compare_timeout, ..health };
    let recovery = recovery(root.section("recovery"), folder, auth.key_file.as_deref());
    let maintenance = super::maintenance_section::read(root.section("maintenance"));
    let (admin, ending, admin_users) = admin(root.section("admin"), folder);
    let max_message = MAX_MESSAGE;
    let state = root.section("state");
    let directory = state.path("directory", folder).unwrap_or_else(|| "/var/lib/pgmend".into());
    let pid_file = state.path("pid_file", folder);
    state.finish();
    let log = root.section("log");
    let log_level = log.choice("level", "info", LEVELS).unwrap_or("info").to_owned();
    log.finish();
    root.finish();
    Config {
        sources: sources(file, &auth, admin.pcp.as_ref()),
        mode: cluster.mode,
        replication: cluster.replication,
        nodes,
        listen,
        client: crate::client::Settings { login_timeout, max_logins, max_message, admin_users, pool_commands: true },
        pool,
        auth,
        server,
        health,
        recovery,
        maintenance,
        admin,
        store: crate::store::Settings { directory, pgpool_status: false, discard_status: false },
        pid_file,
        ending,
        log_level,
        not_honoured: Vec::new(),
        listed: Vec::new(),
    }
}

/// The main file first, then those that it names.
pub fn sources(file: &Path, auth: &crate::auth::Settings, pcp: Option<&crate::admin::PcpSettings>) -> Vec<PathBuf> {
    let mut sources = vec![file.to_owned()];
    let named = [&auth.hba_file, &auth.ident_file, &auth.userlist_file, &auth.pool_passwd_file, &auth.key_file];
    sources.extend(named.into_iter().flatten().cloned());
    sources.extend(pcp.map(|pcp| pcp.password_file.clone()));
    sources
}

/// Threads of the data plane unless it is set: one on machines of up to two cores, else one per core.
pub fn default_workers() -> usize {
    match std::thread::available_parallelism() {
        Ok(cores) if cores.get() > 2 => cores.get(),
        Ok(_) | Err(_) => 1,
    }
}

fn listen(section: Section<'_>, folder: &Path) -> crate::net::Settings {
    let mode = section.text("unix_socket_permissions");
    let workers = section.integer("workers", 0, 0, 1024);
    let settings = crate::net::Settings {
        addresses: section.texts("addresses", &["127.0.0.1"]),
        port: section.port("port", 6432),
        unix_socket_directories: directories(section.texts("unix_socket_directories", &["/tmp"]), folder),
        unix_socket_permissions: section.parsed("unix_socket_permissions", mode.as_deref(), "0777", values::mode),
        backlog: section.integer("backlog", 1024, 1, 65535),
        keepalive: section.duration("tcp_keepalives_idle", "60s"),
        workers: if workers == 0 { default_workers() } else { to_usize(workers) },
        tls: None,
    };
    section.finish();
    settings
}

fn directories(names: Vec<String>, folder: &Path) -> Vec<PathBuf> {
    names.into_iter().filter(|name| !name.is_empty()).map(|name| folder.join(name)).collect()
}

fn to_usize(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn node(section: Section<'_>, number: usize) -> NodeSpec {
    let id = NodeId(u16::try_from(number).unwrap_or(u16::MAX));
    let host = section.text("host");
    if host.is_none() {
        section.error("host", "expected a host name, an address or the directory of a Unix socket; it is missing");
    }
    let mut spec = NodeSpec {
        id,
        host: Host(host.unwrap_or_default()),
        port: section.port("port", 5432),
        data_directory: section.text("data_directory").map(PathBuf::from),
        weight: section.number("weight", 1.0),
        application_name: section.text_or("application_name", &format!("pgmend_{id}")),
        allow_failover: true,
        always_primary: false,
        start_command: section.text("start_command"),
        stop_command: section.text("stop_command"),
        status_command: section.text("status_command"),
        sslmode: section.choice("sslmode", "prefer", SSL_MODES).unwrap_or_default(),
        maintain: MaintainCommands {
            remote_command: section.text("remote_command"),
            bin_directory: section.text("bin_directory").map(PathBuf::from),
            autostart_on_command: section.text("autostart_on_command"),
            autostart_off_command: section.text("autostart_off_command"),
            run_command: section.text("run_command"),
        },
    };
    let flag = section.text_or("flag", "ALLOW_TO_FAILOVER");
    if let Err(message) = apply_flags(&mut spec, &flag) {
        section.error("flag", message);
    }
    if let Some(directory) = &spec.data_directory
        && !directory.is_absolute()
    {
        // It is a path on the node's own host, where pgmend's folder means nothing.
        section.error("data_directory", format!("expected an absolute path, found \"{}\"", directory.display()));
    }
    section.finish();
    spec
}

/// `backend_flag`: words joined by `|`.
pub fn apply_flags(spec: &mut NodeSpec, flags: &str) -> Result<(), String> {
    const FLAGS: &[&str] = &["ALLOW_TO_FAILOVER", "DISALLOW_TO_FAILOVER", "ALWAYS_PRIMARY"];
    let (mut allow, mut disallow) = (false, false);
    for flag in flags.split('|').map(str::trim).filter(|flag| !flag.is_empty()) {
        match flag.to_ascii_uppercase().as_str() {
            "ALLOW_TO_FAILOVER" => allow = true,
            "DISALLOW_TO_FAILOVER" => disallow = true,
            "ALWAYS_PRIMARY" => spec.always_primary = true,
            other => return Err(values::not_one_of(other, FLAGS)),
        }
    }
    if allow && disallow {
        return Err("expected one of ALLOW_TO_FAILOVER and DISALLOW_TO_FAILOVER, found both".to_owned());
    }
    spec.allow_failover = !disallow;
    Ok(())
}

fn auth(section: Section<'_>, folder: &Path) -> (crate::auth::Settings, Duration, usize) {
    let method = section.choice("method", "scram-sha-256", METHODS).unwrap_or("scram-sha-256");
    let pam_service = section.text_or("pam_service", pam::PamSettings::POSTGRESQL);
    if !pam::is_service(&pam_service) {
        section.error("pam_service", format!("expected the name of a file in PAM's folder, found \"{pam_service}\""));
    }
    let settings = crate::auth::Settings {
        hba_file: section.path("hba_file", folder),
        default_method: method.to_owned(),
        userlist_file: section.path("userlist_file", folder),
        pool_passwd_file: section.path("pool_passwd_file", folder),
        key_file: section.path("key_file", folder),
        ident_file: section.path("ident_file", folder),
        query: auth_query(&section),
        ldap_ca_file: section.path("ldap_ca_file", folder),
        pam_service,
    };
    let timeout = section.duration("authentication_timeout", "60s");
    let max_logins = to_usize(section.integer("max_concurrent_logins", DEFAULT_LOGINS, 0, 100_000));
    section.finish();
    (settings, timeout, max_logins)
}

/// With `auth_user`, as in PgBouncer: the other keys alone do nothing.
fn auth_query(section: &Section<'_>) -> Option<QuerySettings> {
    let user = section.text("auth_user");
    let query = section.text_or("auth_query", QuerySettings::DEFAULT_QUERY);
    // The roles are the same wherever pg_authid is read; a function of one's own is where one put it.
    let everywhere = (query == QuerySettings::DEFAULT_QUERY).then(|| "postgres".to_owned());
    let database = section.text("auth_dbname").or(everywhere);
    let cache_time = section.duration("auth_query_cache_time", "10s");
    if !query.contains("$1") {
        section.error("auth_query", "expected $1 in the place of the user's name; it is missing");
    }
    user.map(|user| QuerySettings { user, query, database, cache_time })
}

fn health(section: Section<'_>, key_file: Option<&Path>) -> crate::keeper::Settings {
    let settings = crate::keeper::Settings {
        user: section.text_or("health_check_user", "postgres"),
        password: login_password(&section, "health_check_password", key_file),
        database: section.text_or("health_check_database", "postgres"),
        period: section.duration("health_check_period", "5s"),
        timeout: section.duration("health_check_timeout", "5s"),
        max_retries: section.integer("health_check_max_retries", 1, 0, 1000),
        retry_delay: section.duration("health_check_retry_delay", "1s"),
        compare_timeout: Duration::ZERO,
    };
    section.finish();
    settings
}

/// A password to log in with: plain, `TEXT`, or `AES` with `auth.key_file`. A hash is of no use.
fn login_password(section: &Section<'_>, key: &'static str, key_file: Option<&Path>) -> Secret {
    let text = section.secret(key);
    let file = key_file.filter(|_| text.expose().starts_with("AES"));
    let secret = file.map(read_key).transpose().map_err(|e| e.to_string());
    match secret.and_then(|key| pool_secret(text.expose(), key.as_ref())) {
        Ok(StoredSecret::Plain(password)) => password,
        Ok(StoredSecret::Md5(_) | StoredSecret::Scram(_)) => {
            section.error(key, "expected a plain, TEXT or AES password, found a hash, with which nobody can log in");
            Secret::default()
        }
        Err(message) => {
            section.error(key, message);
            Secret::default()
        }
    }
}

fn recovery(section: Section<'_>, folder: &Path, key_file: Option<&Path>) -> crate::recovery::Settings {
    let user = section.text_or("recovery_user", "postgres");
    let timeout = section.duration("recovery_timeout", "90s");
    let settings = crate::recovery::Settings {
        runner: section.choice("recovery_runner", "builtin", RUNNERS).unwrap_or_default(),
        password: login_password(&section, "recovery_password", key_file),
        password_is_hash: false,
        database: section.text_or("recovery_database", "postgres"),
        first_stage_command: section.text("recovery_1st_stage_command").unwrap_or_default(),
        second_stage_command: section.text("recovery_2nd_stage_command").unwrap_or_default(),
        unlogged: section.choice("recovery_unlogged_tables", "copy", UNLOGGED).unwrap_or_default(),
        timeout,
        first_stage_timeout: section.duration("recovery_1st_stage_timeout", "0s"),
        no_progress_timeout: section.duration("no_progress_timeout", "60s"),
        replication_user: section.text_or("replication_user", &user),
        replication_password: login_password(&section, "replication_password", key_file),
        bin_directory: section.path("bin_directory", folder),
        use_rewind: section.boolean("use_rewind", true),
        drain: drain(&section, timeout),
        user,
    };
    section.finish();
    settings
}

fn admin(section: Section<'_>, folder: &Path) -> (crate::admin::Settings, Ending, Vec<String>) {
    let addresses = section.texts("pcp_listen_addresses", &["127.0.0.1"]);
    let port = section.port("pcp_port", 9898);
    let socket_directory = section.text_maybe_empty("pcp_socket_dir", "/tmp");
    let pcp = section.path("pcp_file", folder).map(|password_file| crate::admin::PcpSettings {
        addresses,
        port,
        socket_directory: Some(folder.join(&socket_directory)).filter(|_| !socket_directory.is_empty()),
        password_file,
    });
    let settings = crate::admin::Settings {
        socket: section.path("socket", folder).unwrap_or_else(|| super::DEFAULT_SOCKET.into()),
        admin_os_users: section.texts("os_users", &[]),
        pcp,
    };
    let ending = Ending {
        shutdown_timeout: section.duration("shutdown_timeout", "0s"),
        takeover_timeout: section.duration("takeover_timeout", "0s"),
    };
    let admin_users = section.texts("admin_users", &[]);
    section.finish();
    (settings, ending, admin_users)
}
