//! The journal: what a job is about to create in a pool stands on disk before it is created.
//!
//! One file per job, JSON lines, each synced before the call that it announces. The file is locked while its
//! job lives: a journal that can be locked belongs to a job that is over or dead. A job that left nothing
//! behind removes its journal; what remains is what `abd reconcile` works through.

use crate::error::{Error, Kind, Result, file_error};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// Longest journal that is read: a job of 250 disks writes about 200 KiB.
const MAX_JOURNAL_SIZE: u64 = 16 << 20;

/// Extension of a journal that has no first line yet.
const PART: &str = "new";
/// A journal that was begun this long ago and is nobody's was given up: making one takes seconds, and a day leaves room
/// for clocks that jump.
const PART_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// One line of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "kebab-case")]
pub enum Entry {
    /// The first line.
    Started {
        /// The job's uuid.
        job: String,
        /// The pool's name.
        pool: String,
        /// The pool's uuid.
        pool_uuid: String,
        /// Uuid of the VM that is backed up, or the restore point that is restored.
        subject: String,
    },
    /// A VM snapshot will be made of `vm` under this name, which holds the job's uuid.
    SnapshotIntent {
        /// Uuid of the VM.
        vm: String,
        /// Name of the snapshot.
        name: String,
    },
    /// The snapshot exists, with these disks.
    Snapshot {
        /// Uuid of the snapshot.
        uuid: String,
        /// Uuids of its VDIs.
        vdis: Vec<String>,
    },
    /// A clone of the template will be made under this name, which holds the job's uuid.
    DelegateIntent {
        /// Name of the delegate.
        name: String,
    },
    /// The delegate exists, with these disks of its own.
    Delegate {
        /// Uuid of the VM.
        uuid: String,
        /// Uuids of its own VDIs.
        vdis: Vec<String>,
    },
    /// A VDI to restore into will be made under this name, tagged with the job.
    VdiIntent {
        /// Name of the VDI.
        name: String,
    },
    /// A VDI to restore into exists.
    Vdi {
        /// Its uuid.
        uuid: String,
    },
    /// The delegate and the snapshot VM are gone; the restore point is about to be committed.
    TornDown,
    /// The restore point exists. From here on the snapshot's VDIs are turned into references.
    Committed {
        /// Id of the restore point.
        point: String,
        /// What becomes of each VDI of the snapshot.
        vdis: Vec<Rotation>,
        /// What becomes of the snapshot VM where it stays: pools without change tracking list changes from it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reserve: Option<Reserve>,
    },
    /// The restored VDIs are complete. From here on they are the user's and only lose our tags.
    Restored,
    /// The delegate is kept, halted and without any job's disks, for a later job. Only in a journal of its own.
    Idle(Idle),
    /// A job has taken the kept delegate.
    Taken {
        /// The job's uuid.
        job: String,
    },
    /// Why the job ended, for a reader of the file.
    Failed {
        /// The error.
        reason: String,
    },
}

/// How long a delegate is kept, and what it is good for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idle {
    /// Until when, in seconds since 1970.
    pub until_s: u64,
    /// Reference of the host that it ran on last.
    pub host: String,
    /// Uuid of the template that it was cloned from.
    pub template: String,
}

/// The end of one snapshot VDI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// Uuid of the snapshot's VDI.
    pub vdi: String,
    /// What stays of it as the reference of the next run.
    pub keep: Keep,
    /// Uuid of the live VDI whose changes it lists from then on.
    pub live: String,
    /// Id of the store that holds the base that goes with it.
    pub store: String,
    /// Uuids of the references that it replaces. None where the pool did not say: whoever carries the rotation out
    /// asks again.
    pub replaces: Option<Vec<String>>,
}

/// What stays of a snapshot VDI when its job is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Nothing: it is destroyed.
    Nothing,
    /// Its change-tracking metadata, without the data.
    Metadata,
    /// All of it, in the reserved snapshot of a pool without change tracking.
    Snapshot,
}

