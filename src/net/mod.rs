//! Listen, connect, TLS, and the one stream type of both sides. Read `settings`, `stream`, then the rest.

mod certificate;
mod connect;
mod error;
mod listen;
mod pem;
mod settings;
mod stream;
mod tls_client;
mod tls_server;
use certificate::end_point_hash;
pub use certificate::{CertificateNames, certificate_ends_at};
pub use connect::{connect, is_unix, tls_fault, tls_words, upgrade_client};
pub use error::NetError;
pub use listen::{Inherited, Left, Listener, Shared, SocketFile, accept, bind, bind_after, tcp_options};
pub use settings::{CertificateSettings, ServerTlsSettings, Settings, TlsSettings};
pub use stream::{Peer, StdStream, Stream, TlsSession};
pub use tls_client::{ClientTls, ServerTls, TlsClientError};
use tls_server::ALPN;
pub use tls_server::TlsAcceptor;
