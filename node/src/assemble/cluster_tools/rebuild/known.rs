//! Versions that the disks of another node, or a run that broke off, have brought back already.
//!
//! Of two contents of one version the one counts that would count if both lay on one node. And a version takes its place by its
//! time: those of its key that are newer are put over it again, each removed and put back with the content that it had. A run
//! that breaks off in between has lost none, since its labels are still there: it is made again.

use std::sync::Arc;

use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_actors::ports::metadata::{
    Bucket, Content, ContentPlace, ContentSource, DeleteRequest, ListAfter, ListVersionsQuery, NewObject,
    ObjectVersion, ReplicaEvidence, Versioning, WritePrecondition,
};
use holdfast_actors::ports::{Clock, MetadataError, MetadataStore, SystemClock};
use holdfast_protocol::{Manifest, VersionId};

use super::{Found, RebuildReport, made_of, md5_of};

/// Versions a page.
const PAGE: u32 = 1_000;

/// Whether what was found is later than a content that is there: see [`Found::is_later_than`].
fn is_later(found: &Found, before: &ObjectVersion, there: &Content) -> bool {
    let rank = (before.last_modified_ms, there.id.unix_seconds(), there.cold().is_some(), there.id);
    found.is_ended && (found.created_ms, found.content.unix_seconds(), found.tier.is_some(), found.content) > rank
}

/// What is to take the place of the content of a version that is there, and whether it is of a later write, whose label counts;
/// `None`: nothing, the one that is there counts.
pub(super) async fn successor(
    chunks: &dyn ReplicaStore,
    found: &Found,
    before: &ObjectVersion,
    report: &mut RebuildReport,
) -> Option<(Content, bool)> {
    let there = before.content.as_deref()?;
    if there.id == found.content {
        return None;
    }
    if is_later(found, before, there) {
        let made = made_of(chunks, found, report).await?;
        // With the MD5 that the stub tells, it was proven to be whole on the node where it was found.
        let is_proven = made.cold().is_some() && there.cold().is_none() && made.etag == there.etag;
        let made = if is_proven && made.size_bytes() == there.size_bytes() { there.clone() } else { made };
        let is_other = made.id != there.id || found.created_ms != before.last_modified_ms;
        return (is_other || found.class() != before.class.as_ref()).then_some((made, true));
    }
    // A stub may be of a move that was never committed: the chunks that it was moved from, if all are here.
    let is_moved = there.cold().is_some() && found.tier.is_none() && there.etag.parts.is_none();
    if !is_moved || found.size_bytes != there.size_bytes() {
        return None;
    }
    let manifest = Manifest::single(found.content, found.size_bytes);
    let is_whole = md5_of(chunks, &manifest).await == Some(there.etag.md5);
    is_whole.then(|| (Content { id: found.content, manifest, place: ContentPlace::Cluster, ..there.clone() }, false))
}

/// A version as it is, but for its content.
pub(super) fn as_before(before: &ObjectVersion, content: ContentSource) -> NewObject {
    NewObject {
        bucket: before.bucket,
        key: before.key.clone(),
        version: before.version,
        now_ms: before.last_modified_ms,
        owner: before.owner.clone(),
        content,
        attributes: before.attributes.clone(),
        tags: before.tags.clone(),
        acl: before.acl,
        precondition: WritePrecondition::default(),
        event: None,
        evidence: ReplicaEvidence::default(),
        class: before.class.clone(),
    }
}

/// Only under one of the states of its bucket does a version come to stand beside those with and without an id.
pub(super) async fn switch_versioning(
    metadata: &dyn MetadataStore,
    bucket: &str,
    version: VersionId,
) -> Result<(), MetadataError> {
    let wanted = match (version == VersionId::NULL, metadata.bucket(bucket).await?.versioning) {
        (true, Versioning::Enabled) => Versioning::Suspended,
        (false, Versioning::Unversioned | Versioning::Suspended) => Versioning::Enabled,
        _ => return Ok(()),
    };
    metadata.set_versioning(bucket, wanted).await
}

