//! Verification: reads what is stored, from the disk and not from any cache, and names what suffers.
//!
//! First the packs, in parallel, each by itself; then every disk of every restore point from its root, looking
//! up what the packs' check said about each object. Points are listed before packs: whatever a point needs
//! was there before the point was.

use super::Store;
use super::config::{Config, MAX_CONFIG_SIZE};
use super::index::Location;
use super::nodes::slot_of;
use super::packs::{SkippedPack, list, read_index};
use super::points::{PointDisk, StoredPoint};
use super::report::{Affected, Damage, Depth, Finding, Scope, VerifyProgress, VerifyReport};
use super::tree::{first_block, node_offset, offset_of};
use crate::Error;
use crate::backend::{Backend, CONFIG, pack_key};
use crate::error::sentence;
use crate::ingest::{check_encryption, check_object};
use blocks::{BlockIndex, ByteCount};
use rayon::prelude::*;
use seal::{BlockId, FAN_OUT, HEADER_SIZE, MAX_PACK_SIZE, NodeId, Opener, PackId, PackIndex, PackKind};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Mutex;

/// Most threads; each holds one pack of up to 64 MiB.
const MAX_THREADS: usize = 16;

/// What the packs' check said; asked for every object of every tree.
#[derive(Default)]
struct Verdicts {
    findings: Vec<Finding>,
    /// Findings of packs that are lost as a whole, by number.
    packs: HashMap<u32, usize>,
    /// Findings of single objects, by the pack they stand in.
    objects: HashMap<(u32, [u8; 32]), usize>,
    trees: HashMap<seal::TreeId, (usize, u64)>,
}

struct Check<'a> {
    store: &'a Store,
    depth: Depth,
    chosen: &'a (dyn Fn(PackId) -> bool + Sync),
    done: &'a (dyn Fn(PackId) + Sync),
    verdicts: Mutex<Verdicts>,
    counts: Mutex<(VerifyReport, VerifyProgress)>,
    /// Nodes below which everything is in order and of full size.
    clean: Mutex<HashSet<NodeId>>,
    progress: &'a (dyn Fn(VerifyProgress) + Sync),
}

const LOCKED: &str = "no panic while a result is locked";

impl Store {
    /// Verifies the store. What is wrong is in the report; an error means that the verification itself
    /// could not be done. `progress` is called from several threads.
    ///
    /// # Errors
    /// [`Error::PointNotFound`] for a point of the scope that is not there, [`Error::Io`] where a directory
    /// cannot be listed.
    pub fn verify(
        &self,
        scope: &Scope,
        depth: Depth,
        progress: &(dyn Fn(VerifyProgress) + Sync),
    ) -> Result<VerifyReport, Error> {
        self.verify_part(scope, depth, &|_| true, &|_| (), progress)
    }

    /// [`verify`](Self::verify) that reads only the packs that are `chosen`; trees are gone through all the same. `done` is
    /// told of each pack in which nothing is wrong, from several threads.
    ///
    /// # Errors
    /// As there.
    pub fn verify_part(
        &self,
        scope: &Scope,
        depth: Depth,
        chosen: &(dyn Fn(PackId) -> bool + Sync),
        done: &(dyn Fn(PackId) + Sync),
        progress: &(dyn Fn(VerifyProgress) + Sync),
    ) -> Result<VerifyReport, Error> {
        let check = Check {
            store: self,
            depth,
            chosen,
            done,
            verdicts: Mutex::default(),
            counts: Mutex::default(),
            clean: Mutex::default(),
            progress,
        };
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get()).min(MAX_THREADS);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|error| Error::Worker { reason: error.to_string() })?;
        pool.install(|| check.run(scope))
    }
}

