//! Passwords and rules: SCRAM both sides, md5, hba, secret stores. Pure steps, no sockets.

mod aes;
mod answers;
mod error;
mod files;
mod hba;
mod ident;
pub mod ldap;
mod md5;
mod pattern;
pub mod pool_passwd;
pub mod scram;
mod secret_kinds;
mod secrets;
mod settings;
pub mod userlist;
pub use aes::{decrypt_aes, encrypt_aes};
pub use answers::{Answer, Answers, Candidate, Shapes};
pub use error::AuthError;
pub use files::read_key;
pub use hba::{Ask, ClientCert, Demand, HbaRules, Method, Subject};
pub use ident::{IdentMap, IdentMaps};
pub use md5::{md5_password, md5_response};
pub use pool_passwd::pool_secret;
pub use scram::ScramVerifier;
pub use secret_kinds::{ServerSecret, StoredSecret};
pub use secrets::Secrets;
pub use settings::{QuerySettings, Settings};
