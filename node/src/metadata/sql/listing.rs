//! Listings of objects, versions and uploads: how their rows are fetched. Each fetch is one range scan of an index.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use holdfast_actors::domain::objects::listing::Walk;
use holdfast_actors::ports::metadata::{
    BucketId, ListAfter, ListEntry, ListPage, ListQuery, ListUploadsPage, ListUploadsQuery, ListVersionsPage,
    ListVersionsQuery, MetadataError, MetadataResult, ObjectVersion, Upload,
};
use holdfast_protocol::{UploadId, VersionId};
use sqlx::AssertSqlSafe;

use super::reads::{Cold, version_from_row};
use super::shapes::{LISTED_COLUMNS, LISTED_COLUMNS_LEN};
use super::{Fields, Reader, uploads, values};
use crate::metadata::rows;
use crate::metadata::walk::{Source, collect};
use crate::metadata::weights::head_bytes;

fn limit(rows_max: usize) -> i64 {
    i64::try_from(rows_max).unwrap_or(i64::MAX)
}

/// Current rows of a bucket.
struct Objects<'a, R> {
    reads: &'a R,
    bucket: BucketId,
}

/// Finds the objects of one fetch. A LEFT JOIN keeps the database from starting at the contents.
pub(in crate::metadata) const LIST_OBJECTS: &str = "SELECT o.key, c.size_bytes, c.etag_md5, c.etag_parts, o.modified_ms, o.owner, substr(c.checksum, 1, 2), o.class, \
     o.restore_ms \
     FROM objects o LEFT JOIN contents c ON c.id = o.content \
     WHERE o.bucket = ? AND o.key >= ? AND o.key < ? ORDER BY o.key LIMIT ?";

fn entry_from_row(row: &impl Fields) -> MetadataResult<ListEntry> {
    let size_bytes = row.number_or_null(1)?;
    let size_bytes = size_bytes.ok_or_else(|| MetadataError::Corrupt("content of an object is missing".into()))?;
    Ok(ListEntry {
        key: rows::key(row.bytes(0)?.to_vec())?,
        size_bytes: rows::unsigned(size_bytes)?,
        etag: rows::etag(row.bytes(2)?, row.number_or_null(3)?)?,
        last_modified_ms: rows::unsigned(row.number(4)?)?,
        owner: row.text(5)?.to_owned(),
        checksum: row.bytes_or_null(6)?.map(rows::checksum_kind).transpose()?,
        class: rows::class(row.text_or_null(7)?)?,
        restore: rows::restore(row.number_or_null(8)?)?,
    })
}

impl<R: Reader> Source for Objects<'_, R> {
    type Row = ListEntry;
    type Place = ();
    const ONE_ROW_A_KEY: bool = true;

    async fn range(&self, from: &[u8], until: &[u8], rows_max: usize) -> MetadataResult<Vec<ListEntry>> {
        metrics::counter!("holdfast_metadata_list_fetches_total").increment(1);
        let values = values![rows::signed(self.bucket.0), from, until, limit(rows_max)];
        let found = self.reads.fetch(LIST_OBJECTS, values).await?;
        found.iter().map(entry_from_row).collect()
    }

    async fn rest_of_key(&self, _key: &str, (): &(), _rows_max: usize) -> MetadataResult<Vec<ListEntry>> {
        Ok(Vec::new())
    }

    fn key(row: &ListEntry) -> &str {
        &row.key
    }

    fn place(_row: &ListEntry) {}

    fn weight_bytes(row: &ListEntry) -> usize {
        size_of::<ListEntry>() + row.key.len()
    }
}

pub(super) async fn objects<R: Reader>(reads: &R, bucket: BucketId, query: ListQuery) -> MetadataResult<ListPage> {
    let walk = Walk::new(&query.prefix, query.delimiter.as_deref(), &query.after, false, query.limit);
    let page = collect(&Objects { reads, bucket }, walk, None).await?;
    Ok(ListPage { entries: page.rows, common_prefixes: page.common_prefixes, next: page.next })
}

/// All rows of the keys of a bucket.
struct Versions<'a, R> {
    reads: &'a R,
    bucket: BucketId,
}

/// A row, and whether it is the current one of its key.
type VersionRow = (ObjectVersion, bool);

fn version_row(row: &impl Fields, bucket: BucketId) -> MetadataResult<VersionRow> {
    let current = row.number(LISTED_COLUMNS_LEN)? != 0;
    Ok((version_from_row(row, bucket, current, Cold::NotLoaded)?, current))
}

