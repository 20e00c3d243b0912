//! Multipart uploads.

use std::collections::HashMap;
use std::sync::Arc;

use holdfast_actors::ports::metadata::{
    AgePosition, BucketId, Committed, CompleteUpload, ContentSource, MetadataError, MetadataResult, NewObject,
    NewUpload, Part, ReplicaEvidence, Upload,
};
use holdfast_protocol::{ContentId, Manifest, TierName, UploadId};
use sqlx::AssertSqlSafe;

use super::key_ops::{KeyDone, KeyOp, run_group};
use super::{Fields, Reader, Session, reclaims, replicas, values};
use crate::metadata::rows;

/// An upload from `id, bucket, key, owner, created_ms, attributes, tags, acl, checksum`, its bucket's name, and
/// `class`.
pub(super) fn from_row(row: &impl Fields) -> MetadataResult<Upload> {
    let new = NewUpload {
        id: rows::upload_id(row.bytes(0)?)?,
        bucket: BucketId(rows::unsigned(row.number(1)?)?),
        key: rows::key(row.bytes(2)?.to_vec())?,
        owner: row.text(3)?.to_owned(),
        now_ms: rows::unsigned(row.number(4)?)?,
        attributes: rows::attributes(row.text_or_null(5)?)?,
        tags: rows::tags(row.text_or_null(6)?)?,
        acl: rows::acl(row.number(7)?)?,
        checksum: row.bytes_or_null(8)?.map(rows::checksum_kind).transpose()?,
        class: rows::class(row.text_or_null(10)?)?,
    };
    Ok(Upload { new, bucket_name: row.text(9)?.to_owned() })
}

fn part_from_row(row: &impl Fields) -> MetadataResult<Part> {
    let number = row.number(0)?;
    Ok(Part {
        number: u16::try_from(number).map_err(|_| MetadataError::Corrupt(format!("part number {number}")))?,
        content: rows::content_id(row.bytes(1)?)?,
        size_bytes: rows::unsigned(row.number(2)?)?,
        md5: rows::md5(row.bytes(3)?)?,
        checksum: row.bytes_or_null(4)?.map(rows::part_checksum).transpose()?,
        last_modified_ms: rows::unsigned(row.number(5)?)?,
    })
}

pub(super) async fn upload<R: Reader>(
    reads: &R,
    bucket: BucketId,
    key: &str,
    upload: UploadId,
) -> MetadataResult<Arc<Upload>> {
    let row = reads
        .fetch_optional(
            "SELECT u.id, u.bucket, u.key, u.owner, u.created_ms, u.attributes, u.tags, u.acl, u.checksum, b.name, u.class \
             FROM uploads u JOIN buckets b ON b.id = u.bucket WHERE u.id = ? AND u.bucket = ? AND u.key = ?",
            values![upload.as_bytes(), rows::signed(bucket.0), key.as_bytes()],
        )
        .await?;
    row.as_ref().map(from_row).transpose()?.map(Arc::new).ok_or(MetadataError::NoSuchUpload)
}

pub(super) async fn parts<R: Reader>(reads: &R, upload: UploadId, after: u16, limit: u32) -> MetadataResult<Vec<Part>> {
    // One statement, so that the parts and the existence of their upload are of one moment.
    let found = reads
        .fetch(
            "SELECT p.number, p.content, p.size_bytes, p.md5, p.checksum, p.modified_ms FROM uploads u \
             LEFT JOIN parts p ON p.upload = u.id AND p.number > ? WHERE u.id = ? ORDER BY p.number LIMIT ?",
            values![i64::from(after), upload.as_bytes(), i64::from(limit.max(1))],
        )
        .await?;
    let Some(first) = found.first() else { return Err(MetadataError::NoSuchUpload) };
    if first.number_or_null(0)?.is_none() || limit == 0 {
        return Ok(Vec::new());
    }
    found.iter().map(part_from_row).collect()
}

pub(super) async fn stale<R: Reader>(reads: &R, before_ms: u64, limit: u32) -> MetadataResult<Vec<Arc<Upload>>> {
    let found = reads
        .fetch(
            "SELECT u.id, u.bucket, u.key, u.owner, u.created_ms, u.attributes, u.tags, u.acl, u.checksum, b.name, u.class \
             FROM uploads u JOIN buckets b ON b.id = u.bucket WHERE u.created_ms < ? ORDER BY u.created_ms, u.id LIMIT ?",
            values![rows::signed(before_ms), i64::from(limit)],
        )
        .await?;
    found.iter().map(|row| from_row(row).map(Arc::new)).collect()
}

