//! Locks between processes: one run per job file, and one backup per VM, in one state directory.
//!
//! A lock is a file that is locked as a whole while its holder lives; the kernel lets go of it however the holder ends.
//! Its content says who holds it, for the message that the second one prints. Nothing here protects a pool against
//! another installation: for that its objects carry tags.

use crate::error::{Error, Kind, Result, file_error};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How often a lock file that its last holder removes at the same moment is opened again.
const TRIES: u32 = 100;
/// Longest holder's note that is read: it is one line.
const MAX_NOTE: u64 = 4096;

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// What it does, such as `run nightly`.
    pub what: String,
    /// Its process id.
    pub process: u32,
    /// Since when, as RFC 3339 text.
    pub since: String,
}

/// What is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The runs of one name. The name is one that [`is_run_name`].
    Run(&'a str),
    /// The backups of the VM with this uuid.
    Vm(&'a str),
}

/// Whether a text can be the name of a run: it becomes the name of a file.
pub fn is_run_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
    (1..=64).contains(&name.len()) && name.chars().all(fits) && !name.starts_with('.')
}

impl Lock {
    /// Takes a lock.
    ///
    /// # Errors
    /// [`Kind::Locked`] saying who holds it and since when; [`Kind::Usage`] where the directory cannot be used.
    pub fn take(directory: &Path, subject: Subject<'_>, what: &str) -> Result<Self> {
        fs::create_dir_all(directory).map_err(|error| file_error(Kind::Usage, directory, "make", error))?;
        let path = directory.join(match subject {
            Subject::Run(name) => format!("run-{name}.lock"),
            Subject::Vm(uuid) => format!("vm-{uuid}.lock"),
        });
        for _ in 0..TRIES {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(|error| file_error(Kind::Usage, &path, "open", error))?;
            match file.try_lock() {
                Ok(()) if is_still(&file, &path) => {
                    let holder = Holder {
                        what: what.to_owned(),
                        process: std::process::id(),
                        since: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                    };
                    // Without its note the lock holds just as well; only the second one's message says less.
                    if let Err(error) = write_note(&mut file, &holder) {
                        tracing::warn!("{}: {error}", path.display());
                    }
                    return Ok(Self { path, _file: file });
                }
                // Its last holder removed the file between our opening and locking it.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(refusal(subject, read_note(&mut file))),
                Err(TryLockError::Error(error)) => {
                    return Err(file_error(Kind::Usage, &path, "lock", error)
                        .remedy("the state directory must be on a file system that can lock files"));
                }
            }
        }
        Err(Error::new(Kind::Locked, format!("{} is removed again and again", path.display())))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is locked nobody else trusts it. A file that stays is taken over by the next one.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether the open file is the one that stands at the path.
fn is_still(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), fs::metadata(path)) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

fn write_note(file: &mut File, holder: &Holder) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(holder)?;
    line.push(b'\n');
    file.set_len(0)?;
    file.write_all(&line)
}

fn read_note(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    file.take(MAX_NOTE).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn refusal(subject: Subject<'_>, holder: Option<Holder>) -> Error {
    let by = match &holder {
        Some(Holder { what, process, since }) => format!("`abd {what}`, process {process}, since {since}"),
        None => "another process".into(),
    };
    match subject {
        Subject::Run(name) => Error::new(Kind::Locked, format!("another run of '{name}' is active: {by}"))
            .remedy("wait for it to end, or stop that process: it cleans up first"),
        Subject::Vm(uuid) => Error::new(Kind::Locked, format!("VM {uuid} is being backed up already: {by}"))
            .remedy("wait for it to end"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_told_who_holds_the_lock_and_since_when() {
        let directory = tempfile::tempdir().expect("directory");
        let first = Lock::take(directory.path(), Subject::Run("nightly"), "run nightly").expect("free");
        let error = Lock::take(directory.path(), Subject::Run("nightly"), "run nightly").expect_err("held");
        assert_eq!(error.kind(), Kind::Locked);
        let process = format!("process {}", std::process::id());
        for part in ["'nightly'", "`abd run nightly`", &process, "since 20"] {
            assert!(error.chain().contains(part), "{}", error.chain());
        }
        Lock::take(directory.path(), Subject::Run("weekly"), "run weekly").expect("another name");
        Lock::take(directory.path(), Subject::Vm("nightly"), "backup").expect("another kind");
        drop(first);
        Lock::take(directory.path(), Subject::Run("nightly"), "run nightly").expect("free again");
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 0, "no file stays");
    }

    #[test]
    fn a_file_that_a_killed_holder_left_is_taken_over() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("vm-u.lock");
        fs::write(&path, "half a no").expect("write");
        let lock = Lock::take(directory.path(), Subject::Vm("u"), "backup").expect("nobody holds it");
        let error = Lock::take(directory.path(), Subject::Vm("u"), "backup").expect_err("held");
        assert!(error.chain().contains("`abd backup`"), "{}", error.chain());
        drop(lock);
    }

    #[test]
    fn a_lock_is_never_held_twice() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let directory = tempfile::tempdir().expect("directory");
        let (inside, taken) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        if let Ok(lock) = Lock::take(directory.path(), Subject::Run("x"), "run x") {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            taken.fetch_add(1, Ordering::SeqCst);
                            assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                            drop(lock);
                        }
                    }
                });
            }
        });
        assert!(taken.into_inner() > 0);
    }

    #[test]
    fn a_name_that_could_leave_the_directory_is_no_name_of_a_run() {
        for name in ["nightly", "dc1.web-2", "abd@x"] {
            assert!(is_run_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a b", &"x".repeat(65)] {
            assert!(!is_run_name(name), "{name}");
        }
    }
}
