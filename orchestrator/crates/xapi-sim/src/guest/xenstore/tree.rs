//! The tree of one XenStore: paths, values and permissions.
//!
//! Nodes are shared, never changed in place: a copy of the tree costs one pointer, which is what a
//! transaction's snapshot is. Promises: an operation that fails leaves the tree as it was.
//!
//! Rules are those of the daemon that XenServer runs (oxenstored): quota, errors and the order in
//! which they are found are taken from it.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Longest path: oxenstored's default of `quota-path-max`, counted without the home of the domain.
const PATH_MAX: usize = 1024;
/// Largest value: oxenstored's default of `quota-maxsize`.
pub(crate) const VALUE_MAX: usize = 2048;
/// Most nodes a guest may own: oxenstored's default of `quota-maxentity`.
pub(crate) const NODES_MAX: usize = 1000;

/// A domain's number. 0 is the control domain, to which nothing is forbidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DomainId(pub(crate) u32);

impl DomainId {
    pub(crate) const CONTROL: DomainId = DomainId(0);

    /// The node that relative paths start from.
    pub(crate) fn home(self) -> Path {
        Path(vec!["local".into(), "domain".into(), self.0.to_string()])
    }
}

/// Why a request is refused, by the name that goes over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Again,
    Busy,
    Denied,
    Exists,
    Invalid,
    Io,
    NoSuchCall,
    NotFound,
    Quota,
    TooBig,
}

impl Refusal {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Refusal::Again => "EAGAIN",
            Refusal::Busy => "EBUSY",
            Refusal::Denied => "EACCES",
            Refusal::Exists => "EEXIST",
            Refusal::Invalid => "EINVAL",
            Refusal::Io => "EIO",
            Refusal::NoSuchCall => "ENOSYS",
            Refusal::NotFound => "ENOENT",
            Refusal::Quota => "EQUOTA",
            Refusal::TooBig => "E2BIG",
        }
    }
}

/// An absolute path, already checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path(Vec<String>);

impl Path {
    /// Reads a path as a client wrote it; a relative one starts at `home`.
    pub(crate) fn parse(text: &[u8], home: &Path) -> Result<Path, Refusal> {
        let text = std::str::from_utf8(text).map_err(|_| Refusal::Invalid)?;
        if text.is_empty() || text.len() > PATH_MAX {
            return Err(Refusal::Invalid);
        }
        let Some(absolute) = text.strip_prefix('/') else {
            return home.join(text);
        };
        if absolute.is_empty() {
            return Ok(Path(Vec::new()));
        }
        Path(Vec::new()).join(absolute)
    }

    /// The path `relative` below this one.
    pub(crate) fn join(&self, relative: &str) -> Result<Path, Refusal> {
        let mut names = self.0.clone();
        for name in relative.split('/') {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'@');
            if name.is_empty() || !name.bytes().all(allowed) {
                return Err(Refusal::Invalid);
            }
            names.push(name.to_owned());
        }
        Ok(Path(names))
    }

    pub(crate) fn parent(&self) -> Path {
        Path(self.0[..self.0.len().saturating_sub(1)].to_vec())
    }

    /// Whether this path is `above` or lies under it.
    pub(crate) fn is_at_or_below(&self, above: &Path) -> bool {
        self.0.starts_with(&above.0)
    }

    /// The text without a leading slash, seen from `above`; `None` when it does not lie under it.
    pub(crate) fn relative_to(&self, above: &Path) -> Option<String> {
        self.0.strip_prefix(above.0.as_slice()).map(|names| names.join("/"))
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/{}", self.0.join("/"))
    }
}

/// What a domain may do to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    None,
    Read,
    Write,
    Both,
}

impl Access {
    fn allows(self, wanted: Access) -> bool {
        self == Access::Both || (self == wanted && self != Access::None)
    }

    fn letter(self) -> char {
        match self {
            Access::None => 'n',
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Both => 'b',
        }
    }
}

/// A node's owner (who may do everything), what the others may do, and exceptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Permissions {
    pub(crate) owner: DomainId,
    pub(crate) others: Access,
    pub(crate) exceptions: Vec<(DomainId, Access)>,
}

impl Permissions {
    /// Only the owner may see or touch the node.
    pub(crate) fn owned_by(owner: DomainId) -> Permissions {
        Permissions { owner, others: Access::None, exceptions: Vec::new() }
    }

