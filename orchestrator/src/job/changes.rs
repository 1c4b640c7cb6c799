//! What changed since the last backup: the restore points to start from, the references in the pool, and what the
//! pool says about them. Everything here is asked before a disk is attached anywhere: XAPI refuses it afterwards.

use super::snapshot::Source;
use super::{Job, blocking};
use crate::cleanup;
use crate::error::{Context, Result};
use crate::references;
use crate::report::Event;
use crate::tracking::{
    self, Allocated, Allocation, Base, Cause, Changes, Decision, Facts, Hop, Origin, Untracked,
};
use ads::{DiskKind, Lease, PointDisk, PointId, Store, StoredPoint};
use blocks::ByteCount;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use xapi::{Ref, Vdi, VdiType, VhdHead};

/// How many restore points back a reference is looked for. A run that died between its commit and its rotation
/// leaves the reference before; more than a few such runs in a row deserve a scan.
pub(crate) const REFERENCES_BACK: usize = 4;
/// How often the restore points are looked at where one after the other is removed meanwhile.
const MAX_LOOKS: u32 = 5;
/// Largest disk that XAPI exports as a VHD.
const LARGEST_VHD: ByteCount = ByteCount::new(2040 << 30);

/// A disk together with how it is read.
pub(super) struct Planned {
    pub source: Source,
    /// The restore point that it starts from.
    pub base: Option<PointId>,
    pub decision: Decision,
}

/// The VM's earlier restore points, as far as this job may start from them.
pub(crate) struct History {
    /// Oldest first.
    points: Vec<StoredPoint>,
    /// Why none may be used, where that is so.
    unusable: Option<(Cause, String)>,
    /// What keeps the store from being cleaned of what these points need; none where nothing is backed up.
    lease: Option<Arc<Lease>>,
}

/// What the pool says about the changes of a disk.
enum Listing {
    /// What changed since a restore point's state. The point and the changes come from one place: the reference that
    /// was asked about is that very point's.
    Since(PointId, Base, Changes),
    /// Nothing that can be used, and why.
    Unknown(Cause, String),
    /// The pool's log is damaged, or was useless twice in a row: it must be started anew.
    Broken(String),
}

/// What the pool says about the changes since one reference.
enum Found {
    Changes(Changes),
    /// As [`Listing::Broken`].
    Broken(String),
}

/// How all disks are read, and those whose tracking must be started anew first.
pub(super) struct Plan {
    pub disks: Vec<Planned>,
    /// Live VDIs, and why.
    pub broken: BTreeMap<Ref<Vdi>, String>,
}

impl History {
    /// The restore points of a VM among all of a store, oldest first. `damaged` names a pack of the store that cannot be
    /// read, or a point of the VM that lacks something: every block is offered again, and those that were lost are shipped.
    pub(crate) fn new(mut points: Vec<StoredPoint>, vm: &str, full: bool, damaged: Option<&str>) -> Self {
        points.retain(|stored| stored.point.vm.uuid == vm);
        let unusable = match damaged {
            _ if full => Some((Cause::FullRequested, "a full backup was asked for".to_owned())),
            Some(_) => Some((Cause::StoreDamaged, "the store has lost blocks to damage".to_owned())),
            None => None,
        };
        Self { points, unusable, lease: None }
    }

    /// The points that a job may start from: of each disk those of which the references are looked for.
    fn starts(&self) -> Vec<&StoredPoint> {
        let disks: BTreeSet<&str> = self
            .usable()
            .iter()
            .flat_map(|stored| &stored.point.disks)
            .map(|disk| disk.vdi.as_str())
            .collect();
        let ids: BTreeSet<PointId> = disks
            .into_iter()
            .flat_map(|vdi| self.of_disk(vdi).take(REFERENCES_BACK).map(|(id, _)| id))
            .collect();
        self.usable().iter().filter(|stored| ids.contains(&stored.id)).collect()
    }

    /// Says that the job works with the store, and what it starts from.
    fn leased(self, store: &Arc<Store>, job: &str) -> std::result::Result<Self, ads::Error> {
        let lease = Some(Arc::new(store.lease(&format!("job {job}"), &self.starts())?));
        Ok(Self { lease, ..self })
    }

    /// What a backup commits under.
    pub(super) fn lease(&self) -> Option<&Arc<Lease>> {
        self.lease.as_ref()
    }

    /// Why none of them may be started from, where that is so.
    pub(crate) fn unusable(&self) -> Option<&(Cause, String)> {
        self.unusable.as_ref()
    }

    /// All of them, oldest first, whether they may be started from or not.
    pub(crate) fn points(&self) -> &[StoredPoint] {
        &self.points
    }

    /// The newest point.
    pub(super) fn newest(&self) -> Option<PointId> {
        self.usable().last().map(|stored| stored.id)
    }

