//! Listen, connect, TLS, and the one stream type of both sides. Read `settings`, `stream`, then the rest.

mod connect;
mod error;
mod listen;
mod settings;
mod stream;
mod tls_client;
mod tls_server;
pub use connect::{connect, is_unix, upgrade_client};
pub use error::NetError;
pub use listen::{
    Inherited, Left, Listener, Shared, SocketFile, accept_options, bind, bind_after, bind_tcp_again, prepare_accepted,
};
pub use settings::{Settings, TlsSettings};
pub use stream::{Peer, StdStream, Stream, TlsSession};
pub use tls_client::{TlsClientError, tls_client_config};
pub use tls_server::TlsAcceptor;
use tls_server::{ALPN, end_point_hash};
