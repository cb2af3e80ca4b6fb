//! Passwords and rules: SCRAM both sides, md5, hba, secret stores. Pure steps, no sockets.

mod settings;
pub use settings::Settings;
