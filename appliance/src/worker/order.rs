//! The order's checks: nothing of it is used before all of it makes sense.

use super::Error;
use blocks::{ByteCount, MAX_DISK_SIZE};
use std::collections::BTreeSet;
use wire::{MAX_DISKS, MAX_SINK, MIN_RATE_LIMIT, Order, Work};

/// Lowest userdevice of a disk to work on: below are the appliance's own.
const MIN_USERDEVICE: u16 = 4;
/// Highest zstd level that the memory of an appliance allows.
const MAX_LEVEL: i8 = 19;
/// Disks are made of sectors.
const SECTOR: u64 = 512;
/// A report every few hours would be none; one every millisecond would be all we do.
const PROGRESS_MS: std::ops::RangeInclusive<u16> = 10..=60_000;

/// Checks an order for the job named in XenStore.
pub(crate) fn check(order: &Order, job: &str) -> Result<(), Error> {
    if order.job != job {
        return Err(refused(format!("it is for job {}, this appliance belongs to {job}", order.job)));
    }
    if order.watchdog_s == 0 {
        return Err(refused("its watchdog time is 0 s".into()));
    }
    if !PROGRESS_MS.contains(&order.progress_ms) {
        return Err(refused(format!("progress every {} ms is not sensible", order.progress_ms)));
    }
    match &order.work {
        Work::Backup { level, pack_size, rate_limit, throttle, skip_bad_blocks: _, disks } => {
            if *level > MAX_LEVEL {
                return Err(refused(format!("zstd level {level} needs more memory than there is")));
            }
            if *pack_size as usize > seal::MAX_PACK_SIZE || u64::from(*pack_size) < 4 * blocks::BLOCK_SIZE {
                return Err(refused(format!("packs of {pack_size} bytes are not possible")));
            }
            if let Some(rate) = rate_limit.filter(|rate| rate.get() > 0 && *rate < MIN_RATE_LIMIT) {
                return Err(refused(format!("{rate} per second is less than {MIN_RATE_LIMIT}, the least")));
            }
            if let Some(fault) = throttle.as_ref().and_then(wire::Throttle::fault) {
                return Err(refused(fault.to_owned()));
            }
            if let Some((disk, fault)) = disks.iter().find_map(|disk| Some((disk, disk.audit_fault()?))) {
                return Err(refused(format!("the disk at userdevice {} has {fault}", disk.userdevice)));
            }
            check_disks(disks.iter().map(|disk| (disk.userdevice, disk.size)))
        }
        Work::Restore { disks } => {
            if let Some(disk) = disks.iter().find(|disk| disk.device < disk.size) {
                let (userdevice, device, size) = (disk.userdevice, disk.device, disk.size);
                return Err(refused(format!("{size} do not fit {device} at userdevice {userdevice}")));
            }
            check_disks(disks.iter().map(|disk| (disk.userdevice, disk.size)))
        }
        Work::Diagnose { send, .. } if *send > MAX_SINK => {
            Err(refused(format!("{send} to send are more than {MAX_SINK}")))
        }
        Work::Diagnose { .. } => Ok(()),
    }
}

fn check_disks(disks: impl ExactSizeIterator<Item = (u16, ByteCount)>) -> Result<(), Error> {
    if disks.len() == 0 || disks.len() > MAX_DISKS {
        return Err(refused(format!("it has {} disks, 1 to {MAX_DISKS} are possible", disks.len())));
    }
    let mut seen = BTreeSet::new();
    for (userdevice, size) in disks {
        if userdevice < MIN_USERDEVICE {
            return Err(refused(format!("userdevice {userdevice} is the appliance's own")));
        }
        if !seen.insert(userdevice) {
            return Err(refused(format!("userdevice {userdevice} stands in it twice")));
        }
        if size.get() == 0 || size > MAX_DISK_SIZE || !size.get().is_multiple_of(SECTOR) {
            return Err(refused(format!("a disk of {} bytes at userdevice {userdevice}", size.get())));
        }
    }
    Ok(())
}

fn refused(reason: String) -> Error {
    Error::Order { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{Audit, BackupDisk, IdKeyBytes, RestoreDisk, Start};

    fn order(disks: &[(u16, u64)]) -> Order {
        let disks = disks
            .iter()
            .map(|(userdevice, size)| RestoreDisk {
                userdevice: *userdevice,
                device: ByteCount::new(*size),
                size: ByteCount::new(*size),
                root: None,
                blank: true,
            })
            .collect();
        let work = Work::Restore { disks };
        Order {
            job: "a".into(),
            id_key: IdKeyBytes([0; 32]),
            master_key: None,
            watchdog_s: 90,
            progress_ms: 500,
            work,
        }
    }

    #[test]
    fn sound_orders_pass() {
        assert!(check(&order(&[(4, 512), (253, 1 << 40)]), "a").is_ok());
    }

    #[test]
    fn unsound_orders_are_refused_by_what_is_wrong() {
        let cases = [
            (order(&[(4, 512)]), "b", "is for job a"),
            (order(&[]), "a", "0 disks"),
            (order(&[(3, 512)]), "a", "userdevice 3"),
            (order(&[(4, 512), (4, 512)]), "a", "twice"),
            (order(&[(4, 0)]), "a", "0 bytes"),
            (order(&[(4, 513)]), "a", "513 bytes"),
            (order(&[(4, u64::MAX - 511)]), "a", "bytes at userdevice 4"),
            (Order { watchdog_s: 0, ..order(&[(4, 512)]) }, "a", "watchdog"),
            (Order { progress_ms: 0, ..order(&[(4, 512)]) }, "a", "progress"),
        ];
        for (order, job, part) in cases {
            let error = check(&order, job).expect_err(part);
            assert_eq!(error.code(), "order-refused");
            assert!(error.to_string().contains(part), "{error}");
        }
        let many: Vec<_> = (4..4 + MAX_DISKS as u16 + 1).map(|userdevice| (userdevice, 512)).collect();
        assert!(check(&order(&many), "a").is_err());
        let disk = BackupDisk {
            userdevice: 4,
            size: ByteCount::new(512),
            start: Start::Nothing,
            audit: Some(Audit::with_seed(1)),
        };
        let plain = BackupDisk { audit: None, ..disk.clone() };
        let backup = |pack_size, rate_limit: Option<u64>, disk: &BackupDisk| {
            let rate_limit = rate_limit.map(ByteCount::new);
            let disks = vec![disk.clone()];
            let (throttle, skip_bad_blocks) = (None, false);
            let work = Work::Backup { level: 1, pack_size, rate_limit, throttle, skip_bad_blocks, disks };
            check(&Order { work, ..order(&[(4, 512)]) }, "a").map_err(|error| error.to_string())
        };
        let packs = 1 << 20;
        assert!(backup(0, None, &plain).expect_err("packs").contains("packs of 0 bytes"));
        assert!(backup(packs, Some(65_535), &plain).expect_err("rate").contains("per second"));
        assert!(backup(packs, None, &disk).expect_err("audit").contains("without a bitmap"));
        for rate in [None, Some(0), Some(65_536)] {
            assert_eq!(backup(packs, rate, &plain), Ok(()));
        }
    }
}
