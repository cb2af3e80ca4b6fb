//! tmp tests
