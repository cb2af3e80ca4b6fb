//! One connection to one PostgreSQL node, for the data plane (login, state) and the control plane (`sql`).

pub mod login;
mod settings;
pub mod sql;
pub use login::{Connected, Login, ServerError, Target, connect, send_cancel};
pub use settings::Settings;