    fn usable(&self) -> &[StoredPoint] {
        match self.unusable {
            None => &self.points,
            Some(_) => &[],
        }
    }

    /// What the earlier points say about a disk, newest first.
    pub(crate) fn of_disk<'h>(&'h self, vdi: &'h str) -> impl Iterator<Item = (PointId, &'h PointDisk)> {
        let disk = move |stored: &'h StoredPoint| {
            let found = stored.point.disks.iter().find(|d| d.vdi == vdi && d.kind == DiskKind::User);
            found.map(|disk| (stored.id, disk))
        };
        self.usable().iter().rev().filter_map(disk)
    }

    /// The points on which a disk's state at `base` rests by change tracking alone, newest first: from the base back
    /// to, and without, the one that read the disk whole. An audit that fails puts them in doubt.
    pub(super) fn resting_on_tracking(&self, vdi: &str, base: Option<PointId>) -> Vec<PointId> {
        let mut resting = Vec::new();
        let mut next = base;
        while let Some(id) = next.filter(|id| !resting.contains(id)) {
            let Some(point) = self.points.iter().find(|stored| stored.id == id) else {
                // The way is lost with a point that was removed: better one too many in doubt than one too few.
                let tracked = self.points.iter().filter(|stored| {
                    stored.point.disks.iter().any(|disk| disk.vdi == vdi && rests_on_tracking(disk))
                });
                resting.extend(tracked.map(|stored| stored.id));
                resting.sort_unstable();
                resting.dedup();
                break;
            };
            let Some(disk) = point.point.disks.iter().find(|disk| disk.vdi == vdi) else { break };
            if !rests_on_tracking(disk) {
                break;
            }
            resting.push(id);
            next = disk.base.or(point.point.base);
        }
        resting
    }
}

fn is_gone<T>(found: &std::result::Result<T, ads::Error>) -> bool {
    found.as_ref().is_err_and(|error| error.kind() == ads::ErrorKind::NotFound)
}

fn rests_on_tracking(disk: &PointDisk) -> bool {
    matches!(disk.mode, tracking::Mode::Cbt | tracking::Mode::VhdDiff)
}

