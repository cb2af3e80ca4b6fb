//! `[tls]` of `pgmend.toml`: towards clients and towards nodes.

use super::section::Section;
use crate::net::{CertificateSettings, ServerTlsSettings, TlsSettings};
use std::path::{Path, PathBuf};

/// Both directions.
pub fn read(section: Section<'_>, folder: &Path) -> (Option<TlsSettings>, ServerTlsSettings) {
    let clients = towards_clients(&section, folder);
    let (cert_file, key_file) = server_pair(&section, folder).unzip();
    let servers = ServerTlsSettings {
        ca_file: section.path("server_ca_file", folder),
        crl_file: section.path("server_crl_file", folder),
        cert_file,
        key_file,
        databases: Default::default(),
    };
    if servers.crl_file.is_some() && servers.ca_file.is_none() {
        section.error("server_crl_file", "expected server_ca_file too: without it no certificate is checked");
    }
    section.finish();
    (clients, servers)
}

/// What servers are shown: `server_cert_file` and `server_key_file`.
pub fn server_pair(section: &Section<'_>, folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let server_cert = section.path("server_cert_file", folder);
    let server_key = section.path("server_key_file", folder);
    pair(section, ("server_cert_file", server_cert), ("server_key_file", server_key))
}

fn towards_clients(section: &Section<'_>, folder: &Path) -> Option<TlsSettings> {
    let (cert, key) = (section.path("cert_file", folder), section.path("key_file", folder));
    let own = pair(section, ("cert_file", cert), ("key_file", key));
    let client_ca_file = section.path("client_ca_file", folder);
    let client_crl_file = section.path("client_crl_file", folder);
    let session_tickets = section.boolean("session_tickets", true);
    let others = section.sections("certificate").into_iter().filter_map(|other| certificate(other, folder)).collect();
    if client_crl_file.is_some() && client_ca_file.is_none() {
        section.error("client_crl_file", "expected client_ca_file too: without it no certificate is asked for");
    }
    let Some((cert_file, key_file)) = own else {
        for (key, set) in [("client_ca_file", client_ca_file.is_some()), ("certificate", !Vec::is_empty(&others))] {
            if set {
                section.error(key, "expected cert_file and key_file too: TLS is off without them");
            }
        }
        return None;
    };
    let own = CertificateSettings { cert_file, key_file, server_names: Vec::new() };
    Some(TlsSettings { own, others, client_ca_file, client_crl_file, session_tickets })
}

/// One `[[tls.certificate]]`.
fn certificate(section: Section<'_>, folder: &Path) -> Option<CertificateSettings> {
    let (cert, key) = (section.path("cert_file", folder), section.path("key_file", folder));
    if cert.is_none() && key.is_none() {
        section.error("cert_file", "expected cert_file and key_file; both are missing");
    }
    let files = pair(&section, ("cert_file", cert), ("key_file", key));
    let server_names = section.texts("server_names", &[]);
    section.finish();
    files.map(|(cert_file, key_file)| CertificateSettings { cert_file, key_file, server_names })
}

/// Both or neither.
fn pair(
    section: &Section<'_>,
    (cert_name, cert): (&str, Option<PathBuf>),
    (key_name, key): (&str, Option<PathBuf>),
) -> Option<(PathBuf, PathBuf)> {
    match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) => {
            section.error(cert_name, format!("expected {key_name} too"));
            None
        }
        (None, Some(_)) => {
            section.error(key_name, format!("expected {cert_name} too"));
            None
        }
    }
}
