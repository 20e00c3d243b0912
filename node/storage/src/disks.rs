//! The disks of a node as one store.
//!
//! A chunk lives on one disk. Nothing records which: a lookup asks the indexes of all disks, which costs a hash lookup
//! each. New chunks go to healthy disks at random, weighted by free space, so that disks of different age fill up
//! together; a disk that refuses (full, fenced) is passed over for the next one. A chunk may be on two disks (one was
//! away while it was repaired): where the first one's copy is damaged or cannot be read, the next one's is taken.
//!
//! A disk that is fenced, since it failed or could not be read whole when it was opened, may still be read, for as long
//! as that goes well, and nothing more is expected of it: what lies there only is **stranded**
//! ([`DiskSet::list_stranded`]). A stranded chunk can be read, looked up and listed by shard, so that the last replica
//! of something can be copied from here; it cannot be verified, it is not in the way of one that is created under the
//! same id on a disk that works, and deletions pass it over: it is an orphan if that disk ever comes back.
//! [`DiskSet::list`] leaves it out, so who looks for all that there is asks for both.
//!
//! A disk that is **unresponsive** (it gives no answer, and no error; docs/adr/0019) may be back at any moment, with
//! all that is on it. So it works as far as counting goes, but it is asked last, new chunks go elsewhere, and deletions
//! on it fail and are to be tried again.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use hashbrown::HashSet;
use holdfast_protocol::{ChunkId, ShardId};
use parking_lot::Mutex;
use rand::Rng;

use crate::engine::{ChunkStat, Engine, EngineStats};
use crate::error::{ReadError, WriteError, is_unreadable};
use crate::index::list_order;
use crate::read::ChunkReader;
use crate::write::ChunkWriter;

/// For how long the free space that was asked for is good enough to choose by.
const FREE_SPACE_TTL: Duration = Duration::from_secs(1);

/// All disks of a node. Cheap to clone.
#[derive(Clone)]
pub struct DiskSet {
    shared: Arc<Shared>,
}

struct Shared {
    disks: Vec<Engine>,
    /// Ids that are being created on any disk.
    creating: Mutex<HashSet<ChunkId>>,
    free: Mutex<FreeSpace>,
}

#[derive(Default)]
struct FreeSpace {
    asked: Option<Instant>,
    bytes: Vec<u64>,
}

/// Keeps an id from being created on two disks.
struct Creating {
    shared: Arc<Shared>,
    id: ChunkId,
}

impl Drop for Creating {
    fn drop(&mut self) {
        self.shared.creating.lock().remove(&self.id);
    }
}

impl DiskSet {
    /// Joins disks, at least one. From now on each knows the others, and is fenced for its silence only while they
    /// answer.
    ///
    /// # Panics
    /// When there is none.
    pub fn new(disks: Vec<Engine>) -> Self {
        assert!(!disks.is_empty(), "a node has at least one disk");
        for (at, disk) in disks.iter().enumerate() {
            let others = disks.iter().enumerate().filter(|(other, _)| *other != at);
            *disk.inner.neighbours.lock() = others.map(|(_, other)| Arc::downgrade(&other.inner)).collect();
        }
        let free = Mutex::default();
        Self { shared: Arc::new(Shared { disks, creating: Mutex::default(), free }) }
    }

    /// The disks.
    pub fn disks(&self) -> &[Engine] {
        &self.shared.disks
    }

