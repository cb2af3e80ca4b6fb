//! Stories on real servers. One behaviour each; `cargo nextest run --test it NAME` runs one.

mod support;

mod harness;
