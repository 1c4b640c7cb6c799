//! This machine: the state directory, the journals, the store and its file system, and where delegates call.

use super::finding::{Code, Finding, Object, ObjectKind};
use crate::catalog;
use crate::config::{PoolConfig, State};
use crate::error::{Error, Kind};
use crate::journal;
use blocks::ByteCount;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

/// A store with less room than this cannot take the packs that a few delegates have in flight.
const LEAST_ROOM: u64 = 256 << 20;
/// One part in so many of the store's file system should be free.
const ROOM_PART: u64 = 20;

/// What was seen on this machine.
#[derive(Debug)]
pub struct Here {
    /// The state directory.
    pub directory: PathBuf,
    /// Whether it can be written.
    pub writable: Result<(), String>,
    /// Jobs that run, and how many ended without cleaning up.
    pub journals: Result<(BTreeSet<String>, usize), Error>,
    /// Delegates that are kept for later jobs, by the uuids of their journals.
    pub kept: BTreeSet<String>,
    /// The store.
    pub store: StoreFacts,
}

/// What was seen of the store.
#[derive(Debug)]
pub struct StoreFacts {
    /// Its directory, or its address.
    pub path: PathBuf,
    /// What opening it gave.
    pub state: StoreState,
    /// Whether its directory can be written.
    pub writable: Result<(), String>,
    /// Free bytes and size of its file system, where they are known.
    pub room: Option<(ByteCount, ByteCount)>,
}

/// What opening a store gave.
#[derive(Debug)]
pub enum StoreState {
    /// It is whole as far as its indexes tell.
    Open {
        /// Bytes in packs.
        bytes: ByteCount,
        /// How many packs.
        packs: u64,
        /// Packs that cannot be read, each with the reason.
        skipped: Vec<String>,
        /// See [`usual_changes`](super::usual_changes).
        usual_changes: BTreeMap<String, ByteCount>,
    },
    /// There is none yet.
    Absent(Error),
    /// It cannot be used.
    Unusable(Error),
}

impl Here {
    /// Looks at the state directory and the store. Blocks: opening a large store reads its index.
    pub fn look(state: &State, store: &Path) -> Self {
        let mut kept = BTreeSet::new();
        let journals = journal::scan(&state.journal_directory()).map(|scan| {
            kept = scan.idle.iter().map(|journal| journal.job.clone()).collect();
            (scan.live.into_iter().collect(), scan.dead.len())
        });
        let directory = state.journal_directory().parent().unwrap_or(Path::new("/")).to_owned();
        Self { writable: writable(&directory), directory, journals, kept, store: look_at_store(store) }
    }

    /// What each disk's guest usually writes between two jobs.
    pub fn usual_changes(&self) -> BTreeMap<String, ByteCount> {
        match &self.store.state {
            StoreState::Open { usual_changes, .. } => usual_changes.clone(),
            _ => BTreeMap::new(),
        }
    }

    /// The jobs that run, and the kept delegates: what they have in a pool is not left over.
    pub fn live_jobs(&self) -> BTreeSet<String> {
        let live = self.journals.as_ref().map(|(live, _)| live.clone()).unwrap_or_default();
        live.union(&self.kept).cloned().collect()
    }
}

fn look_at_store(path: &Path) -> StoreFacts {
    let state = match catalog::open_locked(path) {
        Ok(store) => {
            let usage = store.usage();
            let skipped = store.skipped_packs().iter();
            StoreState::Open {
                bytes: usage.bytes,
                packs: usage.packs,
                skipped: skipped.map(|pack| format!("{}: {}", pack.path.display(), pack.reason)).collect(),
                // Restore points that cannot be read are for `abd list` and `abd verify` to name.
                usual_changes: store
                    .points()
                    .map(|points| super::usual_changes(&points.points))
                    .unwrap_or_default(),
            }
        }
        Err(error) if catalog::is_vacant(path) => StoreState::Absent(error),
        Err(error) => StoreState::Unusable(error),
    };
    // Object storage has no free space to speak of, and whether it can be written only writing tells.
    if ads::Place::from_path(path).is_ok_and(|place| place.is_remote()) {
        return StoreFacts { path: path.to_owned(), state, writable: may_add(path), room: None };
    }
    // A store that is not there yet is made below the nearest directory that is.
    let existing = path.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    let room = rustix::fs::statvfs(existing).ok().map(|stat| {
        let bytes = |blocks: u64| ByteCount::new(blocks.saturating_mul(stat.f_frsize));
        (bytes(stat.f_bavail), bytes(stat.f_blocks))
    });
    StoreFacts { path: path.to_owned(), state, writable: writable(existing), room }
}

