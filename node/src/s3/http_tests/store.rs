//! A metadata store that holds buckets, keys, users and the facts about objects that access decisions need.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use holdfast_actors::ports::coordination::Fence;
use holdfast_actors::ports::metadata::*;
use holdfast_actors::ports::{MetadataError, MetadataStore};
use holdfast_protocol::{
    ChunkId, ClusterId, ContentId, Epoch, Extent, Manifest, NodeId, ReclaimItem, ShardId, UploadId, VersionId,
};
use parking_lot::Mutex;

#[derive(Default)]
pub struct TestStore {
    pub buckets: Mutex<HashMap<String, Arc<Bucket>>>,
    pub objects: Mutex<HashMap<(BucketId, String), Arc<ObjectVersion>>>,
    pub keys: Mutex<HashMap<String, Arc<AccessKey>>>,
    /// What takes the place of the bucket of its name, once that was read.
    pub replacing: Mutex<Option<Arc<Bucket>>>,
    /// What overwrites the next object that is read, once it was read.
    pub overwriting: Mutex<Option<Arc<ObjectVersion>>>,
    /// What overwrites the next object whose tags or ACL are set, just before.
    pub overtaking: Mutex<Option<Arc<ObjectVersion>>>,
    /// What the next request for a move is answered.
    pub queued: Mutex<Option<MoveQueued>>,
    /// The moves that were asked for.
    pub moves: Mutex<Vec<MoveRequest>>,
}

impl TestStore {
    pub fn add_bucket(&self, name: &str, owner: &str) {
        let mut buckets = self.buckets.lock();
        let bucket = Bucket {
            id: BucketId(buckets.len() as u64 + 1),
            name: name.into(),
            owner: owner.into(),
            created_ms: 0,
            versioning: Versioning::Unversioned,
            configs: Vec::new(),
            revision: 1,
        };
        buckets.insert(name.into(), Arc::new(bucket));
    }

    pub fn add_object(&self, bucket: &str, key: &str, acl: CannedAcl, tags: &[(&str, &str)]) {
        self.add_object_of(bucket, key, ContentId([0; 12]), Manifest::default(), ContentPlace::Cluster, acl, tags);
    }

    /// An object of Ann's in her bucket, whose bytes are somewhere.
    pub fn add_photo(&self, key: &str, id: ContentId, size_bytes: u64, place: ContentPlace) {
        let manifest = Manifest { extents: vec![Extent { content: id, size_bytes }] };
        self.add_object_of("photos", key, id, manifest, place, CannedAcl::Private, &[]);
    }

    #[allow(clippy::too_many_arguments, reason = "a test")]
    fn add_object_of(
        &self,
        bucket: &str,
        key: &str,
        id: ContentId,
        manifest: Manifest,
        place: ContentPlace,
        acl: CannedAcl,
        tags: &[(&str, &str)],
    ) {
        let bucket = Arc::clone(&self.buckets.lock()[bucket]);
        let etag = ETag { md5: [0; 16], parts: None };
        let content = Arc::new(Content { id, manifest, place, etag, checksum: None, parts: Vec::new() });
        let object = ObjectVersion {
            bucket: bucket.id,
            key: key.into(),
            version: VersionId::NULL,
            sequence: 1,
            is_latest: true,
            last_modified_ms: 0,
            owner: bucket.owner.clone(),
            content: Some(content),
            attributes: ObjectAttributes::default(),
            tags: tags.iter().map(|(k, v)| Tag { key: (*k).into(), value: (*v).into() }).collect(),
            acl,
            class: None,
            restore: None,
        };
        self.objects.lock().insert((bucket.id, key.into()), Arc::new(object));
    }

    pub fn add_key(&self, access_key: &str, secret: &str, user: &str, admin: bool) {
        let key = AccessKey {
            access_key: access_key.into(),
            sealed_secret: secret.bytes().rev().collect(),
            user: User { name: user.into(), admin, enabled: true, created_ms: 0 },
            enabled: true,
            description: String::new(),
            created_ms: 0,
        };
        self.keys.lock().insert(access_key.into(), Arc::new(key));
    }

