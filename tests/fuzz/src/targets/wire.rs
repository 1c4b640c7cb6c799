//! The messages of `crates/wire`, in both directions, and the bitmap that travels beside them.

use super::tagged;
use ::wire::{
    BitmapQuestion, BlocksAnswer, BlocksQuestion, Claim, DiskAnswer, DiskDone, Failure, JobDone, KnownAnswer,
    KnownQuestion, NodesAnswer, NodesQuestion, PackAnswer, Progress, ProgressAnswer, Spent, account,
};
use blocks::{BLOCK_SIZE, ByteCount, ChangedBlocks, MAX_DISK_SIZE, ReadPlan};
use seal::{BlockId, IdKey, MasterKey, Node, Opener};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;

/// Largest disk whose bitmap is tried: 4096 blocks, 64 words of bitmap. An audit looks at each block.
const BITMAP_DISK: u64 = 256 << 20;

/// Decodes a message. One that can be read is written and read again, and is the same.
pub(super) fn message<T: DeserializeOwned + Serialize + PartialEq + Debug>(body: &[u8]) -> Option<T> {
    let message: T = decode(body)?;
    assert_eq!(decode::<T>(&::wire::encode(&message)).as_ref(), Some(&message));
    Some(message)
}

fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<T> {
    match ::wire::decode(body) {
        Ok(message) => Some(message),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

/// The order, and what an appliance checks of it.
pub fn orders(data: &[u8]) {
    let Some(order) = abd_appliance::fuzzing::order(data) else { return };
    let again: ::wire::Order = ::wire::decode(&::wire::encode(&order)).expect("what was just encoded");
    assert_eq!(again, order);
    let sizes: Vec<_> = match &order.work {
        ::wire::Work::Backup { disks, .. } => disks.iter().map(|disk| disk.size).collect(),
        ::wire::Work::Restore { disks } => disks.iter().map(|disk| disk.size).collect(),
        // Has no disks.
        ::wire::Work::Diagnose { .. } => return,
    };
    assert!((1..=::wire::MAX_DISKS).contains(&sizes.len()));
    assert!(sizes.iter().all(|size| *size <= MAX_DISK_SIZE));
}

/// What an appliance sends to the store. The first byte says which.
pub fn store_questions(data: &[u8]) {
    let Some((tag, body)) = tagged(data) else { return };
    match tag % 8 {
        0 => {
            let _ = ::wire::claim_protocol(body);
            message::<Claim>(body);
        }
        1 => drop(message::<BitmapQuestion>(body)),
        2 => drop(message::<KnownQuestion>(body)),
        3 => drop(message::<NodesQuestion>(body)),
        4 => drop(message::<BlocksQuestion>(body)),
        5 => {
            let Some(done) = message::<DiskDone>(body) else { return };
            let _ = (done.pacing.to_string(), done.bad.to_string(), done.bad.is_complete());
            if done.size <= MAX_DISK_SIZE && done.bad.fault(done.size).is_none() {
                let listed: u64 = done.bad.ranges.iter().map(|range| range.size.get()).sum();
                assert!(listed <= done.bad.bytes.get() && done.bad.bytes <= done.size, "{done:?}");
                assert!(done.bad.ranges.len() as u64 <= done.bad.count, "{done:?}");
            }
        }
        6 => drop(message::<Progress>(body)),
        _ => {
            let Some(done) = message::<JobDone>(body) else { return };
            let whole = account::sum(done.passes.iter().map(|pass| &pass.account));
            let _ = (whole.verdict().words(), whole.cpu());
            for stage in &whole.stages {
                let _ = (stage.rate(), stage.depth_mean_hundredths(), stage.share(stage.busy, whole.wall));
            }
        }
    }
}

/// What the store answers to an appliance. The first byte says which.
pub fn store_answers(data: &[u8]) {
    let Some((tag, body)) = tagged(data) else { return };
    match tag % 8 {
        0 => drop(message::<KnownAnswer>(body)),
        1 => {
            let nodes = message::<NodesAnswer>(body).map(|answer| answer.nodes).unwrap_or_default();
            for node in nodes {
                let _ = Node::from_bytes(&node.bytes);
            }
        }
        2 => {
            let Some(answer) = decode::<BlocksAnswer<'_>>(body) else { return };
            let mut opener = Opener::new().expect("zstd has memory");
            let key = IdKey::encrypted(&[7; 32], MasterKey::new([7; 32]));
            for block in answer.blocks {
                let Ok(sealed) = block.sealed() else { continue };
                let size = block.plain_size as usize;
                if let Ok(plain) = opener.open(sealed, size) {
                    assert_eq!(plain.len(), size);
                }
                let id = BlockId::from_bytes([1; 32]);
                assert!(opener.open_block(&key, id, sealed, size).is_err(), "nobody knows such bytes");
            }
        }
        3 => drop(message::<PackAnswer>(body)),
        4 => drop(message::<DiskAnswer>(body)),
        5 => drop(message::<ProgressAnswer>(body)),
        6 => drop(message::<Failure>(body)),
        _ => {
            let spent = Spent::from_header(&String::from_utf8_lossy(body));
            assert_eq!(Spent::from_header(&spent.to_header()), spent, "the header says what it said");
        }
    }
}

/// The bitmap of changed blocks: eight bytes of the disk's size, then the bitmap as the pool gives it.
pub fn cbt_bitmaps(data: &[u8]) {
    let Some((size, bitmap)) = data.split_first_chunk() else { return };
    let size = ByteCount::new(u64::from_le_bytes(*size) % (BITMAP_DISK + 1));
    let _ = ChangedBlocks::from_xapi(bitmap, size);
    // The right number of bytes, whatever the first eight say.
    let count = usize::try_from(size.blocks_ceil().get().div_ceil(8)).expect("bounded above");
    let mut fitted = bitmap.to_vec();
    fitted.resize(count, 0x55);
    let mut changed = ChangedBlocks::from_xapi(&fitted, size).expect("one bit per block");
    assert_eq!(ChangedBlocks::from_xapi(&changed.to_xapi(), size), Ok(changed.clone()));
    let planned: u64 =
        ReadPlan::new(&changed, size, ByteCount::new(1 << 20)).map(|read| read.size.get()).sum();
    assert!(planned <= size.get());
    assert!(planned.div_ceil(BLOCK_SIZE) == changed.count().get(), "each changed block is read once");
    let run: u64 = changed.runs().map(|run| run.count.get()).sum();
    assert_eq!(run, changed.count().get());
    let sample = blocks::Audit::with_seed(7).sample(&changed);
    assert!(sample.runs().all(|run| !changed.intersects(run)), "an audit reads what is not changed");
    let smaller = ByteCount::new(size.get() / 2);
    changed.insert_growth(smaller);
    changed.union(&ChangedBlocks::all(smaller).expect("smaller than the disk"));
    assert_eq!(changed.count(), changed.blocks(), "the old part and the new part are everything");
}
