//! Stub until it lands.
/// Policy.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Policy {}
