//! Listen, connect, TLS, and the one stream type of both sides. Read `settings`, `tls_client`, then the rest.

mod settings;
mod tls_client;
pub use settings::{Settings, TlsSettings};
pub use tls_client::{TlsClientError, tls_client_config};
