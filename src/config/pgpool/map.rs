//! From Pgpool-II's parameters to pgmend's settings, and the list of those that have no effect here.

use super::Files;
use super::parameters::{self, Fate};
use super::values::Values;
use crate::auth::StoredSecret;
use crate::base::{NodeId, Secret};
use crate::cluster::{Host, Mode, NodeSpec, SslMode};
use crate::config::drain_section::drain_of_pgpool;
use crate::config::pgmend_toml::{DEFAULT_LOGINS, MAX_MESSAGE, apply_flags, default_workers};
use crate::config::{Config, values};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where Debian keeps the files that the command line does not name.
const DEBIAN: &str = "/etc/pgpool2";
const DEFAULT_PORT: u16 = 5432;

/// Everything, with the mistakes noted in `values`.
pub fn map(values: &Values, files: &Files) -> Config {
    let mut notes: Vec<(String, String)> = Vec::new();
    let mode = mode(values);
    let nodes = nodes(values, &mut notes);
    let auth = auth(values, files, &mut notes);
    let clients = values.integer("num_init_children", 1, 100_000);
    let connect_timeout = bounded(values, "connect_timeout", values.milliseconds("connect_timeout"), &mut notes);
    let pool = pool(values, clients, connect_timeout);
    let pcp_port = values.port("pcp_port");
    let pcp_socket_directory = PathBuf::from(values.text("pcp_socket_dir"));
    let admin = crate::admin::Settings {
        // Beside PCP's own socket: short, per instance, and there before the first start.
        socket: pcp_socket_directory.join(format!(".s.PGMEND.{pcp_port}")),
        admin_os_users: Vec::new(),
        pcp: pcp(values, files, pcp_port, pcp_socket_directory, &mut notes),
    };
    let tls = values.boolean("ssl");
    let ca_file = Some(values.text("ssl_ca_cert")).filter(|ca| tls && !ca.is_empty()).map(|ca| beside(&files.conf, ca));
    list_not_honoured(values, &mut notes);
    Config {
        sources: sources(values, files, &auth, &admin),
        mode,
        replication: replication(values),
        nodes,
        listen: listen(values, files, clients, ca_file.clone()),
        client: crate::client::Settings {
            login_timeout: bounded(
                values,
                "authentication_timeout",
                values.seconds("authentication_timeout"),
                &mut notes,
            ),
            max_logins: usize::try_from(DEFAULT_LOGINS).unwrap_or(usize::MAX),
            max_message: MAX_MESSAGE,
            admin_users: values.list("admin_users"),
            pool_commands: true,
        },
        pool,
        auth,
        server: crate::server::Settings {
            reset_query: reset_query(values.text("reset_query_list")),
            tls: crate::net::ServerTlsSettings { ca_file, ..Default::default() },
        },
        health: health(values, key_file(files).as_deref(), &mut notes),
        recovery: recovery(values, key_file(files).as_deref()),
        maintenance: crate::maintenance::Settings::default(),
        admin,
        store: crate::store::Settings {
            directory: beside(&files.conf, either(values, "work_dir", "logdir")),
            pgpool_status: true,
            discard_status: false,
        },
        ending: crate::config::Ending::default(),
        pid_file: Some(beside(&files.conf, values.text("pid_file_name"))),
        log_level: "info".to_owned(),
        not_honoured: notes,
        listed: listed(values),
    }
}

/// How statements go to all nodes. What Pgpool-II lets through is warned of at most, as there; what it does not notice is
/// refused as in pgmend's own configuration.
fn replication(values: &Values) -> crate::client::replicated::Settings {
    use crate::client::replicated::{Choice, Settings};
    let own = Settings::default();
    Settings {
        choice: Choice {
            stop_on_kind: values.boolean("replication_stop_on_mismatch"),
            stop_on_rows: values.boolean("failover_if_affected_tuples_mismatch"),
        },
        policy: crate::routing::Policy {
            insert_lock: values.boolean("insert_lock"),
            replicate_select: values.boolean("replicate_select"),
            ..own.policy
        },
        ..own
    }
}

/// A path from the configuration file's folder.
pub fn beside(conf: &Path, path: &str) -> PathBuf {
    conf.parent().unwrap_or(Path::new(".")).join(path)
}

