//! One version that was found, and the metadata that may know of it already.

use std::sync::Arc;

use anyhow::Context;
use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_actors::ports::metadata::{BucketId, ContentSource, ObjectVersion};
use holdfast_actors::ports::{MetadataError, MetadataStore};
use holdfast_protocol::{Extent, Manifest, STUB_INDEX, VersionId};

use super::contents::made_of;
use super::found::Found;
use super::{Run, known};

/// Puts a version where it belongs, or leaves it out.
///
/// # Errors
/// Those of metadata.
pub(super) async fn commit(
    run: &mut Run<'_>,
    (bucket, key, version): (&str, &str, VersionId),
    mut found: Found,
) -> anyhow::Result<()> {
    let Run { chunks, metadata, owner, options, .. } = *run;
    let report = &mut run.report;
    let failed = || format!("rebuild {bucket}/{key}");
    let size_bytes = found.size_bytes;
    let bucket_found = metadata.bucket(bucket).await.with_context(failed)?;
    let before = version_before(metadata, bucket_found.id, key, version).await.with_context(failed)?;
    if options.moved_only && !is_moved(chunks, &found, before.as_deref()) {
        report.known += 1;
        return Ok(());
    }
    let made = match &before {
        Some(before) => known::successor(chunks, &found, before, (options, &mut *report)).await,
        None => made_of(chunks, &found, report).await.map(|content| (content, true)),
    };
    let (content, is_later) = match (made, &before) {
        (Some(made), _) => made,
        (None, Some(_)) => {
            report.known += 1;
            return Ok(());
        }
        (None, None) => {
            // It was whole a moment ago.
            report.unreadable += 1;
            return Ok(());
        }
    };
    let is_cold = content.cold().is_some();
    let owner = before.as_ref().map_or(owner, |before| before.owner.as_str());
    let mut without_head = false;
    let object = match &before {
        // Of one write: the stub that is there tells what the last chunk does not.
        Some(before) if !is_later || (!found.has_head && found.created_ms == before.last_modified_ms) => {
            known::as_before(before, ContentSource::New(content))
        }
        _ => {
            without_head = !found.has_head;
            if let Some(before) = before.as_deref().filter(|before| before.last_modified_ms == found.created_ms) {
                found.head.fill_in(before);
            }
            found.object(bucket_found.id, (key, version), owner, content)
        }
    };
    if options.add || before.is_some() {
        if !known::put(metadata, bucket, before.as_deref(), object).await.with_context(failed)? {
            report.known += 1;
            return Ok(());
        }
    } else {
        known::switch_versioning(metadata, bucket, version).await.with_context(failed)?;
        metadata.commit_object(object).await.with_context(failed)?;
    }
    report.cold += u64::from(is_cold);
    report.without_head += u64::from(without_head);
    report.objects += 1;
    report.bytes += size_bytes;
    Ok(())
}

/// The version that the metadata has already.
///
/// # Errors
/// Those of metadata.
pub(super) async fn version_before(
    metadata: &dyn MetadataStore,
    bucket: BucketId,
    key: &str,
    version: VersionId,
) -> Result<Option<Arc<ObjectVersion>>, MetadataError> {
    match metadata.object(bucket, key, Some(version)).await {
        Ok(before) => Ok(Some(before)),
        Err(MetadataError::NoSuchKey | MetadataError::NoSuchVersion) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether what was found is where a version was moved to, by all that can be told.
fn is_moved(chunks: &dyn ReplicaStore, found: &Found, before: Option<&ObjectVersion>) -> bool {
    let Some((before, there)) = before.and_then(|before| Some((before, before.content.as_deref()?))) else {
        return false;
    };
    // A recall that broke off has not written all, and not taken the place of what lies in the tier. That it came to its
    // last chunk is seen where that is; that the stub is not here says nothing of nodes that never had it.
    let is_all_here = || {
        let manifest = Manifest::single(found.content, found.size_bytes);
        manifest.extents.iter().flat_map(Extent::chunks).all(|chunk| chunks.stat(chunk).is_some())
    };
    let is_recalled = found.tier.is_none() && there.cold().is_some();
    // What a move writes bears the time of the version.
    found.created_ms == before.last_modified_ms
        && found.size_bytes == there.size_bytes()
        && found.is_ended
        && (!is_recalled || is_all_here() || chunks.stat(there.id.chunk(STUB_INDEX)).is_none())
}
