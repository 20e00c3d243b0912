//! The queue of contents to reclaim.
//!
//! A content that lost its last reference keeps its row in `contents`, and a copy may take it, until [`due`] or
//! [`claim`] claims it by removing that row. From then on only the row in `reclaims` knows its chunks, until
//! [`finish`]. Of a content in a tier, the claim puts its pieces on the list of what that tier is to delete.
//!
//! `queued_ms` is by the clock of the node that committed, and held against that of the node that deletes: a wrong one
//! makes the grace shorter or longer. Only reads that are open lean on the grace, and they break off; whether a content
//! is referred to is compared in the transaction of the claim, and what a backup brings back is lost with or without it
//! in the end.

use std::collections::HashSet;

use holdfast_actors::ports::metadata::{MetadataResult, Reclaim};
use holdfast_protocol::{ContentId, Manifest, ReclaimItem};

use super::shapes::statements;
use super::{Dialect, Fields, Reader, Session, Shape, Value, values};
use crate::metadata::rows;

/// Queues chunks that nothing refers to.
pub(super) async fn queue<S: Session>(
    tx: &mut S,
    contents: &[(ContentId, Manifest)],
    now_ms: u64,
) -> MetadataResult<()> {
    tx.execute_many(Shape::QueueReclaims, &[], contents, |(content, manifest)| {
        values![content.as_bytes(), manifest.encode(), rows::signed(now_ms)]
    })
    .await
}

/// A content that may be claimed.
struct Candidate {
    reclaim: Reclaim,
    content: ContentId,
    /// It lay in a tier, and its pieces are on no list yet.
    has_pieces: bool,
}

impl Candidate {
    /// From `id, content, manifest, tier, cold IS NOT NULL` of a row.
    fn from_row(row: &impl Fields) -> MetadataResult<Self> {
        let content = rows::content_id(row.bytes(1)?)?;
        let in_tier = row.text_or_null(3)?.is_some();
        // There are no chunks behind the manifest of what lies in a tier.
        let manifest = if in_tier { Manifest::default() } else { rows::manifest(row.bytes(2)?)? };
        let item = ReclaimItem { id: rows::unsigned(row.number(0)?)?, content };
        let reclaim = Reclaim { item, manifest, stub: in_tier.then_some(content) };
        Ok(Self { reclaim, content, has_pieces: row.number(4)? != 0 })
    }
}

/// Claims what is due. What is claimed and not finished comes again, after what has waited longer: a disk that cannot
/// delete must not hold up the others.
pub(super) async fn due<S: Session>(tx: &mut S, before_ms: u64, limit: u32) -> MetadataResult<Vec<Reclaim>> {
    // Where in a tier contents are is long: that is read of one after the other, further down.
    let found = tx
        .fetch(
            "SELECT r.id, r.content, r.manifest, r.tier, r.cold IS NOT NULL FROM reclaims r LEFT JOIN contents c ON c.id = r.content \
             WHERE r.queued_ms < ? AND (c.refs IS NULL OR c.refs = 0) ORDER BY r.queued_ms, r.id LIMIT ?",
            values![rows::signed(before_ms), i64::from(limit)],
        )
        .await?;
    let candidates: MetadataResult<Vec<Candidate>> = found.iter().map(Candidate::from_row).collect();
    let due = claim_candidates(tx, candidates?, before_ms).await?;
    let head = [Value::from(rows::signed(before_ms))];
    tx.execute_many(Shape::PostponeReclaims, &head, &due, |reclaim| values![rows::signed(reclaim.item.id)]).await?;
    Ok(due)
}

/// What is due, oldest first.
pub(super) async fn waiting<R: Reader>(reads: &R, before_ms: u64, limit: u32) -> MetadataResult<Vec<ReclaimItem>> {
    let found = reads
        .fetch(
            "SELECT r.id, r.content FROM reclaims r LEFT JOIN contents c ON c.id = r.content \
             WHERE r.queued_ms < ? AND (c.refs IS NULL OR c.refs = 0) ORDER BY r.queued_ms, r.id LIMIT ?",
            values![rows::signed(before_ms), i64::from(limit)],
        )
        .await?;
    let item = |id: i64, content: &[u8]| -> MetadataResult<ReclaimItem> {
        Ok(ReclaimItem { id: rows::unsigned(id)?, content: rows::content_id(content)? })
    };
    found.iter().map(|row| item(row.number(0)?, row.bytes(1)?)).collect()
}

/// Claims those of `items` that are due. They keep their place in the queue: who hands them out remembers what is
/// tried.
pub(super) async fn claim<S: Session>(
    tx: &mut S,
    items: &[ReclaimItem],
    before_ms: u64,
) -> MetadataResult<Vec<Reclaim>> {
    let found = tx.fetch_many(Shape::NamedReclaims, items, |item| values![rows::signed(item.id)]).await?;
    let named: HashSet<ReclaimItem> = items.iter().copied().collect();
    let mut candidates = Vec::with_capacity(found.len());
    for row in &found {
        let is_due = row.number(5)? < rows::signed(before_ms) && row.number_or_null(6)?.is_none_or(|refs| refs == 0);
        let item = ReclaimItem { id: rows::unsigned(row.number(0)?)?, content: rows::content_id(row.bytes(1)?)? };
        if is_due && named.contains(&item) {
            candidates.push(Candidate::from_row(row)?);
        }
    }
    claim_candidates(tx, candidates, before_ms).await
}

