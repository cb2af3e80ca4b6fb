//! Rules of who may connect how, in the language of `pg_hba.conf`. Read this page, then `line` (how a rule is written).
//!
//! <https://www.postgresql.org/docs/17/auth-pg-hba-conf.html>; the first rule that fits decides, none means reject.

mod line;
mod options;
mod read;
pub(super) mod words;

use super::AuthError;
use super::ident::{IdentMap, IdentMaps};
use super::ldap::LdapSettings;
use super::pam::PamSettings;
use super::pattern::Pattern;
use ipnet::IpNet;
pub(super) use read::{Files, Surroundings, each_line};
use std::net::IpAddr;
use std::sync::Arc;

/// Rules of one file and those that it includes; real files have dozens.
const MAX_RULES: usize = 10_000;
const METHODS: &str = "trust, reject, password, md5, scram-sha-256, cert, peer, ldap, pam";

/// How a client proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Not at all.
    Trust,
    /// It may not connect.
    Reject,
    /// Password in clear text.
    Password,
    /// MD5 challenge.
    Md5,
    /// SCRAM-SHA-256.
    Scram,
    /// TLS client certificate.
    Cert,
    /// The operating system's user at the other end of a Unix socket.
    Peer,
    /// Password in clear text, which an LDAP server judges.
    Ldap,
    /// Password in clear text, which PAM judges.
    Pam,
}

impl Method {
    /// The method of that name; the error lists the valid ones.
    pub fn parse(name: &str) -> Result<Method, String> {
        match name {
            "trust" => Ok(Method::Trust),
            "reject" => Ok(Method::Reject),
            "password" => Ok(Method::Password),
            "md5" => Ok(Method::Md5),
            "scram-sha-256" => Ok(Method::Scram),
            "cert" => Ok(Method::Cert),
            "peer" => Ok(Method::Peer),
            "ldap" => Ok(Method::Ldap),
            "pam" if cfg!(feature = "pam") => Ok(Method::Pam),
            "pam" => {
                Err("authentication method \"pam\" is not in this build of pgmend, which was made without the feature \
                          `pam`: cargo build --release --features pam"
                    .into())
            }
            "gss" | "sspi" | "ident" | "bsd" | "radius" | "oauth" => {
                Err(format!("authentication method \"{name}\" is not supported by pgmend; supported are {METHODS}"))
            }
            other => Err(format!("unknown authentication method \"{other}\"; valid are {METHODS}")),
        }
    }
}

/// What is asked of a client's certificate beside its method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClientCert {
    /// Nothing.
    #[default]
    Any,
    /// There must be one, signed by a known authority.
    VerifyCa,
    /// It must also name the user.
    VerifyFull,
}

/// Which part of a certificate's subject is the user's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subject {
    /// `clientname=CN`.
    #[default]
    CommonName,
    /// `clientname=DN`: the whole subject as RFC 2253 writes it.
    DistinguishedName,
}

/// What a rule demands of a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    /// The proof.
    pub method: Method,
    /// `clientcert`; `VerifyFull` with the method `cert`.
    pub client_cert: ClientCert,
    /// `clientname`.
    pub subject: Subject,
    /// `map`: which names of the outside world may be which user; `None`: equal ones.
    pub map: Option<Arc<IdentMap>>,
    /// For the method `ldap`.
    pub ldap: Option<Arc<LdapSettings>>,
    /// For the method `pam`.
    pub pam: PamSettings,
}

impl Demand {
    /// A method without options.
    pub fn of(method: Method) -> Demand {
        let client_cert = if method == Method::Cert { ClientCert::VerifyFull } else { ClientCert::Any };
        let (subject, pam) = (Subject::CommonName, PamSettings::default());
        Demand { method, client_cert, subject, map: None, ldap: None, pam }
    }

    /// Whether somebody whom the outside world calls `name` may be `user`, who is a member of `roles`.
    pub fn names(&self, name: &str, user: &str, roles: &[String]) -> bool {
        self.map.as_ref().map_or(name == user, |map| map.permits(name, user, roles))
    }
}

/// A client that asks.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// It came by TLS.
    pub tls: bool,
    /// Its address; `None` for a Unix socket.
    pub peer: Option<IpAddr>,
    /// Role.
    pub user: &'a str,
    /// Database.
    pub database: &'a str,
    /// The roles that it is a member of, itself among them; needed only when rules name roles.
    pub roles: &'a [String],
    /// It asks for physical replication, which has no database and rules of its own.
    pub replication: bool,
}

/// All rules, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct HbaRules {
    rules: Vec<Rule>,
    /// For whom no rule fits.
    reject: Demand,
}

impl HbaRules {
    /// Reads a text that needs nothing beside itself: no other file, no map, not this host's networks.
    pub fn parse(text: &str, file_name: &str) -> Result<HbaRules, AuthError> {
        let maps = IdentMaps::default();
        Self::parse_among(text, file_name, &Surroundings { files: &read::NoFiles, networks: &[], maps: &maps })
    }

