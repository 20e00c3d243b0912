//! Metadata from the labels of chunks (promise D10), for when the database and its backups are lost.
//!
//! A label holds bucket, key, version, size and time of the content, and on a content's first chunk the owner, the headers,
//! the tags and the ACL. So the first chunk of a content is enough to find its object again and to know all of its chunks,
//! wherever they are. The label of a part says which part of which upload it is; whether the upload was completed no label
//! says. So parts come back as unfinished uploads ([`uploads`]), which are kept, can be listed, and can be completed here or
//! by a client; which of them were objects is for the operator to say.
//!
//! A content in a cold tier has no chunks here but its stub ([`stubs`]), whose payload says where in the tier the bytes are. It is
//! a small chunk, and every node that holds it brings the object back alone; a damaged one counts as unreadable, and the next
//! node's replica is as good.
//!
//! | what | comes back |
//! |---|---|
//! | objects and versions of one PUT | yes, with key, version, size, owner, headers, user metadata, tags and ACL |
//! | ETag and checksums | the MD5 where all chunks are on this node; else a value that is unique, and is no MD5 |
//! | objects in a cold tier | yes, with their ETag, checksums and parts; their storage class is the tier |
//! | cold tiers | no: add them again under the names that the report gives, before anybody reads. Moves and restores: no |
//! | pieces in tiers that no stub names | no: they stay in the tier, and nothing deletes them |
//! | storage classes of objects that wait for their move | yes, and the move is queued anew |
//! | overwritten and deleted objects whose chunks are not reclaimed yet | yes: labels do not know that they went |
//! | multipart objects | their parts, as unfinished uploads; as objects when completing is asked for. The version id is new |
//! | copies that share the bytes of another object | no: labels name the object that was written |
//! | objects of no bytes | no: they have no chunk |
//! | buckets | their names; versioning is on where a version has an id. They belong to the user named. Policies, CORS, tags, ACLs: no |
//! | users | the names of those who own objects, without keys: make keys with `holdfast root create` and `holdfast key create` |
//!
//! **Between several contents of one version** the later one counts: that of the later time in its label, then the younger one.
//! What a move writes bears the time of the version, which is no earlier than that of the content that came in by a PUT. So a stub
//! wins over the chunks that it was moved from and that are not reclaimed yet, chunks that a restore brought win over the stub
//! that they were restored from, and an overwrite wins over both. The content that lost is an orphan from then on. On a node that
//! runs alone a content without its last chunk is of a write that broke off, and loses against any other.
//!
//! But a stub may be of a move that was never committed, and then its pieces are deleted sooner or later. So where all chunks
//! that it was moved from are still here and have the MD5 that the stub tells, they are taken, with the tier as storage class:
//! the object is moved once more. What the first move left in the tier stays there. For the same reason an upload that is
//! the same multipart object as one that came back by its stub is completed, over it, only if all of its parts are whole.
//!
//! **On top of a backup** that was put back, only what was moved since is looked for ([`RebuildOptions::moved_only`]): labels do not
//! know of copies, and what is deleted under one name may be there under another.
//!
//! **The next node of a cluster** has other chunks, or older ones. What it finds is held against what the nodes before it have brought
//! back by the same rules ([`known`]), and takes its place among the versions of its key by its time. So the nodes may be walked
//! in any order, and a run that broke off is made again.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, bail};
use futures::StreamExt;
use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_actors::ports::metadata::{
    BucketId, CannedAcl, Content, ContentPlace, ContentSource, ETag, NewBucket, NewObject, ObjectAttributes,
    ObjectVersion, ReplicaEvidence, Tag, User, Versioning, WritePrecondition,
};
use holdfast_actors::ports::{Clock, MetadataError, MetadataStore, SystemClock};
use holdfast_protocol::label::ChunkLabel;
use holdfast_protocol::{CHUNK_SIZE_MAX, ContentId, Extent, Manifest, STUB_INDEX, TierName, UploadId, VersionId};
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

use super::super::data_dir::DataDir;
use super::super::storage;
use super::Claim;
use super::beside::Beside;
use crate::chunks::DiskChunks;
use crate::config::Config;

