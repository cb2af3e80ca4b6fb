//! pgmend: a PostgreSQL connection pooler that keeps its own cluster whole.
//!
//! Two towers meet in one room. The **data plane** (`net`, `client`, `pool`, `server`) carries clients' bytes; the
//! **control plane** (`keeper`, `node`, `recovery`, `maintenance`, `admin`) watches and repairs the nodes. They share only `cluster`:
//! the view that the control plane publishes and the gate that it works. Neither calls the other.
//!
//! Read `base`, `cluster`, then `client` for the one tower and `recovery` for the other; `app` puts them together.

pub mod admin;
pub mod app;
pub mod auth;
pub mod base;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod keeper;
pub mod maintenance;
pub mod net;
pub mod node;
pub mod pool;
pub mod recovery;
pub mod routing;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod wire;
pub mod workflow;
