//! Restore points of an encrypted store: what everybody must know of them who cleans or checks the store, and the rest
//! encrypted.
//!
//! Outside stand the trees, so that what a point needs can be found without a key. The whole point stands inside, and a
//! reader with the key takes it only where inside and outside agree: who has no key cannot give a name other disks.

use super::config::{parse_hex, to_hex};
use super::points::{DiskKind, DiskMode, PointDisk, PointId, PointPool, PointVm, RestorePoint, StoredPoint};
use crate::Error;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use seal::{MasterKey, Tree, TreeId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What stands for names that cannot be read.
const LOCKED: &str = "(locked)";

/// The members that are not encrypted.
#[derive(Serialize, Deserialize)]
struct Outside {
    version: u32,
    store: Uuid,
    created: String,
    base: Option<PointId>,
    disks: Vec<OutsideDisk>,
    sealed: Inside,
}

#[derive(PartialEq, Serialize, Deserialize)]
struct OutsideDisk {
    tree: Tree,
    tree_id: TreeId,
}

#[derive(Serialize, Deserialize)]
struct Inside {
    /// 64 hexadecimal digits.
    salt: String,
    /// In base 64.
    bytes: String,
}

/// A point's file; the error is that there is no randomness, or that it is no JSON.
pub(super) fn seal(point: &RestorePoint, master: &MasterKey) -> Result<Vec<u8>, Error> {
    let refused = |error: serde_json::Error| {
        let reason = format!("it cannot be written as JSON: {error}");
        Error::PointRefused { reason }
    };
    let plain = zeroize::Zeroizing::new(serde_json::to_vec(point).map_err(refused)?);
    let (salt, bytes) = master
        .seal_document(&plain, &about(point.store))
        .map_err(|error| Error::Worker { reason: error.to_string() })?;
    let outside = Outside {
        version: point.version,
        store: point.store,
        created: point.created.clone(),
        base: point.base,
        disks: disks_of(point),
        sealed: Inside { salt: to_hex(&salt), bytes: BASE64.encode(bytes) },
    };
    serde_json::to_vec_pretty(&outside).map_err(refused)
}

/// Reads a point's file; without a key what stands outside, and placeholders for the rest.
pub(super) fn open(bytes: &[u8], master: Option<&MasterKey>) -> Result<RestorePoint, String> {
    let outside: Outside = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let Some(master) = master else { return Ok(locked(outside)) };
    let salt = parse_hex(&outside.sealed.salt).ok_or("its salt is not 64 hex digits")?;
    let sealed = BASE64.decode(&outside.sealed.bytes).map_err(|error| error.to_string())?;
    let plain = master
        .open_document(&salt, &sealed, &about(outside.store))
        .map_err(|_| "what is encrypted in it does not open with the store's key")?;
    let point: RestorePoint = serde_json::from_slice(&plain).map_err(|error| error.to_string())?;
    let agree = (point.version, point.store, &point.created, point.base, disks_of(&point))
        == (outside.version, outside.store, &outside.created, outside.base, outside.disks);
    match agree {
        true => Ok(point),
        false => Err("what is encrypted in it says something else than what is not".into()),
    }
}

impl StoredPoint {
    /// Whether it was read without the key of its store: then all that is known are its trees and its time.
    pub fn is_locked(&self) -> bool {
        self.point.vm.uuid.is_empty()
    }
}

fn locked(outside: Outside) -> RestorePoint {
    let disk = |(disk, position): (OutsideDisk, u16)| PointDisk {
        vdi: String::new(),
        name: LOCKED.into(),
        kind: DiskKind::User,
        userdevice: position,
        bootable: false,
        tree: disk.tree,
        tree_id: disk.tree_id,
        mode: DiskMode::Full,
        reason: String::new(),
        cause: String::new(),
        counts: wire::DiskCounts::default(),
        reference: None,
        base: None,
        suspect: Vec::new(),
        bad: wire::BadRanges::default(),
    };
    RestorePoint {
        version: outside.version,
        job: String::new(),
        job_name: None,
        run: String::new(),
        created: outside.created,
        store: outside.store,
        pool: PointPool { uuid: String::new(), name: LOCKED.into() },
        vm: PointVm { uuid: String::new(), name: LOCKED.into(), metadata: serde_json::Value::Null },
        disks: outside.disks.into_iter().zip(0..).map(disk).collect(),
        base: outside.base,
        quiesced: false,
        checkpoint: false,
    }
}

fn disks_of(point: &RestorePoint) -> Vec<OutsideDisk> {
    point.disks.iter().map(|disk| OutsideDisk { tree: disk.tree, tree_id: disk.tree_id }).collect()
}

/// What is authenticated with the encrypted part: a point of another store does not open.
fn about(store: Uuid) -> Vec<u8> {
    format!("abd restore point\n{store}\n").into_bytes()
}
