//! What a crash may leave: every prefix of the recorded operations, in every way that a file system allows.
//!
//! Recorded are the operations of [`FileOps`]. The model knows what the kernel has and what the disk has: a file's bytes
//! are on the disk after a sync of the file, a name after a sync of its directory. After a crash any of these may be seen:
//!
//! * the process is killed: everything that was done, and of the last write only a part;
//! * the power fails: of what was not synced nothing, or names without bytes, or any one of the names.
//!
//! A scenario is a function over an open recorder; what it tells with [`Recorder::committed`] must be whole in every
//! later state, and what it tells with [`Recorder::removed`] need not be there any more.

use super::memory::Memory;
use super::restore;
use ads::{Depth, FileOps, LocalFiles, PointId, Scope, Store};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// One recorded step.
#[derive(Clone, Debug)]
pub enum Step {
    CreateDir(PathBuf),
    CreateFile(PathBuf),
    Write(PathBuf, Vec<u8>),
    SyncFile(PathBuf),
    Rename(PathBuf, PathBuf),
    SyncDir(PathBuf),
    Remove(PathBuf),
    /// The caller was told that this point exists; its first disk has these bytes.
    Committed(PointId, Arc<Vec<u8>>),
    /// The caller was told that it is gone, or asked for it.
    Removed(PointId),
    /// From here on objects are damaged where it costs nothing, or not any more: every point reads, and `verify` may complain.
    Hurt(bool),
}

/// Does everything, and remembers it.
#[derive(Debug, Default)]
pub struct Recorder {
    steps: Mutex<Vec<Step>>,
    /// Where each file was made, by device and inode.
    paths: Mutex<BTreeMap<(u64, u64), PathBuf>>,
}

impl Recorder {
    pub fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap().clone()
    }

    pub fn committed(&self, point: PointId, disk: &[u8]) {
        self.push(Step::Committed(point, Arc::new(disk.to_vec())));
    }

    pub fn removed(&self, point: PointId) {
        self.push(Step::Removed(point));
    }

    pub fn hurt(&self, hurt: bool) {
        self.push(Step::Hurt(hurt));
    }

    fn push(&self, step: Step) {
        self.steps.lock().unwrap().push(step);
    }

    fn path_of(&self, file: &File) -> PathBuf {
        let about = file.metadata().unwrap();
        self.paths.lock().unwrap()[&(about.dev(), about.ino())].clone()
    }
}

