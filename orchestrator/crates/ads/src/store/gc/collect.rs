//! One collection: look, remove what the rule allows, condemn what is needed by nobody.

use super::lease::LookFor;
use super::records::{self, CondemnedRecord, LeaseRecord, condemned_key, counter_key, lease_key, write};
use crate::Error;
use crate::backend::pack_key;
use crate::store::index::Location;
use crate::store::points::point_key;
use crate::store::reach::{NOBODY, PerObject, Walk};
use crate::store::{Store, StoredPoint};
use blocks::ByteCount;
use seal::PackId;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// How a collection is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GcOptions {
    /// Packs of which less than this share is needed are written anew without the rest; 0 never.
    pub sparse_percent: u8,
    /// A lease that was not renewed for so long is taken for dead.
    pub grace: Duration,
    /// Only count.
    pub dry_run: bool,
    /// Nobody uses the store from another machine. To be said where [`Backend::may_be_stale`](crate::Backend::may_be_stale):
    /// the rule needs to see the leases of all.
    pub only_here: bool,
    /// How old a list of the backend may be: somebody else's newest objects may be missing from it for so long. The rule
    /// holds with such lists too, and a collection takes some of these times longer.
    pub lists_lag: Duration,
    /// What the time is; for tests that cannot wait for a day.
    pub now: SystemTime,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            sparse_percent: 50,
            grace: Duration::from_secs(24 * 3600),
            dry_run: false,
            only_here: false,
            lists_lag: Duration::ZERO,
            now: SystemTime::now(),
        }
    }
}

/// What a collection did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Restore points that were looked at.
    pub points: u64,
    /// Packs that are gone.
    pub removed: u64,
    /// Their bytes.
    pub freed: ByteCount,
    /// Packs of which something was still needed and that were written anew.
    pub repacked: u64,
    /// Bytes that this wrote.
    pub written: ByteCount,
    /// Packs that wait to be removed.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: ByteCount,
    /// Who is waited for, in words.
    pub waits_for: Vec<String>,
    /// Leases that were taken for dead.
    pub dead: Vec<String>,
}

/// How often a collector looks again because something came while it looked.
const LOOKS: usize = 3;

/// What is needed, as far as one look could tell.
struct Needed {
    objects: PerObject,
    /// Numbers of packs of which something is needed.
    packs: HashSet<u32>,
    /// Whether something is needed that came after this look began.
    beyond: bool,
}

/// Leases by id, with their counters.
type Leases = BTreeMap<Uuid, (LeaseRecord, u64)>;

/// What one look found.
struct Look<'a> {
    walk: Walk<'a>,
    needed: Needed,
    lists: BTreeMap<Uuid, CondemnedRecord>,
    /// Of everybody else.
    leases: Leases,
    /// Lists that nobody is waited for any more.
    ripe: BTreeSet<Uuid>,
    /// The first of whom not everything that he needs was found.
    lacking: Option<Lacking>,
}

/// Somebody who needs what is missing or damaged.
struct Lacking {
    /// His object in the store.
    key: String,
    /// In words.
    who: String,
}

impl Store {
    /// Frees what no restore point, no job and nobody else needs; jobs go on meanwhile. What somebody may rely on who
    /// works with the store right now is only condemned, and removed by a later collection. `progress` is told how many of
    /// how many restore points were looked at.
    ///
    /// # Errors
    /// [`Error::NotCollected`] where something cannot be read, so that nobody can say what it needs: nothing is removed
    /// then. Else what the backend says; what was removed before that was needed by nobody.
    pub fn collect(
        self: &Arc<Self>,
        options: &GcOptions,
        progress: &dyn Fn(u64, u64),
    ) -> Result<GcReport, Error> {
        if self.backend.may_be_stale() && !options.only_here && !options.dry_run {
            return Err(Error::StaleLists { dir: self.dir().to_owned() });
        }
        let mut report = GcReport::default();
        let own = self.lease("collector", &[])?;
        if !options.dry_run {
            self.drop_lost_counters()?;
        }
        // The second look removes what the first one condemned, where nobody is there to be waited for.
        for look in 0..2 {
            let again = self.look_and_collect(options, own.id(), &mut report, progress)?;
            if !again || look > 0 || options.dry_run {
                break;
            }
        }
        Ok(report)
    }

