//! The nodes of the cluster: each is registered by what lives as long as its session, and says beside it what it knows
//! of the cache.

use std::collections::BTreeMap;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_actors::ports::coordination::{
    CacheSeen, CacheState, CoordinationError, CoordinationResult, NodeAnnouncement, Registration, Versioned,
};
use holdfast_protocol::NodeId;
use tokio::time::Instant;
use zookeeper_client as zk;

use super::ZookeeperCoordination;
use super::calls::{Outcome, READS_TOGETHER, read_together};
use super::session::refused;
use super::stored::{
    GENERATION, NodeRecord, ROOT, SEEN, StoredCache, StoredSeen, decode, encode, node_path, nonce_of, seen_path,
};

/// Requests in flight while all nodes are asked. One after the other, those of hundreds of nodes would not end within
/// the time of one operation where ZooKeeper is slow, as after an outage, when every node asks.
const READS_MAX: usize = 8;

impl ZookeeperCoordination {
    /// One try to register. `Ok(Err(holder))`: somebody else has the id.
    pub(super) async fn try_register(
        &self,
        node: &NodeAnnouncement,
    ) -> CoordinationResult<Result<Option<Registration>, String>> {
        let shared = &self.shared;
        let deadline = shared.deadline();
        let (node_path, seen_path) = (node_path(node.id), seen_path(node.id));
        let existing = match shared.latest(deadline, &node_path).await? {
            None => None,
            Some((bytes, stat)) => {
                let record: NodeRecord = decode(&node_path, &bytes)?;
                if !shared.claim.covers(&record.owner) {
                    return Ok(Err(record.announcement.addresses.peer));
                }
                if record.owner != shared.claim.owner() {
                    tracing::info!(node = %node.id, "taking the place of the process that was killed");
                }
                Some(stat.version)
            }
        };
        // Both halves are made and end together; somebody may have removed one by hand.
        let (session, seen) = (shared.client()?.session_id(), shared.latest(deadline, &seen_path).await?);
        let has_seen = seen.is_some_and(|(_, stat)| existing.is_some() || stat.ephemeral_owner == session.0);
        let cache: Versioned<StoredCache> = self.value(GENERATION, "cluster").await?;
        let generation = CacheState::from(cache.value).generation;
        let record = encode(&NodeRecord { owner: shared.claim.owner().to_owned(), announcement: node.clone() })?;
        let seen = encode(&CacheSeen { generation, ..CacheSeen::default() })?;
        let options = zk::CreateMode::Ephemeral.with_acls(shared.config.acls());
        if existing.is_some() {
            shared.ownership.registers_anew();
        }
        let outcome = shared
            .transact(deadline, |writer| {
                // Whoever changes the state after this finds the node; who did before is in what it starts with.
                writer.add_check_version(GENERATION, cache.version.0)?;
                if let Some(version) = existing {
                    writer.add_delete(&node_path, Some(version))?;
                }
                if has_seen {
                    writer.add_delete(&seen_path, None)?;
                }
                writer.add_create(&node_path, &record.bytes, &options)?;
                writer.add_create(&seen_path, &seen.bytes, &options)
            })
            .await?;
        match outcome {
            Outcome::Done | Outcome::Open(_) => {}
            Outcome::Refused(_, zk::Error::BadVersion | zk::Error::NodeExists | zk::Error::NoNode) => {
                return Ok(Ok(None));
            }
            Outcome::Refused(_, error) => return Err(refused("register", &error)),
        }
        let Some((bytes, stat)) = shared.latest(shared.deadline(), &node_path).await? else { return Ok(Ok(None)) };
        let ours = nonce_of(&bytes).is_some_and(|n| n == record.nonce);
        let registration = Registration { incarnation: stat.czxid as u64, cache_generation: generation };
        Ok(Ok(ours.then_some(registration)))
    }

    /// The nodes that are alive now. Who registers after this has read the state of the cache, or a later one, when it
    /// did.
    pub(super) async fn alive(&self) -> CoordinationResult<Vec<NodeId>> {
        let listed = self.shared.read(self.shared.deadline(), SEEN, |client| async move {
            client.sync(ROOT).await?;
            client.list_children(SEEN).await
        });
        Ok(listed.await?.unwrap_or_default().iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// What those of `nodes` that are still alive said last.
    pub(super) async fn said(&self, nodes: &[NodeId]) -> CoordinationResult<BTreeMap<NodeId, CacheSeen>> {
        let deadline = self.shared.deadline();
        let groups: Vec<Vec<NodeId>> = nodes.chunks(READS_TOGETHER).map(<[NodeId]>::to_vec).collect();
        let reads = stream::iter(groups).map(|group| self.said_by(group, deadline));
        let said: Vec<Vec<(NodeId, CacheSeen)>> = reads.buffered(READS_MAX).try_collect().await?;
        Ok(said.into_iter().flatten().collect())
    }

    /// What some nodes said last, those that are still alive.
    async fn said_by(&self, nodes: Vec<NodeId>, deadline: Instant) -> CoordinationResult<Vec<(NodeId, CacheSeen)>> {
        let paths: Vec<String> = nodes.iter().map(|node| seen_path(*node)).collect();
        let found = self.shared.read(deadline, SEEN, |client| {
            let paths = &paths;
            async move { read_together(&client, paths).await }
        });
        // Who is not found is gone; nobody is that for the want of an answer.
        let found = found.await?.ok_or_else(|| CoordinationError::Unavailable(format!("{SEEN} cannot be read")))?;
        let mut said = Vec::with_capacity(found.len());
        for ((node, path), found) in nodes.iter().zip(&paths).zip(found) {
            if let Some((bytes, _)) = found {
                said.push((*node, decode::<StoredSeen>(path, &bytes)?.into()));
            }
        }
        Ok(said)
    }
}
