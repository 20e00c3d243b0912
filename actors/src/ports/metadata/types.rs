//! What the verbs of [`super::MetadataStore`] take and give.

use std::fmt;
use std::sync::Arc;

use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::{
    ChecksumAlgorithm, ChecksumType, ChunkId, ColdPlace, ContentId, Epoch, Manifest, NodeId, ShardId, TierName,
    UploadId, VersionId,
};
use serde::{Deserialize, Serialize};

use crate::domain::events::EventDraft;
use crate::ports::chunks::ChunkReceipt;

/// A bucket's number: objects refer to it, so that a bucket that is deleted and made again starts empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BucketId(pub u64);

/// Whether a bucket keeps old versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Versioning {
    /// Never switched on.
    #[default]
    Unversioned,
    /// Every write adds a version.
    Enabled,
    /// Writes replace the null version; older versions stay.
    Suspended,
}

/// The canned ACLs that Holdfast knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CannedAcl {
    /// Only the owner.
    #[default]
    Private,
    /// Anybody may read.
    PublicRead,
}

/// A configuration document of a bucket, kept as text (XML or JSON as S3 has it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BucketConfigKind {
    /// Bucket policy, JSON.
    Policy,
    /// CORS rules, as JSON of our own domain type.
    Cors,
    /// Bucket tags, as JSON of [`Tag`]s.
    Tagging,
    /// Canned ACL of the bucket, as JSON of [`CannedAcl`].
    Acl,
    /// Lifecycle rules.
    Lifecycle,
    /// Event notifications.
    Notification,
    /// The storage class of objects that are stored without one: the name of a tier. Absent: `STANDARD`.
    StorageClass,
}

impl BucketConfigKind {
    /// All kinds.
    pub const ALL: [Self; 7] =
        [Self::Policy, Self::Cors, Self::Tagging, Self::Acl, Self::Lifecycle, Self::Notification, Self::StorageClass];

    /// The stored name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Cors => "cors",
            Self::Tagging => "tagging",
            Self::Acl => "acl",
            Self::Lifecycle => "lifecycle",
            Self::Notification => "notification",
            Self::StorageClass => "storage_class",
        }
    }
}

/// A bucket to be made.
#[derive(Debug, Clone)]
pub struct NewBucket {
    /// Globally unique name, already validated.
    pub name: String,
    /// Name of the user who owns it.
    pub owner: String,
    /// Its initial canned ACL.
    pub acl: CannedAcl,
    /// Creation time.
    pub now_ms: u64,
}

/// A bucket with its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Number.
    pub id: BucketId,
    /// Name.
    pub name: String,
    /// User name of the owner.
    pub owner: String,
    /// When it was made.
    pub created_ms: u64,
    /// Versioning state.
    pub versioning: Versioning,
    /// Configuration documents that are set.
    pub configs: Vec<(BucketConfigKind, String)>,
    /// Rises with each change of the bucket.
    pub revision: u64,
}

impl Bucket {
    /// One configuration document.
    pub fn config(&self, kind: BucketConfigKind) -> Option<&str> {
        self.configs.iter().find(|(k, _)| *k == kind).map(|(_, v)| v.as_str())
    }
}

/// An S3 tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// 1 to 128 characters.
    pub key: String,
    /// Up to 256 characters.
    pub value: String,
}

/// An ETag: MD5 of the bytes, or for multipart objects MD5 of the parts' MD5s and their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ETag {
    /// The digest.
    pub md5: [u8; 16],
    /// Number of parts; `None` for an object uploaded in one piece.
    pub parts: Option<u32>,
}

impl fmt::Display for ETag {
    /// Without quotes: `d41d8cd98f00b204e9800998ecf8427e` or `…-3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.md5 {
            write!(f, "{byte:02x}")?;
        }
        match self.parts {
            Some(parts) => write!(f, "-{parts}"),
            None => Ok(()),
        }
    }
}

/// Headers that S3 keeps with an object and gives back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectAttributes {
    /// Content-Type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Cache-Control.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_control: Option<String>,
    /// Content-Disposition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_disposition: Option<String>,
    /// Content-Encoding, without `aws-chunked`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    /// Content-Language.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_language: Option<String>,
    /// Expires, as sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// x-amz-website-redirect-location.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub website_redirect_location: Option<String>,
    /// x-amz-meta-*, names in lower case without the prefix, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_metadata: Vec<(String, String)>,
}

