//! Pgpool-II's `AES` secrets: AES-256-CBC under a key that SHA-1 stretches from the text of `.pgpoolkey`.
//!
//! Same as `openssl enc -aes-256-cbc -md sha1 -nosalt -base64`. Weak (no salt, one round), kept for its files only.

use super::AuthError;
use crate::base::Secret;
use aes::Aes256;
use aes::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit, block_padding::Pkcs7};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};
use zeroize::Zeroizing;

/// Reads what follows the prefix `AES`.
pub fn decrypt_aes(base64: &str, key: &str) -> Result<Secret, AuthError> {
    let bytes = STANDARD.decode(base64).map_err(|_| AuthError::Decrypt)?;
    let (key, iv) = key_and_iv(key)?;
    let cipher = cbc::Decryptor::<Aes256>::new_from_slices(key.as_slice(), iv.as_slice());
    let clear = cipher.map_err(|_| AuthError::Decrypt)?.decrypt_padded_vec_mut::<Pkcs7>(&bytes);
    let clear = Zeroizing::new(clear.map_err(|_| AuthError::Decrypt)?);
    std::str::from_utf8(&clear).map(Secret::new).map_err(|_| AuthError::Decrypt)
}

/// Writes what follows the prefix `AES`.
pub fn encrypt_aes(password: &Secret, key: &str) -> Result<String, AuthError> {
    let (key, iv) = key_and_iv(key)?;
    let cipher = cbc::Encryptor::<Aes256>::new_from_slices(key.as_slice(), iv.as_slice());
    let cipher = cipher.map_err(|_| AuthError::Decrypt)?;
    Ok(STANDARD.encode(cipher.encrypt_padded_vec_mut::<Pkcs7>(password.expose().as_bytes())))
}

type Material = Zeroizing<Vec<u8>>;

/// `EVP_BytesToKey` with SHA-1, no salt, one round: D1 = H(k), D2 = H(D1 k), D3 = H(D2 k); 32 bytes key, 16 bytes IV.
fn key_and_iv(key: &str) -> Result<(Material, Material), AuthError> {
    let mut material: Material = Zeroizing::new(Vec::with_capacity(60));
    let mut last: Vec<u8> = Vec::new();
    for _ in 0..3 {
        last = Sha1::new().chain_update(&last).chain_update(key.as_bytes()).finalize().to_vec();
        material.extend_from_slice(&last);
    }
    let (key, rest) = material.split_at_checked(32).ok_or(AuthError::Decrypt)?;
    let iv = rest.get(..16).ok_or(AuthError::Decrypt)?;
    Ok((Zeroizing::new(key.to_vec()), Zeroizing::new(iv.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pgpools_vector_both_ways() {
        assert_eq!(encrypt_aes(&Secret::new("TESTPW"), "mykey").unwrap(), "rKikG1lnoTVl89QqlcBNaA==");
        assert_eq!(decrypt_aes("rKikG1lnoTVl89QqlcBNaA==", "mykey").unwrap().expose(), "TESTPW");
    }

    #[test]
    fn a_wrong_key_or_broken_text_is_an_error() {
        assert_eq!(decrypt_aes("rKikG1lnoTVl89QqlcBNaA==", "other"), Err(AuthError::Decrypt));
        assert_eq!(decrypt_aes("rKikG1ln", "mykey"), Err(AuthError::Decrypt));
        assert_eq!(decrypt_aes("", "mykey"), Err(AuthError::Decrypt));
    }
}