/// Those of a bucket in order of their begin.
pub(super) async fn aged<R: Reader>(
    reads: &R,
    bucket: BucketId,
    after: &AgePosition,
    until_ms: u64,
    limit: u32,
) -> MetadataResult<Vec<Arc<Upload>>> {
    // Before all ids is the empty one.
    let id: Vec<u8> = match after.name.as_str() {
        "" => Vec::new(),
        name => {
            let id = name.parse::<UploadId>();
            id.map_err(|_| MetadataError::Corrupt("the id of an upload in a cursor".into()))?.as_bytes().to_vec()
        }
    };
    let sql = format!(
        "SELECT u.id, u.bucket, u.key, u.owner, u.created_ms, u.attributes, u.tags, u.acl, u.checksum, b.name, u.class \
         FROM uploads u {} JOIN buckets b ON b.id = u.bucket \
         WHERE u.bucket = ? AND u.created_ms >= ? AND u.created_ms <= ? AND (u.created_ms > ? OR u.id > ?) \
         ORDER BY u.created_ms, u.id LIMIT ?",
        R::DIALECT.by_index("uploads_by_bucket_age")
    );
    let (at_ms, until_ms) = (rows::signed(after.at_ms), rows::signed(until_ms));
    let values = values![rows::signed(bucket.0), at_ms, until_ms, at_ms, id, i64::from(limit)];
    let found = reads.fetch(AssertSqlSafe(sql), values).await?;
    found.iter().map(|row| from_row(row).map(Arc::new)).collect()
}

pub(super) async fn create<S: Session>(tx: &mut S, new: &NewUpload) -> MetadataResult<()> {
    let bucket = rows::signed(new.bucket.0);
    if tx.fetch_optional("SELECT 1 FROM buckets WHERE id = ?", values![bucket]).await?.is_none() {
        return Err(MetadataError::NoSuchBucket);
    }
    tx.execute(
        "INSERT INTO uploads (id, bucket, `key`, owner, created_ms, attributes, tags, acl, checksum, class) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        values![
            new.id.as_bytes(),
            bucket,
            new.key.as_bytes(),
            &*new.owner,
            rows::signed(new.now_ms),
            rows::attributes_text(&new.attributes),
            rows::tags_text(&new.tags),
            rows::acl_code(new.acl),
            new.checksum.map(rows::checksum_kind_bytes),
            new.class.as_ref().map(TierName::as_str),
        ],
    )
    .await?;
    Ok(())
}

pub(super) async fn put_part<S: Session>(
    tx: &mut S,
    bucket: BucketId,
    key: &str,
    upload: UploadId,
    part: &Part,
    evidence: &ReplicaEvidence,
) -> MetadataResult<()> {
    let row = tx
        .fetch_optional(
            "SELECT p.content, p.size_bytes FROM uploads u LEFT JOIN parts p ON p.upload = u.id AND p.number = ? \
             WHERE u.id = ? AND u.bucket = ? AND u.key = ?",
            values![i64::from(part.number), upload.as_bytes(), rows::signed(bucket.0), key.as_bytes()],
        )
        .await?
        .ok_or(MetadataError::NoSuchUpload)?;
    if replicas::is_condemned(tx, part.content).await? {
        return Err(MetadataError::Condemned);
    }
    let epochs = replicas::load_epochs(tx, &[evidence]).await?;
    rows::check_epochs(evidence, &epochs)?;
    let missed: Vec<_> = evidence.missed.iter().map(|(chunk, node)| (*chunk, *node, part.last_modified_ms)).collect();
    replicas::queue_repairs(tx, &missed).await?;
    let old = row.bytes_or_null(0)?.map(rows::content_id).transpose()?;
    if let Some(old) = old.filter(|old| *old != part.content) {
        let old_size_bytes = rows::unsigned(row.number(1)?)?;
        reclaims::queue(tx, &[(old, Manifest::single(old, old_size_bytes))], part.last_modified_ms).await?;
    }
    let statement = match old {
        Some(_) => {
            "UPDATE parts SET content = ?, size_bytes = ?, md5 = ?, checksum = ?, modified_ms = ? \
             WHERE upload = ? AND number = ?"
        }
        None => {
            "INSERT INTO parts (content, size_bytes, md5, checksum, modified_ms, upload, number) \
             VALUES (?, ?, ?, ?, ?, ?, ?)"
        }
    };
    tx.execute(
        statement,
        values![
            part.content.as_bytes(),
            rows::signed(part.size_bytes),
            &part.md5,
            part.checksum.as_ref().map(rows::part_checksum_bytes),
            rows::signed(part.last_modified_ms),
            upload.as_bytes(),
            i64::from(part.number),
        ],
    )
    .await?;
    Ok(())
}

