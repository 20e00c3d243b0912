//! [`RedisCachedStore`]: metadata of a cluster, with what every request asks for kept in a Redis that all nodes share:
//! latest versions of objects, buckets with their configuration, users and access keys, and that something does not
//! exist.
//!
//! No node ever finds in it what is older than a write that was acknowledged (promise D2), whatever becomes of Redis:
//! it may lose everything or some of it, come back with old data, be replaced, stand still, be full, or be out of reach
//! of one node. How that is reached is in `docs/adr/0008-a-shared-cache-that-may-forget-anything.md`; in short:
//!
//! * **Before** a write reaches the database, its keys are marked. While a key is marked it has no value, and readers
//!   ask the database. **After** the write the mark goes, and the new value comes if no other write was in progress
//!   meanwhile.
//! * A reader that finds nothing is given a nonce; it may fill only while that is still there, and any mark removes it.
//! * An acknowledgement waits until the mark is known to be gone in good order. A mark that was lost in between
//!   (evicted, flushed) is found out then, and what was filled meanwhile goes.
//! * What cannot be marked is not written until the cache is off for all nodes: [`CacheState`] in the coordination
//!   service, with an acknowledgement by every live node. It counts for one process of Redis only, known by its
//!   `run_id`.
//!
//! | module | what |
//! |---|---|
//! | `entry`, `entry.lua` | the steps on one entry, each atomic on the server |
//! | `options` | where the server is, and bounds |
//! | `link`, `connect` | a connection to one process; the breaker |
//! | `gate` | what this node may do now, and the writes in progress |
//! | `coherence` | reading through, marking, switching off |
//! | `plan`, `keeper` | when the cache is warmed, switched on and off |
//! | `codec` | the form of values |
//! | `verbs` | the verbs of the port: what is marked, what is read through |
//! | `credentials` | access keys and their users, which are kept apart |
//!
//! [`CacheState`]: holdfast_actors::ports::coordination::CacheState

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_actors::ports::coordination::{CacheFollower, CacheSeen, Coordination};
use holdfast_actors::ports::metadata::{
    Bucket, Decorator, MetadataError, MetadataResult, MetadataStore, ObjectVersion,
};
use holdfast_protocol::{ClusterId, NodeId};
use tokio::sync::watch;
use tokio::task::AbortHandle;

mod codec;
mod coherence;
mod connect;
mod credentials;
mod entry;
mod gate;
mod keeper;
mod link;
mod options;
mod plan;
mod verbs;

pub use options::{HostPort, RedisAddress, RedisCacheOptions, RedisPlace};

use super::caching::{Flights, RunToEnd};
use codec::Credential;
use coherence::{Core, Name};
use credentials::Profiles;

/// Users of access keys that are remembered, to ask for both at once.
const OWNERS_MAX: usize = 10_000;

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
    owners: quick_cache::sync::Cache<String, Arc<str>>,
    tasks: Vec<AbortHandle>,
}

impl<S: ?Sized> Drop for RedisCachedStore<S> {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl<S: MetadataStore + ?Sized> RedisCachedStore<S> {
    /// Decorates the store of a cluster that all other nodes, too, write to through such a decorator. It is used once
    /// `me` is registered in the cluster: see [`RedisCachedStore::follower`]. Redis need not be there.
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
            keeper::keep_up("link", {
                let link = core.link.clone();
                move || link.clone().keep()
            }),
            keeper::keep_up("follow", {
                let (core, seen) = (core.clone(), seen.clone());
                move || keeper::follow(core.clone(), seen.clone())
            }),
            keeper::keep_up("lead", {
                let core = core.clone();
                move || keeper::lead(core.clone())
            }),
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
            owners: quick_cache::sync::Cache::new(OWNERS_MAX),
            tasks,
        }
    }

    /// What has to be told of this node's registration, and tells what the others are to know.
    pub fn follower(&self) -> Arc<dyn CacheFollower> {
        Arc::new(Follower { core: self.core.clone(), seen: self.seen.clone() })
    }

    /// Runs a write of these entries. `through` gives the form of the written value, if there is one entry and one
    /// value.
    async fn write<T, F, W>(&self, names: Vec<Name>, through: fn(&T) -> Option<Vec<u8>>, write: W) -> MetadataResult<T>
    where
        T: Send + 'static,
        W: FnOnce(Arc<S>) -> F + Send + 'static,
        F: Future<Output = MetadataResult<T>> + Send + 'static,
    {
        self.write_parts(names, through, |_| false, write).await
    }

    /// The same for an answer that has parts, of which `is_open` tells whether the outcome of one is not known. None of
    /// them is acknowledged then: whether the marks lasted shows when they are finished, and these go on.
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
                    Err(MetadataError::Unknown("the outcome of a part is not known".to_owned()))
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
}

impl<S: MetadataStore + ?Sized> Decorator for RedisCachedStore<S> {
    type Inner = S;

    fn inner(&self) -> &S {
        &self.inner
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

#[cfg(test)]
mod tests;
