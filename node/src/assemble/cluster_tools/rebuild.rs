//! Metadata from the labels of chunks (promise D10), for when the database and its backups are lost.
//!
//! A label holds bucket, key, version, size and time of the content, and on a content's first chunk the owner, the headers,
//! the tags and the ACL. So the first chunk of a content is enough to find its object again and to know all of its chunks,
//! wherever they are. The label of a part says which part of which upload it is; whether the upload was completed no label
//! says. So parts come back as unfinished uploads ([`uploads`]), which are kept, can be listed, and can be completed here or
//! by a client; which of them were objects is for the operator to say.
//!
//! | what | comes back |
//! |---|---|
//! | objects and versions of one PUT | yes, with key, version, size, owner, headers, user metadata, tags and ACL |
//! | ETag and checksums | the MD5 where all chunks are on this node; else a value that is unique, and is no MD5 |
//! | overwritten and deleted objects whose chunks are not reclaimed yet | yes: labels do not know that they went |
//! | multipart objects | their parts, as unfinished uploads; as objects when completing is asked for. The version id is new |
//! | copies that share the bytes of another object | no: labels name the object that was written |
//! | objects of no bytes | no: they have no chunk |
//! | buckets | their names; versioning is on where a version has an id. They belong to the user named. Policies, CORS, tags, ACLs: no |
//! | users | the names of those who own objects, without keys: make keys with `holdfast root create` and `holdfast key create` |

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail};
use futures::StreamExt;
use holdfast_actors::ports::chunks::ReplicaStore;
use holdfast_actors::ports::metadata::{
    CannedAcl, Content, ContentPlace, ContentSource, ETag, NewBucket, NewObject, ObjectAttributes, ReplicaEvidence,
    Tag, User, Versioning, WritePrecondition,
};
use holdfast_actors::ports::{Clock, MetadataError, MetadataStore, SystemClock};
use holdfast_protocol::label::ChunkLabel;
use holdfast_protocol::{ContentId, Manifest, UploadId, VersionId};
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

use super::super::data_dir::DataDir;
use super::super::storage;
use crate::chunks::DiskChunks;
use crate::config::Config;

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
        format!(
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
        )
    }
}

struct Found {
    content: ContentId,
    created_ms: u64,
    size_bytes: u64,
    head: Head,
}

impl Found {
    /// Of two contents that would have one name, the later one counts.
    fn is_later_than(&self, other: &Self) -> bool {
        (self.created_ms, self.content) > (other.created_ms, other.content)
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
}

/// What the labels tell of.
#[derive(Default)]
struct Contents {
    /// By bucket, key and version id.
    versions: BTreeMap<(String, String, VersionId), Found>,
    /// Parts by number, by bucket, key and upload.
    uploads: BTreeMap<(String, String, UploadId), BTreeMap<u16, Found>>,
}

impl Contents {
    fn buckets(&self) -> BTreeSet<&String> {
        self.versions.keys().map(|(bucket, ..)| bucket).chain(self.uploads.keys().map(|(bucket, ..)| bucket)).collect()
    }

