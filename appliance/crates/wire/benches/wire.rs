//! Encoding and decoding of the two messages that there are many of: questions about blocks, and blocks.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use seal::BlockId;
use std::hint::black_box;
use wire::{BlocksAnswer, KnownQuestion, MAX_BLOCKS, MAX_KNOWN_IDS, SealedBlock};

/// A sealed block that compressed to a half.
const SEALED: usize = 32 << 10;

fn messages(criterion: &mut Criterion) {
    let ids = (0..MAX_KNOWN_IDS).map(|number| BlockId::from_bytes([number.to_le_bytes()[0]; 32])).collect();
    let question = KnownQuestion { ids };
    let blocks =
        vec![SealedBlock { codec: 1, lock: None, plain_size: 65_536, bytes: &[0x5a; SEALED] }; MAX_BLOCKS];
    let answer = BlocksAnswer { blocks };
    let (question_bytes, answer_bytes) = (wire::encode(&question), wire::encode(&answer));
    let mut group = criterion.benchmark_group("wire");
    group.throughput(Throughput::Bytes(question_bytes.len() as u64));
    group.bench_function("encode a question about 1024 blocks", |bencher| {
        bencher.iter(|| wire::encode(black_box(&question)));
    });
    group.bench_function("decode a question about 1024 blocks", |bencher| {
        bencher.iter(|| wire::decode::<KnownQuestion>(black_box(&question_bytes)).expect("its own bytes"));
    });
    group.throughput(Throughput::Bytes(answer_bytes.len() as u64));
    group.bench_function("encode 64 blocks", |bencher| bencher.iter(|| wire::encode(black_box(&answer))));
    group.bench_function("decode 64 blocks", |bencher| {
        bencher.iter(|| wire::decode::<BlocksAnswer>(black_box(&answer_bytes)).expect("its own bytes"));
    });
    group.finish();
}

criterion_group!(benches, messages);
criterion_main!(benches);
