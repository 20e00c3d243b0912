//! What is asked of the trackers. All of them know the same, so the first that answers is believed, and one that gave
//! no answer a moment ago is asked last.
//!
//! A tracker that has just started, or that the storages cannot reach, may not know what the others know: a refusal is
//! believed only when every tracker gives one. Only a full cluster is believed at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use holdfast_actors::ports::tiers::{TierError, TierResult};

use super::failure::{Failure, Outcome};
use super::pool::Pool;
use super::wire::{
    self, Address, FileId, GROUPS_MAX, GroupName, GroupStat, StorageStat, StoreTarget, WireResult, command, status,
};

/// The longest reply: of all groups, or of all storages of a group, of which each takes some 650 bytes at most.
const REPLY_BYTES_MAX: usize = 128 * GROUPS_MAX;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Trackers {
    pool: Arc<Pool>,
    addresses: Vec<String>,
    /// The one that answered last.
    preferred: AtomicUsize,
}

/// What the trackers answered.
pub(super) enum Answer<T> {
    /// This.
    Known(T),
    /// None of them knows what was asked for.
    Unknown,
}

impl Trackers {
    pub(super) fn new(pool: Arc<Pool>, addresses: Vec<String>) -> Self {
        Self { pool, addresses, preferred: AtomicUsize::new(0) }
    }

    /// All of them.
    pub(super) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    async fn one<T>(&self, address: &str, frame: &[u8], parse: impl Fn(&[u8]) -> WireResult<T>) -> Outcome<T> {
        let body: Bytes = self.pool.exchange(address, frame, REPLY_BYTES_MAX).await?;
        Ok(parse(&body)?)
    }

    async fn any<T>(&self, frame: Vec<u8>, parse: impl Fn(&[u8]) -> WireResult<T>) -> TierResult<Answer<T>> {
        let count = self.addresses.len();
        let preferred = self.preferred.load(Ordering::Relaxed);
        let mut order: Vec<usize> = (0..count).map(|n| (preferred + n) % count).collect();
        order.sort_by_key(|n| self.pool.failed_lately(&self.addresses[*n]));
        let mut refusals = Vec::new();
        let mut unknown = 0;
        for n in order {
            let address = &self.addresses[n];
            match self.one(address, &frame, &parse).await {
                Ok(answer) => {
                    self.preferred.store(n, Ordering::Relaxed);
                    return Ok(Answer::Known(answer));
                }
                Err(failure @ Failure::Status(status::FULL)) => return Err(failure.at(&name(address))),
                Err(failure) => {
                    unknown += usize::from(failure.is_missing());
                    refusals.push(failure.at(&name(address)));
                }
            }
        }
        if unknown == count {
            return Ok(Answer::Unknown);
        }
        match <[TierError; 1]>::try_from(refusals) {
            Ok([only]) => Err(only),
            Err(all) => {
                let all: Vec<_> = all.iter().map(ToString::to_string).collect();
                Err(TierError::Unavailable(all.join("; ")))
            }
        }
    }

    /// Where a new file is to go.
    pub(super) async fn store(&self, group: Option<&GroupName>) -> TierResult<Answer<StoreTarget>> {
        let frame = match group {
            Some(group) => wire::request(command::STORE_IN_GROUP, 0, &[&group.field()]),
            None => wire::request(command::STORE, 0, &[]),
        };
        self.any(frame, wire::store_target).await
    }

    /// Everywhere in a group that a new file can go: its working servers.
    pub(super) async fn store_all(&self, group: &GroupName) -> TierResult<Answer<Vec<StoreTarget>>> {
        self.any(wire::request(command::STORE_IN_GROUP_ALL, 0, &[&group.field()]), wire::store_targets).await
    }

    /// The server that took a file, if it may be used so; else another.
    pub(super) async fn fetch_or_update(&self, usage: u8, id: &FileId) -> TierResult<Answer<Address>> {
        self.any(wire::file_request(usage, 0, &id.group, &id.path), wire::fetch_target).await
    }

    /// Everywhere that a file can be read, as far as the trackers know.
    pub(super) async fn fetch_all(&self, id: &FileId) -> TierResult<Answer<Vec<Address>>> {
        self.any(wire::file_request(command::FETCH_ALL, 0, &id.group, &id.path), wire::fetch_targets).await
    }

    /// All groups.
    pub(super) async fn groups(&self) -> TierResult<Answer<Vec<GroupStat>>> {
        self.any(wire::request(command::LIST_GROUPS, 0, &[]), wire::groups).await
    }

    /// Whether there is such a group.
    pub(super) async fn knows(&self, group: &GroupName) -> TierResult<bool> {
        let frame = wire::request(command::LIST_ONE_GROUP, 0, &[&group.field()]);
        Ok(matches!(self.any(frame, |_| Ok(())).await?, Answer::Known(())))
    }

    /// The storages of a group, working or not.
    pub(super) async fn storages(&self, group: &GroupStat) -> TierResult<Answer<Vec<StorageStat>>> {
        let frame = wire::request(command::LIST_STORAGES, 0, &[&group.name.field()]);
        self.any(frame, |body| wire::storages(body, group.servers)).await
    }

    /// One storage of a group.
    pub(super) async fn storage(&self, group: &GroupName, id: &str) -> TierResult<Answer<StorageStat>> {
        let frame = wire::request(command::LIST_STORAGES, 0, &[&group.field(), id.as_bytes()]);
        self.any(frame, wire::storage).await
    }

    /// Whether a tracker, or a storage, answers.
    ///
    /// # Errors
    /// Why not.
    pub(super) async fn active_test(&self, address: &str) -> Outcome<()> {
        self.pool.exchange(address, &wire::request(command::ACTIVE_TEST, 0, &[]), 0).await.map(|_| ())
    }
}

/// A tracker, in messages.
pub(super) fn name(address: &str) -> String {
    format!("tracker {address}")
}
