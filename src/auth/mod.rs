//! Passwords and rules: SCRAM both sides, md5, hba, secret stores. Pure steps, no sockets.

mod aes;
mod error;
mod files;
mod hba;
mod md5;
pub mod pool_passwd;
pub mod scram;
mod secret_kinds;
mod secrets;
mod settings;
pub mod userlist;
pub use aes::{decrypt_aes, encrypt_aes};
pub use error::AuthError;
pub use files::read_key;
pub use hba::{Ask, HbaRules, Method};
pub use md5::{md5_password, md5_response};
pub use pool_passwd::pool_secret;
pub use scram::ScramVerifier;
pub use secret_kinds::{ServerSecret, StoredSecret};
pub use secrets::Secrets;
pub use settings::Settings;
