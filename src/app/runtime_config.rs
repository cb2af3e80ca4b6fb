//! The configuration in force: what each tower is given of it, and how a reload replaces it whole or not at all.

use super::data_plane::DataPlane;
use super::descriptors::clients_within_limit;
use crate::auth::{HbaRules, Secrets, StoredSecret};
use crate::base::Secret;
use crate::client::auth_query::{Around, AuthQuery};
use crate::client::startup::{StartupContext, Turns};
use crate::client::{Order, PlaneSettings};
use crate::cluster::{Board, SslMode};
use crate::config::{Config, Source, changes, effective};
use crate::keeper::Keeper;
use crate::net::{ServerTls, ServerTlsSettings, TlsAcceptor};
use crate::telemetry;
use arc_swap::ArcSwap;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by the signal handler and the operators' surfaces.
pub struct RuntimeConfig {
    source: Source,
    now: ArcSwap<Config>,
    secrets: ArcSwap<Secrets>,
    server_tls: ArcSwap<ServerTls>,
    pending: Mutex<Vec<String>>,
    /// One reload at a time.
    reloading: Mutex<()>,
}

/// What logins need besides files.
pub struct LoginSurroundings {
    /// Who is the primary, for `auth_query`.
    pub board: Arc<Board>,
    /// TLS towards it.
    pub server_tls: Arc<ServerTls>,
    /// The control plane's runtime.
    pub control: tokio::runtime::Handle,
}

/// What clients' logins need, read from the files that the configuration names.
pub fn startup_context(
    config: &Config,
    secrets: Secrets,
    around: LoginSurroundings,
) -> Result<(StartupContext, Arc<Secrets>), String> {
    let tls = config.listen.tls.as_ref().map(TlsAcceptor::load).transpose().map_err(|e| e.to_string())?;
    let hba = Arc::new(HbaRules::load(&config.auth).map_err(|e| e.to_string())?);
    let secrets = Arc::new(secrets);
    derive_in_background(&secrets)?;
    let ldap_ca = config.auth.ldap_ca_file.clone().filter(|_| hba.need_ldap_tls());
    let ldap_tls = ldap_ca.map(|ca| {
        let files = ServerTlsSettings { ca_file: Some(ca), ..ServerTlsSettings::default() };
        let side = ServerTls::load(&files).and_then(|tls| tls.config(SslMode::VerifyFull));
        side.map(|side| side.own().clone()).map_err(|e| e.to_string())
    });
    let ldap_tls = ldap_tls.transpose()?;
    let LoginSurroundings { board, server_tls, control } = around;
    let query = config.auth.query.clone().map(|settings| {
        let password = match secrets.lookup(&settings.user) {
            Some(StoredSecret::Plain(password)) => password.clone(),
            Some(StoredSecret::Md5(_) | StoredSecret::Scram(_)) | None => Secret::default(),
        };
        let (secrets, control, with_roles) = (secrets.clone(), control.clone(), hba.need_roles());
        let names = config.pool.databases.iter().map(|(name, d)| (name.clone(), d.dbname.clone())).collect();
        AuthQuery::new(settings, Around { board, tls: server_tls, password, secrets, control, with_roles, names })
    });
    let login_timeout = config.client.login_timeout;
    let (turns, aside) = (Turns::new(config.client.max_logins), Some(control));
    let pam_service = config.auth.pam_service.as_str().into();
    let kept = secrets.clone();
    Ok((StartupContext { tls, hba, secrets, query, ldap_tls, pam_service, aside, login_timeout, turns }, kept))
}