mod known;
mod stubs;
mod uploads;

/// Chunks a page of the walk.
const PAGE: usize = 4_096;

/// What was found and made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RebuildReport {
    /// Chunks on this node's disks.
    pub chunks: u64,
    /// Chunks whose label cannot be read.
    pub unreadable: u64,
    /// Buckets found.
    pub buckets: u64,
    /// Object versions made, or to be made.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of them those without their MD5, since some chunk is elsewhere.
    pub without_md5: u64,
    /// Of them those that lie in a cold tier.
    pub cold: u64,
    /// Cold tiers that objects lie in or are to be moved to, which have to be added again.
    pub tiers: BTreeSet<String>,
    /// Contents older than another of the same key and version: overwritten.
    pub superseded: u64,
    /// Versions that the metadata had already.
    pub known: u64,
    /// Multipart uploads that came back as unfinished ones, or would.
    pub uploads: u64,
    /// Their parts.
    pub parts: u64,
    /// Uploads that were completed after that, and are objects now.
    pub completed: u64,
    /// Whether nothing was written.
    pub dry_run: bool,
}

impl RebuildReport {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{}{} objects ({} bytes) in {} buckets from {} chunks\n{} overwritten contents and {} that were known left out\n\
             {} objects have no MD5 as ETag, since some of their chunks are on other nodes\n\
             {} multipart uploads with {} parts, of which {} were completed; {} labels cannot be read\n",
            if self.dry_run { "would rebuild: " } else { "rebuilt: " },
            self.objects,
            self.bytes,
            self.buckets,
            self.chunks,
            self.superseded,
            self.known,
            self.without_md5,
            self.uploads,
            self.parts,
            self.completed,
            self.unreadable
        );
        if !self.tiers.is_empty() {
            let names: Vec<&str> = self.tiers.iter().map(String::as_str).collect();
            text.push_str(&format!(
                "{} objects lie in cold tiers. Add these tiers again with `holdfast tier add`, under the same names: {}\n",
                self.cold,
                names.join(", ")
            ));
        }
        text
    }
}

struct Found {
    content: ContentId,
    created_ms: u64,
    size_bytes: u64,
    /// Whether all of it may have been stored: the last chunk is begun when those before it are durable.
    is_ended: bool,
    /// What is here is a stub: the bytes lie in this tier.
    tier: Option<TierName>,
    /// Of a stub: time and id of the latest other content of this name and size that has chunks here.
    moved_from: Option<(u64, ContentId)>,
    head: Head,
}

impl Found {
    /// Of two contents that would have one name, the later one counts, but for one of a write that broke off.
    fn is_later_than(&self, other: &Self) -> bool {
        let rank = |found: &Self| {
            let seconds = found.content.unix_seconds();
            (found.is_ended, found.created_ms, seconds, found.tier.is_some(), found.content)
        };
        rank(self) > rank(other)
    }

    /// Remembers one that counts less.
    fn replaces(&mut self, other: &Self) {
        if self.tier.is_some() && self.size_bytes == other.size_bytes {
            let here = if other.tier.is_some() { other.moved_from } else { Some((other.created_ms, other.content)) };
            self.moved_from = self.moved_from.max(here);
        }
    }

    /// The version, with the content that was made of it.
    fn object(self, bucket: BucketId, (key, version): (&str, VersionId), owner: &str, content: Content) -> NewObject {
        let class = self.class().cloned();
        let Head { owner: told, attributes, tags, acl, class: _ } = self.head;
        NewObject {
            bucket,
            key: key.to_owned(),
            version,
            now_ms: self.created_ms,
            owner: told.unwrap_or_else(|| owner.to_owned()),
            content: ContentSource::New(content),
            attributes,
            tags,
            acl,
            precondition: WritePrecondition::default(),
            event: None,
            evidence: ReplicaEvidence::default(),
            class,
        }
    }

    /// The storage class that the version is to have.
    fn class(&self) -> Option<&TierName> {
        self.tier.as_ref().or(self.head.class.as_ref())
    }
}

