//! A server connection that nobody reads or writes, for driving a session's core without IO (fuzz targets and benches).

use pgmend::base::NodeId;
use pgmend::net::Stream;
use pgmend::server::{Connected, RouteId, ServerConn};

/// Logged in to nobody: the core touches only what is known of its session.
pub fn server_conn() -> ServerConn {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        let (socket, _) = tokio::net::UnixStream::pair().expect("a pair of sockets");
        let stream = Stream::Unix(socket);
        let connected = Connected { stream, parameters: Vec::new(), pid: 1, cancel_key: Vec::new() };
        ServerConn::new(connected, RouteId { node: NodeId(0), timeline: 1 }, 0)
    })
}
