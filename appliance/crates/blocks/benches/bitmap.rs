//! The changed-block bitmap of a disk of 2 TiB, 2 % of it set: as XAPI gives it, counted, united, cut into reads.

use blocks::{BlockIndex, ByteCount, ChangedBlocks, ReadPlan};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

const DISK: ByteCount = ByteCount::new(2 << 40);
const MAX_READ: ByteCount = ByteCount::new(256 << 10);

/// Short runs, as databases leave them: a granule or two of each hundred.
fn changed() -> ChangedBlocks {
    let mut changed = ChangedBlocks::none(DISK).expect("below the largest disk");
    for block in (0..DISK.blocks_ceil().get()).step_by(100) {
        changed.insert(BlockIndex::new(block));
        changed.insert(BlockIndex::new(block + block % 3));
    }
    changed
}

fn bitmap(criterion: &mut Criterion) {
    let changed = changed();
    let bytes = changed.to_xapi();
    let mut group = criterion.benchmark_group("bitmap of 2 TiB");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("from XAPI's bytes", |bencher| {
        bencher.iter(|| ChangedBlocks::from_xapi(black_box(&bytes), DISK).expect("its own bytes"));
    });
    group.bench_function("count", |bencher| bencher.iter(|| black_box(&changed).count()));
    let mut both = changed.clone();
    group.bench_function("union", |bencher| bencher.iter(|| both.union(black_box(&changed))));
    group.bench_function("runs", |bencher| bencher.iter(|| black_box(&changed).runs().count()));
    group.bench_function("read plan", |bencher| {
        bencher.iter(|| ReadPlan::new(black_box(&changed), DISK, MAX_READ).count());
    });
    group.finish();
}

criterion_group!(benches, bitmap);
criterion_main!(benches);
