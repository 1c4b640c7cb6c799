//! The orchestrator: what an admin, cron or systemd runs. It talks XAPI, provisions one delegate per job,
//! serves the store to them, commits restore points, and removes everything it made.
//!
//! Owns: jobs and their order of steps, the journal, configuration, output. Promises: nothing is created in a
//! pool that the journal did not announce; a restore point is committed only when every byte of it is durable.
//! Never: reads a VM's disk itself, stores a password.

#![forbid(unsafe_code)]

pub mod attempt;
pub mod catalog;
pub mod check;
pub mod cleanup;
pub mod cli;
pub mod clients;
pub mod config;
pub mod copying;
pub mod doctor;
pub mod error;
pub mod hooks;
pub mod image;
pub mod job;
pub mod journal;
pub mod kept;
pub mod lock;
pub mod networks;
pub mod ownership;
pub mod path;
pub mod plan;
pub mod pool;
pub mod preflight;
pub mod printable;
pub mod queue;
pub mod reconcile;
pub mod references;
pub mod release;
pub mod removal;
pub mod report;
pub mod retention;
pub mod retry;
pub mod schedule;
pub mod selection;
pub mod signing;
pub mod spec;
pub mod store_key;
pub mod summary;
pub mod template;
pub mod tracking;
pub mod verified;
pub mod window;
