//! A store in a directory of a file system, local or mounted.
//!
//! Promises: a file appears under its name only whole and synced; a write that fails leaves nothing behind but, when the
//! process dies, a file under `tmp/`. Never: reads or judges content, links files, or maps them into memory.
//!
//! `object_store` has a local backend too, which syncs if told to. It is not used: it takes a directory that is there for
//! durable, although who made it may have died before syncing the one above; it does not sync what it deletes; what a
//! dead writer left beside the objects stays; and all of it goes through a runtime's threads, which the path from the
//! socket to the disk does without.
//!
//! # Mounts
//!
//! On file systems that several machines can mount, a lock is seen by this machine only. So `tmp/` is cleared there of
//! files that are older than any write can be, and not of all. SMB clients of older kernels cannot sync a directory and
//! say so with `EINVAL`: there the server has the name when `rename` returns. All names are lower case and differ in
//! more than their case.

use super::files::{FileOps, LocalFiles};
use super::{Backend, CONFIG, KEYS, Listed, Object, PACKS, POINTS, Presence, TMP};
use crate::Error;
use rustix::fs::{FlockOperation, flock};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

/// How long [`LocalBackend::enter`] waits for somebody who has the store for himself. A cleaner of `tmp/` needs
/// milliseconds.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Pause between two tries.
const LOCK_RETRY: Duration = Duration::from_millis(50);
/// No write of a pack takes this long: what is older in a shared `tmp/` has no writer any more. Clocks of machines that
/// share a mount differ by less.
const SHARED_LEFTOVER_AGE: Duration = Duration::from_secs(24 * 3600);

/// `f_type` of file systems that several machines can use at once: NFS, SMB (three generations), FUSE (sshfs, rclone,
/// glusterfs), Ceph, 9p, Lustre, GFS2, OCFS2, AFS, GPFS. From Linux's `magic.h` and the file systems' own sources.
const SHARED_FILE_SYSTEMS: [i64; 13] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x6573_5546,
    0x00c3_6400,
    0x0102_1997,
    0x0bd0_0bd0,
    0x0116_1970,
    0x7461_636f,
    0x5346_414f,
    0x6b41_4653,
    0x4750_4653,
];

/// A store in a directory.
#[derive(Clone, Debug)]
pub struct LocalBackend {
    dir: PathBuf,
    ops: Arc<dyn FileOps>,
    /// Directories whose names are known to be on the disk.
    synced: Arc<Mutex<HashSet<PathBuf>>>,
    /// Whether other machines may use the directory too.
    shared: Arc<OnceLock<bool>>,
}

/// The store's lock; held as long as this lives. None where the file system has no locks.
#[derive(Debug)]
struct Lock {
    _dir: File,
}

impl Object for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl Backend for LocalBackend {
    fn root(&self) -> PathBuf {
        self.dir.clone()
    }