impl<R: Reader> Source for Versions<'_, R> {
    type Row = VersionRow;
    /// The sequence number, newest first; and whose it was.
    type Place = (u64, VersionId);
    const ONE_ROW_A_KEY: bool = false;

    async fn range(&self, from: &[u8], until: &[u8], rows_max: usize) -> MetadataResult<Vec<VersionRow>> {
        // Each branch is cut by itself, so that neither is read whole to be sorted.
        static SQL: LazyLock<Arc<str>> = LazyLock::new(|| {
            format!(
                "SELECT * FROM (SELECT {LISTED_COLUMNS}, 1 FROM objects o LEFT JOIN contents c ON c.id = o.content \
                 WHERE o.bucket = ? AND o.key >= ? AND o.key < ? ORDER BY o.key LIMIT ?) l \
                 UNION ALL \
                 SELECT * FROM (SELECT {LISTED_COLUMNS}, 0 FROM history o LEFT JOIN contents c ON c.id = o.content \
                 WHERE o.bucket = ? AND o.key >= ? AND o.key < ? ORDER BY o.key, o.sequence DESC LIMIT ?) h \
                 ORDER BY 1, 2 DESC LIMIT ?"
            )
            .into()
        });
        let (bucket, limit) = (rows::signed(self.bucket.0), limit(rows_max));
        let values = values![bucket, from, until, limit, bucket, from, until, limit, limit];
        let found = self.reads.fetch(AssertSqlSafe(SQL.clone()), values).await?;
        found.iter().map(|row| version_row(row, self.bucket)).collect()
    }

    async fn rest_of_key(
        &self,
        key: &str,
        (after, last): &(u64, VersionId),
        rows_max: usize,
    ) -> MetadataResult<Vec<VersionRow>> {
        // What was current was read before, so nothing after a place is. But when all that was read of the key is
        // deleted since, the version behind it was made the latest, under a new sequence number, which is the lowest
        // above the place. While anything of it is there, the lowest is that: whoever collects leaves out what it has.
        static SQL: LazyLock<Arc<str>> = LazyLock::new(|| {
            format!(
                "SELECT {LISTED_COLUMNS}, 0 FROM objects o LEFT JOIN contents c ON c.id = o.content \
                 WHERE o.bucket = ? AND o.key = ? AND o.sequence >= ? \
                 UNION ALL \
                 SELECT * FROM (SELECT {LISTED_COLUMNS}, 0 FROM history o LEFT JOIN contents c ON c.id = o.content \
                 WHERE o.bucket = ? AND o.key = ? AND o.sequence >= ? ORDER BY o.sequence LIMIT 1) n \
                 UNION ALL \
                 SELECT * FROM (SELECT {LISTED_COLUMNS}, 0 FROM history o LEFT JOIN contents c ON c.id = o.content \
                 WHERE o.bucket = ? AND o.key = ? AND o.sequence < ? ORDER BY o.sequence DESC LIMIT ?) h \
                 ORDER BY 2 DESC"
            )
            .into()
        });
        let (bucket, key, place) = (rows::signed(self.bucket.0), key.as_bytes(), rows::signed(*after));
        let values = values![bucket, key, place, bucket, key, place, bucket, key, place, limit(rows_max)];
        let found = self.reads.fetch(AssertSqlSafe(SQL.clone()), values).await?;
        let found: MetadataResult<Vec<VersionRow>> = found.iter().map(|row| version_row(row, self.bucket)).collect();
        let mut above = found?;
        let newer = above.iter().take_while(|(version, _)| version.sequence >= *after).count();
        let mut rest = above.split_off(newer);
        if let Some(lowest) = above.pop().filter(|(version, _)| version.version != *last) {
            rest.insert(0, lowest);
            rest.truncate(rows_max);
        }
        Ok(rest)
    }

    fn key((version, _): &VersionRow) -> &str {
        &version.key
    }

    fn place((version, _): &VersionRow) -> (u64, VersionId) {
        (version.sequence, version.version)
    }

    fn weight_bytes((version, _): &VersionRow) -> usize {
        let content = version
            .content
            .as_ref()
            .map_or(0, |content| content.manifest.extents.len() * 20 + content.parts.len() * 48);
        size_of::<ObjectVersion>() + version.key.len() + head_bytes(&version.attributes, &version.tags) + content
    }
}

/// The sequence number of a version, if it still exists.
async fn sequence_of<R: Reader>(
    reads: &R,
    bucket: BucketId,
    key: &str,
    version: VersionId,
) -> MetadataResult<Option<u64>> {
    let (bucket, key, version) = (rows::signed(bucket.0), key.as_bytes(), version.as_bytes());
    let row = reads
        .fetch_optional(
            "SELECT sequence FROM objects WHERE bucket = ? AND `key` = ? AND version = ? UNION ALL \
             SELECT sequence FROM history WHERE bucket = ? AND `key` = ? AND version = ?",
            values![bucket, key, version, bucket, key, version],
        )
        .await?;
    row.map(|row| rows::unsigned(row.number(0)?)).transpose()
}

