//! A XAPI that tests and the demo run against; it starts real guests.
//!
//! Owns a simulated pool: the record store, both RPC encodings, sessions, tasks, events, disk data handlers, storage on
//! the local disk with change tracking, the state rules, and a control port that plays the administrator and the guests'
//! users. Guests with a bootable disk are real machines (see [`guest`]).
//!
//! Promises: what it answers follows the public data model and the behaviour of real servers, errors included; every
//! call and every object made or removed is in its event log; it never logs a password or a session reference.
//!
//! Never does: stand in for anything inside the product, or share an encoder with the product's client.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod config;
mod dispatch;
mod domain;
mod error;
mod event;
mod failure;
mod faults;
mod flavour;
mod generic;
pub mod guest;
mod http;
mod lab;
mod licence;
mod log;
mod messages;
mod network;
mod operation;
mod pool;
mod rbac;
pub mod rpc;
mod server;
mod session;
mod sim;
mod step;
mod storage;
mod store;
mod task;
mod transfer;
mod vbd;
mod vif;
mod vm;
mod writes;

pub use config::{Coalesce, Config, SrSpec, User};
pub use error::Error;
pub use failure::Failure;
pub use faults::{Fault, When};
pub use flavour::{ApiVersion, Flavour};
pub use lab::client::LabClient;
pub use rbac::Role;
pub use server::{Ports, Simulator};
pub use storage::surface::Surface;
