//! PostgreSQL protocol 3.0 and 3.2 without IO: frames, messages, startup, which reply is owed.
//!
//! Read `frame`, `startup`, then `backend` and `frontend` (who sends it gives the name), then `replies`.

pub mod backend;
mod error;
pub mod frame;
pub mod frontend;
mod parts;
pub mod replies;
pub mod startup;

pub use error::WireError;
