//! A node is registered in its cluster, unless that refuses it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use holdfast_actors::ports::coordination::{Coordination, NodeAnnouncement, filler, filler_before};
use holdfast_actors::ports::{Clock, Disk, MetadataStore};
use holdfast_actors::service::cluster::{self, ClusterHandle, ClusterParts, ClusterSettings};
use holdfast_protocol::NodeId;

use super::super::STOP_STEP_MAX;
use super::super::parts::{RESTART_WINDOW, RESTARTS_MAX};
use super::Joint;
use crate::config::Config;

/// How long a node waits at its start to be registered: some sessions, since a predecessor's may have to end first.
const REGISTRATION_SESSIONS: u32 = 6;

impl Joint {
    /// Starts the actors and waits until the others see this node.
    ///
    /// # Errors
    /// When it is refused: its id is in use, the cluster is another one, or a tool fills the metadata.
    pub(in crate::assemble) async fn start(
        &self,
        config: &Config,
        announcement: NodeAnnouncement,
        disks: Vec<Arc<dyn Disk>>,
        metadata: Arc<dyn MetadataStore>,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<ClusterHandle> {
        // Twice: for an answer before anything is begun, and for certain when tools can see this node.
        refuse(filler(&*self.coordination))?;
        let parts = ClusterParts {
            cluster: self.identity.id,
            announcement,
            view: self.view.clone(),
            coordination: self.coordination.clone(),
            metadata,
            chunks: self.local.clone(),
            disks,
            peers: self.peers.clone(),
            clock,
            reports: self.reports.clone(),
            chunk_locks: self.chunk_locks.clone(),
            self_report: self.self_report.clone(),
            findings: self.findings.clone(),
            cache: self.cache.clone(),
            settings: settings(config),
            restarts_max: RESTARTS_MAX,
            restart_window: RESTART_WINDOW,
        };
        let actors = cluster::start(parts).await.context("start the actors of the cluster")?;
        let patience = config.cluster.session_timeout.duration() * REGISTRATION_SESSIONS;
        let registered = async {
            tokio::select! {
                done = actors.registered() => done.map_err(|reason| anyhow!(reason))?,
                // It is not registered before that ends, which takes hours.
                refused = filled(&*self.coordination) => return Err(refused),
            }
            let (me, incarnation) = (self.view.me(), actors.membership().incarnation);
            refuse_filled_before(&*self.coordination, me, incarnation).await
        };
        let refused = match tokio::time::timeout(patience, registered).await {
            Ok(Ok(())) => {
                if let Some(cache) = &self.cache
                    && !cache.stands(patience).await
                {
                    tracing::warn!("this node is registered, but does not know yet how the cache stands");
                }
                return Ok(actors);
            }
            Ok(Err(refused)) => refused,
            Err(_) => {
                let error = actors.membership().last_error.unwrap_or_else(|| "no answer".into());
                anyhow!("this node could not be registered within {} s: {error}", patience.as_secs())
            }
        };
        // An attempt may be on its way.
        self.registration(&actors).withdraw().await;
        Err(refused)
    }

    /// What ends the registration of a node whose start fails later.
    pub(in crate::assemble) fn registration(&self, actors: &ClusterHandle) -> Registration {
        Registration { actors: actors.clone(), coordination: self.coordination.clone() }
    }
}

/// Refuses while a tool fills the metadata.
fn refuse(filler: Option<NodeId>) -> anyhow::Result<()> {
    let Some(node) = filler else { return Ok(()) };
    bail!(
        "`holdfast cluster restore-metadata` or `rebuild-metadata` fills the metadata on node {node}, and this node would delete \
         chunks that are not in them yet: start it when that has ended"
    )
}

/// Refuses when a tool took its lease before this node, which is registered, could be seen.
async fn refuse_filled_before(coordination: &dyn Coordination, me: NodeId, incarnation: u64) -> anyhow::Result<()> {
    let filler = filler_before(coordination, me, incarnation).await;
    refuse(filler.context("wait to see this node in the cluster")?)
}

/// Resolves when a tool fills the metadata, as far as is known here.
async fn filled(coordination: &dyn Coordination) -> anyhow::Error {
    let mut leases = coordination.leases();
    loop {
        if let Err(why) = refuse(filler(coordination)) {
            return why;
        }
        if leases.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A node that the others may know of, though it does not serve yet.
pub(in crate::assemble) struct Registration {
    actors: ClusterHandle,
    coordination: Arc<dyn Coordination>,
}

impl Registration {
    /// Takes the node out of the cluster again: the others would see it until its session lapses, and send it what it
    /// never answers.
    pub(in crate::assemble) async fn withdraw(self) {
        self.actors.stop(STOP_STEP_MAX).await;
        if tokio::time::timeout(STOP_STEP_MAX, self.coordination.close()).await.is_err() {
            tracing::warn!("the session of this node could not be ended: the others see it until it lapses");
        }
    }
}

fn settings(config: &Config) -> ClusterSettings {
    let cluster = &config.cluster;
    let defaults = ClusterSettings::default();
    ClusterSettings {
        rebuild_delay: cluster.rebuild_delay.duration(),
        give_up_silent_after: config.storage.fence_unresponsive_after.nonzero(),
        leave_grace: cluster.leave_grace.duration(),
        repair_bandwidth_bytes: cluster.repair_bandwidth.get(),
        announce_interval: cluster.session_timeout.duration().max(Duration::from_secs(5)),
        comparison_settle: cluster.in_proportion(defaults.comparison_settle),
        repair_interval: cluster.in_proportion(defaults.repair_interval),
        retry_max: cluster.in_proportion(defaults.retry_max),
        ..defaults
    }
}

#[cfg(test)]
mod tests {
    use holdfast_actors::ports::coordination::{ClusterIdentity, FILLING, LeaseName, NodeAddresses};
    use holdfast_protocol::cluster::LayoutDocument;

    use super::super::announcement;
    use super::*;
    use crate::coordination::InProcessCluster;

    #[tokio::test]
    async fn a_tool_that_began_while_a_node_was_on_its_way_is_noticed_by_the_node() {
        let cluster = InProcessCluster::new(Duration::from_secs(30));
        let (node, tool) = (cluster.participant(), cluster.participant());
        let identity = ClusterIdentity::new(4, 1);
        node.create_cluster(&identity, &LayoutDocument::new(3)).await.unwrap();
        refuse(filler(&node)).expect("nothing is filled when the node begins to start");

        let me = NodeId::from(1);
        let began = async {
            let lease = tool.acquire(&LeaseName::new(FILLING).unwrap(), NodeId::from(9)).await.unwrap();
            assert!(tool.cache_seen().await.unwrap().is_empty(), "it sees no node");
            let addresses = NodeAddresses { peer: "a:1".into(), s3: "a:2".into(), admin: "a:3".into() };
            let said = announcement(&Config::default(), me, addresses);
            node.register(identity.id, said).await.unwrap();
            lease
        };
        let (refused, lease) = tokio::join!(refuse_filled_before(&node, me, 1), began);
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("fills the metadata on node 0000000000000009"), "{error}");

        let incarnation = node.membership().borrow().nodes[&me].incarnation;
        lease.release().await;
        refuse_filled_before(&node, me, incarnation).await.expect("it has ended");
    }
}
