//! A copy of one domain's store, so that it can be asked at once and after the domain's end.

use super::store::{Client, StoreError};
use crate::guest::xenstore::GUEST_WRITABLE;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The domain's nodes as they were when a change was last told.
#[derive(Debug)]
pub(crate) struct Mirror {
    domain_id: u32,
    home: String,
    client: Client,
    /// By path relative to the home, without the home itself.
    nodes: Mutex<BTreeMap<String, String>>,
}

impl Mirror {
    pub(super) fn new(domain_id: u32, client: Client) -> Mirror {
        let home = format!("/local/domain/{domain_id}");
        Mirror { domain_id, home, client, nodes: Mutex::default() }
    }

    pub(super) fn home(&self) -> &str {
        &self.home
    }

    /// The path seen from the home; `None` where it lies elsewhere.
    pub(super) fn relative<'a>(&self, path: &'a str) -> Option<&'a str> {
        let rest = path.strip_prefix(&self.home)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
    }

    /// Gives the guest its subtrees and what stands in its store from the start. `xl` made the rest.
    pub(super) async fn fill(&self, values: &BTreeMap<String, String>) -> Result<(), StoreError> {
        // The frontends' directories have owners of their own.
        for name in GUEST_WRITABLE.into_iter().filter(|name| *name != "device") {
            self.client.make_owned(&self.absolute(name), self.domain_id).await?;
        }
        // `xl` writes where the domain's own record is.
        for (path, value) in values.iter().filter(|(path, _)| *path != "vm") {
            self.client.write(&self.absolute(path), value).await?;
        }
        Ok(())
    }

    /// Reads a node and all below again. Says whether the node is there.
    pub(super) async fn refresh(&self, relative: &str) -> Result<bool, StoreError> {
        let mut found = BTreeMap::new();
        let mut open = vec![relative.to_owned()];
        while let Some(path) = open.pop() {
            let absolute = self.absolute(&path);
            // It may go between the two.
            let (Some(value), Some(names)) =
                (self.client.read(&absolute).await?, self.client.list(&absolute).await?)
            else {
                continue;
            };
            let below = |name: String| if path.is_empty() { name } else { format!("{path}/{name}") };
            open.extend(names.into_iter().map(below));
            found.insert(path, String::from_utf8_lossy(&value).into_owned());
        }
        let exists = found.contains_key(relative);
        // At its end the domain's store is empty, and what it held last is still asked for.
        if relative.is_empty() && !exists {
            return Ok(false);
        }
        let mut nodes = self.lock();
        nodes.retain(|path, _| !is_at_or_below(path, relative));
        if exists {
            let mut parents = relative;
            while let Some((parent, _)) = parents.rsplit_once('/') {
                nodes.entry(parent.to_owned()).or_default();
                parents = parent;
            }
        }
        found.remove("");
        nodes.append(&mut found);
        Ok(exists)
    }

    /// The node and all below, as [`super::super::Guest::xenstore_tree`] gives them.
    pub(crate) fn collect(&self, prefix: &str) -> BTreeMap<String, String> {
        let nodes = self.lock();
        let inside = nodes.iter().filter(|(path, _)| is_at_or_below(path, prefix));
        inside.map(|(path, value)| (path.clone(), value.clone())).collect()
    }

    pub(crate) fn value(&self, path: &str) -> Option<String> {
        self.lock().get(path).cloned()
    }

    /// Puts a subtree in the place of another, owned by the guest as before.
    pub(crate) async fn replace(
        &self,
        prefix: &str,
        values: &BTreeMap<String, String>,
    ) -> Result<(), &'static str> {
        let replaced = async {
            self.client.remove(&self.absolute(prefix)).await?;
            self.client.make_owned(&self.absolute(prefix), self.domain_id).await?;
            for (path, value) in values {
                self.client.write(&self.absolute(path), value).await?;
            }
            Ok(())
        };
        if let Some(outside) = values.keys().find(|path| !is_at_or_below(path, prefix)) {
            tracing::error!(outside, prefix, "a value outside of the subtree that was to be replaced");
            return Err("EINVAL");
        }
        match replaced.await {
            Ok(()) => Ok(()),
            Err(StoreError::Lost) => Err("EIO"),
            Err(StoreError::Refused(errno)) => {
                tracing::error!(errno, "xenstored refused a write");
                Err("EACCES")
            }
        }
    }

    fn absolute(&self, relative: &str) -> String {
        match relative {
            "" => self.home.clone(),
            _ => format!("{}/{relative}", self.home),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        // Nothing that panics is done under the lock.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_at_or_below(path: &str, above: &str) -> bool {
    above.is_empty() || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_only_begins_alike_is_not_below() {
        assert!(is_at_or_below("vm-data", "vm-data") && is_at_or_below("vm-data/a", "vm-data"));
        assert!(is_at_or_below("anything", ""));
        assert!(!is_at_or_below("vm-data2", "vm-data") && !is_at_or_below("vm", "vm-data"));
    }
}
