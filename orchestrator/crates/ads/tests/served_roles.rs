//! What a server lets its clients do to a store, whatever they say of themselves.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{
    Backend, Depth, Error, ErrorKind, GcOptions, Lease, PointId, RestorePoint, Role, Scope, ServeLimits,
    Store, timestamp,
};
use seal::{PackKind, Tree};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use support::memory::Memory;
use support::served::Vault;
use support::{Packer, chain, disk, pack_disk, point, restore, store_disk};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn ago(age: Duration) -> String {
    timestamp(SystemTime::now() - age)
}

fn point_of(store: &Store, vm: &str, age: Duration, tree: Tree) -> RestorePoint {
    point(store, vm, &ago(age), &[tree])
}

fn lease(store: &Arc<Store>) -> Lease {
    store.lease("job", &[]).unwrap()
}

/// A backup by a client, as the orchestrator makes one.
fn backup(store: &Arc<Store>, vm: &str, age: Duration, bytes: &[u8]) -> Result<PointId, Error> {
    let lease = lease(store);
    let tree = store_disk(store, bytes)?;
    lease.commit(&point_of(store, vm, age, tree))
}

fn point_key(id: PointId) -> String {
    format!("points/{id}.json")
}

/// Names and bytes of everything but leases, which come and go.
fn contents(memory: &Memory) -> Vec<(String, Vec<u8>)> {
    memory.objects().into_iter().filter(|(key, _)| !key.starts_with("leases/")).collect()
}

fn denied<T: std::fmt::Debug>(outcome: Result<T, Error>, words: &str) {
    let error = outcome.expect_err(words);
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    assert!(chain(&error).contains(words), "{}", chain(&error));
}

#[test]
fn two_clients_fill_one_server_at_once_and_a_third_reads_it() {
    let vault = Vault::start();
    let (first, second) = (disk(1, 40 * 65536 + 512), disk(2, 30 * 65536));
    let (one, two) = (vault.open("one", Role::Orchestrator), vault.open("two", Role::Orchestrator));
    let ids = std::thread::scope(|scope| {
        let one = scope.spawn(|| backup(&one, "vm-1", Duration::ZERO, &first).unwrap());
        let two = scope.spawn(|| backup(&two, "vm-2", Duration::ZERO, &second).unwrap());
        [one.join().unwrap(), two.join().unwrap()]
    });
    // What one has put the other one has, where it looks again.
    let before = vault.store.usage().bytes;
    let third = vault.open("two-again", Role::Orchestrator);
    backup(&third, "vm-3", Duration::ZERO, &first).unwrap();
    let grown = vault.store.usage().bytes.get() - before.get();
    assert!(grown < 3000, "{grown} bytes more: a node or two, and no block");
    let reader = vault.open("reader", Role::Reader);
    let report = reader.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    for (id, bytes) in ids.iter().zip([&first, &second]) {
        let start = reader.point(*id).unwrap();
        let _lease = reader.lease("restore", &[&start]).unwrap();
        assert!(restore(&reader, &start.point.disks[0].tree).unwrap() == *bytes);
    }
    drop((one, two, third));
    assert_eq!(vault.store.points().unwrap().points.len(), 3);
}