impl Job<'_> {
    /// The earlier restore points of the VM. None may be used while packs of the store cannot be read: then every
    /// block is offered again, and those that were lost are shipped again.
    pub(super) async fn history(&self, vm: &str) -> Result<History> {
        let (store, id, vm, full) =
            (self.run.store.clone(), self.id.clone(), vm.to_owned(), self.options.full);
        let damaged = store.skipped_packs().first().map(|pack| pack.path.display().to_string());
        let (history, damaged) = blocking(move || {
            let look = || {
                let points = store.points()?.points;
                let lacking = match damaged {
                    Some(_) => None,
                    None => store.first_lacking(points.iter().filter(|stored| stored.point.vm.uuid == vm))?,
                };
                let lacking = lacking.map(|(stored, _)| format!("restore point {}", stored.id.short()));
                let damaged = damaged.clone().or(lacking);
                let history = History::new(points, &vm, full, damaged.as_deref()).leased(&store, &id)?;
                Ok((history, damaged))
            };
            // A point that is removed just then makes the others be looked at again.
            (1..MAX_LOOKS).map(|_| look()).find(|found| !is_gone(found)).unwrap_or_else(look)
        })
        .await?;
        if let (Some((Cause::StoreDamaged, _)), Some(what)) = (history.unusable(), damaged) {
            self.warn(format!("the store has lost blocks to damage ({what}): backing up in full"));
        }
        Ok(history)
    }

    /// Decides for every disk how it is read. Disks in `reset` had their tracking started anew by this job.
    pub(super) async fn plan(
        &self,
        sources: Vec<Source>,
        history: &History,
        reset: &BTreeMap<Ref<Vdi>, String>,
    ) -> Result<Plan> {
        self.step("list changes");
        let mut plan = Plan { disks: Vec::with_capacity(sources.len()), broken: BTreeMap::new() };
        for source in sources {
            let (base, origin) = match history.of_disk(&source.live_uuid).next() {
                _ if source.kind == DiskKind::Suspend => {
                    let (cause, why) = Untracked::Memory.explain();
                    (None, Origin::Nothing(cause, why, self.allocation(&source).await))
                }
                None => {
                    let first = (Cause::FirstBackup, "first backup of this disk".to_owned());
                    let (cause, why) = history.unusable.clone().unwrap_or(first);
                    (None, Origin::Nothing(cause, why, self.allocation(&source).await))
                }
                Some((newest, disk)) => {
                    let listing = match reset.get(&source.live) {
                        Some(why) => Listing::Unknown(Cause::TrackingInconsistent, why.clone()),
                        None => self.changes(&source, history).await?,
                    };
                    // Where everything is read, the nearest state is the best to compare with.
                    let whole = |cause, why| {
                        (Some(newest), Origin::Base(Base::of(disk), Changes::Unknown(cause, why)))
                    };
                    match listing {
                        Listing::Since(point, base, changes) => (Some(point), Origin::Base(base, changes)),
                        Listing::Unknown(cause, why) => whole(cause, why),
                        Listing::Broken(why) => {
                            plan.broken.insert(source.live.clone(), why.clone());
                            whole(Cause::TrackingInconsistent, why)
                        }
                    }
                }
            };
            let decision = tracking::decide(Facts { size: source.size, origin });
            plan.disks.push(Planned { source, base, decision });
        }
        Ok(plan)
    }

    /// Shows how the disks are read.
    pub(super) fn show_plan(&self, disks: &[Planned]) {
        for Planned { source, decision, .. } in disks {
            self.run.report.event(&Event::DiskPlan {
                job: self.id.clone(),
                subject: self.subject.clone(),
                disk: source.name.clone(),
                mode: tracking::mode_name(decision.mode).into(),
                cause: decision.cause.code().into(),
                reason: decision.reason.clone(),
                size: source.size.get(),
                planned: decision.planned(source.size).get(),
            });
        }
    }

    /// Asks the pool what changed since an earlier restore point: the newest one whose reference is still there. A run
    /// that died between its commit and its rotation has left the reference before.
    async fn changes(&self, source: &Source, history: &History) -> Result<Listing> {
        let unknown = |cause, why: String| Ok(Listing::Unknown(cause, why));
        if let Some(Untracked::ByOption) = source.untracked {
            let (cause, why) = Untracked::ByOption.explain();
            return unknown(cause, why);
        }
        let mut missing = None;
        for (point, disk) in history.of_disk(&source.live_uuid).take(REFERENCES_BACK) {
            if let Some(uuid) = &disk.reference {
                match cleanup::find_vdi(&self.pool, uuid).await {
                    Ok(Some(reference)) => {
                        return Ok(match self.changes_since(source, &reference, uuid, history).await? {
                            Found::Changes(Changes::Unknown(cause, why)) => Listing::Unknown(cause, why),
                            Found::Changes(changes) => Listing::Since(point, Base::of(disk), changes),
                            Found::Broken(why) => Listing::Broken(why),
                        });
                    }
                    Ok(None) => _ = missing.get_or_insert_with(|| uuid.clone()),
                    Err(error) => return unknown(Cause::ListingFailed, error.chain()),
                }
            }
            if disk.cause == Cause::AuditAlarm.code() {
                let (cause, why) = after_alarm();
                return unknown(cause, why);
            }
        }
        let (cause, why) =
            without_reference(source.untracked.as_ref(), missing.as_deref(), self.reserves(source));
        unknown(cause, why)
    }

    async fn changes_since(
        &self,
        source: &Source,
        reference: &Ref<Vdi>,
        uuid: &str,
        history: &History,
    ) -> Result<Found> {
        let client = &self.pool.client;
        let record = client.get_record::<Vdi>(reference).await.context(|| format!("look at VDI {uuid}"))?;
        if !source.tracked {
            let Some(untracked) = &source.untracked else {
                let why = "the snapshot's disk is not tracked".to_owned();
                return Ok(Found::Changes(Changes::Unknown(Cause::TrackingFailed, why)));
            };
            let (cause, why) = untracked.explain();
            return Ok(Found::Changes(match record.kind == VdiType::CbtMetadata {
                true => Changes::Unknown(cause, why),
                false => self.difference(source, reference).await,
            }));
        }
        let error = match self.list(reference, &source.snapshot).await {
            Ok(bitmap) => {
                return Ok(Found::Changes(Changes::Tracked(vec![Hop { size: source.size, bitmap }])));
            }
            Err(error) => error,
        };
        if error.is_cbt_inconsistent() {
            return Ok(Found::Broken(format!("the pool's log of changes is damaged: {error}")));
        }
        if !error.is_cbt_unrelated() {
            let error = crate::error::Error::from(error);
            return Ok(Found::Changes(Changes::Unknown(Cause::ListingFailed, error.chain())));
        }
        if let Some(hops) = self.hops(source, reference, uuid).await? {
            return Ok(Found::Changes(Changes::Tracked(hops)));
        }
        let why = format!("the pool cannot relate the reference {uuid} to the disk any more: {error}");
        let last = history.of_disk(&source.live_uuid).next().map(|(_, disk)| disk.cause.as_str());
        // A reference of the last run that is useless at once means that the next one would be as well.
        if last == Some(Cause::ReferenceUnusable.code()) {
            return Ok(Found::Broken(format!("{why}, for the second time in a row")));
        }
        Ok(Found::Changes(Changes::Unknown(Cause::ReferenceUnusable, why)))
    }

    async fn list(&self, from: &Ref<Vdi>, to: &Ref<Vdi>) -> std::result::Result<Vec<u8>, xapi::Error> {
        crate::retry::until_free_raw(
            || "list changed blocks".into(),
            async || self.pool.client.vdi_list_changed_blocks(from, to).await,
        )
        .await
    }

    /// The way from a reference to the snapshot over the later references that other runs left behind.
    async fn hops(&self, source: &Source, from: &Ref<Vdi>, uuid: &str) -> Result<Option<Vec<Hop>>> {
        let vdis = self.pool.client.get_all_records::<Vdi>().await.context(|| "list VDIs".into())?;
        let store = self.run.store.id().to_string();
        let all = references::references_of(&self.pool.owner, &vdis, &source.live_uuid, &store);
        let later: Vec<&String> = all.iter().skip_while(|found| *found != uuid).skip(1).collect();
        if later.is_empty() {
            return Ok(None);
        }
        let mut hops = Vec::new();
        let mut at = from;
        let way = later.iter().filter_map(|uuid| vdis.iter().find(|(_, vdi)| vdi.uuid.as_str() == *uuid));
        let end = (&source.snapshot, source.size);
        for (to, size) in way.map(|(to, vdi)| (to, ByteCount::new(vdi.virtual_size))).chain([end]) {
            match self.list(at, to).await {
                Ok(bitmap) => hops.push(Hop { size, bitmap }),
                Err(error) => {
                    tracing::debug!(job = %self.id, "no way over a later reference: {error}");
                    return Ok(None);
                }
            }
            at = to;
        }
        Ok(Some(hops))
    }

    /// Whether this job leaves a reserved snapshot of the disk: pools without change tracking list changes from it.
    pub(super) fn reserves(&self, source: &Source) -> bool {
        may_reserve(source.untracked.as_ref(), source.is_vhd, source.size)
    }

    /// The parts of the disk that may differ from the reserved snapshot, by the head of a differencing export.
    async fn difference(&self, source: &Source, reference: &Ref<Vdi>) -> Changes {
        match self.pool.client.export_vdi_vhd_head(&source.snapshot, Some(reference)).await {
            Ok(head) if head.differencing => Changes::Difference(parts(head)),
            Ok(_) => Changes::Unknown(
                Cause::ListingUnusable,
                "the pool sent a whole VHD instead of the difference".into(),
            ),
            Err(error) => {
                Changes::Unknown(Cause::ListingFailed, format!("the difference cannot be read: {error}"))
            }
        }
    }

    /// Asks which parts of a disk were ever written, by the head of a VHD export.
    async fn allocation(&self, source: &Source) -> Allocation {
        if self.options.read_unallocated {
            return Allocation::Unknown("unallocated space is read on request".into());
        }
        if !source.is_vhd {
            return Allocation::Unknown("the storage does not tell what is allocated".into());
        }
        match self.pool.client.export_vdi_vhd_head(&source.snapshot, None).await {
            Ok(head) if !head.differencing => Allocation::Listed(parts(head)),
            Ok(_) => Allocation::Unknown("the pool sent a differencing VHD".into()),
            Err(error) => Allocation::Unknown(format!("the pool does not tell what is allocated: {error}")),
        }
    }
}

