//! The store in the worker's process: its calls are answered by [`Store`] itself.
//!
//! Each answer is what the service's call of the same name gives; there is no connection, no key and no permit. Where it
//! believes, packs are written and synced as they come and trees are taken as they are named: what then is measured is
//! the engine alone. The product never does that; the next step opens the store, and a restore proves every block.

use abd_appliance::worker::{Error, Exchange};
use ads::Store;
use blocks::ByteCount;
use seal::{BlockId, PackId, PackIndex, PackKind, Tree};
use serde::Serialize;
use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
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
    /// Blocks of packs that were believed; none where nothing is.
    pub(crate) believed: Option<Mutex<HashSet<BlockId>>>,
}

impl Engine {
    fn call(&self, path: &str, body: &[u8]) -> Result<Vec<u8>, Failure> {
        if let Some(id) = path.strip_prefix(wire::PATH_PACKS) {
            let id: PackId = id.parse().map_err(|error| wrong(path, error))?;
            let stored = match &self.believed {
                Some(believed) => self.believe(believed, id, body).map_err(|error| wrong(path, error))?,
                None => self.store.add_pack(id, body).map_err(|error| wrong(path, error))?.stored,
            };
            return Ok(wire::encode(&PackAnswer { stored }));
        }
        match path {
            wire::PATH_CLAIM => Ok(wire::encode(&self.order)),
            wire::PATH_BITMAP => self.bitmap.clone().ok_or_else(|| wrong(path, "no bitmap")),
            wire::PATH_KNOWN => {
                let question: KnownQuestion = read(path, body)?;
                let believed =
                    self.believed.as_ref().map(|all| all.lock().unwrap_or_else(PoisonError::into_inner));
                let has =
                    |id| self.store.has_block(id) || believed.as_ref().is_some_and(|all| all.contains(id));
                Ok(wire::encode(&KnownAnswer { known: question.ids.iter().map(has).collect() }))
            }
            wire::PATH_NODES => answer(path, self.nodes(read(path, body)?)),
            wire::PATH_BLOCKS => self.blocks(read(path, body)?).map_err(|error| wrong(path, error)),
            wire::PATH_DISK_DONE => {
                let done: DiskDone = read(path, body)?;
                let base = match &self.order.work {
                    Work::Backup { disks, .. } => disks.first().and_then(|disk| disk.start.base()),
                    Work::Restore { .. } => Some(done.tree()),
                    Work::Diagnose { .. } => None,
                };
                let tree = match &self.believed {
                    Some(_) => done.tree().id(self.store.id_key()),
                    None => self.store.finish_tree(done.tree(), base).map_err(|error| wrong(path, error))?,
                };
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

    /// Keeps a pack as it comes: in the store's place, synced.
    fn believe(
        &self,
        believed: &Mutex<HashSet<BlockId>>,
        id: PackId,
        pack: &[u8],
    ) -> Result<ByteCount, Box<dyn std::error::Error>> {
        let index = PackIndex::from_pack(pack)?;
        let name = id.to_string();
        let folder = self.store.dir().join("packs").join(&name[..2]);
        std::fs::create_dir_all(&folder)?;
        let mut file = File::create(folder.join(name))?;
        file.write_all(pack)?;
        file.sync_all()?;
        if index.kind == PackKind::Data {
            let ids = index.entries.iter().map(|entry| BlockId::from_bytes(entry.id));
            believed.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
        }
        Ok(ByteCount::new(pack.len() as u64))
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, (Option<Tree>, Option<JobDone>)> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tree of the order's disk that may be read.
    fn tree(&self) -> Option<Tree> {
        match &self.order.work {
            Work::Backup { disks, .. } => disks.first().and_then(|disk| disk.start.base()),
            Work::Restore { disks } => disks.first().map(wire::RestoreDisk::tree),
            Work::Diagnose { .. } => None,
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
        let tree = self.tree().unwrap_or(Tree { size: ByteCount::new(0), root: None });
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
