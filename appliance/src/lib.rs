//! The appliance: everything that runs inside the ABD (backup delegate), the throw-away VM that reads and writes disks.
//!
//! Owns: PID 1 ([`init`]), the way to XenStore, disks and console ([`platform`]), the network ([`net`]) and the job
//! itself ([`worker`]).
//! Promises: the VM powers itself off on every path, and says why in `vm-data/abd/error` and on the console; every
//! byte from XenStore, DHCP or sysfs is checked before use; every wait has a limit.
//! Never: listens on a port, runs another program, trusts a device letter, writes to a disk it was told to read.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod backup;
mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod init;
pub mod net;
pub mod platform;
mod restore;
mod sys;
pub mod worker;

pub use error::{Error, chain};
