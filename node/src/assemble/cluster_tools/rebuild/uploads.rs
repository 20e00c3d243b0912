//! Parts of multipart uploads, and objects made of them.
//!
//! Each node of a cluster holds a part of the chunks, so an upload is put together by one run after the other: each
//! adds the parts that it finds. What some object has already is left alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context;
use holdfast_actors::domain::objects::multipart::PART_SIZE_MIN;
use holdfast_actors::ports::metadata::{
    Bucket, CompleteUpload, Content, ContentPlace, ETag, ListUploadsQuery, NewUpload, ObjectPart, Part,
    ReplicaEvidence, Upload, Versioning, WritePrecondition,
};
use holdfast_actors::ports::{Clock, MetadataError, MetadataStore, SystemClock};
use holdfast_protocol::manifest::{Extent, Manifest};
use holdfast_protocol::{ContentId, UploadId, VersionId};
use md5::{Digest, Md5};

use super::contents::{md5_of, stand_in};
use super::found::{Head, Uploads};
use super::{RebuildReport, Run, known};

/// Rows a page.
const PAGE: u32 = 1_000;

/// Makes unfinished uploads of the parts found.
pub(super) async fn bring_back(run: &mut Run<'_>, found: Uploads) -> anyhow::Result<()> {
    let Run { chunks, metadata, .. } = *run;
    for ((bucket, key, id), mut parts) in found {
        let failed = || format!("rebuild upload {id} of {bucket}/{key}");
        let contents: Vec<ContentId> = parts.values().map(|part| part.content).collect();
        let known: BTreeSet<ContentId> =
            metadata.known_contents(&contents).await.with_context(failed)?.into_iter().collect();
        run.report.known += known.len() as u64;
        parts.retain(|_, part| !known.contains(&part.content));
        if parts.is_empty() {
            continue;
        }
        let bucket = metadata.bucket(&bucket).await.with_context(failed)?;
        let have = match metadata.upload(bucket.id, &key, id).await {
            Ok(_) => all_parts(metadata, id).await.with_context(failed)?,
            Err(MetadataError::NoSuchUpload) => {
                // Each part tells the same of the object, by its first chunk.
                let Some(told) = parts.values_mut().find(|part| part.has_head) else {
                    run.report.waiting += parts.len() as u64;
                    continue;
                };
                let head = std::mem::take(&mut told.head);
                create(run, &bucket, &key, id, head).await.with_context(failed)?;
                run.report.uploads += 1;
                Vec::new()
            }
            Err(error) => return Err(error).with_context(failed),
        };
        for (number, part) in parts {
            // Another node had a later one of this number, or a whole one.
            let later =
                |have: &Part| have.number == number && (have.last_modified_ms > part.created_ms || !part.is_ended);
            if have.iter().any(later) {
                run.report.superseded += 1;
                continue;
            }
            let manifest = Manifest::single(part.content, part.size_bytes);
            let md5 = match md5_of(chunks, &manifest).await {
                Some(md5) => md5,
                None => {
                    run.report.without_md5 += 1;
                    stand_in(part.content)
                }
            };
            let row = Part {
                number,
                content: part.content,
                size_bytes: part.size_bytes,
                md5,
                checksum: None,
                last_modified_ms: part.created_ms,
            };
            match metadata.put_part(bucket.id, &key, id, row, ReplicaEvidence::default()).await {
                Ok(()) => run.report.parts += 1,
                // It was left over, and nodes delete it wherever they find it.
                Err(MetadataError::Condemned) => run.report.superseded += 1,
                Err(error) => return Err(error).with_context(failed),
            }
        }
    }
    Ok(())
}

/// Begins an upload anew, now: it is not to be taken for one that was forgotten long ago.
pub(super) async fn create(
    run: &Run<'_>,
    bucket: &Bucket,
    key: &str,
    id: UploadId,
    head: Head,
) -> Result<(), MetadataError> {
    let Head { owner: told, attributes, tags, acl, class, left_out: _ } = head;
    let upload = NewUpload {
        id,
        bucket: bucket.id,
        key: key.to_owned(),
        owner: told.unwrap_or_else(|| run.owner.to_owned()),
        now_ms: SystemClock.now_ms(),
        attributes,
        tags,
        acl,
        checksum: None,
        class,
    };
    run.metadata.create_upload(upload).await
}

async fn all_parts(metadata: &dyn MetadataStore, id: UploadId) -> Result<Vec<Part>, MetadataError> {
    let mut parts: Vec<Part> = Vec::new();
    loop {
        let page = metadata.list_parts(id, parts.last().map_or(0, |part| part.number), PAGE).await?;
        if page.is_empty() {
            return Ok(parts);
        }
        parts.extend(page);
    }
}

