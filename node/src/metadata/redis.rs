//! [`RedisCachedStore`]: metadata of a cluster, with what every request asks for kept in a Redis that all nodes share: latest
//! versions of objects, buckets with their configuration, users and access keys, and that something does not exist.
//!
//! No node ever finds in it what is older than a write that was acknowledged (promise D2), whatever becomes of Redis: it may
//! lose everything or some of it, come back with old data, be replaced, stand still, be full, or be out of reach of one node.
//! How that is reached is in `docs/adr/0008-a-shared-cache-that-may-forget-anything.md`; in short:
//!
//! * **Before** a write reaches the database, its keys are marked. While a key is marked it has no value, and readers ask the
//!   database. **After** the write the mark goes, and the new value comes if no other write was in progress meanwhile.
//! * A reader that finds nothing is given a nonce; it may fill only while that is still there, and any mark removes it.
//! * An acknowledgement waits until the mark is known to be gone in good order. A mark that was lost in between (evicted,
//!   flushed) is found out then, and what was filled meanwhile goes.
//! * What cannot be marked is not written until the cache is off for all nodes: [`CacheState`] in the coordination service,
//!   with an acknowledgement by every live node. It counts for one process of Redis only, known by its `run_id`.
//!
//! | module | what |
//! |---|---|
//! | `entry`, `entry.lua` | the steps on one entry, each atomic on the server |
//! | `link`, `connect` | a connection to one process; the breaker |
//! | `gate` | what this node may do now, and the writes in progress |
//! | `coherence` | reading through, marking, switching off |
//! | `plan`, `keeper` | when the cache is warmed, switched on and off |
//! | `codec` | the form of values |
//!
//! [`CacheState`]: holdfast_actors::ports::coordination::CacheState

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use holdfast_actors::domain::events::EventDraft;
use holdfast_actors::ports::coordination::{CacheFollower, CacheSeen, Coordination, Fence};
use holdfast_actors::ports::metadata::{
    AccessKey, AgePosition, AgedKind, AgedVersion, Bucket, BucketConfigKind, BucketId, CannedAcl, CommitMove,
    Committed, CompleteUpload, DeleteRequest, Deleted, ListPage, ListQuery, ListUploadsPage, ListUploadsQuery,
    ListVersionsPage, ListVersionsQuery, MetadataError, MetadataResult, MetadataStore, MoveEnd, MoveQueued,
    MoveRequest, NewBucket, NewObject, NewUpload, ObjectVersion, Part, Recheck, Reclaim, Repair, ReplicaEvidence, Tag,
    Upload, User, Versioning,
};
use holdfast_protocol::{ChunkId, ClusterId, ContentId, Epoch, NodeId, ReclaimItem, ShardId, UploadId, VersionId};
use tokio::sync::watch;
use tokio::task::AbortHandle;

mod codec;
mod coherence;
mod connect;
mod entry;
mod gate;
mod keeper;
mod link;
mod options;
mod plan;

pub use options::{HostPort, RedisAddress, RedisCacheOptions, RedisPlace};

use super::caching::{Flights, RunToEnd, object_key};
use codec::{Credential, Entry as _, Profile};
use coherence::{Core, Name};

/// Users of access keys that are remembered, to ask for both at once.
const OWNERS_MAX: u64 = 10_000;

/// See the module's page.
pub struct RedisCachedStore<S: ?Sized> {
    inner: Arc<S>,
    core: Arc<Core>,
    seen: watch::Sender<CacheSeen>,
    objects: Arc<Flights<ObjectVersion>>,
    buckets: Arc<Flights<Bucket>>,
    profiles: Arc<Profiles<S>>,
    keys: Arc<Flights<Credential>>,
    /// The user of an access key. A hint: what is found by it is compared.
    owners: moka::sync::Cache<String, Arc<str>>,
    tasks: Vec<AbortHandle>,
}

