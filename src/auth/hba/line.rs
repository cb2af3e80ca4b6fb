//! One line of rules: type, databases, users, address, method, options.

use super::super::pattern::Pattern;
use super::words::{Field, Word};
use super::{ClientCert, Demand, Kind, Method, Name, Rule, Surroundings, options};
use ipnet::IpNet;
use std::net::IpAddr;

pub(super) fn rule(fields: &[Field], around: &Surroundings<'_>) -> Result<Rule, String> {
    let mut rest = fields.iter();
    let mut next = |what: &str| rest.next().ok_or_else(|| format!("the line ends before its {what}"));
    let kind = match single(next("type")?, "type")? {
        "local" => Kind::Local,
        "host" => Kind::Host,
        "hostssl" => Kind::HostTls,
        "hostnossl" => Kind::HostPlain,
        other => return Err(format!("unknown type \"{other}\"; valid are local, host, hostssl, hostnossl")),
    };
    let databases = next("database")?.iter().map(database).collect::<Result<_, _>>()?;
    let users = next("user")?.iter().map(user).collect::<Result<_, _>>()?;
    let mut nets = None;
    if kind != Kind::Local {
        let address = single(next("address")?, "address")?;
        nets = match address.parse::<IpAddr>() {
            Ok(ip) => Some(vec![masked(ip, single(next("mask")?, "mask")?)?]),
            Err(_) => range(address, around.networks)?,
        };
    }
    let method = match (single(next("method")?, "method")?, kind) {
        // As PostgreSQL: on a Unix socket `ident` means `peer`.
        ("ident", Kind::Local) => Method::Peer,
        ("ident", _) => return Err("\"ident\" over TCP is not supported, for it proves nothing; use cert".into()),
        (name, _) => Method::parse(name)?,
    };
    let mut demand = Demand::of(method);
    options::read(&mut demand, rest.as_slice(), around.maps)?;
    check(kind, &demand)?;
    Ok(Rule { kind, databases, users, nets, demand })
}

/// What goes with which kind of connection.
fn check(kind: Kind, demand: &Demand) -> Result<(), String> {
    if demand.method == Method::Cert && kind != Kind::HostTls {
        return Err("\"cert\" is possible in hostssl lines only".into());
    }
    if demand.method == Method::Peer && kind != Kind::Local {
        return Err("\"peer\" is possible in local lines only".into());
    }
    if demand.client_cert != ClientCert::Any && kind != Kind::HostTls {
        return Err("\"clientcert\" is possible in hostssl lines only".into());
    }
    Ok(())
}

fn single<'a>(field: &'a Field, what: &str) -> Result<&'a str, String> {
    match field.as_slice() {
        [word] => Ok(&word.text),
        _ => Err(format!("only one {what} is possible")),
    }
}

fn database(word: &Word) -> Result<Name, String> {
    match (word.quoted, word.text.as_str()) {
        (false, "sameuser") => Ok(Name::SameUser),
        (false, "replication") => Ok(Name::Replication),
        (false, "samerole" | "samegroup") => Ok(Name::SameRole),
        _ => name(word),
    }
}

fn user(word: &Word) -> Result<Name, String> {
    match word.text.strip_prefix('+') {
        Some(role) if !word.quoted => Ok(Name::Role(role.to_owned())),
        _ => name(word),
    }
}

fn name(word: &Word) -> Result<Name, String> {
    match (word.quoted, word.text.as_str()) {
        (false, "all") => Ok(Name::All),
        // Quotes keep commas together; a pattern remains one within them.
        (_, text) if text.starts_with('/') => Pattern::parse(text.trim_start_matches('/')).map(Name::Pattern),
        (_, text) => Ok(Name::Exactly(text.to_owned())),
    }
}

fn range(address: &str, networks: &[IpNet]) -> Result<Option<Vec<IpNet>>, String> {
    match address {
        "all" => Ok(None),
        "samehost" => Ok(Some(networks.iter().map(|net| IpNet::from(net.addr())).collect())),
        "samenet" => Ok(Some(networks.to_vec())),
        _ if address.contains('/') => match address.parse::<IpNet>() {
            Ok(net) => Ok(Some(vec![net])),
            Err(_) => Err(format!("\"{address}\" is not a range, as 10.0.0.0/8")),
        },
        _ => Err(format!("host name \"{address}\" is not supported; write its address, as 10.0.0.1/32")),
    }
}

fn masked(ip: IpAddr, mask: &str) -> Result<IpNet, String> {
    let bad = || format!("\"{mask}\" is not a mask for {ip}; write one, as 255.255.255.0, or a range, as {ip}/32");
    IpNet::with_netmask(ip, mask.parse().map_err(|_| bad())?).map_err(|_| bad())
}
