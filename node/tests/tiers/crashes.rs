//! A mover that dies in the middle, everywhere.

use std::pin::Pin;
use std::task::Poll;

use holdfast_actors::flow::cold::mover::MoverParts;
use holdfast_actors::ports::metadata::{MoveReason, Versioning};

use super::world::{HOUR, PIECE_BYTES, World, node, pattern, tier};

/// Runs `future` until it has waited `waits` times, and drops it there; what it gave, if it came to its end before.
async fn cut_after<T>(waits: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future: Pin<Box<_>> = Box::pin(future);
    let mut left = waits;
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

/// Cuts a move off wherever it waits: the object is whole, another mover makes the move, and nothing is left behind.
async fn cut_everywhere(from: Option<&str>, to: Option<&str>, lane: &str) {
    let world = World::new(Versioning::Unversioned).await;
    let second = MoverParts { node: node(2), ..world.mover.clone() };
    let data = pattern(2 * PIECE_BYTES as usize + 5_000, 9);
    let mut waits = 0;
    loop {
        let key = format!("key-{waits}");
        world.put(&key, &data, from).await;
        if let Some(from) = from {
            assert_eq!(world.pass(from).await.moved, 1);
        }
        world.request(&key, to, MoveReason::Command).await;
        let whole = cut_after(waits, world.mover.pass(&tier(lane))).await;
        assert!(world.read(&key).await == data, "cut off after {waits}");
        world.go_on(HOUR);
        let rest = second.pass(&tier(lane)).await.unwrap();
        assert_eq!(rest.claimed, rest.moved, "cut off after {waits}: {rest:?}");
        assert_eq!(world.place(&key).await, to.unwrap_or("cluster"), "cut off after {waits}");
        assert!(world.read(&key).await == data, "cut off after {waits}");
        world.assert_clean().await;
        world.delete(&key).await;
        if let Some(whole) = whole {
            assert_eq!(whole.unwrap().moved, 1);
            break;
        }
        waits += 1;
    }
    assert!(waits > 10, "it was cut off at {waits} places only");
    world.assert_clean().await;
}

#[tokio::test]
async fn mover_that_dies_on_the_way_to_a_tier_is_followed_by_another() {
    cut_everywhere(None, Some("ONE"), "ONE").await;
}

#[tokio::test]
async fn mover_that_dies_on_the_way_back_is_followed_by_another() {
    cut_everywhere(Some("ONE"), None, "ONE").await;
}

#[tokio::test]
async fn mover_that_dies_between_two_tiers_is_followed_by_another() {
    cut_everywhere(Some("ONE"), Some("TWO"), "TWO").await;
}