/// Asks a server whether this machine may add to its store. Where nobody can be asked, opening the store says why.
fn may_add(path: &Path) -> Result<(), String> {
    let backend = ads::Place::from_path(path).and_then(|place| place.backend());
    match backend.and_then(|backend| backend.standing()) {
        Ok(Some(standing)) if standing.role == ads::Role::Reader => {
            Err(format!("its server knows this machine as '{}', which only reads", standing.client))
        }
        _ => Ok(()),
    }
}

/// Asks the system whether this process may write there; writes nothing.
fn writable(path: &Path) -> Result<(), String> {
    use rustix::fs::{Access, access};
    access(path, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| error.to_string())
}

/// Checks what was seen on this machine.
pub fn check(here: &Here) -> Vec<Finding> {
    let mut findings = Vec::new();
    let directory = here.directory.display();
    let object = || Object::here(ObjectKind::Installation, directory.to_string());
    findings.push(match &here.writable {
        Ok(()) => Finding::ok(Code::State, object(), format!("state directory {directory}")),
        Err(why) => Finding::error(
            Code::State,
            object(),
            format!("the state directory {directory} cannot be written: {why}"),
            "name a writable directory with --state-dir or ABD_STATE_DIR",
        ),
    });
    match &here.journals {
        Ok((live, dead)) => {
            if !live.is_empty() {
                findings.push(Finding::ok(Code::Jobs, object(), format!("{} jobs are running", live.len())));
            }
            if *dead > 0 {
                let message = format!("{dead} jobs ended without cleaning up");
                findings.push(Finding::warning(Code::Journals, object(), message, "run `abd reconcile`"));
            }
        }
        Err(error) => findings.push(Finding::from_error(Code::Journals, object(), error)),
    }
    findings.extend(check_store(&here.store));
    findings
}

fn check_store(store: &StoreFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let path = store.path.display();
    let object = || Object::here(ObjectKind::Store, path.to_string());
    match &store.state {
        StoreState::Open { bytes, packs, skipped, .. } => {
            let message = format!("the store at {path} holds {bytes} in {packs} packs");
            findings.push(Finding::ok(Code::Store, object(), message));
            for pack in skipped {
                findings.push(Finding::error(
                    Code::StoreDamaged,
                    object(),
                    format!("a pack cannot be read: {pack}"),
                    "run `abd verify --read-data`",
                ));
            }
        }
        StoreState::Absent(error) => findings.push(Finding::warning(
            Code::NoStore,
            object(),
            error.to_string(),
            "the first backup makes it; a store named with --store is made with --init-store",
        )),
        StoreState::Unusable(error) => {
            findings.push(Finding::from_error(Code::Store, object(), error));
            return findings;
        }
    }
    if let Err(why) = &store.writable {
        let message = format!("the store at {path} cannot be written: {why}");
        let remedy = "check its owner, its permissions and how its file system is mounted";
        let finding = Finding::error(Code::Store, object(), message, remedy);
        findings.push(Finding { kind: Kind::Store, ..finding });
    }
    if let Some((free, size)) = store.room {
        let message = format!("the file system of the store at {path} has {free} of {size} free");
        let remedy = "make room, or move the store to a larger file system";
        if free.get() < LEAST_ROOM {
            findings.push(Finding::error(Code::StoreSpace, object(), message, remedy));
        } else if free.get() < size.get() / ROOM_PART {
            findings.push(Finding::warning(Code::StoreSpace, object(), message, remedy));
        }
    }
    findings
}

