//! The store in the worker's process: its calls are answered by [`Store`] itself.
//!
//! Each answer is what the service's call of the same name gives; there is no connection, no key and no permit.

use abd_appliance::worker::{Error, Exchange};
use ads::Store;
use seal::{PackId, Tree};
use serde::Serialize;
use std::sync::{Arc, Mutex, PoisonError};
use wire::{
    BlocksQuestion, DiskAnswer, DiskDone, Failure, JobDone, KnownAnswer, KnownQuestion, NodeBytes,
    NodesAnswer, NodesQuestion, Order, PackAnswer, ProgressAnswer, Work,
};

/// A store and the one job that it answers for.
pub(crate) struct Engine {
    pub(crate) store: Arc<Store>,
    pub(crate) order: Order,
    pub(crate) bitmap: Option<Vec<u8>>,
    pub(crate) heard: Mutex<(Option<Tree>, Option<JobDone>)>,
}

impl Engine {
    fn call(&self, path: &str, body: &[u8]) -> Result<Vec<u8>, Failure> {
        if let Some(id) = path.strip_prefix(wire::PATH_PACKS) {
            let id: PackId = id.parse().map_err(|error| wrong(path, error))?;
            let receipt = self.store.add_pack(id, body).map_err(|error| wrong(path, error))?;
            return Ok(wire::encode(&PackAnswer { stored: receipt.stored }));
        }
        match path {
            wire::PATH_CLAIM => Ok(wire::encode(&self.order)),
            wire::PATH_BITMAP => self.bitmap.clone().ok_or_else(|| wrong(path, "no bitmap")),
            wire::PATH_KNOWN => {
                let question: KnownQuestion = read(path, body)?;
                let known = question.ids.iter().map(|id| self.store.has_block(id)).collect();
                Ok(wire::encode(&KnownAnswer { known }))
            }
            wire::PATH_NODES => answer(path, self.nodes(read(path, body)?)),
            wire::PATH_BLOCKS => self.blocks(read(path, body)?).map_err(|error| wrong(path, error)),
            wire::PATH_DISK_DONE => {
                let done: DiskDone = read(path, body)?;
                let base = match &self.order.work {
                    Work::Backup { disks, .. } => disks.first().and_then(|disk| disk.start.base()),
                    Work::Restore { .. } => Some(done.tree()),
                };
                let tree = self.store.finish_tree(done.tree(), base).map_err(|error| wrong(path, error))?;
                self.heard().0 = Some(done.tree());
                Ok(wire::encode(&DiskAnswer { tree }))
            }
            wire::PATH_PROGRESS => Ok(wire::encode(&ProgressAnswer { stop: false })),
            wire::PATH_JOB_DONE => {
                self.heard().1 = Some(read(path, body)?);
                Ok(wire::encode(&ProgressAnswer { stop: false }))
            }
            _ => Err(wrong(path, "no such call")),
        }
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, (Option<Tree>, Option<JobDone>)> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tree of the order's disk that may be read.
    fn tree(&self) -> Option<Tree> {
        match &self.order.work {
            Work::Backup { disks, .. } => disks.first().and_then(|disk| disk.start.base()),
            Work::Restore { disks } => disks.first().map(wire::RestoreDisk::tree),
        }
    }

    fn nodes(&self, question: NodesQuestion) -> Result<NodesAnswer, ads::Error> {
        let NodesQuestion { level, first, count, .. } = question;
        let Some(tree) = self.tree() else { return Ok(NodesAnswer { nodes: Vec::new() }) };
        let found = self.store.nodes_at(&tree, level, first, count.into())?;
        let nodes =
            found.into_iter().map(|(index, node)| NodeBytes { index, bytes: node.as_bytes().to_vec() });
        Ok(NodesAnswer { nodes: nodes.collect() })
    }

    fn blocks(&self, question: BlocksQuestion) -> Result<Vec<u8>, ads::Error> {
        let tree = self.tree().unwrap_or(Tree { size: blocks::ByteCount::new(0), root: None });
        // Of an absent one nothing is added: the worker counts the answer's blocks.
        let ids: Vec<_> = self.store.blocks_at(&tree, &question.blocks)?.into_iter().flatten().collect();
        self.store.blocks_message(&ids)
    }
}

impl Exchange for Engine {
    fn answer(&self, path: &str, body: &[u8]) -> Result<Vec<u8>, Error> {
        self.call(path, body).map_err(|failure| Error::Refused {
            call: path.to_owned(),
            status: 500,
            failure,
        })
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, Failure> {
    wire::decode(body).map_err(|error| wrong(path, error))
}

fn answer(path: &str, found: Result<impl Serialize, ads::Error>) -> Result<Vec<u8>, Failure> {
    found.map(|answer| wire::encode(&answer)).map_err(|error| wrong(path, error))
}

fn wrong(path: &str, reason: impl std::fmt::Display) -> Failure {
    Failure::new("bench", format!("{path}: {reason}"))
}