/// One part of a multipart object, for GET by part number and GetObjectAttributes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectPart {
    /// Part number.
    pub number: u16,
    /// Size.
    pub size_bytes: u64,
    /// The part's checksum, when the upload had an algorithm.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub checksum: Option<Vec<u8>>,
}

/// Where the bytes of a content are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ContentPlace {
    /// On the disks of the cluster: the manifest's chunks.
    #[default]
    Cluster,
    /// In a cold tier. The manifest says only how many bytes there are.
    Tier(Arc<ColdPlace>),
    /// Listings do not say.
    NotLoaded,
}

/// Bytes with all that follows from them; shared by the copies of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Its name. The id of a plain PUT's one extent; a fresh one for a multipart object.
    pub id: ContentId,
    /// The chunks that hold the bytes, if they are on the cluster's disks. Of a content in a tier: one extent of its own id and
    /// size, which no chunks stand behind.
    pub manifest: Manifest,
    /// Where the bytes are.
    pub place: ContentPlace,
    /// ETag.
    pub etag: ETag,
    /// The checksum the client asked for or S3 adds by default.
    pub checksum: Option<Checksum>,
    /// Parts of a multipart object, in order; empty otherwise.
    pub parts: Vec<ObjectPart>,
}

impl Content {
    /// The object's size.
    pub fn size_bytes(&self) -> u64 {
        self.manifest.size_bytes()
    }

    /// Where in a tier the bytes are; `None`: on the cluster's disks.
    pub fn cold(&self) -> Option<&Arc<ColdPlace>> {
        match &self.place {
            ContentPlace::Tier(place) => Some(place),
            ContentPlace::Cluster | ContentPlace::NotLoaded => None,
        }
    }
}

/// Whether somebody asked for a cold object to lie on the cluster's disks for a while (RestoreObject).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restore {
    /// It was asked for, and is not there yet.
    Ongoing,
    /// It lies there until then, in milliseconds since 1970. A time that is over counts as no restore at all.
    Until(u64),
}

/// One version of an object, or a delete marker (`content` is `None`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectVersion {
    /// Bucket.
    pub bucket: BucketId,
    /// Key.
    pub key: String,
    /// Version; null in buckets without versioning.
    pub version: VersionId,
    /// Rises with every commit on the key, of whatever version; also the row's version for caches.
    pub sequence: u64,
    /// Whether it is the key's latest version.
    pub is_latest: bool,
    /// When it was committed.
    pub last_modified_ms: u64,
    /// User name of the owner.
    pub owner: String,
    /// The bytes; `None` for a delete marker.
    pub content: Option<Arc<Content>>,
    /// Headers.
    pub attributes: ObjectAttributes,
    /// Tags.
    pub tags: Vec<Tag>,
    /// ACL.
    pub acl: CannedAcl,
    /// Storage class: the tier where the bytes are to lie; `None`: `STANDARD`, on the cluster's disks. Where they are now says
    /// [`Content::place`]; a move is under way as long as the two differ.
    pub class: Option<TierName>,
    /// State of a restore.
    pub restore: Option<Restore>,
}

impl ObjectVersion {
    /// Whether this is a delete marker.
    pub fn is_delete_marker(&self) -> bool {
        self.content.is_none()
    }
}

/// What must hold at the commit of a write, else `PreconditionFailed`. Compared to the latest version; a delete marker
/// counts as absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WritePrecondition {
    /// `If-None-Match: *`: there must be no object.
    pub must_not_exist: bool,
    /// `If-Match`: the object must exist with this ETag (`None` inside = any ETag, `*`). On a missing object: `NoSuchKey`.
    pub must_match: Option<Option<ETag>>,
}

/// What a commit has to know about the replicas that took its chunks. Empty where chunks lie on one node only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReplicaEvidence {
    /// The epoch of each shard that took a chunk, sorted by shard, each once. Where chunks of one shard were taken under
    /// different epochs, the lowest stands: the commit is refused if any of them is too old.
    pub epochs: Vec<(ShardId, Epoch)>,
    /// Replicas that did not acknowledge a chunk: each becomes a repair, in the transaction of the commit.
    pub missed: Vec<(ChunkId, NodeId)>,
}

