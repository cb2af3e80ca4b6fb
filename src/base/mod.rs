//! The words that every folder shares: node ids, log positions, secrets. Pure; knows nothing of the rest.

mod ids;
mod lsn;
mod secret;

pub use ids::NodeId;
pub use lsn::{Lsn, LsnError};
pub use secret::Secret;