    /// The control domain's node, which `reader` may look at.
    pub(crate) fn readable_by(reader: DomainId) -> Permissions {
        Permissions { exceptions: vec![(reader, Access::Read)], ..Permissions::owned_by(DomainId::CONTROL) }
    }

    fn allow(&self, caller: DomainId, wanted: Access) -> bool {
        if caller == DomainId::CONTROL || caller == self.owner {
            return true;
        }
        let exception = self.exceptions.iter().find(|(domain, _)| *domain == caller);
        exception.map_or(self.others, |(_, access)| *access).allows(wanted)
    }

    /// `n3\0r0\0`: the first entry is the owner with what all others may do.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("{}{}\0", self.others.letter(), self.owner.0);
        for (domain, access) in &self.exceptions {
            text.push_str(&format!("{}{}\0", access.letter(), domain.0));
        }
        text.into_bytes()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Permissions, Refusal> {
        let list = bytes.strip_suffix(b"\0").ok_or(Refusal::Invalid)?;
        let mut entries = list.split(|byte| *byte == 0).map(Permissions::entry_from_bytes);
        let (owner, others) = entries.next().ok_or(Refusal::Invalid)??;
        Ok(Permissions { owner, others, exceptions: entries.collect::<Result<_, _>>()? })
    }

    fn entry_from_bytes(entry: &[u8]) -> Result<(DomainId, Access), Refusal> {
        let text = std::str::from_utf8(entry).map_err(|_| Refusal::Invalid)?;
        let access = match text.as_bytes().first() {
            Some(b'n') => Access::None,
            Some(b'r') => Access::Read,
            Some(b'w') => Access::Write,
            Some(b'b') => Access::Both,
            _ => return Err(Refusal::Invalid),
        };
        let domain = text[1..].parse().map_err(|_| Refusal::Invalid)?;
        Ok((DomainId(domain), access))
    }
}

#[derive(Debug, Clone)]
struct Node {
    value: Vec<u8>,
    permissions: Permissions,
    children: BTreeMap<String, Arc<Node>>,
}

impl Node {
    fn count_owned_by(&self, owner: DomainId) -> usize {
        let below: usize = self.children.values().map(|child| child.count_owned_by(owner)).sum();
        below + usize::from(self.permissions.owner == owner)
    }

    fn collect(&self, path: &str, into: &mut BTreeMap<String, Vec<u8>>) {
        into.insert(path.to_owned(), self.value.clone());
        for (name, child) in &self.children {
            child.collect(&format!("{path}/{name}"), into);
        }
    }
}

/// All nodes. Cloning makes a snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    root: Arc<Node>,
}

impl Tree {
    /// A root that belongs to the control domain and nothing else.
    pub(crate) fn new() -> Tree {
        Tree {
            root: Arc::new(Node {
                value: Vec::new(),
                permissions: Permissions::owned_by(DomainId::CONTROL),
                children: BTreeMap::new(),
            }),
        }
    }

    /// Whether nothing at all was written between the two.
    pub(crate) fn is_same_as(&self, other: &Tree) -> bool {
        Arc::ptr_eq(&self.root, &other.root)
    }

    pub(crate) fn contains(&self, path: &Path) -> bool {
        self.node(path).is_some()
    }

    pub(crate) fn read(&self, caller: DomainId, path: &Path) -> Result<&[u8], Refusal> {
        Ok(&self.node_for(caller, path, Access::Read)?.value)
    }

    /// Names of the children.
    pub(crate) fn list(&self, caller: DomainId, path: &Path) -> Result<Vec<&str>, Refusal> {
        let node = self.node_for(caller, path, Access::Read)?;
        Ok(node.children.keys().map(String::as_str).collect())
    }

    pub(crate) fn permissions(&self, caller: DomainId, path: &Path) -> Result<&Permissions, Refusal> {
        Ok(&self.node_for(caller, path, Access::Read)?.permissions)
    }

