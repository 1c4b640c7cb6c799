//! The records by which collections and jobs know of each other, and pins: small files in a store that another machine's
//! process, or nobody we know, has written.

use super::tagged;
use ads::{Depth, GcOptions, Scope, Store};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A store with points, and nothing that none of them needs.
const GOLDEN: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../orchestrator/crates/ads/tests/fixtures/golden/store");
/// The name of the lease and the list.
const ID: &str = "4bd9a1a4-6f0f-4d64-bd6e-2f4c0d1f9f10";
/// Long after anything that a record says.
const NOW_S: u64 = 4_000_000_000;
/// Where records are, which are gone after each input.
const RECORDS: [&str; 4] = ["condemned", "leases", "gc", "pins"];

/// A store, one for each thread.
struct Place {
    dir: tempfile::TempDir,
    /// Packs and points: all of them are needed.
    needed: BTreeSet<PathBuf>,
}

thread_local! {
    static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) };
}

/// One record, which a collection then meets. The first byte says which: a list of condemned packs, a lease, a lease's
/// counter, the generation, a pin.
pub fn collection_records(data: &[u8]) {
    let Some((tag, bytes)) = tagged(data) else { return };
    PLACE.with_borrow_mut(|place| {
        let place = place.get_or_insert_with(Place::new);
        match tag % 5 {
            0 => place.write(&format!("condemned/{ID}.json"), bytes),
            1 => {
                place.write(&format!("leases/{ID}.json"), bytes);
                place.write(&format!("leases/{ID}.counter"), b"3");
            }
            2 => {
                place.write(&format!("leases/{ID}.json"), &some_lease());
                place.write(&format!("leases/{ID}.counter"), bytes);
            }
            3 => place.write("gc/generation.json", bytes),
            _ => {
                let point = place.a_point();
                place.write(&format!("pins/{point}.json"), bytes);
            }
        }
        place.collect();
        place.clear();
    });
}

/// The record of a lease that starts from nothing.
pub(crate) fn some_lease() -> Vec<u8> {
    br#"{"version":1,"owner":"job","created":"2026-11-03T10:00:00Z","trees":[]}"#.to_vec()
}

/// The ids of the store's packs.
pub(crate) fn golden_packs() -> Vec<String> {
    let packs = files_below(&Path::new(GOLDEN).join("packs"));
    packs.iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect()
}

impl Place {
    fn new() -> Self {
        let shared_memory = Path::new("/dev/shm");
        let dir = match shared_memory.is_dir() {
            true => tempfile::tempdir_in(shared_memory),
            false => tempfile::tempdir(),
        };
        let place = Self { dir: dir.expect("a directory can be made"), needed: BTreeSet::new() };
        for path in files_below(Path::new(GOLDEN)) {
            let name = path.strip_prefix(GOLDEN).expect("it is below it");
            let bytes = fs::read(&path).expect("the fixture can be read");
            place.write(name.to_str().expect("plain names"), &bytes);
        }
        place.clear();
        // What no point needs goes now.
        place.collect();
        place.clear();
        let needed = place.contents();
        assert!(needed.len() > 2, "points and packs");
        Self { needed, ..place }
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a name")).expect("a directory can be made");
        fs::write(path, bytes).expect("a file can be written");
    }

    fn a_point(&self) -> String {
        let points = self.needed.iter().filter(|path| path.starts_with("points"));
        let name = points.filter_map(|path| path.file_stem()).next().expect("there is one");
        name.to_str().expect("plain names").to_owned()
    }

    fn contents(&self) -> BTreeSet<PathBuf> {
        let below = |room: &str| files_below(&self.dir.path().join(room));
        let all = below("points").into_iter().chain(below("packs"));
        all.map(|path| path.strip_prefix(self.dir.path()).expect("it is below it").to_owned()).collect()
    }

    /// Whatever a record says, what a point needs stays.
    fn collect(&self) {
        let store = match Store::open(self.dir.path()) {
            Ok(store) => Arc::new(store),
            Err(error) => return assert!(!error.to_string().is_empty()),
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_S);
        let options = GcOptions { sparse_percent: 0, now, only_here: true, ..GcOptions::default() };
        for dry_run in [true, false] {
            if let Err(error) = store.collect(&GcOptions { dry_run, ..options }, &|_, _| {}) {
                assert!(!error.to_string().is_empty());
            }
        }
        let _ = store.pins().expect("the directory can be listed");
        let points = store.points().expect("the directory can be listed");
        assert!(points.damaged.is_empty());
        let _ = store.verify(&Scope::All, Depth::Structure, &|_| {});
        let left = self.contents();
        assert!(self.needed.is_subset(&left), "removed: {:?}", self.needed.difference(&left));
    }

    fn clear(&self) {
        for room in RECORDS {
            let _ = fs::remove_dir_all(self.dir.path().join(room));
        }
    }
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}
