//! One ABD: a key, a connection, the calls.

use super::{Nodes, Packed, pack_disk};
use blocks::{BlockIndex, ByteCount};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use pin::{Fingerprint, Identity};
use seal::{BlockId, FAN_OUT, IdKey, Node, Opener, Tree};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use wire::*;

pub struct Abd {
    pub identity: Identity,
    sender: SendRequest<Full<Bytes>>,
}

/// Status and failure of a refused call.
pub type Refused = (u16, Failure);

impl Abd {
    pub async fn connect(service: &ads::Service) -> Self {
        let identity = Identity::generate().unwrap();
        Self::connect_to(service.addresses()[0], service.fingerprint(), identity).await.unwrap()
    }

    pub async fn connect_to(
        address: SocketAddr,
        server: Fingerprint,
        identity: Identity,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let tls = TlsConnector::from(Arc::new(identity.client_config(server)?));
        let stream = TcpStream::connect(address).await?;
        let stream = tls.connect(ServerName::try_from(pin::SERVER_NAME)?, stream).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // Its end shows up in the calls.
            let _ = connection.await;
        });
        Ok(Self { identity, sender })
    }

    pub fn key(&self) -> Fingerprint {
        self.identity.fingerprint()
    }

    pub async fn raw(&mut self, method: Method, path: &str, body: Bytes) -> Result<Bytes, Refused> {
        let request =
            Request::builder().method(method).uri(path).header("host", "abd").body(Full::new(body)).unwrap();
        self.sender.ready().await.unwrap();
        let response = self.sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        if status == 200 { Ok(body) } else { Err((status, decode(&body).unwrap())) }
    }

    pub async fn ask<Q: Serialize, A: DeserializeOwned>(
        &mut self,
        path: &str,
        question: &Q,
    ) -> Result<A, Refused> {
        let body = self.raw(Method::POST, path, encode(question).into()).await?;
        Ok(decode(&body).unwrap())
    }

    pub fn claim_of(job: &str) -> Claim {
        Claim {
            protocol: PROTOCOL_VERSION,
            job: job.into(),
            agent: "test".into(),
            boot_ms: 1,
            claim_ms: 2,
            memory: ByteCount::new(128 << 20),
            engine: "none".into(),
        }
    }

    pub async fn claim(&mut self, job: &str) -> Result<Order, Refused> {
        self.ask(PATH_CLAIM, &Self::claim_of(job)).await
    }

    pub async fn put(&mut self, pack: &seal::Pack) -> Result<PackAnswer, Refused> {
        let path = format!("{PATH_PACKS}{}", pack.id);
        let body = self.raw(Method::PUT, &path, pack.bytes.clone().into()).await?;
        Ok(decode(&body).unwrap())
    }

    /// All nodes of the tree that the order names for a disk.
    pub async fn fetch_nodes(&mut self, key: &IdKey, disk: u16, tree: &Tree) -> Nodes {
        let mut found = Nodes::default();
        for level in 1..=tree.levels() {
            let reach = 256u64.pow(level.into());
            let count = tree.size.blocks_ceil().get().div_ceil(reach);
            for first in (0..count).step_by(MAX_NODES) {
                let question = NodesQuestion { disk, level, first, count: MAX_NODES as u16 };
                let answer: NodesAnswer = self.ask(PATH_NODES, &question).await.unwrap();
                for node in answer.nodes {
                    let node = Node::from_bytes(&node.bytes).unwrap();
                    found.0.insert(node.id(key).unwrap(), node);
                }
            }
        }
        found
    }

    pub async fn known(&mut self, ids: Vec<BlockId>) -> Vec<bool> {
        let answer: KnownAnswer = self.ask(PATH_KNOWN, &KnownQuestion { ids }).await.unwrap();
        answer.known
    }

    /// Backs up one disk of a claimed order, as a real ABD would; gives the disk's packs and the answer.
    pub async fn backup_disk(&mut self, order: &Order, disk: u16, bytes: &[u8]) -> (Packed, DiskAnswer) {
        let key = order.keys();
        let Work::Backup { disks, .. } = &order.work else { panic!("a backup order") };
        let base = match disks[usize::from(disk)].start.base() {
            Some(tree) => Some((tree, self.fetch_nodes(&key, disk, &tree).await)),
            None => None,
        };
        let ids: Vec<BlockId> = bytes.chunks(1 << 16).map(|block| key.block_id(block)).collect();
        let mut known = std::collections::HashSet::new();
        for ids in ids.chunks(MAX_KNOWN_IDS) {
            let answer = self.known(ids.to_vec()).await;
            known.extend(ids.iter().zip(answer).filter(|(_, known)| *known).map(|(id, _)| *id));
        }
        let packed = pack_disk(&key, bytes, base, &mut |id| known.contains(id));
        for pack in packed.data.iter().chain(&packed.nodes) {
            assert_eq!(self.put(pack).await.unwrap().stored.get(), pack.bytes.len() as u64);
        }
        let done = DiskDone {
            disk,
            size: packed.tree.size,
            root: packed.tree.root,
            counts: counts(bytes.len()),
            bad: BadRanges::default(),
            pacing: Pacing::default(),
        };
        let answer = self.ask(PATH_DISK_DONE, &done).await.unwrap();
        (packed, answer)
    }

    /// Restores one disk of a claimed order.
    pub async fn restore_disk(&mut self, order: &Order, disk: u16) -> Vec<u8> {
        let key = order.keys();
        let Work::Restore { disks } = &order.work else { panic!("a restore order") };
        let tree = disks[usize::from(disk)].tree();
        let mut nodes = self.fetch_nodes(&key, disk, &tree).await;
        let mut wanted = Vec::new();
        seal::walk_leaves(&key, &tree, &mut nodes, &mut |index, leaf| {
            for slot in 0..FAN_OUT {
                let block = BlockIndex::new(index * FAN_OUT + slot);
                wanted.extend(leaf.block(slot as usize).map(|id| (block, id)));
            }
            Ok(())
        })
        .unwrap();
        let mut bytes = vec![0; tree.size.to_usize().unwrap()];
        let mut opener = Opener::new().unwrap();
        for batch in wanted.chunks(MAX_BLOCKS) {
            let blocks = batch.iter().map(|(block, _)| *block).collect();
            let question = encode(&BlocksQuestion { disk, blocks });
            let message = self.raw(Method::POST, PATH_BLOCKS, question.into()).await.unwrap();
            let answer: BlocksAnswer<'_> = decode(&message).unwrap();
            for ((block, id), sealed) in batch.iter().zip(answer.blocks) {
                let size = sealed.plain_size as usize;
                let plain = opener.open_block(&key, *id, sealed.sealed().unwrap(), size).unwrap();
                let at = block.to_offset().unwrap().get() as usize;
                bytes[at..at + plain.len()].copy_from_slice(plain);
            }
        }
        bytes
    }
}

pub fn counts(size: usize) -> DiskCounts {
    DiskCounts { moved: ByteCount::new(size as u64), ..DiskCounts::default() }
}

pub fn order(store: &ads::Store, job: &str, work: Work) -> Order {
    Order {
        job: job.into(),
        id_key: store.id_key_bytes(),
        master_key: store.master_key_bytes().unwrap(),
        watchdog_s: 60,
        progress_ms: 500,
        work,
    }
}

pub fn backup_work(disks: &[(usize, Start)]) -> Work {
    let disks = (4..).zip(disks).map(|(userdevice, (size, start))| BackupDisk {
        userdevice,
        size: ByteCount::new(*size as u64),
        start: start.clone(),
        audit: None,
    });
    let pack_size = super::PACK_SIZE as u32;
    Work::Backup {
        level: 1,
        pack_size,
        rate_limit: None,
        throttle: None,
        skip_bad_blocks: false,
        disks: disks.collect(),
    }
}

pub fn restore_work(trees: &[Tree]) -> Work {
    let disks = (4..).zip(trees).map(|(userdevice, tree)| RestoreDisk {
        userdevice,
        device: tree.size,
        size: tree.size,
        root: tree.root,
        blank: true,
    });
    Work::Restore { disks: disks.collect() }
}