/// The snapshot VM that stays as the VM's reserved snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserve {
    /// Its uuid.
    pub snapshot: String,
    /// Uuid of its VM.
    pub vm: String,
    /// Id of the store that holds the base that goes with it.
    pub store: String,
}

/// The journal of a job that runs.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Mutex<File>,
    /// Holds the lock where the file itself does not.
    _lock: Option<File>,
}

/// The journal of a job that is over: locked, so that nobody else works through it.
#[derive(Debug)]
pub struct DeadJournal {
    /// Where it stands.
    pub path: PathBuf,
    /// The job's uuid, from the file's name.
    pub job: String,
    /// Its entries. A half-written last line is dropped: the call it announced was not made.
    pub entries: Vec<Entry>,
    lock: File,
}

/// The journals of a directory.
#[derive(Debug, Default)]
pub struct Scan {
    /// Jobs that run, by uuid.
    pub live: Vec<String>,
    /// Journals of jobs that are over.
    pub dead: Vec<DeadJournal>,
    /// Journals of delegates that are kept for later jobs.
    pub idle: Vec<DeadJournal>,
}

impl Scan {
    /// Those whose objects are no leftovers: of jobs that run, and kept delegates.
    pub fn owners(&self) -> std::collections::BTreeSet<String> {
        self.live.iter().cloned().chain(self.idle.iter().map(|journal| journal.job.clone())).collect()
    }
}

impl Journal {
    /// Starts the journal of a job.
    ///
    /// # Errors
    /// [`Kind::Failed`] where it cannot be written: then nothing may be created.
    pub fn start(directory: &Path, job: &str, first: &Entry) -> Result<Self> {
        let path = path(directory, job);
        let failed = |doing, error| {
            file_error(Kind::Failed, &path, doing, error)
                .remedy("nothing was created in the pool; make room or fix the directory and run again")
        };
        // It gets its name only when it is locked and has its first line: whoever sees a journal sees a whole one.
        let part = path.with_extension(PART);
        let file = File::options()
            .create_new(true)
            .append(true)
            .open(&part)
            .map_err(|error| failed("make", error))?;
        let begun = file
            .try_lock()
            .map_err(|error| failed("lock", std::io::Error::other(error)))
            .map(|()| Self { path: path.clone(), file: Mutex::new(file), _lock: None })
            .and_then(|journal| journal.write(first).map(|()| journal))
            .and_then(|journal| {
                fs::rename(&part, &path).map_err(|error| failed("name", error))?;
                Ok(journal)
            });
        let journal = begun.inspect_err(|_| {
            // What cannot be removed now, `scan` removes later.
            let _ = fs::remove_file(&part);
        })?;
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| failed("sync", error))?;
        Ok(journal)
    }

    /// Appends an entry and syncs it.
    ///
    /// # Errors
    /// [`Kind::Failed`]: the call that was to follow must not be made.
    pub fn write(&self, entry: &Entry) -> Result<()> {
        let mut line = serde_json::to_vec(entry).expect("entries are plain text");
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let size =
            file.metadata().map_err(|error| file_error(Kind::Failed, &self.path, "write", error))?.len();
        file.write_all(&line).and_then(|()| file.sync_data()).map_err(|error| {
            // Half a line must not stand before a later one. Where even this fails, the reader stops there.
            let _ = file.set_len(size);
            file_error(Kind::Failed, &self.path, "write", error)
        })
    }

    /// Removes the journal of a job that left nothing behind.
    ///
    /// # Errors
    /// [`Kind::Failed`]; a journal that stays only makes `abd reconcile` look again.
    pub fn finish(self) -> Result<()> {
        remove(&self.path)
    }
}

impl DeadJournal {
    /// What the kept delegate is good for, where this is the journal of one.
    pub fn idle(&self) -> Option<&Idle> {
        match self.entries.last() {
            Some(Entry::Idle(idle)) => Some(idle),
            _ => None,
        }
    }