impl<S: ?Sized> Drop for RedisCachedStore<S> {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl<S: MetadataStore + ?Sized> RedisCachedStore<S> {
    /// Decorates the store of a cluster that all other nodes, too, write to through such a decorator. It is used once `me` is
    /// registered in the cluster: see [`RedisCachedStore::follower`]. Redis need not be there.
    pub fn start(
        inner: Arc<S>,
        cluster: ClusterId,
        me: NodeId,
        coordination: Arc<dyn Coordination>,
        options: RedisCacheOptions,
    ) -> Self {
        let core = Arc::new(Core::new(cluster, me, coordination, options));
        let seen = watch::Sender::new(CacheSeen::default());
        let tasks = vec![
            tokio::spawn(core.link.clone().keep()).abort_handle(),
            tokio::spawn(keeper::follow(core.clone(), seen.clone())).abort_handle(),
            tokio::spawn(keeper::lead(core.clone())).abort_handle(),
        ];
        let profiles = Profiles { inner: inner.clone(), core: core.clone(), flights: Arc::default() };
        Self {
            inner,
            core,
            seen,
            objects: Arc::default(),
            buckets: Arc::default(),
            profiles: Arc::new(profiles),
            keys: Arc::default(),
            owners: moka::sync::Cache::new(OWNERS_MAX),
            tasks,
        }
    }

    /// What has to be told of this node's registration, and tells what the others are to know.
    pub fn follower(&self) -> Arc<dyn CacheFollower> {
        Arc::new(Follower { core: self.core.clone(), seen: self.seen.clone() })
    }

    /// Runs a write of these entries. `through` gives the form of the written value, if there is one entry and one value.
    async fn write<T, F, W>(&self, names: Vec<Name>, through: fn(&T) -> Option<Vec<u8>>, write: W) -> MetadataResult<T>
    where
        T: Send + 'static,
        W: FnOnce(Arc<S>) -> F + Send + 'static,
        F: Future<Output = MetadataResult<T>> + Send + 'static,
    {
        self.write_parts(names, through, |_| false, write).await
    }

    /// The same for an answer that has parts, of which `is_open` tells whether the outcome of one is not known.
    async fn write_parts<T, F, W>(
        &self,
        names: Vec<Name>,
        through: fn(&T) -> Option<Vec<u8>>,
        is_open: fn(&T) -> bool,
        write: W,
    ) -> MetadataResult<T>
    where
        T: Send + 'static,
        W: FnOnce(Arc<S>) -> F + Send + 'static,
        F: Future<Output = MetadataResult<T>> + Send + 'static,
    {
        let (core, inner) = (self.core.clone(), self.inner.clone());
        RunToEnd::new(async move {
            let mut begun = core.begin(names).await?;
            match begun.drive(write(inner)).await {
                Ok(answer) if is_open(&answer) => {
                    begun.quarantine();
                    Ok(answer)
                }
                Ok(answer) => {
                    begun.finish(through(&answer)).await?;
                    Ok(answer)
                }
                Err(error @ MetadataError::Unknown(_)) => {
                    begun.quarantine();
                    Err(error)
                }
                Err(error) => {
                    begun.abandon();
                    Err(error)
                }
            }
        })
        .await
    }

    /// A key that is found through the user that it belonged to when it was last read.
    async fn key_of(&self, access_key: &str, owner: &str) -> MetadataResult<Arc<AccessKey>> {
        let name = Name::of::<Credential>(access_key);
        let (credential, profile) = tokio::join!(self.core.peek::<Credential>(&name), self.profiles.get(owner));
        let profile = match profile {
            Ok(profile) => profile,
            // Without its user a key is nothing; which error that is, the database says.
            Err(_) => return self.key_from_database(access_key).await,
        };
        if let Some(Ok(credential)) = credential {
            if let Some(key) = credential.with(&profile) {
                metrics::counter!("holdfast_metadata_cache_hits_total", "cache" => Credential::CACHE).increment(1);
                return Ok(Arc::new(key));
            }
            // It belongs to another reading of the user.
            self.core.discard(&name).await;
        }
        let (inner, owned, with) = (self.inner.clone(), access_key.to_owned(), profile.clone());
        let load = move || {
            async move {
                let key = inner.key(&owned).await?;
                Ok(Arc::new(Credential::of(&key, &with)))
            }
            .boxed()
        };
        let credential = self.core.read(&self.keys, &name, load).await?;
        match credential.with(&profile) {
            Some(key) => Ok(Arc::new(key)),
            None => self.key_from_database(access_key).await,
        }
    }

