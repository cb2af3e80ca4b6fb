//! What is read of a certificate: the names of its owner, the hash for channel binding, how long it is valid.

use super::NetError;
use super::pem::{bad, certificates};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256, Sha384, Sha512};
use std::fmt::Write;
use std::path::Path;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Name};

/// Whom a client's certificate names; its authority has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateNames {
    /// The common name, if there is one.
    pub common_name: Option<String>,
    /// The whole subject as RFC 2253 writes it, last part first: `CN=anna,OU=sales`.
    pub distinguished_name: String,
}

impl CertificateNames {
    /// Reads them; `None` for something that is no certificate.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<CertificateNames> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let subject = parsed.subject();
        let common_name = subject.iter_common_name().next().and_then(|name| name.as_str().ok());
        // A zero byte in a name is an attempt at deception (CVE-2009-4034); PostgreSQL refuses it too.
        let common_name = common_name.filter(|name| !name.contains('\0')).map(str::to_owned);
        let distinguished_name = rfc2253(subject).filter(|name| !name.contains('\0'))?;
        Some(CertificateNames { common_name, distinguished_name })
    }
}

/// The subject in the order and with the escapes of RFC 2253, as PostgreSQL compares it.
fn rfc2253(name: &X509Name<'_>) -> Option<String> {
    let mut parts = Vec::new();
    for rdn in name.iter_rdn() {
        let mut one = Vec::new();
        for attribute in rdn.iter() {
            let key = match attribute.attr_type().to_id_string().as_str() {
                "2.5.4.3" => "CN".to_owned(),
                "2.5.4.4" => "SN".to_owned(),
                "2.5.4.5" => "serialNumber".to_owned(),
                "2.5.4.6" => "C".to_owned(),
                "2.5.4.7" => "L".to_owned(),
                "2.5.4.8" => "ST".to_owned(),
                "2.5.4.9" => "street".to_owned(),
                "2.5.4.10" => "O".to_owned(),
                "2.5.4.11" => "OU".to_owned(),
                "2.5.4.12" => "title".to_owned(),
                "2.5.4.42" => "GN".to_owned(),
                "0.9.2342.19200300.100.1.1" => "UID".to_owned(),
                "0.9.2342.19200300.100.1.25" => "DC".to_owned(),
                "1.2.840.113549.1.9.1" => "emailAddress".to_owned(),
                other => other.to_owned(),
            };
            one.push(format!("{key}={}", escaped(attribute.as_str().ok()?)));
        }
        parts.push(one.join("+"));
    }
    parts.reverse();
    Some(parts.join(","))
}

fn escaped(value: &str) -> String {
    let mut out = String::new();
    let last = value.chars().count().saturating_sub(1);
    for (at, c) in value.chars().enumerate() {
        match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => out.extend(['\\', c]),
            '#' if at == 0 => out.push_str("\\#"),
            ' ' if at == 0 || at == last => out.push_str("\\ "),
            c if c.is_control() || !c.is_ascii() => {
                // OpenSSL writes each byte of what is not ASCII as hexadecimal digits.
                c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| {
                    // Writing to a text cannot fail.
                    let _ = write!(out, "\\{byte:02X}");
                });
            }
            c => out.push(c),
        }
    }
    out
}

/// The `tls-server-end-point` hash of a certificate: by the hash of its signature, with SHA-256 in the place of MD5 and
/// SHA-1. `None` when the signature names no hash that we know; channel binding is then not offered.
pub(super) fn end_point_hash(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let algorithm = parsed.signature_algorithm.algorithm.to_id_string();
    match algorithm.as_str() {
        // RSA with MD5, SHA-1, SHA-256; ECDSA with SHA-1, SHA-256; DSA with SHA-1, SHA-256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2"
        | "1.2.840.10040.4.3"
        | "2.16.840.1.101.3.4.3.2" => Some(Sha256::digest(certificate).to_vec()),
        // RSA and ECDSA with SHA-384.
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(Sha384::digest(certificate).to_vec()),
        // RSA and ECDSA with SHA-512.
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(Sha512::digest(certificate).to_vec()),
        // Ed25519 and RSA-PSS: RFC 5929 leaves them undefined, and libpq refuses them.
        _ => None,
    }
}

/// The host names that a certificate is for (subjectAltName), in lower case.
pub(super) fn host_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let names = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    names.collect()
}

/// When the first certificate of a file ends, in seconds of the Unix clock.
pub fn certificate_ends_at(file: &Path) -> Result<i64, NetError> {
    let all = certificates(file)?;
    let first = all.first().ok_or_else(|| bad(file, &"holds no certificate"))?;
    let (_, parsed) = X509Certificate::from_der(first).map_err(|e| bad(file, &e))?;
    Ok(parsed.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_rfc_2253_wants_it() {
        assert_eq!(escaped("a, b"), "a\\, b");
        assert_eq!(escaped(" #x "), "\\ #x\\ ");
        assert_eq!(escaped("#x"), "\\#x");
        assert_eq!(escaped("J\u{f6}rg"), "J\\C3\\B6rg");
        assert_eq!(end_point_hash(&CertificateDer::from(vec![1, 2, 3])), None);
        assert_eq!(CertificateNames::of(&CertificateDer::from(vec![1, 2, 3])), None);
    }
}
