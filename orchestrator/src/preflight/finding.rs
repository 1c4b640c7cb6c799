//! What a check finds: a stable code, how bad it is, one sentence that names the object, and what to do.

use crate::error::{Error, Kind};
use serde::{Serialize, Serializer};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing to do.
    Ok,
    /// Jobs run, but look at it.
    Warning,
    /// Jobs fail.
    Error,
}

/// Defines the codes: one line each, with the word that programs see.
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)*) => {
        /// Stable codes of findings. `orchestrator/FINDINGS.md` explains each of them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code {
            $($(#[$doc])* $variant,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Code] = &[$(Code::$variant,)*];

            /// The word that programs see. Never renamed.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Code::$variant => $word,)*
                }
            }
        }
    };
}

codes! {
    // This installation.
    /// The state directory.
    State = "state",
    /// Journals of jobs that are over.
    Journals = "journals",
    /// Jobs that run now.
    Jobs = "jobs",
    /// The store.
    Store = "store",
    /// There is no store yet.
    NoStore = "no-store",
    /// Something in the store cannot be read.
    StoreDamaged = "store-damaged",
    /// The store's file system.
    StoreSpace = "store-space",
    /// Where delegates call this machine.
    Listen = "listen",
    /// The address that delegates are told.
    Advertise = "advertise",
    /// No pool was added.
    NoPool = "no-pool",
    // The pool.
    /// Whether the pool answers.
    Pool = "pool",
    /// The release that the hosts run.
    Release = "release",
    /// Whether change tracking is licensed.
    CbtLicence = "cbt-licence",
    /// The pool's clock and ours.
    Clock = "clock",
    /// What our role may do.
    Permissions = "permissions",
    /// Certificates that are not pinned, or not the pinned ones.
    Certificate = "certificate",
    /// Certificates that end soon.
    CertificateExpiry = "certificate-expiry",
    /// The appliance template.
    Template = "template",
    /// The template's disk.
    TemplateDisk = "template-disk",
    /// Hosts that do not see the template's disk.
    TemplateStorage = "template-storage",
    /// The network of the delegates.
    Network = "network",
    /// Hosts where that network ends.
    NetworkHosts = "network-hosts",
    /// Hosts that take no delegates.
    Host = "host",
    /// Memory for a delegate.
    HostMemory = "host-memory",
    /// Storage that hosts do not see.
    StorageUnplugged = "storage-unplugged",
    /// Room on storage.
    StorageSpace = "storage-space",
    /// Disks that wait to be merged.
    CoalesceBacklog = "coalesce-backlog",
    /// Storage that never merges.
    CoalesceOff = "coalesce-off",
    /// Storage that has no room to merge.
    CoalesceStuck = "coalesce-stuck",
    /// Objects of ended jobs.
    Leftovers = "leftovers",
    /// Delegates that are kept for later jobs.
    KeptDelegates = "kept-delegates",
    /// References that nothing can be listed from.
    StaleReferences = "stale-references",
    /// What this installation keeps between runs.
    References = "references",
    /// References that no job renews any more.
    IdleReferences = "idle-references",
    /// Reserved snapshots on storage where they take the room of whole disks.
    ReservedSpace = "reserved-space",
    /// Objects of another installation.
    ForeignObjects = "foreign-objects",
    // A delegate that was started to look.
    /// Whether it worked.
    Delegate = "delegate",
    /// What makes jobs slow.
    DelegateSlow = "delegate-slow",
    /// Its clock.
    DelegateClock = "delegate-clock",
    /// How it reads disks.
    DelegateEngine = "delegate-engine",
    /// What it had left of its memory.
    DelegateMemory = "delegate-memory",
    // A VM.
    /// The VM as a whole.
    Vm = "vm",
    /// Operations that somebody blocked.
    VmBlocked = "vm-blocked",
    /// Operations under way.
    VmBusy = "vm-busy",
    /// USB devices that are passed through.
    VmUsb = "vm-usb",
    /// What keeps its memory from being saved.
    VmCheckpoint = "vm-checkpoint",
    /// Whether its guest can be quieted.
    VmQuiesce = "vm-quiesce",
    /// Nothing to back up.
    VmNoDisks = "vm-no-disks",
    /// More disks than a delegate takes at once.
    VmRounds = "vm-rounds",
    /// No host can run its delegate.
    VmNoHost = "vm-no-host",
    /// Room for its snapshot.
    SnapshotSpace = "snapshot-space",
    /// Its storage merges disks.
    Coalescing = "coalescing",
    /// The snapshot chain of a disk.
    DiskChain = "disk-chain",
    /// A disk that is thrown away at every start.
    DiskReset = "disk-reset",
    /// A disk without a format.
    DiskRaw = "disk-raw",
    /// A disk that several VMs may write.
    DiskSharable = "disk-sharable",
    /// A disk that another VM has too.
    DiskAttached = "disk-attached",
    /// A disk that its storage lost.
    DiskMissing = "disk-missing",
    /// A disk whose storage takes no snapshots.
    DiskNoSnapshot = "disk-no-snapshot",
    /// A disk whose storage tracks no changes.
    DiskNoTracking = "disk-no-tracking",
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What kind of object a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectKind {
    /// The machine and directories of this installation.
    Installation,
    /// The store.
    Store,
    /// A pool.
    Pool,
    /// A host.
    Host,
    /// A storage repository.
    Sr,
    /// A network.
    Network,
    /// A VM or a template.
    Vm,
    /// A disk.
    Vdi,
}

/// What a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Object {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its name; a path for a store.
    pub name: String,
    /// Its uuid, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

impl Object {
    /// An object of a pool.
    pub fn new(kind: ObjectKind, name: impl Into<String>, uuid: impl ToString) -> Self {
        Self { kind, name: name.into(), uuid: Some(uuid.to_string()) }
    }

    /// Something of this machine.
    pub fn here(kind: ObjectKind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into(), uuid: None }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What it is, for programs.
    pub code: Code,
    /// The pool's name in the configuration; none for this installation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Uuid of the VM whose job it concerns, where it concerns one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// What it is about.
    pub object: Object,
    /// One sentence.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// What it means for the exit code, if it is an error.
    #[serde(skip)]
    pub kind: Kind,
}

impl Finding {
    /// Nothing to do.
    pub fn ok(code: Code, object: Object, message: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            code,
            pool: None,
            vm: None,
            object,
            message: message.into(),
            remedy: None,
            kind: code.kind(),
        }
    }

    /// Something to look at.
    pub fn warning(
        code: Code,
        object: Object,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { level: Level::Warning, remedy: Some(remedy.into()), ..Self::ok(code, object, message) }
    }

    /// Something that makes jobs fail.
    pub fn error(code: Code, object: Object, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Error, ..Self::warning(code, object, message, remedy) }
    }

    /// An error of ours as a finding.
    pub fn from_error(code: Code, object: Object, error: &Error) -> Self {
        Self {
            level: Level::Error,
            remedy: error.remedy_text().map(str::to_owned),
            kind: error.kind(),
            ..Self::ok(code, object, error.chain())
        }
    }

    /// The same, no worse than `most`.
    #[must_use]
    pub fn at_most(mut self, most: Level) -> Self {
        self.level = self.level.min(most);
        self
    }
}

