//! Whether a cluster can be worked with, and what its operator should know.

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use holdfast_actors::ports::tiers::{TierError, TierHealth, TierResult};

use super::Cluster;
use super::read::storage_name;
use super::trackers::{Answer, name};
use super::wire::{Address, GroupStat, StorageStat, StorageStatus};

/// Servers asked at the same time.
const ASKED_AT_ONCE: usize = 16;
/// Storages asked at all: of a larger cluster the first ones must do.
const ASKED_MAX: usize = 256;

impl Cluster {
    /// See [`ColdTier::check`](holdfast_actors::ports::ColdTier::check).
    pub(super) async fn check(&self) -> TierResult<TierHealth> {
        let mut notes = self.dead_trackers().await?;
        let groups = match self.trackers.groups().await? {
            Answer::Known(groups) => groups,
            Answer::Unknown => Vec::new(),
        };
        let groups: Vec<_> =
            groups.into_iter().filter(|stat| self.group.as_ref().is_none_or(|group| *group == stat.name)).collect();
        if let (Some(group), true) = (&self.group, groups.is_empty()) {
            return Err(TierError::Denied(format!("FastDFS has no group {}", group.as_str())));
        }
        let mut working = Vec::new();
        for group in &groups {
            let storages = match self.trackers.storages(group).await? {
                Answer::Known(storages) => storages,
                Answer::Unknown => Vec::new(),
            };
            for stat in storages {
                match stat.status {
                    StorageStatus::ACTIVE => working.push((group, stat)),
                    StorageStatus::DELETED => {}
                    status => notes.push(format!("{} is {}", title(group, &stat), status.caption())),
                }
            }
        }
        working.truncate(ASKED_MAX);
        let mut asked: Vec<BoxFuture<'_, (&GroupStat, Option<String>)>> = Vec::new();
        for (group, stat) in working {
            asked.push(async move { (group, self.why_dead(group, &stat).await) }.boxed());
        }
        let answers: Vec<_> = stream::iter(asked).buffered(ASKED_AT_ONCE).collect().await;
        let alive = |group: &GroupStat| answers.iter().any(|(of, why)| of.name == group.name && why.is_none());
        let free_bytes = groups.iter().filter(|group| alive(group)).map(GroupStat::usable_bytes).sum();
        let nobody = !groups.iter().any(alive);
        notes.extend(answers.into_iter().filter_map(|(_, why)| why));
        if nobody {
            return Err(TierError::Unavailable(format!("no storage of FastDFS works: {}", notes.join("; "))));
        }
        Ok(TierHealth { free_bytes: Some(free_bytes), notes })
    }

    /// What is wrong with each tracker that does not answer; an error if that is all of them.
    async fn dead_trackers(&self) -> TierResult<Vec<String>> {
        let all = self.trackers.addresses();
        let mut asked: Vec<BoxFuture<'_, Option<String>>> = Vec::new();
        for address in all {
            let asking = async move {
                let answer = self.trackers.active_test(address).await;
                answer.err().map(|failure| format!("{}: {failure}", name(address)))
            };
            asked.push(asking.boxed());
        }
        let answers: Vec<Option<String>> = stream::iter(asked).buffered(ASKED_AT_ONCE).collect().await;
        let notes: Vec<_> = answers.into_iter().flatten().collect();
        if notes.len() == all.len() {
            return Err(TierError::Unavailable(notes.join("; ")));
        }
        Ok(notes)
    }

    async fn why_dead(&self, group: &GroupStat, stat: &StorageStat) -> Option<String> {
        let (Some(ip), Some(port)) = (stat.ip, stat.port.or(group.port)) else {
            return Some(format!("{} has no known address", title(group, stat)));
        };
        let address = self.dial(Address { ip, port });
        let failure = self.trackers.active_test(&address).await.err()?;
        Some(format!("{} at {}: {failure}", title(group, stat), storage_name(&address)))
    }
}

fn title(group: &GroupStat, stat: &StorageStat) -> String {
    format!("storage {} of {}", stat.id, group.name.as_str())
}