/// Numbers of the nodes that have a host, in order. Pgpool-II, too, counts a node only when it has one.
pub fn configured_nodes(values: &Values) -> Vec<u16> {
    let mut numbers: Vec<u16> = values
        .entries()
        .filter(|entry| !entry.value.is_empty())
        .filter_map(|entry| entry.name.to_ascii_lowercase().strip_prefix("backend_hostname")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

/// `raw` with one node is the same thing as streaming replication.
fn mode(values: &Values) -> Mode {
    const OTHERS: &[&str] = &["logical_replication", "slony", "raw"];
    let name = values.text("backend_clustering_mode").to_ascii_lowercase();
    if let Some((_, mode)) = Mode::NAMES.iter().find(|(known, _)| *known == name) {
        return *mode;
    }
    if name == "raw" && configured_nodes(values).len() <= 1 {
        return Mode::StreamingReplication;
    }
    let built: Vec<&str> = Mode::NAMES.iter().map(|(known, _)| *known).collect();
    values.error(
        "backend_clustering_mode",
        match name.as_str() {
            "raw" => "raw with more than one node is not built; streaming_replication is".to_owned(),
            other if OTHERS.contains(&other) => format!("{other} is not built; {} are", built.join(", ")),
            other => crate::config::values::not_one_of(other, &[&built[..], OTHERS].concat()),
        },
    );
    Mode::default()
}

fn nodes(values: &Values, notes: &mut Vec<(String, String)>) -> Vec<NodeSpec> {
    let numbers = configured_nodes(values);
    if numbers.is_empty() {
        values.error("backend_hostname0", "expected at least one node; it is missing");
    }
    for (place, number) in numbers.iter().enumerate() {
        if usize::from(*number) != place {
            values.error(
                &format!("backend_hostname{number}"),
                format!("expected nodes without gaps: there is no backend_hostname{place}"),
            );
            break;
        }
    }
    let tls = values.boolean("ssl");
    let verify = tls && !values.text("ssl_ca_cert").is_empty();
    if verify {
        let why =
            "with it, nodes must offer TLS with a certificate of these authorities (Pgpool-II goes on without TLS)";
        notes.push(("ssl_ca_cert".to_owned(), why.to_owned()));
    }
    let sslmode = match (tls, verify) {
        (false, _) => SslMode::Disable,
        (true, false) => SslMode::Prefer,
        (true, true) => SslMode::VerifyCa,
    };
    numbers.into_iter().map(|number| node(values, number, sslmode)).collect()
}

fn node(values: &Values, number: u16, sslmode: SslMode) -> NodeSpec {
    let given = |name: &str| values.entry(&format!("{name}{number}")).map(|entry| entry.value.as_str());
    let port = match given("backend_port") {
        None => DEFAULT_PORT,
        Some(_) => values.port(&format!("backend_port{number}")),
    };
    let weight = match given("backend_weight") {
        None => 0.0,
        Some(_) => values.parsed(&format!("backend_weight{number}"), |text| match text.parse::<f64>() {
            Ok(weight) if weight.is_finite() && weight >= 0.0 => Ok(weight),
            Ok(_) | Err(_) => Err(format!("expected a number that is not negative, found \"{text}\"")),
        }),
    };
    let name = given("backend_application_name").filter(|name| !name.is_empty());
    let mut spec = NodeSpec {
        id: NodeId(number),
        host: Host(given("backend_hostname").unwrap_or_default().to_owned()),
        port,
        data_directory: given("backend_data_directory").filter(|path| !path.is_empty()).map(PathBuf::from),
        weight,
        // The name that Pgpool-II's samples give to node N.
        application_name: name.map_or_else(|| format!("server{number}"), str::to_owned),
        allow_failover: true,
        always_primary: false,
        start_command: None,
        stop_command: None,
        status_command: None,
        sslmode,
        maintain: crate::cluster::MaintainCommands::default(),
    };
    if let Err(message) = apply_flags(&mut spec, given("backend_flag").unwrap_or_default()) {
        values.error(&format!("backend_flag{number}"), message);
    }
    spec
}

fn listen(values: &Values, files: &Files, clients: u32, client_ca_file: Option<PathBuf>) -> crate::net::Settings {
    let directories = either(values, "unix_socket_directories", "socket_dir").split(',').map(str::trim);
    let multiplier = values.integer("listen_backlog_multiplier", 1, 65_535);
    let tls = values.boolean("ssl").then(|| {
        let file = |name: &str| {
            if values.text(name).is_empty() {
                values.error(name, "expected a file, because ssl is on; it is missing");
            }
            beside(&files.conf, values.text(name))
        };
        let (cert_file, key_file) = (file("ssl_cert"), file("ssl_key"));
        crate::net::TlsSettings {
            own: crate::net::CertificateSettings { cert_file, key_file, server_names: Vec::new() },
            others: Vec::new(),
            client_ca_file,
            client_crl_file: None,
            session_tickets: true,
        }
    });
    crate::net::Settings {
        addresses: values.list("listen_addresses"),
        port: values.port("port"),
        unix_socket_directories: directories.filter(|name| !name.is_empty()).map(PathBuf::from).collect(),
        unix_socket_permissions: values.parsed("unix_socket_permissions", values::mode),
        backlog: clients.saturating_mul(multiplier).clamp(1, 65_535),
        keepalive: Duration::from_secs(60),
        workers: default_workers(),
        tls,
    }
}

/// Who is more than `num_init_children` waits, as in Pgpool-II: there in the listen queue, here in the pool's, where
/// the wait is bounded. With `reserved_connections` there is no wait but a refusal.
fn pool(values: &Values, clients: u32, connect_timeout: Duration) -> crate::pool::Settings {
    let reserved = values.integer("reserved_connections", 0, 100_000);
    let multiplier = values.integer("listen_backlog_multiplier", 1, 65_535);
    let most = if reserved > 0 {
        clients.saturating_sub(reserved).max(1)
    } else {
        clients.saturating_add(clients.saturating_mul(multiplier)).min(1_000_000)
    };
    crate::pool::Settings {
        rules: crate::pool::Rules {
            mode: crate::pool::PoolMode::Session,
            size: usize::try_from(clients).unwrap_or(usize::MAX),
            client_idle_timeout: values.seconds("client_idle_limit"),
            connect_timeout,
            server_idle_timeout: idle_timeout(values),
            server_lifetime: Duration::ZERO,
            ..crate::pool::Rules::default()
        },
        max_clients: usize::try_from(most).unwrap_or(usize::MAX),
        max_prepared: 200,
        ..crate::pool::Settings::default()
    }
}

/// See `manual/decisions/pool-hba-off.md`: off means that the server decides, so no secret of ours may help a client.
fn auth(values: &Values, files: &Files, notes: &mut Vec<(String, String)>) -> crate::auth::Settings {
    let mut settings = crate::auth::Settings {
        hba_file: None,
        default_method: "trust".to_owned(),
        userlist_file: None,
        pool_passwd_file: None,
        key_file: key_file(files),
        ident_file: None,
        query: None,
        ldap_ca_file: None,
        pam_service: crate::auth::pam::PamSettings::PGPOOL.to_owned(),
    };
    if !values.boolean("enable_pool_hba") {
        let why = "off: the server alone decides, as it trusts pgmend's address; where it asks for a password, set \
                   enable_pool_hba = on and use pool_passwd";
        notes.push(("enable_pool_hba".to_owned(), why.to_owned()));
        return settings;
    }
    settings.hba_file = Some(files.hba.clone().unwrap_or_else(|| Path::new(DEBIAN).join("pool_hba.conf")));
    settings.default_method = "scram-sha-256".to_owned();
    let passwords = values.text("pool_passwd");
    if !passwords.is_empty() {
        let path = beside(&files.conf, passwords);
        match path.exists() {
            true => settings.pool_passwd_file = Some(path),
            false => notes.push(("pool_passwd".to_owned(), format!("{} does not exist", path.display()))),
        }
    }
    settings
}

fn key_file(files: &Files) -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".pgpoolkey")).filter(|path| path.exists());
    files.key.clone().or_else(|| std::env::var_os("PGPOOLKEYFILE").map(PathBuf::from)).or_else(home)
}

