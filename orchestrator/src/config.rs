//! The state directory: pools, their pinned certificates, the installation's id, the journal's place.
//!
//! ```text
//! <state>/owner          uuid of this installation, which tags everything it makes in a pool; on a second line
//!                        `machine` and the SHA-256 of the machine's id, so that a copy elsewhere is noticed
//! <state>/pools.toml     pools; no passwords
//! <state>/journal/       one file per job (see `journal`)
//! <state>/locks/         one file per run and per VM while they run (see `lock`)
//! <state>/store/         the store, unless another one is named
//! <state>/client.pem     this machine's key, for stores that others serve; made on first use, mode 0600
//! <state>/serve/         the key and the known clients of `abd serve`
//! ```

use crate::error::{Error, Kind, Result, file_error};
use crate::networks::DelegateNetwork;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Name of the environment variable that holds a password for every pool.
pub const PASSWORD_VARIABLE: &str = "ABD_PASSWORD";

/// Where a machine's id stands: systemd's file. A machine without one is known by that.
const MACHINE_ID: &str = "/etc/machine-id";

/// Name of the environment variable that binds a state directory to this machine, which it was moved to for good.
pub const ADOPT_VARIABLE: &str = "ABD_ADOPT_STATE";

/// The state directory of this installation.
#[derive(Clone, Debug)]
pub struct State {
    directory: PathBuf,
    owner: String,
}

/// A pool as `abd pool add` recorded it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// The name that commands use.
    pub name: String,
    /// Uuid of the pool: a rebuilt pool under the same address is noticed.
    pub uuid: String,
    /// `https://host[:port]` or `unix:/path`.
    pub endpoint: String,
    /// User; empty on the local socket.
    #[serde(default)]
    pub user: String,
    /// File with the password on its first line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// SHA-256 of the certificates of the pool's hosts, by address.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub certificates: BTreeMap<String, String>,
    /// Address at which delegates reach this machine; found out where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<IpAddr>,
    /// Address and port to listen at for delegates; every address and any port where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<std::net::SocketAddr>,
    /// The networks for delegates, the first for card 0; the management network where there is none.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        alias = "network",
        deserialize_with = "networks"
    )]
    pub networks: Vec<DelegateNetwork>,
    /// Most delegates that are kept, halted, for later jobs, of those that ran on one host; 0 is none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keep_idle: u32,
    /// How long each of these is kept, in seconds.
    #[serde(default = "default_keep_idle_for_s", skip_serializing_if = "is_default_keep_idle_for_s")]
    pub keep_idle_for_s: u64,
}

/// How long a delegate is kept where delegates are kept and nothing else is said: half an hour.
pub const DEFAULT_KEEP_IDLE_FOR_S: u64 = 1800;

/// A list, or the only one by itself.
fn networks<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Vec<DelegateNetwork>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Networks {
        One(String),
        Several(Vec<String>),
    }
    let texts = match Networks::deserialize(deserializer)? {
        Networks::One(text) => vec![text],
        Networks::Several(texts) => texts,
    };
    texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
}

fn is_default(count: &u32) -> bool {
    *count == 0
}

fn default_keep_idle_for_s() -> u64 {
    DEFAULT_KEEP_IDLE_FOR_S
}