    fn drop_lost_counters(&self) -> Result<(), Error> {
        for id in records::lost_counters(&*self.backend)? {
            self.backend.delete(&counter_key(id))?;
        }
        Ok(())
    }

    /// One look, and what follows from it; whether another one would remove more.
    fn look_and_collect(
        self: &Arc<Self>,
        options: &GcOptions,
        own: Uuid,
        report: &mut GcReport,
        progress: &dyn Fn(u64, u64),
    ) -> Result<bool, Error> {
        let mut look = self.look(options, own, report, progress)?;
        // What came while this one looked is looked at again, with the packs that came along.
        for _ in 0..LOOKS {
            if look.is_final(self)? {
                break;
            }
            look = self.look(options, own, report, progress)?;
        }
        if let Some(Lacking { who, .. }) = &look.lacking {
            let reason = format!("something that {who} needs is missing or damaged; run `abd verify`");
            return Err(Error::NotCollected { reason });
        }
        if !options.dry_run {
            self.sweep(&mut look, options, own, report)?;
        }
        self.witness(&look, options, own)?;
        let listed: HashSet<PackId> = look.waiting_lists().flat_map(|(_, list)| list.ids()).collect();
        (report.waiting, report.waiting_bytes) = (0, ByteCount::new(0));
        for number in listed.iter().filter_map(|id| self.packs.number_of(*id)) {
            if !look.needed.packs.contains(&number) {
                self.count_waiting(number, report);
            }
        }
        let condemned = self.condemn(&listed, &look.needed, options, own, report)?;
        if !condemned && !options.dry_run && look.has_unwitnessed() {
            // Who is dead comes to light by a list that names him, also where nothing waits for him yet.
            self.write_list(&[], options, own)?;
        }
        report.waits_for = look.leases.values().map(|(lease, _)| named(lease)).collect();
        report.waits_for.sort();
        Ok(condemned && look.leases.is_empty())
    }

    /// Reads lists, then leases, then points, and walks from all of them. A lease that is in a list and not among those
    /// read afterwards is gone, and what was committed under it is among the points.
    fn look(
        &self,
        options: &GcOptions,
        own: Uuid,
        report: &mut GcReport,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Look<'_>, Error> {
        let lists = records::condemned(&*self.backend)?;
        // Only what is in a list can be removed by what is seen now.
        let lag = if lists.is_empty() { Duration::ZERO } else { options.lists_lag };
        // So that no lease that a list names is missing while it is there.
        std::thread::sleep(lag);
        let mut leases = records::leases(&*self.backend)?;
        leases.remove(&own);
        self.bury(&lists, &mut leases, options, report)?;
        // So that no point is missing whose lease was given back before the leases were listed.
        std::thread::sleep(lag);
        let found = self.points()?;
        if let Some(damaged) = found.damaged.first() {
            // Nobody knows what it needs.
            let (path, reason) = (damaged.path.display(), &damaged.reason);
            return Err(Error::NotCollected {
                reason: format!("restore point {path} cannot be read: {reason}"),
            });
        }
        // After the points: the packs that they need are there.
        self.look_again(LookFor::AllPacks)?;
        let ripe = lists
            .iter()
            .filter(|(_, list)| {
                list.leases.as_ref().is_some_and(|all| !all.keys().any(|id| leases.contains_key(id)))
            })
            .map(|(id, _)| *id)
            .collect();
        let needed = Needed { objects: self.packs.per_object(), packs: HashSet::new(), beyond: false };
        let mut look = Look { walk: Walk::new(self), needed, lists, leases, ripe, lacking: None };
        for (id, (lease, _)) in look.leases.clone() {
            look.need_lease(id, &lease);
        }
        report.points = found.points.len() as u64;
        for (done, stored) in (1..).zip(&found.points) {
            look.need_point(stored);
            progress(done, report.points);
        }
        Ok(look)
    }

    /// Removes the leases of the dead: those whose counter is what a list that is older than the grace says. Before
    /// restore points are listed: whoever is not dead after all commits before that, or finds his lease gone.
    fn bury(
        &self,
        lists: &BTreeMap<Uuid, CondemnedRecord>,
        leases: &mut Leases,
        options: &GcOptions,
        report: &mut GcReport,
    ) -> Result<(), Error> {
        let now = seconds(options.now);
        for list in lists.values().filter(|list| list.is_older_than(options.grace, now)) {
            for (id, counter) in list.leases.iter().flatten() {
                let Some((lease, _)) = leases.get(id).filter(|(_, found)| found == counter) else { continue };
                report.dead.push(named(lease));
                if !options.dry_run {
                    self.backend.delete(&lease_key(*id))?;
                    self.backend.delete(&counter_key(*id))?;
                }
                leases.remove(id);
            }
        }
        Ok(())
    }

