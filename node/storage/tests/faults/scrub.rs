//! What scrub finds, and how fast it goes.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use holdfast_storage::io::sim::SimIo;
use holdfast_storage::{Finding, FindingSource, ScrubConfig, ScrubStep, Scrubber};
use parking_lot::Mutex;

use super::common::{config, id, open_with, payload, put, std_io};
use super::{flip, sim_engine};

#[tokio::test]
async fn scrub_reads_everything_reports_damage_and_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let findings = Arc::new(Mutex::new(Vec::<Finding>::new()));
    let mut config = config(dir.path());
    config.segment_size_bytes = 4 << 20;
    let sink = Arc::clone(&findings);
    config.on_finding = Some(Arc::new(move |finding| sink.lock().push(finding)));
    let (engine, _) = open_with(config.clone(), std_io()).await;
    for n in 0..20 {
        put(&engine, id(n), &payload(u64::from(n), 700_000)).await.unwrap();
    }
    engine.run_jobs().await;
    let victims = [3, 11, 17];
    for victim in victims {
        let place = engine.locate(&id(victim)).unwrap();
        // Payload, label and header in turn.
        let offset =
            [place.payload.start + 500_000, place.record.start + 180, place.record.start + 20][victim as usize % 3];
        flip(&place.path, offset);
    }
    let mut scrubber = Scrubber::resume(&engine, ScrubConfig::default()).await;
    let (mut good, mut bad, mut segments) = (0, 0, 0);
    while segments < 4 {
        match scrubber.step().await.unwrap() {
            ScrubStep::Record { good: true, .. } => good += 1,
            ScrubStep::Record { good: false, .. } => bad += 1,
            ScrubStep::SegmentDone => segments += 1,
            ScrubStep::RoundDone => panic!("not all is read"),
        }
    }
    assert!(scrubber.position().next_segment > 1);
    drop(scrubber);
    let mut scrubber = Scrubber::resume(&engine, ScrubConfig::default()).await;
    loop {
        match scrubber.step().await.unwrap() {
            ScrubStep::Record { good: true, .. } => good += 1,
            ScrubStep::Record { good: false, .. } => bad += 1,
            ScrubStep::SegmentDone => {}
            ScrubStep::RoundDone => break,
        }
    }
    assert_eq!((good, bad), (17, 3));
    let mut found: Vec<_> =
        findings.lock().iter().map(|finding| (finding.chunk.unwrap().index(), finding.source)).collect();
    found.sort_unstable_by_key(|(chunk, _)| *chunk);
    assert_eq!(found, victims.map(|victim| (victim, FindingSource::Scrub)));
    assert_eq!(scrubber.position().rounds, 1);
}

#[tokio::test(start_paused = true)]
async fn scrub_keeps_its_pace() {
    let io = SimIo::new(5);
    let engine = sim_engine(&io).await;
    for n in 0..10 {
        put(&engine, id(n), &payload(u64::from(n), 100_000)).await.unwrap();
    }
    let config = ScrubConfig { round: Duration::from_secs(1), bytes_per_second_min: 1, bytes_per_second_max: 10_000 };
    let mut scrubber = Scrubber::resume(&engine, config).await;
    let cancel = tokio_util::sync::CancellationToken::new();
    let started = tokio::time::Instant::now();
    let stop = cancel.clone();
    let (_, ()) = tokio::join!(scrubber.run(&cancel), async move {
        // Of virtual time.
        tokio::time::sleep(Duration::from_secs(60)).await;
        stop.cancel();
    });
    assert_eq!(started.elapsed().as_secs(), 60);
    // About 106 kB a record at 10 kB a second: some six records in a minute.
    // Of ten records in three segments.
    let place = scrubber.position();
    assert!(place.rounds == 0 && place.next_segment <= 2, "{place:?}");
}

/// Does a step until it has to wait for the disk, and cuts it off there; what it gave, if it did not.
async fn cut_off(io: &SimIo, scrubber: &mut Scrubber) -> Option<ScrubStep> {
    io.hold();
    let done = {
        let mut step = Box::pin(scrubber.step());
        loop {
            if let Poll::Ready(done) = futures::poll!(step.as_mut()) {
                break Some(done.unwrap());
            }
            if io.held() > 0 {
                break None;
            }
            tokio::task::yield_now().await;
        }
    };
    io.release();
    done
}

#[tokio::test]
async fn scrub_that_is_cut_off_again_and_again_reads_each_record_once() {
    const CHUNKS: u32 = 40;
    let io = SimIo::new(6);
    let engine = sim_engine(&io).await;
    for n in 0..CHUNKS {
        put(&engine, id(n), &payload(u64::from(n), 30_000)).await.unwrap();
    }
    engine.run_jobs().await;
    assert!(engine.stats().segments > 1);
    let mut scrubber = Scrubber::resume(&engine, ScrubConfig::default()).await;
    let (mut read, mut cut, mut steps) = (0, 0, 0);
    while scrubber.position().rounds == 0 {
        steps += 1;
        assert!(steps < 10 * CHUNKS, "it does not come to an end: {read} records read");
        let step = match cut_off(&io, &mut scrubber).await {
            Some(step) => step,
            None => {
                cut += 1;
                scrubber.step().await.unwrap()
            }
        };
        if let ScrubStep::Record { good, .. } = step {
            assert!(good);
            read += 1;
        }
    }
    assert_eq!(read, CHUNKS);
    assert!(cut >= CHUNKS, "only {cut} steps were cut off");
}

#[tokio::test]
async fn a_record_that_is_never_read_in_time_does_not_hold_up_the_rest() {
    let io = SimIo::new(7);
    let engine = sim_engine(&io).await;
    for n in 0..3 {
        put(&engine, id(n), &payload(u64::from(n), 30_000)).await.unwrap();
    }
    let mut scrubber = Scrubber::resume(&engine, ScrubConfig::default()).await;
    assert_eq!(scrubber.step().await.unwrap(), ScrubStep::SegmentDone);
    for _ in 0..2 {
        assert_eq!(cut_off(&io, &mut scrubber).await, None);
    }
    for (expected, why) in [(2, "the first one is passed over"), (3, "it is tried again in the next round")] {
        let mut read = 0;
        loop {
            match scrubber.step().await.unwrap() {
                ScrubStep::Record { good, .. } => {
                    assert!(good);
                    read += 1;
                }
                ScrubStep::SegmentDone => {}
                ScrubStep::RoundDone => break,
            }
        }
        assert_eq!(read, expected, "{why}");
    }
}