/// Claims candidates, of which was read that they are due.
async fn claim_candidates<S: Session>(
    tx: &mut S,
    mut candidates: Vec<Candidate>,
    before_ms: u64,
) -> MetadataResult<Vec<Reclaim>> {
    if S::DIALECT != Dialect::Sqlite {
        // What was read may be over: a copy may be taking a content at this moment (after this none can), or have taken
        // it and been dropped again, and then the grace begins anew, with another row in the queue.
        let mut taken = HashSet::new();
        let contents = |candidate: &Candidate| values![candidate.content.as_bytes()];
        for row in tx.fetch_many(Shape::LockContents, &candidates, contents).await? {
            if row.number(1)? != 0 {
                taken.insert(rows::content_id(row.bytes(0)?)?);
            }
        }
        let mut waiting = HashSet::new();
        let ids = |candidate: &Candidate| values![rows::signed(candidate.reclaim.item.id)];
        for row in tx.fetch_many(Shape::LockReclaims, &candidates, ids).await? {
            if row.number(1)? < rows::signed(before_ms) {
                waiting.insert(rows::unsigned(row.number(0)?)?);
            }
        }
        candidates
            .retain(|candidate| !taken.contains(&candidate.content) && waiting.contains(&candidate.reclaim.item.id));
    }
    tx.execute_many(Shape::RemoveContents, &[], &candidates, |candidate| values![candidate.content.as_bytes()]).await?;
    for candidate in candidates.iter().filter(|candidate| candidate.has_pieces) {
        delete_pieces(tx, candidate.reclaim.item.id, before_ms).await?;
    }
    Ok(candidates.into_iter().map(|candidate| candidate.reclaim).collect())
}

/// Puts the pieces of a claimed content on the list of what its tier is to delete, once.
async fn delete_pieces<S: Session>(tx: &mut S, reclaim: u64, due_ms: u64) -> MetadataResult<()> {
    let id = rows::signed(reclaim);
    let row = tx.fetch_optional("SELECT tier, cold FROM reclaims WHERE id = ?", values![id]).await?;
    let Some(row) = row else { return Ok(()) };
    let place = rows::cold_place(row.text(0)?, row.bytes(1)?)?;
    tx.execute_many(Shape::InsertPieces, &[], &place.names, |name| {
        values![place.tier.as_str(), &**name, 0_i64, rows::signed(due_ms), 0_i64]
    })
    .await?;
    tx.execute("UPDATE reclaims SET cold = NULL WHERE id = ?", values![id]).await.map(drop)
}

/// Forgets reclaims, and which content held their extents. A number that is another content's by now is left alone.
pub(super) async fn finish<S: Session>(tx: &mut S, items: &[ReclaimItem]) -> MetadataResult<()> {
    let found = tx.fetch_many(Shape::LoadReclaims, items, |item| values![rows::signed(item.id)]).await?;
    let named: HashSet<ReclaimItem> = items.iter().copied().collect();
    let (mut ids, mut extents) = (Vec::new(), Vec::new());
    for row in &found {
        let item = ReclaimItem { id: rows::unsigned(row.number(0)?)?, content: rows::content_id(row.bytes(1)?)? };
        if !named.contains(&item) {
            continue;
        }
        ids.push(item.id);
        let manifest = rows::manifest(row.bytes(2)?)?;
        let others = manifest.extents.into_iter().map(|extent| extent.content).filter(|id| *id != item.content);
        extents.extend(others);
    }
    tx.execute_many(Shape::RemoveExtents, &[], &extents, |id: &ContentId| values![id.as_bytes()]).await?;
    tx.execute_many(Shape::RemoveReclaims, &[], &ids, |id| values![rows::signed(*id)]).await
}

/// [`known`], with the commits that are under way.
pub(super) async fn known_to_writer<S: Session>(tx: &mut S, contents: &[ContentId]) -> MetadataResult<Vec<ContentId>> {
    let found = tx.fetch_many(Shape::Known, contents, |id| values![id.as_bytes()]).await?;
    found.iter().map(|row| rows::content_id(row.bytes(0)?)).collect()
}

/// Which contents anything knows.
pub(super) async fn known<R: Reader>(reads: &R, contents: &[ContentId]) -> MetadataResult<Vec<ContentId>> {
    let mut known = Vec::new();
    for (sql, values) in statements(R::DIALECT, Shape::Known, &[], contents, |id| values![id.as_bytes()]) {
        for row in reads.run_fetch(sql, values).await? {
            known.push(rows::content_id(row.bytes(0)?)?);
        }
    }
    Ok(known)
}
