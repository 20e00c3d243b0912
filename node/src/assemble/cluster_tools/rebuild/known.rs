//! Versions that the disks of another node, or a run that broke off, have brought back already.
//!
//! Of two contents of one version the one counts that would count if both lay on one node. And a version takes its
//! place by its time: those of its key that are newer are put over it again, each removed and put back with the content
//! that it had. A run that breaks off in between has taken one out whose label may be on another node: so that run is
//! made again, and then those before it. They put right the order of the keys that they find to be there
//! ([`put_in_order`]). No label brings an object back that was made of parts, which something seems to have: where
//! uploads were completed one begins anew.

use std::collections::VecDeque;

use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_actors::ports::metadata::{
    Bucket, BucketId, CannedAcl, Content, ContentPlace, ContentSource, DeleteRequest, ListAfter, ListVersionsQuery,
    NewObject, ObjectAttributes, ObjectVersion, ReplicaEvidence, Versioning, WritePrecondition,
};
use holdfast_actors::ports::{Clock, MetadataError, MetadataStore, SystemClock};
use holdfast_protocol::{CHUNK_SIZE_MAX, Manifest, VersionId};

use super::contents::{made_of, md5_of};
use super::found::Found;
use super::{RebuildOptions, RebuildReport};

/// Versions a page. One of ten thousand parts takes half a megabyte.
const PAGE: u32 = 100;
/// Versions whose names are remembered to be put over another one. Each time as many are done, the key is listed anew.
const NEWER_AT_ONCE: usize = 4_096;

/// Whether what was found is later than a content that is there, if it is whole: as between two that were found.
pub(super) fn outranks(found: &Found, before: &ObjectVersion, there: &Content) -> bool {
    let rank = (before.last_modified_ms, there.id.unix_seconds(), there.cold().is_some(), there.id);
    (found.created_ms, found.content.unix_seconds(), found.tier.is_some(), found.content) > rank
}

/// Whether a version came back by its last chunk alone, and what was found tells more of it.
fn tells_more(found: &Found, before: &ObjectVersion) -> bool {
    let is_bare = before.attributes == ObjectAttributes::default()
        && before.tags.is_empty()
        && before.acl == CannedAcl::default()
        && before.class.is_none();
    let head = &found.head;
    let is_other = head.attributes != before.attributes
        || head.tags != before.tags
        || head.acl != before.acl
        || head.class != before.class
        || head.owner.as_ref().is_some_and(|owner| *owner != before.owner);
    // Of one chunk nothing comes back without its head.
    found.has_head && found.size_bytes > CHUNK_SIZE_MAX && is_bare && is_other
}

/// What is to take the place of the content of a version that is there, and whether it is of a later write, whose label
/// counts; `None`: nothing, the one that is there counts.
pub(super) async fn successor(
    chunks: &dyn ReplicaStore,
    found: &Found,
    before: &ObjectVersion,
    (options, report): (RebuildOptions, &mut RebuildReport),
) -> Option<(Content, bool)> {
    let there = before.content.as_deref()?;
    if there.id == found.content {
        let is_filled = !options.moved_only && found.tier.is_none() && tells_more(found, before);
        return is_filled.then(|| (there.clone(), true));
    }
    if found.is_ended && outranks(found, before, there) {
        let made = if options.moved_only && found.tier.is_none() {
            // It came back from a tier, perhaps one that it was moved to since the backup, too. The same bytes: ETag,
            // checksum and parts stay what they are, also where not all of them are here.
            brought_back(there, found)
        } else {
            made_of(chunks, found, report).await?
        };
        // With the MD5 that the stub tells, it was proven to be whole on the node where it was found. A backup proves
        // nothing: what it names may be gone.
        let is_proven =
            !options.moved_only && made.cold().is_some() && there.cold().is_none() && made.etag == there.etag;
        let made = if is_proven && made.size_bytes() == there.size_bytes() { there.clone() } else { made };
        let is_other = made.id != there.id || found.created_ms != before.last_modified_ms;
        return (is_other || found.class() != before.class.as_ref()).then_some((made, true));
    }
    // A stub may be of a move that was never committed: the chunks that it was moved from, if all are here.
    let is_moved = there.cold().is_some() && found.tier.is_none() && there.etag.parts.is_none();
    if !is_moved || found.size_bytes != there.size_bytes() {
        return None;
    }
    let made = brought_back(there, found);
    let is_whole = md5_of(chunks, &made.manifest).await == Some(there.etag.md5);
    is_whole.then_some((made, false))
}

