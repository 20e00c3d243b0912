//! Reading what plans need: the present rows of many keys in one statement, and of a key's history what is asked for.

use std::sync::Arc;

use holdfast_actors::domain::objects::versioning::{Current, History, Past};
use holdfast_actors::ports::metadata::{BucketId, Content, MetadataError, MetadataResult, Versioning};
use holdfast_protocol::{ContentId, VersionId};
use sqlx::AssertSqlSafe;

use super::{Key, key_values, version_values};
use crate::metadata::rows;
use crate::metadata::sql::reads::{Cold, content_from_row};
use crate::metadata::sql::{Fields, Session, Shape, values};

/// The current row of a key and the state of its bucket, as loaded.
pub(super) struct Loaded {
    /// `None`: no such bucket.
    pub(super) versioning: Option<Versioning>,
    /// Of the bucket.
    pub(super) revision: Option<u64>,
    pub(super) current: Option<(Current, ContentId)>,
    /// Whether `current` is restored, or about to be: then a move waits that may be due in years.
    pub(super) is_restored: bool,
    /// Whether the content that a put brings was given up.
    pub(super) condemned: bool,
}

/// A row of history, as loaded.
#[derive(Clone, Copy)]
pub(super) struct PastRow {
    pub(super) past: Past,
    pub(super) content: Option<ContentId>,
    /// As in [`Loaded`].
    pub(super) is_restored: bool,
}

/// History of a key as far as a plan needs it.
#[derive(Default)]
pub(super) struct LoadedHistory {
    pub(super) newest: [Option<PastRow>; 2],
    pub(super) named: Option<PastRow>,
}

impl LoadedHistory {
    pub(super) fn view(&self) -> History {
        History { newest: self.newest.map(|row| row.map(|row| row.past)), named: self.named.map(|row| row.past) }
    }
}

/// Loads keys, each with the content that is to be put there.
pub(super) async fn load<S: Session>(
    tx: &mut S,
    keys: &[(BucketId, &str, Option<ContentId>)],
) -> MetadataResult<Vec<Loaded>> {
    let found = tx.fetch_many(Shape::LoadKeys, keys, |(bucket, key, content)| {
        values![rows::signed(bucket.0), key.as_bytes(), content.map(|id| id.as_bytes().to_vec())]
    });
    let found = found.await?;
    let nothing = |_| Loaded { versioning: None, revision: None, current: None, is_restored: false, condemned: false };
    let mut loaded: Vec<Loaded> = keys.iter().map(nothing).collect();
    for row in found {
        let place = row.number(0)?;
        let slot = usize::try_from(place).ok().and_then(|place| loaded.get_mut(place));
        let slot = slot.ok_or_else(|| MetadataError::Corrupt("a row of no key".into()))?;
        slot.versioning = row.number_or_null(1)?.map(rows::versioning).transpose()?;
        slot.condemned = row.number(6)? != 0;
        slot.is_restored = row.number(9)? != 0;
        slot.revision = row.number_or_null(8)?.map(rows::unsigned).transpose()?;
        if let Some(version) = row.bytes_or_null(2)? {
            let etag = row.bytes_or_null(4)?;
            let etag = etag.ok_or_else(|| MetadataError::Corrupt("an object without its content".into()))?;
            slot.current = Some((
                Current {
                    version: rows::version_id(version)?,
                    etag: rows::etag(etag, row.number_or_null(5)?)?,
                    sequence: rows::unsigned(row.number(7)?)?,
                },
                rows::content_id(row.bytes(3)?)?,
            ));
        }
    }
    Ok(loaded)
}

/// A content that a copy may take: also one that waits to be reclaimed and is not yet claimed.
pub(super) async fn load_content<S: Session>(tx: &mut S, id: ContentId) -> MetadataResult<Option<Arc<Content>>> {
    let sql = format!(
        "SELECT manifest, etag_md5, etag_parts, checksum, parts, tier, cold FROM contents WHERE id = ?{}",
        S::DIALECT.for_update()
    );
    let row = tx.fetch_optional(AssertSqlSafe(sql), values![id.as_bytes()]).await?;
    row.map(|row| content_from_row(&row, id, 0, Cold::Loaded).map(Arc::new)).transpose()
}

fn past_from_row(row: &impl Fields) -> MetadataResult<PastRow> {
    let content = row.bytes_or_null(1)?.map(rows::content_id).transpose()?;
    let version = rows::version_id(row.bytes(0)?)?;
    let sequence = rows::unsigned(row.number(2)?)?;
    let is_restored = row.number(3)? != 0;
    Ok(PastRow { past: Past { version, delete_marker: content.is_none(), sequence }, content, is_restored })
}

pub(super) async fn load_history<S: Session>(
    tx: &mut S,
    key: Key<'_>,
    named: Option<VersionId>,
) -> MetadataResult<LoadedHistory> {
    let newest = load_newest(tx, key).await?;
    let named = load_past(tx, key, named.unwrap_or(VersionId::NULL)).await?;
    Ok(LoadedHistory { newest, named })
}

pub(super) async fn load_past<S: Session>(
    tx: &mut S,
    key: Key<'_>,
    version: VersionId,
) -> MetadataResult<Option<PastRow>> {
    let sql = "SELECT version, content, sequence, restore_ms IS NOT NULL FROM history \
         WHERE bucket = ? AND `key` = ? AND version = ?";
    let row = tx.fetch_optional(sql, version_values(key, version)).await?;
    row.as_ref().map(past_from_row).transpose()
}

async fn load_newest<S: Session>(tx: &mut S, key: Key<'_>) -> MetadataResult<[Option<PastRow>; 2]> {
    let sql = "SELECT version, content, sequence, restore_ms IS NOT NULL FROM history WHERE bucket = ? AND `key` = ? \
         ORDER BY sequence DESC LIMIT 2";
    let found = tx.fetch(sql, key_values(key)).await?;
    let mut newest = [None; 2];
    for (slot, row) in newest.iter_mut().zip(&found) {
        *slot = Some(past_from_row(row)?);
    }
    Ok(newest)
}
