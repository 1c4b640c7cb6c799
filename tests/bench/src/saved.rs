//! What stays between two commands: a disk's tree, in a file of JSON.

use crate::{Error, io};
use blocks::ByteCount;
use seal::{NodeId, Tree};
use serde::{Deserialize, Serialize};
use std::path::Path;

#[derive(Serialize, Deserialize)]
struct Saved {
    size: u64,
    root: Option<String>,
}

pub(crate) fn write(path: &Path, tree: &Tree) -> Result<(), Error> {
    let saved = Saved { size: tree.size.get(), root: tree.root.map(|root| root.to_string()) };
    let text = serde_json::to_string(&saved).expect("a number and a text");
    std::fs::write(path, text).map_err(io(format!("write {}", path.display())))
}

pub(crate) fn read(path: &Path) -> Result<Tree, Error> {
    let text = std::fs::read_to_string(path).map_err(io(format!("read {}", path.display())))?;
    let bad = |reason: String| Error::Job(format!("{} is no saved tree: {reason}", path.display()));
    let saved: Saved = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    let root: Option<Result<NodeId, _>> = saved.root.map(|root| root.parse());
    let root = root.transpose().map_err(|error| bad(format!("{error}")))?;
    Ok(Tree { size: ByteCount::new(saved.size), root })
}