/// What a label tells beside the key.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    owner: Option<String>,
    #[serde(flatten)]
    attributes: ObjectAttributes,
    tags: Vec<Tag>,
    acl: CannedAcl,
    class: Option<TierName>,
}

/// What the labels tell of.
#[derive(Default)]
struct Contents {
    versions: Versions,
    /// Parts by number, by bucket, key and upload.
    uploads: BTreeMap<(String, String, UploadId), BTreeMap<u16, Found>>,
}

impl Contents {
    fn buckets(&self) -> BTreeSet<&String> {
        self.versions.keys().map(|(bucket, ..)| bucket).chain(self.uploads.keys().map(|(bucket, ..)| bucket)).collect()
    }

    fn classes(&self) -> impl Iterator<Item = &TierName> {
        let parts = self.uploads.values().flat_map(BTreeMap::values);
        self.versions.values().chain(parts).filter_map(Found::class)
    }

    fn owners(&self) -> BTreeSet<&String> {
        let parts = self.uploads.values().flat_map(BTreeMap::values);
        self.versions.values().chain(parts).filter_map(|found| found.head.owner.as_ref()).collect()
    }
}

/// Keeps the later of two contents of one name.
fn keep<K: Ord>(known: &mut BTreeMap<K, Found>, name: K, mut found: Found, report: &mut RebuildReport) {
    match known.entry(name) {
        Entry::Vacant(entry) => drop(entry.insert(found)),
        Entry::Occupied(mut entry) => {
            report.superseded += 1;
            if found.is_later_than(entry.get()) {
                found.replaces(entry.get());
                entry.insert(found);
            } else {
                entry.get_mut().replaces(&found);
            }
        }
    }
}

/// What to do beside reading labels.
#[derive(Debug, Clone, Copy, Default)]
pub struct RebuildOptions {
    /// Only count.
    pub dry_run: bool,
    /// Go on where metadata holds buckets already, as on the second node of a cluster.
    pub add: bool,
    /// Complete every unfinished upload whose parts make an object. Only after all nodes were walked are all parts there.
    pub complete_uploads: bool,
    /// Only give versions that the metadata has the contents that they were moved to: what a backup that was put back does not
    /// know of them. Nothing else comes back, such as names that objects had before they were copied to others and deleted.
    pub moved_only: bool,
    /// These disks are all that there are: a chunk that is not here is nowhere.
    pub alone: bool,
}

/// Rebuilds metadata from this node's disks.
///
/// # Errors
/// When this node runs, or unless it is a dry run any node of its cluster; when metadata holds buckets already (unless `add`);
/// those of disks and metadata.
pub async fn rebuild(config: &Config, owner: &str, options: RebuildOptions) -> anyhow::Result<RebuildReport> {
    let options = RebuildOptions { alone: !config.cluster.is_on(), ..options };
    let data_dir = DataDir::open(&config.node.data_dir)?;
    if options.moved_only {
        // One that broke off may have taken out a version to put it back, and this one puts back only what is there.
        data_dir.refuse_unfinished().context("put the backup back again before what was moved is looked for")?;
    }
    if !options.dry_run {
        super::zookeeper::require_stopped(config).await.context("nothing was rebuilt")?;
    }
    let claim = if options.dry_run { Claim::Later } else { Claim::Take };
    let metadata = super::open_metadata(config, &data_dir, claim).await?;
    if !options.add && !metadata.list_buckets(None, None, 1).await.context("look at the metadata")?.is_empty() {
        bail!(
            "the metadata holds buckets: rebuilding would bring overwritten and deleted objects back. For the next node of a \
             cluster whose metadata is being rebuilt give --add; else restore a backup"
        );
    }
    // With half of the objects a node would delete the chunks of the others.
    let beside = if options.alone && !options.dry_run {
        metadata.close().await;
        Some(Beside::begin(&data_dir.file("metadata.sqlite"))?)
    } else {
        None
    };
    let metadata: Arc<dyn MetadataStore> = match &beside {
        Some(beside) => Arc::new(beside.open().await?),
        None => metadata,
    };
    let cluster = data_dir.cluster_id()?.map_or(data_dir.id(), |cluster| *cluster.as_bytes());
    let opened = storage::open_disks(config, cluster, &data_dir, None).await?;
    let chunks = DiskChunks::new(opened.disks.clone());
    // The database of a node that runs alone is filled beside its place.
    let leaves_mark = !options.dry_run && !options.alone;
    if leaves_mark {
        data_dir.begin_filling()?;
    }
    let rebuilt = from_chunks(&chunks, &*metadata, owner, options).await;
    metadata.close().await;
    // Also after an error: what was written stays.
    let invalidated = if options.dry_run { Ok(()) } else { super::zookeeper::invalidate_cache(config).await };
    let closed = opened.disks.shutdown().await.context("close the disks");
    let report = rebuilt?;
    beside.map_or(Ok(()), Beside::put_in_place)?;
    invalidated?;
    closed?;
    if !options.dry_run {
        data_dir.end_filling()?;
    }
    Ok(report)
}