fn is_default_keep_idle_for_s(seconds: &u64) -> bool {
    *seconds == DEFAULT_KEEP_IDLE_FOR_S
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct PoolsFile {
    #[serde(default)]
    pool: Vec<PoolConfig>,
}

impl State {
    /// The directory that is used where none is named: `/var/lib/abd` for root, else below
    /// `$XDG_STATE_HOME` or `~/.local/state`.
    pub fn default_directory() -> PathBuf {
        if rustix::process::geteuid().is_root() {
            return "/var/lib/abd".into();
        }
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_else(|| "/".into());
        std::env::var_os("XDG_STATE_HOME")
            .map_or_else(|| home.join(".local/state"), PathBuf::from)
            .join("abd")
    }

    /// Opens the directory, making it (mode 0700) and the installation's id on first use.
    ///
    /// # Errors
    /// [`Kind::Usage`] where it cannot be made or written, and where it belongs to another machine: two machines with
    /// one id take each other's running jobs for dead ones. With [`ADOPT_VARIABLE`] set to `1` it is this machine's
    /// from now on.
    pub fn open(directory: PathBuf) -> Result<Self> {
        let adopt = std::env::var_os(ADOPT_VARIABLE).is_some_and(|value| value == "1");
        Self::open_at(directory, &machine(Path::new(MACHINE_ID))?, adopt)
    }

    /// The same, on the machine with this fingerprint.
    fn open_at(directory: PathBuf, machine: &str, adopt: bool) -> Result<Self> {
        let failed = |path: &Path, doing, error| {
            file_error(Kind::Usage, path, doing, error)
                .remedy("name a writable directory with --state-dir or ABD_STATE_DIR")
        };
        let journal = directory.join("journal");
        fs::create_dir_all(&journal).map_err(|error| failed(&journal, "make", error))?;
        set_mode(&directory, 0o700).map_err(|error| failed(&directory, "protect", error))?;
        let path = directory.join("owner");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                make_owner(&path, machine).map_err(|error| failed(&path, "write", error))?
            }
            Err(error) => return Err(failed(&path, "read", error)),
        };
        let Some((owner, bound)) = parse_owner(&text) else {
            return Err(Error::new(
                Kind::Usage,
                format!("{} does not hold an installation id", path.display()),
            )
            .remedy("restore the file; with another id `abd reconcile` no longer knows its own objects"));
        };
        match bound {
            Some(bound) if bound == machine => {}
            Some(_) if !adopt => return Err(of_another_machine(&directory, &path)),
            // Written before ids were bound, or moved here.
            _ => bind_owner(&path, &owner, machine).map_err(|error| failed(&path, "write", error))?,
        }
        Ok(Self { directory, owner })
    }

    /// The installation's id.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Where the journal stands.
    pub fn journal_directory(&self) -> PathBuf {
        self.directory.join("journal")
    }

    /// Where locks stand.
    pub fn lock_directory(&self) -> PathBuf {
        self.directory.join("locks")
    }

    /// Where it stands which parts of a store were verified when.
    pub fn verified_file(&self, store: &str) -> PathBuf {
        self.directory.join("verified").join(store)
    }

    /// The store that is used where none is named.
    pub fn default_store(&self) -> PathBuf {
        self.directory.join("store")
    }

    /// The key by which servers of stores know this machine.
    pub fn client_key_path(&self) -> PathBuf {
        self.directory.join("client.pem")
    }

    /// What `abd serve` keeps.
    pub fn serve_directory(&self) -> PathBuf {
        self.directory.join("serve")
    }

    /// Every pool, in the order in which they were added.
    ///
    /// # Errors
    /// [`Kind::Usage`] naming the file and the line that is wrong.
    pub fn pools(&self) -> Result<Vec<PoolConfig>> {
        let path = self.pools_path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(file_error(Kind::Usage, &path, "read", error)),
        };
        let file: PoolsFile = toml::from_str(&text).map_err(|error| {
            Error::new(Kind::Usage, format!("{} is not valid", path.display())).because(error)
        })?;
        Ok(file.pool)
    }

    /// The pool of a name, or the only one where no name is given.
    ///
    /// # Errors
    /// [`Kind::NotFound`] where it does not exist or a name is needed.
    pub fn pool(&self, name: Option<&str>) -> Result<PoolConfig> {
        let mut pools = self.pools()?;
        let names = pools.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>().join(", ");
        match name {
            _ if pools.is_empty() => Err(Error::new(Kind::NotFound, "no pool is known yet")
                .remedy("add one: abd pool add https://HOST --user root --password-file FILE")),
            Some(name) => match pools.iter().position(|pool| pool.name == name) {
                Some(at) => Ok(pools.swap_remove(at)),
                None => Err(Error::new(Kind::NotFound, format!("no pool is named '{name}'"))
                    .remedy(format!("known pools: {names}"))),
            },
            None if pools.len() == 1 => Ok(pools.swap_remove(0)),
            None => Err(Error::new(Kind::NotFound, "more than one pool is known, and none was named")
                .remedy(format!("say --pool NAME; known pools: {names}"))),
        }
    }

    /// Replaces the list of pools, durably.
    ///
    /// # Errors
    /// [`Kind::Usage`] where the file cannot be written.
    pub fn save_pools(&self, pools: Vec<PoolConfig>) -> Result<()> {
        let path = self.pools_path();
        let text = toml::to_string_pretty(&PoolsFile { pool: pools }).map_err(|error| {
            Error::new(Kind::Usage, "the list of pools cannot be written as TOML").because(error)
        })?;
        write_durable(&path, text.as_bytes()).map_err(|error| file_error(Kind::Usage, &path, "write", error))
    }

    fn pools_path(&self) -> PathBuf {
        self.directory.join("pools.toml")
    }
}

