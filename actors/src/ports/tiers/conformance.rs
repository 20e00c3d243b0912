//! What every adapter of [`ColdTier`] does, as tests. An adapter's test crate implements [`Harness`] and calls
//! [`crate::cold_tier_conformance!`].

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(missing_docs, reason = "the names of the cases say what they check")]

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ::bytes::Bytes;
use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_protocol::ContentId;
use tokio::time::timeout;

use super::{ColdBody, ColdTier, PieceName, PieceSpec, TierError, TierResult};

pub mod breaks;
pub mod bytes;
pub mod names;

/// Longer than any step here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Longer than any case takes: some store a hundred MiB, in a build that is not optimised and beside other tests.
pub const CASE_MAX: Duration = Duration::from_secs(600);

/// The largest piece that the suite stores where the tier takes larger ones.
const LARGE_BYTES: u64 = 20 << 20;

/// Steps in which bodies come, unless a case says otherwise: no divisor of anything.
const STEP_BYTES: usize = 60_001;

/// A store without anything in it.
#[async_trait]
pub trait Harness: Send + Sync {
    /// Another instance of the adapter on the same store, as another node has or the same one after a restart.
    async fn tier(&self) -> Arc<dyn ColdTier>;

    /// Everything that lies in the store, seen past the adapter, in words for the message of a failed test: pieces, and
    /// what was begun and never ended, such as temporary files and open uploads. `None` where one cannot look.
    async fn contents(&self) -> Option<Vec<String>>;
}

/// Expands to one test a case. `$harness` is an expression that makes a fresh, empty store: it may await.
#[macro_export]
macro_rules! cold_tier_conformance {
    ($harness:expr) => {
        $crate::cold_tier_conformance! { @each $harness;
            bytes::pieces_come_back_identical
            bytes::largest_piece_comes_back_identical
            bytes::ranges_are_exact
            bytes::ranges_outside_a_piece_are_errors
            bytes::body_of_many_small_steps_is_one_piece
            bytes::body_is_not_held_in_memory
            bytes::pieces_are_moved_at_the_same_time
            bytes::half_read_body_disturbs_nobody
            names::names_of_other_moves_differ
            names::names_survive_a_new_instance
            names::missing_pieces_are_not_found
            names::deleting_is_idempotent
            names::check_stores_nothing
            breaks::repeated_put_replaces
            breaks::body_of_another_size_is_invalid
            breaks::failing_body_is_invalid
            breaks::sizes_beyond_the_limits_are_invalid
            breaks::put_after_a_broken_one_is_whole
            breaks::dropped_put_leaves_nothing_after_delete
            breaks::put_dropped_at_any_await_leaves_nothing_after_delete
        }
    };
    (@each $harness:expr; $($module:ident :: $case:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let harness = $harness;
                let case = $crate::ports::tiers::conformance::$module::$case(&harness);
                let ended = tokio::time::timeout($crate::ports::tiers::conformance::CASE_MAX, case).await;
                ended.expect("a case ends: every wait of a tier has a limit");
            }
        )*
    };
}

type Tier = Arc<dyn ColdTier>;

/// Bytes that differ from place to place and from one salt to the next.
fn pattern(len: usize, salt: u32) -> Bytes {
    (0..len as u32)
        .map(|i| (i.wrapping_add(salt.wrapping_mul(77_777)).wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// The first piece of a content of its own.
fn piece(number: u8, size_bytes: usize) -> PieceSpec {
    PieceSpec { content: ContentId([number; 12]), index: 0, attempt: 1, size_bytes: size_bytes as u64 }
}

/// A body that comes in steps.
fn body(data: &Bytes, step: usize) -> ColdBody {
    let data = data.clone();
    let starts = (0..data.len()).step_by(step);
    stream::iter(starts.map(move |start| Ok(data.slice(start..(start + step).min(data.len()))))).boxed()
}

/// Reserves and stores.
async fn store(tier: &Tier, spec: &PieceSpec, data: &Bytes) -> PieceName {
    let name = tier.reserve(spec).await.expect("reserve");
    tier.put(&name, spec, body(data, STEP_BYTES)).await.expect("put");
    name
}

async fn get(tier: &Tier, name: &PieceName, range: Range<u64>) -> TierResult<Vec<u8>> {
    let parts: Vec<Bytes> = tier.get(name, range).await?.try_collect().await?;
    Ok(parts.concat())
}

/// The piece is there, whole, and is `data`.
async fn assert_is(tier: &Tier, name: &PieceName, data: &Bytes) {
    let size_bytes = data.len() as u64;
    assert_eq!(tier.size_bytes(name).await.expect("size"), size_bytes, "{name}");
    let got = get(tier, name, 0..size_bytes).await.expect("get");
    assert!(got == *data, "{name}: {size_bytes} bytes differ");
}

/// The piece is not there, and both ways to ask say so.
async fn assert_missing(tier: &Tier, name: &PieceName) {
    let size = tier.size_bytes(name).await;
    assert!(matches!(&size, Err(TierError::NotFound(missing)) if missing == name), "{name}: {size:?}");
    // The answer must show before a body has begun.
    let body = tier.get(name, 0..1).await.err();
    assert!(matches!(&body, Some(TierError::NotFound(missing)) if missing == name), "{name}: {body:?}");
}

/// Nothing lies in the store, where one can look.
async fn assert_empty(harness: &dyn Harness) {
    assert_eq!(harness.contents().await.unwrap_or_default(), Vec::<String>::new(), "left behind");
}

/// Deletes what a broken `put` may have left, and sees that nothing is left.
async fn assert_deleted(harness: &dyn Harness, tier: &Tier, name: &PieceName) {
    tier.delete(name).await.expect("delete");
    assert_missing(tier, name).await;
    assert_empty(harness).await;
}

/// The result of a `put` that nothing stands in the way of.
async fn put(tier: &Tier, name: &PieceName, spec: &PieceSpec, body: ColdBody) -> TierResult<()> {
    timeout(PATIENCE, tier.put(name, spec, body)).await.expect("put ends")
}
