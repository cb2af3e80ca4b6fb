//! Certificates, keys and revocation lists from PEM files, with errors that name the file.

use super::NetError;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use std::fmt;
use std::path::Path;

/// All certificates of a file; at least one.
pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, NetError> {
    let pem = read(file)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|e| bad(file, &e))?;
    if found.is_empty() {
        return Err(bad(file, &"holds no certificate"));
    }
    Ok(found)
}

/// The revocation lists of a file; at least one.
pub(super) fn revocation_lists(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, NetError> {
    let pem = read(file)?;
    let found = CertificateRevocationListDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|e| bad(file, &e))?;
    if found.is_empty() {
        return Err(bad(file, &"holds no revocation list (-----BEGIN X509 CRL-----)"));
    }
    Ok(found)
}

/// The key of a file, which must not be encrypted.
pub(super) fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, NetError> {
    let pem = zeroize::Zeroizing::new(read(file)?);
    let text = String::from_utf8_lossy(&pem);
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
        let why = "the key is encrypted, which pgmend does not read; \
                   write it without a passphrase (openssl pkey -in KEY -out NEW) in a file of mode 0600";
        return Err(bad(file, &why));
    }
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
        pem::Error::NoItemsFound => bad(file, &"holds no private key"),
        error => bad(file, &error),
    })
}

/// An error about a file.
pub(super) fn bad(file: &Path, why: &dyn fmt::Display) -> NetError {
    NetError::Certificate { file: file.display().to_string(), why: why.to_string() }
}

fn read(file: &Path) -> Result<Vec<u8>, NetError> {
    std::fs::read(file).map_err(|e| bad(file, &e))
}