/// Rebuilds metadata from `chunks`.
///
/// # Errors
/// Those of metadata.
pub async fn from_chunks(
    chunks: &dyn ReplicaStore,
    metadata: &dyn MetadataStore,
    owner: &str,
    options: RebuildOptions,
) -> anyhow::Result<RebuildReport> {
    let mut report = RebuildReport { dry_run: options.dry_run, ..RebuildReport::default() };
    let found = walk(chunks, options.alone, &mut report).await;
    report.buckets = found.buckets().len() as u64;
    report.tiers = found.classes().map(TierName::to_string).collect();
    if options.dry_run {
        report.objects = found.versions.len() as u64;
        report.bytes = found.versions.values().map(|found| found.size_bytes).sum();
        report.cold = found.versions.values().filter(|found| found.tier.is_some()).count() as u64;
        report.uploads = found.uploads.len() as u64;
        report.parts = found.uploads.values().map(|parts| parts.len() as u64).sum();
        return Ok(report);
    }
    if options.moved_only {
        follow_moves(chunks, metadata, found, (options, &mut report)).await?;
        return Ok(report);
    }
    let now_ms = SystemClock.now_ms();
    for name in found.owners().into_iter().map(String::as_str).chain([owner]) {
        let admin = name == super::super::ROOT_USER;
        let user = User { name: name.to_owned(), admin, enabled: true, created_ms: now_ms };
        match metadata.create_user(user).await {
            Ok(()) | Err(MetadataError::Exists(_)) => {}
            Err(error) => return Err(error).with_context(|| format!("make user {name}")),
        }
    }
    for bucket in found.buckets() {
        let new = NewBucket { name: bucket.clone(), owner: owner.to_owned(), acl: CannedAcl::Private, now_ms };
        match metadata.create_bucket(new).await {
            Ok(_) | Err(MetadataError::BucketExists { .. }) => {}
            Err(error) => return Err(error).with_context(|| format!("make bucket {bucket}")),
        }
        let has_ids = found.versions.keys().any(|(b, _, version)| b == bucket && *version != VersionId::NULL);
        let set = if has_ids { metadata.set_versioning(bucket, Versioning::Enabled).await } else { Ok(()) };
        set.with_context(|| format!("switch versioning of {bucket} on"))?;
    }
    let buckets: BTreeSet<String> = found.buckets().into_iter().cloned().collect();
    let mut again = BTreeSet::new();
    for ((bucket, key, version), found) in in_order(found.versions) {
        let before = report.known;
        commit(chunks, metadata, owner, (&bucket, &key, version), found, (options, &mut report)).await?;
        if options.add && report.known > before {
            again.insert((bucket, key));
        }
    }
    // A run that broke off may have left them otherwise.
    for (bucket, key) in again {
        let ordered = known::put_in_order(metadata, &bucket, &key).await;
        ordered.with_context(|| format!("put the versions of {bucket}/{key} in order"))?;
    }
    for bucket in &buckets {
        let failed = || format!("switch versioning of {bucket} on again");
        // It is off since a version without an id was put beside others. Left so, the next writes would overwrite those.
        if metadata.bucket(bucket).await.with_context(failed)?.versioning == Versioning::Suspended {
            metadata.set_versioning(bucket, Versioning::Enabled).await.with_context(failed)?;
        }
    }
    uploads::bring_back(chunks, metadata, owner, found.uploads, &mut report).await?;
    if options.complete_uploads {
        uploads::complete(metadata, &mut report).await?;
    }
    Ok(report)
}

