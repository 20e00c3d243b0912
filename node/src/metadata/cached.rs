//! [`CachedMetadataStore`]: a decorator that keeps in memory what every request asks for: latest versions of objects,
//! buckets and access keys.
//!
//! It is coherent as long as all writes to the store go through it (promise D2): see [`coherent`](self). What belongs
//! to the protocol between cache and store:
//! * A write marks its keys first and is driven to its end even if its caller goes away, so that a mark is never
//!   released while the store may still change the value.
//! * An outcome that is unknown may still come true later (a commit on its way to a server): its keys stay uncached for
//!   [`UNKNOWN_QUARANTINE`].
//! * A write that is not answered in time is `Unknown` to its caller, goes on, and keeps its mark until it has ended.
//! * Errors are not cached, nor that something does not exist.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use holdfast_actors::ports::metadata::{
    AccessKey, Bucket, BucketConfigKind, BucketId, CannedAcl, ChangeRequest, CommitMove, Committed, CompleteUpload,
    Decorator, DeleteRequest, Deleted, MetadataError, MetadataResult, MetadataStore, MoveEnd, MoveQueued, MoveRequest,
    NewBucket, NewObject, ObjectVersion, Tag, User, Versioning,
};
use holdfast_protocol::VersionId;

use super::caching::{RunToEnd, UNKNOWN_QUARANTINE, object_key};

mod coherent;
mod values;

use coherent::{Cacheable, Coherent, WriteMark};

/// Stripes of the cache of objects: with 64 writers one in sixteen meets another by chance, and loses a fill, no more.
const OBJECT_STRIPES: usize = 1024;

/// How long a write is waited for: the database's disk may hang without a word, and who waits holds a place for
/// requests.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// Bounds of a [`CachedMetadataStore`].
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// Latest versions of objects.
    pub objects_bytes: u64,
    /// Buckets with their configuration.
    pub buckets_bytes: u64,
    /// Access keys.
    pub keys_bytes: u64,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self { objects_bytes: 32 << 20, buckets_bytes: 4 << 20, keys_bytes: 4 << 20 }
    }
}

/// A store with a coherent cache before it.
pub struct CachedMetadataStore<S: ?Sized> {
    inner: Arc<S>,
    objects: Arc<Coherent<ObjectVersion>>,
    buckets: Arc<Coherent<Bucket>>,
    keys: Arc<Coherent<AccessKey>>,
}

impl<S: MetadataStore + ?Sized> CachedMetadataStore<S> {
    /// Decorates a store that nobody else writes to.
    pub fn new(inner: Arc<S>, options: &CacheOptions) -> Self {
        Self {
            inner,
            objects: Coherent::new("objects", options.objects_bytes, OBJECT_STRIPES),
            buckets: Coherent::new("buckets", options.buckets_bytes, 64),
            keys: Coherent::new("keys", options.keys_bytes, 64),
        }
    }

    /// Runs a write under its mark. `through` takes the written value out of the answer, to be cached.
    async fn write<V, T, F, W>(
        &self,
        mark: WriteMark<V>,
        through: fn(&T) -> Option<&Arc<V>>,
        write: W,
    ) -> MetadataResult<T>
    where
        V: Cacheable,
        T: Send + 'static,
        W: FnOnce(Arc<S>) -> F,
        F: Future<Output = MetadataResult<T>> + Send + 'static,
    {
        let write = write(Arc::clone(&self.inner));
        let written = RunToEnd::new(async move {
            let result = write.await;
            match &result {
                Ok(answer) => {
                    if let Some(value) = through(answer) {
                        mark.finish(value);
                    }
                }
                Err(MetadataError::Unknown(_)) => {
                    tokio::spawn(async move {
                        tokio::time::sleep(UNKNOWN_QUARANTINE).await;
                        drop(mark);
                    });
                }
                Err(_) => drop(mark),
            }
            result
        });
        // The mark stays for as long as the write may still change the value.
        written
            .within(ANSWER_MAX)
            .await
            .unwrap_or_else(|| Err(MetadataError::Unknown("the metadata database did not answer in time".to_owned())))
    }
}

fn nothing<T, V>(_: &T) -> Option<&Arc<V>> {
    None
}

fn written(committed: &Committed) -> Option<&Arc<ObjectVersion>> {
    Some(&committed.object)
}

impl<S: MetadataStore + ?Sized> Decorator for CachedMetadataStore<S> {
    type Inner = S;

    fn inner(&self) -> &S {
        &self.inner
    }
}

#[async_trait]
impl<S: MetadataStore + ?Sized> MetadataStore for CachedMetadataStore<S> {
    async fn create_bucket(&self, bucket: NewBucket) -> MetadataResult<Arc<Bucket>> {
        let mark = self.buckets.mark([bucket.name.clone().into_bytes()]);
        self.write(mark, |bucket| Some(bucket), |inner| async move { inner.create_bucket(bucket).await }).await
    }

    async fn bucket(&self, name: &str) -> MetadataResult<Arc<Bucket>> {
        if let Some(found) = self.buckets.get(name.as_bytes()) {
            return Ok(found);
        }
        let (inner, owned) = (Arc::clone(&self.inner), name.to_owned());
        let load = move || async move { inner.bucket(&owned).await }.boxed();
        self.buckets.get_or_load(name.as_bytes().to_vec(), load).await
    }

    async fn delete_bucket(&self, name: &str, id: BucketId) -> MetadataResult<()> {
        let (mark, name) = (self.buckets.mark([name.as_bytes().to_vec()]), name.to_owned());
        self.write(mark, nothing, move |inner| async move { inner.delete_bucket(&name, id).await }).await
    }