    /// Writes the value, making the node and its parents where they are missing.
    pub(crate) fn write(&mut self, caller: DomainId, path: &Path, value: &[u8]) -> Result<(), Refusal> {
        if caller != DomainId::CONTROL && value.len() > VALUE_MAX {
            return Err(Refusal::TooBig);
        }
        let mut changed = self.clone();
        changed.create(caller, path)?;
        let node = changed.node_mut(path).ok_or(Refusal::NotFound)?;
        if !node.permissions.allow(caller, Access::Write) {
            return Err(Refusal::Denied);
        }
        node.value = value.to_vec();
        *self = changed;
        Ok(())
    }

    /// Makes the node and its parents where they are missing. One that exists must be writable all
    /// the same.
    pub(crate) fn make_directory(&mut self, caller: DomainId, path: &Path) -> Result<(), Refusal> {
        let mut changed = self.clone();
        changed.create(caller, path)?;
        changed.node_for(caller, path, Access::Write)?;
        *self = changed;
        Ok(())
    }

    /// Removes the node and all below it. A missing node is fine, a missing parent is not. Says
    /// whether there was anything to remove.
    pub(crate) fn remove(&mut self, caller: DomainId, path: &Path) -> Result<bool, Refusal> {
        let Some(name) = path.0.last() else {
            return Err(if caller == DomainId::CONTROL { Refusal::Invalid } else { Refusal::Denied });
        };
        self.node(&path.parent()).ok_or(Refusal::NotFound)?;
        let Some(node) = self.node(path) else {
            return Ok(false);
        };
        if !node.permissions.allow(caller, Access::Write) {
            return Err(Refusal::Denied);
        }
        if let Some(parent) = self.node_mut(&path.parent()) {
            parent.children.remove(name);
        }
        Ok(true)
    }

    /// Only the owner may, and the owner stays the same (the control domain may do both).
    pub(crate) fn set_permissions(
        &mut self,
        caller: DomainId,
        path: &Path,
        permissions: Permissions,
    ) -> Result<(), Refusal> {
        let owner = self.node(path).ok_or(Refusal::NotFound)?.permissions.owner;
        let keeps_owner = owner == caller && permissions.owner == owner;
        if caller != DomainId::CONTROL && !keeps_owner {
            return Err(Refusal::Denied);
        }
        let node = self.node_mut(path).ok_or(Refusal::NotFound)?;
        node.permissions = permissions;
        Ok(())
    }

    /// Whether a change at `path` may be told to `caller`: it can read the node, or its parent when
    /// the node is gone.
    pub(crate) fn is_visible(&self, caller: DomainId, path: &Path) -> bool {
        let readable =
            |path: &Path| self.node(path).is_some_and(|node| node.permissions.allow(caller, Access::Read));
        readable(path) || readable(&path.parent())
    }

    /// The node at `path` and all below, by path relative to `home`, with their values.
    pub(crate) fn collect(&self, home: &Path, path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        if let (Some(node), Some(relative)) = (self.node(path), path.relative_to(home)) {
            node.collect(&relative, &mut found);
        }
        found
    }

    fn node(&self, path: &Path) -> Option<&Node> {
        let mut node = &self.root;
        for name in &path.0 {
            node = node.children.get(name)?;
        }
        Some(node)
    }

    fn node_mut(&mut self, path: &Path) -> Option<&mut Node> {
        let mut node = Arc::make_mut(&mut self.root);
        for name in &path.0 {
            node = Arc::make_mut(node.children.get_mut(name)?);
        }
        Some(node)
    }

    fn node_for(&self, caller: DomainId, path: &Path, wanted: Access) -> Result<&Node, Refusal> {
        let node = self.node(path).ok_or(Refusal::NotFound)?;
        if node.permissions.allow(caller, wanted) { Ok(node) } else { Err(Refusal::Denied) }
    }

