//! The ADS: a store of restore points in a directory or in object storage, and its HTTPS service for ABDs.
//!
//! Owns: the objects that `seal`'s `FORMAT.md` describes, the index over its packs, the restore
//! points, `verify`, and the server side of `wire`'s `PROTOCOL.md`.
//!
//! Promises: what was acknowledged is on disk and synced; every block and node that comes in is opened and
//! hashed before it is kept, and again on its way out; a restore point can be committed only when every
//! node and block below it is in the store; a store can be opened with nothing but its directory, whatever
//! step a writer died at. Several processes may use one directory at once; each sees what the others
//! committed before it opened the store.
//!
//! A store may be encrypted: then everything but trees needs its key, and without it ([`Store::is_locked`]) packs are kept,
//! moved and removed all the same, and proven as far as that goes.
//!
//! Never: trusts a pack's index without its hash, changes an object after it has its name, lets an ABD read
//! anything but the trees of its order, or deletes a block.
//!
//! # Memory
//!
//! The index is crate `runs`: new objects in a table of 28 to 35 bytes each, of which there are at most a million
//! before they are written, and as many of packs that were asked about lately: about 70 MiB. What is written takes 1.2
//! bytes of memory for each distinct block of 64 KiB and each distinct tree node, 20 MiB per TiB of data; a pack takes 120
//! bytes. Where the index cannot be written the table grows instead: half a GiB per TiB.
//!
//! [`Store::collect`] holds 4 bytes for each object of the store while it runs, [`Store::statistics`] 12: 64 and 200 MiB per
//! TiB. Listing restore points holds all of them. Packs being taken in are bounded by [`Limits::ingest`], cached nodes by
//! 16 MiB.
//!
//! The index tells which packs need not be read to know what is in them. Packs are named by their bytes, so that it is
//! right about those that are listed with the size that it knows, and is asked about no others. A pack whose
//! end was damaged after it was indexed is found by `verify`, as one is whose blocks were.
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
    Access, Affected, CACHE_VARIABLE, CopiedPoint, CopyOptions, CopyProgress, CopyReport, Damage,
    DamagedPoint, DamagedSlot, Deed, Depth, DiskKind, DiskMode, FORMAT_VERSION, Finding, GcOptions, GcReport,
    IndexOptions, KdfCost, KeySlot, KeySlots, Lease, NewAccess, NodeReader, OmittedPoint, Origin, Passphrase,
    Pin, PointDisk, PointId, PointPool, PointStatistics, PointVm, Points, RepairOptions, RepairProgress,
    RepairReport, RestorePoint, Scope, SkippedPack, SlotKind, Statistics, Store, StoredPoint, Usage,
    VerifyProgress, VerifyReport, VmStatistics, timestamp,
};