impl ReplicaEvidence {
    /// Adds what is known about one chunk.
    pub fn add(&mut self, chunk: ChunkId, receipt: ChunkReceipt) {
        if let Some((shard, epoch)) = receipt.fence {
            match self.epochs.binary_search_by_key(&shard, |(shard, _)| *shard) {
                Ok(at) => self.epochs[at].1 = self.epochs[at].1.min(epoch),
                Err(at) => self.epochs.insert(at, (shard, epoch)),
            }
        }
        self.missed.extend(receipt.missed.into_iter().map(|node| (chunk, node)));
    }
}

/// A replica that lacks a chunk, or has it damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repair {
    /// For [`super::MetadataStore::repairs`]; rises with the time at which the repair was noticed first.
    pub id: u64,
    /// Which chunk.
    pub chunk: ChunkId,
    /// Which node is to get it.
    pub node: NodeId,
    /// When it was noticed last; rises each time.
    pub queued_ms: u64,
}

/// The bytes of an object to be committed.
#[derive(Debug, Clone)]
pub enum ContentSource {
    /// Chunks just made durable.
    New(Content),
    /// Another object's content, shared (copy). `NoSuchContent` if it was dereferenced in between.
    Shared(ContentId),
}

/// An object to be made visible.
#[derive(Debug, Clone)]
pub struct NewObject {
    /// Bucket.
    pub bucket: BucketId,
    /// Key, 1 to 1,024 bytes.
    pub key: String,
    /// The version id to use if the bucket has versioning on.
    pub version: VersionId,
    /// Time of the commit.
    pub now_ms: u64,
    /// User name of the owner.
    pub owner: String,
    /// Bytes.
    pub content: ContentSource,
    /// Headers.
    pub attributes: ObjectAttributes,
    /// Tags.
    pub tags: Vec<Tag>,
    /// ACL.
    pub acl: CannedAcl,
    /// Storage class. Where the content does not lie there, a move is queued in the same transaction.
    pub class: Option<TierName>,
    /// Conditions.
    pub precondition: WritePrecondition,
    /// Of the chunks of a [`ContentSource::New`]; empty for a shared one.
    pub evidence: ReplicaEvidence,
    /// What is told of it, in the same transaction; `None`: nothing.
    pub event: Option<EventDraft>,
}

/// What a commit made.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The new latest version, as a later read would see it.
    pub object: Arc<ObjectVersion>,
    /// Whether the bucket keeps versions (the version id is then told to the client).
    pub versioning: Versioning,
}

/// One deletion.
#[derive(Debug, Clone)]
pub struct DeleteRequest {
    /// Key.
    pub key: String,
    /// A version to remove for good, or `None` for the S3 default.
    pub version: Option<VersionId>,
    /// The id that a delete marker gets, should one be made.
    pub marker_version: VersionId,
    /// Owner of that marker.
    pub owner: String,
    /// `If-Match` of a conditional delete.
    pub precondition: WritePrecondition,
    /// What was judged before; `None`: whatever is there.
    pub only_if: Option<OnlyIf>,
    /// What is told of it, in the same transaction; `None`: nothing.
    pub event: Option<EventDraft>,
}

/// A version as it was when somebody decided that it is to go, else `PreconditionFailed`: the latest version if the deletion
/// names none, else the one named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnlyIf {
    /// Its sequence number, which changes with everything that is changed of a latest version.
    pub sequence: u64,
    /// Whether it must be the only version of its key.
    pub is_alone: bool,
    /// The [`Bucket::revision`] under which it was judged: under another one other rules may hold. `None`: any.
    pub revision: Option<u64>,
    /// What must hold beside, where it is a noncurrent version.
    pub noncurrent: Option<OnlyNoncurrent>,
}

/// What may change of a noncurrent version's case while its sequence number stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnlyNoncurrent {
    /// Its tags.
    pub tags: Vec<Tag>,
    /// How many noncurrent versions of its key must be newer, at least.
    pub newer: u32,
}

/// What a deletion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// The version removed or the marker made, when versioning is or was on.
    pub version: Option<VersionId>,
    /// Whether a delete marker was made, or removed.
    pub delete_marker: bool,
}

/// Where a listing goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ListAfter {
    /// At the beginning.
    #[default]
    Start,
    /// After this key.
    Key(String),
    /// After every key that starts with this common prefix.
    Prefix(String),
}

/// A listing of objects.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Only keys with this prefix.
    pub prefix: String,
    /// Groups keys up to the first occurrence after the prefix.
    pub delimiter: Option<String>,
    /// Where to go on.
    pub after: ListAfter,
    /// Most entries and common prefixes together, 0 to 1,000.
    pub limit: u32,
}

