//! The options behind a rule's method: `name=value`.

use super::super::ident::IdentMaps;
use super::super::ldap::LdapOptions;
use super::words::Field;
use super::{ClientCert, Demand, Method, Subject};
use std::sync::Arc;

/// Takes a rule's options into its demand.
pub(super) fn read(demand: &mut Demand, fields: &[Field], maps: &IdentMaps) -> Result<(), String> {
    let mut ldap = LdapOptions::default();
    for word in fields.iter().flatten() {
        let Some((name, value)) = word.text.split_once('=') else {
            return Err(format!("option \"{}\" is not of the form name=value", word.text));
        };
        match name {
            "map" => {
                let missing = || format!("map \"{value}\" is not in ident_file");
                demand.map = Some(maps.map(value).ok_or_else(missing)?);
            }
            "clientcert" => demand.client_cert = client_cert(value, demand.method)?,
            "clientname" => {
                demand.subject = match value {
                    "CN" => Subject::CommonName,
                    "DN" => Subject::DistinguishedName,
                    _ => return Err(format!("expected clientname=CN or clientname=DN, found \"{value}\"")),
                }
            }
            _ if name.starts_with("ldap") && demand.method == Method::Ldap => ldap.set(name, value)?,
            _ if name.starts_with("ldap") => return Err(format!("option \"{name}\" goes with ldap only")),
            _ if name.starts_with("pam") && demand.method == Method::Pam => demand.pam.set(name, value)?,
            _ if name.starts_with("pam") => return Err(format!("option \"{name}\" goes with pam only")),
            _ => return Err(format!("option \"{name}\" is not supported")),
        }
    }
    let named = demand.method == Method::Peer || demand.client_cert == ClientCert::VerifyFull;
    if demand.map.is_some() && !named {
        return Err("option \"map\" goes with cert, peer and clientcert=verify-full only".into());
    }
    if demand.method == Method::Ldap {
        demand.ldap = Some(Arc::new(ldap.finish()?));
    }
    Ok(())
}

fn client_cert(value: &str, method: Method) -> Result<ClientCert, String> {
    match value {
        "verify-ca" if method == Method::Cert => Err("clientcert=verify-ca says less than cert; leave it out".into()),
        "verify-ca" => Ok(ClientCert::VerifyCa),
        "verify-full" => Ok(ClientCert::VerifyFull),
        _ => Err(format!("expected clientcert=verify-ca or clientcert=verify-full, found \"{value}\"")),
    }
}