impl PoolConfig {
    /// The password: from `$ABD_PASSWORD`, from systemd's credential `abd-<pool>`, or from the pool's file.
    ///
    /// # Errors
    /// [`Kind::Auth`] where there is none, naming the places that were looked at.
    pub fn password(&self) -> Result<xapi::Secret> {
        if let Ok(password) = std::env::var(PASSWORD_VARIABLE) {
            return Ok(xapi::Secret::new(password));
        }
        let credential = std::env::var_os("CREDENTIALS_DIRECTORY")
            .map(|directory| PathBuf::from(directory).join(format!("abd-{}", self.name)))
            .filter(|path| path.exists());
        let Some(path) = credential.or_else(|| self.password_file.clone()) else {
            return Err(Error::new(Kind::Auth, format!("no password is known for pool '{}'", self.name)).remedy(
                format!(
                    "set {PASSWORD_VARIABLE}, give the systemd credential abd-{}, or add the pool with --password-file",
                    self.name
                ),
            ));
        };
        let text = fs::read_to_string(&path).map_err(|error| file_error(Kind::Auth, &path, "read", error))?;
        Ok(xapi::Secret::new(text.lines().next().unwrap_or_default().to_owned()))
    }
}

/// What tells this machine from another: a digest, because the id itself is not to be shown around.
fn machine(path: &Path) -> Result<String> {
    let id = match fs::read_to_string(path) {
        Ok(id) => id,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(file_error(Kind::Usage, path, "read", error)),
    };
    Ok(pin::Fingerprint::of(id.trim().as_bytes()).to_string())
}

fn owner_text(owner: &str, machine: &str) -> String {
    format!("{owner}\nmachine {machine}\n")
}

/// The installation's id, and the machine that it is bound to, if it is; none for what is no such file.
fn parse_owner(text: &str) -> Option<(String, Option<String>)> {
    let mut lines = text.lines().map(str::trim);
    let owner = uuid::Uuid::parse_str(lines.next()?).ok()?.to_string();
    let bound = match lines.find(|line| !line.is_empty()) {
        None => None,
        Some(line) => Some(line.strip_prefix("machine ")?.to_owned()),
    };
    Some((owner, bound))
}

fn of_another_machine(directory: &Path, owner: &Path) -> Error {
    Error::new(
        Kind::Usage,
        format!(
            "the state directory {} belongs to another machine: two that share it remove each other's running jobs",
            directory.display()
        ),
    )
    .remedy(format!(
        "if it was moved here for good and the other machine runs abd no more, run once with {ADOPT_VARIABLE}=1; if it \
         is a copy, remove {}: then this is an installation of its own, whose first backups read everything",
        owner.display()
    ))
}

/// Makes the installation's id and gives what the file holds. Of two processes that do so at once one wins, and both
/// use its id.
fn make_owner(path: &Path, machine: &str) -> std::io::Result<String> {
    let part = part_of_owner(path);
    write_durable(&part, owner_text(&uuid::Uuid::new_v4().to_string(), machine).as_bytes())?;
    let linked = fs::hard_link(&part, path);
    fs::remove_file(&part)?;
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::read_to_string(path),
    }
}

