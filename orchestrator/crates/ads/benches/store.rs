//! The store: its index in memory, and what taking in a pack costs when every byte of it is proven.

use ads::Store;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use seal::{BlockId, IdKey, Pack, PackKind, PackWriter, Sealer};
use std::hint::black_box;

const BLOCK: usize = 64 << 10;
/// Packs for the index: small blocks, so that filling it takes a second.
const INDEX_PACKS: u64 = 16;
const INDEX_BLOCKS: u64 = 4096;

/// `size` bytes that repeat nowhere and compress to about a half.
fn content(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state & 0x00ff_00ff_00ff_00ff
    };
    (0..size / 8).flat_map(|_| next().to_le_bytes()).collect()
}

fn pack(key: &IdKey, seed: u64, count: u64, size: usize) -> (Pack, Vec<BlockId>) {
    let mut writer = PackWriter::new(PackKind::Data, 16 << 20);
    let mut sealer = Sealer::new(1).expect("a context");
    let mut ids = Vec::new();
    for number in 0..count {
        let plain = content(seed << 32 | (number + 1), size);
        let id = key.block_id(&plain);
        writer.push(*id.as_bytes(), size, sealer.seal(&plain).expect("sealed"));
        ids.push(id);
    }
    (writer.finish(), ids)
}

fn index(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::init(&dir.path().join("store")).expect("a store");
    let mut ids = Vec::new();
    for seed in 0..INDEX_PACKS {
        let (pack, more) = pack(store.id_key(), seed, INDEX_BLOCKS, 64);
        store.add_pack(pack.id, &pack.bytes).expect("its own pack");
        ids.extend(more);
    }
    let strange: Vec<BlockId> =
        (0..1024_u64).map(|number| store.id_key().block_id(&content(number + 1, 128))).collect();
    let mut group = criterion.benchmark_group("index of 65536 blocks");
    group.throughput(Throughput::Elements(1024));
    // Spread over all of it, as a question about a disk's blocks is not.
    let there: Vec<&BlockId> = ids.iter().step_by(ids.len() / 1024).take(1024).collect();
    group.bench_function("1024 that are there", |bencher| {
        bencher.iter(|| there.iter().filter(|id| store.has_block(black_box(id))).count());
    });
    group.bench_function("1024 that are not", |bencher| {
        bencher.iter(|| strange.iter().filter(|id| store.has_block(black_box(id))).count());
    });
    group.finish();
}

fn ingest(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut group = criterion.benchmark_group("ingest");
    let first = Store::init(&dir.path().join("first")).expect("a store");
    let (pack, _) = pack(first.id_key(), 1, 128, BLOCK);
    group.throughput(Throughput::Bytes(128 * BLOCK as u64));
    group.sample_size(20);
    // The same pack again: all of it is proven, nothing is written.
    first.add_pack(pack.id, &pack.bytes).expect("its own pack");
    group.bench_function("prove a pack of 128 blocks", |bencher| {
        bencher.iter(|| first.add_pack(pack.id, black_box(&pack.bytes)).expect("kept"));
    });
    group.finish();
}

criterion_group!(benches, index, ingest);
criterion_main!(benches);