    /// Removes what stands in ripe lists and is needed by nobody; then the lists.
    fn sweep(
        &self,
        look: &mut Look<'_>,
        options: &GcOptions,
        own: Uuid,
        report: &mut GcReport,
    ) -> Result<(), Error> {
        if look.ripe.is_empty() {
            return Ok(());
        }
        // Whoever came meanwhile: his points were there when points were listed, or are named in his lease.
        let now = records::leases(&*self.backend)?;
        for (id, (lease, _)) in &now {
            if *id != own && !look.leases.contains_key(id) {
                look.need_lease(*id, lease);
            }
        }
        if look.lacking.is_some() || !now.contains_key(&own) {
            // What he starts from came after this look; or this collector was taken for dead. Another one sees all of it.
            look.lacking = None;
            look.ripe.clear();
            return Ok(());
        }
        let listed = look.ripe.iter().flat_map(|id| look.lists[id].ids());
        let is_needed =
            |id: &PackId| self.packs.number_of(*id).is_some_and(|number| look.needed.packs.contains(&number));
        let victims: BTreeSet<PackId> = listed.filter(|id| !is_needed(id)).collect();
        if !victims.is_empty() {
            // Before the first one is removed, so that nobody trusts what he remembers of them.
            write(&*self.backend, records::GENERATION, &Uuid::new_v4())?;
        }
        for id in &victims {
            let size = self.packs.number_of(*id).map(|number| self.packs.record(number).size);
            self.backend.delete(&pack_key(*id))?;
            if let Some(size) = size {
                report.removed += 1;
                report.freed = report.freed.saturating_add(ByteCount::new(size.into()));
            }
        }
        if !victims.is_empty() {
            // Who does not see the list any more is not to see the packs any more either.
            std::thread::sleep(options.lists_lag);
        }
        for id in &look.ripe {
            self.backend.delete(&condemned_key(*id))?;
        }
        self.look_again(LookFor::AllPacks)
    }