/// Every kind of key, written anew, written again, and removed, by every role.
#[test]
fn every_role_does_what_it_may_to_every_kind_of_key_and_nothing_else() {
    const READ: &str = "only reads";
    const KINDS: &str = "and nothing else";
    const NOTHING: &str = "does not remove that";
    let memory = Arc::new(Memory::default());
    let vault = Vault::on(memory.clone(), false, ServeLimits::default());
    let (old, gone) = (disk(1, 9 * 65536), disk(2, 9 * 65536));
    let maker = vault.open("maker", Role::Orchestrator);
    let kept = backup(&maker, "vm", 2 * DAY, &old).unwrap();
    let pinned = backup(&maker, "pinned", 2 * DAY, &old).unwrap();
    maker.pin(pinned, "for the audit").unwrap();
    let others = maker.lease("another's", &[]).unwrap();
    let others_key = format!("leases/{}.json", others.id());
    let pack = vault.backend.list("packs/").unwrap().remove(0).key;
    memory
        .put(
            &format!("condemned/{}.json", others.id()),
            b"{\"version\":1,\"created\":0,\"packs\":[],\"leases\":null}",
        )
        .unwrap();
    let fixed = [
        "config.json".to_owned(),
        "floor.json".into(),
        "gc/generation.json".into(),
        format!("condemned/{}.json", others.id()),
        "index/x".into(),
        "tmp/x".into(),
        "new/x".into(),
        "packs/ab/abcdef".into(),
    ];
    let before = contents(&memory);
    for role in [Role::Reader, Role::Orchestrator] {
        let client = vault.client(&role.to_string(), role);
        let adds = role == Role::Orchestrator;
        for key in &fixed {
            denied(client.put(key, b"{}"), KINDS);
            denied(client.put_new(key, b"{}"), KINDS);
            denied(client.delete(key), NOTHING);
        }
        // A pack, a point and a pin that are there: other bytes, and none.
        let words = |adds_words| if adds { adds_words } else { READ };
        denied(client.put(&pack, b"other"), words("refused"));
        denied(client.delete(&pack), "removes no packs");
        denied(client.delete(&point_key(kept)), "removes no restore points");
        denied(client.put(&format!("pins/{pinned}.json"), b"{}"), words("only an admin changes"));
        denied(client.delete(&format!("pins/{pinned}.json")), "removes no pins");
        // Another's lease, and its counter.
        denied(client.put(&others_key, b"{}"), "refused");
        denied(client.delete(&others_key), "leases of others");
        let counter = others_key.replace(".json", ".counter");
        denied(client.put(&counter, b"9"), "leases of others");
        denied(client.delete(&counter), "leases of others");
        assert!(client.head(&others_key).unwrap().is_some());
        // What is there can be read, all of it.
        assert!(client.get("config.json", 10_000).is_ok() && client.head(&pack).unwrap().is_some());
        assert!(client.list("").unwrap().iter().any(|object| object.key == point_key(kept)));
    }
    assert_eq!(contents(&memory), before, "nothing has changed");
    let admin = vault.open("admin", Role::Admin);
    let door = vault.served.backend("admin");
    for key in &fixed {
        denied(door.put(key, b"{}"), KINDS);
        denied(door.delete(key), NOTHING);
    }
    denied(door.delete(&pack), "removes no packs");
    denied(door.delete(&others_key), "leases of others");
    denied(door.delete(&point_key(pinned)), "is pinned");
    let error = admin.collect(&GcOptions::default(), &|_, _| ()).unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    assert_eq!(contents(&memory), before, "nothing has changed");
    let own = backup(&admin, "by the admin", Duration::ZERO, &gone).unwrap();
    admin.pin(pinned, "another note").unwrap();
    assert_eq!(maker.pins().unwrap()[&pinned].note, "another note");
    assert!(admin.unpin(pinned).unwrap());
    for id in [pinned, own] {
        admin.remove_point(id).unwrap();
        door.delete(&point_key(id)).unwrap();
    }
    assert_eq!(admin.points().unwrap().points.iter().map(|stored| stored.id).collect::<Vec<_>>(), [kept]);
}

#[test]
fn what_does_not_fit_its_name_or_is_not_whole_is_refused() {
    let vault = Vault::start();
    let store = vault.open("client", Role::Orchestrator);
    let door = vault.served.backend("client");
    let bytes = disk(3, 9 * 65536);
    let packed = pack_disk(store.id_key(), &bytes, None, &mut |_| false);
    let pack = &packed.data[0];
    let key = |id: seal::PackId| format!("packs/{}/{id}", &id.to_string()[..2]);
    // The bytes of another pack, a flipped one, a cut one, none.
    let mut flipped = pack.bytes.to_vec();
    flipped[100] ^= 1;
    for wrong in [&packed.nodes[0].bytes[..], &flipped, &pack.bytes[..pack.bytes.len() - 1], b""] {
        denied(door.put(&key(pack.id), wrong), "is refused");
    }
    // A name that fits, and no structure; a structure, and a block of another name; zeros.
    let no_pack = seal::PackId::of(b"no pack");
    denied(door.put(&key(no_pack), b"no pack"), "is refused");
    for (id, plain) in
        [([7; 32], vec![1; 65536]), (*store.id_key().block_id(&[0; 65536]).as_bytes(), vec![0; 65536])]
    {
        let mut packer = Packer::new(PackKind::Data, store.id_key());
        packer.push(id, &plain);
        let liar = packer.finish().remove(0);
        denied(door.put(&key(liar.id), &liar.bytes), "is refused");
    }
    assert_eq!(vault.store.usage().packs, 0);
    // A point whose blocks are missing: nodes are there, one pack of blocks is not.
    let lease = lease(&store);
    for pack in packed.data.iter().skip(1).chain(&packed.nodes) {
        door.put(&key(pack.id), &pack.bytes).unwrap();
    }
    let send = |point: &RestorePoint| {
        let bytes = serde_json::to_vec_pretty(point).unwrap();
        door.put(&format!("points/{}.json", blake3::hash(&bytes).to_hex()), &bytes)
    };
    let good = point_of(&store, "vm", Duration::ZERO, packed.tree);
    denied(send(&good), "is not in the store");
    door.put(&key(pack.id), &pack.bytes).unwrap();
    let mut foreign = good.clone();
    foreign.store = uuid::Uuid::new_v4();
    denied(send(&foreign), "it belongs to store");
    let mut early = good.clone();
    early.created = timestamp(SystemTime::now() + Duration::from_secs(600));
    denied(send(&early), "made in the future");
    let mut timeless = good.clone();
    timeless.created = "soon".into();
    denied(send(&timeless), "is not a time");
    let mut renamed = good.clone();
    renamed.disks[0].tree_id = packed.tree.id(&seal::IdKey::new(&[9; 32]));
    denied(send(&renamed), "the tree has the id");
    let mut newer = good.clone();
    newer.version += 1;
    denied(send(&newer), "is not known to this program");
    denied(door.put(&point_key("ab".repeat(32).parse().unwrap()), b"{}"), "its bytes have the id");
    assert_eq!(vault.store.points().unwrap().points.len(), 0);
    send(&good).unwrap();
    send(&good).unwrap();
    drop(lease);
    assert_eq!(vault.store.points().unwrap().points.len(), 1);
    assert!(restore(&vault.store, &packed.tree).unwrap() == bytes);
}