    async fn key_from_database(&self, access_key: &str) -> MetadataResult<Arc<AccessKey>> {
        let key = self.inner.key(access_key).await?;
        self.owners.insert(access_key.to_owned(), key.user.name.as_str().into());
        Ok(key)
    }

    /// The user of a key that was not asked for here before.
    async fn owner_of(&self, access_key: &str) -> MetadataResult<Arc<str>> {
        let (inner, profiles, owned) = (self.inner.clone(), self.profiles.clone(), access_key.to_owned());
        let load = move || {
            async move {
                let owner = inner.key(&owned).await?.user.name.clone();
                // The key is read after the reading of the user that it is tied to.
                let profile = profiles.get(&owner).await.map_err(|error| match error {
                    MetadataError::NotFound(_) => Credential::absent(),
                    error => error,
                })?;
                let key = inner.key(&owned).await?;
                Ok(Arc::new(Credential::of(&key, &profile)))
            }
            .boxed()
        };
        let credential = self.core.read(&self.keys, &Name::of::<Credential>(access_key), load).await?;
        let owner: Arc<str> = credential.user.as_str().into();
        self.owners.insert(access_key.to_owned(), owner.clone());
        Ok(owner)
    }
}

/// Users, read through the cache.
struct Profiles<S: ?Sized> {
    inner: Arc<S>,
    core: Arc<Core>,
    flights: Arc<Flights<Profile>>,
}

impl<S: MetadataStore + ?Sized> Profiles<S> {
    async fn get(&self, name: &str) -> MetadataResult<Arc<Profile>> {
        let (inner, owned) = (Arc::clone(&self.inner), name.to_owned());
        let load = move || {
            async move {
                let user = inner.user(&owned).await?;
                Ok(Arc::new(Profile { user: User::clone(&user), reading: rand::random() }))
            }
            .boxed()
        };
        self.core.read(&self.flights, &Name::of::<Profile>(name), load).await
    }
}

struct Follower {
    core: Arc<Core>,
    seen: watch::Sender<CacheSeen>,
}

#[async_trait]
impl CacheFollower for Follower {
    fn registered(&self, term: u64, generation: u64) {
        self.core.gate.register(term, generation);
    }

    fn seen(&self) -> watch::Receiver<CacheSeen> {
        self.seen.subscribe()
    }

    async fn stands(&self, patience: Duration) -> bool {
        tokio::time::timeout(patience, self.core.gate.until(|gate| gate.standing().is_some())).await.is_ok()
    }
}

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

