//! A cache that never serves a value older than one whose write was acknowledged.
//!
//! # How
//! Keys fall into stripes. A stripe counts the writes in progress and, as its generation, all that ever began.
//! * A **write** marks its keys before it reaches the store: the entry goes, the count and the generation rise, and
//!   loads in flight are forgotten, so that no later reader joins one. When the store has answered, the mark is
//!   released, and if no other write was in progress at any time meanwhile, the new value goes in.
//! * A **load** on a miss remembers the generation. Its value goes in only if no write is in progress and none began
//!   since. While a write is in progress readers go to the store, each by itself.
//!
//! So an entry was read or written when no write was in progress, and none began since: it is what the store has. As a
//! second line a value never replaces one of a higher version.
//!
//! Loads of one key that are in flight together are one load. A load that all its readers gave up is dropped.
//!
//! # Bounds
//! Entries are bounded by their weight in bytes; loads in flight by the requests that wait for them.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::{Arc, OnceLock};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use holdfast_actors::ports::metadata::MetadataResult;
use metrics::Counter;
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::super::caching::{Load, own};

/// What can be cached.
pub(super) trait Cacheable: Send + Sync + 'static {
    /// Rises with each change of what the key names.
    fn version(&self) -> (u64, u64);
    /// About the memory it takes.
    fn weight_bytes(&self) -> usize;
}

/// Forgotten loads are swept out of a stripe when it holds this many.
const LOADS_SWEPT_AT: usize = 64;

struct Stripe<V> {
    /// Writes in progress.
    writers: usize,
    /// Writes that ever began.
    generation: u64,
    loads: HashMap<Vec<u8>, WeakShared<Load<V>>>,
}

/// An entry weighs its bytes.
#[derive(Clone)]
struct BytesHeld;

impl<V: Cacheable> Weighter<Vec<u8>, Arc<V>> for BytesHeld {
    fn weight(&self, key: &Vec<u8>, value: &Arc<V>) -> u64 {
        (key.len() + value.weight_bytes()) as u64
    }
}

/// The cache. Keys are bytes.
pub(super) struct Coherent<V: Cacheable> {
    name: &'static str,
    entries: Cache<Vec<u8>, Arc<V>, BytesHeld>,
    /// Looked up at the first hit, when the recorder of metrics is there.
    hits: OnceLock<Counter>,
    stripes: Box<[Mutex<Stripe<V>>]>,
    hasher: RandomState,
}

impl<V: Cacheable> Coherent<V> {
    /// A cache of at most `capacity_bytes`. `name` labels its metrics.
    pub(super) fn new(name: &'static str, capacity_bytes: u64, stripes: usize) -> Arc<Self> {
        // What it is laid out for, and grows beyond, decides into how many parts it falls; an entry has to fit into its
        // part.
        let entries = Cache::with_weighter(stripes, capacity_bytes, BytesHeld);
        let stripe = || Mutex::new(Stripe { writers: 0, generation: 0, loads: HashMap::new() });
        Arc::new(Self {
            name,
            entries,
            hits: OnceLock::new(),
            stripes: (0..stripes.max(1)).map(|_| stripe()).collect(),
            hasher: RandomState::new(),
        })
    }

    fn stripe_of(&self, key: &[u8]) -> usize {
        (self.hasher.hash_one(key) % self.stripes.len() as u64) as usize
    }

    /// The cached value. Waits for nobody but for those who change entries of the same part of the cache at this
    /// moment.
    pub(super) fn get(&self, key: &[u8]) -> Option<Arc<V>> {
        let found = self.entries.get(key);
        if found.is_some() {
            let counter = || metrics::counter!("holdfast_metadata_cache_hits_total", "cache" => self.name);
            self.hits.get_or_init(counter).increment(1);
        }
        found
    }

    /// The cached value, or what `load` finds, which is cached if no write interferes. Errors are not cached.
    pub(super) async fn get_or_load(
        self: &Arc<Self>,
        key: Vec<u8>,
        load: impl FnOnce() -> BoxFuture<'static, MetadataResult<Arc<V>>>,
    ) -> MetadataResult<Arc<V>> {
        if let Some(found) = self.get(&key) {
            return Ok(found);
        }
        metrics::counter!("holdfast_metadata_cache_misses_total", "cache" => self.name).increment(1);
        match self.load_in_flight(key, load) {
            Ok(shared) => own(shared.await),
            Err(load) => load().await,
        }
    }

