//! One connection to one PostgreSQL node, for the data plane (login, state) and the control plane (`sql`).

mod conn;
pub mod login;
mod prepared;
mod settings;
mod simple;
pub mod sql;
pub use conn::{ParamSet, RouteId, ServerConn};
pub use login::{Connected, Login, ServerError, Target, connect, send_cancel};
pub use prepared::Prepared;
pub use settings::Settings;
pub use simple::{Row, SimpleError, query, run};