    fn owners(&self) -> BTreeSet<&String> {
        let parts = self.uploads.values().flat_map(BTreeMap::values);
        self.versions.values().chain(parts).filter_map(|found| found.head.owner.as_ref()).collect()
    }
}

/// Keeps the later of two contents of one name.
fn keep<K: Ord>(known: &mut BTreeMap<K, Found>, name: K, found: Found, report: &mut RebuildReport) {
    match known.entry(name) {
        Entry::Vacant(entry) => drop(entry.insert(found)),
        Entry::Occupied(mut entry) => {
            report.superseded += 1;
            if found.is_later_than(entry.get()) {
                entry.insert(found);
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
}

/// Rebuilds metadata from this node's disks.
///
/// # Errors
/// When the node runs or metadata holds buckets already (unless `add`); those of disks and metadata.
pub async fn rebuild(config: &Config, owner: &str, options: RebuildOptions) -> anyhow::Result<RebuildReport> {
    let data_dir = DataDir::open(&config.node.data_dir)?;
    let metadata = super::open_metadata(config, &data_dir, !options.dry_run).await?;
    if !options.add && !metadata.list_buckets(None, None, 1).await.context("look at the metadata")?.is_empty() {
        bail!(
            "the metadata holds buckets: rebuilding would bring overwritten and deleted objects back. For the next node of a \
             cluster whose metadata is being rebuilt give --add; else restore a backup"
        );
    }
    let cluster = data_dir.cluster_id()?.map_or(data_dir.id(), |cluster| *cluster.as_bytes());
    let opened = storage::open_disks(config, cluster, data_dir.id(), None).await?;
    let chunks = DiskChunks::new(opened.disks.clone());
    let rebuilt = from_chunks(&chunks, &*metadata, owner, options).await;
    metadata.close().await;
    // Also after an error: what was written stays.
    let invalidated = if options.dry_run { Ok(()) } else { super::zookeeper::invalidate_cache(config).await };
    let closed = opened.disks.shutdown().await.context("close the disks");
    let report = rebuilt?;
    invalidated?;
    closed?;
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
    let found = walk(chunks, &mut report).await;
    report.buckets = found.buckets().len() as u64;
    if options.dry_run {
        report.objects = found.versions.len() as u64;
        report.bytes = found.versions.values().map(|found| found.size_bytes).sum();
        report.uploads = found.uploads.len() as u64;
        report.parts = found.uploads.values().map(|parts| parts.len() as u64).sum();
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
    // In the order of time, so that the latest version is the latest again.
    let mut versions: Vec<_> = found.versions.into_iter().collect();
    versions.sort_by_key(|(_, found)| (found.created_ms, found.content));
    for ((bucket, key, version), found) in versions {
        commit(chunks, metadata, owner, (&bucket, &key, version), found, &mut report).await?;
    }
    uploads::bring_back(chunks, metadata, owner, found.uploads, &mut report).await?;
    if options.complete_uploads {
        uploads::complete(metadata, &mut report).await?;
    }
    Ok(report)
}

/// Reads every label that can be the first of a content.
async fn walk(chunks: &dyn ReplicaStore, report: &mut RebuildReport) -> Contents {
    let mut contents = Contents::default();
    let mut after = None;
    loop {
        let page = chunks.list(after, PAGE);
        report.chunks += page.len() as u64;
        for info in &page {
            let content = info.id.content();
            if content.chunk(0) != info.id {
                continue;
            }
            let label = match chunks.label(info.id).await.ok().map(|bytes| ChunkLabel::decode(&bytes)) {
                Some(Ok(label)) => label,
                _ => {
                    report.unreadable += 1;
                    continue;
                }
            };
            // What cannot be understood of it is no reason to lose the object.
            let head = label.attributes.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
            let found = Found { content, created_ms: label.created_ms, size_bytes: label.content_size_bytes, head };
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
    report: &mut RebuildReport,
) -> anyhow::Result<()> {
    let failed = || format!("rebuild {bucket}/{key}");
    let bucket_found = metadata.bucket(bucket).await.with_context(failed)?;
    match metadata.object(bucket_found.id, key, Some(version)).await {
        Ok(_) => {
            report.known += 1;
            return Ok(());
        }
        Err(MetadataError::NoSuchKey | MetadataError::NoSuchVersion) => {}
        Err(error) => return Err(error).with_context(failed),
    }
    if version == VersionId::NULL && bucket_found.versioning == Versioning::Enabled {
        // Only so does a version without an id come to stand beside those that have one.
        metadata.set_versioning(bucket, Versioning::Suspended).await.with_context(failed)?;
    } else if version != VersionId::NULL && bucket_found.versioning != Versioning::Enabled {
        metadata.set_versioning(bucket, Versioning::Enabled).await.with_context(failed)?;
    }
    let manifest = Manifest::single(found.content, found.size_bytes);
    let etag = match md5_of(chunks, &manifest).await {
        Some(md5) => ETag { md5, parts: None },
        None => {
            report.without_md5 += 1;
            // The number of parts tells clients that it is no MD5 of the bytes.
            ETag { md5: stand_in(found.content), parts: Some(1) }
        }
    };
    let Head { owner: told, attributes, tags, acl } = found.head;
    let object = NewObject {
        bucket: bucket_found.id,
        key: key.to_owned(),
        version,
        now_ms: found.created_ms,
        owner: told.unwrap_or_else(|| owner.to_owned()),
        content: ContentSource::New(Content {
            id: found.content,
            manifest,
            etag,
            checksum: None,
            parts: vec![],
            place: ContentPlace::Cluster,
        }),
        attributes,
        tags,
        acl,
        precondition: WritePrecondition::default(),
        event: None,
        evidence: ReplicaEvidence::default(),
        class: None,
    };
    metadata.commit_object(object).await.with_context(failed)?;
    report.objects += 1;
    report.bytes += found.size_bytes;
    Ok(())
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
            let mut body = chunks.read(chunk, 0..size_bytes).ok()?;
            while let Some(piece) = body.next().await {
                md5.update(&piece.ok()?);
            }
        }
    }
    Some(md5.finalize().into())
}