    /// Reserves space for a chunk on one of the disks and starts to write it.
    ///
    /// # Errors
    /// [`WriteError::Exists`]; [`WriteError::NoSpace`] when a healthy disk is full and none takes the chunk;
    /// [`WriteError::Fenced`] or [`WriteError::Unresponsive`] when no disk works.
    pub async fn create(&self, id: ChunkId, size_bytes: u32, label: &[u8]) -> Result<ChunkWriter, WriteError> {
        if !self.shared.creating.lock().insert(id) {
            return Err(WriteError::Exists(id));
        }
        let creating = Creating { shared: Arc::clone(&self.shared), id };
        if self.working_disk_of(&id).is_some() {
            return Err(WriteError::Exists(id));
        }
        let mut refusal = None;
        for disk in self.candidates() {
            let disk = &self.shared.disks[disk];
            if let Some(reason) = disk.fenced() {
                refusal.get_or_insert(WriteError::Fenced(reason));
                continue;
            }
            match disk.create(id, size_bytes, label).await {
                Ok(mut writer) => {
                    writer.keep(Box::new(creating));
                    return Ok(writer);
                }
                Err(error @ (WriteError::Fenced(_) | WriteError::Unresponsive | WriteError::Io { .. })) => {
                    refusal.get_or_insert(error);
                }
                Err(WriteError::NoSpace) => refusal = Some(WriteError::NoSpace),
                Err(error) => return Err(error),
            }
        }
        Err(refusal.expect("a set of disks is not empty"))
    }

    /// Disks in the order in which they are tried.
    fn candidates(&self) -> Vec<usize> {
        let disks = &self.shared.disks;
        if disks.len() == 1 {
            return vec![0];
        }
        let mut free = self.free_bytes();
        for (bytes, disk) in free.iter_mut().zip(disks) {
            if disk.is_fenced() || disk.is_slow() {
                *bytes = 0;
            }
        }
        // Drawn one after another without putting back, each in proportion to its free space.
        let mut left: Vec<usize> = (0..disks.len()).collect();
        let mut order = Vec::with_capacity(left.len());
        let mut rng = rand::rng();
        while !left.is_empty() {
            let total: u128 = left.iter().map(|disk| u128::from(free[*disk]) + 1).sum();
            let mut drawn = rng.random_range(0..total);
            let at = left.iter().position(|disk| {
                let weight = u128::from(free[*disk]) + 1;
                let hit = drawn < weight;
                drawn = drawn.saturating_sub(weight);
                hit
            });
            order.push(left.swap_remove(at.expect("what is drawn lies below the total")));
        }
        order
    }

    fn free_bytes(&self) -> Vec<u64> {
        let mut free = self.shared.free.lock();
        if free.asked.is_none_or(|asked| asked.elapsed() > FREE_SPACE_TTL) {
            free.bytes = self.shared.disks.iter().map(Engine::free_bytes).collect();
            free.asked = Some(Instant::now());
        }
        free.bytes.clone()
    }

    fn working(&self) -> impl Iterator<Item = &Engine> {
        self.shared.disks.iter().filter(|disk| !disk.is_fenced())
    }

    fn fenced(&self) -> impl Iterator<Item = &Engine> {
        self.shared.disks.iter().filter(|disk| disk.is_fenced())
    }

    fn working_disk_of(&self, id: &ChunkId) -> Option<&Engine> {
        self.working().find(|disk| disk.stat(id).is_some())
    }

    /// How many disks work, and how many are fenced.
    pub fn count(&self) -> (usize, usize) {
        let fenced = self.fenced().count();
        (self.shared.disks.len() - fenced, fenced)
    }

    /// Whether a chunk lies on fenced disks only.
    pub fn is_stranded(&self, id: &ChunkId) -> bool {
        self.working_disk_of(id).is_none() && self.fenced().any(|disk| disk.stat(id).is_some())
    }

    /// At most `limit` chunks that follow `after` in [`list_order`] and lie on fenced disks only. Fewer than `limit`
    /// are the last.
    pub fn list_stranded(&self, after: Option<&ChunkId>, limit: usize) -> Vec<ChunkStat> {
        let mut found = Vec::new();
        let mut after = after.copied();
        loop {
            let page = merged(self.fenced().map(|disk| disk.list(after.as_ref(), limit)), limit);
            after = page.last().map(|stat| stat.id);
            let is_last = page.len() < limit;
            found.extend(page.into_iter().filter(|stat| self.working_disk_of(&stat.id).is_none()));
            if is_last || found.len() >= limit {
                found.truncate(limit);
                return found;
            }
        }
    }

