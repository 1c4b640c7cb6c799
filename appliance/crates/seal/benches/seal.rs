//! What a block costs on its way: zero test, id, compression and its proof, its place in a pack and in the tree.

use blocks::{BLOCK_SIZE, ByteCount};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use seal::{
    BlockId, DEFAULT_LEVEL, FAN_OUT, IdKey, Node, NodeId, NodeSource, Opener, PackKind, PackWriter, Sealer,
    TreeBuilder, is_zero,
};
use std::hint::black_box;

const BLOCK: usize = BLOCK_SIZE as usize;
const PACK: usize = 16 << 20;
/// Leaves of a disk of 4 GiB.
const LEAVES: u64 = 256;

/// Bytes that do not compress.
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..BLOCK / 8).flat_map(|_| next().to_le_bytes()).collect()
}

/// Bytes that compress to about a third, as programs and texts do.
fn words() -> Vec<u8> {
    let noise = noise();
    let list = ["the ", "block ", "of ", "a ", "disk ", "is ", "kept ", "once ", "and ", "read ", "often. "];
    let pick = |byte: &u8| list[usize::from(*byte) % list.len()].bytes().chain([*byte % 64 + 32]);
    noise.iter().flat_map(pick).take(BLOCK).collect()
}

fn key() -> IdKey {
    IdKey::new(&[7; 32])
}

fn block(criterion: &mut Criterion) {
    let (key, zeros, noise, words) = (key(), vec![0; BLOCK], noise(), words());
    let mut group = criterion.benchmark_group("block of 64 KiB");
    group.throughput(Throughput::Bytes(BLOCK_SIZE));
    group.bench_function("zero test of zeros", |bencher| bencher.iter(|| is_zero(black_box(&zeros))));
    group.bench_function("zero test of words", |bencher| bencher.iter(|| is_zero(black_box(&words))));
    group.bench_function("id", |bencher| bencher.iter(|| key.block_id(black_box(&words))));
    let mut sealer = Sealer::new(DEFAULT_LEVEL).expect("a context");
    for (name, plain) in [("words", &words), ("noise", &noise)] {
        group.bench_function(format!("seal {name}"), |bencher| {
            bencher.iter(|| sealer.seal(black_box(plain)).expect("sealed").bytes.len());
        });
    }
    let mut opener = Opener::new().expect("a context");
    let id = key.block_id(&words);
    let sealed = sealer.seal(&words).expect("sealed");
    group.bench_function("open and prove words", |bencher| {
        bencher.iter(|| opener.open_block(&key, id, black_box(sealed), BLOCK).expect("opened").len());
    });
    group.finish();
}

fn pack(criterion: &mut Criterion) {
    let words = words();
    let mut sealer = Sealer::new(DEFAULT_LEVEL).expect("a context");
    let sealed = sealer.seal(&words).expect("sealed");
    let mut group = criterion.benchmark_group("pack of 16 MiB");
    group.throughput(Throughput::Bytes(PACK as u64));
    group.bench_function("fill and finish", |bencher| {
        let mut memory = Vec::new();
        bencher.iter(|| {
            let mut writer = match memory.capacity() {
                0 => PackWriter::new(PackKind::Data, PACK),
                _ => PackWriter::reusing(PackKind::Data, std::mem::take(&mut memory)),
            };
            let mut number = 0_u64;
            while writer.has_room(PACK) {
                let mut id = [1; 32];
                id[..8].copy_from_slice(&number.to_le_bytes());
                writer.push(id, BLOCK, sealed);
                number += 1;
            }
            memory = writer.finish().bytes;
        });
    });
    group.finish();
}

/// A tree without a base asks for no node.
struct NoNodes;

impl NodeSource for NoNodes {
    type Error = seal::Error;

    fn node(&mut self, id: NodeId, level: u8, index: u64) -> Result<Node, seal::Error> {
        unreachable!("node {id} at level {level}, {index}, of a tree without a base")
    }
}

fn tree(criterion: &mut Criterion) {
    let key = key();
    let size = ByteCount::new(LEAVES * FAN_OUT * BLOCK_SIZE);
    let mut leaf = Node::default();
    for slot in 0..256_usize {
        leaf.set_block(slot, Some(BlockId::from_bytes([u8::try_from(slot).unwrap_or(1) | 1; 32])));
    }
    let mut group = criterion.benchmark_group("tree of 4 GiB");
    group.throughput(Throughput::Elements(LEAVES * FAN_OUT));
    group.bench_function("build without a base", |bencher| {
        bencher.iter(|| {
            let mut builder = TreeBuilder::new(key.clone(), size, None).expect("no base");
            for index in 0..LEAVES {
                let emit = &mut |_, _: &Node| Ok(());
                let _none = builder.base_leaf(index, &mut NoNodes, emit).expect("asks for no node");
                builder.put_leaf(index, black_box(&leaf), &mut NoNodes, emit).expect("asks for no node");
            }
            builder.finish(&mut NoNodes, &mut |_, _| Ok(())).expect("asks for no node")
        });
    });
    group.finish();
}

criterion_group!(benches, block, pack, tree);
criterion_main!(benches);
