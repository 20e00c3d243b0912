//! Which server has a piece: that which took its first file, as long as it works.
//!
//! The id of a file tells who took it, but neither its port nor whether it still has that address, so a tracker is
//! asked. Its answer is kept for [`KEPT`]: enough to save a round trip for most pieces. An address out of that memory
//! is good for asking, but what is said there of a piece that is missing counts only when a tracker has just confirmed
//! who is asked. While no tracker answers, an older one is good for reading, too: what is read is compared.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use holdfast_actors::ports::tiers::{TierError, TierResult};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Cluster;
use super::config::has_host_and_port;
use super::names::Piece;
use super::trackers::Answer;
use super::wire::{Address, FileId, GroupName, Source, StorageStat, StorageStatus, command};

/// How long a server keeps its address for us.
const KEPT: Duration = Duration::from_secs(60);
/// A cluster has fewer servers than this.
const KEPT_MAX: usize = 4096;

/// What a server is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Usage {
    Read,
    Change,
}

/// Who took a piece. Addresses are those to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// It is here.
    Source(String),
    /// It is in the group, and does not work; another may have the piece.
    Down { why: String, other: Option<String> },
    /// It was taken out of the group; another may have the piece.
    Gone { why: String, other: Option<String> },
}

/// A server, and what for.
type Wanted = (Usage, GroupName, Source);

/// The servers whose addresses are known, and how long they count.
#[derive(Debug, Default)]
pub(super) struct Sources(Mutex<HashMap<Wanted, (String, Instant)>>);

impl Sources {
    fn get(&self, usage: Usage, id: &FileId) -> Option<String> {
        let known = self.0.lock();
        let (address, until) = known.get(&(usage, id.group.clone(), id.source))?;
        (Instant::now() < *until).then(|| address.clone())
    }

    /// Where it was the last time, however long ago.
    fn last(&self, usage: Usage, id: &FileId) -> Option<String> {
        self.0.lock().get(&(usage, id.group.clone(), id.source)).map(|(address, _)| address.clone())
    }

    /// As if all were known for too long.
    #[cfg(test)]
    pub(super) fn expire(&self) {
        for (_, until) in self.0.lock().values_mut() {
            *until = Instant::now();
        }
    }

    fn keep(&self, usage: Usage, id: &FileId, address: &str) {
        let mut known = self.0.lock();
        if known.len() >= KEPT_MAX {
            known.clear();
        }
        known.insert((usage, id.group.clone(), id.source), (address.into(), Instant::now() + KEPT));
    }

    /// It did not answer there.
    pub(super) fn forget(&self, id: &FileId) {
        let mut known = self.0.lock();
        for usage in [Usage::Read, Usage::Change] {
            known.remove(&(usage, id.group.clone(), id.source));
        }
    }
}

impl Cluster {
    /// What to dial for a storage that calls itself so.
    pub(super) fn dial(&self, address: Address) -> String {
        let mapped = |port| self.address_map.get(&(address.ip, port));
        match mapped(Some(address.port)).or_else(|| mapped(None)) {
            Some(target) if has_host_and_port(target) => target.clone(),
            Some(host) if host.parse::<std::net::Ipv6Addr>().is_ok() => format!("[{host}]:{}", address.port),
            Some(host) => format!("{host}:{}", address.port),
            None => std::net::SocketAddr::new(address.ip, address.port).to_string(),
        }
    }

    /// Who took a piece, and whether that is from memory, which `fresh` forbids.
    pub(super) async fn locate(&self, piece: &Piece, usage: Usage, fresh: bool) -> TierResult<(Place, bool)> {
        let id = &piece.data;
        if !fresh && let Some(address) = self.sources.get(usage, id) {
            return Ok((Place::Source(address), true));
        }
        let command = match usage {
            Usage::Read => command::FETCH,
            Usage::Change => command::UPDATE,
        };
        let answer = self.trackers.fetch_or_update(command, id).await;
        if let (Usage::Read, false, Err(TierError::Unavailable(why))) = (usage, fresh, &answer)
            && let Some(address) = self.sources.last(usage, id)
        {
            tracing::debug!(why, storage = %address, "no tracker answers, the storage is where it was");
            // For as long as otherwise: trackers that do not answer take their time.
            self.sources.keep(usage, id, &address);
            return Ok((Place::Source(address), true));
        }
        let named = match answer? {
            Answer::Known(address) => Some(address),
            Answer::Unknown => {
                self.expect_group(&id.group).await?;
                None
            }
        };
        let place = self.place(id, named).await?;
        match &place {
            Place::Source(address) => self.sources.keep(usage, id, address),
            Place::Down { .. } | Place::Gone { .. } => self.sources.forget(id),
        }
        Ok((place, false))
    }

    /// Whether the server that a tracker named is the one that took the file.
    async fn place(&self, id: &FileId, named: Option<Address>) -> TierResult<Place> {
        if let (Source::Ip(ip), Some(address)) = (id.source, named)
            && address.ip == IpAddr::V4(ip)
        {
            return Ok(Place::Source(self.dial(address)));
        }
        // By its number, at another of its addresses, or not working.
        let source = format!("storage {} of {}", id.source, id.group.as_str());
        let other = named.map(|address| self.dial(address));
        let Some(stat) = self.storage_of(id).await? else {
            return Ok(Place::Gone { why: format!("{source} is not in the group any more"), other });
        };
        if stat.status == StorageStatus::DELETED {
            return Ok(Place::Gone { why: format!("{source} was deleted"), other });
        }
        match named {
            Some(address) if is_at(&stat, address) => Ok(Place::Source(self.dial(address))),
            _ => Ok(Place::Down { why: format!("{source} is {}", stat.status.caption()), other }),
        }
    }

    /// What the trackers say of the server that took a file.
    async fn storage_of(&self, id: &FileId) -> TierResult<Option<StorageStat>> {
        if let Answer::Known(stat) = self.trackers.storage(&id.group, &id.source.to_string()).await? {
            return Ok(Some(stat));
        }
        let Source::Ip(ip) = id.source else { return Ok(None) };
        // Servers can have numbers while the ids of files tell addresses.
        let Answer::Known(groups) = self.trackers.groups().await? else { return Ok(None) };
        let Some(group) = groups.into_iter().find(|group| group.name == id.group) else { return Ok(None) };
        let Answer::Known(storages) = self.trackers.storages(&group).await? else { return Ok(None) };
        Ok(storages.into_iter().find(|stat| stat.ip == Some(IpAddr::V4(ip))))
    }

    /// Fails when there is no such group.
    ///
    /// # Errors
    /// [`TierError::Denied`]: a group does not come back by itself.
    pub(super) async fn expect_group(&self, group: &GroupName) -> TierResult<()> {
        if self.trackers.knows(group).await? {
            return Ok(());
        }
        Err(TierError::Denied(format!("FastDFS has no group {}", group.as_str())))
    }
}

fn is_at(stat: &StorageStat, address: Address) -> bool {
    stat.ip == Some(address.ip) && stat.port.is_none_or(|port| port == address.port)
}