/// Many users with plain passwords: a daemon does not wait for their verifiers. The thread ends with the last of them, or
/// when a reload has replaced them.
fn derive_in_background(secrets: &Arc<Secrets>) -> Result<(), String> {
    if secrets.is_ready() {
        return Ok(());
    }
    let secrets = Arc::downgrade(secrets);
    let derive = move || {
        while let Some(secrets) = secrets.upgrade() {
            if !secrets.derive_next() {
                tracing::info!(event = "secrets.ready", users = secrets.len());
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("secrets".into());
    thread.spawn(derive).map(drop).map_err(|e| format!("no thread for the secrets: {e}"))
}

/// The data plane's part.
pub fn plane_settings(config: &Config, server_tls: Arc<ServerTls>) -> PlaneSettings {
    let max_clients = clients_within_limit(config.pool.max_clients);
    PlaneSettings {
        replication: config.replication.clone(),
        client: config.client.clone(),
        pool: crate::pool::Settings { max_clients, ..config.pool.clone() },
        server: config.server.clone(),
        drain: config.recovery.drain,
        recovery_timeout: config.recovery.timeout,
        server_tls,
        keepalive: config.listen.keepalive,
    }
}

impl RuntimeConfig {
    /// As read at start.
    pub fn new(
        source: Source,
        config: Config,
        secrets: Arc<Secrets>,
        server_tls: Arc<ServerTls>,
    ) -> Arc<RuntimeConfig> {
        Arc::new(RuntimeConfig {
            source,
            now: ArcSwap::from_pointee(config),
            secrets: ArcSwap::new(secrets),
            server_tls: ArcSwap::new(server_tls),
            pending: Mutex::default(),
            reloading: Mutex::default(),
        })
    }

    /// What is in force.
    pub fn now(&self) -> Arc<Config> {
        self.now.load_full()
    }

    /// TLS towards nodes, in force.
    pub fn server_tls(&self) -> Arc<ServerTls> {
        self.server_tls.load_full()
    }

    /// Keys whose new values wait for a restart.
    pub fn pending_restart(&self) -> Vec<String> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A role's password in clear, from the secret files.
    pub fn password_of(&self, user: &str) -> Option<Secret> {
        match self.secrets.load().lookup(user)? {
            StoredSecret::Plain(secret) => Some(secret.clone()),
            StoredSecret::Md5(_) | StoredSecret::Scram(_) => None,
        }
    }

    /// True when the secret files hold only a hash of a role's password.
    pub fn has_hash_of(&self, user: &str) -> bool {
        matches!(self.secrets.load().lookup(user), Some(StoredSecret::Md5(_) | StoredSecret::Scram(_)))
    }

    /// Reads all files anew and puts them in force together; with any mistake nothing changes. Returns a line for people.
    pub fn reload(
        &self,
        data: &DataPlane,
        keeper: &Keeper,
        control: &tokio::runtime::Handle,
    ) -> Result<String, String> {
        let _one = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = self.try_reload(data, keeper, control);
        match &outcome {
            Ok(line) => tracing::info!(event = "config.reloaded", "{line}"),
            Err(error) => tracing::error!(event = "config.reload_refused", "nothing was changed: {error}"),
        }
        outcome
    }

    fn try_reload(
        &self,
        data: &DataPlane,
        keeper: &Keeper,
        control: &tokio::runtime::Handle,
    ) -> Result<String, String> {
        let read = self.source.load().map_err(|e| e.to_string())?;
        let old = self.now();
        let found = changes(&old, &read);
        let next = effective(&old, &read);
        let secrets = self.secrets.load().reload(&next.auth).map_err(|e| e.to_string())?;
        let server_tls = ServerTls::load(&next.server.tls).map_err(|e| e.to_string())?;
        let board = data.plane.board.clone();
        let around = LoginSurroundings { board, server_tls: server_tls.clone(), control: control.clone() };
        let (startup, secrets) = startup_context(&next, secrets, around)?;
        telemetry::set_level(&next.log_level).map_err(|e| e.to_string())?;
        self.secrets.store(secrets);
        self.server_tls.store(server_tls.clone());
        data.plane.reload(plane_settings(&next, server_tls), startup);
        data.order(|| Order::Settings);
        let (keeper, health, nodes) = (keeper.clone(), next.health.clone(), next.nodes.clone());
        // The keeper publishes the new nodes by itself; nobody has to wait for it.
        control.spawn(async move { keeper.reload(health, nodes).await });
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = found.pending_restart.clone();
        self.now.store(Arc::new(next));
        for (key, why) in crate::config::remarks(&self.now()) {
            tracing::warn!(event = "config.remark", parameter = %key, "{why}");
        }
        let mut line = match found.applied.as_slice() {
            [] => "configuration reloaded, no key changed; rules, secrets and certificates were read anew".to_owned(),
            applied => format!("configuration reloaded; changed: {}", applied.join(", ")),
        };
        if !found.pending_restart.is_empty() {
            line.push_str(&format!("; pending restart: {}", found.pending_restart.join(", ")));
        }
        Ok(line)
    }
}
