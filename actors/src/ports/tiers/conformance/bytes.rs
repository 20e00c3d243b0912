//! Pieces and ranges of them come back as they were given, through bounded memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::bytes::Bytes;
use futures::{StreamExt as _, stream};
use tokio::task::JoinSet;

use super::{Harness, LARGE_BYTES, STEP_BYTES, assert_empty, assert_is, body, get, pattern, piece, put, store};

pub async fn pieces_come_back_identical(harness: &dyn Harness) {
    let tier = harness.tier().await;
    for (number, size) in [1, 4 * 1024 - 1, (1 << 20) + 3].into_iter().enumerate() {
        let data = pattern(size, number as u32);
        let name = store(&tier, &piece(number as u8, size), &data).await;
        assert_is(&tier, &name, &data).await;
    }
}

pub async fn largest_piece_comes_back_identical(harness: &dyn Harness) {
    let tier = harness.tier().await;
    let data = pattern(tier.piece_bytes_max().min(LARGE_BYTES) as usize, 9);
    let name = store(&tier, &piece(1, data.len()), &data).await;
    assert_is(&tier, &name, &data).await;
}

pub async fn ranges_are_exact(harness: &dyn Harness) {
    let tier = harness.tier().await;
    let data = pattern((3 << 20) + 17, 1);
    let (name, end) = (store(&tier, &piece(1, data.len()), &data).await, data.len() as u64);
    let middle = end / 2;
    for range in [
        0..1,
        0..4096,
        1..2,
        end - 1..end,
        end - 65_537..end,
        middle..middle + 1,
        middle - 300_000..middle + 300_001,
        1..end - 1,
    ] {
        let expected = &data[range.start as usize..range.end as usize];
        assert!(get(&tier, &name, range.clone()).await.expect("get") == expected, "range {range:?} differs");
    }
}

pub async fn ranges_outside_a_piece_are_errors(harness: &dyn Harness) {
    let tier = harness.tier().await;
    let data = pattern(100_000, 1);
    let name = store(&tier, &piece(1, data.len()), &data).await;
    for range in [5..5, 0..100_001, 99_999..100_002, 100_000..100_001, 1 << 40..(1 << 40) + 7] {
        let got = get(&tier, &name, range.clone()).await;
        assert!(got.is_err(), "range {range:?} gave {} bytes", got.unwrap().len());
    }
    assert_is(&tier, &name, &data).await;
}

pub async fn body_of_many_small_steps_is_one_piece(harness: &dyn Harness) {
    let tier = harness.tier().await;
    let data = pattern(700_001, 4);
    let spec = piece(1, data.len());
    let name = tier.reserve(&spec).await.unwrap();
    // Empty steps are steps too.
    let steps = body(&data, 13).flat_map(|step| stream::iter([Ok(Bytes::new()), step]));
    put(&tier, &name, &spec, steps.boxed()).await.expect("put");
    assert_is(&tier, &name, &data).await;
}

/// A buffer that tells when it is let go of.
struct Tracked {
    data: Bytes,
    held: Arc<AtomicU64>,
}

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.held.fetch_sub(self.data.len() as u64, Ordering::SeqCst);
    }
}

/// An adapter may gather parts of some MiB, some of them at a time; it may not gather the piece.
pub async fn body_is_not_held_in_memory(harness: &dyn Harness) {
    const STEP: usize = 1 << 18;
    let tier = harness.tier().await;
    let steps = tier.piece_bytes_max().min(64 << 20) as usize / STEP;
    if steps == 0 {
        return;
    }
    let (held, peak) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let data = pattern(STEP, 2);
    let source = stream::iter(0..steps).map({
        let (data, held, peak) = (data.clone(), held.clone(), peak.clone());
        move |_| {
            let now = held.fetch_add(STEP as u64, Ordering::SeqCst) + STEP as u64;
            peak.fetch_max(now, Ordering::SeqCst);
            Ok(Bytes::from_owner(Tracked { data: data.clone(), held: held.clone() }))
        }
    });
    let spec = piece(1, steps * STEP);
    let name = tier.reserve(&spec).await.unwrap();
    put(&tier, &name, &spec, source.boxed()).await.expect("put");
    let peak = peak.load(Ordering::SeqCst);
    assert!(peak <= 48 << 20, "{peak} of {} bytes were held at once", spec.size_bytes);

    let mut body = tier.get(&name, 0..spec.size_bytes).await.expect("get");
    let mut at = 0;
    while let Some(step) = body.next().await {
        let mut step = step.expect("body");
        while !step.is_empty() {
            let next = step.split_to(step.len().min(STEP - at % STEP));
            assert!(next == data[at % STEP..][..next.len()], "differs at {at}");
            at += next.len();
        }
    }
    assert_eq!(at as u64, spec.size_bytes);
}

pub async fn pieces_are_moved_at_the_same_time(harness: &dyn Harness) {
    const PIECES: u8 = 24;
    let tiers = [harness.tier().await, harness.tier().await];
    let mut puts = JoinSet::new();
    for number in 0..PIECES {
        let tier = tiers[usize::from(number) % 2].clone();
        puts.spawn(async move {
            let data = pattern(200_000 + usize::from(number) * 4099, number.into());
            let name = store(&tier, &piece(number, data.len()), &data).await;
            (name, data)
        });
    }
    let stored = puts.join_all().await;
    let mut gets = JoinSet::new();
    for (at, (name, data)) in stored.iter().enumerate() {
        for tier in tiers.clone() {
            let (name, data) = (name.clone(), data.clone());
            gets.spawn(async move { assert_is(&tier, &name, &data).await });
        }
        let (tier, name, data) = (tiers[at % 2].clone(), name.clone(), data.clone());
        gets.spawn(async move {
            let got = get(&tier, &name, 1000..150_000).await.expect("get");
            assert!(got == data[1000..150_000], "{name} differs");
        });
    }
    gets.join_all().await;
    let mut deletes = JoinSet::new();
    for (at, (name, _)) in stored.into_iter().enumerate() {
        let tier = tiers[at % 2].clone();
        deletes.spawn(async move { tier.delete(&name).await.expect("delete") });
    }
    deletes.join_all().await;
    assert_empty(harness).await;
}

pub async fn half_read_body_disturbs_nobody(harness: &dyn Harness) {
    let tier = harness.tier().await;
    let data = pattern(5 << 20, 6);
    let name = store(&tier, &piece(1, data.len()), &data).await;
    for _ in 0..8 {
        let mut half = tier.get(&name, 0..data.len() as u64).await.expect("get");
        assert!(!half.next().await.expect("a first step").expect("body").is_empty());
        drop(half);
        // Whatever the half-read answer left on its way must not be taken for this one.
        let got = get(&tier, &name, 77_777..177_777).await.expect("get");
        assert!(got == data[77_777..177_777], "an answer of another question");
    }
    // One that is not read at all does not keep the piece from being deleted.
    let open = tier.get(&name, 0..data.len() as u64).await.expect("get");
    tier.delete(&name).await.expect("delete");
    drop(open);
    assert_empty(harness).await;
    let small = pattern(STEP_BYTES * 3, 7);
    let name = store(&tier, &piece(2, small.len()), &small).await;
    assert_is(&tier, &name, &small).await;
}