#[test]
fn a_point_needs_a_lease_and_is_taken_back_only_where_that_was_lost() {
    let vault = Vault::start();
    let store = vault.open("client", Role::Orchestrator);
    let tree = store_disk(&store, &disk(4, 5 * 65536)).unwrap();
    denied(store.commit_point(&point_of(&store, "vm", Duration::ZERO, tree)), "take one first");
    // One who holds a lease of somebody else's has none.
    let other = vault.open("other", Role::Orchestrator);
    let held = lease(&other);
    denied(store.commit_point(&point_of(&store, "vm", Duration::ZERO, tree)), "take one first");
    drop(held);
    let own = lease(&store);
    let id = own.commit(&point_of(&store, "vm", Duration::ZERO, tree)).unwrap();
    let door = vault.served.backend("client");
    denied(door.delete(&point_key(id)), "removes no restore points");
    drop(own);
    denied(door.delete(&point_key(id)), "removes no restore points");
    // A collector takes a lease for dead: nothing can be committed, and what was just put can be taken back by who put it.
    let own = lease(&store);
    let second = own.commit(&point_of(&store, "vm", 2 * DAY, tree)).unwrap();
    vault.backend.delete(&format!("leases/{}.json", own.id())).unwrap();
    let error = own.commit(&point_of(&store, "vm", 3 * DAY, tree)).unwrap_err();
    assert!(matches!(error, Error::LeaseLost { .. }), "{error:?}");
    denied(vault.served.backend("other").delete(&point_key(second)), "removes no restore points");
    denied(door.delete(&point_key(id)), "removes no restore points");
    door.delete(&point_key(second)).unwrap();
    assert_eq!(vault.store.points().unwrap().points.len(), 1);
    // Leases that nobody can have are refused.
    let lie = format!("leases/{}.json", uuid::Uuid::new_v4());
    let stranger = tree.id(store.id_key());
    let text = format!(
        "{{\"version\":1,\"owner\":\"x\",\"created\":\"{}\",\"trees\":[{{\"size\":1,\"root\":\"{stranger}\"}}]}}",
        ago(DAY)
    );
    denied(door.put(&lie, text.as_bytes()), "in no restore point");
    denied(door.put(&lie, &vec![b' '; 2 << 20]), "over the limit");
}

#[test]
fn nothing_is_removed_below_the_floor_nor_where_a_server_only_adds() {
    let vault = Vault::start();
    let admin = vault.open("admin", Role::Admin);
    vault.store.raise_floor(7).unwrap();
    assert!(matches!(vault.store.raise_floor(6), Err(Error::FloorStands { found: 7, wanted: 6, .. })));
    let bytes = disk(5, 3 * 65536);
    let old = backup(&admin, "old", 30 * DAY, &bytes).unwrap();
    // Nothing is newer: as far as backups tell, no time has passed.
    assert!(matches!(admin.remove_point(old), Err(Error::FloorHolds { days: 7, .. })));
    let young = backup(&admin, "young", 2 * DAY, &bytes).unwrap();
    let door = vault.served.backend("admin");
    denied(door.delete(&point_key(young)), "keeps everything for 7 days");
    // Not even on the server's machine.
    assert!(matches!(vault.store.remove_point(young), Err(Error::FloorHolds { .. })));
    admin.remove_point(old).unwrap();
    let standing = door.standing().unwrap().unwrap();
    assert_eq!((standing.role, standing.append_only, standing.keep_at_least_days), (Role::Admin, false, 7));

    let only_adds = Vault::on(Arc::new(Memory::default()), true, ServeLimits::default());
    let admin = only_adds.open("admin", Role::Admin);
    let id = backup(&admin, "vm", 30 * DAY, &bytes).unwrap();
    admin.pin(id, "stays").unwrap();
    let door = only_adds.served.backend("admin");
    denied(door.delete(&point_key(id)), "removes nothing");
    denied(door.delete(&format!("pins/{id}.json")), "removes nothing");
    denied(door.put(&format!("pins/{id}.json"), b"{\"note\":\"other\"}"), "pinned already");
    assert!(only_adds.backend.list("leases/").unwrap().is_empty(), "leases are given back all the same");
}

