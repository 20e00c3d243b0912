//! Rows to values, and the reads of single objects. Each is one statement, so each sees one state of the database, and
//! one that starts after a commit sees it.

use std::sync::{Arc, LazyLock};

use holdfast_actors::ports::metadata::{BucketId, Content, ContentPlace, MetadataError, MetadataResult, ObjectVersion};
use holdfast_protocol::{ContentId, VersionId};
use sqlx::AssertSqlSafe;

use super::shapes::{LISTED_COLUMNS, LISTED_COLUMNS_LEN};
use super::{Fields, Reader, values};
use crate::metadata::rows;

/// Whether a row has the column `cold`, behind the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cold {
    Loaded,
    NotLoaded,
}

/// A content from the columns `manifest, etag_md5, etag_parts, checksum, parts, tier` and perhaps `cold`, the first at
/// `at`.
pub(super) fn content_from_row(row: &impl Fields, id: ContentId, at: usize, cold: Cold) -> MetadataResult<Content> {
    let place = match (row.text_or_null(at + 5)?, cold) {
        (None, _) => ContentPlace::Cluster,
        (Some(_), Cold::NotLoaded) => ContentPlace::NotLoaded,
        (Some(tier), Cold::Loaded) => ContentPlace::Tier(Arc::new(rows::cold_place(tier, row.bytes(at + 6)?)?)),
    };
    Ok(Content {
        id,
        manifest: rows::manifest(row.bytes(at)?)?,
        etag: rows::etag(row.bytes(at + 1)?, row.number_or_null(at + 2)?)?,
        checksum: row.bytes_or_null(at + 3)?.map(rows::checksum).transpose()?,
        parts: rows::parts(row.text_or_null(at + 4)?)?,
        place,
    })
}

/// A version from [`LISTED_COLUMNS`], and perhaps `c.cold`.
pub(super) fn version_from_row(
    row: &impl Fields,
    bucket: BucketId,
    is_latest: bool,
    cold: Cold,
) -> MetadataResult<ObjectVersion> {
    let content = match row.bytes_or_null(3)?.map(rows::content_id).transpose()? {
        None => None,
        Some(id) if row.bytes_or_null(11)?.is_none() => {
            return Err(MetadataError::Corrupt(format!("content {id} of an object is missing")));
        }
        Some(id) => Some(Arc::new(content_from_row(row, id, 11, cold)?)),
    };
    Ok(ObjectVersion {
        bucket,
        key: rows::key(row.bytes(0)?.to_vec())?,
        version: rows::version_id(row.bytes(2)?)?,
        sequence: rows::unsigned(row.number(1)?)?,
        is_latest,
        last_modified_ms: rows::unsigned(row.number(4)?)?,
        owner: row.text(5)?.to_owned(),
        content,
        attributes: rows::attributes(row.text_or_null(6)?)?,
        tags: rows::tags(row.text_or_null(7)?)?,
        acl: rows::acl(row.number(8)?)?,
        class: rows::class(row.text_or_null(9)?)?,
        restore: rows::restore(row.number_or_null(10)?)?,
    })
}

/// The latest version, or a named one.
pub(super) async fn object<R: Reader>(
    reads: &R,
    bucket: BucketId,
    key: &str,
    version: Option<VersionId>,
) -> MetadataResult<Arc<ObjectVersion>> {
    let found = match version {
        None => latest(reads, bucket, key).await?.ok_or(MetadataError::NoSuchKey)?,
        Some(version) => named(reads, bucket, key, version).await?.ok_or(MetadataError::NoSuchVersion)?,
    };
    Ok(Arc::new(found))
}

async fn latest<R: Reader>(reads: &R, bucket: BucketId, key: &str) -> MetadataResult<Option<ObjectVersion>> {
    // Only a key without a current row pays for the second branch: a database stops at the first row.
    static SQL: LazyLock<Arc<str>> = LazyLock::new(|| {
        format!(
            "SELECT {LISTED_COLUMNS}, c.cold FROM objects o LEFT JOIN contents c ON c.id = o.content \
             WHERE o.bucket = ? AND o.key = ? \
             UNION ALL \
             SELECT * FROM (SELECT {LISTED_COLUMNS}, c.cold FROM history o LEFT JOIN contents c ON c.id = o.content \
             WHERE o.bucket = ? AND o.key = ? ORDER BY o.sequence DESC LIMIT 1) h \
             LIMIT 1"
        )
        .into()
    });
    let (id, bytes) = (rows::signed(bucket.0), key.as_bytes());
    let row = reads.fetch_optional(AssertSqlSafe(SQL.clone()), values![id, bytes, id, bytes]).await?;
    row.map(|row| version_from_row(&row, bucket, true, Cold::Loaded)).transpose()
}

async fn named<R: Reader>(
    reads: &R,
    bucket: BucketId,
    key: &str,
    version: VersionId,
) -> MetadataResult<Option<ObjectVersion>> {
    static SQL: LazyLock<Arc<str>> = LazyLock::new(|| {
        format!(
            "SELECT {LISTED_COLUMNS}, c.cold, 1 FROM objects o LEFT JOIN contents c ON c.id = o.content \
             WHERE o.bucket = ? AND o.key = ? AND o.version = ? \
             UNION ALL \
             SELECT {LISTED_COLUMNS}, c.cold, \
             NOT EXISTS (SELECT 1 FROM objects l WHERE l.bucket = o.bucket AND l.key = o.key) \
             AND NOT EXISTS (SELECT 1 FROM history n WHERE n.bucket = o.bucket AND n.key = o.key \
             AND n.sequence > o.sequence) \
             FROM history o LEFT JOIN contents c ON c.id = o.content \
             WHERE o.bucket = ? AND o.key = ? AND o.version = ?"
        )
        .into()
    });
    let (id, bytes, named) = (rows::signed(bucket.0), key.as_bytes(), version.as_bytes());
    let row = reads.fetch_optional(AssertSqlSafe(SQL.clone()), values![id, bytes, named, id, bytes, named]).await?;
    row.map(|row| version_from_row(&row, bucket, row.number(LISTED_COLUMNS_LEN + 1)? != 0, Cold::Loaded)).transpose()
}
