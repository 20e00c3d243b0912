//! [`SqlMetadataStore`]: the port, on a database that a [`Backend`] stands for.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_actors::ports::metadata::{
    AccessKey, Bucket, BucketConfigKind, BucketId, CannedAcl, ChangeRequest, CommitMove, Committed, CompleteUpload,
    DeleteRequest, Deleted, MetadataResult, MetadataStore, MoveEnd, MoveQueued, MoveRequest, Moved, NewBucket,
    NewObject, ObjectVersion, Tag, User, Versioning,
};
use holdfast_protocol::VersionId;
use tokio::sync::watch;

use super::locks::Epochs;
use super::versions::What;
use super::{Locks, Reader, Session, buckets, moves, reads, uploads, users, versions};

mod direct;
mod upkeep;

/// A database that runs verbs.
pub(in crate::metadata) trait Backend: Send + Sync + 'static {
    type Reads: Reader;
    type Tx: Session;

    fn reads(&self) -> &Self::Reads;

    /// Runs a verb in a transaction that holds `locks`, and answers when it is durable. A verb that fails has no
    /// effect; one that met another transaction may be run again. Dropping the future does not stop it.
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

    fn writes_stopped(&self) -> Option<String> {
        None
    }

    fn no_space(&self) -> Option<String> {
        None
    }

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

    /// Runs a verb on what it was given, as often as the backend has to.
    pub(super) fn run<A, T>(
        &self,
        locks: Locks,
        given: A,
        verb: impl for<'a> Fn(&'a mut B::Tx, Arc<A>) -> BoxFuture<'a, MetadataResult<T>> + Send + Sync + 'static,
    ) -> impl Future<Output = MetadataResult<T>> + Send
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
    {
        let given = Arc::new(given);
        self.backend.write(locks, move |tx| verb(tx, given.clone()))
    }

    /// Tells who publishes, if a verb that succeeded may have written something.
    fn tell_if<T>(&self, events: bool, result: MetadataResult<T>) -> MetadataResult<T> {
        if events && result.is_ok() {
            self.tell_written();
        }
        result
    }

    async fn change(&self, request: ChangeRequest, what: What) -> MetadataResult<VersionId> {
        // The bucket stays as it is, with the lifecycle rules that the change is noted for.
        let locks = Locks::none().key(request.bucket, &request.key).in_bucket(request.bucket);
        let events = request.event.is_some();
        let changed = self.run(locks, (request, what), |tx, given| {
            boxed(async move { versions::change(tx, &given.0, &given.1).await })
        });
        self.tell_if(events, changed.await)
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
        self.run(locks, bucket, |tx, bucket| boxed(async move { buckets::create(tx, &bucket).await })).await
    }

    async fn bucket(&self, name: &str) -> MetadataResult<Arc<Bucket>> {
        buckets::bucket(self.backend.reads(), name).await
    }

    async fn delete_bucket(&self, name: &str, id: BucketId) -> MetadataResult<()> {
        let locks = Locks::none().bucket_name(name);
        self.run(locks, name.to_owned(), move |tx, name| boxed(async move { buckets::delete(tx, &name, id).await }))
            .await
    }

    async fn set_bucket_config(
        &self,
        name: &str,
        id: BucketId,
        kind: BucketConfigKind,
        value: Option<String>,
    ) -> MetadataResult<()> {
        let locks = Locks::none().bucket_name(name);
        self.run(locks, (name.to_owned(), value), move |tx, given| {
            boxed(async move { buckets::set_config(tx, &given.0, id, kind, given.1.as_deref()).await })
        })
        .await
    }

    async fn set_versioning(&self, name: &str, id: BucketId, versioning: Versioning) -> MetadataResult<()> {
        let locks = Locks::none().bucket_name(name);
        self.run(locks, name.to_owned(), move |tx, name| {
            boxed(async move { buckets::set_versioning(tx, &name, id, versioning).await })
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

    async fn set_object_tags(&self, request: ChangeRequest, tags: Vec<Tag>) -> MetadataResult<VersionId> {
        self.change(request, What::Tags(tags)).await
    }

    async fn set_object_acl(&self, request: ChangeRequest, acl: CannedAcl) -> MetadataResult<VersionId> {
        self.change(request, What::Acl(acl)).await
    }

    async fn complete_upload(&self, completion: CompleteUpload) -> MetadataResult<Committed> {
        let locks = Locks::none()
            .upload(completion.upload)
            .key(completion.bucket, &completion.key)
            .content(completion.content.id)
            .in_bucket(completion.bucket);
        let events = completion.event.is_some();
        let completed = self.run(locks, completion, |tx, completion| {
            boxed(async move { uploads::complete(tx, CompleteUpload::clone(&completion)).await })
        });
        self.tell_if(events, completed.await)
    }

    async fn request_move(&self, request: MoveRequest) -> MetadataResult<MoveQueued> {
        let locks = Locks::none().key(request.bucket, &request.key).in_bucket(request.bucket);
        let events = request.event.is_some();
        let queued = self.run(locks, request, |tx, request| boxed(async move { moves::request(tx, &request).await }));
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
        let ended = self.run(locks, commit, |tx, commit| boxed(async move { moves::commit(tx, &commit).await }));
        self.tell_if(events, ended.await)
    }

    async fn create_user(&self, user: User) -> MetadataResult<()> {
        let locks = Locks::none().user(&user.name);
        self.run(locks, user, |tx, user| boxed(async move { users::create_user(tx, &user).await })).await
    }

    async fn user(&self, name: &str) -> MetadataResult<Arc<User>> {
        users::user(self.backend.reads(), name).await
    }

    async fn set_user_enabled(&self, name: &str, enabled: bool) -> MetadataResult<()> {
        self.run(Locks::none().user(name), name.to_owned(), move |tx, name| {
            boxed(async move { users::set_user_enabled(tx, &name, enabled).await })
        })
        .await
    }

    async fn delete_user(&self, name: &str) -> MetadataResult<()> {
        let locks = Locks::none().user(name);
        self.run(locks, name.to_owned(), |tx, name| boxed(async move { users::delete_user(tx, &name).await })).await
    }

    async fn create_key(&self, key: AccessKey) -> MetadataResult<()> {
        let locks = Locks::none().user(&key.user.name).access_key(&key.access_key);
        self.run(locks, key, |tx, key| boxed(async move { users::create_key(tx, &key).await })).await
    }

    async fn key(&self, access_key: &str) -> MetadataResult<Arc<AccessKey>> {
        users::key(self.backend.reads(), access_key).await
    }

    async fn set_key_enabled(&self, access_key: &str, enabled: bool) -> MetadataResult<()> {
        self.run(Locks::none().access_key(access_key), access_key.to_owned(), move |tx, access_key| {
            boxed(async move { users::set_key_enabled(tx, &access_key, enabled).await })
        })
        .await
    }

    async fn delete_key(&self, access_key: &str) -> MetadataResult<()> {
        self.run(Locks::none().access_key(access_key), access_key.to_owned(), |tx, access_key| {
            boxed(async move { users::delete_key(tx, &access_key).await })
        })
        .await
    }

    async fn ping(&self) -> MetadataResult<()> {
        self.backend.ping().await
    }

    fn writes_stopped(&self) -> Option<String> {
        self.backend.writes_stopped()
    }

    fn no_space(&self) -> Option<String> {
        self.backend.no_space()
    }

    async fn close(&self) {
        self.backend.close().await;
    }
}
