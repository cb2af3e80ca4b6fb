//! One connection to one PostgreSQL node, for the data plane (login, state) and the control plane (`sql`).

mod settings;
pub mod sql;
pub use settings::Settings;