/// What was tried about the addresses at which delegates call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calling {
    /// Where we would listen, and how trying that ended; only where it is configured.
    pub listen: Option<(SocketAddr, Result<(), ErrorKind>)>,
    /// The address that delegates are told, and whether it is one of this machine; only where it is configured.
    pub advertise: Option<(IpAddr, bool)>,
    /// Whether the pool is reached over a socket of this host, so that its route tells no address.
    pub local: bool,
}

impl Calling {
    /// Tries the addresses of a pool's configuration: listens for a moment, sends nothing.
    pub fn look(config: &PoolConfig) -> Self {
        let try_listen =
            |address: SocketAddr| TcpListener::bind(address).map(drop).map_err(|error| error.kind());
        Self {
            listen: config.listen.map(|address| (address, try_listen(address))),
            // Only an address of this machine can be bound.
            advertise: config.advertise.map(|address| (address, UdpSocket::bind((address, 0)).is_ok())),
            local: config.endpoint.starts_with("unix:"),
        }
    }
}

/// Checks the addresses at which delegates call.
pub fn check_calling(pool: &str, calling: &Calling) -> Vec<Finding> {
    let mut findings = Vec::new();
    let object = || Object::here(ObjectKind::Pool, pool);
    let change = format!("change it: abd pool remove {pool}, then abd pool add with another");
    match calling.listen {
        Some((address, Err(ErrorKind::AddrInUse))) => findings.push(Finding::warning(
            Code::Listen,
            object(),
            format!("{address}, where delegates of pool '{pool}' call, is in use now"),
            "another run of abd uses it until it ends; if it is another program, name a free port with --listen",
        )),
        Some((address, Err(kind))) => findings.push(Finding::error(
            Code::Listen,
            object(),
            format!("this machine cannot listen at {address} for delegates of pool '{pool}': {kind}"),
            format!("{change} --listen ADDRESS:PORT"),
        )),
        _ => {}
    }
    match calling.advertise {
        None if calling.local => findings.push(Finding::warning(
            Code::Advertise,
            object(),
            format!(
                "over the local socket of pool '{pool}' this machine's address for delegates is not known"
            ),
            "name it: abd pool remove, then abd pool add --local --advertise ADDRESS",
        )),
        Some((address, false)) => findings.push(Finding::warning(
            Code::Advertise,
            object(),
            format!(
                "delegates of pool '{pool}' are told to call {address}, which is no address of this machine"
            ),
            format!("if nothing forwards it to this machine, {change} --advertise ADDRESS"),
        )),
        _ => {}
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::finding::Level;

    fn open(skipped: Vec<String>) -> StoreState {
        StoreState::Open { bytes: ByteCount::new(1), packs: 1, skipped, usual_changes: BTreeMap::new() }
    }

    fn here() -> Here {
        Here {
            directory: "/var/lib/abd".into(),
            writable: Ok(()),
            journals: Ok((BTreeSet::new(), 0)),
            kept: BTreeSet::new(),
            store: StoreFacts {
                path: "/var/lib/abd/store".into(),
                state: open(Vec::new()),
                writable: Ok(()),
                room: None,
            },
        }
    }

    fn levels(findings: &[Finding]) -> Vec<(Code, Level)> {
        findings.iter().map(|finding| (finding.code, finding.level)).collect()
    }

    const FINE: [(Code, Level); 2] = [(Code::State, Level::Ok), (Code::Store, Level::Ok)];

    #[test]
    fn running_jobs_are_no_trouble_and_dead_ones_are() {
        let mut here = here();
        assert_eq!(levels(&check(&here)), FINE);
        here.journals = Ok((BTreeSet::from(["j".to_owned()]), 1));
        let found = levels(&check(&here));
        assert_eq!(found[1..3], [(Code::Jobs, Level::Ok), (Code::Journals, Level::Warning)]);
        here.journals = Err(Error::new(Kind::Usage, "line 3 is not an entry"));
        assert_eq!(levels(&check(&here))[1], (Code::Journals, Level::Error));
    }

    #[test]
    fn directories_that_cannot_be_written_are_errors() {
        let mut here = here();
        here.writable = Err("read-only".into());
        here.store.writable = Err("read-only".into());
        let findings = check(&here);
        assert_eq!(levels(&findings)[0], (Code::State, Level::Error));
        assert_eq!(levels(&findings)[2], (Code::Store, Level::Error));
        assert_eq!((findings[0].kind, findings[2].kind), (Kind::Usage, Kind::Store));
    }

    #[test]
    fn an_absent_store_is_a_warning_and_a_broken_one_an_error() {
        let mut here = here();
        here.store.state = StoreState::Absent(Error::new(Kind::Store, "there is no store"));
        assert_eq!(levels(&check(&here))[1], (Code::NoStore, Level::Warning));
        here.store.state = StoreState::Unusable(Error::new(Kind::Damaged, "its config is damaged"));
        let findings = check(&here);
        assert_eq!((levels(&findings)[1], findings[1].kind), ((Code::Store, Level::Error), Kind::Damaged));
        here.store.state = open(vec!["pack a: torn".to_owned()]);
        assert_eq!(levels(&check(&here))[2], (Code::StoreDamaged, Level::Error));
    }

    #[test]
    fn room_for_the_store_is_judged_at_both_limits() {
        let mut here = here();
        let mut room = |free: u64, size: u64| {
            here.store.room = Some((ByteCount::new(free), ByteCount::new(size)));
            levels(&check(&here)).get(2).copied()
        };
        assert_eq!(room(LEAST_ROOM - 1, LEAST_ROOM), Some((Code::StoreSpace, Level::Error)));
        assert_eq!(room(LEAST_ROOM, LEAST_ROOM), None);
        let size = LEAST_ROOM * ROOM_PART * 2;
        assert_eq!(room(size / ROOM_PART - 1, size), Some((Code::StoreSpace, Level::Warning)));
        assert_eq!(room(size / ROOM_PART, size), None);
    }

    #[test]
    fn looking_at_a_directory_that_is_not_there_makes_nothing() {
        let directory = tempfile::tempdir().expect("directory");
        let state = State::open(directory.path().join("state")).expect("state");
        let store = directory.path().join("a/b/store");
        let here = Here::look(&state, &store);
        assert!(matches!(here.store.state, StoreState::Absent(_)), "{here:?}");
        assert!(here.store.room.is_some() && here.store.writable.is_ok());
        assert!(!directory.path().join("a").exists());
    }

    #[test]
    fn addresses_of_this_machine_are_told_from_others() {
        let config = |listen: &str, advertise: &str| PoolConfig {
            name: "dc1".into(),
            uuid: "u".into(),
            endpoint: "https://10.0.0.1".into(),
            user: "root".into(),
            password_file: None,
            certificates: Default::default(),
            advertise: Some(advertise.parse().expect("address")),
            listen: Some(listen.parse().expect("address")),
            networks: Vec::new(),
            keep_idle: 0,
            keep_idle_for_s: 0,
        };
        let calling = Calling::look(&config("127.0.0.1:0", "127.0.0.1"));
        assert_eq!(check_calling("dc1", &calling), []);
        // Documentation addresses belong to nobody.
        let calling = Calling::look(&config("192.0.2.1:0", "192.0.2.1"));
        let found = levels(&check_calling("dc1", &calling));
        assert_eq!(found, [(Code::Listen, Level::Error), (Code::Advertise, Level::Warning)]);
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("an address").to_string();
        let calling = Calling::look(&config(&address, "127.0.0.1"));
        assert_eq!(levels(&check_calling("dc1", &calling)), [(Code::Listen, Level::Warning)]);
    }

    #[test]
    fn the_local_socket_needs_an_address_for_delegates() {
        let local = Calling { listen: None, advertise: None, local: true };
        assert_eq!(levels(&check_calling("here", &local)), [(Code::Advertise, Level::Warning)]);
        assert_eq!(check_calling("dc1", &Calling { local: false, ..local }), []);
    }
}