#[test]
fn keys_that_are_not_known_or_not_any_more_are_refused_with_what_to_do() {
    let vault = Vault::start();
    let error = Store::open_on(vault.served.backend("stranger")).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{}", chain(&error));
    let key = vault.served.identity("stranger").fingerprint();
    let wanted = format!("abd serve client add NAME --role orchestrator --key {key}");
    assert!(chain(&error).contains(&wanted), "{}", chain(&error));
    let door = vault.client("client", Role::Orchestrator);
    door.get("config.json", 10_000).unwrap();
    vault.known.lock().unwrap().clear();
    denied(door.get("config.json", 10_000), "does not know the key");
}

/// Two servers over one place, as in object storage: each takes what rests on what the other one took, and each knows
/// whose lease is whose.
#[test]
fn two_servers_share_one_store() {
    let first = Vault::start();
    let second = Vault::over(first.backend.clone(), false, ServeLimits::default());
    let bytes = disk(8, 20 * 65536);
    let here = first.open("client", Role::Orchestrator);
    let there = second.open("other", Role::Orchestrator);
    // Packs through one, the point through the other, by a client who has a lease there.
    let _here = lease(&here);
    let tree = store_disk(&here, &bytes).unwrap();
    let held = lease(&there);
    let bytes_of = serde_json::to_vec_pretty(&point_of(&here, "vm", Duration::ZERO, tree)).unwrap();
    let key = format!("points/{}.json", blake3::hash(&bytes_of).to_hex());
    second.served.backend("other").put(&key, &bytes_of).unwrap();
    assert_eq!(first.store.points().unwrap().points.len(), 1);
    first.known.lock().unwrap().push(second.known.lock().unwrap()[0].clone());
    let door = first.served.backend("client");
    denied(door.delete(&format!("leases/{}.json", held.id())), "leases of others");
    // A lease that was taken at one is given back at the other.
    let id = held.id();
    let identity = second.served.dir.path().join("other.pem");
    std::fs::copy(identity, first.served.dir.path().join("other.pem")).unwrap();
    first.served.backend("other").delete(&format!("leases/{id}.json")).unwrap();
    assert!(second.backend.head(&format!("leases/{id}.json")).unwrap().is_none());
}

/// Points are removed and collected on the server while a client, over the network, relies on what they had.
#[test]
fn a_collection_on_the_server_takes_nothing_from_a_job_of_a_client() {
    let vault = Vault::start();
    let client = vault.open("client", Role::Orchestrator);
    let (bytes, other) = (disk(6, 40 * 65536), disk(7, 20 * 65536));
    let first = backup(&client, "vm", 2 * DAY, &bytes).unwrap();
    let second = backup(&client, "other", 2 * DAY, &other).unwrap();
    let start = client.point(first).unwrap();
    let job = client.lease("job", &[&start]).unwrap();
    // The job is told that the blocks are there; then the point goes that they belong to.
    let tree = store_disk(&client, &bytes).unwrap();
    let root = vault.store.remove_point(first).and_then(|()| vault.store.remove_point(second));
    root.unwrap();
    let collector = vault.store.clone();
    let collect = || collector.collect(&GcOptions::default(), &|_, _| ()).unwrap();
    let report = collect();
    assert!(report.removed == 0 && report.waiting > 0, "{report:?}");
    assert!(report.waits_for[0].contains("job of client"), "{report:?}");
    let id = job.commit(&point_of(&client, "vm", Duration::ZERO, tree)).unwrap();
    drop(job);
    let report = collect();
    assert!(report.removed > 0, "{report:?}");
    let found = vault.store.point(id).unwrap().point.disks[0].tree;
    assert!(restore(&client, &found).unwrap() == bytes);
    // What was collected comes again, through a server that remembers it.
    backup(&client, "other", Duration::ZERO, &other).unwrap();
    let fresh = Store::open_on(vault.backend.clone()).unwrap();
    let report = fresh.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
}