impl FileOps for Recorder {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        LocalFiles.create_dir(path)?;
        self.push(Step::CreateDir(path.to_owned()));
        Ok(())
    }

    fn create_file(&self, path: &Path) -> io::Result<File> {
        let file = LocalFiles.create_file(path)?;
        let about = file.metadata()?;
        self.paths.lock().unwrap().insert((about.dev(), about.ino()), path.to_owned());
        self.push(Step::CreateFile(path.to_owned()));
        Ok(file)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        LocalFiles.write(file, bytes)?;
        self.push(Step::Write(self.path_of(file), bytes.to_vec()));
        Ok(())
    }

    fn sync_file(&self, file: &File) -> io::Result<()> {
        LocalFiles.sync_file(file)?;
        self.push(Step::SyncFile(self.path_of(file)));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        LocalFiles.rename(from, to)?;
        self.push(Step::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        LocalFiles.sync_dir(path)?;
        self.push(Step::SyncDir(path.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        LocalFiles.remove(path)?;
        self.push(Step::Remove(path.to_owned()));
        Ok(())
    }
}

/// What the kernel and the disk have.
#[derive(Clone, Default)]
struct World {
    /// Bytes as written, and as synced.
    files: Vec<(Vec<u8>, Vec<u8>)>,
    /// Names that the kernel has; `None` is a directory.
    seen: BTreeMap<PathBuf, Option<usize>>,
    /// Names that the disk has.
    kept: BTreeMap<PathBuf, Option<usize>>,
}

/// A directory's content after a crash.
type State = BTreeMap<PathBuf, Vec<u8>>;

impl World {
    fn apply(&mut self, step: &Step) {
        match step {
            Step::CreateDir(path) => drop(self.seen.insert(path.clone(), None)),
            Step::CreateFile(path) => {
                self.files.push((Vec::new(), Vec::new()));
                self.seen.insert(path.clone(), Some(self.files.len() - 1));
            }
            Step::Write(path, bytes) => {
                let file = self.seen[path].unwrap();
                self.files[file].0.extend(bytes);
            }
            Step::SyncFile(path) => {
                let file = self.seen[path].unwrap();
                self.files[file].1 = self.files[file].0.clone();
            }
            Step::Rename(from, to) => {
                let file = self.seen.remove(from).unwrap();
                self.seen.insert(to.clone(), file);
            }
            Step::SyncDir(dir) => {
                self.kept.retain(|path, _| path.parent() != Some(dir));
                let below = self.seen.iter().filter(|(path, _)| path.parent() == Some(dir));
                self.kept.extend(below.map(|(path, file)| (path.clone(), *file)));
            }
            Step::Remove(path) => drop(self.seen.remove(path)),
            Step::Committed(..) | Step::Removed(..) | Step::Hurt(_) => {}
        }
    }

    /// Everything that may be found after a crash now. `torn` is what the last step wrote.
    fn crashes(&self, torn: Option<(&Path, usize)>) -> Vec<State> {
        let written = |file: usize| self.files[file].0.clone();
        let synced = |file: usize| self.files[file].1.clone();
        let zeros = |file: usize| match self.files[file].0 == self.files[file].1 {
            true => self.files[file].1.clone(),
            false => vec![0; self.files[file].0.len()],
        };
        let mut states = vec![
            visible(&self.seen, &written),
            visible(&self.kept, &synced),
            visible(&self.seen, &synced),
            visible(&self.seen, &zeros),
        ];
        if let Some((path, size)) = torn {
            for lost in [size / 2, 1, size] {
                let mut state = visible(&self.seen, &written);
                if let Some(bytes) = state.get_mut(path) {
                    bytes.truncate(bytes.len() - lost);
                }
                states.push(state);
            }
        }
        // One name of those that were not synced came to the disk, or one that was removed stayed.
        let names: BTreeSet<&PathBuf> = self.seen.keys().chain(self.kept.keys()).collect();
        for name in names {
            let (seen, kept) = (self.seen.get(name), self.kept.get(name));
            if seen == kept {
                continue;
            }
            let mut one = self.kept.clone();
            match seen {
                Some(file) => drop(one.insert(name.clone(), *file)),
                None => drop(one.remove(name)),
            }
            states.push(visible(&one, &synced));
        }
        states
    }
}

/// The files whose directories are there too.
fn visible(names: &BTreeMap<PathBuf, Option<usize>>, bytes: &dyn Fn(usize) -> Vec<u8>) -> State {
    let top = names.keys().map(|path| path.components().count()).min().unwrap_or(0);
    let reachable = |path: &Path| {
        let mut above = path.ancestors().skip(1).filter(|dir| dir.components().count() >= top);
        above.all(|dir| names.contains_key(dir))
    };
    let files = names.iter().filter_map(|(path, file)| Some((path, (*file)?)));
    files.filter(|(path, _)| reachable(path)).map(|(path, file)| (path.clone(), bytes(file))).collect()
}

/// What a matrix did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    pub steps: usize,
    /// States after a crash that differ from each other.
    pub states: usize,
}

/// Tries every state after every step, and gives the first that is not as it must be.
pub fn matrix(root: &Path, steps: &[Step]) -> Result<Tried, String> {
    matrix_of(root, steps, &Ok)
}

/// Opens a store that is encrypted.
pub type Unlock<'a> = &'a dyn Fn(Store) -> Result<Store, String>;

/// [`matrix`] of a store that must be opened with `unlock` in every state in which it is one.
pub fn matrix_of(root: &Path, steps: &[Step], unlock: Unlock<'_>) -> Result<Tried, String> {
    let (mut world, mut seen, mut tried) = (World::default(), HashSet::new(), Tried::default());
    let mut promised: BTreeMap<PointId, Arc<Vec<u8>>> = BTreeMap::new();
    let mut known: BTreeMap<PointId, Arc<Vec<u8>>> = BTreeMap::new();
    for step in steps {
        if let Step::Committed(point, bytes) = step {
            known.insert(*point, bytes.clone());
        }
    }
    let mut hurt = false;
    for (at, step) in steps.iter().enumerate() {
        world.apply(step);
        match step {
            Step::Hurt(now) => hurt = *now,
            Step::Committed(point, bytes) => drop(promised.insert(*point, bytes.clone())),
            Step::Removed(point) => drop(promised.remove(point)),
            _ => {}
        }
        tried.steps += 1;
        let torn = match step {
            Step::Write(path, bytes) => Some((path.as_path(), bytes.len())),
            _ => None,
        };
        for state in world.crashes(torn) {
            let mut hasher = blake3::Hasher::new();
            for (path, bytes) in &state {
                hasher.update(path.as_os_str().as_encoded_bytes()).update(&[0]);
                hasher.update(&bytes.len().to_le_bytes()).update(bytes);
            }
            let ids: Vec<PointId> = promised.keys().copied().collect();
            if !seen.insert((hasher.finalize(), ids, hurt)) {
                continue;
            }
            tried.states += 1;
            check(root, &state, &promised, &known, hurt, unlock).map_err(|reason| {
                format!(
                    "after step {at}, {}: {reason}",
                    format!("{step:?}").chars().take(200).collect::<String>()
                )
            })?;
        }
    }
    Ok(tried)
}

type Disks = BTreeMap<PointId, Arc<Vec<u8>>>;

/// A store in that state opens, verifies unless it was hurt, and has what was promised, whole.
fn check(
    root: &Path,
    state: &State,
    promised: &Disks,
    known: &Disks,
    hurt: bool,
    unlock: Unlock<'_>,
) -> Result<(), String> {
    let objects = state
        .iter()
        .map(|(path, bytes)| (path.strip_prefix(root).unwrap().to_str().unwrap().to_owned(), bytes.clone()));
    let store = match Store::open_on(Arc::new(Memory::of(objects))) {
        Ok(store) => unlock(store)?,
        Err(ads::Error::NotAStore { .. }) if promised.is_empty() => return Ok(()),
        Err(error) => return Err(format!("it does not open: {error}")),
    };
    let report = store.verify(&Scope::All, Depth::EveryByte, &|_| ()).map_err(|error| error.to_string())?;
    if let Some(finding) = report.findings.first().filter(|_| !hurt) {
        return Err(finding.to_string());
    }
    if let Some(pack) = store.skipped_packs().first() {
        return Err(format!("{} is not used: {}", pack.path.display(), pack.reason));
    }
    let there = store.points().map_err(|error| error.to_string())?.points;
    if let Some(lost) = promised.keys().find(|id| !there.iter().any(|point| point.id == **id)) {
        return Err(format!("point {lost} is lost"));
    }
    for stored in there {
        let bytes = known.get(&stored.id).ok_or("a point is there that was never made")?;
        let disk = restore(&store, &stored.point.disks[0].tree).map_err(|error| error.to_string())?;
        if disk != **bytes {
            return Err(format!("point {} has other bytes", stored.id));
        }
    }
    Ok(())
}
