//! Pieces that tiers are to delete.

use holdfast_actors::ports::metadata::{MetadataError, MetadataResult};
use holdfast_actors::ports::tiering::DuePiece;
use holdfast_actors::ports::tiers::PieceName;
use holdfast_protocol::TierName;
use sqlx::AssertSqlSafe;

use super::super::{Fields, Session, Shape, Value, values};
use crate::metadata::rows;

/// Gives out pieces that are due for deletion, until `again_ms`.
pub(super) async fn due_pieces<S: Session>(
    tx: &mut S,
    tier: &TierName,
    now_ms: u64,
    again_ms: u64,
    limit: u32,
) -> MetadataResult<Vec<DuePiece>> {
    let sql = format!(
        "SELECT id, name, unsure FROM tier_pieces {} WHERE tier = ? AND due_ms <= ? ORDER BY due_ms, id LIMIT ?{}",
        S::DIALECT.by_index("tier_pieces_by_due"),
        S::DIALECT.for_update()
    );
    let found = tx.fetch(AssertSqlSafe(sql), values![tier.as_str(), rows::signed(now_ms), i64::from(limit)]).await?;
    let mut due = Vec::with_capacity(found.len());
    for row in &found {
        let name = PieceName::new(row.text(1)?).map_err(|error| MetadataError::Corrupt(error.to_string()))?;
        due.push(DuePiece { id: rows::unsigned(row.number(0)?)?, name, is_unsure: row.number(2)? != 0 });
    }
    let head = [Value::from(rows::signed(again_ms))];
    tx.execute_many(Shape::ClaimPieces, &head, &due, |piece| values![rows::signed(piece.id)]).await?;
    Ok(due)
}

/// Takes deleted pieces off the list; those that may come back yet are deleted once more, at `again_ms`.
pub(super) async fn finish_pieces<S: Session>(tx: &mut S, pieces: &[DuePiece], again_ms: u64) -> MetadataResult<()> {
    let piece = |piece: &&DuePiece| values![rows::signed(piece.id), piece.name.as_str()];
    let (unsure, sure): (Vec<&DuePiece>, Vec<&DuePiece>) = pieces.iter().partition(|piece| piece.is_unsure);
    tx.execute_many(Shape::NotePieces, &[Value::from(rows::signed(again_ms))], &unsure, piece).await?;
    tx.execute_many(Shape::RemovePieces, &[], &sure, piece).await
}
