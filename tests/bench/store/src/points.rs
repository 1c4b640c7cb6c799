//! A store of forty VMs that are backed up again and again, and what is done with it as it grows.

use crate::Error;
use crate::measure::Clock;
use abd_orchestrator::retention::Rules;
use abd_orchestrator::retention::apply::{Scope, decide};
use ads::{DiskKind, DiskMode, GcOptions, PointDisk, PointId, PointPool, PointVm, RestorePoint, Store};
use blocks::ByteCount;
use seal::{FAN_OUT, Node, NodeId, PackKind, PackWriter, Sealer, Tree, TreeBuilder};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const VMS: u64 = 40;
/// Blocks of each VM's disk: 256 MiB of address space, 16 leaves.
const DISK_BLOCKS: u64 = 4096;
/// Blocks that change from one point to the next, in two places.
const CHANGED: u64 = 4;
/// Bytes of a block's content here: the tree is what is measured.
const CONTENT: usize = 96;
/// What a VM's records take in a restore point.
const METADATA: usize = 8 << 10;
/// All of a VM's points are six hours apart.
const STEP: Duration = Duration::from_secs(6 * 3600);

/// Numbers the contents of blocks.
struct Maker {
    store: Arc<Store>,
    sealer: Sealer,
    trees: BTreeMap<u64, (Tree, PointId)>,
    made: u64,
    content: u64,
}

pub(crate) fn points(counts: &[u64], dir: &Path) -> Result<Value, Error> {
    let root = dir.join("store");
    let store = Arc::new(Store::init(&root)?);
    let mut maker =
        Maker { store: store.clone(), sealer: Sealer::new(1)?, trees: BTreeMap::new(), made: 0, content: 0 };
    let mut rows = Vec::new();
    for count in counts {
        let before = maker.made;
        let clock = Clock::start();
        while maker.made < *count {
            maker.commit()?;
        }
        let commit = clock.stop(maker.made - before);
        let mut row = measure(&root)?;
        row["points"] = json!(count);
        row["commit"] = commit;
        rows.push(row);
    }
    // Last, because it removes: nine of ten points go, and what only they had.
    let all = store.points()?.points;
    let clock = Clock::start();
    let mut removed = 0;
    for stored in all.iter().zip(0u64..).filter(|(_, at)| at % 10 != 0).map(|(stored, _)| stored) {
        store.remove_point(stored.id)?;
        removed += 1;
    }
    let remove = clock.stop(removed);
    let clock = Clock::start();
    let found = store.collect(&GcOptions::default(), &|_, _| ())?;
    let collect = clock.stop(1);
    Ok(json!({
        "vms": VMS, "rows": rows, "remove": remove, "collect": collect, "collected": found.removed,
        "repacked": found.repacked,
    }))
}

/// What a command does, each in a store that was just opened.
fn measure(root: &Path) -> Result<Value, Error> {
    let clock = Clock::start();
    let store = Arc::new(Store::open(root)?);
    let open = clock.stop(1);
    let clock = Clock::start();
    let all = store.points()?.points;
    let list = clock.stop(1);
    let clock = Clock::start();
    let again = store.points()?.points.len();
    let list_again = clock.stop(1);
    let wanted = all.get(all.len() / 2).ok_or_else(|| Error::Wrong("there are no points".into()))?;
    let clock = Clock::start();
    let shown = store.find_point(&wanted.id.to_string()[..12])?;
    let show = clock.stop(1);
    if again != all.len() || shown.id != wanted.id {
        return Err(Error::Wrong("the store lists other points than it has".into()));
    }
    let clock = Clock::start();
    let points = store.points()?.points;
    let pins = store.pins()?.into_keys().collect();
    let rules = Rules { daily: Some(14), weekly: Some(8), monthly: Some(12), ..Rules::default() };
    let judged = decide(&points, &pins, &Scope::default(), &rules, &jiff::tz::TimeZone::UTC);
    let stay = judged.iter().flat_map(|group| &group.points).filter(|point| point.stays()).count();
    let prune = clock.stop(1);
    let clock = Clock::start();
    let options = GcOptions { dry_run: true, ..GcOptions::default() };
    let report = store.collect(&options, &|_, _| ())?;
    let collect = clock.stop(1);
    let usage = store.usage();
    Ok(json!({
        "open": open, "list": list, "list_again": list_again, "show": show, "prune": prune, "would_stay": stay,
        "gc_dry_run": collect, "packs": usage.packs, "blocks": usage.blocks, "nodes": usage.nodes,
        "gc_points": report.points,
    }))
}