/// A row of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    /// Key.
    pub key: String,
    /// Size.
    pub size_bytes: u64,
    /// ETag.
    pub etag: ETag,
    /// Last modification.
    pub last_modified_ms: u64,
    /// User name of the owner.
    pub owner: String,
    /// Checksum algorithm and type, if the object has a checksum.
    pub checksum: Option<(ChecksumAlgorithm, ChecksumType)>,
    /// As in [`ObjectVersion`].
    pub class: Option<TierName>,
    /// As in [`ObjectVersion`].
    pub restore: Option<Restore>,
}

/// A page of a listing.
#[derive(Debug, Clone, Default)]
pub struct ListPage {
    /// Objects, in key order.
    pub entries: Vec<ListEntry>,
    /// Common prefixes, in order.
    pub common_prefixes: Vec<String>,
    /// Where the next page starts, if there is one.
    pub next: Option<ListAfter>,
}

/// A listing of versions.
#[derive(Debug, Clone, Default)]
pub struct ListVersionsQuery {
    /// Only keys with this prefix.
    pub prefix: String,
    /// Groups keys up to the first occurrence after the prefix.
    pub delimiter: Option<String>,
    /// Where to go on, by key.
    pub after: ListAfter,
    /// With `ListAfter::Key`: go on within that key, after this version, instead of after the key.
    pub after_version: Option<VersionId>,
    /// Most entries and common prefixes together.
    pub limit: u32,
}

/// A page of a listing of versions.
#[derive(Debug, Clone, Default)]
pub struct ListVersionsPage {
    /// Versions and delete markers, in key order, newest first.
    pub entries: Vec<Arc<ObjectVersion>>,
    /// Common prefixes, in order.
    pub common_prefixes: Vec<String>,
    /// Where the next page starts (with the version to go on after), if there is one.
    pub next: Option<(ListAfter, Option<VersionId>)>,
}

/// An upload to be started.
#[derive(Debug, Clone)]
pub struct NewUpload {
    /// Its id.
    pub id: UploadId,
    /// Bucket.
    pub bucket: BucketId,
    /// Key.
    pub key: String,
    /// User name of the initiator, who will own the object.
    pub owner: String,
    /// Start time.
    pub now_ms: u64,
    /// Headers of the object to be.
    pub attributes: ObjectAttributes,
    /// Tags of the object to be.
    pub tags: Vec<Tag>,
    /// ACL of the object to be.
    pub acl: CannedAcl,
    /// Storage class of the object to be.
    pub class: Option<TierName>,
    /// Checksum algorithm and type, if the client chose one.
    pub checksum: Option<(ChecksumAlgorithm, ChecksumType)>,
}

/// An unfinished upload.
#[derive(Debug, Clone)]
pub struct Upload {
    /// As it was started.
    pub new: NewUpload,
    /// Name of its bucket.
    pub bucket_name: String,
}

/// An uploaded part whose chunks are durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// From 1 to 10,000.
    pub number: u16,
    /// The content that holds its bytes, one extent (UploadPartCopy writes the bytes anew).
    pub content: ContentId,
    /// Size.
    pub size_bytes: u64,
    /// MD5 of its bytes.
    pub md5: [u8; 16],
    /// Its checksum by the upload's algorithm, when there is one.
    pub checksum: Option<(ChecksumAlgorithm, Vec<u8>)>,
    /// When it was stored.
    pub last_modified_ms: u64,
}

/// A listing of uploads.
#[derive(Debug, Clone, Default)]
pub struct ListUploadsQuery {
    /// Only keys with this prefix.
    pub prefix: String,
    /// Groups keys up to the first occurrence after the prefix.
    pub delimiter: Option<String>,
    /// Where to go on, by key.
    pub after: ListAfter,
    /// With `ListAfter::Key`: go on within that key, after this upload.
    pub after_upload: Option<UploadId>,
    /// Most entries and common prefixes together.
    pub limit: u32,
}

/// A page of a listing of uploads.
#[derive(Debug, Clone, Default)]
pub struct ListUploadsPage {
    /// Uploads in order of key, then of id.
    pub entries: Vec<Arc<Upload>>,
    /// Common prefixes, in order.
    pub common_prefixes: Vec<String>,
    /// Where the next page starts, if there is one.
    pub next: Option<(ListAfter, Option<UploadId>)>,
}

