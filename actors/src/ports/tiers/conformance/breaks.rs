//! Puts that are repeated, wrong, or given up half-way.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use ::bytes::Bytes;
use futures::{StreamExt as _, future, stream};
use tokio::sync::Notify;

use super::{
    ColdBody, Harness, STEP_BYTES, Tier, TierError, assert_deleted, assert_is, body, get, pattern, piece, put, store,
};
use crate::ports::tiers::{PieceName, PieceSpec};

/// Fits into any buffer; does not fit into one part of anything.
const SIZES: [usize; 2] = [1000, 13 << 20];

pub async fn repeated_put_replaces(harness: &dyn Harness) {
    let (tier, other) = (harness.tier().await, harness.tier().await);
    for (number, size) in SIZES.into_iter().enumerate() {
        let spec = piece(number as u8, size);
        let name = store(&tier, &spec, &pattern(size, 1)).await;
        for (salt, tier) in [(2, &other), (3, &tier)] {
            let data = pattern(size, salt);
            put(tier, &name, &spec, body(&data, STEP_BYTES)).await.expect("put again");
            assert_is(tier, &name, &data).await;
        }
        assert_deleted(harness, &other, &name).await;
    }
}

fn assert_invalid(result: &Result<(), TierError>, what: &str) {
    assert!(matches!(result, Err(TierError::Invalid(_))), "{what}: {result:?}");
}

/// Whatever is readable has not the size of the piece; and after `delete` nothing is.
async fn assert_broken(harness: &dyn Harness, tier: &Tier, name: &PieceName, spec: &PieceSpec) {
    let read = get(tier, name, 0..spec.size_bytes).await;
    assert!(read.is_err(), "{name} has {} bytes and a body never had", spec.size_bytes);
    assert_deleted(harness, tier, name).await;
}

pub async fn body_of_another_size_is_invalid(harness: &dyn Harness) {
    let tier = harness.tier().await;
    for size in SIZES {
        let spec = piece(1, size);
        for actual in [0, 1, size - 1] {
            let name = tier.reserve(&spec).await.expect("reserve");
            let short = put(&tier, &name, &spec, body(&pattern(actual, 1), STEP_BYTES)).await;
            assert_invalid(&short, &format!("{actual} of {size} bytes"));
            assert_broken(harness, &tier, &name, &spec).await;
        }
        for actual in [size + 1, size + STEP_BYTES * 3] {
            let name = tier.reserve(&spec).await.expect("reserve");
            let long = put(&tier, &name, &spec, body(&pattern(actual, 1), STEP_BYTES)).await;
            assert_invalid(&long, &format!("{actual} bytes for {size}"));
            assert_deleted(harness, &tier, &name).await;
        }
    }
}

pub async fn failing_body_is_invalid(harness: &dyn Harness) {
    let tier = harness.tier().await;
    for size in SIZES {
        let spec = piece(1, size);
        for good in [0, size / 2, size - 1, size] {
            // Of whatever kind the source's error is: it says nothing of this tier.
            for error in [TierError::Unavailable("the source".into()), TierError::Denied("the source".into())] {
                let name = tier.reserve(&spec).await.expect("reserve");
                let failing = body(&pattern(good, 1), STEP_BYTES).chain(stream::iter([Err(error)]));
                let result = put(&tier, &name, &spec, failing.boxed()).await;
                assert_invalid(&result, &format!("source failed after {good} of {size} bytes"));
                assert_deleted(harness, &tier, &name).await;
            }
        }
    }
}

pub async fn sizes_beyond_the_limits_are_invalid(harness: &dyn Harness) {
    let tier = harness.tier().await;
    for size_bytes in [0, tier.piece_bytes_max() + 1] {
        let spec = PieceSpec { size_bytes, ..piece(1, 0) };
        let name = match tier.reserve(&spec).await {
            Ok(name) => name,
            Err(error) => {
                assert_invalid(&Err(error), "reserve");
                continue;
            }
        };
        let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[7; 4096]))).take(100_000);
        let body: ColdBody = if size_bytes == 0 { stream::empty().boxed() } else { endless.boxed() };
        assert_invalid(&put(&tier, &name, &spec, body).await, &format!("{size_bytes} bytes"));
        assert_deleted(harness, &tier, &name).await;
    }
}

pub async fn put_after_a_broken_one_is_whole(harness: &dyn Harness) {
    let tier = harness.tier().await;
    for (number, size) in SIZES.into_iter().enumerate() {
        let spec = piece(number as u8, size);
        let name = tier.reserve(&spec).await.expect("reserve");
        let broken = put(&tier, &name, &spec, body(&pattern(size - 1, 1), STEP_BYTES)).await;
        assert_invalid(&broken, "short");
        drop_put_after(&tier, &name, &spec, size / 2).await;
        let data = pattern(size, 2);
        put(&tier, &name, &spec, body(&data, STEP_BYTES)).await.expect("put");
        assert_is(&tier, &name, &data).await;
        assert_deleted(harness, &tier, &name).await;
    }
}

/// Gives `good` bytes to a `put` and drops it when it wants more.
async fn drop_put_after(tier: &Tier, name: &PieceName, spec: &PieceSpec, good: usize) {
    let hungry = Arc::new(Notify::new());
    let silent = stream::poll_fn({
        let hungry = hungry.clone();
        move |_| {
            hungry.notify_one();
            Poll::Pending
        }
    });
    let silent_body = body(&pattern(good, 1), STEP_BYTES).chain(silent);
    tokio::select! {
        result = put(tier, name, spec, silent_body.boxed()) => panic!("a body without an end gave {result:?}"),
        () = hungry.notified() => {}
    }
}

pub async fn dropped_put_leaves_nothing_after_delete(harness: &dyn Harness) {
    let tier = harness.tier().await;
    for (number, size) in SIZES.into_iter().enumerate() {
        let spec = piece(number as u8, size);
        // All bytes are there, the end is not: the put cannot know yet that there are not more.
        for good in [0, 1, size / 2, size] {
            let name = tier.reserve(&spec).await.expect("reserve");
            drop_put_after(&tier, &name, &spec, good).await;
            assert_deleted(harness, &tier, &name).await;
        }
    }
}

pub async fn put_dropped_at_any_await_leaves_nothing_after_delete(harness: &dyn Harness) {
    let tier = harness.tier().await;
    for size in [1000, 7 << 20] {
        let (spec, data) = (piece(1, size), pattern(size, 1));
        for polls_max in [1, 2, 3, 4, 5, 6, 8, 11, 16, 23, 32, 64] {
            let name = tier.reserve(&spec).await.expect("reserve");
            if let Some(result) = polled_at_most(polls_max, put(&tier, &name, &spec, body(&data, STEP_BYTES))).await {
                result.expect("put");
            }
            assert_deleted(harness, &tier, &name).await;
        }
    }
}

/// What comes of a future that is dropped after so many polls.
async fn polled_at_most<T>(polls_max: u32, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut polls = 0;
    future::poll_fn(|context| {
        polls += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending if polls == polls_max => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
