//! [`SqlMetadataStore`]: the port, on a database that a [`Backend`] stands for.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_actors::domain::events::EventDraft;
use holdfast_actors::ports::coordination::Fence;
use holdfast_actors::ports::metadata::{
    AccessKey, AgePosition, AgedKind, AgedVersion, Bucket, BucketConfigKind, BucketId, CannedAcl, CommitMove,
    Committed, CompleteUpload, DeleteRequest, Deleted, ListPage, ListQuery, ListUploadsPage, ListUploadsQuery,
    ListVersionsPage, ListVersionsQuery, MetadataResult, MetadataStore, MoveEnd, MoveQueued, MoveRequest, Moved,
    NewBucket, NewObject, NewUpload, ObjectVersion, Part, Recheck, Reclaim, Repair, ReplicaEvidence, Tag, Upload, User,
    Versioning,
};
use holdfast_protocol::{ChunkId, ClusterId, ContentId, Epoch, NodeId, ReclaimItem, ShardId, UploadId, VersionId};

use tokio::sync::watch;

use super::locks::Epochs;
use super::versions::{Change, What};
use super::{
    Locks, Reader, Session, buckets, fences, lifecycle, listing, moves, reads, reclaims, replicas, uploads, users,
    versions,
};

/// A database that runs verbs.
pub(in crate::metadata) trait Backend: Send + Sync + 'static {
    type Reads: Reader;
    type Tx: Session;

    fn reads(&self) -> &Self::Reads;

    /// Runs a verb in a transaction that holds `locks`, and answers when it is durable. A verb that fails has no effect; one
    /// that met another transaction may be run again. Dropping the future does not stop it.
    fn write<T, F>(&self, locks: Locks, run: F) -> impl Future<Output = MetadataResult<T>> + Send
    where
        T: Send + 'static,
        F: for<'a> Fn(&'a mut Self::Tx) -> BoxFuture<'a, MetadataResult<T>> + Send + Sync + 'static;

    /// `commit_object`: many of them share a transaction.
    fn put(&self, object: NewObject) -> impl Future<Output = MetadataResult<Committed>> + Send;

    /// `delete_objects`.
    fn delete(
        &self,
        bucket: BucketId,
        requests: Vec<DeleteRequest>,
        now_ms: u64,
    ) -> impl Future<Output = MetadataResult<Vec<MetadataResult<Deleted>>>> + Send;

    fn ping(&self) -> impl Future<Output = MetadataResult<()>> + Send;

    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// Metadata in an SQL database.
#[allow(private_bounds, reason = "the backends are this module's own")]
pub struct SqlMetadataStore<B: Backend> {
    pub(in crate::metadata) backend: B,
    /// Changes when something was written to the outbox.
    pub(in crate::metadata) written: watch::Sender<u64>,
}

#[allow(private_bounds, reason = "the backends are this module's own")]
impl<B: Backend> SqlMetadataStore<B> {
    pub(in crate::metadata) fn on(backend: B) -> Self {
        Self { backend, written: watch::Sender::new(0) }
    }

    pub(in crate::metadata) fn tell_written(&self) {
        self.written.send_modify(|written| *written = written.wrapping_add(1));
    }

    /// Tells who publishes, if a verb that succeeded may have written something.
    fn tell_if<T>(&self, events: bool, result: MetadataResult<T>) -> MetadataResult<T> {
        if events && result.is_ok() {
            self.tell_written();
        }
        result
    }
}

/// Lets an async block be run as a verb.
pub(in crate::metadata) fn boxed<'a, T>(
    future: impl Future<Output = MetadataResult<T>> + Send + 'a,
) -> BoxFuture<'a, MetadataResult<T>> {
    future.boxed()
}

#[async_trait]
impl<B: Backend> MetadataStore for SqlMetadataStore<B> {
    async fn create_bucket(&self, bucket: NewBucket) -> MetadataResult<Arc<Bucket>> {
        let locks = Locks::none().bucket_name(&bucket.name).user(&bucket.owner);
        self.backend.write(locks, move |tx| boxed(buckets::create(tx, bucket.clone()))).await
    }

    async fn bucket(&self, name: &str) -> MetadataResult<Arc<Bucket>> {
        buckets::bucket(self.backend.reads(), name).await
    }