fn pcp(
    values: &Values,
    files: &Files,
    port: u16,
    socket_directory: PathBuf,
    notes: &mut Vec<(String, String)>,
) -> Option<crate::admin::PcpSettings> {
    let default = Path::new(DEBIAN).join("pcp.conf");
    if files.pcp.is_none() && !default.exists() {
        notes.push((
            "pcp_port".to_owned(),
            format!("PCP is off: no -F was given and there is no {}", default.display()),
        ));
        return None;
    }
    Some(crate::admin::PcpSettings {
        addresses: values.list("pcp_listen_addresses"),
        port,
        socket_directory: Some(socket_directory).filter(|path| !path.as_os_str().is_empty()),
        password_file: files.pcp.clone().unwrap_or(default),
    })
}

/// One setting serves all nodes: that of node 0, by its own number or common. Others that differ are listed.
fn health(values: &Values, key: Option<&Path>, notes: &mut Vec<(String, String)>) -> crate::keeper::Settings {
    const PER_NODE: &[&str] = &[
        "health_check_period",
        "health_check_timeout",
        "health_check_user",
        "health_check_password",
        "health_check_database",
        "health_check_max_retries",
        "health_check_retry_delay",
        "connect_timeout",
    ];
    for number in configured_nodes(values).into_iter().skip(1) {
        for name in PER_NODE {
            if values.text(&format!("{name}{number}")) != values.text(&format!("{name}0")) {
                let why = format!("all nodes are checked alike; {name}0 counts");
                notes.push((format!("{name}{number}"), why));
            }
        }
    }
    let by_health = !values.text("health_check_user0").is_empty();
    let (user, password, database) = match by_health {
        true => ("health_check_user0", "health_check_password0", "health_check_database0"),
        false => ("sr_check_user", "sr_check_password", "sr_check_database"),
    };
    let or_postgres = |name: &str| match values.text(name) {
        "" => "postgres".to_owned(),
        text => text.to_owned(),
    };
    crate::keeper::Settings {
        user: or_postgres(user),
        password: plain_password(values, password, key),
        database: or_postgres(database),
        period: values.seconds("health_check_period0"),
        timeout: bounded(values, "health_check_timeout0", values.seconds("health_check_timeout0"), notes),
        max_retries: values.integer("health_check_max_retries0", 0, 1000),
        retry_delay: values.seconds("health_check_retry_delay0"),
        compare_timeout: Duration::from_secs(60),
    }
}

