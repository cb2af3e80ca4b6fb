//! Stories on real servers. One behaviour each; `cargo nextest run --test it NAME` runs one.

mod support;

mod admin;
mod attacks;
mod auth;
mod auth_certificates;
mod auth_ldap;
mod auth_query;
mod auth_rules;
mod crash;
mod crash_outside;
mod drivers;
mod drivers_defaults;
mod harness;
mod health;
mod leases;
mod limits;
mod operate;
mod pcp;
mod pgpool_setup;
mod pipelines;
mod pooling;
mod recovery;
mod recovery_data;
mod recovery_limits;
mod recovery_logins;
mod replication;
mod routing_catalog;
mod server_tls;
mod servers;
mod session;
mod state;
mod storms;
mod takeover;
mod time_limits;