    fn change(&self, request: ChangeRequest, change: impl FnOnce(&mut ObjectVersion)) -> MetadataResult<VersionId> {
        let at = (request.bucket, request.key);
        let mut objects = self.objects.lock();
        if let Some(next) = self.overtaking.lock().take() {
            objects.insert(at.clone(), next);
        }
        let mut object = (**objects.get(&at).ok_or(MetadataError::NoSuchKey)?).clone();
        if request.only_if.is_some_and(|only_if| is_other(&only_if, &object)) {
            return Err(MetadataError::PreconditionFailed);
        }
        change(&mut object);
        objects.insert(at, Arc::new(object));
        Ok(VersionId::NULL)
    }

    pub fn change_key(&self, access_key: &str, change: impl FnOnce(&mut AccessKey)) {
        let mut keys = self.keys.lock();
        let mut key = (*keys[access_key]).clone();
        change(&mut key);
        keys.insert(access_key.into(), Arc::new(key));
    }
}

/// Whether an object is not the one that was judged.
fn is_other(only_if: &OnlyIf, object: &ObjectVersion) -> bool {
    let noncurrent = only_if.noncurrent.as_ref();
    object.sequence != only_if.sequence || noncurrent.is_some_and(|noncurrent| noncurrent.tags != object.tags)
}

/// What these tests never ask for.
fn not_here<T>() -> MetadataResult<T> {
    Err(MetadataError::Unavailable("not in this store".into()))
}

#[async_trait]
impl MetadataStore for TestStore {
    async fn create_bucket(&self, bucket: NewBucket) -> MetadataResult<Arc<Bucket>> {
        self.add_bucket(&bucket.name, &bucket.owner);
        self.bucket(&bucket.name).await
    }
    async fn bucket(&self, name: &str) -> MetadataResult<Arc<Bucket>> {
        let mut buckets = self.buckets.lock();
        let bucket = buckets.get(name).cloned().ok_or(MetadataError::NoSuchBucket);
        if let Some(next) = self.replacing.lock().take_if(|next| next.name == name) {
            buckets.insert(name.to_owned(), next);
        }
        bucket
    }
    async fn delete_bucket(&self, name: &str, id: BucketId) -> MetadataResult<()> {
        let mut buckets = self.buckets.lock();
        buckets.get(name).filter(|bucket| bucket.id == id).ok_or(MetadataError::NoSuchBucket)?;
        buckets.remove(name);
        Ok(())
    }
    async fn set_bucket_config(
        &self,
        name: &str,
        id: BucketId,
        kind: BucketConfigKind,
        value: Option<String>,
    ) -> MetadataResult<()> {
        let mut buckets = self.buckets.lock();
        let found = buckets.get(name).filter(|bucket| bucket.id == id).ok_or(MetadataError::NoSuchBucket)?;
        let mut bucket = Bucket::clone(found);
        bucket.configs.retain(|(k, _)| *k != kind);
        bucket.configs.extend(value.map(|value| (kind, value)));
        bucket.revision += 1;
        buckets.insert(name.into(), Arc::new(bucket));
        Ok(())
    }
    async fn set_versioning(&self, _: &str, _: BucketId, _: Versioning) -> MetadataResult<()> {
        not_here()
    }
    async fn commit_object(&self, _: NewObject) -> MetadataResult<Committed> {
        not_here()
    }
    async fn object(&self, bucket: BucketId, key: &str, _: Option<VersionId>) -> MetadataResult<Arc<ObjectVersion>> {
        let at = (bucket, key.to_owned());
        let mut objects = self.objects.lock();
        let object = objects.get(&at).cloned().ok_or(MetadataError::NoSuchKey);
        if let Some(next) = self.overwriting.lock().take() {
            objects.insert(at, next);
        }
        object
    }
    async fn request_move(&self, request: MoveRequest) -> MetadataResult<MoveQueued> {
        self.moves.lock().push(request);
        self.queued.lock().take().ok_or(MetadataError::NotCold)
    }
    async fn commit_move(&self, _: CommitMove) -> MetadataResult<MoveEnd> {
        not_here()
    }
    async fn delete_objects(
        &self,
        bucket: BucketId,
        requests: Vec<DeleteRequest>,
        _: u64,
    ) -> MetadataResult<Vec<MetadataResult<Deleted>>> {
        let mut objects = self.objects.lock();
        let mut delete = |request: DeleteRequest| {
            let at = (bucket, request.key);
            let object = objects.get(&at);
            let is_refused = |only_if: &OnlyIf| object.is_none_or(|object| is_other(only_if, object));
            let etag = object.and_then(|object| object.content.as_ref()).map(|content| content.etag);
            let is_unwanted = request.precondition.must_match.flatten().is_some_and(|wanted| Some(wanted) != etag);
            if request.only_if.as_ref().is_some_and(is_refused) || is_unwanted {
                return Err(MetadataError::PreconditionFailed);
            }
            objects.remove(&at);
            Ok(Deleted { version: None, delete_marker: false })
        };
        Ok(requests.into_iter().map(&mut delete).collect())
    }
    async fn set_object_tags(&self, request: ChangeRequest, tags: Vec<Tag>) -> MetadataResult<VersionId> {
        self.change(request, |object| object.tags = tags)
    }
    async fn set_object_acl(&self, request: ChangeRequest, acl: CannedAcl) -> MetadataResult<VersionId> {
        self.change(request, |object| object.acl = acl)
    }
    async fn complete_upload(&self, _: CompleteUpload) -> MetadataResult<Committed> {
        not_here()
    }
    async fn create_user(&self, _: User) -> MetadataResult<()> {
        not_here()
    }
    async fn user(&self, name: &str) -> MetadataResult<Arc<User>> {
        let keys = self.keys.lock();
        let key = keys.values().find(|k| k.user.name == name).ok_or(MetadataError::NotFound("user"))?;
        Ok(Arc::new(key.user.clone()))
    }
    async fn set_user_enabled(&self, _: &str, _: bool) -> MetadataResult<()> {
        not_here()
    }
    async fn delete_user(&self, _: &str) -> MetadataResult<()> {
        not_here()
    }
    async fn create_key(&self, _: AccessKey) -> MetadataResult<()> {
        not_here()
    }
    async fn key(&self, access_key: &str) -> MetadataResult<Arc<AccessKey>> {
        self.keys.lock().get(access_key).cloned().ok_or(MetadataError::NotFound("access key"))
    }
    async fn set_key_enabled(&self, _: &str, _: bool) -> MetadataResult<()> {
        not_here()
    }
    async fn delete_key(&self, _: &str) -> MetadataResult<()> {
        not_here()
    }
    async fn ping(&self) -> MetadataResult<()> {
        Ok(())
    }
    async fn close(&self) {}
}

