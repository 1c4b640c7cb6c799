//! The ADS: a store of restore points in a directory or in object storage, and its HTTPS service for ABDs.
//!
//! Owns: the objects that `seal`'s `FORMAT.md` describes, the in-memory index over its packs, the restore
//! points, `verify`, and the server side of `wire`'s `PROTOCOL.md`.
//!
//! Promises: what was acknowledged is on disk and synced; every block and node that comes in is opened and
//! hashed before it is kept, and again on its way out; a restore point can be committed only when every
//! node and block below it is in the store; a store can be opened with nothing but its directory, whatever
//! step a writer died at. Several processes may use one directory at once; each sees what the others
//! committed before it opened the store.
//!
//! Never: trusts a pack's index without its hash, changes an object after it has its name, lets an ABD read
//! anything but the trees of its order, or deletes a block.
//!
//! # Memory
//!
//! The index takes 24 bytes per slot and keeps its tables between 68 and 85 % full: 28 to 35 bytes for each
//! distinct block of 64 KiB, about half a GiB per TiB, and the same for each distinct tree node. Packs being
//! taken in are bounded by [`Limits::ingest`], cached nodes by 16 MiB.
//!
//! Methods of [`Store`] block; async callers use `spawn_blocking`, as [`Service`] does.

#![forbid(unsafe_code)]

mod backend;
mod error;
mod ingest;
mod serve;
mod service;
mod store;

pub use backend::{
    AbdAddress, Backend, DEFAULT_PORT, FileOps, Listed, LocalBackend, LocalFiles, MAX_KEY, Object, Place,
    Presence, Probe, RemoteBackend, S3Address, S3Backend, identity_in, use_identity_file,
};
pub use error::{Error, ErrorKind};
pub use ingest::PackReceipt;
pub use serve::{Call, Client, Clients, Denied, Guard, Offer, Role, ServeLimits, Server, Standing};
pub use service::{Events, JobEvent, JobGrant, JobHandle, Limits, Service};
pub use store::{
    Affected, Damage, DamagedPoint, Depth, DiskKind, DiskMode, FORMAT_VERSION, Finding, GcOptions, GcReport,
    Lease, NodeReader, Pin, PointDisk, PointId, PointPool, PointStatistics, PointVm, Points, RestorePoint,
    Scope, SkippedPack, Statistics, Store, StoredPoint, Usage, VerifyProgress, VerifyReport, VmStatistics,
    timestamp,
};
