//! What a node sees of a tool that fills the metadata of a cluster whose nodes are stopped, by its lease [`FILLING`].

use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::NodeId;
use tokio::time::timeout;

use super::{Coordination, CoordinationError, CoordinationResult, FILLING, Membership};

/// How long a node may take to see itself after it was registered.
const SEEN_PATIENCE: Duration = Duration::from_secs(30);

/// The node on which a tool fills the metadata, as far as is known here.
pub fn filler(coordination: &dyn Coordination) -> Option<NodeId> {
    coordination.leases().borrow().get(FILLING).map(|holder| holder.node)
}

/// Likewise, and for certain if the tool took its lease before this node, which is registered, could be seen. One that
/// took it later has seen the node: it looks for nodes when it has the lease.
///
/// # Errors
/// [`CoordinationError::Unavailable`] when the registration is not shown here in time.
pub async fn filler_before(
    coordination: &dyn Coordination,
    me: NodeId,
    incarnation: u64,
) -> CoordinationResult<Option<NodeId>> {
    // What is known of leases is as new as what is known of nodes. Another node of this id may be known still.
    let is_seen = |known: &Arc<Membership>| known.nodes.get(&me).is_some_and(|node| node.incarnation >= incarnation);
    let mut membership = coordination.membership();
    if timeout(SEEN_PATIENCE, membership.wait_for(is_seen)).await.is_ok_and(|seen| seen.is_ok()) {
        return Ok(filler(coordination));
    }
    Err(CoordinationError::Unavailable("this node is registered, but does not see itself in the cluster".into()))
}
