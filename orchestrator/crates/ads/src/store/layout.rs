//! Files of the store: where they stand, how they are written durably, and the lock.
//!
//! Promises: a file appears under its name only whole and synced; a write that fails leaves nothing behind
//! but, when the process dies, a file under `tmp/`. Never: reads or judges content.

use crate::Error;
use rustix::fs::{FlockOperation, flock};
use seal::PackId;
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long [`Layout::lock`] waits for somebody who has the store for himself. A cleaner of `tmp/` needs
/// milliseconds.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Pause between two tries.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// Only the owner reads a store: its config holds the id key, and packs hold disks.
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// The writing operations, one by one, so that a test can fail or stop at each of them.
pub trait FileOps: Send + Sync + std::fmt::Debug {
    /// Makes a directory.
    ///
    /// # Errors
    /// What the system says, also where it exists.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes a file that must not exist.
    ///
    /// # Errors
    /// What the system says.
    fn create_file(&self, path: &Path) -> io::Result<File>;
    /// Writes all bytes.
    ///
    /// # Errors
    /// What the system says.
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()>;
    /// Waits until a file's bytes are on the disk.
    ///
    /// # Errors
    /// What the system says.
    fn sync_file(&self, file: &File) -> io::Result<()>;
    /// Gives a file its name.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Waits until a directory's names are on the disk.
    ///
    /// # Errors
    /// What the system says.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The operations of a local file system.
#[derive(Clone, Copy, Debug)]
pub struct LocalFiles;

impl FileOps for LocalFiles {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(DIR_MODE).create(path)
    }

    fn create_file(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn sync_file(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// Paths and durable writing below one directory.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
    ops: Arc<dyn FileOps>,
    /// Directories whose names are known to be on the disk.
    synced: Arc<Mutex<HashSet<PathBuf>>>,
}

/// The store's lock; held as long as this lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _dir: File,
}

impl Layout {
    pub(crate) fn new(dir: &Path, ops: Arc<dyn FileOps>) -> Self {
        Self { dir: dir.to_owned(), ops, synced: Arc::default() }
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    pub(crate) fn packs(&self) -> PathBuf {
        self.dir.join("packs")
    }

    pub(crate) fn points(&self) -> PathBuf {
        self.dir.join("points")
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.dir.join("pins")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    pub(crate) fn pack(&self, id: PackId) -> PathBuf {
        let name = id.to_string();
        self.packs().join(&name[..2]).join(name)
    }

    /// An error of an operation on `path`.
    pub(crate) fn error(&self, what: &'static str, path: &Path, source: io::Error) -> Error {
        Error::io(what, path, &self.dir, source)
    }

    /// Makes a directory where it is missing, and syncs the one above it. One that is there may have been made a
    /// moment ago by somebody who died before the sync, or has not come to it: its name counts as durable
    /// only after this process synced it once.
    pub(crate) fn ensure_dir(&self, path: &Path) -> Result<(), Error> {
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

    pub(crate) fn sync_dir(&self, path: &Path) -> Result<(), Error> {
        self.ops.sync_dir(path).map_err(|error| self.error("sync directory", path, error))
    }

    /// Writes a file: `tmp/`, sync, rename, sync of its directory. On an error the name is untouched,
    /// unless only the last sync failed.
    pub(crate) fn write(&self, target: &Path, bytes: &[u8]) -> Result<(), Error> {
        let above = target.parent().expect("targets lie below the store");
        self.ensure_dir(&self.tmp())?;
        self.ensure_dir(above)?;
        let part = self.tmp().join(uuid::Uuid::new_v4().simple().to_string());
        if let Err(error) = self.write_part(&part, bytes).and_then(|()| {
            self.ops.rename(&part, target).map_err(|error| self.error("rename to", target, error))
        }) {
            // A part that cannot be removed either is removed by the next one who opens the store alone.
            let _ = self.ops.remove(&part);
            return Err(error);
        }
        self.sync_dir(above)
    }

    fn write_part(&self, part: &Path, bytes: &[u8]) -> Result<(), Error> {
        let mut file = self.ops.create_file(part).map_err(|error| self.error("create", part, error))?;
        self.ops.write(&mut file, bytes).map_err(|error| self.error("write", part, error))?;
        self.ops.sync_file(&file).map_err(|error| self.error("sync", part, error))
    }

    /// Removes a file and syncs its directory.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), Error> {
        self.ops.remove(path).map_err(|error| self.error("remove", path, error))?;
        self.sync_dir(path.parent().expect("files lie below the store"))
    }

    /// Takes the lock for sharing. Who finds himself alone first clears `tmp/` of what dead writers left.
    pub(crate) fn lock(&self) -> Result<Lock, Error> {
        let dir = self.open_dir()?;
        let deadline = Instant::now() + LOCK_WAIT;
        if self.try_lock(&dir, FlockOperation::NonBlockingLockExclusive)? {
            self.clear_tmp();
        }
        // From exclusive to shared is not atomic, which is harmless: whoever comes between finds no file of ours.
        while !self.try_lock(&dir, FlockOperation::NonBlockingLockShared)? {
            if Instant::now() >= deadline {
                return Err(Error::Busy { dir: self.dir.clone() });
            }
            std::thread::sleep(LOCK_RETRY);
        }
        Ok(Lock { _dir: dir })
    }

    /// Takes the lock for this process alone, without waiting.
    pub(crate) fn lock_alone(&self) -> Result<Lock, Error> {
        let dir = self.open_dir()?;
        match self.try_lock(&dir, FlockOperation::NonBlockingLockExclusive)? {
            true => Ok(Lock { _dir: dir }),
            false => Err(Error::Busy { dir: self.dir.clone() }),
        }
    }

    fn open_dir(&self) -> Result<File, Error> {
        File::open(&self.dir).map_err(|error| self.error("open", &self.dir, error))
    }

    fn try_lock(&self, dir: &File, how: FlockOperation) -> Result<bool, Error> {
        match flock(dir, how) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(self.error("lock", &self.dir, error.into())),
        }
    }

    /// Only under the exclusive lock: every file in `tmp/` belongs to a dead writer then.
    fn clear_tmp(&self) {
        let Ok(entries) = fs::read_dir(self.tmp()) else { return };
        for entry in entries.flatten() {
            let path = entry.path();
            match self.ops.remove(&path) {
                Ok(()) => tracing::info!(file = %path.display(), "removed what a dead writer left"),
                // A store on read-only media stays readable.
                Err(error) => tracing::warn!(file = %path.display(), %error, "cannot remove a leftover"),
            }
        }
    }
}
