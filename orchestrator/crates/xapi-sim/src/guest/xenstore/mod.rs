//! A XenStore for one lab guest.
//!
//! Owns the domain's tree, speaks XenStore's wire protocol with the guest, and tells the simulator what
//! the guest wrote. A real guest reaches its store through shared memory; a lab guest reaches this
//! one through a virtio-serial port, with the same bytes.
//!
//! Promises: no input from the guest can stop or crash the server, only its own service. Limits,
//! permissions, transactions and watches are those of the daemon XenServer runs (oxenstored);
//! `docs/misc/xenstore.txt` in Xen's source describes the protocol.
//!
//! Never does: anything with another domain's tree, or with a device. The guest has no kernel driver on
//! this transport, so no backend answers it and `state` stays as the toolstack wrote it.

mod domain;
pub mod fuzzing;
mod port;
mod server;
#[cfg(test)]
mod tests;
mod tree;
pub(super) mod wire;

pub(super) use domain::GUEST_WRITABLE;
pub use domain::device_number;
pub(super) use port::{Shared, serve};
pub(super) use server::Domain;
pub(super) use tree::Refusal;