pub(in crate::metadata) async fn versions<R: Reader>(
    reads: &R,
    bucket: BucketId,
    query: ListVersionsQuery,
) -> MetadataResult<ListVersionsPage> {
    let mut inside = None;
    if let (ListAfter::Key(key), Some(version)) = (&query.after, query.after_version) {
        // A marker that was deleted since (by a client that deletes what it lists) starts its key anew: what was listed
        // and is still there is listed twice, and nothing is left out.
        let sequence = sequence_of(reads, bucket, key, version).await?;
        inside = sequence.map(|sequence| (key.clone(), (sequence, version)));
    }
    let within = query.after_version.is_some();
    let walk = Walk::new(&query.prefix, query.delimiter.as_deref(), &query.after, within, query.limit);
    let mut key_before = inside.as_ref().map(|(key, _)| key.clone());
    let page = collect(&Versions { reads, bucket }, walk, inside).await?;
    let mut entries = Vec::with_capacity(page.rows.len());
    // Of one key.
    let mut listed = HashSet::new();
    for (mut version, current) in page.rows {
        // The first row of a key is its latest version, be it an object or a marker.
        let first = key_before.as_deref() != Some(version.key.as_str());
        version.is_latest = current || first;
        if first {
            key_before = Some(version.key.clone());
            listed.clear();
        }
        if !listed.insert(version.version) {
            continue;
        }
        entries.push(Arc::new(version));
    }
    let next = page.next.map(|next| {
        let version = match (&next, entries.last()) {
            (ListAfter::Key(_), Some(last)) => Some(last.version),
            _ => None,
        };
        (next, version)
    });
    Ok(ListVersionsPage { entries, common_prefixes: page.common_prefixes, next })
}

/// Unfinished uploads of a bucket.
struct Uploads<'a, R> {
    reads: &'a R,
    bucket: BucketId,
}

impl<R: Reader> Source for Uploads<'_, R> {
    type Row = Upload;
    type Place = UploadId;
    const ONE_ROW_A_KEY: bool = false;

    async fn range(&self, from: &[u8], until: &[u8], rows_max: usize) -> MetadataResult<Vec<Upload>> {
        let found = self
            .reads
            .fetch(
                "SELECT u.id, u.bucket, u.key, u.owner, u.created_ms, u.attributes, u.tags, u.acl, u.checksum, b.name, u.class \
             FROM uploads u JOIN buckets b ON b.id = u.bucket \
             WHERE u.bucket = ? AND u.key >= ? AND u.key < ? ORDER BY u.key, u.id LIMIT ?",
                values![rows::signed(self.bucket.0), from, until, limit(rows_max)],
            )
            .await?;
        found.iter().map(uploads::from_row).collect()
    }

    async fn rest_of_key(&self, key: &str, after: &UploadId, rows_max: usize) -> MetadataResult<Vec<Upload>> {
        let found = self
            .reads
            .fetch(
                "SELECT u.id, u.bucket, u.key, u.owner, u.created_ms, u.attributes, u.tags, u.acl, u.checksum, b.name, u.class \
             FROM uploads u JOIN buckets b ON b.id = u.bucket \
             WHERE u.bucket = ? AND u.key = ? AND u.id > ? ORDER BY u.id LIMIT ?",
                values![rows::signed(self.bucket.0), key.as_bytes(), after.as_bytes(), limit(rows_max)],
            )
            .await?;
        found.iter().map(uploads::from_row).collect()
    }

    fn key(row: &Upload) -> &str {
        &row.new.key
    }

    fn place(row: &Upload) -> UploadId {
        row.new.id
    }

    fn weight_bytes(row: &Upload) -> usize {
        size_of::<Upload>() + row.new.key.len() + head_bytes(&row.new.attributes, &row.new.tags)
    }
}

pub(super) async fn uploads<R: Reader>(
    reads: &R,
    bucket: BucketId,
    query: ListUploadsQuery,
) -> MetadataResult<ListUploadsPage> {
    let inside = match (&query.after, query.after_upload) {
        (ListAfter::Key(key), Some(upload)) => Some((key.clone(), upload)),
        _ => None,
    };
    let walk = Walk::new(&query.prefix, query.delimiter.as_deref(), &query.after, inside.is_some(), query.limit);
    let page = collect(&Uploads { reads, bucket }, walk, inside).await?;
    let next = page.next.map(|next| {
        let upload = match (&next, page.rows.last()) {
            (ListAfter::Key(_), Some(last)) => Some(last.new.id),
            _ => None,
        };
        (next, upload)
    });
    Ok(ListUploadsPage {
        entries: page.rows.into_iter().map(Arc::new).collect(),
        common_prefixes: page.common_prefixes,
        next,
    })
}