    /// Reads a file's text. `file_name` is for messages, and relative paths start at its folder.
    pub(super) fn parse_among(text: &str, file_name: &str, around: &Surroundings<'_>) -> Result<HbaRules, AuthError> {
        let mut rules = Vec::new();
        read::each_line(text, file_name, around.files, &mut |fields| {
            if rules.len() == MAX_RULES {
                return Err(format!("more than {MAX_RULES} rules"));
            }
            rules.push(line::rule(fields, around)?);
            Ok(())
        })?;
        Ok(HbaRules { rules, reject: Demand::of(Method::Reject) })
    }

    /// One method for everybody; `cert` for everybody who comes by TLS.
    pub fn uniform(method: Method) -> HbaRules {
        let kinds: &[Kind] = match method {
            Method::Cert => &[Kind::HostTls],
            Method::Peer => &[Kind::Local],
            _ => &[Kind::Local, Kind::Host],
        };
        let rule = |kind: &Kind| Rule {
            kind: *kind,
            databases: vec![Name::All, Name::Replication],
            users: vec![Name::All],
            nets: None,
            demand: Demand::of(method),
        };
        HbaRules { rules: kinds.iter().map(rule).collect(), reject: Demand::of(Method::Reject) }
    }

    /// What the first rule that fits demands; `Reject` when none does.
    pub fn decide(&self, ask: &Ask<'_>) -> &Demand {
        self.rules.iter().find(|rule| rule.fits(ask)).map_or(&self.reject, |rule| &rule.demand)
    }

    /// True when it takes the client's roles to tell which rule decides, or what its map permits. So whoever comes under an
    /// earlier rule gets in also while no server can be asked.
    pub fn need_roles_of(&self, ask: &Ask<'_>) -> bool {
        for rule in &self.rules {
            match rule.names_roles() {
                true if rule.fits_from(ask) => return true,
                true => {}
                false if rule.fits(ask) => return rule.maps_roles(),
                false => {}
            }
        }
        false
    }

    /// True when a rule or its map names roles, so that the server must be asked who is a member of what.
    pub fn need_roles(&self) -> bool {
        self.rules.iter().any(|rule| rule.names_roles() || rule.maps_roles())
    }

    /// True when a rule asks for a client's certificate.
    pub fn need_client_certificates(&self) -> bool {
        self.rules.iter().any(|rule| rule.demand.client_cert != ClientCert::Any)
    }

    /// True when a rule asks an LDAP server by TLS.
    pub fn need_ldap_tls(&self) -> bool {
        self.rules.iter().any(|rule| rule.demand.ldap.as_ref().is_some_and(|ldap| ldap.is_tls()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Local,
    Host,
    HostTls,
    HostPlain,
}

#[derive(Clone, Debug, PartialEq)]
enum Name {
    All,
    SameUser,
    /// `samerole`: the user is a member of the role that is called as the database.
    SameRole,
    /// `replication`: physical replication, which nothing else fits.
    Replication,
    /// `+role`: a member of it.
    Role(String),
    Pattern(Pattern),
    Exactly(String),
}

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    kind: Kind,
    databases: Vec<Name>,
    users: Vec<Name>,
    /// `None` = every address.
    nets: Option<Vec<IpNet>>,
    demand: Demand,
}

impl Rule {
    fn names_roles(&self) -> bool {
        let mut names = self.databases.iter().chain(&self.users);
        names.any(|name| matches!(name, Name::Role(_) | Name::SameRole))
    }

    fn maps_roles(&self) -> bool {
        self.demand.map.as_ref().is_some_and(|map| map.needs_roles())
    }

    /// By where the client comes from alone.
    fn fits_from(&self, ask: &Ask<'_>) -> bool {
        let kind = match self.kind {
            Kind::Local => ask.peer.is_none(),
            Kind::Host => ask.peer.is_some(),
            Kind::HostTls => ask.peer.is_some() && ask.tls,
            Kind::HostPlain => ask.peer.is_some() && !ask.tls,
        };
        let address = match (&self.nets, ask.peer) {
            (None, _) => true,
            (Some(nets), Some(peer)) => nets.iter().any(|net| net.contains(&peer.to_canonical())),
            (Some(_), None) => false,
        };
        kind && address
    }

    fn fits(&self, ask: &Ask<'_>) -> bool {
        let named = |names: &[Name], text: &str| {
            names.iter().any(|name| match name {
                Name::All => true,
                Name::SameUser => ask.database == ask.user,
                Name::SameRole => ask.roles.iter().any(|role| role == ask.database),
                Name::Replication => false,
                Name::Role(wanted) => ask.roles.contains(wanted),
                Name::Pattern(pattern) => pattern.fits(text),
                Name::Exactly(name) => name == text,
            })
        };
        let database = match ask.replication {
            true => self.databases.contains(&Name::Replication),
            false => named(&self.databases, ask.database),
        };
        self.fits_from(ask) && database && named(&self.users, ask.user)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
