//! One connection to one PostgreSQL node, for the data plane (login, state) and the control plane (`sql`).

mod batch;
mod conn;
mod derive;
mod driver;
pub mod login;
mod open;
mod prepared;
mod settings;
mod simple;
pub mod sql;
pub use batch::{Said, batch};
pub use conn::{CancelTarget, ParamSet, RouteId, ServerConn};
pub use derive::beside;
pub use login::{Connected, Login, ServerError, connect, send_cancel};
pub use open::Target;
pub use prepared::Prepared;
pub use settings::Settings;
pub use simple::{Row, SimpleError, query, run};
