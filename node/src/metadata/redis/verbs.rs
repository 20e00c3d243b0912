//! The verbs of the port that a cache has to do with. Those that write what is cached mark it first; those that read
//! what is cached read it through.

use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt as _;
use holdfast_actors::ports::metadata::{
    AccessKey, Bucket, BucketConfigKind, BucketId, CannedAcl, ChangeRequest, CommitMove, Committed, CompleteUpload,
    DeleteRequest, Deleted, MetadataError, MetadataResult, MetadataStore, MoveEnd, MoveQueued, MoveRequest, NewBucket,
    NewObject, ObjectVersion, Tag, User, Versioning,
};
use holdfast_protocol::VersionId;

use super::RedisCachedStore;
use super::codec::{self, Credential, Profile};
use super::coherence::Name;
use crate::metadata::caching::object_key;

fn nothing<T>(_: &T) -> Option<Vec<u8>> {
    None
}

fn written(committed: &Committed) -> Option<Vec<u8>> {
    codec::encode(&*committed.object)
}

fn object(bucket: BucketId, key: &str) -> Name {
    Name::of::<ObjectVersion>(object_key(bucket, key))
}

#[async_trait]
impl<S: MetadataStore + ?Sized> MetadataStore for RedisCachedStore<S> {
    async fn create_bucket(&self, bucket: NewBucket) -> MetadataResult<Arc<Bucket>> {
        let names = vec![Name::of::<Bucket>(bucket.name.as_str())];
        let through = |bucket: &Arc<Bucket>| codec::encode(&**bucket);
        self.write(names, through, |inner| async move { inner.create_bucket(bucket).await }).await
    }

    async fn bucket(&self, name: &str) -> MetadataResult<Arc<Bucket>> {
        let (inner, owned) = (Arc::clone(&self.inner), name.to_owned());
        let load = move || async move { inner.bucket(&owned).await }.boxed();
        self.core.read(&self.buckets, &Name::of::<Bucket>(name), load).await
    }

    async fn delete_bucket(&self, name: &str, id: BucketId) -> MetadataResult<()> {
        let (names, name) = (vec![Name::of::<Bucket>(name)], name.to_owned());
        self.write(names, nothing, move |inner| async move { inner.delete_bucket(&name, id).await }).await
    }

    async fn set_bucket_config(
        &self,
        name: &str,
        id: BucketId,
        kind: BucketConfigKind,
        value: Option<String>,
    ) -> MetadataResult<()> {
        let (names, name) = (vec![Name::of::<Bucket>(name)], name.to_owned());
        let write = move |inner: Arc<S>| async move { inner.set_bucket_config(&name, id, kind, value).await };
        self.write(names, nothing, write).await
    }

    async fn set_versioning(&self, name: &str, id: BucketId, versioning: Versioning) -> MetadataResult<()> {
        let (names, name) = (vec![Name::of::<Bucket>(name)], name.to_owned());
        self.write(names, nothing, move |inner| async move { inner.set_versioning(&name, id, versioning).await }).await
    }

    async fn commit_object(&self, new: NewObject) -> MetadataResult<Committed> {
        let names = vec![object(new.bucket, &new.key)];
        self.write(names, written, |inner| async move { inner.commit_object(new).await }).await
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
        let (inner, owned) = (Arc::clone(&self.inner), key.to_owned());
        let load = move || async move { inner.object(bucket, &owned, None).await }.boxed();
        self.core.read(&self.objects, &object(bucket, key), load).await
    }

    async fn delete_objects(
        &self,
        bucket: BucketId,
        requests: Vec<DeleteRequest>,
        now_ms: u64,
    ) -> MetadataResult<Vec<MetadataResult<Deleted>>> {
        let mut keys: Vec<&str> = requests.iter().map(|request| request.key.as_str()).collect();
        keys.sort_unstable();
        keys.dedup();
        let names = keys.into_iter().map(|key| object(bucket, key)).collect();
        let write = move |inner: Arc<S>| async move { inner.delete_objects(bucket, requests, now_ms).await };
        let is_open = |deleted: &Vec<MetadataResult<Deleted>>| {
            deleted.iter().any(|deleted| matches!(deleted, Err(MetadataError::Unknown(_))))
        };
        self.write_parts(names, nothing, is_open, write).await
    }