    /// Goes on with the journal, and with it what it announced. Nobody else can meanwhile: the lock is never let go of.
    /// `None` where it was removed by the one who held it before.
    ///
    /// # Errors
    /// [`Kind::Failed`] where it cannot be written.
    pub fn resume(self) -> Result<Option<Journal>> {
        let failed = |error| file_error(Kind::Failed, &self.path, "open", error);
        let (Ok(named), held) = (fs::metadata(&self.path), self.lock.metadata().map_err(failed)?) else {
            return Ok(None);
        };
        if (named.dev(), named.ino()) != (held.dev(), held.ino()) {
            return Ok(None);
        }
        let file = File::options().append(true).open(&self.path).map_err(failed)?;
        Ok(Some(Journal { path: self.path, file: Mutex::new(file), _lock: Some(self.lock) }))
    }

    /// How long ago it was last written; `None` where the clock went back.
    pub fn age(&self) -> Option<Duration> {
        self.lock.metadata().ok()?.modified().ok()?.elapsed().ok()
    }

    /// Removes the journal: everything in it was worked through.
    ///
    /// # Errors
    /// [`Kind::Failed`] naming the file.
    pub fn finish(self) -> Result<()> {
        remove(&self.path)
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(file_error(Kind::Failed, path, "remove", error))
        }
        _ => Ok(()),
    }
}

/// Where the journal of a job stands.
pub fn path(directory: &Path, job: &str) -> PathBuf {
    directory.join(format!("{job}.journal"))
}

/// Jobs by their journals: those that run, those that are over, and kept delegates.
///
/// # Errors
/// [`Kind::Usage`] for a journal that cannot be read, naming it.
pub fn scan(directory: &Path) -> Result<Scan> {
    let mut scan = Scan::default();
    let failed = |path: &Path, error| file_error(Kind::Usage, path, "read", error);
    for item in fs::read_dir(directory).map_err(|error| failed(directory, error))? {
        let path = item.map_err(|error| failed(directory, error))?.path();
        if path.extension().is_some_and(|extension| extension == PART) {
            remove_given_up(&path);
        }
        if path.extension().is_none_or(|extension| extension != "journal") {
            continue;
        }
        let job = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut file = match File::open(&path) {
            Ok(file) => file,
            // Its job ended between the listing and here.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(&path, error)),
        };
        if file.try_lock().is_err() {
            scan.live.push(job);
            continue;
        }
        let mut text = String::new();
        Read::by_ref(&mut file)
            .take(MAX_JOURNAL_SIZE)
            .read_to_string(&mut text)
            .map_err(|error| failed(&path, error))?;
        let entries = parse(&text).map_err(|line| {
            Error::new(Kind::Usage, format!("{} line {line} is not a journal entry", path.display()))
                .remedy("it was written by another version or damaged; look into it before you move it away")
        })?;
        let journal = DeadJournal { path, job, entries, lock: file };
        match journal.idle() {
            Some(_) => scan.idle.push(journal),
            None => scan.dead.push(journal),
        }
    }
    Ok(scan)
}

/// Removes a journal that never got its name, once nobody is making it any more. It announced nothing that was done.
fn remove_given_up(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    let modified = file.metadata().and_then(|metadata| metadata.modified());
    let age = modified.ok().and_then(|modified| modified.elapsed().ok());
    if age.is_some_and(|age| age > PART_KEPT) && file.try_lock().is_ok() {
        // It takes no room to speak of, and the next scan tries again.
        let _ = fs::remove_file(path);
    }
}