fn recovery(values: &Values, key: Option<&Path>) -> crate::recovery::Settings {
    let user = values.text("recovery_user").to_owned();
    let password = plain_password(values, "recovery_password", key);
    let timeout = values.seconds("recovery_timeout");
    crate::recovery::Settings {
        runner: crate::recovery::Runner::Sql,
        database: values.text("recovery_database").to_owned(),
        first_stage_command: values.text("recovery_1st_stage_command").to_owned(),
        second_stage_command: values.text("recovery_2nd_stage_command").to_owned(),
        unlogged: crate::recovery::Unlogged::default(),
        timeout,
        first_stage_timeout: Duration::ZERO,
        no_progress_timeout: Duration::from_secs(60),
        replication_user: user.clone(),
        replication_password: password.clone(),
        bin_directory: None,
        use_rewind: true,
        drain: drain_of_pgpool(values, timeout),
        user,
        password,
        password_is_hash: false,
    }
}

/// The password that a parameter holds: plain, `TEXT`, or `AES` with the key file; hashes cannot log in anywhere.
fn plain_password(values: &Values, name: &str, key_file: Option<&Path>) -> Secret {
    let text = values.text(name);
    if text.is_empty() {
        return Secret::default();
    }
    let key = match key_file.filter(|_| text.starts_with("AES")).map(crate::auth::read_key).transpose() {
        Ok(key) => key,
        Err(error) => {
            values.error(name, error.to_string());
            None
        }
    };
    match crate::auth::pool_secret(text, key.as_ref()) {
        Ok(StoredSecret::Plain(secret)) => return secret,
        Ok(StoredSecret::Md5(_) | StoredSecret::Scram(_)) => {
            values.error(name, "expected a plain, TEXT or AES password, found a hash, with which nobody can log in");
        }
        Err(message) => values.error(name, message),
    }
    Secret::default()
}

/// Zero means unbounded in Pgpool-II; here every wait has a bound, so the default takes its place.
fn bounded(values: &Values, name: &str, value: Duration, notes: &mut Vec<(String, String)>) -> Duration {
    if !value.is_zero() || !values.text(name).trim_start_matches('0').is_empty() {
        return value;
    }
    notes.push((name.to_owned(), "0 (no bound) is not offered; 60 s are taken".to_owned()));
    Duration::from_secs(60)
}

