//! What a simulator is started with.

use crate::flavour::Flavour;
use crate::guest::Engine;
use crate::rbac::Role;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, str::FromStr, time::Duration};

/// A storage repository to make, at start or over the control port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SrSpec {
    /// Its name.
    pub name: String,
    /// Its type: `ext`, `nfs`, `lvm`, `lvmoiscsi` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether every host sees it; absent: as is usual for the type.
    pub shared: Option<bool>,
    /// The one host that sees it, counted from 1; absent: the first. Only where it is not shared.
    pub host: Option<usize>,
    /// Its size in bytes; absent: that of the others.
    pub capacity: Option<u64>,
    /// Whether it becomes the pool's default repository.
    #[serde(default)]
    pub default: bool,
}

impl FromStr for SrSpec {
    type Err = String;

    /// `name=NAME,type=TYPE[,shared=BOOL][,host=N][,capacity=SIZE][,default=BOOL]`, sizes with K, M, G or T.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut spec = Self {
            name: String::new(),
            kind: String::new(),
            shared: None,
            host: None,
            capacity: None,
            default: false,
        };
        for member in text.split(',') {
            let (key, value) =
                member.split_once('=').ok_or_else(|| format!("{member:?} is not KEY=VALUE"))?;
            let wrong = |what: &str| format!("{key}={value}: {what} is expected");
            match key {
                "name" => value.clone_into(&mut spec.name),
                "type" => value.clone_into(&mut spec.kind),
                "shared" => spec.shared = Some(value.parse().map_err(|_| wrong("true or false"))?),
                "host" => spec.host = Some(value.parse().map_err(|_| wrong("a number from 1"))?),
                "capacity" => spec.capacity = Some(parse_size(value).ok_or_else(|| wrong("a size"))?),
                "default" => spec.default = value.parse().map_err(|_| wrong("true or false"))?,
                _ => return Err(format!("unknown member {key:?}")),
            }
        }
        if spec.name.is_empty() || spec.kind.is_empty() {
            return Err("name and type are needed".into());
        }
        Ok(spec)
    }
}

/// Bytes, or a number with K, M, G or T for powers of 1024.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'K') => (&text[..at], 10),
        (at, 'M') => (&text[..at], 20),
        (at, 'G') => (&text[..at], 30),
        (at, 'T') => (&text[..at], 40),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// One more user who may log in, with less than everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password.
    pub password: String,
    /// What it may do.
    pub role: Role,
}

impl FromStr for User {
    type Err = String;

    /// `NAME:PASSWORD:ROLE`; the password may hold colons.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(name, rest)| Some((name, rest.rsplit_once(':')?)));
        let (name, (password, role)) = parts.ok_or("NAME:PASSWORD:ROLE is expected")?;
        Ok(Self { name: name.to_owned(), password: password.to_owned(), role: role.parse()? })
    }
}

/// When storage shortens the chains that deleted snapshots leave behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coalesce {
    /// At once. Real storage takes minutes to hours.
    #[default]
    Auto,
    /// Only when asked over the control port: deleted snapshots leave a backlog.
    Manual,
}

impl FromStr for Coalesce {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "manual" => Ok(Self::Manual),
            _ => Err(format!("{text:?} is neither auto nor manual")),
        }
    }
}

/// Everything that can be chosen at start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the simulator's state: disks, logs, guests. Made when missing.
    pub dir: PathBuf,
    /// The release to imitate.
    pub flavour: Flavour,
    /// Whether `/jsonrpc` exists; `false` makes clients fall back to XML-RPC.
    pub json: bool,
    /// The local superuser.
    pub user: String,
    /// Its password.
    pub password: String,
    /// Further users with roles.
    pub extra_users: Vec<User>,
    /// How long a wrong password is left waiting. Real servers: 5 s.
    pub login_delay: Duration,
    /// Number of hosts, each with a local storage repository.
    pub hosts: usize,
    /// Size of each storage repository in bytes.
    pub sr_capacity: u64,
    /// More storage repositories.
    pub srs: Vec<SrSpec>,
    /// When chains are shortened.
    pub coalesce: Coalesce,
    /// Whether VHD repositories round the sizes of disks up to whole 2 MiB blocks, as real ones do. Off by default, so
    /// that disks with a partial last block can be made, as raw repositories and other products have them.
    pub round_sizes: bool,
    /// How long disks stay busy after their guest halted.
    pub detach_lag: Duration,
    /// How long a guest has to acknowledge a clean shutdown. Real servers: 60 s.
    pub shutdown_ack: Duration,
    /// How long a clean shutdown may take in total. Real servers: 1200 s.
    pub shutdown_limit: Duration,
    /// How long `VDI.data_destroy` waits for the VBDs to go. Real servers: 4 s.
    pub data_destroy_wait: Duration,
    /// What runs our delegates: VMs that are clones of the appliance's template. All other guests boot in QEMU.
    pub delegates: Engine,
    /// Whether the log tells what every disk held at each snapshot of a VM; see `lab::contents`. Each snapshot then costs
    /// one reading of its disks.
    pub snapshot_digests: bool,
    /// Whether asynchronous calls wait until a test lets them run, one by one.
    pub step: bool,
    /// Path of the Unix socket; `None` puts `xapi.sock` into `dir`.
    pub socket: Option<PathBuf>,
    /// Fixed loopback ports for HTTPS, HTTP and the lab; 0 picks free ones.
    pub ports: [u16; 3],
}

impl Config {
    /// The defaults for a state directory: newest release, user `root` with password `password`, no login delay.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            flavour: Flavour::newest(),
            json: true,
            user: "root".into(),
            password: "password".into(),
            extra_users: Vec::new(),
            login_delay: Duration::ZERO,
            hosts: 1,
            sr_capacity: 1 << 42,
            srs: Vec::new(),
            coalesce: Coalesce::Auto,
            round_sizes: false,
            detach_lag: Duration::ZERO,
            shutdown_ack: Duration::from_secs(60),
            shutdown_limit: Duration::from_secs(1200),
            data_destroy_wait: Duration::from_secs(4),
            delegates: Engine::Qemu,
            snapshot_digests: false,
            step: false,
            socket: None,
            ports: [0; 3],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_described_in_one_word() {
        let spec: SrSpec = "name=fast,type=lvm,host=2,capacity=10G".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.kind.as_str()), ("fast", "lvm"));
        assert_eq!((spec.shared, spec.host, spec.capacity), (None, Some(2), Some(10 << 30)));
        let spec: SrSpec = "type=nfs,name=a b,shared=true,default=true,capacity=512".parse().unwrap();
        assert_eq!((spec.shared, spec.capacity, spec.default), (Some(true), Some(512), true));
        for bad in
            ["", "name=x", "name=x,type=nfs,host=a", "name=x,type=nfs,size=1", "name=x,type=nfs,capacity=1X"]
        {
            assert!(bad.parse::<SrSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_user_is_name_password_and_role() {
        let user: User = "backup:pass:word:vm-power-admin".parse().unwrap();
        assert_eq!((user.name.as_str(), user.password.as_str()), ("backup", "pass:word"));
        assert_eq!(user.role, Role::VmPowerAdmin);
        for bad in ["", "a:b", "a:b:king", "a"] {
            assert!(bad.parse::<User>().is_err(), "{bad}");
        }
    }
}