fn parse(text: &str) -> std::result::Result<Vec<Entry>, usize> {
    let mut entries = Vec::new();
    for (index, line) in text.split_inclusive('\n').enumerate() {
        match serde_json::from_str(line) {
            Ok(entry) => entries.push(entry),
            Err(_) if !line.ends_with('\n') => break,
            Err(_) => return Err(index + 1),
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started() -> Entry {
        Entry::Started { job: "j".into(), pool: "p".into(), pool_uuid: "u".into(), subject: "v".into() }
    }

    #[test]
    fn a_running_job_is_live_and_an_ended_one_is_dead() {
        let directory = tempfile::tempdir().expect("directory");
        let journal = Journal::start(directory.path(), "j", &started()).expect("journal");
        journal.write(&Entry::TornDown).expect("write");
        let Scan { live, dead, .. } = scan(directory.path()).expect("scan");
        assert_eq!((live.as_slice(), dead.len()), (&["j".to_owned()][..], 0));
        drop(journal);
        let Scan { live, mut dead, .. } = scan(directory.path()).expect("scan");
        assert_eq!((live.len(), dead.len()), (0, 1));
        let dead = dead.remove(0);
        assert_eq!(dead.entries, [started(), Entry::TornDown]);
        dead.finish().expect("remove");
        assert_eq!(scan(directory.path()).expect("scan").dead.len(), 0);
    }

    #[test]
    fn a_kept_delegate_is_neither_live_nor_dead_and_only_one_can_take_it() {
        let directory = tempfile::tempdir().expect("directory");
        let idle = Idle { until_s: 1, host: "h".into(), template: "t".into() };
        let journal = Journal::start(directory.path(), "j", &started()).expect("journal");
        journal.write(&Entry::Idle(idle.clone())).expect("write");
        drop(journal);
        let mut first = scan(directory.path()).expect("scan");
        assert_eq!((first.live.len(), first.dead.len(), first.idle[0].idle()), (0, 0, Some(&idle)));
        assert!(first.owners().contains("j"));
        let second = scan(directory.path()).expect("scan");
        assert_eq!((second.live.as_slice(), second.idle.len()), (&["j".to_owned()][..], 0));
        let taken = first.idle.remove(0).resume().expect("open").expect("there");
        taken.write(&Entry::Taken { job: "k".into() }).expect("write");
        assert_eq!(scan(directory.path()).expect("scan").live, ["j"], "the lock was never let go of");
        drop(taken);
        let mut over = scan(directory.path()).expect("scan");
        assert_eq!((over.dead.len(), over.idle.len()), (1, 0));
        let over = over.dead.remove(0);
        fs::remove_file(&over.path).expect("removed");
        assert!(over.resume().expect("looked").is_none(), "what was removed is not gone on with");
    }

    #[test]
    fn a_journal_that_cannot_be_begun_leaves_nothing() {
        let directory = tempfile::tempdir().expect("directory");
        // It cannot get its name: that is a directory with something in it.
        fs::create_dir_all(path(directory.path(), "j").join("x")).expect("made");
        Journal::start(directory.path(), "j", &started()).expect_err("no name");
        assert!(!path(directory.path(), "j").with_extension(PART).exists());
    }

    #[test]
    fn a_begun_journal_is_removed_once_it_is_old_and_nobodys() {
        let directory = tempfile::tempdir().expect("directory");
        let part = path(directory.path(), "j").with_extension(PART);
        let age = |by: Duration| {
            let file = File::options().create(true).append(true).open(&part).expect("opened");
            file.set_modified(std::time::SystemTime::now() - by).expect("dated");
            file
        };
        age(PART_KEPT / 2);
        scan(directory.path()).expect("scan");
        assert!(part.exists(), "its job may be making it");
        let making = age(PART_KEPT * 2);
        making.try_lock().expect("locked");
        scan(directory.path()).expect("scan");
        assert!(part.exists(), "somebody has it");
        drop(making);
        scan(directory.path()).expect("scan");
        assert!(!part.exists());
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_a_damaged_one_is_named() {
        let good = serde_json::to_string(&started()).expect("json");
        assert_eq!(parse(&format!("{good}\n{{\"entry\":\"sna")), Ok(vec![started()]));
        assert_eq!(parse(&format!("{good}\nnonsense\n{good}\n")), Err(2));
        assert_eq!(parse(""), Ok(vec![]));
    }
}
