//! Restore points that were read and checked before: copies beside the index, so that a list does not read each anew.
//!
//! A point is named by the hash of its bytes and never changes, so that a copy proves itself: it counts only where it has
//! the hash and the size that the list of points says. `verify`, and whoever asks for one point, read the store.
//!
//! ```text
//! *.points1   magic "ABDPNTS1" 8 | store's id 16 | for each point: id 32 | size u32 | its bytes
//! ```
//! A file is written once, under another name until it is whole; what is damaged or cut off in it is read from the store
//! instead. Files become one when there are too many of them or most of their points are gone.

use super::points::{MAX_POINT_SIZE, PointId};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use uuid::Uuid;

const MAGIC: &[u8; 8] = b"ABDPNTS1";
const ENDING: &str = "points1";
/// Ending of a file that is not whole; the index removes those that nobody has locked.
const PART_ENDING: &str = "part";
/// Points that are read from the store each time before they get a file: a list of so few costs nothing.
pub(super) const FEWEST: usize = 32;
/// Files of which one is made when there are more.
const MOST_FILES: usize = 8;

/// Copies of a store's points.
pub(super) struct KeptPoints {
    dir: Option<PathBuf>,
    store: Uuid,
}

/// What was read.
#[derive(Default)]
pub(super) struct Kept {
    files: Vec<PathBuf>,
    /// Bytes of points that were listed, and of others.
    listed: u64,
    other: u64,
}

impl Kept {
    /// Whether its files should become one.
    fn is_scattered(&self) -> bool {
        self.files.len() > MOST_FILES || self.other > self.listed
    }
}

/// A file that is being written.
pub(super) struct Writing {
    file: BufWriter<File>,
    part: PathBuf,
    finished: bool,
}

impl KeptPoints {
    /// Copies in a directory; none where there is none.
    pub(super) fn new(dir: Option<PathBuf>, store: Uuid) -> Self {
        Self { dir, store }
    }

    /// Gives each copy that has the id and the size of a point in `wanted`, proven, and takes it out of there.
    pub(super) fn take(
        &self,
        wanted: &mut HashMap<PointId, u64>,
        give: &mut dyn FnMut(PointId, Vec<u8>),
    ) -> Kept {
        let mut kept = Kept::default();
        let entries = self.dir.as_ref().and_then(|dir| fs::read_dir(dir).ok());
        for path in entries.into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|ending| ending != ENDING) {
                continue;
            }
            // What cannot be read is read from the store.
            let _ = self.read(&path, &mut |id, size, bytes| match wanted.get(&id) == Some(&size) {
                false => {
                    kept.other += size;
                    false
                }
                true => match bytes {
                    None => true,
                    Some(bytes) => {
                        kept.listed += size;
                        wanted.remove(&id);
                        give(id, bytes);
                        true
                    }
                },
            });
            kept.files.push(path);
        }
        kept
    }

    /// Tells of each point of a file: first its id and size; then, if wanted and if they have that id, its bytes.
    fn read(
        &self,
        path: &Path,
        visit: &mut dyn FnMut(PointId, u64, Option<Vec<u8>>) -> bool,
    ) -> io::Result<()> {
        let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut head = [0; 24];
        file.read_exact(&mut head)?;
        if &head[..8] != MAGIC || &head[8..] != self.store.as_bytes() {
            return Ok(());
        }
        let mut head = [0; 36];
        loop {
            match file.read_exact(&mut head) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                outcome => outcome?,
            }
            let (id, size) = head.split_at(32);
            let id = PointId::from_bytes(id.try_into().expect("32 bytes"));
            let size = u64::from(u32::from_le_bytes(size.try_into().expect("4 bytes")));
            if size > MAX_POINT_SIZE {
                // No point has that size: what follows cannot be found.
                return Ok(());
            }
            if visit(id, size, None) {
                let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
                file.read_exact(&mut bytes)?;
                if PointId::of(&bytes) == id {
                    visit(id, size, Some(bytes));
                }
            } else {
                file.seek_relative(i64::try_from(size).unwrap_or(0))?;
            }
        }
    }

    /// Begins a file; `None` where there can be none.
    pub(super) fn write(&self) -> Option<Writing> {
        let dir = self.dir.as_ref()?;
        Writing::new(dir, self.store).inspect_err(|error| complain(dir, error)).ok()
    }

    /// Makes one of many files, with those of their points that `is_listed`.
    pub(super) fn gather(&self, kept: &Kept, is_listed: &dyn Fn(PointId, u64) -> bool) {
        if !kept.is_scattered() {
            return;
        }
        let Some(mut writing) = self.write() else { return };
        let mut taken = std::collections::HashSet::new();
        let mut outcome = Ok(());
        for path in &kept.files {
            let _ = self.read(path, &mut |id, size, bytes| match bytes {
                None => is_listed(id, size) && !taken.contains(&id),
                Some(bytes) => {
                    taken.insert(id);
                    if outcome.is_ok() {
                        outcome = writing.push(id, &bytes);
                    }
                    true
                }
            });
        }
        match outcome.and_then(|()| writing.finish()) {
            // One that stays is read along once more.
            Ok(()) => kept.files.iter().for_each(|path| _ = fs::remove_file(path)),
            Err(error) => complain(self.dir.as_deref().unwrap_or(Path::new("")), &error),
        }
    }
}

impl Writing {
    fn new(dir: &Path, store: Uuid) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let part = dir.join(Uuid::new_v4().simple().to_string()).with_extension(PART_ENDING);
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        // Without the lock somebody may remove it meanwhile, which costs the copies.
        let _ = file.try_lock();
        let mut writing = Self { file: BufWriter::with_capacity(1 << 20, file), part, finished: false };
        writing.file.write_all(MAGIC)?;
        writing.file.write_all(store.as_bytes())?;
        Ok(writing)
    }

    /// Adds a point's bytes.
    pub(super) fn push(&mut self, id: PointId, bytes: &[u8]) -> io::Result<()> {
        let size = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.file.write_all(id.as_bytes())?;
        self.file.write_all(&size.to_le_bytes())?;
        self.file.write_all(bytes)
    }

    /// Gives the file its name. It is not synced: after a crash it may be empty, and is written again.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.file.flush()?;
        fs::rename(&self.part, self.part.with_extension(ENDING))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.finished {
            // One that stays is removed with the index's own leftovers.
            let _ = fs::remove_file(&self.part);
        }
    }
}

pub(super) fn complain(dir: &Path, error: &io::Error) {
    tracing::debug!(directory = %dir.display(), %error, "no copies of restore points are kept");
}
