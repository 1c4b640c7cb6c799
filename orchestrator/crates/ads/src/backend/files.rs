//! The file system's writing operations, one by one: what a local store's durability is made of.
//!
//! They are a trait so that a test can fail, stop, slow or record each of them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

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