#[async_trait]
impl MetadataDirect for TestStore {
    async fn list_buckets(&self, _: Option<&str>, _: Option<&str>, _: u32) -> MetadataResult<Vec<Arc<Bucket>>> {
        not_here()
    }
    async fn list_bucket_entries(&self, _: Option<&str>, _: Option<&str>, _: u32) -> MetadataResult<Vec<BucketEntry>> {
        not_here()
    }
    async fn list_objects(&self, _: BucketId, _: ListQuery) -> MetadataResult<ListPage> {
        not_here()
    }
    async fn list_versions(&self, _: BucketId, _: ListVersionsQuery) -> MetadataResult<ListVersionsPage> {
        not_here()
    }
    async fn list_users(&self, _: Option<&str>, _: u32) -> MetadataResult<Vec<Arc<User>>> {
        not_here()
    }
    async fn list_keys(&self, _: Option<&str>, _: Option<&str>, _: u32) -> MetadataResult<Vec<Arc<AccessKey>>> {
        not_here()
    }
    async fn create_upload(&self, _: NewUpload) -> MetadataResult<()> {
        not_here()
    }
    async fn upload(&self, _: BucketId, _: &str, _: UploadId) -> MetadataResult<Arc<Upload>> {
        not_here()
    }
    async fn put_part(&self, _: BucketId, _: &str, _: UploadId, _: Part, _: ReplicaEvidence) -> MetadataResult<()> {
        not_here()
    }
    async fn list_parts(&self, _: UploadId, _: u16, _: u32) -> MetadataResult<Vec<Part>> {
        not_here()
    }
    async fn list_uploads(&self, _: BucketId, _: ListUploadsQuery) -> MetadataResult<ListUploadsPage> {
        not_here()
    }
    async fn abort_upload(&self, _: BucketId, _: &str, _: UploadId, _: u64) -> MetadataResult<()> {
        not_here()
    }
    async fn content_holder(&self, _: ContentId) -> MetadataResult<Option<ContentHolder>> {
        not_here()
    }
}

