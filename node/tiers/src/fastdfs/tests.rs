//! The adapter against the double, and against a real FastDFS where `HOLDFAST_TEST_FASTDFS` names its trackers.

mod clients;
mod conformance;
mod contract;
mod faults;
mod replicas;

use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use holdfast_actors::ports::tiers::{ColdBody, ColdTier, PieceName, PieceSpec, TierResult};
use holdfast_protocol::ContentId;

use super::double::{Double, DoubleConfig};
use super::{FastdfsColdTier, FastdfsConfig};

fn spec(size_bytes: u64) -> PieceSpec {
    PieceSpec { content: ContentId([7; 12]), index: 0, attempt: 1, size_bytes }
}

fn bytes(count: usize, seed: u32) -> Vec<u8> {
    (0..count as u32).map(|n| (n.wrapping_add(seed).wrapping_mul(0x9e37_79b9) >> 23) as u8).collect()
}

/// A body in parts of 10,000 bytes.
fn body(bytes: &[u8]) -> ColdBody {
    let parts: Vec<_> = bytes.chunks(10_000).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
    Box::pin(stream::iter(parts))
}

async fn collect(body: ColdBody) -> TierResult<Vec<u8>> {
    body.try_fold(Vec::new(), |mut all, part| async move {
        all.extend_from_slice(&part);
        Ok(all)
    })
    .await
}

async fn read(tier: &dyn ColdTier, name: &PieceName, range: Range<u64>) -> TierResult<Vec<u8>> {
    collect(tier.get(name, range).await?).await
}

async fn try_store(tier: &dyn ColdTier, bytes: &[u8]) -> TierResult<PieceName> {
    let spec = spec(bytes.len() as u64);
    let name = tier.reserve(&spec).await?;
    tier.put(&name, &spec, body(bytes)).await?;
    Ok(name)
}

async fn store(tier: &dyn ColdTier, bytes: &[u8]) -> PieceName {
    try_store(tier, bytes).await.unwrap()
}

/// A cluster of one storage, and the adapter.
async fn single() -> (Double, FastdfsColdTier) {
    cluster(DoubleConfig::default()).await
}

async fn cluster(config: DoubleConfig) -> (Double, FastdfsColdTier) {
    let double = Double::start(config).await;
    let tier = FastdfsColdTier::new(double.config()).unwrap();
    (double, tier)
}

/// The real cluster, where there is one.
fn real() -> Option<FastdfsColdTier> {
    let trackers = std::env::var("HOLDFAST_TEST_FASTDFS").ok()?;
    let trackers = trackers.split(',').map(str::to_owned).collect();
    Some(FastdfsColdTier::new(FastdfsConfig { trackers, ..FastdfsConfig::default() }).unwrap())
}
