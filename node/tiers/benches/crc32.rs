//! The checksum of FastDFS: at least 5 GB/s a core.
//!
//! `cargo bench -p holdfast-tiers --bench crc32`.

#![allow(missing_docs, reason = "the macros of criterion make undocumented functions")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use holdfast_tiers::fastdfs::crc32::Crc32;

/// Of parts as they come: from a disk or a network, within the processor's cache; and of a whole piece, which is not.
fn crc32(c: &mut Criterion) {
    let mut group = c.benchmark_group("crc32");
    for (name, count) in [("64 KiB", 64 << 10), ("1 MiB", 1 << 20), ("64 MiB", 64 << 20)] {
        let bytes: Vec<u8> = (0..count as u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
        group.throughput(Throughput::Bytes(count as u64));
        group.bench_function(name, |b| b.iter(|| Crc32::of(black_box(&bytes))));
    }
    group.finish();
}

criterion_group!(benches, crc32);
criterion_main!(benches);