fn either<'a>(values: &'a Values, new: &str, old: &str) -> &'a str {
    match values.entry(new) {
        Some(entry) => &entry.value,
        None => values.text(old),
    }
}

/// A transaction that is left open is rolled back before any reset, so `ABORT` is left out.
fn reset_query(list: &str) -> String {
    let statements = list.split(';').map(str::trim);
    let statements: Vec<_> = statements.filter(|one| !one.is_empty() && !one.eq_ignore_ascii_case("ABORT")).collect();
    statements.join("; ")
}

fn idle_timeout(values: &Values) -> Duration {
    match values.seconds("connection_life_time") {
        Duration::ZERO => values.seconds("child_life_time"),
        life => life,
    }
}

fn sources(
    values: &Values,
    files: &Files,
    auth: &crate::auth::Settings,
    admin: &crate::admin::Settings,
) -> Vec<PathBuf> {
    let mut sources = crate::config::pgmend_toml::sources(&files.conf, auth, admin.pcp.as_ref());
    sources.extend(values.files.iter().skip(1).cloned());
    sources
}

/// What was set and has no effect, in the order of the names; what would change what is safe is an error.
fn list_not_honoured(values: &Values, notes: &mut Vec<(String, String)>) {
    for parameter in parameters::PARAMETERS {
        let changed = values.entry(parameter.name).is_some_and(|entry| !same(&entry.value, parameter.default));
        match parameter.fate {
            Fate::Used(_) => {}
            Fate::Ignored(why) if changed => notes.push((parameter.name.to_owned(), why.to_owned())),
            Fate::Ignored(_) => {}
            Fate::IgnoredDefault(why) if !same(values.text(parameter.name), "off") => {
                notes.push((parameter.name.to_owned(), why.to_owned()));
            }
            Fate::IgnoredDefault(_) => {}
            Fate::Refused(why) if changed => values.error(parameter.name, why),
            Fate::Refused(_) => {}
        }
    }
    for entry in values.entries() {
        if parameters::find(&entry.name).is_some() {
            continue;
        }
        let base = entry.name.trim_end_matches(|c: char| c.is_ascii_digit());
        let numbered = parameters::NUMBERED.iter().find(|(name, _)| name.eq_ignore_ascii_case(base));
        match numbered.map(|(_, fate)| *fate) {
            // `hostname0` and others without a value set nothing.
            Some(Fate::Used(_)) => {}
            Some(Fate::Ignored(why) | Fate::IgnoredDefault(why) | Fate::Refused(why)) => {
                if !entry.value.is_empty() {
                    notes.push((entry.name.clone(), why.to_owned()));
                }
            }
            None => {
                let names = parameters::PARAMETERS.iter().map(|parameter| parameter.name);
                let near = values::nearest(&entry.name, names);
                let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                notes.push((entry.name.clone(), format!("unknown parameter{near}")));
            }
        }
    }
}

fn same(value: &str, default: &str) -> bool {
    if value.eq_ignore_ascii_case(default) {
        return true;
    }
    match (values::boolean(value), values::boolean(default)) {
        (Ok(a), Ok(b)) => a == b,
        (Ok(_) | Err(_), Ok(_) | Err(_)) => false,
    }
}

/// `SHOW POOL_STATUS`: every parameter, then those of each node.
fn listed(values: &Values) -> Vec<(String, String, String)> {
    let mut listed = Vec::new();
    let mut add = |name: &str, value: &str, fate: Fate| {
        let hidden = name.contains("password") && !value.is_empty() || name == "wd_authkey" && !value.is_empty();
        let description = match fate {
            Fate::Used(description) => description.to_owned(),
            Fate::Ignored(why) | Fate::IgnoredDefault(why) | Fate::Refused(why) => format!("not honoured: {why}"),
        };
        listed.push((name.to_owned(), if hidden { "*****".to_owned() } else { value.to_owned() }, description));
    };
    for parameter in parameters::PARAMETERS {
        add(parameter.name, values.text(parameter.name), parameter.fate);
    }
    for number in configured_nodes(values) {
        for (name, fate) in parameters::NUMBERED {
            if matches!(fate, Fate::Used(_)) {
                let name = format!("{name}{number}");
                add(&name, values.text(&name), *fate);
            }
        }
    }
    listed
}
