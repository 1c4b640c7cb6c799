//! The file that says whose keys `abd serve` knows: `clients.toml`, read again whenever it has changed.

use crate::config::write_durable;
use crate::error::{Error, Kind, Result, file_error};
use ads::{Client, Role};
use pin::Fingerprint;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Longest name of a client.
const MAX_NAME: usize = 64;

/// The file as it is written.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    client: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    key: String,
    role: Role,
}

/// What tells one version of a file from another.
type Stamp = (u64, i64, i64, u64);

/// The known clients.
#[derive(Debug)]
pub struct ClientsFile {
    path: PathBuf,
    read: Mutex<(Option<Stamp>, HashMap<Fingerprint, Client>)>,
}

impl ClientsFile {
    /// The clients in a file; none where there is no file.
    ///
    /// # Errors
    /// [`Kind::Usage`] naming what cannot be read.
    pub fn open(path: PathBuf) -> Result<Self> {
        let stamp = stamp(&path);
        let clients = by_key(load(&path)?);
        Ok(Self { path, read: Mutex::new((stamp, clients)) })
    }

    /// Who has a key, by what the file says now. While it cannot be read, what it said last holds, and the log says so.
    pub fn find(&self, key: Fingerprint) -> Option<Client> {
        let mut read = self.read.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = stamp(&self.path);
        if read.0 != now {
            read.0 = now;
            match load(&self.path) {
                Ok(clients) => {
                    read.1 = by_key(clients);
                    tracing::info!(clients = read.1.len(), "the clients were read again");
                }
                Err(error) => tracing::error!(error = %error.chain(), "the clients stay as they were"),
            }
        }
        read.1.get(&key).cloned()
    }
}

/// The clients in a file, by name.
///
/// # Errors
/// [`Kind::Usage`] naming what cannot be read.
pub fn load(path: &Path) -> Result<Vec<Client>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(file_error(Kind::Usage, path, "read", error)),
    };
    let wrong = |reason: String| {
        Error::new(Kind::Usage, format!("{} is not a list of clients: {reason}", path.display()))
            .remedy("correct it; `abd serve client add` writes it")
    };
    let document: Document = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let mut found: Vec<Client> = Vec::new();
    for Entry { name, key, role } in document.client {
        let key = key.parse::<Fingerprint>().map_err(|error| wrong(error.to_string()))?;
        if found.iter().any(|other| other.name == name || other.key == key) {
            return Err(wrong(format!("the client '{name}', or its key, stands there twice")));
        }
        found.push(Client { name, key, role });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Adds a client.
///
/// # Errors
/// [`Kind::Usage`] where its name does not fit, its name or key is there already, or the file cannot be written.
pub fn add(path: &Path, client: Client) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if client.name.is_empty() || client.name.len() > MAX_NAME || !client.name.bytes().all(plain) {
        let text = format!("'{}' is no name for a client", client.name);
        return Err(Error::new(Kind::Usage, text)
            .remedy(format!("use 1 to {MAX_NAME} letters, digits, '-', '_' and '.'")));
    }
    let mut clients = load(path)?;
    if let Some(other) = clients.iter().find(|other| other.name == client.name || other.key == client.key) {
        let text = format!("client '{}' is there already, with the key {}", other.name, other.key);
        return Err(Error::new(Kind::Usage, text).remedy("remove it first: abd serve client remove NAME"));
    }
    clients.push(client);
    save(path, &clients)
}

/// Removes the client of this name.
///
/// # Errors
/// [`Kind::NotFound`] where there is none; [`Kind::Usage`] where the file cannot be written.
pub fn remove(path: &Path, name: &str) -> Result<Client> {
    let mut clients = load(path)?;
    let Some(at) = clients.iter().position(|client| client.name == name) else {
        return Err(Error::new(Kind::NotFound, format!("no client is named '{name}'"))
            .remedy("see `abd serve client list`"));
    };
    let removed = clients.remove(at);
    save(path, &clients)?;
    Ok(removed)
}

fn save(path: &Path, clients: &[Client]) -> Result<()> {
    let entry =
        |client: &Client| Entry { name: client.name.clone(), key: client.key.to_string(), role: client.role };
    let document = Document { client: clients.iter().map(entry).collect() };
    let text = toml::to_string_pretty(&document)
        .map_err(|error| Error::new(Kind::Usage, "the clients cannot be written as TOML").because(error))?;
    let failed = |error| file_error(Kind::Usage, path, "write", error);
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
    write_durable(path, text.as_bytes()).map_err(failed)
}

fn by_key(clients: Vec<Client>) -> HashMap<Fingerprint, Client> {
    clients.into_iter().map(|client| (client.key, client)).collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let about = fs::metadata(path).ok()?;
    Some((about.ino(), about.mtime(), about.mtime_nsec(), about.size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str, key: u8, role: Role) -> Client {
        Client { name: name.into(), key: Fingerprint::from_bytes([key; 32]), role }
    }

    #[test]
    fn who_is_added_is_known_at_once_and_who_is_removed_is_not() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("serve/clients.toml");
        let file = ClientsFile::open(path.clone()).expect("none yet");
        let (one, two) = (client("dc1", 1, Role::Orchestrator), client("desk", 2, Role::Admin));
        assert_eq!(file.find(one.key), None);
        add(&path, two.clone()).expect("added");
        add(&path, one.clone()).expect("added");
        assert_eq!(file.find(one.key), Some(one.clone()));
        assert_eq!(load(&path).expect("read"), [one.clone(), two.clone()]);
        for (again, other) in [("dc1", 9), ("dc9", 1)] {
            let error = add(&path, client(again, other, Role::Reader)).expect_err("there");
            assert!(error.to_string().contains("'dc1' is there already"), "{error}");
        }
        for name in ["", "a b", "a/b", "\u{e4}", &"x".repeat(65)] {
            add(&path, client(name, 9, Role::Reader)).expect_err(name);
        }
        assert_eq!(remove(&path, "dc1").expect("removed"), one);
        assert_eq!((file.find(one.key), file.find(two.key)), (None, Some(two)));
        assert_eq!(remove(&path, "dc1").expect_err("gone").kind(), Kind::NotFound);
    }

    #[test]
    fn while_the_file_is_wrong_what_it_said_last_holds() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("clients.toml");
        let one = client("dc1", 1, Role::Orchestrator);
        add(&path, one.clone()).expect("added");
        let file = ClientsFile::open(path.clone()).expect("read");
        for wrong in
            ["[[client]]\nname = \"x\"\n", "x", "[[client]]\nname=\"x\"\nkey=\"12\"\nrole=\"admin\"\n"]
        {
            fs::write(&path, wrong).expect("written");
            assert_eq!(file.find(one.key), Some(one.clone()), "{wrong}");
            load(&path).expect_err(wrong);
            assert!(ClientsFile::open(path.clone()).is_err());
        }
        fs::remove_file(&path).expect("removed");
        assert_eq!(file.find(one.key), None, "who has no clients any more lets nobody in");
    }
}