/// Completes every unfinished upload whose parts make an object: numbered from 1 without a gap, all but the last of 5
/// MiB at least. Those of one key in the order in which their last parts were stored, so that the latest is the latest
/// again.
///
/// An upload stays as it is when one of its parts is `begun` here and whole nowhere: without that part the object may
/// be cut short.
pub(super) async fn complete(
    metadata: &dyn MetadataStore,
    begun: &BTreeSet<(UploadId, u16)>,
    report: &mut RebuildReport,
) -> anyhow::Result<()> {
    let mut after: Option<String> = None;
    loop {
        let buckets = metadata.list_buckets(None, after.as_deref(), PAGE).await.context("list buckets")?;
        let Some(last) = buckets.last() else { return Ok(()) };
        after = Some(last.name.clone());
        for bucket in &buckets {
            let mut whole = Vec::new();
            for upload in uploads_of(metadata, bucket).await? {
                let parts = all_parts(metadata, upload.new.id).await.context("list parts")?;
                let id = upload.new.id;
                let mut begun = begun.range((id, 0)..=(id, u16::MAX));
                let lacks_one = begun.any(|(_, number)| parts.iter().all(|part| part.number != *number));
                if let Some(stored_ms) = is_whole(&parts).filter(|_| !lacks_one) {
                    whole.push((stored_ms, upload, parts));
                }
            }
            whole.sort_by_key(|(stored_ms, upload, _)| (*stored_ms, upload.new.id));
            for (stored_ms, upload, parts) in whole {
                let failed = || format!("complete upload {} of {}/{}", upload.new.id, bucket.name, upload.new.key);
                let completion = completion(&upload, &parts, stored_ms);
                if is_moved(metadata, &completion).await.with_context(failed)? {
                    continue;
                }
                if is_overwritten(metadata, bucket, &completion).await.with_context(failed)? {
                    report.superseded += 1;
                    continue;
                }
                let version = metadata.complete_upload(completion).await.with_context(failed)?.object.version;
                let place = (version, stored_ms);
                known::put_newer_over(metadata, bucket, &upload.new.key, place).await.with_context(failed)?;
                report.completed += 1;
                report.bytes += parts.iter().map(|part| part.size_bytes).sum::<u64>();
            }
        }
    }
}

async fn uploads_of(metadata: &dyn MetadataStore, bucket: &Bucket) -> anyhow::Result<Vec<Arc<Upload>>> {
    let mut query = ListUploadsQuery { limit: PAGE, ..ListUploadsQuery::default() };
    let mut uploads = Vec::new();
    loop {
        let page = metadata.list_uploads(bucket.id, query.clone()).await;
        let page = page.with_context(|| format!("list uploads of {}", bucket.name))?;
        uploads.extend(page.entries);
        let Some((after, after_upload)) = page.next else { return Ok(uploads) };
        query.after = after;
        query.after_upload = after_upload;
    }
}

/// When the last part was stored, if the parts make an object.
fn is_whole(parts: &[Part]) -> Option<u64> {
    let (_, others) = parts.split_last()?;
    let numbered = parts.iter().zip(1..).all(|(part, number)| part.number == number);
    let large = others.iter().all(|part| part.size_bytes >= PART_SIZE_MIN);
    (numbered && large).then(|| parts.iter().map(|part| part.last_modified_ms).max().unwrap_or(0))
}

/// Whether the latest version of the key is, by all that can be told, the same object, whose bytes were moved to a
/// tier, and not all parts are proven to be whole: others may be reclaimed already. They end as those of an upload that
/// nobody finished.
async fn is_moved(metadata: &dyn MetadataStore, completion: &CompleteUpload) -> Result<bool, MetadataError> {
    let latest = match metadata.object(completion.bucket, &completion.key, None).await {
        Ok(latest) => latest,
        Err(MetadataError::NoSuchKey) => return Ok(false),
        Err(error) => return Err(error),
    };
    let parts = &completion.content;
    // The ETag is that of the object only if the MD5 of each part was computed.
    let is_same = |cold: &Content| cold.etag.parts == parts.etag.parts && cold.size_bytes() == parts.size_bytes();
    let moved = latest.content.as_deref().filter(|content| content.cold().is_some());
    Ok(moved.is_some_and(|cold| is_same(cold) && cold.etag != parts.etag))
}

/// Whether completing would put an older object in the place of a newer one, where only one has place. Such an upload
/// stays unfinished. The same object, moved to a tier since, is not newer.
async fn is_overwritten(
    metadata: &dyn MetadataStore,
    bucket: &Bucket,
    completion: &CompleteUpload,
) -> Result<bool, MetadataError> {
    if bucket.versioning == Versioning::Enabled {
        return Ok(false);
    }
    match metadata.object(completion.bucket, &completion.key, Some(VersionId::NULL)).await {
        Ok(there) => {
            let cold = there.content.as_deref().filter(|content| content.cold().is_some());
            let is_same = cold.is_some_and(|cold| cold.etag == completion.content.etag);
            Ok(there.last_modified_ms > completion.now_ms && !is_same)
        }
        Err(MetadataError::NoSuchKey | MetadataError::NoSuchVersion) => Ok(false),
        Err(error) => Err(error),
    }
}

fn completion(upload: &Upload, parts: &[Part], stored_ms: u64) -> CompleteUpload {
    let mut md5 = Md5::new();
    parts.iter().for_each(|part| md5.update(part.md5));
    let etag = ETag { md5: md5.finalize().into(), parts: Some(parts.len() as u32) };
    let extents = parts.iter().map(|part| Extent { content: part.content, size_bytes: part.size_bytes }).collect();
    let told = |part: &Part| ObjectPart { number: part.number, size_bytes: part.size_bytes, checksum: None };
    let content = Content {
        id: ContentId::generate(stored_ms / 1000),
        manifest: Manifest { extents },
        etag,
        checksum: None,
        parts: parts.iter().map(told).collect(),
        place: ContentPlace::Cluster,
    };
    CompleteUpload {
        bucket: upload.new.bucket,
        key: upload.new.key.clone(),
        upload: upload.new.id,
        parts: parts.iter().map(|part| (part.number, part.content)).collect(),
        content,
        version: VersionId::generate(stored_ms / 1000),
        now_ms: stored_ms,
        precondition: WritePrecondition::default(),
        event: None,
    }
}