impl Check<'_> {
    fn run(self, scope: &Scope) -> Result<VerifyReport, Error> {
        self.check_config();
        let points = self.points(scope)?;
        let disks: Vec<(&StoredPoint, &PointDisk)> =
            points.iter().flat_map(|point| point.point.disks.iter().map(move |disk| (point, disk))).collect();
        if matches!(scope, Scope::All) {
            for (path, reason, is_slot) in self.store.odd_key_slots()? {
                let damage = if is_slot { Damage::KeySlot { path } } else { Damage::StrayFile { path } };
                self.find(damage, reason);
            }
            for (path, reason, named) in self.store.odd_pins()? {
                let damage = if named { Damage::Pin { path } } else { Damage::StrayFile { path } };
                self.find(damage, reason);
            }
        }
        let unreadable = self.load_packs(scope)?;
        let mut packs = match scope {
            Scope::All => self.all_packs(),
            Scope::Points(_) => self.packs_of(&disks),
        };
        packs.retain(|number| (self.chosen)(self.store.packs.record(*number).id));
        self.count(|report, progress| {
            (report.points, report.disks) = (points.len() as u64, disks.len() as u64);
            report.known_bad = disks.iter().flat_map(|(point, disk)| known_bad(point, disk)).collect();
            (progress.packs, progress.disks) = (packs.len() as u64, disks.len() as u64);
            let bytes = packs.iter().map(|number| u64::from(self.store.packs.record(*number).size)).sum();
            progress.bytes = ByteCount::new(bytes);
        });
        packs.par_iter().for_each(|number| self.check_pack(*number));
        disks.par_iter().for_each(|(point, disk)| {
            self.check_disk(point, disk, !unreadable.is_empty());
            self.count(|_, progress| progress.disks_done += 1);
        });
        let (mut report, _) = self.counts.into_inner().expect(LOCKED);
        report.findings = self.verdicts.into_inner().expect(LOCKED).findings;
        Ok(report)
    }

    fn count(&self, change: impl FnOnce(&mut VerifyReport, &mut VerifyProgress)) {
        let now = {
            let mut counts = self.counts.lock().expect(LOCKED);
            let (report, progress) = &mut *counts;
            change(report, progress);
            *progress
        };
        (self.progress)(now);
    }

    fn find(&self, damage: Damage, reason: impl Into<String>) -> usize {
        let findings = &mut self.verdicts.lock().expect(LOCKED).findings;
        findings.push(Finding::new(damage, reason));
        findings.len() - 1
    }

    fn check_config(&self) {
        let backend = &*self.store.backend;
        let path = backend.place(CONFIG);
        let reason = match Config::read(backend) {
            Err(error) => sentence(&error),
            Ok(config) if config != self.store.config => {
                "it is not the one that the store was opened with".into()
            }
            Ok(config) => match backend.get(CONFIG, MAX_CONFIG_SIZE) {
                Ok(bytes) if bytes == config.to_bytes() => return,
                _ => "it is not as it was written, although its values are".into(),
            },
        };
        self.find(Damage::Config { path }, reason);
    }

    fn points(&self, scope: &Scope) -> Result<Vec<StoredPoint>, Error> {
        match scope {
            Scope::All => {
                let found = self.store.points_as_stored()?;
                for point in found.damaged {
                    self.find(Damage::Point { path: point.path }, point.reason);
                }
                Ok(found.points)
            }
            Scope::Points(ids) => {
                let mut points = Vec::new();
                for id in ids {
                    match self.store.point(*id) {
                        Ok(point) => points.push(point),
                        Err(Error::PointDamaged { path, reason }) => {
                            self.find(Damage::Point { path }, reason);
                        }
                        Err(error) => return Err(error),
                    }
                }
                Ok(points)
            }
        }
    }

    /// Makes packs known that others added since the store was opened. Gives those that cannot be read,
    /// and reports them where the scope is everything.
    fn load_packs(&self, scope: &Scope) -> Result<Vec<SkippedPack>, Error> {
        let listing = list(&*self.store.backend)?;
        let unknown: Vec<_> =
            listing.packs.into_iter().filter(|(id, _)| !self.store.packs.contains(*id)).collect();
        let unreadable: Vec<(PackId, SkippedPack)> = unknown
            .par_iter()
            .filter_map(|(id, size)| self.store.packs.load_one(*id, *size).err().map(|pack| (*id, pack)))
            .collect();
        if matches!(scope, Scope::All) {
            for (id, pack) in &unreadable {
                self.find(Damage::Pack { id: *id, path: pack.path.clone() }, pack.reason.clone());
            }
            for path in listing.strays {
                self.find(Damage::StrayFile { path }, "it has not the name of a pack");
            }
        }
        Ok(unreadable.into_iter().map(|(_, pack)| pack).collect())
    }

    fn all_packs(&self) -> Vec<u32> {
        // Those that a collector removed since the store was opened have numbers too.
        self.store.packs.numbers()
    }

    /// Every pack that a disk needs, as far as its tree can be walked.
    fn packs_of(&self, disks: &[(&StoredPoint, &PointDisk)]) -> Vec<u32> {
        let found = Mutex::new((BTreeSet::new(), HashSet::new()));
        disks.par_iter().for_each(|(_, disk)| {
            if let Some(root) = disk.tree.root {
                self.collect(root, disk.tree.levels(), &found);
            }
        });
        found.into_inner().expect(LOCKED).0.into_iter().collect()
    }

    fn collect(&self, id: NodeId, level: u8, found: &Mutex<(BTreeSet<u32>, HashSet<NodeId>)>) {
        let packs = &self.store.packs;
        let Some(at) = packs.find(PackKind::Tree, id.as_bytes()) else { return };
        {
            let mut found = found.lock().expect(LOCKED);
            found.0.insert(at.pack);
            if !found.1.insert(id) {
                return;
            }
        }
        // What cannot be read is found and named later, by the check of its pack and of its disk.
        let Ok(node) = self.store.read_node_from_disk(id) else { return };
        if level > 1 {
            (0..FAN_OUT).filter_map(|slot| node.child(slot_of(slot))).for_each(|child| {
                self.collect(child, level - 1, found);
            });
            return;
        }
        let below: Vec<u32> = (0..FAN_OUT)
            .filter_map(|slot| node.block(slot_of(slot)))
            .filter_map(|id| Some(packs.find(PackKind::Data, id.as_bytes())?.pack))
            .collect();
        found.lock().expect(LOCKED).0.extend(below);
    }

    fn check_pack(&self, number: u32) {
        let record = self.store.packs.record(number);
        let path = self.store.backend.place(&pack_key(record.id));
        let outcome = match self.depth {
            Depth::Structure => check_ends(&*self.store.backend, record.id, record.kind)
                .map(|(size, index)| (size, index, true)),
            Depth::EveryByte => self.check_bytes(number, record.id),
        };
        let outcome = outcome.and_then(|(size, index, whole)| {
            let encrypted = self.store.is_encrypted();
            check_encryption(&index, encrypted).map_err(|error| error.to_string())?;
            let same = (size, index.kind, index.entries.len())
                == (record.size, record.kind, record.entries as usize);
            match same {
                true => Ok(whole),
                false => Err("it is another pack than when the store was opened".to_owned()),
            }
        });
        match outcome {
            Ok(true) => (self.done)(record.id),
            Ok(false) => {}
            Err(reason) => {
                let finding = self.find(Damage::Pack { id: record.id, path }, reason);
                self.verdicts.lock().expect(LOCKED).packs.insert(number, finding);
            }
        }
        self.count(|report, progress| {
            report.packs += 1;
            progress.packs_done += 1;
            progress.bytes_done = progress.bytes_done.saturating_add(ByteCount::new(record.size.into()));
        });
    }

    /// Hashes a pack and opens every object in it; says whether nothing is wrong with it. Damaged objects are findings of
    /// their own; the error is for the pack as a whole.
    fn check_bytes(&self, number: u32, id: PackId) -> Result<(u32, PackIndex, bool), String> {
        let backend = &self.store.backend;
        let bytes = backend.get(&pack_key(id), MAX_PACK_SIZE as u64).map_err(|error| reason_of(&error))?;
        self.count(|report, _| {
            report.bytes_read = report.bytes_read.saturating_add(ByteCount::new(bytes.len() as u64));
        });
        let index = PackIndex::from_pack(&bytes).map_err(|error| error.to_string())?;
        let mut opener = Opener::new().map_err(|error| error.to_string())?;
        let mut damaged = None;
        let opened = self.store.can_open(index.kind);
        for entry in index.entries.iter().filter(|_| opened) {
            let checked = check_object(&self.store.id_key, &bytes, index.kind, entry, &mut opener);
            let Err(error) = checked else { continue };
            self.object_damaged(number, id, index.kind, entry.id, error.to_string(), &mut damaged);
        }
        let count = index.entries.len() as u64;
        self.count(|report, _| match index.kind {
            PackKind::Data if !opened => report.unopened += count,
            PackKind::Data => report.blocks += count,
            PackKind::Tree => report.nodes += count,
        });
        let found = PackId::of(&bytes);
        if found != id && !opened {
            return Err(format!("its bytes have the id {found}"));
        }
        if found != id && damaged.is_none() {
            let reason = format!("its bytes have the id {found}, although every object in it opens");
            self.find(Damage::Pack { id, path: backend.place(&pack_key(id)) }, reason);
        }
        let size = u32::try_from(bytes.len()).map_err(|_| "it is too large")?;
        // What could not be opened has not had its turn.
        Ok((size, index, opened && found == id && damaged.is_none()))
    }

    fn object_damaged(
        &self,
        number: u32,
        pack: PackId,
        kind: PackKind,
        id: [u8; 32],
        reason: String,
        finding: &mut Option<usize>,
    ) {
        let new = || Damage::Objects { pack, blocks: Vec::new(), nodes: Vec::new(), more: 0 };
        let at = *finding.get_or_insert_with(|| self.find(new(), reason));
        let mut verdicts = self.verdicts.lock().expect(LOCKED);
        verdicts.objects.insert((number, id), at);
        let block = (kind == PackKind::Data).then(|| BlockId::from_bytes(id));
        let node = (kind == PackKind::Tree).then(|| NodeId::from_bytes(id));
        verdicts.findings[at].damage.add_object(block, node);
    }

    fn check_disk(&self, point: &StoredPoint, disk: &PointDisk, packs_lost: bool) {
        let walk = DiskWalk { check: self, point, disk, packs_lost };
        let found = disk.tree.id(&self.store.id_key);
        let size = disk.tree.size;
        if size > blocks::MAX_DISK_SIZE {
            walk.tree_broken(0, 0, format!("a disk of {size} is over the limit"));
        } else if found != disk.tree_id {
            walk.tree_broken(0, size.get(), format!("its tree has the id {found}"));
        } else if let Some(root) = disk.tree.root {
            walk.visit(root, disk.tree.levels(), 0);
        }
    }
}

