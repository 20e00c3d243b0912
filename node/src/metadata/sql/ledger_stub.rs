//! Until the verbs are there: nothing is known of cold tiers.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_actors::ports::MetadataError;
use holdfast_actors::ports::metadata::{Content, MetadataResult};
use holdfast_actors::ports::tiering::{Claim, DuePiece, LaneBacklog, Move, TierLedger, TierRecord, TierUsage};
use holdfast_actors::ports::tiers::PieceName;
use holdfast_protocol::{ContentId, TierName};

use super::{Backend, SqlMetadataStore};

fn none<T>() -> MetadataResult<T> {
    Err(MetadataError::Unavailable("cold tiers are not known to this database yet".into()))
}

#[async_trait]
#[allow(private_bounds, reason = "the backends are this module's own")]
impl<B: Backend> TierLedger for SqlMetadataStore<B> {
    async fn tiers(&self) -> MetadataResult<Vec<TierRecord>> {
        Ok(vec![])
    }
    async fn add_tier(&self, _: TierName, _: String, _: u64) -> MetadataResult<TierRecord> {
        none()
    }
    async fn change_tier(&self, _: &TierName, _: String) -> MetadataResult<TierRecord> {
        none()
    }
    async fn remove_tier(&self, _: &TierName) -> MetadataResult<()> {
        none()
    }
    async fn tier_usage(&self) -> MetadataResult<Vec<TierUsage>> {
        none()
    }
    async fn cold_contents(&self, _: &TierName, _: Option<ContentId>, _: u32) -> MetadataResult<Vec<Arc<Content>>> {
        none()
    }
    async fn claim_moves(&self, _: &TierName, _: Claim, _: u32) -> MetadataResult<Vec<Move>> {
        none()
    }
    async fn renew_move(&self, _: u64, _: u64, _: u64, _: u64) -> MetadataResult<()> {
        none()
    }
    async fn postpone_move(&self, _: u64, _: u64, _: u64, _: Option<&str>) -> MetadataResult<()> {
        none()
    }
    async fn drop_move(&self, _: u64, _: u64) -> MetadataResult<()> {
        none()
    }
    async fn moves(&self, _: Option<&TierName>, _: u64, _: u32) -> MetadataResult<Vec<Move>> {
        none()
    }
    async fn move_backlog(&self, _: u64) -> MetadataResult<Vec<LaneBacklog>> {
        none()
    }
    async fn retry_moves(&self, _: &TierName, _: u64) -> MetadataResult<u64> {
        none()
    }
    async fn reserve_pieces(&self, _: u64, _: u64, _: &TierName, _: &[PieceName], _: u64) -> MetadataResult<()> {
        none()
    }
    async fn due_pieces(&self, _: &TierName, _: u64, _: u64, _: u32) -> MetadataResult<Vec<DuePiece>> {
        none()
    }
    async fn finish_pieces(&self, _: &[DuePiece], _: u64) -> MetadataResult<()> {
        none()
    }
}