    /// All disks in the order in which a chunk is looked for: those that work first, then those that do not answer.
    fn by_trust(&self) -> impl Iterator<Item = &Engine> {
        let disks = &self.shared.disks;
        // Each is looked at once: one that turns meanwhile must not be left out. Allocates nothing while all is well.
        let mut doubtful: Vec<(bool, usize)> = Vec::new();
        for (at, disk) in disks.iter().enumerate() {
            let fenced = disk.is_fenced();
            if fenced || disk.is_unresponsive() {
                doubtful.push((fenced, at));
            }
        }
        doubtful.sort_unstable();
        let order: Vec<usize> = doubtful.into_iter().map(|(_, at)| at).collect();
        let last = order.clone();
        (0..disks.len()).filter(move |at| !order.contains(at)).chain(last).map(move |at| &disks[at])
    }

    /// Reads a range; see [`Engine::read`]. What one disk cannot give comes from the next one that has the chunk.
    ///
    /// # Errors
    /// [`ReadError::NotFound`], [`ReadError::Invalid`].
    pub fn read(&self, id: ChunkId, range: Range<u32>) -> Result<ChunkReader, ReadError> {
        self.first(id, |disk| disk.read(id, range.clone()))
    }

    /// Reads a range for who looks at the bytes; see [`Engine::read_copied`].
    ///
    /// # Errors
    /// [`ReadError::NotFound`], [`ReadError::Invalid`].
    pub fn read_copied(&self, id: ChunkId, range: Range<u32>) -> Result<ChunkReader, ReadError> {
        self.first(id, |disk| disk.read_copied(id, range.clone()))
    }

    fn first(
        &self,
        id: ChunkId,
        read: impl Fn(&Engine) -> Result<ChunkReader, ReadError>,
    ) -> Result<ChunkReader, ReadError> {
        let disks = &self.shared.disks;
        for disk in self.by_trust() {
            match read(disk) {
                Err(ReadError::NotFound(_)) => {}
                Ok(reader) if disks.len() > 1 => {
                    let here = disks.iter().position(|other| std::ptr::eq(other, disk));
                    let others = (0..disks.len()).filter(move |other| Some(*other) != here);
                    let shared = Arc::clone(&self.shared);
                    return Ok(reader.or_elsewhere(Box::new(others.map(move |other| shared.disks[other].clone()))));
                }
                other => return other,
            }
        }
        Err(ReadError::NotFound(id))
    }

    /// What is stored under `id`.
    pub fn stat(&self, id: &ChunkId) -> Option<ChunkStat> {
        self.by_trust().find_map(|disk| disk.stat(id))
    }

    /// Deletes chunks, on all disks at once; see [`Engine::delete`]. Those that are fenced are passed over, unless all
    /// are.
    ///
    /// # Errors
    /// The first disk's that failed; some of the chunks may then be deleted.
    pub async fn delete(&self, ids: &[ChunkId]) -> Result<(), WriteError> {
        let none_works = self.working().next().is_none();
        let deletions = self.shared.disks.iter().filter(|disk| none_works || !disk.is_fenced()).filter_map(|disk| {
            let here: Vec<_> = ids.iter().copied().filter(|id| disk.stat(id).is_some()).collect();
            (!here.is_empty()).then_some(async move { disk.delete(&here).await })
        });
        // All to their end: a disk that takes no writes does not keep the others from giving space back.
        join_all(deletions).await.into_iter().collect()
    }

    /// At most `limit` chunks that follow `after` in [`list_order`], over all disks that work: whoever walks over all
    /// chunks looks for what is to be deleted.
    pub fn list(&self, after: Option<&ChunkId>, limit: usize) -> Vec<ChunkStat> {
        merged(self.working().map(|disk| disk.list(after, limit)), limit)
    }

