//! Passwords judged by an LDAP server: bind as the user, whose entry is named by a rule or searched for.

use super::startup::StartupContext;
use crate::auth::ldap::{LdapHow, LdapScope, LdapSecurity, LdapSettings, bind_name, search_filter};
use crate::base::Secret;
use ldap3::{Ldap, LdapConnAsync, LdapConnSettings, LdapError, Scope, SearchEntry};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

/// Logins that ask an LDAP server at once; further ones wait, within their time.
static AT_ONCE: Semaphore = Semaphore::const_new(16);
/// Bound on connecting to one server, and on each of its answers.
const PATIENCE: Duration = Duration::from_secs(10);
/// "invalidCredentials" of RFC 4511: also what is said of an entry that does not exist.
const WRONG: u32 = 49;

/// What went wrong; for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum JudgeError {
    /// The last server that was tried.
    #[error("LDAP server {host}: {why}")]
    Server { host: String, why: LdapError },
    /// The login was given up.
    #[error("the question to the LDAP server was not finished")]
    Dropped,
}

/// Whether the password is the user's. An unknown user costs the same questions as a wrong password.
pub(super) async fn judge(
    settings: Arc<LdapSettings>,
    user: &str,
    password: &Secret,
    ctx: &StartupContext,
) -> Result<bool, JudgeError> {
    let _turn = AT_ONCE.acquire().await.map_err(|_| JudgeError::Dropped)?;
    let (user, password, tls) = (user.to_owned(), password.clone(), ctx.ldap_tls.clone());
    let asking = async move { ask_each(&settings, &user, &password, tls).await };
    let task = match &ctx.aside {
        Some(aside) => aside.spawn(asking),
        None => tokio::spawn(asking),
    };
    AbortOnDropHandle::new(task).await.map_err(|_| JudgeError::Dropped)?
}

/// The first server that can be reached decides.
async fn ask_each(
    settings: &LdapSettings,
    user: &str,
    password: &Secret,
    tls: Option<Arc<rustls::ClientConfig>>,
) -> Result<bool, JudgeError> {
    let mut last = JudgeError::Dropped;
    for host in &settings.hosts {
        let outcome = match connect(settings, host, tls.clone()).await {
            Ok(mut ldap) => match ask(settings, &mut ldap, user, password).await {
                Ok(fits) => {
                    // A farewell; the connection is closed in any case.
                    let _ = ldap.unbind().await;
                    return Ok(fits);
                }
                Err(why) => why,
            },
            Err(why) => why,
        };
        last = JudgeError::Server { host: host.clone(), why: outcome };
    }
    Err(last)
}

async fn connect(
    settings: &LdapSettings,
    host: &str,
    tls: Option<Arc<rustls::ClientConfig>>,
) -> Result<Ldap, LdapError> {
    let scheme = if settings.security == LdapSecurity::Ldaps { "ldaps" } else { "ldap" };
    // A bare IPv6 address needs its brackets in a URL.
    let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    let mut options =
        LdapConnSettings::new().set_conn_timeout(PATIENCE).set_starttls(settings.security == LdapSecurity::StartTls);
    if let Some(tls) = tls {
        options = options.set_config(tls);
    }
    let url = format!("{scheme}://{host}:{}", settings.port);
    let connecting = LdapConnAsync::with_settings(options, &url);
    let (connection, ldap) = tokio::time::timeout(PATIENCE, connecting).await??;
    // Ends by itself when the last handle is dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.drive().await {
            tracing::debug!(event = "ldap.connection_ended", %error);
        }
    });
    Ok(ldap)
}

async fn ask(settings: &LdapSettings, ldap: &mut Ldap, user: &str, password: &Secret) -> Result<bool, LdapError> {
    match &settings.how {
        LdapHow::Simple { prefix, suffix } => match bind_name(prefix, user, suffix) {
            Some(name) => binds(ldap, &name, password).await,
            None => Ok(false),
        },
        LdapHow::Search { base, scope, bind_name, bind_password, filter } => {
            let Some(filter) = search_filter(filter, user) else { return Ok(false) };
            if !bind_name.is_empty() {
                ldap.with_timeout(PATIENCE).simple_bind(bind_name, bind_password.expose()).await?.success()?;
            }
            let scope = match scope {
                LdapScope::Base => Scope::Base,
                LdapScope::One => Scope::OneLevel,
                LdapScope::Sub => Scope::Subtree,
            };
            // No attributes: the name is enough.
            let found = ldap.with_timeout(PATIENCE).search(base, scope, &filter, vec!["1.1"]).await?.success()?;
            let mut names =
                found.0.into_iter().filter(|entry| !entry.is_ref()).map(|entry| SearchEntry::construct(entry).dn);
            match (names.next(), names.next()) {
                (Some(name), None) => binds(ldap, &name, password).await,
                // Nobody, or several: an attempt all the same, for the time that it takes.
                _ => binds(ldap, base, password).await.map(|_| false),
            }
        }
    }
}

async fn binds(ldap: &mut Ldap, name: &str, password: &Secret) -> Result<bool, LdapError> {
    let result = ldap.with_timeout(PATIENCE).simple_bind(name, password.expose()).await?;
    match result.rc {
        0 => Ok(true),
        WRONG => Ok(false),
        _ => result.success().map(|_| false),
    }
}