    async fn list_buckets(
        &self,
        owner: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<Bucket>>> {
        buckets::list(self.backend.reads(), owner, after, limit).await
    }

    async fn delete_bucket(&self, name: &str) -> MetadataResult<()> {
        let (locks, name) = (Locks::none().bucket_name(name), name.to_owned());
        self.backend
            .write(locks, move |tx| {
                let name = name.clone();
                boxed(async move { buckets::delete(tx, &name).await })
            })
            .await
    }

    async fn set_bucket_config(&self, name: &str, kind: BucketConfigKind, value: Option<String>) -> MetadataResult<()> {
        let (locks, name) = (Locks::none().bucket_name(name), name.to_owned());
        self.backend
            .write(locks, move |tx| {
                let (name, value) = (name.clone(), value.clone());
                boxed(async move { buckets::set_config(tx, &name, kind, value.as_deref()).await })
            })
            .await
    }

    async fn set_versioning(&self, name: &str, versioning: Versioning) -> MetadataResult<()> {
        let (locks, name) = (Locks::none().bucket_name(name), name.to_owned());
        self.backend
            .write(locks, move |tx| {
                let name = name.clone();
                boxed(async move { buckets::set_versioning(tx, &name, versioning).await })
            })
            .await
    }

    async fn commit_object(&self, object: NewObject) -> MetadataResult<Committed> {
        let events = object.event.is_some();
        self.tell_if(events, self.backend.put(object).await)
    }

    async fn object(
        &self,
        bucket: BucketId,
        key: &str,
        version: Option<VersionId>,
    ) -> MetadataResult<Arc<ObjectVersion>> {
        reads::object(self.backend.reads(), bucket, key, version).await
    }

    async fn delete_objects(
        &self,
        bucket: BucketId,
        requests: Vec<DeleteRequest>,
        now_ms: u64,
    ) -> MetadataResult<Vec<MetadataResult<Deleted>>> {
        let events = requests.iter().any(|request| request.event.is_some());
        self.tell_if(events, self.backend.delete(bucket, requests, now_ms).await)
    }

    async fn set_object_tags(
        &self,
        bucket: BucketId,
        key: &str,
        version: Option<VersionId>,
        tags: Vec<Tag>,
        event: Option<EventDraft>,
        now_ms: u64,
    ) -> MetadataResult<VersionId> {
        self.change(bucket, key, version, Change { what: What::Tags(tags), event, now_ms }).await
    }

    async fn set_object_acl(
        &self,
        bucket: BucketId,
        key: &str,
        version: Option<VersionId>,
        acl: CannedAcl,
        event: Option<EventDraft>,
        now_ms: u64,
    ) -> MetadataResult<VersionId> {
        self.change(bucket, key, version, Change { what: What::Acl(acl), event, now_ms }).await
    }

    async fn list_objects(&self, bucket: BucketId, query: ListQuery) -> MetadataResult<ListPage> {
        listing::objects(self.backend.reads(), bucket, query).await
    }

    async fn list_versions(&self, bucket: BucketId, query: ListVersionsQuery) -> MetadataResult<ListVersionsPage> {
        listing::versions(self.backend.reads(), bucket, query).await
    }

    async fn create_upload(&self, upload: NewUpload) -> MetadataResult<()> {
        let locks = Locks::none().upload(upload.id).in_bucket(upload.bucket);
        self.backend
            .write(locks, move |tx| {
                let upload = upload.clone();
                boxed(async move { uploads::create(tx, &upload).await })
            })
            .await
    }

    async fn upload(&self, bucket: BucketId, key: &str, upload: UploadId) -> MetadataResult<Arc<Upload>> {
        uploads::upload(self.backend.reads(), bucket, key, upload).await
    }

    async fn put_part(
        &self,
        bucket: BucketId,
        key: &str,
        upload: UploadId,
        part: Part,
        evidence: ReplicaEvidence,
    ) -> MetadataResult<()> {
        let mut locks = Locks::none().upload(upload).content(part.content);
        if !evidence.epochs.is_empty() {
            locks = locks.epochs(Epochs::Held);
        }
        let owned = Arc::new((key.to_owned(), part, evidence));
        self.backend
            .write(locks, move |tx| {
                let owned = owned.clone();
                boxed(async move {
                    let (key, part, evidence) = &*owned;
                    uploads::put_part(tx, bucket, key, upload, part, evidence).await
                })
            })
            .await
    }

    async fn list_parts(&self, upload: UploadId, after: u16, limit: u32) -> MetadataResult<Vec<Part>> {
        uploads::parts(self.backend.reads(), upload, after, limit).await
    }

    async fn list_uploads(&self, bucket: BucketId, query: ListUploadsQuery) -> MetadataResult<ListUploadsPage> {
        listing::uploads(self.backend.reads(), bucket, query).await
    }

    async fn complete_upload(&self, completion: CompleteUpload) -> MetadataResult<Committed> {
        let locks = Locks::none()
            .upload(completion.upload)
            .key(completion.bucket, &completion.key)
            .content(completion.content.id)
            .in_bucket(completion.bucket);
        let events = completion.event.is_some();
        let completed = self.backend.write(locks, move |tx| boxed(uploads::complete(tx, completion.clone())));
        self.tell_if(events, completed.await)
    }

    async fn abort_upload(&self, bucket: BucketId, key: &str, upload: UploadId, now_ms: u64) -> MetadataResult<()> {
        let (locks, key) = (Locks::none().upload(upload), key.to_owned());
        self.backend
            .write(locks, move |tx| {
                let key = key.clone();
                boxed(async move { uploads::abort(tx, bucket, &key, upload, now_ms).await })
            })
            .await
    }

    async fn stale_uploads(&self, before_ms: u64, limit: u32) -> MetadataResult<Vec<Arc<Upload>>> {
        uploads::stale(self.backend.reads(), before_ms, limit).await
    }

    async fn expire_upload(&self, upload: UploadId, before_ms: u64, now_ms: u64) -> MetadataResult<bool> {
        let locks = Locks::none().upload(upload);
        self.backend.write(locks, move |tx| boxed(uploads::expire(tx, upload, before_ms, now_ms))).await
    }

    async fn aged_versions(
        &self,
        bucket: BucketId,
        kind: AgedKind,
        after: &AgePosition,
        until_ms: u64,
        limit: u32,
    ) -> MetadataResult<Vec<AgedVersion>> {
        lifecycle::versions(self.backend.reads(), bucket, kind, after, until_ms, limit).await
    }

    async fn surplus_versions(
        &self,
        bucket: BucketId,
        key: &str,
        keep: u32,
        after: u64,
        limit: u32,
    ) -> MetadataResult<Vec<AgedVersion>> {
        lifecycle::surplus(self.backend.reads(), bucket, key, keep, after, limit).await
    }

    async fn aged_uploads(
        &self,
        bucket: BucketId,
        after: &AgePosition,
        until_ms: u64,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<Upload>>> {
        uploads::aged(self.backend.reads(), bucket, after, until_ms, limit).await
    }

    async fn lifecycle_cursors(&self, bucket: BucketId, generation: u64) -> MetadataResult<Vec<(String, AgePosition)>> {
        lifecycle::cursors(self.backend.reads(), bucket, generation).await
    }

    async fn save_lifecycle_cursor(
        &self,
        bucket: BucketId,
        generation: u64,
        stream: &str,
        at: &AgePosition,
        fence: Option<&Fence>,
    ) -> MetadataResult<()> {
        let (locks, fence) = (Locks::none().fence(fence), fence.cloned());
        let owned = Arc::new((stream.to_owned(), at.clone()));
        self.backend
            .write(locks, move |tx| {
                let (owned, fence) = (owned.clone(), fence.clone());
                boxed(async move {
                    fences::check(tx, fence.as_ref()).await?;
                    lifecycle::save_cursor(tx, bucket, generation, &owned.0, &owned.1).await
                })
            })
            .await
    }

    async fn rechecks(&self, bucket: BucketId, limit: u32) -> MetadataResult<Vec<Recheck>> {
        lifecycle::rechecks(self.backend.reads(), bucket, limit).await
    }

    async fn finish_rechecks(&self, ids: &[u64], fence: Option<&Fence>) -> MetadataResult<()> {
        let (locks, fence) = (Locks::none().fence(fence), fence.cloned());
        let ids: Arc<[u64]> = ids.into();
        self.backend
            .write(locks, move |tx| {
                let (ids, fence) = (ids.clone(), fence.clone());
                boxed(async move {
                    fences::check(tx, fence.as_ref()).await?;
                    lifecycle::finish_rechecks(tx, &ids).await
                })
            })
            .await
    }

    async fn request_move(&self, request: MoveRequest) -> MetadataResult<MoveQueued> {
        let locks = Locks::none().key(request.bucket, &request.key).in_bucket(request.bucket);
        let events = request.event.is_some();
        let request = Arc::new(request);
        let queued = self.backend.write(locks, move |tx| {
            let request = request.clone();
            boxed(async move { moves::request(tx, &request).await })
        });
        self.tell_if(events, queued.await)
    }

    async fn commit_move(&self, commit: CommitMove) -> MetadataResult<MoveEnd> {
        let mut locks = Locks::none().key(commit.bucket, &commit.key).in_bucket(commit.bucket);
        if let Moved::To { content, evidence } = &commit.moved {
            locks = locks.content(content.id);
            if !evidence.epochs.is_empty() {
                locks = locks.epochs(Epochs::Held);
            }
        }
        let events = commit.event.is_some();
        let commit = Arc::new(commit);
        let ended = self.backend.write(locks, move |tx| {
            let commit = commit.clone();
            boxed(async move { moves::commit(tx, &commit).await })
        });
        self.tell_if(events, ended.await)
    }

    async fn due_reclaims(&self, before_ms: u64, limit: u32, fence: Option<&Fence>) -> MetadataResult<Vec<Reclaim>> {
        let (locks, fence) = (Locks::none().reclaims().fence(fence), fence.cloned());
        self.backend
            .write(locks, move |tx| {
                let fence = fence.clone();
                boxed(async move {
                    fences::check(tx, fence.as_ref()).await?;
                    reclaims::due(tx, before_ms, limit).await
                })
            })
            .await
    }

    async fn waiting_reclaims(&self, before_ms: u64, limit: u32) -> MetadataResult<Vec<ReclaimItem>> {
        reclaims::waiting(self.backend.reads(), before_ms, limit).await
    }

    async fn claim_reclaims(&self, items: &[ReclaimItem], before_ms: u64) -> MetadataResult<Vec<Reclaim>> {
        let items: Arc<[ReclaimItem]> = items.into();
        self.backend
            .write(Locks::none().reclaims(), move |tx| {
                let items = items.clone();
                boxed(async move { reclaims::claim(tx, &items, before_ms).await })
            })
            .await
    }

    async fn finish_reclaims(&self, ids: &[u64], fence: Option<&Fence>) -> MetadataResult<()> {
        let (locks, fence) = (Locks::none().reclaims().fence(fence), fence.cloned());
        let ids: Arc<[u64]> = ids.into();
        self.backend
            .write(locks, move |tx| {
                let (ids, fence) = (ids.clone(), fence.clone());
                boxed(async move {
                    fences::check(tx, fence.as_ref()).await?;
                    reclaims::finish(tx, &ids).await
                })
            })
            .await
    }

    async fn known_contents(&self, contents: &[ContentId]) -> MetadataResult<Vec<ContentId>> {
        let mut known = reclaims::known(self.backend.reads(), contents).await?;
        let unknown: Arc<[ContentId]> = contents.iter().copied().filter(|content| !known.contains(content)).collect();
        // Whoever asks deletes what is not known. The second question waits for every commit that is under way: SQLite's
        // writer answers it behind them, and not at all after one of unknown outcome; a server has them locked.
        if !unknown.is_empty() {
            let locks = Locks::none().contents(&unknown);
            let late = self.backend.write(locks, move |tx| {
                let unknown = unknown.clone();
                boxed(async move { reclaims::known_to_writer(tx, &unknown).await })
            });
            known.extend(late.await?);
        }
        Ok(known)
    }

    async fn condemn(&self, contents: &[ContentId], now_ms: u64) -> MetadataResult<Vec<ContentId>> {
        let (locks, contents): (_, Arc<[ContentId]>) = (Locks::none().contents(contents), contents.into());
        self.backend
            .write(locks, move |tx| {
                let contents = contents.clone();
                boxed(async move { replicas::condemn(tx, &contents, now_ms).await })
            })
            .await
    }

    async fn forget_condemned(&self, before_ms: u64, limit: u32) -> MetadataResult<u64> {
        self.backend.write(Locks::none(), move |tx| boxed(replicas::forget_condemned(tx, before_ms, limit))).await
    }

    async fn claim(&self, cluster: Option<ClusterId>) -> MetadataResult<Option<ClusterId>> {
        if let Some(cluster) = cluster {
            self.backend.write(Locks::none(), move |tx| boxed(replicas::claim(tx, cluster))).await?;
        }
        replicas::claimant(self.backend.reads()).await
    }

    async fn raise_epochs(&self, epochs: &[(ShardId, Epoch)]) -> MetadataResult<()> {
        let (locks, epochs): (_, Arc<[_]>) = (Locks::none().epochs(Epochs::Raised), epochs.into());
        self.backend
            .write(locks, move |tx| {
                let epochs = epochs.clone();
                boxed(async move { replicas::raise_epochs(tx, &epochs).await })
            })
            .await
    }

    async fn queue_repairs(&self, repairs: &[(ChunkId, NodeId)], now_ms: u64) -> MetadataResult<()> {
        let repairs: Arc<[_]> = repairs.iter().map(|(chunk, node)| (*chunk, *node, now_ms)).collect();
        self.backend
            .write(Locks::none(), move |tx| {
                let repairs = repairs.clone();
                boxed(async move { replicas::queue_repairs(tx, &repairs).await })
            })
            .await
    }

    async fn repairs(&self, node: NodeId, after: u64, limit: u32) -> MetadataResult<Vec<Repair>> {
        replicas::repairs(self.backend.reads(), node, after, limit).await
    }

    async fn finish_repairs(&self, repairs: &[Repair]) -> MetadataResult<()> {
        let repairs: Arc<[Repair]> = repairs.into();
        self.backend
            .write(Locks::none(), move |tx| {
                let repairs = repairs.clone();
                boxed(async move { replicas::finish_repairs(tx, &repairs).await })
            })
            .await
    }

    async fn repair_backlog(&self) -> MetadataResult<Vec<(NodeId, u64)>> {
        replicas::repair_backlog(self.backend.reads()).await
    }

    async fn create_user(&self, user: User) -> MetadataResult<()> {
        let locks = Locks::none().user(&user.name);
        self.backend
            .write(locks, move |tx| {
                let user = user.clone();
                boxed(async move { users::create_user(tx, &user).await })
            })
            .await
    }

    async fn user(&self, name: &str) -> MetadataResult<Arc<User>> {
        users::user(self.backend.reads(), name).await
    }

    async fn list_users(&self, after: Option<&str>, limit: u32) -> MetadataResult<Vec<Arc<User>>> {
        users::list_users(self.backend.reads(), after, limit).await
    }

    async fn set_user_enabled(&self, name: &str, enabled: bool) -> MetadataResult<()> {
        let (locks, name) = (Locks::none().user(name), name.to_owned());
        self.backend
            .write(locks, move |tx| {
                let name = name.clone();
                boxed(async move { users::set_user_enabled(tx, &name, enabled).await })
            })
            .await
    }

    async fn delete_user(&self, name: &str) -> MetadataResult<()> {
        let (locks, name) = (Locks::none().user(name), name.to_owned());
        self.backend
            .write(locks, move |tx| {
                let name = name.clone();
                boxed(async move { users::delete_user(tx, &name).await })
            })
            .await
    }

    async fn create_key(&self, key: AccessKey) -> MetadataResult<()> {
        let locks = Locks::none().user(&key.user.name).access_key(&key.access_key);
        self.backend
            .write(locks, move |tx| {
                let key = key.clone();
                boxed(async move { users::create_key(tx, &key).await })
            })
            .await
    }

    async fn key(&self, access_key: &str) -> MetadataResult<Arc<AccessKey>> {
        users::key(self.backend.reads(), access_key).await
    }

    async fn list_keys(
        &self,
        user: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<AccessKey>>> {
        users::list_keys(self.backend.reads(), user, after, limit).await
    }

    async fn set_key_enabled(&self, access_key: &str, enabled: bool) -> MetadataResult<()> {
        let (locks, access_key) = (Locks::none().access_key(access_key), access_key.to_owned());
        self.backend
            .write(locks, move |tx| {
                let access_key = access_key.clone();
                boxed(async move { users::set_key_enabled(tx, &access_key, enabled).await })
            })
            .await
    }

    async fn delete_key(&self, access_key: &str) -> MetadataResult<()> {
        let (locks, access_key) = (Locks::none().access_key(access_key), access_key.to_owned());
        self.backend
            .write(locks, move |tx| {
                let access_key = access_key.clone();
                boxed(async move { users::delete_key(tx, &access_key).await })
            })
            .await
    }

    async fn ping(&self) -> MetadataResult<()> {
        self.backend.ping().await
    }

    async fn close(&self) {
        self.backend.close().await;
    }
}

#[allow(private_bounds, reason = "the backends are this module's own")]
impl<B: Backend> SqlMetadataStore<B> {
    async fn change(
        &self,
        bucket: BucketId,
        key: &str,
        version: Option<VersionId>,
        change: Change,
    ) -> MetadataResult<VersionId> {
        // The bucket stays as it is, with the lifecycle rules that the change is noted for.
        let locks = Locks::none().key(bucket, key).in_bucket(bucket);
        let events = change.event.is_some();
        let owned = Arc::new((key.to_owned(), change));
        let changed = self.backend.write(locks, move |tx| {
            let owned = owned.clone();
            boxed(async move { versions::change(tx, bucket, &owned.0, version, &owned.1).await })
        });
        self.tell_if(events, changed.await)
    }
}