#[async_trait]
impl MetadataUpkeep for TestStore {
    async fn stale_uploads(&self, _: u64, _: u32) -> MetadataResult<Vec<Arc<Upload>>> {
        not_here()
    }

    async fn expire_upload(&self, _: UploadId, _: u64, _: u64) -> MetadataResult<bool> {
        not_here()
    }

    async fn aged_versions(
        &self,
        _: BucketId,
        _: AgedKind,
        _: &AgePosition,
        _: u64,
        _: u32,
    ) -> MetadataResult<Vec<AgedVersion>> {
        not_here()
    }

    async fn surplus_versions(&self, _: BucketId, _: &str, _: u32, _: u64, _: u32) -> MetadataResult<Vec<AgedVersion>> {
        not_here()
    }

    async fn aged_uploads(&self, _: BucketId, _: &AgePosition, _: u64, _: u32) -> MetadataResult<Vec<Arc<Upload>>> {
        not_here()
    }

    async fn lifecycle_cursors(&self, _: BucketId, _: u64) -> MetadataResult<Vec<(String, AgePosition)>> {
        not_here()
    }

    async fn save_lifecycle_cursor(
        &self,
        _: BucketId,
        _: u64,
        _: &str,
        _: &AgePosition,
        _: Option<&Fence>,
    ) -> MetadataResult<()> {
        not_here()
    }

    async fn rechecks(&self, _: BucketId, _: u32) -> MetadataResult<Vec<Recheck>> {
        not_here()
    }

    async fn finish_rechecks(&self, _: &[u64], _: Option<&Fence>) -> MetadataResult<()> {
        not_here()
    }

    async fn due_reclaims(&self, _: u64, _: u32, _: Option<&Fence>) -> MetadataResult<Vec<Reclaim>> {
        not_here()
    }

    async fn waiting_reclaims(&self, _: u64, _: u32) -> MetadataResult<Vec<ReclaimItem>> {
        not_here()
    }

    async fn claim_reclaims(&self, _: &[ReclaimItem], _: u64) -> MetadataResult<Vec<Reclaim>> {
        not_here()
    }

    async fn finish_reclaims(&self, _: &[ReclaimItem], _: Option<&Fence>) -> MetadataResult<()> {
        not_here()
    }

    async fn known_contents(&self, _: &[ContentId]) -> MetadataResult<Vec<ContentId>> {
        not_here()
    }

    async fn condemn(&self, _: &[ContentId], _: u64) -> MetadataResult<Vec<ContentId>> {
        not_here()
    }

    async fn condemned(&self, _: u64, _: u32) -> MetadataResult<Vec<Condemned>> {
        not_here()
    }

    async fn forget_condemned(&self, _: &[Condemned]) -> MetadataResult<()> {
        not_here()
    }

    async fn claim(&self, _: Option<ClusterId>) -> MetadataResult<Option<ClusterId>> {
        not_here()
    }

    async fn disclaim(&self) -> MetadataResult<()> {
        not_here()
    }

    async fn raise_epochs(&self, _: &[(ShardId, Epoch)]) -> MetadataResult<Vec<(ShardId, Epoch)>> {
        not_here()
    }

    async fn queue_repairs(&self, _: &[(ChunkId, NodeId)], _: u64) -> MetadataResult<()> {
        not_here()
    }

    async fn repairs(&self, _: NodeId, _: u64, _: u32) -> MetadataResult<Vec<Repair>> {
        not_here()
    }

    async fn finish_repairs(&self, _: &[Repair]) -> MetadataResult<()> {
        not_here()
    }

    async fn repair_backlog(&self) -> MetadataResult<Vec<(NodeId, u64)>> {
        not_here()
    }

    async fn repairs_waiting(&self, _: NodeId) -> MetadataResult<u64> {
        not_here()
    }

    async fn lost_commits(&self) -> MetadataResult<bool> {
        not_here()
    }

    async fn forget_lost_commits(&self) -> MetadataResult<()> {
        not_here()
    }

    async fn note_walked(&self, _: NodeId, _: bool, _: &[NodeId]) -> MetadataResult<Vec<NodeId>> {
        not_here()
    }
}
