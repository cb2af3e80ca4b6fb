//! The words that every folder shares: node ids, log positions, secrets, quoting. Pure; knows nothing of the rest.

mod ids;
mod lsn;
mod quote;
mod secret;

pub use ids::NodeId;
pub use lsn::{Lsn, LsnError};
pub use quote::{identifier, literal};
pub use secret::Secret;
