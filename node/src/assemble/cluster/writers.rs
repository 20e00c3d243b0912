//! What the nodes of a cluster are writing: no orphan may be condemned that one of them is about to commit.

use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_actors::flow::cluster_view::ClusterView;
use holdfast_actors::flow::reclaim::Writers;
use holdfast_actors::flow::self_report::SelfReport;
use holdfast_actors::ports::coordination::{Coordination, filler};
use holdfast_actors::ports::peers::Peers;
use holdfast_protocol::NodeId;

/// Nodes asked at once for what they are writing.
const WRITERS_AT_ONCE: usize = 16;

/// The nodes that are alive, as far as is known here.
pub(super) struct LiveWriters {
    pub(super) view: Arc<ClusterView>,
    pub(super) peers: Arc<dyn Peers>,
    pub(super) self_report: Arc<SelfReport>,
    pub(super) coordination: Arc<dyn Coordination>,
}

#[async_trait]
impl Writers for LiveWriters {
    async fn oldest_seconds(&self) -> Result<Option<u64>, String> {
        // It took this node for stopped, which was paused.
        if let Some(node) = filler(&*self.coordination) {
            return Err(format!("node {node} fills the metadata, by restore-metadata or rebuild-metadata"));
        }
        let mut nodes: Vec<NodeId> = self.view.membership().borrow().nodes.keys().copied().collect();
        nodes.retain(|node| *node != self.view.me());
        let asked = stream::iter(nodes).map(|node| async move {
            let health = self.peers.health(node).await;
            health.map(|health| health.oldest_write_seconds).map_err(|error| format!("node {node}: {error}"))
        });
        let told: Vec<Option<u64>> = asked.buffer_unordered(WRITERS_AT_ONCE).try_collect().await?;
        Ok(told.into_iter().chain([self.self_report.oldest_write_seconds()]).flatten().min())
    }
}

#[cfg(test)]
mod tests {
    use holdfast_actors::ports::coordination::{ClusterIdentity, FILLING, LeaseName};
    use holdfast_actors::ports::peers::in_process::InProcessNetwork;
    use holdfast_protocol::cluster::LayoutDocument;

    use super::*;
    use crate::coordination::InProcessCluster;

    /// It took this node for stopped, which only stood still.
    #[tokio::test]
    async fn no_walk_for_orphans_begins_while_a_tool_fills_the_metadata() {
        let cluster = InProcessCluster::default();
        let (node, tool) = (cluster.participant(), cluster.participant());
        node.create_cluster(&ClusterIdentity::new(4, 1), &LayoutDocument::new(3)).await.unwrap();
        let me = NodeId::from(1);
        let writers = LiveWriters {
            view: ClusterView::new(me, 4, node.shards(), node.membership(), node.ownership()),
            peers: Arc::new(InProcessNetwork::default().peers_of(me)),
            self_report: SelfReport::new(),
            coordination: Arc::new(node),
        };
        assert_eq!(writers.oldest_seconds().await, Ok(None));
        let lease = tool.acquire(&LeaseName::new(FILLING).unwrap(), NodeId::from(9)).await.unwrap();
        let refused = writers.oldest_seconds().await.unwrap_err();
        assert!(refused.contains("fills the metadata"), "{refused}");
        lease.release().await;
        assert_eq!(writers.oldest_seconds().await, Ok(None));
    }
}
