//! The state directory: pools, their pinned certificates, the installation's id, the journal's place.
//!
//! ```text
//! <state>/owner          uuid of this installation; tags everything it makes in a pool
//! <state>/pools.toml     pools; no passwords
//! <state>/journal/       one file per job (see `journal`)
//! <state>/locks/         one file per run and per VM while they run (see `lock`)
//! <state>/store/         the store, unless another one is named
//! ```

use crate::error::{Error, Kind, Result, file_error};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Name of the environment variable that holds a password for every pool.
pub const PASSWORD_VARIABLE: &str = "ABD_PASSWORD";

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
    /// Uuid or name of the network for delegates; the management network where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
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
    /// [`Kind::Usage`] where it cannot be made or written.
    pub fn open(directory: PathBuf) -> Result<Self> {
        let failed = |path: &Path, doing, error| {
            file_error(Kind::Usage, path, doing, error)
                .remedy("name a writable directory with --state-dir or ABD_STATE_DIR")
        };
        let journal = directory.join("journal");
        fs::create_dir_all(&journal).map_err(|error| failed(&journal, "make", error))?;
        set_mode(&directory, 0o700).map_err(|error| failed(&directory, "protect", error))?;
        let path = directory.join("owner");
        let owner = match fs::read_to_string(&path) {
            Ok(text) => uuid::Uuid::parse_str(text.trim())
                .map_err(|_| {
                    Error::new(Kind::Usage, format!("{} does not hold an installation id", path.display()))
                        .remedy("restore the file; with another id `abd reconcile` no longer knows its own objects")
                })?
                .to_string(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                make_owner(&path).map_err(|error| failed(&path, "write", error))?
            }
            Err(error) => return Err(failed(&path, "read", error)),
        };
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

    /// The store that is used where none is named.
    pub fn default_store(&self) -> PathBuf {
        self.directory.join("store")
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

/// Makes the installation's id. Of two processes that do so at once one wins, and both use its id.
fn make_owner(path: &Path) -> std::io::Result<String> {
    let part = path.with_extension(uuid::Uuid::new_v4().to_string());
    write_durable(&part, uuid::Uuid::new_v4().to_string().as_bytes())?;
    let linked = fs::hard_link(&part, path);
    fs::remove_file(&part)?;
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(fs::read_to_string(path)?.trim().to_owned()),
    }
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
            network: None,
        };
        state.save_pools(vec![pool("a")]).expect("save");
        assert_eq!(state.pool(None).expect("the only one"), pool("a"));
        state.save_pools(vec![pool("a"), pool("b")]).expect("save");
        assert_eq!(state.pool(None).expect_err("ambiguous").kind(), Kind::NotFound);
        assert_eq!(state.pool(Some("b")).expect("named").name, "b");
        let again = State::open(directory.path().join("state")).expect("state");
        assert_eq!(again.owner(), state.owner());
    }
}
