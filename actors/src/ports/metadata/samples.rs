//! Buckets, objects and deletions with nothing special about them, for tests. What a test is about, it sets itself:
//! `NewObject { class, ..samples::object(bucket, "key") }`.

use std::sync::Arc;

use holdfast_protocol::{ContentId, Manifest, VersionId};

use super::{
    Bucket, BucketId, CannedAcl, Content, ContentPlace, ContentSource, DeleteRequest, ETag, MetadataError,
    MetadataStore, NewBucket, NewObject, ObjectAttributes, ReplicaEvidence, User, WritePrecondition,
};

/// Who owns them.
pub const OWNER: &str = "alice";

/// Makes a bucket, and its owner if nobody did before.
///
/// # Panics
/// When the store refuses.
pub async fn bucket(store: &dyn MetadataStore, name: &str) -> Arc<Bucket> {
    match store.create_user(User { name: OWNER.into(), admin: false, enabled: true, created_ms: 1 }).await {
        Ok(()) | Err(MetadataError::Exists("user")) => {}
        Err(error) => panic!("{error:?}"),
    }
    let new = NewBucket { name: name.into(), owner: OWNER.into(), acl: CannedAcl::Private, now_ms: 1 };
    store.create_bucket(new).await.expect("a bucket")
}

/// A content of its own chunks on the cluster's disks.
pub fn content(id: ContentId, size_bytes: u64) -> Content {
    Content {
        id,
        manifest: Manifest::single(id, size_bytes),
        etag: ETag { md5: [1; 16], parts: None },
        checksum: None,
        parts: vec![],
        place: ContentPlace::Cluster,
    }
}

/// An object with a content of its own, written long ago.
pub fn object(bucket: BucketId, key: &str) -> NewObject {
    NewObject {
        bucket,
        key: key.into(),
        version: VersionId::generate(1),
        now_ms: 1,
        owner: OWNER.into(),
        content: ContentSource::New(content(ContentId::generate(1), 4096)),
        attributes: ObjectAttributes::default(),
        tags: vec![],
        acl: CannedAcl::Private,
        class: None,
        precondition: WritePrecondition::default(),
        evidence: ReplicaEvidence::default(),
        event: None,
    }
}

/// The deletion of an object, or a marker over it, by its owner.
pub fn deletion(key: &str) -> DeleteRequest {
    DeleteRequest {
        key: key.into(),
        version: None,
        marker_version: VersionId::generate(1),
        owner: OWNER.into(),
        precondition: WritePrecondition::default(),
        only_if: None,
        event: None,
    }
}
