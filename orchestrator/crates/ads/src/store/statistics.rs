//! The numbers people ask for: what VMs and restore points take, what removing a point would free, what nothing needs.
//!
//! Trees share subtrees, so that each node is read at most twice for each VM, however many points there are. Memory is
//! 12 bytes for each block and node of the store: 200 MiB for a TiB of distinct blocks.

use super::Store;
use super::index::Location;
use super::points::{PointId, StoredPoint};
use super::reach::{NOBODY, PerObject, SHARED, Walk};
use crate::Error;
use blocks::ByteCount;
use rayon::prelude::*;
use seal::{PackKind, TAG_SIZE};
use std::collections::{BTreeMap, HashSet};

/// What a store holds, and for whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Each VM that has restore points, by pool and uuid.
    pub vms: Vec<VmStatistics>,
    /// Each restore point, oldest first.
    pub points: Vec<PointStatistics>,
    /// Bytes of all packs, with their indexes.
    pub packs: ByteCount,
    /// Distinct plain bytes that restore points reach.
    pub unique: ByteCount,
    /// The same as stored.
    pub stored: ByteCount,
    /// Stored bytes that no restore point reaches: of jobs that run or died, of points that were removed, or there twice.
    pub unreached: ByteCount,
    /// Packs whose index could not be read; what they hold is missing here.
    pub unreadable: u64,
}

/// What one VM takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmStatistics {
    /// Uuid of its pool.
    pub pool: String,
    /// Its uuid.
    pub vm: String,
    /// Its name in its newest point.
    pub name: String,
    /// How many points it has.
    pub points: u64,
    /// Size of the disks of its newest point.
    pub size: ByteCount,
    /// Plain bytes of all its points together, zeros left out: what full backups of each would hold.
    pub full: ByteCount,
    /// Distinct plain bytes of its points.
    pub unique: ByteCount,
    /// The same as stored.
    pub stored: ByteCount,
    /// Stored bytes that no other VM's points reach: removing all of its points would free them.
    pub exclusive: ByteCount,
}

/// What one restore point takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointStatistics {
    /// The point.
    pub id: PointId,
    /// Size of its disks.
    pub size: ByteCount,
    /// Their plain bytes, zeros left out.
    pub full: ByteCount,
    /// Stored bytes that no other point reaches: removing this one alone would free them.
    pub exclusive: ByteCount,
    /// Whether something that it needs could not be read; then the other numbers are too small.
    pub incomplete: bool,
}

/// Sizes of an object, each less one.
type Sizes = (u16, u16);

/// Sizes of all objects by pack and place in it.
/// Of what is encrypted without its tag, with which a block that nothing compresses would not fit.
struct AllSizes(Vec<(u64, Vec<Sizes>)>);

impl AllSizes {
    fn sealed(&self, at: Location) -> u64 {
        let tag = self.0.get(at.pack as usize).map_or(0, |(tag, _)| *tag);
        self.get(at).map_or(0, |(sealed, _)| u64::from(sealed) + 1 + tag)
    }

    fn plain(&self, at: Location) -> u64 {
        self.get(at).map_or(0, |(_, plain)| u64::from(plain) + 1)
    }

    fn get(&self, at: Location) -> Option<Sizes> {
        self.0.get(at.pack as usize)?.1.get(at.entry as usize).copied()
    }
}

/// The points of one VM, oldest first.
struct Vm<'a> {
    pool: &'a str,
    uuid: &'a str,
    points: Vec<&'a StoredPoint>,
}

/// What has been found so far.
struct Counting<'a> {
    walk: Walk<'a>,
    sizes: &'a AllSizes,
    /// Number of the only VM that reaches an object, [`SHARED`] or [`NOBODY`].
    vm_of: PerObject,
    /// In the first pass the last VM that reached it; in the second the only point of the present VM.
    seen: PerObject,
    points: BTreeMap<PointId, PointStatistics>,
    tell: &'a mut dyn FnMut(),
}

impl Counting<'_> {
    /// Everything that the VM's points reach, and what each of them holds.
    fn reach(&mut self, number: u32, vm: &Vm<'_>) -> VmStatistics {
        let (mut unique, mut sealed, mut full) = (0u64, 0u64, 0u64);
        for one in &vm.points {
            let (seen, vm_of) = (&mut self.seen, &mut self.vm_of);
            let mut met = Vec::new();
            let bytes = self.walk.point(one, &mut |kind, at| match seen.get_mut(at) {
                Some(last) if *last != number => {
                    *last = number;
                    vm_of.own(at, number);
                    met.push((kind, at));
                    true
                }
                _ => false,
            });
            for (kind, at) in met {
                sealed += self.sizes.sealed(at);
                unique += if kind == PackKind::Data { self.sizes.plain(at) } else { 0 };
            }
            full = full.saturating_add(bytes);
            let statistics = PointStatistics {
                id: one.id,
                size: size_of(one),
                full: ByteCount::new(bytes),
                exclusive: ByteCount::new(0),
                incomplete: self.walk.incomplete,
            };
            self.points.insert(one.id, statistics);
            (self.tell)();
        }
        let newest = vm.points.last().copied();
        VmStatistics {
            pool: vm.pool.to_owned(),
            vm: vm.uuid.to_owned(),
            name: newest.map(|one| one.point.vm.name.clone()).unwrap_or_default(),
            points: vm.points.len() as u64,
            size: newest.map_or(ByteCount::new(0), size_of),
            full: ByteCount::new(full),
            unique: ByteCount::new(unique),
            stored: ByteCount::new(sealed),
            exclusive: ByteCount::new(0),
        }
    }

    /// What only this VM reaches, and of that what only one of its points does. Leaves `seen` empty.
    fn exclusive(&mut self, number: u32, vm: &Vm<'_>) -> ByteCount {
        for (point, one) in (1..).zip(&vm.points) {
            let seen = &mut self.seen;
            // An object that is shared already has nothing below it that is not.
            self.walk.point(one, &mut |_, at| {
                seen.own(at, point).is_some_and(|before| before != point && before != SHARED)
            });
            (self.tell)();
        }
        let mut exclusive = 0;
        let mut of_points: BTreeMap<u32, u64> = BTreeMap::new();
        for (pack, values) in (0..).zip(&mut self.seen.packs) {
            for (entry, value) in (0..).zip(values.iter_mut()) {
                let owner = std::mem::replace(value, NOBODY);
                let at = Location { pack, entry, whole: false };
                if owner == NOBODY || self.vm_of.get_mut(at).is_none_or(|vm| *vm != number) {
                    continue;
                }
                let sealed = self.sizes.sealed(at);
                exclusive += sealed;
                *of_points.entry(owner).or_default() += sealed;
            }
        }
        for (point, one) in (1..).zip(&vm.points) {
            if let (Some(bytes), Some(found)) = (of_points.get(&point), self.points.get_mut(&one.id)) {
                found.exclusive = ByteCount::new(*bytes);
            }
        }
        ByteCount::new(exclusive)
    }
}