    /// `tmp/`, sync, rename, sync of its directory. On an error the name is untouched, unless only the last sync failed.
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        let target = self.path(key);
        let above = parent(&target);
        self.ensure_dir(&self.path(TMP))?;
        self.ensure_dir(above)?;
        let part = self.path(TMP).join(uuid::Uuid::new_v4().simple().to_string());
        if let Err(error) = self.write_part(&part, bytes).and_then(|()| {
            self.ops.rename(&part, &target).map_err(|error| self.error("rename to", &target, error))
        }) {
            // A part that cannot be removed either is removed by the next one who opens the store alone.
            let _ = self.ops.remove(&part);
            return Err(error);
        }
        self.sync_dir(above)
    }

    fn get(&self, key: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let path = self.path(key);
        let failed = |error| self.error("read", &path, error);
        let file = File::open(&path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len().min(limit);
        // One byte more, so that the end is seen without another growth of the memory.
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0).saturating_add(1));
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > limit {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        Ok(bytes)
    }

    fn open(&self, key: &str) -> Result<Arc<dyn Object>, Error> {
        let path = self.path(key);
        File::open(&path)
            .map(|file| Arc::new(file) as Arc<dyn Object>)
            .map_err(|error| self.error("open", &path, error))
    }

    fn head(&self, key: &str) -> Result<Option<u64>, Error> {
        let path = self.path(key);
        match fs::metadata(&path) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error("look at", &path, error)),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        let mut found = Vec::new();
        self.list_below(prefix, &mut found)?;
        found.sort();
        Ok(found)
    }

    fn may_be_stale(&self) -> bool {
        self.is_shared()
    }

    fn cache_dir(&self) -> Option<PathBuf> {
        let writable = rustix::fs::access(&self.dir, rustix::fs::Access::WRITE_OK).is_ok();
        (writable && !self.is_shared()).then(|| self.dir.clone())
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        let path = self.path(key);
        match self.ops.remove(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.error("remove", &path, error)),
        }
        match self.sync_dir(parent(&path)) {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome,
        }
    }

    fn is_vacant(&self) -> Result<bool, Error> {
        match fs::read_dir(&self.dir) {
            Ok(mut items) => Ok(items.next().is_none()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(self.error("list", &self.dir, error)),
        }
    }

    /// Makes the directories. Only those of an `init` that did not come to its end may be there.
    fn prepare(&self) -> Result<(), Error> {
        let exists = |reason: String| Err(Error::Exists { dir: self.dir.clone(), reason });
        self.ensure_dir(&self.dir)?;
        if self.head(CONFIG)?.is_some() {
            return exists("it holds a store already".into());
        }
        let ours = [self.path(PACKS), self.path(POINTS), self.path(TMP)];
        for path in self.entries(&self.dir)? {
            // The lost+found of a fresh file system's root is not ours to judge; a key that opens nothing is no obstacle.
            let is_key = path == self.path(KEYS);
            if path.file_name().is_some_and(|name| name == "lost+found") || path == ours[2] || is_key {
                continue;
            }
            if !ours.contains(&path) || !self.entries(&path)?.is_empty() {
                return exists(format!("it is not empty, it holds {}", path.display()));
            }
        }
        ours.iter().try_for_each(|below| self.ensure_dir(below))
    }

    /// Takes the lock for sharing, or for this process alone. Who finds himself alone first clears `tmp/` of what dead
    /// writers left.
    fn enter(&self, alone: bool) -> Result<Presence, Error> {
        if alone {
            self.ensure_dir(&self.dir)?;
        }
        let dir = File::open(&self.dir).map_err(|error| self.error("open", &self.dir, error))?;
        let deadline = Instant::now() + LOCK_WAIT;
        let first = self.try_lock(&dir, FlockOperation::NonBlockingLockExclusive)?;
        if alone {
            return match first {
                true => Ok(Box::new(Lock { _dir: dir })),
                false => Err(Error::Busy { dir: self.dir.clone() }),
            };
        }
        if first {
            self.clear_tmp();
        }
        // From exclusive to shared is not atomic, which is harmless: whoever comes between finds no file of ours.
        while !self.try_lock(&dir, FlockOperation::NonBlockingLockShared)? {
            if Instant::now() >= deadline {
                return Err(Error::Busy { dir: self.dir.clone() });
            }
            std::thread::sleep(LOCK_RETRY);
        }
        Ok(Box::new(Lock { _dir: dir }))
    }
}

impl LocalBackend {
    /// The directory `dir`, which need not exist yet.
    pub fn new(dir: &Path) -> Self {
        Self::with_ops(dir, Arc::new(LocalFiles))
    }

    /// [`new`](Self::new) with other writing operations.
    pub fn with_ops(dir: &Path, ops: Arc<dyn FileOps>) -> Self {
        Self { dir: dir.to_owned(), ops, synced: Arc::default(), shared: Arc::default() }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.dir.join(key.trim_end_matches('/'))
    }

    /// An error of an operation on `path`.
    fn error(&self, what: &'static str, path: &Path, source: io::Error) -> Error {
        Error::io(what, path, &self.dir, source)
    }

    /// Makes a directory where it is missing, and syncs the one above it. One that is there may have been made a
    /// moment ago by somebody who died before the sync, or has not come to it: its name counts as durable
    /// only after this process synced it once.
    fn ensure_dir(&self, path: &Path) -> Result<(), Error> {
        let locked = "no panic while the set is locked";
        if self.synced.lock().expect(locked).contains(path) {
            return Ok(());
        }
        match self.ops.create_dir(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(self.error("create directory", path, error)),
        }
        match path.parent().filter(|above| !above.as_os_str().is_empty()) {
            Some(above) => self.sync_dir(above)?,
            None => self.sync_dir(Path::new("."))?,
        }
        self.synced.lock().expect(locked).insert(path.to_owned());
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> Result<(), Error> {
        match self.ops.sync_dir(path) {
            Err(error) if is_no_such_operation(&error) && self.is_shared() => Ok(()),
            outcome => outcome.map_err(|error| self.error("sync directory", path, error)),
        }
    }

    fn write_part(&self, part: &Path, bytes: &[u8]) -> Result<(), Error> {
        let mut file = self.ops.create_file(part).map_err(|error| self.error("create", part, error))?;
        self.ops.write(&mut file, bytes).map_err(|error| self.error("write", part, error))?;
        self.ops.sync_file(&file).map_err(|error| self.error("sync", part, error))
    }

    /// The files below a directory, and below its directories. What lies deeper than an object can is given as it is.
    fn list_below(&self, prefix: &str, found: &mut Vec<Listed>) -> Result<(), Error> {
        let depth = prefix.bytes().filter(|byte| *byte == b'/').count();
        for path in self.entries(&self.path(prefix))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let key = format!("{prefix}{name}");
            let about = match fs::metadata(&path) {
                Ok(about) => about,
                // A file under tmp/ may get its name while we look.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(self.error("look at", &path, error)),
            };
            match about.is_dir() && depth < 2 {
                true => self.list_below(&format!("{key}/"), found)?,
                false => found.push(Listed { key, size: about.len() }),
            }
        }
        Ok(())
    }