    /// Writes who is there into lists whose collectors died before they did, and anew into those that are older than the
    /// grace, so that who dies later is found to be dead too.
    fn witness(&self, look: &Look<'_>, options: &GcOptions, own: Uuid) -> Result<(), Error> {
        let now = seconds(options.now);
        for (id, list) in look.waiting_lists() {
            if options.dry_run {
                continue;
            }
            match &list.leases {
                None => {
                    self.write_leases(*id, CondemnedRecord { created: now, ..list.clone() }, options, own)?;
                }
                Some(waited) if list.is_older_than(options.grace, now) => {
                    let still = waited.keys().filter_map(|id| Some((*id, look.leases.get(id)?.1)));
                    let list =
                        CondemnedRecord { created: now, leases: Some(still.collect()), ..list.clone() };
                    write(&*self.backend, &condemned_key(*id), &list)?;
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// The leases that are there now, after the list was written.
    fn write_leases(
        &self,
        id: Uuid,
        mut list: CondemnedRecord,
        options: &GcOptions,
        own: Uuid,
    ) -> Result<(), Error> {
        // Who missed the list because it was too new took his lease before a lag was over, and is seen after another one.
        std::thread::sleep(options.lists_lag.saturating_mul(2));
        let leases = records::leases(&*self.backend)?;
        let others = leases.into_iter().filter(|(lease, _)| *lease != own);
        list.leases = Some(others.map(|(lease, (_, counter))| (lease, counter)).collect());
        write(&*self.backend, &condemned_key(id), &list)
    }

    fn count_waiting(&self, number: u32, report: &mut GcReport) {
        report.waiting += 1;
        let size = u64::from(self.packs.record(number).size);
        report.waiting_bytes = report.waiting_bytes.saturating_add(ByteCount::new(size));
    }

    /// Condemns packs of which nothing is needed, and such of which little is after that was copied; whether there were any.
    fn condemn(
        &self,
        listed: &HashSet<PackId>,
        needed: &Needed,
        options: &GcOptions,
        own: Uuid,
        report: &mut GcReport,
    ) -> Result<bool, Error> {
        let (mut idle, mut sparse) = (Vec::new(), Vec::new());
        // Packs that came after the look have their turn in the next.
        let looked_at = needed.objects.packs.len();
        for number in self.packs.numbers().into_iter().filter(|number| (*number as usize) < looked_at) {
            if listed.contains(&self.packs.record(number).id) {
                continue;
            }
            match needed.packs.contains(&number) {
                false => idle.push(number),
                true if self.is_sparse(number, needed, options.sparse_percent)? => sparse.push(number),
                true => {}
            }
        }
        report.repacked += sparse.len() as u64;
        idle.iter().chain(&sparse).for_each(|number| self.count_waiting(*number, report));
        if options.dry_run || (idle.is_empty() && sparse.is_empty()) {
            return Ok(false);
        }
        report.written = report.written.saturating_add(self.repack(&sparse, &needed.objects)?);
        let packs: Vec<PackId> =
            idle.iter().chain(&sparse).map(|number| self.packs.record(*number).id).collect();
        for packs in packs.chunks(records::MAX_CONDEMNED) {
            self.write_list(packs, options, own)?;
        }
        Ok(true)
    }

    /// Writes a list, and then into it who is there.
    fn write_list(&self, packs: &[PackId], options: &GcOptions, own: Uuid) -> Result<(), Error> {
        let (id, list) = (Uuid::new_v4(), CondemnedRecord::new(seconds(options.now), packs));
        write(&*self.backend, &condemned_key(id), &list)?;
        self.write_leases(id, list, options, own)
    }

    fn is_sparse(&self, number: u32, needed: &Needed, percent: u8) -> Result<bool, Error> {
        if percent == 0 {
            return Ok(false);
        }
        let owners = &needed.objects.packs[number as usize];
        let index = self.packs.index_of(number)?;
        let (mut needed, mut whole) = (0u64, 0u64);
        for (entry, owner) in index.entries.iter().zip(owners) {
            let sealed = u64::from(entry.sealed_size);
            whole += sealed;
            needed += if *owner == NOBODY { 0 } else { sealed };
        }
        Ok(needed.saturating_mul(100) < whole.saturating_mul(percent.into()))
    }
}

impl Look<'_> {
    fn need_point(&mut self, stored: &StoredPoint) {
        let needed = &mut self.needed;
        self.walk.point(stored, &mut |_, at| needed.enter(at));
        let who = || format!("restore point {}", stored.id.short());
        self.note(|| Lacking { key: point_key(stored.id), who: who() });
    }

    fn need_lease(&mut self, id: Uuid, lease: &LeaseRecord) {
        self.walk.incomplete = false;
        let needed = &mut self.needed;
        for tree in &lease.trees {
            self.walk.tree(*tree, &mut |_, at| needed.enter(at));
        }
        self.note(|| Lacking { key: lease_key(id), who: named(lease) });
    }

    fn note(&mut self, what: impl FnOnce() -> Lacking) {
        if self.walk.incomplete || self.needed.beyond {
            self.lacking.get_or_insert_with(what);
        }
    }

    /// Whether it found all that is needed, or would find no more if it looked again.
    fn is_final(&self, store: &Store) -> Result<bool, Error> {
        let Some(Lacking { key, .. }) = &self.lacking else { return Ok(true) };
        // Who is gone meanwhile needs nothing, and what came meanwhile was not looked at.
        Ok(store.backend.head(key)?.is_some() && !self.needed.beyond)
    }

    /// Whether somebody is there whom no list names.
    fn has_unwitnessed(&self) -> bool {
        let named: BTreeSet<&Uuid> =
            self.waiting_lists().flat_map(|(_, list)| list.leases.iter().flat_map(BTreeMap::keys)).collect();
        self.leases.keys().any(|id| !named.contains(id))
    }

    /// The lists that stay.
    fn waiting_lists(&self) -> impl Iterator<Item = (&Uuid, &CondemnedRecord)> {
        self.lists.iter().filter(|(id, _)| !self.ripe.contains(id))
    }
}

impl Needed {
    fn enter(&mut self, at: Location) -> bool {
        self.packs.insert(at.pack);
        let before = self.objects.own(at, 1);
        self.beyond |= before.is_none();
        before == Some(NOBODY)
    }
}

fn named(lease: &LeaseRecord) -> String {
    format!("{} since {}", lease.owner, lease.created)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