impl Store {
    /// Counts what is stored. `progress` is told how many of how many steps are done: each restore point is gone through
    /// twice.
    ///
    /// # Errors
    /// [`Error::Io`] where the restore points cannot be listed.
    pub fn statistics(&self, progress: &dyn Fn(u64, u64)) -> Result<Statistics, Error> {
        let all = self.points()?.points;
        let (sizes, unreadable) = self.sizes();
        let mut by_vm: BTreeMap<(&str, &str), Vec<&StoredPoint>> = BTreeMap::new();
        for stored in &all {
            by_vm.entry((&stored.point.pool.uuid, &stored.point.vm.uuid)).or_default().push(stored);
        }
        let vms: Vec<Vm<'_>> =
            by_vm.into_iter().map(|((pool, uuid), points)| Vm { pool, uuid, points }).collect();
        let (mut done, total) = (0, all.len() as u64 * 2);
        let mut counting = Counting {
            walk: Walk::new(self),
            sizes: &sizes,
            vm_of: PerObject::new(sizes.0.iter().map(|(_, pack)| pack.len())),
            seen: PerObject::new(sizes.0.iter().map(|(_, pack)| pack.len())),
            points: BTreeMap::new(),
            tell: &mut || {
                done += 1;
                progress(done, total);
            },
        };
        let mut found = Statistics { packs: self.packs.totals().1, unreadable, ..Statistics::default() };
        found.vms = (1..).zip(&vms).map(|(number, vm)| counting.reach(number, vm)).collect();
        counting.seen.clear();
        for ((number, vm), statistics) in (1..).zip(&vms).zip(&mut found.vms) {
            statistics.exclusive = counting.exclusive(number, vm);
        }
        let Counting { vm_of, mut points, .. } = counting;
        let (mut unique, mut stored, mut unreached) = (0u64, 0u64, 0u64);
        for (pack, values) in (0..).zip(&vm_of.packs) {
            let is_data = self.packs.record(pack).kind == PackKind::Data;
            for (entry, owner) in (0..).zip(values) {
                let at = Location { pack, entry, whole: false };
                if *owner == NOBODY {
                    unreached += sizes.sealed(at);
                } else {
                    stored += sizes.sealed(at);
                    unique += if is_data { sizes.plain(at) } else { 0 };
                }
            }
        }
        (found.unique, found.stored) = (ByteCount::new(unique), ByteCount::new(stored));
        found.unreached = ByteCount::new(unreached);
        found.points = all.iter().filter_map(|stored| points.remove(&stored.id)).collect();
        Ok(found)
    }

    /// Sizes of all objects by pack and place in it, and how many packs could not be read.
    fn sizes(&self) -> (AllSizes, u64) {
        let there: HashSet<u32> = self.packs.numbers().into_iter().collect();
        // Those that a collector removed since the store was opened have numbers too.
        let numbers = 0..there.iter().max().map_or(0, |last| last + 1);
        let less_one = |size: u32| u16::try_from(size.saturating_sub(1)).unwrap_or(u16::MAX);
        let sizes: Vec<Option<(u64, Vec<Sizes>)>> = numbers
            .into_par_iter()
            .map(|number| {
                if !there.contains(&number) {
                    return Some((0, Vec::new()));
                }
                let index = self.packs.index_of(number).ok()?;
                let tag = if index.cipher.is_some() { TAG_SIZE as u32 } else { 0 };
                let sizes = |entry: &seal::Entry| {
                    (less_one(entry.sealed_size.saturating_sub(tag)), less_one(entry.plain_size))
                };
                Some((tag.into(), index.entries.iter().map(sizes).collect()))
            })
            .collect();
        let unreadable = sizes.iter().filter(|pack| pack.is_none()).count() as u64;
        (AllSizes(sizes.into_iter().map(Option::unwrap_or_default).collect()), unreadable)
    }
}

fn size_of(stored: &StoredPoint) -> ByteCount {
    let disks = stored.point.disks.iter();
    disks.fold(ByteCount::new(0), |sum, disk| sum.saturating_add(disk.tree.size))
}
