//! A disk that gives no answer and no error.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use holdfast_storage::buf::{BufferPool, BufferPoolConfig};
use holdfast_storage::io::sim::{Fault, SimIo};
use holdfast_storage::{ChunkReader, DiskSet, Engine, ReadError, WriteError};

use super::common::{concat, get, id, open_with, payload, put};
use super::{sim_config, sim_engine};

fn bytes(n: u32) -> Vec<u8> {
    payload(u64::from(n), 30_000)
}

/// Lets the watch's time pass.
fn seconds(engine: &Engine, count: u32) {
    for _ in 0..count {
        engine.tick(Duration::from_secs(1));
    }
}

/// Polls until the disk holds so many operations.
async fn until_held<T>(io: &SimIo, count: usize, mut waiting: Pin<&mut impl Future<Output = T>>) {
    while io.held() < count {
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
}

/// Makes the disk hang, and the engine find that out.
async fn hang(io: &SimIo, engine: &Engine, n: u32) {
    io.hold();
    let mut reading = Box::pin(get(engine, id(n)));
    until_held(io, 1, reading.as_mut()).await;
    seconds(engine, 40);
    assert!(engine.is_unresponsive());
}

async fn read_all(reader: Result<ChunkReader, ReadError>) -> Result<Vec<u8>, ReadError> {
    let (mut reader, mut pieces) = (reader?, vec![]);
    while let Some(piece) = reader.next().await {
        pieces.push(piece?);
    }
    Ok(concat(&pieces))
}

#[tokio::test]
async fn a_disk_that_hangs_refuses_at_once_tells_who_waits_and_comes_back_by_itself() {
    let io = SimIo::new(40);
    let engine = sim_engine(&io).await;
    put(&engine, id(1), &bytes(1)).await.unwrap();
    io.hold();
    let second = bytes(2);
    let mut waiting = Box::pin(put(&engine, id(2), &second));
    until_held(&io, 1, waiting.as_mut()).await;
    seconds(&engine, 25);
    assert!(!engine.is_unresponsive());
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    seconds(&engine, 10);
    assert!(engine.is_unresponsive() && engine.stats().unresponsive);
    assert!(matches!(waiting.await, Err(WriteError::Unresponsive)));
    assert!(matches!(put(&engine, id(3), b"new").await, Err(WriteError::Unresponsive)));
    assert!(matches!(engine.delete(&[id(1)]).await, Err(WriteError::Unresponsive)));
    assert!(matches!(get(&engine, id(1)).await, Err(ReadError::Unresponsive(_))));
    assert!(matches!(engine.label(id(1)).await, Err(ReadError::Unresponsive(_))));
    assert!(matches!(engine.verify(id(1)).await, Err(ReadError::Unresponsive(_))));
    assert!(matches!(engine.verify(id(9)).await, Err(ReadError::NotFound(_))));
    assert_eq!(io.held(), 1, "nothing more is asked of it");
    io.release();
    seconds(&engine, 5);
    assert!(engine.is_unresponsive(), "not at the first answer");
    seconds(&engine, 10);
    assert!(!engine.is_unresponsive());
    engine.run_jobs().await;
    assert!(engine.fenced().is_none());
    put(&engine, id(2), &second).await.unwrap();
    assert_eq!(get(&engine, id(1)).await.unwrap(), bytes(1));
    assert_eq!(get(&engine, id(2)).await.unwrap(), second);
    engine.delete(&[id(1)]).await.unwrap();
    engine.shutdown().await.unwrap();
}

#[tokio::test]
async fn an_operation_that_nobody_waits_for_is_in_flight_all_the_same() {
    let io = SimIo::new(41);
    let engine = sim_engine(&io).await;
    put(&engine, id(1), &bytes(1)).await.unwrap();
    io.hold();
    let mut reading = Box::pin(get(&engine, id(1)));
    until_held(&io, 1, reading.as_mut()).await;
    drop(reading);
    seconds(&engine, 35);
    assert!(engine.is_unresponsive(), "the client left, the disk did not answer");
    io.release();
    seconds(&engine, 15);
    assert!(!engine.is_unresponsive());
}

#[tokio::test]
async fn a_disk_that_hangs_does_not_hold_up_the_end() {
    let io = SimIo::new(42);
    let engine = sim_engine(&io).await;
    put(&engine, id(1), &bytes(1)).await.unwrap();
    hang(&io, &engine, 1).await;
    assert!(matches!(engine.shutdown().await, Err(WriteError::Unresponsive)));
}

/// What was asked of the disk before it was fenced for its silence happens afterwards, and then the node ends, by a
/// crash or not.
#[tokio::test]
async fn what_a_fenced_disk_does_late_harms_nothing() {
    for seed in 0..40 {
        let io = SimIo::new(seed);
        let engine = sim_engine(&io).await;
        // It is fenced only beside one that answers.
        let other = sim_engine(&SimIo::new(1000 + seed)).await;
        drop(DiskSet::new(vec![engine.clone(), other.clone()]));
        for n in [1, 3] {
            put(&engine, id(n), &bytes(n)).await.unwrap();
        }
        io.hold();
        let second = bytes(2);
        let mut writing = Box::pin(put(&engine, id(2), &second));
        until_held(&io, 1, writing.as_mut()).await;
        let doomed = [id(1)];
        let mut deleting = Box::pin(engine.delete(&doomed));
        until_held(&io, 2, deleting.as_mut()).await;
        seconds(&engine, 599);
        assert!(engine.fenced().is_none());
        seconds(&engine, 5);
        assert!(engine.fenced().unwrap().contains("no answer"));
        assert!(matches!(writing.await, Err(WriteError::Unresponsive)));
        assert!(matches!(deleting.await, Err(WriteError::Unresponsive)));
        io.release();
        engine.run_jobs().await;
        seconds(&engine, 15);
        assert!(!engine.is_unresponsive() && engine.fenced().is_some(), "an answer after that is too late");
        assert!(matches!(put(&engine, id(4), b"refused").await, Err(WriteError::Fenced(_))));
        assert!(matches!(get(&engine, id(2)).await, Err(ReadError::NotFound(_))), "it was not acknowledged");
        for n in [1, 3] {
            assert_eq!(get(&engine, id(n)).await.unwrap(), bytes(n), "seed {seed}");
        }
        drop(engine);
        if seed % 2 == 0 {
            io.crash();
            io.recover();
        }
        let (engine, report) = open_with(sim_config(), Arc::new(io.clone())).await;
        assert!(report.damaged.is_empty() && engine.fenced().is_none(), "seed {seed}: {report:?}");
        assert_eq!(get(&engine, id(3)).await.unwrap(), bytes(3), "seed {seed}");
        // Neither was said to be done, nor that it is not.
        for n in [1, 2] {
            match get(&engine, id(n)).await {
                Ok(found) => assert!(found == bytes(n), "seed {seed}: {n}"),
                Err(ReadError::NotFound(_)) => put(&engine, id(n), &bytes(n)).await.unwrap(),
                Err(error) => panic!("seed {seed}: {n}: {error}"),
            }
        }
        engine.delete(&[id(1), id(2)]).await.unwrap();
        engine.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn chunks_go_to_the_disks_that_answer_and_are_read_there_first() {
    let (hanging, working) = (SimIo::new(43), SimIo::new(44));
    let engines = [sim_engine(&hanging).await, sim_engine(&working).await];
    for n in [1, 2] {
        put(&engines[0], id(n), &bytes(n)).await.unwrap();
    }
    // As after a repair while the other disk was away.
    put(&engines[1], id(2), &bytes(2)).await.unwrap();
    hang(&hanging, &engines[0], 1).await;
    let disks = DiskSet::new(engines.to_vec());
    assert_eq!(disks.count(), (2, 0), "it may be back at any moment");
    for n in 10..30 {
        let data = bytes(n);
        let mut writer = disks.create(id(n), data.len() as u32, b"label").await.unwrap();
        writer.write(&data).await.unwrap();
        writer.finish_input().unwrap();
        writer.finish().await.unwrap();
        assert!(engines[1].stat(&id(n)).is_some());
    }
    assert_eq!(read_all(disks.read(id(2), 0..30_000)).await.unwrap(), bytes(2));
    assert_eq!(disks.label(id(2)).await.unwrap(), &b"label"[..]);
    assert_eq!(disks.verify(id(2)).await.unwrap().id, id(2));
    assert!(matches!(read_all(disks.read(id(1), 0..30_000)).await, Err(ReadError::Unresponsive(_))));
    assert!(matches!(disks.verify(id(1)).await, Err(ReadError::Unresponsive(_))), "nothing is known of it");
    assert!(matches!(disks.verify(id(9)).await, Err(ReadError::NotFound(_))));
    // Not passed over, as on a fenced disk: it would be forgotten, and be there again.
    assert!(matches!(disks.delete(&[id(1)]).await, Err(WriteError::Unresponsive)));
    assert_eq!(hanging.held(), 1, "nothing more is asked of it");
    hanging.release();
    seconds(&engines[0], 15);
    assert_eq!(read_all(disks.read(id(1), 0..30_000)).await.unwrap(), bytes(1));
    disks.delete(&[id(1), id(2)]).await.unwrap();
    assert!(disks.stat(&id(1)).is_none() && disks.stat(&id(2)).is_none());
}

#[tokio::test]
async fn a_chunk_that_waits_for_its_disk_takes_the_next_one_when_that_is_found_to_hang() {
    let (hanging, working) = (SimIo::new(45), SimIo::new(46));
    // Neither has a segment yet: the first chunk waits for one to be made.
    let engines = [sim_engine(&hanging).await, sim_engine(&working).await];
    let disks = DiskSet::new(engines.to_vec());
    hanging.hold();
    let mut kept_waiting = 0;
    for n in 0..20 {
        let mut creating = Box::pin(disks.create(id(n), 5_000, b""));
        let writer = loop {
            if let Poll::Ready(created) = futures::poll!(creating.as_mut()) {
                break created.unwrap();
            }
            if hanging.held() > 0 && !engines[0].is_unresponsive() {
                kept_waiting += 1;
                seconds(&engines[0], 40);
            }
            tokio::task::yield_now().await;
        };
        drop(writer);
    }
    assert_eq!(kept_waiting, 1, "once is enough, and chance sends one of twenty there");
}

/// Buffers are leased until the kernel is done, and the kernel is not.
#[tokio::test]
async fn reads_of_a_disk_that_hangs_leave_buffers_to_the_others() {
    let pool = BufferPool::new(BufferPoolConfig { large_count: 4, small_count: 8 }).unwrap();
    let (hanging, working) = (SimIo::new(48), SimIo::new(49));
    let mut engines = vec![];
    for io in [&hanging, &working] {
        let mut config = sim_config();
        config.shares_buffers = true;
        let (engine, _) = Engine::open(config, Arc::new(io.clone()), pool.clone()).await.unwrap();
        put(&engine, id(1), &bytes(1)).await.unwrap();
        engines.push(engine);
    }
    hanging.hold();
    let mut reads: Vec<_> = (0..20).map(|_| Box::pin(get(&engines[0], id(1)))).collect();
    for read in &mut reads {
        assert!(futures::poll!(read.as_mut()).is_pending());
    }
    assert_eq!(hanging.held(), 4, "half of the small ones");
    assert_eq!(get(&engines[1], id(1)).await.unwrap(), bytes(1));
    put(&engines[1], id(2), &bytes(2)).await.unwrap();
    seconds(&engines[0], 40);
    let mut told = 0;
    for read in &mut reads {
        if let Poll::Ready(result) = futures::poll!(read.as_mut()) {
            assert!(matches!(result, Err(ReadError::Unresponsive(_))));
            told += 1;
        }
    }
    assert_eq!(told, 16, "those that still waited for a buffer");
    hanging.release();
    drop(reads);
    assert!(pool.is_idle());
}

#[tokio::test]
async fn uploads_to_a_disk_that_hangs_leave_buffers_to_the_others() {
    let pool = BufferPool::new(BufferPoolConfig { large_count: 20, small_count: 16 }).unwrap();
    let (hanging, working) = (SimIo::new(52), SimIo::new(53));
    let mut engines = vec![];
    for io in [&hanging, &working] {
        let mut config = sim_config();
        config.segment_size_bytes = 64 << 20;
        config.shares_buffers = true;
        engines.push(Engine::open(config, Arc::new(io.clone()), pool.clone()).await.unwrap().0);
    }
    let data = payload(1, 6 << 20);
    let mut writers = vec![];
    for n in 0..8 {
        writers.push(engines[0].create(id(n), data.len() as u32, b"").await.unwrap());
    }
    hanging.hold();
    let mut writing: Vec<_> = writers.iter_mut().map(|writer| Box::pin(writer.write(&data))).collect();
    for write in &mut writing {
        assert!(futures::poll!(write.as_mut()).is_pending());
    }
    assert_eq!(hanging.held(), 4 + 7, "four of the first, and one of each other");
    put(&engines[1], id(1), &payload(2, 3 << 20)).await.unwrap();
    hanging.release();
    drop(writing);
    drop(writers);
    engines[0].run_jobs().await;
    assert!(pool.is_idle());
}

#[tokio::test]
async fn the_only_disk_of_a_node_refuses_with_what_can_be_tried_again() {
    let io = SimIo::new(47);
    let engine = sim_engine(&io).await;
    put(&engine, id(1), &bytes(1)).await.unwrap();
    hang(&io, &engine, 1).await;
    let disks = DiskSet::new(vec![engine]);
    assert!(matches!(disks.create(id(2), 1, b"").await, Err(WriteError::Unresponsive)));
    assert!(disks.stat(&id(1)).is_some(), "what is there is known all the same");
}

#[tokio::test]
async fn the_last_disk_is_never_fenced_for_its_silence_and_comes_back_by_itself() {
    let (io, failed) = (SimIo::new(50), SimIo::new(51));
    let engine = sim_engine(&io).await;
    put(&engine, id(1), &bytes(1)).await.unwrap();
    let back = async |n| {
        io.release();
        seconds(&engine, 15);
        assert!(!engine.is_unresponsive() && engine.fenced().is_none());
        engine.run_jobs().await;
        put(&engine, id(n), &bytes(n)).await.unwrap();
        assert_eq!(get(&engine, id(1)).await.unwrap(), bytes(1));
    };
    let alone = DiskSet::new(vec![engine.clone()]);
    hang(&io, &engine, 1).await;
    seconds(&engine, 5_000);
    assert!(engine.is_unresponsive() && engine.fenced().is_none());
    assert_eq!(alone.count(), (1, 0));
    back(2).await;
    // One that failed is none beside which it could be spared.
    let other = sim_engine(&failed).await;
    put(&other, id(1), &bytes(1)).await.unwrap();
    failed.inject(failed.ops() + 1, Fault::Eio);
    assert!(put(&other, id(3), b"lost").await.is_err());
    let both = DiskSet::new(vec![engine.clone(), other]);
    hang(&io, &engine, 1).await;
    seconds(&engine, 5_000);
    assert_eq!(both.count(), (1, 1));
    back(4).await;
}

#[tokio::test]
async fn disks_that_fall_silent_together_are_not_fenced_and_one_that_stays_silent_is() {
    let ios: Vec<_> = (60..63).map(SimIo::new).collect();
    let mut engines = vec![];
    for io in &ios {
        let engine = sim_engine(io).await;
        put(&engine, id(1), &bytes(1)).await.unwrap();
        engines.push(engine);
    }
    let disks = DiskSet::new(engines.clone());
    for at in [0, 1] {
        hang(&ios[at], &engines[at], 1).await;
    }
    for at in [0, 1] {
        seconds(&engines[at], 700);
    }
    assert_eq!(disks.count(), (3, 0), "two of three share something, it seems");
    ios[1].release();
    seconds(&engines[1], 15);
    assert!(!engines[1].is_unresponsive());
    seconds(&engines[0], 1);
    assert!(engines[0].is_fenced(), "the others go on without it");
    hang(&ios[1], &engines[1], 1).await;
    hang(&ios[2], &engines[2], 1).await;
    for at in [1, 2] {
        seconds(&engines[at], 700);
    }
    assert_eq!(disks.count(), (2, 1));
    ios[2].release();
    seconds(&engines[2], 15);
    seconds(&engines[1], 1);
    assert_eq!(disks.count(), (1, 2));
    put(&engines[2], id(2), &bytes(2)).await.unwrap();
}

/// Calls of the system that block hang with the disk.
#[tokio::test]
async fn housekeeping_that_blocks_keeps_nobody_else_waiting_and_ends_with_who_asked_for_it() {
    let mut config = sim_config();
    config.background = true;
    let (engine, _) = open_with(config, Arc::new(SimIo::new(70))).await;
    let (go, wait) = std::sync::mpsc::channel();
    let mut blocked = Box::pin(engine.apart(async move { wait.recv() }));
    assert!(futures::poll!(blocked.as_mut()).is_pending(), "this thread goes on");
    go.send(7).unwrap();
    assert_eq!(blocked.await, Some(Ok(7)));
    let (held, dropped) = tokio::sync::oneshot::channel::<()>();
    let mut left = Box::pin(engine.apart(async move {
        let _held = held;
        std::future::pending::<()>().await;
    }));
    assert!(futures::poll!(left.as_mut()).is_pending());
    drop(left);
    assert!(dropped.await.is_err());
    put(&engine, id(1), &bytes(1)).await.unwrap();
    engine.settle().await;
    assert!(engine.compact(u64::MAX).await.unwrap().finished);
    engine.shutdown().await.unwrap();
}