/// Puts a version where others of its key, or it itself, may be. Whether it was put: its content may be reclaimed.
pub(super) async fn put(
    metadata: &dyn MetadataStore,
    bucket: &str,
    before: Option<&ObjectVersion>,
    mut object: NewObject,
) -> Result<bool, MetadataError> {
    if let ContentSource::New(content) = &object.content
        && !metadata.known_contents(&[content.id]).await?.is_empty()
    {
        object.content = ContentSource::Shared(content.id);
    }
    let (key, version, at_ms) = (object.key.clone(), object.version, object.now_ms);
    let removed = before.filter(|_| version != VersionId::NULL);
    if let Some(removed) = removed {
        remove(metadata, removed).await?;
    }
    switch_versioning(metadata, bucket, version).await?;
    match metadata.commit_object(object).await {
        Ok(_) => {}
        // A node has run since, and reclaimed it.
        Err(MetadataError::NoSuchContent) => {
            if let Some((before, content)) = removed.and_then(|before| Some((before, before.content.as_ref()?))) {
                metadata.commit_object(as_before(before, ContentSource::Shared(content.id))).await?;
                let place = (version, before.last_modified_ms);
                let bucket = metadata.bucket(bucket).await?;
                put_newer_over(metadata, &bucket, &key, place).await?;
            }
            return Ok(false);
        }
        Err(error) => return Err(error),
    }
    let bucket = metadata.bucket(bucket).await?;
    put_newer_over(metadata, &bucket, &key, (version, at_ms)).await?;
    Ok(true)
}

/// Puts the versions of a key that are newer than the one that has just become the latest over it again.
pub(super) async fn put_newer_over(
    metadata: &dyn MetadataStore,
    bucket: &Bucket,
    key: &str,
    (version, at_ms): (VersionId, u64),
) -> Result<(), MetadataError> {
    if bucket.versioning == Versioning::Unversioned {
        return Ok(());
    }
    let mut newer: Vec<Arc<ObjectVersion>> = Vec::new();
    let mut query = ListVersionsQuery { prefix: key.to_owned(), limit: PAGE, ..ListVersionsQuery::default() };
    'pages: loop {
        let page = metadata.list_versions(bucket.id, query.clone()).await?;
        for entry in page.entries {
            // The key itself is the first of those that begin so.
            if entry.key != key {
                break 'pages;
            }
            if entry.version != version && entry.last_modified_ms > at_ms {
                newer.push(entry);
            }
        }
        let Some((ListAfter::Key(after), after_version)) = page.next else { break };
        query.after = ListAfter::Key(after);
        query.after_version = after_version;
    }
    // They come newest first.
    for before in newer.into_iter().rev() {
        remove(metadata, &before).await?;
        switch_versioning(metadata, &bucket.name, before.version).await?;
        match &before.content {
            Some(content) => {
                metadata.commit_object(as_before(&before, ContentSource::Shared(content.id))).await?;
            }
            // Left where it was, it would hide nothing any more.
            None => delete(metadata, &before, None, before.last_modified_ms).await?,
        }
    }
    if bucket.versioning == Versioning::Enabled
        && metadata.bucket(&bucket.name).await?.versioning != Versioning::Enabled
    {
        metadata.set_versioning(&bucket.name, Versioning::Enabled).await?;
    }
    Ok(())
}

/// Removes a version, to be put again.
async fn remove(metadata: &dyn MetadataStore, before: &ObjectVersion) -> Result<(), MetadataError> {
    // From now on, so that a run that breaks off leaves a grace to make it again.
    delete(metadata, before, Some(before.version), SystemClock.now_ms()).await
}

/// Deletes a version; `None`: puts a delete marker of the version's name over its key.
async fn delete(
    metadata: &dyn MetadataStore,
    before: &ObjectVersion,
    version: Option<VersionId>,
    now_ms: u64,
) -> Result<(), MetadataError> {
    let request = DeleteRequest {
        key: before.key.clone(),
        version,
        marker_version: before.version,
        owner: before.owner.clone(),
        precondition: WritePrecondition::default(),
        only_if: None,
        event: None,
    };
    let deleted = metadata.delete_objects(before.bucket, vec![request], now_ms).await?;
    deleted.into_iter().try_for_each(|one| one.map(drop))
}