/// Binds the installation's id to a machine. Several processes may do so at once.
fn bind_owner(path: &Path, owner: &str, machine: &str) -> std::io::Result<()> {
    let part = part_of_owner(path);
    write_durable(&part, owner_text(owner, machine).as_bytes())?;
    fs::rename(&part, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// A name of this process's own for the file while it is written.
fn part_of_owner(path: &Path) -> PathBuf {
    path.with_file_name(format!("owner-{}", uuid::Uuid::new_v4()))
}

/// Writes a file so that after a crash it is either the old or the new one.
pub(crate) fn write_durable(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let part = path.with_extension("new");
    let mut file = fs::File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&part, path)?;
    fs::File::open(directory)?.sync_all()
}

fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_on_another_machine_is_refused_until_it_is_adopted_or_renewed() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("state");
        let open = |machine: &str, adopt| State::open_at(path.clone(), machine, adopt);
        let owner = open("here", false).expect("made").owner().to_owned();
        assert_eq!(open("here", false).expect("again").owner(), owner);
        let error = open("there", false).expect_err("a copy");
        assert_eq!(error.kind(), Kind::Usage);
        let remedy = error.remedy_text().expect("remedy");
        assert!(remedy.contains("ABD_ADOPT_STATE=1") && remedy.contains("state/owner:"), "{remedy}");
        assert_eq!(open("there", true).expect("moved").owner(), owner);
        assert_eq!(open("there", false).expect("bound from now on").owner(), owner);
        open("here", false).expect_err("it is the other one's now");
        fs::remove_file(path.join("owner")).expect("removed");
        assert_ne!(open("here", false).expect("an installation of its own").owner(), owner);
    }

    #[test]
    fn an_id_without_a_machine_is_bound_when_it_is_next_used() {
        let directory = tempfile::tempdir().expect("directory");
        let owner = uuid::Uuid::new_v4().to_string();
        for text in [owner.clone(), format!("{owner}\n")] {
            fs::write(directory.path().join("owner"), text).expect("written");
            let open = |machine| State::open_at(directory.path().to_owned(), machine, false);
            assert_eq!(open("here").expect("bound").owner(), owner);
            assert_eq!(open("here").expect("again").owner(), owner);
            open("there").expect_err("bound to the first");
        }
    }

    #[test]
    fn a_damaged_id_is_never_replaced() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("owner");
        let owner = uuid::Uuid::new_v4();
        for text in [String::new(), "x".into(), format!("{owner}\nmach"), format!("{owner}\nhost x\n")] {
            fs::write(&path, &text).expect("written");
            State::open_at(directory.path().to_owned(), "here", true).expect_err("damaged");
            assert_eq!(fs::read_to_string(&path).expect("still there"), text);
        }
    }

    #[test]
    fn machines_are_told_apart_by_their_id_and_one_without_has_a_fingerprint_too() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("machine-id");
        let none = machine(&path).expect("none");
        fs::write(&path, "0123456789abcdef0123456789abcdef\n").expect("written");
        let one = machine(&path).expect("one");
        fs::write(&path, "1123456789abcdef0123456789abcdef\n").expect("written");
        assert!(one != none && machine(&path).expect("another") != one);
        assert!(!one.contains("0123456789abcdef"), "the id itself is not told");
    }

    #[test]
    fn pools_survive_and_are_found_by_name() {
        let directory = tempfile::tempdir().expect("directory");
        let state = State::open(directory.path().join("state")).expect("state");
        assert_eq!(state.pool(None).expect_err("none yet").kind(), Kind::NotFound);
        let pool = |name: &str| PoolConfig {
            name: name.into(),
            uuid: "u".into(),
            endpoint: "https://10.0.0.1".into(),
            user: "root".into(),
            password_file: Some("/etc/abd/password".into()),
            certificates: BTreeMap::from([("10.0.0.1:443".into(), "ab".repeat(32))]),
            advertise: None,
            listen: None,
            networks: vec!["storage,address=10.9.0.5/24".parse().expect("a network")],
            keep_idle: 2,
            keep_idle_for_s: 60,
        };
        state.save_pools(vec![pool("a")]).expect("save");
        assert_eq!(state.pool(None).expect("the only one"), pool("a"));
        state.save_pools(vec![pool("a"), pool("b")]).expect("save");
        assert_eq!(state.pool(None).expect_err("ambiguous").kind(), Kind::NotFound);
        assert_eq!(state.pool(Some("b")).expect("named").name, "b");
        let again = State::open(directory.path().join("state")).expect("state");
        assert_eq!(again.owner(), state.owner());

        let path = state.pools_path();
        let text = fs::read_to_string(&path).expect("pools.toml");
        let list = "networks = [\"storage,address=10.9.0.5/24\"]";
        assert!(text.contains(list), "{text}");
        let one = text.replace(list, "network = \"backup\"");
        fs::write(&path, one).expect("written");
        assert_eq!(state.pool(Some("b")).expect("one by itself").networks[0].name, "backup");
        fs::write(&path, text.replace(list, "networks = [\"backup,mtu=9\"]")).expect("written");
        assert!(state.pools().expect_err("no such setting").chain().contains("mtu=9"));
    }
}