impl Code {
    /// What an error with this code means for the exit code.
    const fn kind(self) -> Kind {
        match self {
            Code::State => Kind::Usage,
            Code::Store | Code::NoStore => Kind::Store,
            Code::StoreSpace => Kind::StoreFull,
            Code::StoreDamaged => Kind::Damaged,
            Code::NoPool => Kind::NotFound,
            Code::Listen | Code::Advertise => Kind::Usage,
            Code::Permissions => Kind::Auth,
            Code::Certificate | Code::CertificateExpiry => Kind::Certificate,
            Code::Template | Code::TemplateDisk | Code::TemplateStorage => Kind::Template,
            Code::Leftovers => Kind::Leftovers,
            _ => Kind::Failed,
        }
    }
}

/// The worst level among findings.
pub fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
}

/// The errors among findings as one error, or none where jobs would work.
pub fn refusal(findings: &[Finding]) -> Option<Error> {
    let mut errors = findings.iter().filter(|finding| finding.level == Level::Error);
    let first = errors.next()?;
    let more = match errors.count() {
        0 => String::new(),
        1 => " (and 1 more finding, see `abd doctor`)".to_owned(),
        count => format!(" (and {count} more findings, see `abd doctor`)"),
    };
    let error = Error::new(first.kind, format!("{}{more}", first.message));
    Some(match &first.remedy {
        Some(remedy) => error.remedy(remedy.clone()),
        None => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const DOCUMENT: &str = include_str!("../../FINDINGS.md");

    /// The first cell of each row whose first cell is code, and how many of its cells have text.
    fn rows() -> Vec<(&'static str, usize)> {
        let row = |line: &'static str| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let code = cells.next()?.strip_suffix('`')?;
            Some((code, 1 + cells.filter(|cell| !cell.trim_matches([' ', '|']).is_empty()).count()))
        };
        DOCUMENT.lines().filter_map(row).collect()
    }

    #[test]
    fn every_code_is_documented_with_meaning_and_remedy_and_no_other() {
        let documented: BTreeSet<&str> = rows().into_iter().map(|(code, _)| code).collect();
        let known: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(documented, known);
        for (code, cells) in rows() {
            assert_eq!(cells, 4, "{code}: code, levels, meaning, what to do");
        }
    }

    #[test]
    fn codes_are_short_words_and_each_is_used_once() {
        let words: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(words.len(), Code::ALL.len());
        for word in words {
            assert!(word.len() <= super::super::text::CODE_WIDTH, "{word}");
            assert!(word.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{word}");
        }
    }

    #[test]
    fn findings_have_a_stable_json_form() {
        let object = Object::new(ObjectKind::Sr, "Local storage", "u-1");
        let mut finding = Finding::warning(Code::StorageSpace, object, "it is full", "make room");
        finding.pool = Some("dc1".into());
        assert_eq!(
            serde_json::to_string(&finding).expect("plain text"),
            "{\"level\":\"warning\",\"code\":\"storage-space\",\"pool\":\"dc1\",\
             \"object\":{\"kind\":\"sr\",\"name\":\"Local storage\",\"uuid\":\"u-1\"},\
             \"message\":\"it is full\",\"remedy\":\"make room\"}"
        );
        let here = Finding::ok(Code::Jobs, Object::here(ObjectKind::Installation, "/state"), "none");
        let json = serde_json::to_value(&here).expect("plain text");
        assert!(json.get("pool").is_none() && json.get("remedy").is_none(), "{json}");
    }

    #[test]
    fn a_refusal_says_the_first_error_and_counts_the_others() {
        let object = || Object::here(ObjectKind::Installation, "x");
        let warning = Finding::warning(Code::Clock, object(), "late", "wait");
        assert!(refusal(std::slice::from_ref(&warning)).is_none());
        let first = Finding::error(Code::Template, object(), "no template", "import it");
        let second = Finding::error(Code::Vm, object(), "no VM", "make one");
        let error = refusal(&[warning.clone(), first.clone(), second]).expect("two errors");
        assert_eq!(error.chain(), "no template (and 1 more finding, see `abd doctor`)");
        assert_eq!((error.kind(), error.remedy_text()), (Kind::Template, Some("import it")));
        assert_eq!(worst(&[warning, first]), Level::Error);
        assert_eq!(worst(&[]), Level::Ok);
    }
}