    async fn list_buckets(
        &self,
        owner: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<Bucket>>> {
        self.inner.list_buckets(owner, after, limit).await
    }

    async fn delete_bucket(&self, name: &str) -> MetadataResult<()> {
        let (names, name) = (vec![Name::of::<Bucket>(name)], name.to_owned());
        self.write(names, nothing, |inner| async move { inner.delete_bucket(&name).await }).await
    }

    async fn set_bucket_config(&self, name: &str, kind: BucketConfigKind, value: Option<String>) -> MetadataResult<()> {
        let (names, name) = (vec![Name::of::<Bucket>(name)], name.to_owned());
        self.write(names, nothing, move |inner| async move { inner.set_bucket_config(&name, kind, value).await }).await
    }

    async fn set_versioning(&self, name: &str, versioning: Versioning) -> MetadataResult<()> {
        let (names, name) = (vec![Name::of::<Bucket>(name)], name.to_owned());
        self.write(names, nothing, move |inner| async move { inner.set_versioning(&name, versioning).await }).await
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

    async fn set_object_tags(
        &self,
        bucket: BucketId,
        key: &str,
        version: Option<VersionId>,
        tags: Vec<Tag>,
        event: Option<EventDraft>,
        now_ms: u64,
    ) -> MetadataResult<VersionId> {
        let (names, key) = (vec![object(bucket, key)], key.to_owned());
        let write =
            move |inner: Arc<S>| async move { inner.set_object_tags(bucket, &key, version, tags, event, now_ms).await };
        self.write(names, nothing, write).await
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
        let (names, key) = (vec![object(bucket, key)], key.to_owned());
        let write =
            move |inner: Arc<S>| async move { inner.set_object_acl(bucket, &key, version, acl, event, now_ms).await };
        self.write(names, nothing, write).await
    }

    async fn list_objects(&self, bucket: BucketId, query: ListQuery) -> MetadataResult<ListPage> {
        self.inner.list_objects(bucket, query).await
    }

    async fn list_versions(&self, bucket: BucketId, query: ListVersionsQuery) -> MetadataResult<ListVersionsPage> {
        self.inner.list_versions(bucket, query).await
    }

    async fn create_upload(&self, upload: NewUpload) -> MetadataResult<()> {
        self.inner.create_upload(upload).await
    }

    async fn upload(&self, bucket: BucketId, key: &str, upload: UploadId) -> MetadataResult<Arc<Upload>> {
        self.inner.upload(bucket, key, upload).await
    }

    async fn put_part(
        &self,
        bucket: BucketId,
        key: &str,
        upload: UploadId,
        part: Part,
        evidence: ReplicaEvidence,
    ) -> MetadataResult<()> {
        self.inner.put_part(bucket, key, upload, part, evidence).await
    }

    async fn list_parts(&self, upload: UploadId, after: u16, limit: u32) -> MetadataResult<Vec<Part>> {
        self.inner.list_parts(upload, after, limit).await
    }

    async fn list_uploads(&self, bucket: BucketId, query: ListUploadsQuery) -> MetadataResult<ListUploadsPage> {
        self.inner.list_uploads(bucket, query).await
    }

    async fn complete_upload(&self, completion: CompleteUpload) -> MetadataResult<Committed> {
        let names = vec![object(completion.bucket, &completion.key)];
        self.write(names, written, |inner| async move { inner.complete_upload(completion).await }).await
    }

    async fn abort_upload(&self, bucket: BucketId, key: &str, upload: UploadId, now_ms: u64) -> MetadataResult<()> {
        self.inner.abort_upload(bucket, key, upload, now_ms).await
    }

    async fn stale_uploads(&self, before_ms: u64, limit: u32) -> MetadataResult<Vec<Arc<Upload>>> {
        self.inner.stale_uploads(before_ms, limit).await
    }

    async fn expire_upload(&self, upload: UploadId, before_ms: u64, now_ms: u64) -> MetadataResult<bool> {
        self.inner.expire_upload(upload, before_ms, now_ms).await
    }

    async fn aged_versions(
        &self,
        bucket: BucketId,
        kind: AgedKind,
        after: &AgePosition,
        until_ms: u64,
        limit: u32,
    ) -> MetadataResult<Vec<AgedVersion>> {
        self.inner.aged_versions(bucket, kind, after, until_ms, limit).await
    }

    async fn surplus_versions(
        &self,
        bucket: BucketId,
        key: &str,
        keep: u32,
        after: u64,
        limit: u32,
    ) -> MetadataResult<Vec<AgedVersion>> {
        self.inner.surplus_versions(bucket, key, keep, after, limit).await
    }

    async fn aged_uploads(
        &self,
        bucket: BucketId,
        after: &AgePosition,
        until_ms: u64,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<Upload>>> {
        self.inner.aged_uploads(bucket, after, until_ms, limit).await
    }

    async fn lifecycle_cursors(&self, bucket: BucketId, generation: u64) -> MetadataResult<Vec<(String, AgePosition)>> {
        self.inner.lifecycle_cursors(bucket, generation).await
    }

    async fn save_lifecycle_cursor(
        &self,
        bucket: BucketId,
        generation: u64,
        stream: &str,
        at: &AgePosition,
        fence: Option<&Fence>,
    ) -> MetadataResult<()> {
        self.inner.save_lifecycle_cursor(bucket, generation, stream, at, fence).await
    }

    async fn rechecks(&self, bucket: BucketId, limit: u32) -> MetadataResult<Vec<Recheck>> {
        self.inner.rechecks(bucket, limit).await
    }

    async fn finish_rechecks(&self, ids: &[u64], fence: Option<&Fence>) -> MetadataResult<()> {
        self.inner.finish_rechecks(ids, fence).await
    }

    async fn request_move(&self, request: MoveRequest) -> MetadataResult<MoveQueued> {
        let names = vec![object(request.bucket, &request.key)];
        self.write(names, nothing, |inner: Arc<S>| async move { inner.request_move(request).await }).await
    }

    async fn commit_move(&self, commit: CommitMove) -> MetadataResult<MoveEnd> {
        let names = vec![object(commit.bucket, &commit.key)];
        self.write(names, nothing, |inner: Arc<S>| async move { inner.commit_move(commit).await }).await
    }

    async fn due_reclaims(&self, before_ms: u64, limit: u32, fence: Option<&Fence>) -> MetadataResult<Vec<Reclaim>> {
        self.inner.due_reclaims(before_ms, limit, fence).await
    }

    async fn waiting_reclaims(&self, before_ms: u64, limit: u32) -> MetadataResult<Vec<ReclaimItem>> {
        self.inner.waiting_reclaims(before_ms, limit).await
    }

    async fn claim_reclaims(&self, items: &[ReclaimItem], before_ms: u64) -> MetadataResult<Vec<Reclaim>> {
        self.inner.claim_reclaims(items, before_ms).await
    }

    async fn finish_reclaims(&self, ids: &[u64], fence: Option<&Fence>) -> MetadataResult<()> {
        self.inner.finish_reclaims(ids, fence).await
    }

    async fn known_contents(&self, contents: &[ContentId]) -> MetadataResult<Vec<ContentId>> {
        self.inner.known_contents(contents).await
    }

    async fn condemn(&self, contents: &[ContentId], now_ms: u64) -> MetadataResult<Vec<ContentId>> {
        self.inner.condemn(contents, now_ms).await
    }

    async fn forget_condemned(&self, before_ms: u64, limit: u32) -> MetadataResult<u64> {
        self.inner.forget_condemned(before_ms, limit).await
    }

    async fn claim(&self, cluster: Option<ClusterId>) -> MetadataResult<Option<ClusterId>> {
        self.inner.claim(cluster).await
    }

    async fn raise_epochs(&self, epochs: &[(ShardId, Epoch)]) -> MetadataResult<()> {
        self.inner.raise_epochs(epochs).await
    }

    async fn queue_repairs(&self, repairs: &[(ChunkId, NodeId)], now_ms: u64) -> MetadataResult<()> {
        self.inner.queue_repairs(repairs, now_ms).await
    }

    async fn repairs(&self, node: NodeId, after: u64, limit: u32) -> MetadataResult<Vec<Repair>> {
        self.inner.repairs(node, after, limit).await
    }

    async fn finish_repairs(&self, repairs: &[Repair]) -> MetadataResult<()> {
        self.inner.finish_repairs(repairs).await
    }

    async fn repair_backlog(&self) -> MetadataResult<Vec<(NodeId, u64)>> {
        self.inner.repair_backlog().await
    }

    async fn create_user(&self, user: User) -> MetadataResult<()> {
        let names = vec![Name::of::<Profile>(user.name.as_str())];
        self.write(names, nothing, |inner| async move { inner.create_user(user).await }).await
    }

    async fn user(&self, name: &str) -> MetadataResult<Arc<User>> {
        Ok(Arc::new(self.profiles.get(name).await?.user.clone()))
    }

    async fn list_users(&self, after: Option<&str>, limit: u32) -> MetadataResult<Vec<Arc<User>>> {
        self.inner.list_users(after, limit).await
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

    async fn list_keys(
        &self,
        user: Option<&str>,
        after: Option<&str>,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<AccessKey>>> {
        self.inner.list_keys(user, after, limit).await
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

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