/// What of a disk is zeros because it could not be read.
fn known_bad<'a>(point: &'a StoredPoint, disk: &'a PointDisk) -> impl Iterator<Item = Affected> + use<'a> {
    disk.bad.ranges.iter().map(|range| Affected {
        point: point.id,
        vm: point.point.vm.name.clone(),
        vdi: disk.vdi.clone(),
        userdevice: disk.userdevice,
        offset: range.offset,
        size: range.size,
    })
}

/// Checks the header and the index of a pack, by themselves.
fn check_ends(backend: &dyn Backend, id: PackId, kind: PackKind) -> Result<(u32, PackIndex), String> {
    let key = pack_key(id);
    let size = backend.head(&key).map_err(|error| reason_of(&error))?.ok_or("it is not there any more")?;
    let object = backend.open(&key).map_err(|error| reason_of(&error))?;
    let (size, index) = read_index(&*object, size)?;
    let mut header = [0; HEADER_SIZE];
    object.read_exact_at(&mut header, 0).map_err(|error| error.to_string())?;
    if index.kind != kind || index.check_header(&header).is_err() {
        return Err("its header is damaged".into());
    }
    Ok((size, index))
}

/// Why a pack cannot be read; its name stands beside it.
fn reason_of(error: &Error) -> String {
    match error.is_not_found() {
        true => "it is not there any more".into(),
        false => sentence(error),
    }
}