    /// The load to wait for: one in flight, or a new one. `Err` gives `load` back: a write is in progress.
    fn load_in_flight<F>(self: &Arc<Self>, key: Vec<u8>, load: F) -> Result<Shared<Load<V>>, F>
    where
        F: FnOnce() -> BoxFuture<'static, MetadataResult<Arc<V>>>,
    {
        let mut stripe = self.stripes[self.stripe_of(&key)].lock();
        if stripe.writers > 0 {
            return Err(load);
        }
        if let Some(shared) = stripe.loads.get(&key).and_then(WeakShared::upgrade) {
            return Ok(shared);
        }
        if stripe.loads.len() >= LOADS_SWEPT_AT {
            stripe.loads.retain(|_, load| load.upgrade().is_some());
        }
        let generation = stripe.generation;
        let (cache, loaded_key, load) = (Arc::clone(self), key.clone(), load());
        let shared = async move {
            let result = load.await;
            cache.landed(&loaded_key, generation, result.as_ref().ok());
            result.map_err(Arc::new)
        }
        .boxed()
        .shared();
        if let Some(weak) = shared.downgrade() {
            stripe.loads.insert(key, weak);
        }
        Ok(shared)
    }

    /// A load has its result.
    fn landed(&self, key: &[u8], generation: u64, value: Option<&Arc<V>>) {
        let mut stripe = self.stripes[self.stripe_of(key)].lock();
        if stripe.generation != generation {
            return;
        }
        stripe.loads.remove(key);
        if stripe.writers == 0
            && let Some(value) = value
        {
            self.raise(key, value);
        }
    }

    /// Puts a value in unless a newer one is there. Only under the lock of the key's stripe.
    fn raise(&self, key: &[u8], value: &Arc<V>) {
        if self.entries.peek(key).is_none_or(|old| old.version() <= value.version()) {
            self.entries.insert(key.to_vec(), Arc::clone(value));
        }
    }

    /// Marks keys before their write.
    pub(super) fn mark(self: &Arc<Self>, keys: impl IntoIterator<Item = Vec<u8>>) -> WriteMark<V> {
        let marked = keys
            .into_iter()
            .map(|key| {
                let index = self.stripe_of(&key);
                let mut stripe = self.stripes[index].lock();
                let alone_since = stripe.begin_write();
                // Under the lock: a load that is about to land has landed, or will see the new generation.
                self.entries.remove(&key);
                Marked { stripe: index, alone_since, key }
            })
            .collect();
        WriteMark { cache: Arc::clone(self), marked }
    }

    /// Marks everything, before a write that may change any value.
    pub(super) fn mark_all(self: &Arc<Self>) -> WriteMark<V> {
        let marked = (0..self.stripes.len())
            .map(|index| {
                let mut stripe = self.stripes[index].lock();
                Marked { stripe: index, alone_since: stripe.begin_write(), key: Vec::new() }
            })
            .collect();
        // Nothing goes in any more, so what is there now is all there is.
        self.entries.clear();
        WriteMark { cache: Arc::clone(self), marked }
    }
}

impl<V> Stripe<V> {
    /// The new generation, if no other write is in progress.
    fn begin_write(&mut self) -> Option<u64> {
        self.writers += 1;
        self.generation += 1;
        self.loads.clear();
        (self.writers == 1).then_some(self.generation)
    }
}

struct Marked {
    stripe: usize,
    /// The generation that the mark began, unless another write was in progress then.
    alone_since: Option<u64>,
    key: Vec<u8>,
}

/// Keys whose write is in progress. Dropping it releases them without a value, which is right whatever became of the
/// write, as long as that is over.
pub(super) struct WriteMark<V: Cacheable> {
    cache: Arc<Coherent<V>>,
    marked: Vec<Marked>,
}

impl<V: Cacheable> WriteMark<V> {
    /// Releases the mark of a single key with the value that was written.
    pub(super) fn finish(mut self, value: &Arc<V>) {
        if let [_] = self.marked.as_slice()
            && let Some(marked) = self.marked.pop()
        {
            let mut stripe = self.cache.stripes[marked.stripe].lock();
            stripe.writers -= 1;
            // Of writes that overlap nobody knows here which one the store did last: neither the order of their marks
            // nor that of their ends says so.
            if marked.alone_since == Some(stripe.generation) {
                self.cache.raise(&marked.key, value);
            }
        }
    }
}

impl<V: Cacheable> Drop for WriteMark<V> {
    fn drop(&mut self) {
        for marked in self.marked.drain(..) {
            self.cache.stripes[marked.stripe].lock().writers -= 1;
        }
    }
}

#[cfg(test)]
mod tests;
