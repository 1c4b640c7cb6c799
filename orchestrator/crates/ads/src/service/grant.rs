//! What a job may do, and whether that makes sense.

use super::session::refused;
use crate::{Error, Store};
use blocks::ChangedBlocks;
use wire::{MAX_DISKS, MAX_SINK, MIN_RATE_LIMIT, Order, Work};

/// What a job may do.
#[derive(Clone, Debug)]
pub struct JobGrant {
    /// The job's uuid; the ABD must name it.
    pub job: String,
    /// Its work.
    pub order: Order,
    /// For each disk of the order the bytes of XAPI's changed-block bitmap, where its start has one.
    pub bitmaps: Vec<Option<Vec<u8>>>,
}

/// How many disks there are to work on.
pub(super) fn disk_count(work: &Work) -> usize {
    match work {
        Work::Backup { disks, .. } => disks.len(),
        Work::Restore { disks } => disks.len(),
        Work::Diagnose { .. } => 0,
    }
}

/// Refuses a grant that contradicts itself or the store, before anybody relies on it.
pub(super) fn check_grant(grant: &JobGrant, store: &Store) -> Result<(), Error> {
    let bad = |reason: &str| Err(refused(&grant.job, reason));
    if grant.order.job != grant.job {
        return bad(&format!("its order is for job {}", grant.order.job));
    }
    if grant.order.id_key != store.id_key_bytes() {
        return bad("its order carries the id key of another store");
    }
    if !store.has_master(grant.order.master_key.as_ref()) {
        return bad("its order does not carry the master key of this store");
    }
    if let Work::Diagnose { send, .. } = &grant.order.work {
        return match (grant.bitmaps.is_empty(), *send <= MAX_SINK) {
            (true, true) => Ok(()),
            (false, _) => bad("a diagnosis has no bitmaps"),
            (true, false) => bad(&format!("it is to send {send}, {MAX_SINK} is the most")),
        };
    }
    let count = disk_count(&grant.order.work);
    if count == 0 || count > MAX_DISKS {
        return bad(&format!("its order has {count} disks, 1 to {MAX_DISKS} are possible"));
    }
    if grant.bitmaps.len() != count {
        return bad(&format!("{} bitmaps for {count} disks", grant.bitmaps.len()));
    }
    let Work::Backup { disks, rate_limit, throttle, .. } = &grant.order.work else {
        return if grant.bitmaps.iter().all(Option::is_none) {
            Ok(())
        } else {
            bad("a restore has no bitmaps")
        };
    };
    if let Some(rate) = rate_limit.filter(|rate| rate.get() > 0 && *rate < MIN_RATE_LIMIT) {
        return bad(&format!("its rate limit is {rate} per second, {MIN_RATE_LIMIT} is the least"));
    }
    if let Some(fault) = throttle.as_ref().and_then(wire::Throttle::fault) {
        return bad(fault);
    }
    for (at, (disk, bitmap)) in disks.iter().zip(&grant.bitmaps).enumerate() {
        if let Some(base) = disk.start.base().filter(|base| base.size > disk.size) {
            return bad(&format!("disk {at} has {}, its base {}", disk.size, base.size));
        }
        if let Some(fault) = disk.audit_fault() {
            return bad(&format!("disk {at} has {fault}"));
        }
        match (disk.start.has_bitmap(), bitmap) {
            (true, Some(bytes)) => {
                ChangedBlocks::from_xapi(bytes, disk.size)
                    .map_err(|error| refused(&grant.job, &format!("disk {at}: {error}")))?;
            }
            (false, None) => {}
            (true, None) => return bad(&format!("disk {at} starts from a bitmap that is not there")),
            (false, Some(_)) => return bad(&format!("disk {at} has a bitmap that its start does not use")),
        }
    }
    Ok(())
}