    async fn set_bucket_config(
        &self,
        name: &str,
        id: BucketId,
        kind: BucketConfigKind,
        value: Option<String>,
    ) -> MetadataResult<()> {
        let (mark, name) = (self.buckets.mark([name.as_bytes().to_vec()]), name.to_owned());
        self.write(mark, nothing, move |inner| async move { inner.set_bucket_config(&name, id, kind, value).await })
            .await
    }

    async fn set_versioning(&self, name: &str, id: BucketId, versioning: Versioning) -> MetadataResult<()> {
        let (mark, name) = (self.buckets.mark([name.as_bytes().to_vec()]), name.to_owned());
        self.write(mark, nothing, move |inner| async move { inner.set_versioning(&name, id, versioning).await }).await
    }

    async fn commit_object(&self, object: NewObject) -> MetadataResult<Committed> {
        let mark = self.objects.mark([object_key(object.bucket, &object.key)]);
        self.write(mark, written, |inner| async move { inner.commit_object(object).await }).await
    }

    async fn object(
        &self,
        bucket: BucketId,
        key: &str,
        version: Option<VersionId>,
    ) -> MetadataResult<Arc<ObjectVersion>> {
        if version.is_some() {
            return self.inner.object(bucket, key, version).await;
        }
        let cache_key = object_key(bucket, key);
        if let Some(found) = self.objects.get(&cache_key) {
            return Ok(found);
        }
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        let load = move || async move { inner.object(bucket, &key, None).await }.boxed();
        self.objects.get_or_load(cache_key, load).await
    }

    async fn delete_objects(
        &self,
        bucket: BucketId,
        requests: Vec<DeleteRequest>,
        now_ms: u64,
    ) -> MetadataResult<Vec<MetadataResult<Deleted>>> {
        let mark = self.objects.mark(requests.iter().map(|request| object_key(bucket, &request.key)));
        let write = move |inner: Arc<S>| async move { inner.delete_objects(bucket, requests, now_ms).await };
        self.write(mark, nothing, write).await
    }

    async fn set_object_tags(&self, request: ChangeRequest, tags: Vec<Tag>) -> MetadataResult<VersionId> {
        let mark = self.objects.mark([object_key(request.bucket, &request.key)]);
        self.write(mark, nothing, |inner| async move { inner.set_object_tags(request, tags).await }).await
    }

    async fn set_object_acl(&self, request: ChangeRequest, acl: CannedAcl) -> MetadataResult<VersionId> {
        let mark = self.objects.mark([object_key(request.bucket, &request.key)]);
        self.write(mark, nothing, move |inner| async move { inner.set_object_acl(request, acl).await }).await
    }

    async fn complete_upload(&self, completion: CompleteUpload) -> MetadataResult<Committed> {
        let mark = self.objects.mark([object_key(completion.bucket, &completion.key)]);
        self.write(mark, written, |inner| async move { inner.complete_upload(completion).await }).await
    }

    async fn request_move(&self, request: MoveRequest) -> MetadataResult<MoveQueued> {
        let mark = self.objects.mark([object_key(request.bucket, &request.key)]);
        self.write(mark, nothing, |inner| async move { inner.request_move(request).await }).await
    }

    async fn commit_move(&self, commit: CommitMove) -> MetadataResult<MoveEnd> {
        let mark = self.objects.mark([object_key(commit.bucket, &commit.key)]);
        self.write(mark, nothing, |inner| async move { inner.commit_move(commit).await }).await
    }

    async fn create_user(&self, user: User) -> MetadataResult<()> {
        self.inner.create_user(user).await
    }

    async fn user(&self, name: &str) -> MetadataResult<Arc<User>> {
        self.inner.user(name).await
    }

    async fn set_user_enabled(&self, name: &str, enabled: bool) -> MetadataResult<()> {
        // Keys show their user.
        let (mark, name) = (self.keys.mark_all(), name.to_owned());
        self.write(mark, nothing, move |inner| async move { inner.set_user_enabled(&name, enabled).await }).await
    }

    async fn delete_user(&self, name: &str) -> MetadataResult<()> {
        let (mark, name) = (self.keys.mark_all(), name.to_owned());
        self.write(mark, nothing, |inner| async move { inner.delete_user(&name).await }).await
    }

    async fn create_key(&self, key: AccessKey) -> MetadataResult<()> {
        let mark = self.keys.mark([key.access_key.clone().into_bytes()]);
        self.write(mark, nothing, |inner| async move { inner.create_key(key).await }).await
    }

    async fn key(&self, access_key: &str) -> MetadataResult<Arc<AccessKey>> {
        if let Some(found) = self.keys.get(access_key.as_bytes()) {
            return Ok(found);
        }
        let (inner, owned) = (Arc::clone(&self.inner), access_key.to_owned());
        let load = move || async move { inner.key(&owned).await }.boxed();
        self.keys.get_or_load(access_key.as_bytes().to_vec(), load).await
    }

    async fn set_key_enabled(&self, access_key: &str, enabled: bool) -> MetadataResult<()> {
        let (mark, access_key) = (self.keys.mark([access_key.as_bytes().to_vec()]), access_key.to_owned());
        self.write(mark, nothing, move |inner| async move { inner.set_key_enabled(&access_key, enabled).await }).await
    }

    async fn delete_key(&self, access_key: &str) -> MetadataResult<()> {
        let (mark, access_key) = (self.keys.mark([access_key.as_bytes().to_vec()]), access_key.to_owned());
        self.write(mark, nothing, |inner| async move { inner.delete_key(&access_key).await }).await
    }

    async fn ping(&self) -> MetadataResult<()> {
        self.inner.ping().await
    }

    fn writes_stopped(&self) -> Option<String> {
        self.inner.writes_stopped()
    }

    fn no_space(&self) -> Option<String> {
        self.inner.no_space()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[cfg(test)]
mod tests;
