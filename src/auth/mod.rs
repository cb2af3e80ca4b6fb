//! Passwords and rules: SCRAM both sides, md5, hba, secret stores. Pure steps, no sockets.

mod aes;
mod error;
mod md5;
pub mod scram;
mod secret_kinds;
mod settings;
pub use aes::{decrypt_aes, encrypt_aes};
pub use error::AuthError;
pub use md5::{md5_password, md5_response};
pub use scram::ScramVerifier;
pub use secret_kinds::{ServerSecret, StoredSecret};
pub use settings::Settings;