/// By bucket, key and version id.
type Versions = BTreeMap<(String, String, VersionId), Found>;

/// In the order of time, so that the latest version is the latest again.
fn in_order(versions: Versions) -> Vec<((String, String, VersionId), Found)> {
    let mut versions: Vec<_> = versions.into_iter().collect();
    versions.sort_by_key(|(_, found)| (found.created_ms, found.content));
    versions
}

/// Gives the versions of `metadata` the contents that they were moved to.
async fn follow_moves(
    chunks: &dyn ReplicaStore,
    metadata: &dyn MetadataStore,
    found: Contents,
    (options, report): (RebuildOptions, &mut RebuildReport),
) -> anyhow::Result<()> {
    let mut before = BTreeMap::new();
    for bucket in found.buckets() {
        match metadata.bucket(bucket).await {
            Ok(there) => {
                before.insert(bucket.clone(), there.versioning);
            }
            Err(MetadataError::NoSuchBucket) => {}
            Err(error) => return Err(error).with_context(|| format!("look for bucket {bucket}")),
        }
    }
    for ((bucket, key, version), found) in in_order(found.versions) {
        if before.contains_key(&bucket) {
            // Whose it is the metadata says.
            commit(chunks, metadata, "", (&bucket, &key, version), found, (options, &mut *report)).await?;
        }
    }
    for (bucket, versioning) in before {
        let failed = || format!("set versioning of {bucket} back");
        if metadata.bucket(&bucket).await.with_context(failed)?.versioning != versioning {
            metadata.set_versioning(&bucket, versioning).await.with_context(failed)?;
        }
    }
    Ok(())
}

/// Whether what was found is where a version was moved to, by all that can be told.
fn is_moved(chunks: &dyn ReplicaStore, found: &Found, before: Option<&ObjectVersion>) -> bool {
    let Some((before, there)) = before.and_then(|before| Some((before, before.content.as_deref()?))) else {
        return false;
    };
    // A recall that broke off has not written all, and not taken the place of what lies in the tier.
    let is_all_here = || {
        let manifest = Manifest::single(found.content, found.size_bytes);
        manifest.extents.iter().flat_map(Extent::chunks).all(|chunk| chunks.stat(chunk).is_some())
    };
    let is_recalled = found.tier.is_none() && there.cold().is_some();
    // What a move writes bears the time of the version.
    found.created_ms == before.last_modified_ms
        && found.size_bytes == there.size_bytes()
        && (!is_recalled || is_all_here() || chunks.stat(there.id.chunk(STUB_INDEX)).is_none())
}

/// Reads every label that can be the first of a content, or of its stub.
async fn walk(chunks: &dyn ReplicaStore, alone: bool, report: &mut RebuildReport) -> Contents {
    let mut contents = Contents::default();
    let mut after = None;
    loop {
        let page = chunks.list(after, PAGE);
        report.chunks += page.len() as u64;
        for info in &page {
            let content = info.id.content();
            let is_stub = info.id.index() == STUB_INDEX;
            if info.id.index() != 0 && !is_stub {
                continue;
            }
            let label = match chunks.label(info.id).await.ok().map(|bytes| ChunkLabel::decode(&bytes)) {
                Some(Ok(label)) if label.is_stub == is_stub => label,
                _ => {
                    report.unreadable += 1;
                    continue;
                }
            };
            let size_bytes = label.content_size_bytes;
            let tier = if is_stub {
                // Read once more when its turn comes: all of them are too much to keep.
                let cold = stubs::read(chunks, content, size_bytes).await;
                let Some(tier) = cold.and_then(|content| Some(content.cold()?.tier.clone())) else {
                    report.unreadable += 1;
                    continue;
                };
                Some(tier)
            } else {
                None
            };
            // What cannot be understood of it is no reason to lose the object.
            let head = label.attributes.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
            let last = content.chunk((size_bytes.saturating_sub(1) / CHUNK_SIZE_MAX) as u32);
            let is_ended = !alone || is_stub || chunks.stat(last).is_some();
            let created_ms = label.created_ms;
            let found = Found { content, created_ms, size_bytes, is_ended, tier, moved_from: None, head };
            match label.part {
                Some(part) => {
                    let upload = contents.uploads.entry((label.bucket, label.key, part.upload)).or_default();
                    keep(upload, part.number, found, report);
                }
                None => keep(&mut contents.versions, (label.bucket, label.key, label.version), found, report),
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.id),
            _ => return contents,
        }
    }
}