/// A completion of a multipart upload, already checked against S3's rules by [`Part`]s that were read before.
#[derive(Debug, Clone)]
pub struct CompleteUpload {
    /// Bucket.
    pub bucket: BucketId,
    /// Key.
    pub key: String,
    /// Upload.
    pub upload: UploadId,
    /// Number and content of each part that makes the object, in order. The transaction checks that the stored parts still
    /// have these contents.
    pub parts: Vec<(u16, ContentId)>,
    /// The resulting content: a fresh id, the parts' extents, ETag, checksum.
    pub content: Content,
    /// The version id to use if the bucket has versioning on.
    pub version: VersionId,
    /// Time of the commit.
    pub now_ms: u64,
    /// Conditions.
    pub precondition: WritePrecondition,
    /// What is told of it, in the same transaction; `None`: nothing.
    pub event: Option<EventDraft>,
}

/// What a version is among those of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The latest one, and an object.
    Current,
    /// An older one, object or delete marker.
    Noncurrent,
    /// The latest one, and a delete marker.
    Marker {
        /// Whether its key has no other version.
        is_alone: bool,
    },
}

/// A version as far as rules about its age ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgedVersion {
    /// Key.
    pub key: String,
    /// Version.
    pub version: VersionId,
    /// As in [`ObjectVersion`].
    pub sequence: u64,
    /// What it is.
    pub standing: Standing,
    /// When it was committed.
    pub last_modified_ms: u64,
    /// When it became what it is: for a noncurrent version the commit of the one that took its place, else its own.
    pub since_ms: u64,
    /// Size; `None` for a delete marker.
    pub size_bytes: Option<u64>,
    /// Tags.
    pub tags: Vec<Tag>,
    /// Storage class.
    pub class: Option<TierName>,
}

impl AgedVersion {
    /// Its place in the order of age.
    pub fn position(&self) -> AgePosition {
        let sequence = if self.standing == Standing::Current { 0 } else { self.sequence };
        AgePosition { at_ms: self.since_ms, name: self.key.clone(), sequence }
    }
}

/// A place among versions or uploads in order of age; the default one is before all.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct AgePosition {
    /// The time that counts.
    pub at_ms: u64,
    /// Among those of one time: the key, or the id of the upload.
    pub name: String,
    /// Among noncurrent versions of one time and key.
    pub sequence: u64,
}

impl Upload {
    /// Its place in the order of age.
    pub fn position(&self) -> AgePosition {
        AgePosition { at_ms: self.new.now_ms, name: self.new.id.to_string(), sequence: 0 }
    }
}

/// Which versions, in order of age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgedKind {
    /// Those of [`Standing::Current`].
    Current,
    /// Those of [`Standing::Noncurrent`].
    Noncurrent,
    /// Those of [`Standing::Marker`].
    Markers,
}

/// A key of which something changed that a walk in order of age may have passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recheck {
    /// For [`super::MetadataStore::finish_rechecks`].
    pub id: u64,
    /// The latest version, and the older one that was changed; those that are still there.
    pub versions: Vec<AgedVersion>,
}

/// Chunks that nothing refers to any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reclaim {
    /// For [`super::MetadataStore::finish_reclaims`].
    pub id: u64,
    /// The chunks to delete. Empty for a content that lay in a tier: its pieces are on that tier's list when this is told.
    pub manifest: Manifest,
    /// A content that lay in a tier: its stub, the chunk [`u32::MAX`] of it, is to be deleted.
    pub stub: Option<ContentId>,
}

/// A user of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Unique name; also the canonical id that S3 shows as owner.
    pub name: String,
    /// May use the admin API and every bucket.
    pub admin: bool,
    /// A disabled user's keys are refused.
    pub enabled: bool,
    /// When the user was made.
    pub created_ms: u64,
}

/// An access key. Its secret is sealed (encrypted under the node's secret) and only opened to check a signature.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// The public half.
    pub access_key: String,
    /// The secret half, sealed.
    pub sealed_secret: Vec<u8>,
    /// The user it speaks for.
    pub user: User,
    /// A disabled key is refused.
    pub enabled: bool,
    /// What the operator noted.
    pub description: String,
    /// When it was made.
    pub created_ms: u64,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey")
            .field("access_key", &self.access_key)
            .field("user", &self.user.name)
            .field("enabled", &self.enabled)
            .finish_non_exhaustive()
    }
}