/// One disk of one restore point.
struct DiskWalk<'a> {
    check: &'a Check<'a>,
    point: &'a StoredPoint,
    disk: &'a PointDisk,
    /// Whether there are packs that cannot be read: then what is missing may have been there.
    packs_lost: bool,
}

impl DiskWalk<'_> {
    /// Whether everything below a node is in order.
    fn visit(&self, id: NodeId, level: u8, index: u64) -> bool {
        let whole = self.is_whole(level, index);
        if whole && self.check.clean.lock().expect(LOCKED).contains(&id) {
            return true;
        }
        let (offset, span) =
            (node_offset(level, index).get(), FAN_OUT.pow(level.into()) * blocks::BLOCK_SIZE);
        let store = self.check.store;
        let Some(at) = store.packs.find(PackKind::Tree, id.as_bytes()) else {
            return self.tree_broken(offset, span, format!("tree node {id} is not in the store"));
        };
        if self.blame(at, id.as_bytes(), offset, span) {
            return false;
        }
        let node = match store.read_node_from_disk(id) {
            Ok(node) => node,
            Err(error) => {
                let pack = store.packs.record(at.pack).id;
                self.check.object_damaged(
                    at.pack,
                    pack,
                    PackKind::Tree,
                    *id.as_bytes(),
                    sentence(&error),
                    &mut None,
                );
                self.blame(at, id.as_bytes(), offset, span);
                return false;
            }
        };
        if self.check.depth == Depth::Structure {
            self.check.counts.lock().expect(LOCKED).0.nodes += 1;
        }
        let mut clean = true;
        for slot in 0..FAN_OUT {
            let at = index * FAN_OUT + slot;
            if level == 1 {
                clean &= node.block(slot_of(slot)).is_none_or(|id| self.check_block(id, BlockIndex::new(at)));
            } else if let Some(child) = node.child(slot_of(slot)) {
                clean &= match first_block(level - 1, at) < self.disk.tree.size.blocks_ceil().get() {
                    true => self.visit(child, level - 1, at),
                    false => self.tree_broken(offset, span, format!("tree node {child} lies past its end")),
                };
            }
        }
        if clean && whole {
            self.check.clean.lock().expect(LOCKED).insert(id);
        }
        clean
    }

    /// Whether a node covers nothing but blocks of full size.
    fn is_whole(&self, level: u8, index: u64) -> bool {
        first_block(level, index + 1) <= self.disk.tree.size.blocks_floor().get()
    }

    fn check_block(&self, id: BlockId, block: BlockIndex) -> bool {
        let offset = offset_of(block).get();
        if let Some(at) = self.check.store.packs.find(PackKind::Data, id.as_bytes())
            && self.blame(at, id.as_bytes(), offset, blocks::BLOCK_SIZE)
        {
            return false;
        }
        match self.check.store.check_block(&self.disk.tree, block, id) {
            Ok(()) => true,
            Err(reason) => self.tree_broken(offset, blocks::BLOCK_SIZE, reason),
        }
    }

    /// Adds this stretch to the finding of an object, if there is one.
    fn blame(&self, at: Location, id: &[u8; 32], offset: u64, span: u64) -> bool {
        let mut verdicts = self.check.verdicts.lock().expect(LOCKED);
        let finding = verdicts.packs.get(&at.pack).or_else(|| verdicts.objects.get(&(at.pack, *id)));
        let Some(finding) = finding.copied() else { return false };
        verdicts.findings[finding].affect(self.affected(offset, span));
        true
    }

    /// Adds this stretch to the finding of the disk itself; the first reason is kept, the others counted.
    fn tree_broken(&self, offset: u64, span: u64, reason: String) -> bool {
        let mut verdicts = self.check.verdicts.lock().expect(LOCKED);
        let id = self.disk.tree_id;
        let (finding, count) = verdicts.trees.get(&id).copied().unwrap_or((verdicts.findings.len(), 0));
        if count == 0 {
            let hint = match self.packs_lost {
                true => "; it may have been in a pack that cannot be read",
                false => "",
            };
            verdicts.findings.push(Finding::new(Damage::Tree { id }, format!("{reason}{hint}")));
        }
        verdicts.trees.insert(id, (finding, count + 1));
        verdicts.findings[finding].affect(self.affected(offset, span));
        false
    }

    fn affected(&self, offset: u64, span: u64) -> Affected {
        let left = self.disk.tree.size.get().saturating_sub(offset);
        Affected {
            point: self.point.id,
            vm: self.point.point.vm.name.clone(),
            vdi: self.disk.vdi.clone(),
            userdevice: self.disk.userdevice,
            offset: blocks::ByteOffset::new(offset),
            size: ByteCount::new(span.min(left)),
        }
    }
}