    /// A chunk's label, from the first disk that can give it; see [`Engine::label`].
    ///
    /// # Errors
    /// [`ReadError`] of the first disk that has the chunk.
    pub async fn label(&self, id: ChunkId) -> Result<Bytes, ReadError> {
        let mut failed = None;
        for disk in self.by_trust() {
            match disk.label(id).await {
                Ok(label) => return Ok(label),
                Err(ReadError::NotFound(_)) => {}
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        Err(failed.unwrap_or(ReadError::NotFound(id)))
    }

    /// Whether a chunk is whole on one of the disks that work; see [`Engine::verify`]. Copies before that one that
    /// turned out to be damaged are deleted: every read would try them first.
    ///
    /// # Errors
    /// [`ReadError`] of the first disk that has the chunk; nothing is deleted then.
    pub async fn verify(&self, id: ChunkId) -> Result<ChunkStat, ReadError> {
        let mut failed = None;
        let mut damaged: Vec<&Engine> = vec![];
        for disk in self.working() {
            match disk.verify(id).await {
                Ok(stat) => {
                    drop_copies(id, &damaged).await;
                    return Ok(stat);
                }
                Err(ReadError::NotFound(_)) => {}
                Err(error) => {
                    let is_damage = match &error {
                        ReadError::Corrupt { .. } => true,
                        ReadError::Io { source, .. } => is_unreadable(source),
                        ReadError::NotFound(_) | ReadError::Invalid { .. } | ReadError::Unresponsive(_) => false,
                    };
                    if is_damage {
                        damaged.push(disk);
                    }
                    failed.get_or_insert(error);
                }
            }
        }
        Err(failed.unwrap_or(ReadError::NotFound(id)))
    }

    /// As [`DiskSet::list`], of one shard of the cluster only.
    pub fn list_shard(
        &self,
        shard: ShardId,
        shard_count: u32,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Vec<ChunkStat> {
        let pages = self.shared.disks.iter().map(|disk| disk.list_shard(shard, shard_count, after, limit));
        merged(pages, limit)
    }

    /// Runs `visit` once on every chunk of some shards of the cluster, disk by disk; see
    /// [`Engine::for_each_of_shards`].
    pub fn for_each_of_shards(
        &self,
        shards: &BTreeSet<ShardId>,
        shard_count: u32,
        mut visit: impl FnMut(ShardId, ChunkStat),
    ) {
        for (n, disk) in self.shared.disks.iter().enumerate() {
            // A chunk on two disks counts on the first. Disks are asked in one order only, so
            // two walks never wait for each other.
            let before = &self.shared.disks[..n];
            disk.for_each_of_shards(shards, shard_count, |shard, stat| {
                if before.iter().all(|other| other.stat(&stat.id).is_none()) {
                    visit(shard, stat);
                }
            });
        }
    }

    /// Each disk in numbers.
    pub fn stats(&self) -> Vec<EngineStats> {
        self.shared.disks.iter().map(Engine::stats).collect()
    }

    /// Shuts all disks down; see [`Engine::shutdown`].
    ///
    /// # Errors
    /// The first disk's that failed, after all were tried.
    pub async fn shutdown(&self) -> Result<(), WriteError> {
        let all = join_all(self.shared.disks.iter().map(Engine::shutdown)).await;
        all.into_iter().collect()
    }
}

/// Deletes damaged copies of a chunk that is whole elsewhere, as far as their disks take deletions.
async fn drop_copies(id: ChunkId, damaged: &[&Engine]) {
    for disk in damaged {
        match disk.delete(&[id]).await {
            Ok(()) => {
                tracing::info!(chunk = %id, disk = %disk.dir().display(), "damaged copy deleted: another is whole")
            }
            Err(error) => {
                tracing::warn!(chunk = %id, disk = %disk.dir().display(), %error, "damaged copy stays beside a whole one");
            }
        }
    }
}

/// The first `limit` of several sorted pages.
fn merged(pages: impl Iterator<Item = Vec<ChunkStat>>, limit: usize) -> Vec<ChunkStat> {
    let mut merged: Vec<_> = pages.flatten().collect();
    merged.sort_unstable_by(|a, b| list_order(&a.id, &b.id));
    merged.dedup_by_key(|stat| stat.id);
    merged.truncate(limit);
    merged
}