/// Whether a reserved snapshot stands in for the change tracking of a disk.
pub(crate) fn may_reserve(untracked: Option<&Untracked>, is_vhd: bool, size: ByteCount) -> bool {
    untracked == Some(&Untracked::OldRelease) && is_vhd && size <= LARGEST_VHD
}

/// Why nothing before an alarm is asked about: it was listed by a tracking that is known to have missed writes.
pub(crate) fn after_alarm() -> (Cause, String) {
    let why = "an audit caught the change tracking missing writes, and it was started anew";
    (Cause::AuditAlarm, why.into())
}

/// Why there is no list of changes where no reference is there to list them from. `missing` is the newest that is
/// gone.
pub(crate) fn without_reference(
    untracked: Option<&Untracked>,
    missing: Option<&str>,
    may_reserve: bool,
) -> (Cause, String) {
    match (untracked, missing) {
        (Some(Untracked::OldRelease), Some(uuid)) => {
            let why =
                format!("disk {uuid} of the reserved snapshot is gone from the pool; a new one is made");
            (Cause::ReferenceMissing, why)
        }
        (Some(untracked), _) if !may_reserve => untracked.explain(),
        (_, Some(uuid)) => {
            (Cause::ReferenceMissing, format!("the reference VDI {uuid} is gone from the pool"))
        }
        (_, None) => (Cause::NoReference, "the last backup left no reference".to_owned()),
    }
}

fn parts(head: VhdHead) -> Allocated {
    Allocated {
        disk_size: ByteCount::new(head.disk_bytes),
        block_size: ByteCount::new(u64::from(head.block_bytes)),
        blocks: head.blocks,
    }
}