    async fn set_object_tags(&self, request: ChangeRequest, tags: Vec<Tag>) -> MetadataResult<VersionId> {
        let names = vec![object(request.bucket, &request.key)];
        self.write(names, nothing, |inner| async move { inner.set_object_tags(request, tags).await }).await
    }

    async fn set_object_acl(&self, request: ChangeRequest, acl: CannedAcl) -> MetadataResult<VersionId> {
        let names = vec![object(request.bucket, &request.key)];
        self.write(names, nothing, move |inner| async move { inner.set_object_acl(request, acl).await }).await
    }

    async fn complete_upload(&self, completion: CompleteUpload) -> MetadataResult<Committed> {
        let names = vec![object(completion.bucket, &completion.key)];
        self.write(names, written, |inner| async move { inner.complete_upload(completion).await }).await
    }

    async fn request_move(&self, request: MoveRequest) -> MetadataResult<MoveQueued> {
        let names = vec![object(request.bucket, &request.key)];
        self.write(names, nothing, |inner: Arc<S>| async move { inner.request_move(request).await }).await
    }

    async fn commit_move(&self, commit: CommitMove) -> MetadataResult<MoveEnd> {
        let names = vec![object(commit.bucket, &commit.key)];
        self.write(names, nothing, |inner: Arc<S>| async move { inner.commit_move(commit).await }).await
    }

    async fn create_user(&self, user: User) -> MetadataResult<()> {
        let names = vec![Name::of::<Profile>(user.name.as_str())];
        self.write(names, nothing, |inner| async move { inner.create_user(user).await }).await
    }

    async fn user(&self, name: &str) -> MetadataResult<Arc<User>> {
        Ok(Arc::new(self.profiles.get(name).await?.user.clone()))
    }

    // What changes a user ends the reading that the user's keys are tied to, and so all of them with it.

    async fn set_user_enabled(&self, name: &str, enabled: bool) -> MetadataResult<()> {
        let (names, name) = (vec![Name::of::<Profile>(name)], name.to_owned());
        self.write(names, nothing, move |inner| async move { inner.set_user_enabled(&name, enabled).await }).await
    }

    async fn delete_user(&self, name: &str) -> MetadataResult<()> {
        let (names, name) = (vec![Name::of::<Profile>(name)], name.to_owned());
        self.write(names, nothing, |inner| async move { inner.delete_user(&name).await }).await
    }

    async fn create_key(&self, key: AccessKey) -> MetadataResult<()> {
        let names = vec![Name::of::<Credential>(key.access_key.as_str())];
        self.write(names, nothing, |inner| async move { inner.create_key(key).await }).await
    }

    async fn key(&self, access_key: &str) -> MetadataResult<Arc<AccessKey>> {
        let owner = match self.owners.get(access_key) {
            Some(owner) => owner,
            None => self.owner_of(access_key).await?,
        };
        self.key_of(access_key, &owner).await
    }

    async fn set_key_enabled(&self, access_key: &str, enabled: bool) -> MetadataResult<()> {
        let (names, access_key) = (vec![Name::of::<Credential>(access_key)], access_key.to_owned());
        self.write(names, nothing, move |inner| async move { inner.set_key_enabled(&access_key, enabled).await }).await
    }

    async fn delete_key(&self, access_key: &str) -> MetadataResult<()> {
        let (names, access_key) = (vec![Name::of::<Credential>(access_key)], access_key.to_owned());
        self.write(names, nothing, |inner| async move { inner.delete_key(&access_key).await }).await
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
