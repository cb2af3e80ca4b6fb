//! Stories on real servers. One behaviour each; `cargo nextest run --test it NAME` runs one.

mod support;

mod admin;
mod crash;
mod drivers;
mod harness;
mod health;
mod pcp;
mod pgpool_setup;
mod pooling;
mod recovery;
mod session;
mod state;