async fn commit(
    chunks: &dyn ReplicaStore,
    metadata: &dyn MetadataStore,
    owner: &str,
    (bucket, key, version): (&str, &str, VersionId),
    found: Found,
    (options, report): (RebuildOptions, &mut RebuildReport),
) -> anyhow::Result<()> {
    let failed = || format!("rebuild {bucket}/{key}");
    let size_bytes = found.size_bytes;
    let bucket_found = metadata.bucket(bucket).await.with_context(failed)?;
    let before = match metadata.object(bucket_found.id, key, Some(version)).await {
        Ok(before) => Some(before),
        Err(MetadataError::NoSuchKey | MetadataError::NoSuchVersion) => None,
        Err(error) => return Err(error).with_context(failed),
    };
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
    let object = match &before {
        Some(before) if !is_later => known::as_before(before, ContentSource::New(content)),
        _ => found.object(bucket_found.id, (key, version), owner, content),
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
    report.objects += 1;
    report.bytes += size_bytes;
    Ok(())
}

/// The content that was found; `None`: its stub cannot be read any more.
async fn made_of(chunks: &dyn ReplicaStore, found: &Found, report: &mut RebuildReport) -> Option<Content> {
    match &found.tier {
        None => Some(content_here(chunks, found, report).await),
        Some(_) => cold_content(chunks, found).await,
    }
}

/// A content in a tier; or the one that it was moved from, if that is whole.
async fn cold_content(chunks: &dyn ReplicaStore, found: &Found) -> Option<Content> {
    let cold = stubs::read(chunks, found.content, found.size_bytes).await?;
    if let Some((_, id)) = found.moved_from
        && cold.etag.parts.is_none()
    {
        let manifest = Manifest::single(id, found.size_bytes);
        if md5_of(chunks, &manifest).await == Some(cold.etag.md5) {
            return Some(Content { id, manifest, place: ContentPlace::Cluster, ..cold });
        }
    }
    Some(cold)
}

/// A content on the disks of the cluster.
async fn content_here(chunks: &dyn ReplicaStore, found: &Found, report: &mut RebuildReport) -> Content {
    let manifest = Manifest::single(found.content, found.size_bytes);
    let etag = match md5_of(chunks, &manifest).await {
        Some(md5) => ETag { md5, parts: None },
        None => {
            report.without_md5 += 1;
            // The number of parts tells clients that it is no MD5 of the bytes.
            ETag { md5: stand_in(found.content), parts: Some(1) }
        }
    };
    Content { id: found.content, manifest, etag, checksum: None, parts: vec![], place: ContentPlace::Cluster }
}

/// Unique and stable, where the MD5 of bytes is not known.
fn stand_in(content: ContentId) -> [u8; 16] {
    let mut md5 = [0; 16];
    md5[..12].copy_from_slice(&content.0);
    md5
}

/// The MD5 of all bytes, if all chunks are here and whole.
async fn md5_of(chunks: &dyn ReplicaStore, manifest: &Manifest) -> Option<[u8; 16]> {
    let mut md5 = Md5::new();
    for extent in &manifest.extents {
        for chunk in extent.chunks() {
            let size_bytes = chunks.stat(chunk)?.size_bytes;
            let mut body = chunks.read_copied(chunk, 0..size_bytes).ok()?;
            while let Some(piece) = body.next().await {
                md5.update(&piece.ok()?);
            }
        }
    }
    Some(md5.finalize().into())
}
