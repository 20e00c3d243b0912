//! What the engine must reach: filling the index from index files, and reading resident chunks.
//!
//! `cargo bench -p holdfast-storage`.

#![allow(missing_docs, reason = "the macros of criterion make undocumented functions")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use holdfast_protocol::ContentId;
use holdfast_storage::buf::{BufferPool, BufferPoolConfig};
use holdfast_storage::format::index_file::{IndexEntry, IndexFile, pack_extent};
use holdfast_storage::format::record::RecordLayout;
use holdfast_storage::format::segment::SegmentHeader;
use holdfast_storage::index::{Index, Location};
use holdfast_storage::io::std::StdIo;
use holdfast_storage::{Engine, EngineConfig};

const CHUNKS_A_SEGMENT: u32 = 100_000;
const SEGMENTS: u32 = 10;

fn entries(segment: u32) -> Vec<IndexEntry> {
    let layout = RecordLayout::new(4096, 100).expect("a valid size");
    let extent = pack_extent(&layout);
    (0..CHUNKS_A_SEGMENT)
        .map(|n| {
            let serial = u64::from(segment * CHUNKS_A_SEGMENT + n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut content = [0x68; 12];
            content[4..].copy_from_slice(&serial.to_le_bytes());
            let id = ContentId(content).chunk(0);
            IndexEntry { id, sequence: u64::from(n), block: 1 + 2 * n, extent }
        })
        .collect()
}

/// Opens a directory of a million chunks that was closed cleanly.
fn start_from_index_files(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = EngineConfig::new(dir.path(), [1; 16], [2; 16]);
    config.background = false;
    let pool = BufferPool::new(BufferPoolConfig { large_count: 8, small_count: 8 }).expect("memory");
    let io = std::sync::Arc::new(StdIo::new().expect("threads"));
    let open = || runtime.block_on(Engine::open(config.clone(), io.clone(), pool.clone())).expect("opens");
    let disk = open().0.superblock().disk;
    for number in 1..=SEGMENTS {
        let header = SegmentHeader { number, salt: 5, len_bytes: 1 << 30, disk, created_ms: 1 };
        let data = std::fs::File::create(dir.path().join(format!("segment-{number:08x}.data"))).expect("a file");
        std::os::unix::fs::FileExt::write_all_at(&data, &header.encode(), 0).expect("written");
        data.set_len(1 << 30).expect("sparse");
        // Full, so that it is not taken up again.
        let tail = 1 << 30;
        let file =
            IndexFile { segment: number, salt: 5, tail, sequence_max: 1, entries: entries(number), kills: vec![] };
        std::fs::write(dir.path().join(format!("segment-{number:08x}.index")), file.encode()).expect("written");
    }
    let mut group = c.benchmark_group("start");
    group.sample_size(10);
    group.throughput(Throughput::Elements(u64::from(CHUNKS_A_SEGMENT * SEGMENTS)));
    group.bench_function("from index files, chunks", |b| {
        b.iter_batched(
            || (),
            |()| {
                let (engine, report) = open();
                assert_eq!(report.chunks, u64::from(CHUNKS_A_SEGMENT * SEGMENTS));
                engine
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn index_lookup(c: &mut Criterion) {
    let index = Index::default();
    let all: Vec<_> = (0..SEGMENTS).flat_map(entries).collect();
    for entry in &all {
        index.insert(entry.id, Location { segment: 1, block: entry.block, extent: entry.extent });
    }
    let mut next = 0;
    c.bench_function("index lookup among a million", |b| {
        b.iter(|| {
            next = (next + 7919) % all.len();
            black_box(index.get(&all[next].id))
        });
    });
}

fn read_resident(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = EngineConfig::new(dir.path(), [1; 16], [2; 16]);
    config.background = false;
    let pool = BufferPool::new(BufferPoolConfig { large_count: 8, small_count: 8 }).expect("memory");
    let io = std::sync::Arc::new(StdIo::new().expect("threads"));
    let (engine, _) = runtime.block_on(Engine::open(config, io, pool)).expect("opens");
    for (name, size) in [("4 KiB", 4096u32), ("1 MiB", 1 << 20)] {
        let id = ContentId([9; 12]).chunk(size);
        runtime.block_on(async {
            let mut writer = engine.create(id, size, b"label").await.expect("space");
            drop(writer.write(&vec![7; size as usize]).await.expect("written"));
            drop(writer.finish_input().expect("all came"));
            writer.finish().await.expect("durable");
            let mut reader = engine.read(id, 0..size).expect("there");
            while let Some(piece) = reader.next().await {
                drop(piece.expect("good bytes"));
            }
        });
        c.bench_function(&format!("read {name}, resident"), |b| {
            b.iter(|| {
                let mut reader = engine.read(id, 0..size).expect("there");
                futures::FutureExt::now_or_never(reader.next()).expect("resident").expect("a piece").expect("verified")
            });
        });
    }
}

criterion_group!(benches, start_from_index_files, index_lookup, read_resident);
criterion_main!(benches);
