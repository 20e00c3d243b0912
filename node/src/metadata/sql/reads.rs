//! Rows to values, and the reads of single objects. Each is one statement, so each sees one state of the database, and one
//! that starts after a commit sees it.

use std::sync::{Arc, LazyLock};

use holdfast_actors::ports::metadata::{BucketId, Content, ContentPlace, MetadataError, MetadataResult, ObjectVersion};
use holdfast_protocol::{ContentId, VersionId};
use sqlx::AssertSqlSafe;

use super::shapes::VERSION_COLUMNS;
use super::{Fields, Reader, values};
use crate::metadata::rows;

/// A content from the columns `manifest, etag_md5, etag_parts, checksum, parts`, the first at `at`.
pub(super) fn content_from_row(row: &impl Fields, id: ContentId, at: usize) -> MetadataResult<Content> {
    Ok(Content {
        id,
        manifest: rows::manifest(row.bytes(at)?)?,
        etag: rows::etag(row.bytes(at + 1)?, row.number_or_null(at + 2)?)?,
        checksum: row.bytes_or_null(at + 3)?.map(rows::checksum).transpose()?,
        parts: rows::parts(row.text_or_null(at + 4)?)?,
        place: ContentPlace::Cluster,
    })
}

/// A version from [`VERSION_COLUMNS`].
pub(super) fn version_from_row(row: &impl Fields, bucket: BucketId, is_latest: bool) -> MetadataResult<ObjectVersion> {
    let content = match row.bytes_or_null(3)?.map(rows::content_id).transpose()? {
        None => None,
        Some(id) if row.bytes_or_null(9)?.is_none() => {
            return Err(MetadataError::Corrupt(format!("content {id} of an object is missing")));
        }
        Some(id) => Some(Arc::new(content_from_row(row, id, 9)?)),
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
        class: None,
        restore: None,
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
            "SELECT {VERSION_COLUMNS} FROM objects o LEFT JOIN contents c ON c.id = o.content \
             WHERE o.bucket = ? AND o.key = ? \
             UNION ALL \
             SELECT * FROM (SELECT {VERSION_COLUMNS} FROM history o LEFT JOIN contents c ON c.id = o.content \
             WHERE o.bucket = ? AND o.key = ? ORDER BY o.sequence DESC LIMIT 1) h \
             LIMIT 1"
        )
        .into()
    });
    let (id, bytes) = (rows::signed(bucket.0), key.as_bytes());
    let row = reads.fetch_optional(AssertSqlSafe(SQL.clone()), values![id, bytes, id, bytes]).await?;
    row.map(|row| version_from_row(&row, bucket, true)).transpose()
}

async fn named<R: Reader>(
    reads: &R,
    bucket: BucketId,
    key: &str,
    version: VersionId,
) -> MetadataResult<Option<ObjectVersion>> {
    static SQL: LazyLock<Arc<str>> = LazyLock::new(|| {
        format!(
            "SELECT {VERSION_COLUMNS}, 1 FROM objects o LEFT JOIN contents c ON c.id = o.content \
             WHERE o.bucket = ? AND o.key = ? AND o.version = ? \
             UNION ALL \
             SELECT {VERSION_COLUMNS}, \
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
    row.map(|row| version_from_row(&row, bucket, row.number(14)? != 0)).transpose()
}
