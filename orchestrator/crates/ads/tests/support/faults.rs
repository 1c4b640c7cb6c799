//! A file system that fails or dies at its n-th writing operation.

use ads::{FileOps, LocalFiles};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Only this operation fails, for want of space; a write leaves half of its bytes.
    NoSpace,
    /// Nothing happens any more from this operation on, as if the process had been killed.
    Death,
}

#[derive(Debug)]
pub struct Faulty {
    at: u64,
    fault: Fault,
    count: AtomicU64,
}

impl Faulty {
    pub fn new(at: u64, fault: Fault) -> Arc<Self> {
        Arc::new(Self { at, fault, count: AtomicU64::new(0) })
    }

    /// Whether the fault was reached.
    pub fn struck(&self) -> bool {
        self.count.load(Ordering::SeqCst) > self.at
    }

    /// Whether the operation is lost, and whether it is the first one that is.
    fn next(&self) -> (bool, bool) {
        let now = self.count.fetch_add(1, Ordering::SeqCst);
        match self.fault {
            Fault::NoSpace => (now == self.at, now == self.at),
            Fault::Death => (now >= self.at, now == self.at),
        }
    }

    fn pass(&self) -> io::Result<()> {
        let (lost, _) = self.next();
        if lost { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl FileOps for Faulty {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        LocalFiles.create_dir(path)
    }

    fn create_file(&self, path: &Path) -> io::Result<File> {
        self.pass()?;
        LocalFiles.create_file(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        let (lost, first) = self.next();
        if first {
            LocalFiles.write(file, &bytes[..bytes.len() / 2])?;
        }
        if lost { Err(io::ErrorKind::StorageFull.into()) } else { LocalFiles.write(file, bytes) }
    }

    fn sync_file(&self, file: &File) -> io::Result<()> {
        self.pass()?;
        LocalFiles.sync_file(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.pass()?;
        LocalFiles.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        LocalFiles.sync_dir(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.pass()?;
        LocalFiles.remove(path)
    }
}