    /// Makes every missing node on the way. Each takes its parent's permissions, and the deepest one
    /// that exists must be writable.
    fn create(&mut self, caller: DomainId, path: &Path) -> Result<(), Refusal> {
        let mut owned = None;
        for depth in 1..=path.0.len() {
            let here = Path(path.0[..depth].to_vec());
            if self.node(&here).is_some() {
                continue;
            }
            let parent = self.node_for(caller, &here.parent(), Access::Write)?;
            let permissions = parent.permissions.clone();
            if caller != DomainId::CONTROL {
                let count = owned.get_or_insert_with(|| self.root.count_owned_by(caller));
                if *count >= NODES_MAX {
                    return Err(Refusal::Quota);
                }
                *count += 1;
            }
            let child = Arc::new(Node { value: Vec::new(), permissions, children: BTreeMap::new() });
            let parent = self.node_mut(&here.parent()).ok_or(Refusal::NotFound)?;
            parent.children.insert(path.0[depth - 1].clone(), child);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const GUEST: DomainId = DomainId(7);

    fn path(text: &str) -> Path {
        Path::parse(text.as_bytes(), &GUEST.home()).unwrap()
    }

    fn tree_with_writable(name: &str) -> Tree {
        let mut tree = Tree::new();
        tree.make_directory(DomainId::CONTROL, &GUEST.home()).unwrap();
        tree.set_permissions(DomainId::CONTROL, &GUEST.home(), Permissions::readable_by(GUEST)).unwrap();
        tree.make_directory(DomainId::CONTROL, &path(name)).unwrap();
        tree.set_permissions(DomainId::CONTROL, &path(name), Permissions::owned_by(GUEST)).unwrap();
        tree
    }

    #[test]
    fn relative_paths_start_at_the_home_of_the_domain() {
        assert_eq!(path("vm-data/a").to_string(), "/local/domain/7/vm-data/a");
        assert_eq!(path("/local/domain/7/name").relative_to(&GUEST.home()).as_deref(), Some("name"));
        assert_eq!(path("/").to_string(), "/");
    }

    #[test]
    fn paths_with_empty_or_foreign_names_are_invalid() {
        let long = "a".repeat(PATH_MAX + 1);
        for bad in ["", "a//b", "a/", "/a/", "//", "a b", "a.b", "a\u{e4}", long.as_str()] {
            let parsed = Path::parse(bad.as_bytes(), &GUEST.home());
            assert_eq!(parsed, Err(Refusal::Invalid), "{bad:?}");
        }
        assert_eq!(Path::parse(&[0xff, 0xfe], &GUEST.home()), Err(Refusal::Invalid));
    }

    #[test]
    fn permissions_keep_their_text() {
        let bytes = b"n7\0r0\0b32752\0";
        assert_eq!(Permissions::from_bytes(bytes).unwrap().to_bytes(), bytes);
        for bad in [&b""[..], b"\0", b"n7", b"x7\0", b"n\0", b"n-1\0", b"n7\0\0", b"\xc3\xa4\0"] {
            assert_eq!(Permissions::from_bytes(bad), Err(Refusal::Invalid), "{bad:?}");
        }
    }

    #[test]
    fn a_failed_write_leaves_no_parents_behind() {
        let mut tree = tree_with_writable("vm-data");
        let before = tree.clone();
        assert_eq!(tree.write(GUEST, &path("memory/target"), b"1"), Err(Refusal::Denied));
        assert_eq!(tree.write(GUEST, &path("vm-data/a/b"), &[0; VALUE_MAX + 1]), Err(Refusal::TooBig));
        assert!(tree.is_same_as(&before));
        tree.write(GUEST, &path("vm-data/a/b"), &[0; VALUE_MAX]).unwrap();
    }

    #[test]
    fn a_guest_cannot_own_more_nodes_than_the_quota() {
        let mut tree = tree_with_writable("vm-data");
        // The writable directory itself counts.
        for index in 1..NODES_MAX {
            tree.write(GUEST, &path(&format!("vm-data/{index}")), b"").unwrap();
        }
        assert_eq!(tree.write(GUEST, &path("vm-data/more"), b""), Err(Refusal::Quota));
        tree.write(GUEST, &path("vm-data/1"), b"rewritten").unwrap();
        tree.write(DomainId::CONTROL, &path("vm-data/host"), b"").unwrap();
    }

    #[test]
    fn a_snapshot_does_not_see_later_writes() {
        let mut tree = tree_with_writable("vm-data");
        tree.write(GUEST, &path("vm-data/a"), b"1").unwrap();
        let snapshot = tree.clone();
        tree.write(GUEST, &path("vm-data/a"), b"2").unwrap();
        assert_eq!(snapshot.read(GUEST, &path("vm-data/a")), Ok(&b"1"[..]));
        assert_eq!(tree.read(GUEST, &path("vm-data/a")), Ok(&b"2"[..]));
    }
}