/// The upload as stored, or `NoSuchUpload`.
async fn load<S: Session>(tx: &mut S, bucket: BucketId, key: &str, upload: UploadId) -> MetadataResult<Upload> {
    let row = tx
        .fetch_optional(
            "SELECT id, bucket, `key`, owner, created_ms, attributes, tags, acl, checksum, '', class FROM uploads \
             WHERE id = ? AND bucket = ? AND `key` = ?",
            values![upload.as_bytes(), rows::signed(bucket.0), key.as_bytes()],
        )
        .await?;
    row.as_ref().map(from_row).transpose()?.ok_or(MetadataError::NoSuchUpload)
}

/// Number → content and size of all parts of an upload.
async fn load_parts<S: Session>(tx: &mut S, upload: UploadId) -> MetadataResult<HashMap<u16, (ContentId, u64)>> {
    let sql = "SELECT number, content, size_bytes, md5, checksum, modified_ms FROM parts WHERE upload = ?";
    let found = tx.fetch(sql, values![upload.as_bytes()]).await?;
    found.iter().map(|row| part_from_row(row).map(|part| (part.number, (part.content, part.size_bytes)))).collect()
}

/// Removes an upload with its parts, of which those in `left` are queued for reclaiming.
async fn end<S: Session>(
    tx: &mut S,
    upload: UploadId,
    left: impl Iterator<Item = (ContentId, u64)>,
    now_ms: u64,
) -> MetadataResult<()> {
    let left: Vec<_> = left.map(|(content, size_bytes)| (content, Manifest::single(content, size_bytes))).collect();
    reclaims::queue(tx, &left, now_ms).await?;
    for statement in ["DELETE FROM parts WHERE upload = ?", "DELETE FROM uploads WHERE id = ?"] {
        tx.execute(statement, values![upload.as_bytes()]).await?;
    }
    Ok(())
}

pub(super) async fn complete<S: Session>(tx: &mut S, completion: CompleteUpload) -> MetadataResult<Committed> {
    let upload = load(tx, completion.bucket, &completion.key, completion.upload).await?.new;
    let mut left = load_parts(tx, completion.upload).await?;
    for (number, content) in &completion.parts {
        match left.remove(number) {
            Some((stored, _)) if stored == *content => {}
            _ => return Err(MetadataError::InvalidPart(*number)),
        }
    }
    let content = completion.content.id;
    let object = NewObject {
        bucket: completion.bucket,
        key: completion.key,
        version: completion.version,
        now_ms: completion.now_ms,
        owner: upload.owner,
        content: ContentSource::New(completion.content),
        attributes: upload.attributes,
        tags: upload.tags,
        acl: upload.acl,
        precondition: completion.precondition,
        evidence: ReplicaEvidence::default(),
        event: completion.event,
        class: upload.class,
    };
    // The chunks of the parts are known by the object from now on. Before its commit, which then need not say it of
    // each; where parts are left out it does, in fewer statements than there may be such parts. A part of no bytes has
    // no chunk, and stands in no manifest.
    if left.is_empty() {
        tx.execute(
            "INSERT INTO extents (extent, content) SELECT content, ? FROM parts WHERE upload = ? AND size_bytes > 0",
            values![content.as_bytes(), completion.upload.as_bytes()],
        )
        .await?;
    }
    let committed = match run_group(tx, &[KeyOp::put(object)]).await?.pop() {
        Some(Ok(KeyDone::Put(committed))) => committed,
        Some(Err(error)) => return Err(error),
        Some(Ok(KeyDone::Deleted(_))) | None => unreachable!("one put has one result, a commit"),
    };
    end(tx, completion.upload, left.into_values(), completion.now_ms).await?;
    Ok(committed)
}

pub(super) async fn abort<S: Session>(
    tx: &mut S,
    bucket: BucketId,
    key: &str,
    upload: UploadId,
    now_ms: u64,
) -> MetadataResult<()> {
    load(tx, bucket, key, upload).await?;
    let parts = load_parts(tx, upload).await?;
    end(tx, upload, parts.into_values(), now_ms).await
}

/// Ends an upload that was begun before `before_ms`, if there is one.
pub(super) async fn expire<S: Session>(
    tx: &mut S,
    upload: UploadId,
    before_ms: u64,
    now_ms: u64,
) -> MetadataResult<bool> {
    let sql = "SELECT 1 FROM uploads WHERE id = ? AND created_ms < ?";
    if tx.fetch_optional(sql, values![upload.as_bytes(), rows::signed(before_ms)]).await?.is_none() {
        return Ok(false);
    }
    let parts = load_parts(tx, upload).await?;
    end(tx, upload, parts.into_values(), now_ms).await?;
    Ok(true)
}
