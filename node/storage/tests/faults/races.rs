//! Compaction against readers and deletions, in every order that the simulated disk's timing gives.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{MaybeDone, maybe_done};
use holdfast_storage::io::sim::SimIo;
use holdfast_storage::{Engine, Finding, ReadError};
use parking_lot::Mutex;

use super::common::{get, id, open_with, payload, put};
use super::{sim_config, sim_engine};

const LEN: usize = 50_000;

type Findings = Arc<Mutex<Vec<Finding>>>;

/// A disk with one chunk, 0, in a segment that is worth to be compacted, and one, 5, in the active one.
async fn sparse(io: &SimIo) -> (Engine, Findings) {
    let findings = Findings::default();
    let sink = Arc::clone(&findings);
    let mut config = sim_config();
    config.on_finding = Some(Arc::new(move |finding| sink.lock().push(finding)));
    let (engine, _) = open_with(config, Arc::new(io.clone())).await;
    put(&engine, id(0), &payload(0, LEN)).await.unwrap();
    for n in 1..6 {
        put(&engine, id(n), &payload(u64::from(n), 100_000)).await.unwrap();
    }
    engine.run_jobs().await;
    engine.delete(&[1, 2, 3, 4].map(id)).await.unwrap();
    engine.run_jobs().await;
    engine.settle().await;
    assert_ne!(engine.locate(&id(0)).unwrap().path, engine.locate(&id(5)).unwrap().path);
    (engine, findings)
}

/// Polls one future some times before the other begins, then both to their end. What it waits for runs beside it, and
/// gets a moment after each poll.
async fn ahead<A: Future, B: Future>(polls: u64, moment: Duration, first: A, second: B) -> (A::Output, B::Output) {
    let mut first: Pin<Box<MaybeDone<A>>> = Box::pin(maybe_done(first));
    for _ in 0..polls {
        let _ = futures::poll!(first.as_mut());
        if moment.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(moment).await;
        }
    }
    let ((), second) = futures::join!(first.as_mut(), second);
    let first = first.as_mut().take_output().expect("it has come to its end");
    (first, second)
}

#[tokio::test]
async fn a_chunk_that_is_deleted_while_compaction_moves_it_stays_deleted() {
    let (mut moved, mut refused) = (0, 0);
    for seed in 0.. {
        if seed >= 160 && moved > 10 && refused > 10 {
            break;
        }
        assert!(seed < 800, "{moved} were moved before they were deleted, {refused} not");
        let io = SimIo::new(seed);
        let (engine, findings) = sparse(&io).await;
        let deleting = async {
            engine.delete(&[id(0)]).await.unwrap();
            assert!(matches!(get(&engine, id(0)).await, Err(ReadError::NotFound(_))), "seed {seed}: still there");
            // The hole, if nobody holds the record.
            engine.run_jobs().await;
        };
        let compacting = engine.compact(u64::MAX);
        // Either of them is ahead, by up to what it takes: that is more where threads have to wait for their turn.
        let (polls, moment) = (seed / 2 % 80, Duration::from_millis(seed / 160));
        let report = if seed % 2 == 0 {
            ahead(polls, moment, compacting, deleting).await.0
        } else {
            ahead(polls, moment, deleting, compacting).await.1
        };
        let chunks_moved = report.unwrap().chunks_moved;
        moved += chunks_moved;
        refused += 1 - chunks_moved;
        assert!(matches!(get(&engine, id(0)).await, Err(ReadError::NotFound(_))), "seed {seed}: it is back");
        let found = findings.lock().clone();
        assert!(found.is_empty(), "seed {seed}: the record was punched beneath the copying: {found:?}");
        if seed % 3 > 0 {
            engine.run_jobs().await;
        }
        if seed % 3 > 1 {
            engine.settle().await;
        }
        drop(engine);
        io.crash();
        io.recover();
        let engine = sim_engine(&io).await;
        assert!(
            matches!(get(&engine, id(0)).await, Err(ReadError::NotFound(_))),
            "seed {seed}: the crash brought it back"
        );
        assert_eq!(get(&engine, id(5)).await.unwrap(), payload(5, 100_000));
        engine.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn what_a_reader_has_begun_is_read_to_its_end_while_compaction_moves_it() {
    for seed in 0..40 {
        let io = SimIo::new(seed);
        let (engine, findings) = sparse(&io).await;
        let before = engine.locate(&id(0)).unwrap();
        let mut reader = engine.read(id(0), 0..LEN as u32).unwrap();
        assert_eq!(engine.compact(u64::MAX).await.unwrap().chunks_moved, 1);
        assert_ne!(engine.locate(&id(0)).unwrap().path, before.path);
        if seed % 2 == 0 {
            engine.delete(&[id(0)]).await.unwrap();
        }
        engine.run_jobs().await;
        engine.settle().await;
        let mut bytes = vec![];
        while let Some(piece) = reader.next().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
        assert!(bytes == payload(0, LEN), "seed {seed}");
        drop(reader);
        engine.run_jobs().await;
        assert!(findings.lock().is_empty());
        engine.shutdown().await.unwrap();
        assert!(engine.locate(&id(5)).is_some() && !io.files().iter().any(|(path, _)| *path == before.path));
    }
}

#[tokio::test]
async fn a_moved_chunk_that_rots_is_reported_by_a_scan_and_not_dropped() {
    let io = SimIo::new(1);
    let (engine, _) = sparse(&io).await;
    let before = engine.locate(&id(0)).unwrap();
    assert_eq!(engine.compact(u64::MAX).await.unwrap().chunks_moved, 1);
    let place = engine.locate(&id(0)).unwrap();
    assert!(io.files().iter().all(|(path, _)| *path != before.path), "the original is gone");
    drop(engine);
    io.rot(&place.path, place.payload.start + 10, 0).unwrap();
    let (engine, report) = open_with(sim_config(), Arc::new(io.clone())).await;
    assert_eq!((report.segments_scanned, report.damaged), (1, vec![id(0)]));
    assert!(report.torn.is_empty());
    assert!(matches!(get(&engine, id(0)).await, Err(ReadError::Corrupt { .. })));
    assert_eq!(get(&engine, id(5)).await.unwrap(), payload(5, 100_000));
    engine.delete(&[id(0)]).await.unwrap();
    engine.shutdown().await.unwrap();
}