impl Maker {
    /// One more restore point, of the next VM in turn.
    fn commit(&mut self) -> Result<(), Error> {
        let vm = self.made % VMS;
        let before = self.trees.get(&vm).copied();
        let tree = self.tree(before.map(|(tree, _)| tree))?;
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let rounds = u32::try_from(self.made / VMS).map_err(|_| Error::Wrong("too many points".into()))?;
        let created = at + STEP * rounds + Duration::from_secs(vm);
        let point = RestorePoint {
            version: RestorePoint::VERSION,
            job: format!("job {}", self.made),
            job_name: Some("nightly".into()),
            run: format!("run {rounds}"),
            created: ads::timestamp(created),
            store: self.store.id(),
            pool: PointPool { uuid: "pool".into(), name: "pool".into() },
            vm: PointVm {
                uuid: format!("vm-{vm}"),
                name: format!("name of vm {vm}"),
                metadata: json!({"records": "x".repeat(METADATA)}),
            },
            disks: vec![PointDisk {
                vdi: format!("vdi-of-{vm}"),
                name: "disk".into(),
                kind: DiskKind::User,
                userdevice: 0,
                bootable: true,
                tree,
                tree_id: tree.id(self.store.id_key()),
                mode: DiskMode::Cbt,
                reason: "measured".into(),
                cause: "measured".into(),
                counts: wire::DiskCounts::default(),
                reference: None,
                base: before.map(|(_, point)| point),
                suspect: Vec::new(),
                bad: wire::BadRanges::default(),
            }],
            base: before.map(|(_, point)| point),
            quiesced: false,
            checkpoint: false,
        };
        let id = self.store.commit_point(&point)?;
        self.trees.insert(vm, (tree, id));
        self.made += 1;
        Ok(())
    }

    /// The next tree after `base`: a first one with every fourth block, then changes of some blocks.
    fn tree(&mut self, base: Option<Tree>) -> Result<Tree, Error> {
        let store = self.store.clone();
        let key = store.id_key().clone();
        let size = ByteCount::new(DISK_BLOCKS * blocks::BLOCK_SIZE);
        let mut builder = TreeBuilder::new(key.clone(), size, base)
            .map_err(|error| Error::Wrong(format!("no tree: {error}")))?;
        let mut fresh: Vec<(NodeId, Node)> = Vec::new();
        let mut emit = |id: NodeId, node: &Node| {
            fresh.push((id, node.clone()));
            Ok(())
        };
        let mut data = PackWriter::new(PackKind::Data, 1 << 20);
        let leaves = DISK_BLOCKS / FAN_OUT;
        let changed: Vec<u64> = match base {
            None => (0..leaves).collect(),
            Some(_) => vec![self.content % (leaves / 2), leaves / 2 + self.content % (leaves / 2)],
        };
        let step = if base.is_none() { 4 } else { (2 * FAN_OUT / CHANGED) as usize };
        for index in changed {
            let mut leaf = builder.base_leaf(index, &mut store.nodes(), &mut emit)?;
            for slot in (0..FAN_OUT as usize).step_by(step) {
                self.content += 1;
                let mut plain = vec![0; blocks::BLOCK_SIZE as usize];
                plain[..8].copy_from_slice(&self.content.to_le_bytes());
                plain[8..CONTENT].fill(1);
                let id = key.block_id(&plain);
                data.push(*id.as_bytes(), plain.len(), self.sealer.seal(&plain)?);
                leaf.set_block(slot, Some(id));
            }
            builder.put_leaf(index, &leaf, &mut store.nodes(), &mut emit)?;
        }
        let tree = builder.finish(&mut store.nodes(), &mut emit)?;
        let mut nodes = PackWriter::new(PackKind::Tree, 1 << 20);
        for (id, node) in &fresh {
            nodes.push(*id.as_bytes(), node.as_bytes().len(), self.sealer.seal(node.as_bytes())?);
        }
        for pack in [data.finish(), nodes.finish()] {
            self.store.add_pack(pack.id, &pack.bytes)?;
        }
        self.store.finish_tree(tree, base)?;
        Ok(tree)
    }
}