/// A content that was in a tier, as it is on the cluster's disks.
fn brought_back(there: &Content, found: &Found) -> Content {
    let manifest = Manifest::single(found.content, found.size_bytes);
    Content { id: found.content, manifest, place: ContentPlace::Cluster, ..there.clone() }
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
    let now = metadata.bucket(bucket).await?;
    let wanted = match (version == VersionId::NULL, now.versioning) {
        (true, Versioning::Enabled) => Versioning::Suspended,
        (false, Versioning::Unversioned | Versioning::Suspended) => Versioning::Enabled,
        _ => return Ok(()),
    };
    metadata.set_versioning(bucket, now.id, wanted).await
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
        // A node has run since, and reclaimed it; or it was left over, and nodes delete it wherever they find it.
        Err(MetadataError::NoSuchContent | MetadataError::Condemned) => {
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
    place: (VersionId, u64),
) -> Result<(), MetadataError> {
    put_over(metadata, bucket, key, place, NEWER_AT_ONCE).await
}

/// A key may have more versions than memory has room for, and each may be of ten thousand parts: only names are
/// remembered, of `at_once` versions at a time, the oldest ones first.
async fn put_over(
    metadata: &dyn MetadataStore,
    bucket: &Bucket,
    key: &str,
    place: (VersionId, u64),
    at_once: usize,
) -> Result<(), MetadataError> {
    if bucket.versioning == Versioning::Unversioned {
        return Ok(());
    }
    loop {
        let newer = oldest_newer_below(metadata, bucket.id, key, place, at_once).await?;
        for version in &newer {
            let before = metadata.object(bucket.id, key, Some(*version)).await?;
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
        // Those are above it now.
        if newer.len() < at_once {
            break;
        }
    }
    if bucket.versioning == Versioning::Enabled
        && metadata.bucket(&bucket.name).await?.versioning != Versioning::Enabled
    {
        metadata.set_versioning(&bucket.name, bucket.id, Versioning::Enabled).await?;
    }
    Ok(())
}

/// The versions that are newer than the one named and stand below it: the oldest `most` of them, the oldest first.
async fn oldest_newer_below(
    metadata: &dyn MetadataStore,
    bucket: BucketId,
    key: &str,
    (version, at_ms): (VersionId, u64),
    most: usize,
) -> Result<Vec<VersionId>, MetadataError> {
    let mut is_below = false;
    let mut newer = VecDeque::with_capacity(most.min(NEWER_AT_ONCE));
    let see = |entry: &ObjectVersion| {
        if entry.version == version {
            is_below = true;
        } else if is_below && entry.last_modified_ms > at_ms {
            if newer.len() == most {
                newer.pop_front();
            }
            newer.push_back(entry.version);
        }
    };
    each_version(metadata, bucket, key, see).await?;
    // They come newest first.
    Ok(newer.into_iter().rev().collect())
}

/// Puts the versions of a key in the order of their times again, where a run that broke off has put an older one on top
/// and not all the newer ones over it.
pub(super) async fn put_in_order(metadata: &dyn MetadataStore, bucket: &str, key: &str) -> Result<(), MetadataError> {
    let bucket = metadata.bucket(bucket).await?;
    let (mut oldest, mut wrong): (Option<(VersionId, u64)>, _) = (None, None);
    let see = |entry: &ObjectVersion| match oldest {
        Some((_, at_ms)) if entry.last_modified_ms > at_ms => wrong = oldest,
        Some((_, at_ms)) if entry.last_modified_ms == at_ms => {}
        _ => oldest = Some((entry.version, entry.last_modified_ms)),
    };
    each_version(metadata, bucket.id, key, see).await?;
    match wrong {
        Some(place) => put_newer_over(metadata, &bucket, key, place).await,
        None => Ok(()),
    }
}

/// Shows every version and delete marker of a key, the latest first.
async fn each_version(
    metadata: &dyn MetadataStore,
    bucket: BucketId,
    key: &str,
    mut see: impl FnMut(&ObjectVersion),
) -> Result<(), MetadataError> {
    let mut query = ListVersionsQuery { prefix: key.to_owned(), limit: PAGE, ..ListVersionsQuery::default() };
    loop {
        let page = metadata.list_versions(bucket, query.clone()).await?;
        for entry in page.entries {
            // The key itself is the first of those that begin so.
            if entry.key != key {
                return Ok(());
            }
            see(&entry);
        }
        let Some((ListAfter::Key(after), after_version)) = page.next else { return Ok(()) };
        query.after = ListAfter::Key(after);
        query.after_version = after_version;
    }
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

#[cfg(test)]
mod tests;