    /// The entries of a directory; none where it is missing.
    fn entries(&self, dir: &Path) -> Result<Vec<PathBuf>, Error> {
        let failed = |error| self.error("list", dir, error);
        let found = match fs::read_dir(dir) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        found.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>().map_err(failed)
    }

    fn try_lock(&self, dir: &File, how: FlockOperation) -> Result<bool, Error> {
        match flock(dir, how).map_err(io::Error::from) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            // A mount without locks: the store needs none to stay whole.
            Err(error) if is_no_such_operation(&error) && self.is_shared() => Ok(true),
            Err(error) => Err(self.error("lock", &self.dir, error)),
        }
    }

    fn is_shared(&self) -> bool {
        *self.shared.get_or_init(|| {
            // Where the system does not say, nothing is assumed to be ours alone.
            rustix::fs::statfs(&self.dir).map_or(true, |found| SHARED_FILE_SYSTEMS.contains(&found.f_type))
        })
    }

    /// Only under the exclusive lock: every file in `tmp/` belongs to a dead writer then, unless other machines see the
    /// directory too.
    fn clear_tmp(&self) {
        let Ok(entries) = fs::read_dir(self.path(TMP)) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            let age = entry
                .metadata()
                .and_then(|about| about.modified())
                .ok()
                .and_then(|written| SystemTime::now().duration_since(written).ok());
            if !is_leftover(self.is_shared(), age) {
                continue;
            }
            match self.ops.remove(&path) {
                Ok(()) => tracing::info!(file = %path.display(), "removed what a dead writer left"),
                // A store on read-only media stays readable.
                Err(error) => tracing::warn!(file = %path.display(), %error, "cannot remove a leftover"),
            }
        }
    }
}

/// Whether a file in `tmp/` has no writer any more, for one who is alone on this machine.
fn is_leftover(shared: bool, age: Option<Duration>) -> bool {
    !shared || age.is_some_and(|age| age >= SHARED_LEFTOVER_AGE)
}

/// Whether the file system said that it knows no such operation. `EINVAL`: SMB before Linux 5.11, for a directory.
fn is_no_such_operation(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let none = [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOLCK, Errno::BADF];
    error.raw_os_error().is_some_and(|code| none.iter().any(|errno| errno.raw_os_error() == code))
}

fn parent(path: &Path) -> &Path {
    path.parent().expect("objects lie below the store")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_shared_mount_only_what_is_old_counts_as_left() {
        let hour = Duration::from_secs(3600);
        assert!(is_leftover(false, None) && is_leftover(false, Some(Duration::ZERO)));
        assert!(!is_leftover(true, None), "written in the future, or unknown");
        assert!(!is_leftover(true, Some(23 * hour)));
        assert!(is_leftover(true, Some(25 * hour)));
    }

    /// A file system whose directories cannot be synced.
    #[derive(Debug)]
    struct NoDirSync;

    impl FileOps for NoDirSync {
        fn create_dir(&self, path: &Path) -> io::Result<()> {
            LocalFiles.create_dir(path)
        }
        fn create_file(&self, path: &Path) -> io::Result<File> {
            LocalFiles.create_file(path)
        }
        fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
            LocalFiles.write(file, bytes)
        }
        fn sync_file(&self, file: &File) -> io::Result<()> {
            LocalFiles.sync_file(file)
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            LocalFiles.rename(from, to)
        }
        fn sync_dir(&self, _path: &Path) -> io::Result<()> {
            Err(rustix::io::Errno::INVAL.into())
        }
        fn remove(&self, path: &Path) -> io::Result<()> {
            LocalFiles.remove(path)
        }
    }

    #[test]
    fn on_a_shared_mount_nothing_is_collected_unless_nobody_else_is_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut backend = LocalBackend::new(&dir.path().join("store"));
        backend.shared = Arc::new(OnceLock::from(true));
        let store = Arc::new(crate::Store::init_on(Arc::new(backend)).expect("a store"));
        let collect = |only_here| {
            let options = crate::GcOptions { only_here, ..crate::GcOptions::default() };
            store.collect(&options, &|_, _| {})
        };
        assert!(matches!(collect(false), Err(Error::StaleLists { .. })));
        collect(true).expect("an empty store has nothing to collect");
    }

    #[test]
    fn a_directory_that_cannot_be_synced_is_an_error_unless_the_file_system_is_shared() {
        let dir = tempfile::tempdir().expect("a directory");
        for shared in [false, true] {
            let mut backend = LocalBackend::with_ops(&dir.path().join("store"), Arc::new(NoDirSync));
            backend.shared = Arc::new(OnceLock::from(shared));
            assert_eq!(backend.prepare().is_ok(), shared);
            assert_eq!(backend.put("points/x", b"1").is_ok(), shared);
        }
    }
}
