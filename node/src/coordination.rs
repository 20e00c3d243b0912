//! Adapters of the `Coordination` port.
//!
//! * [`in_process`]: nodes of one process share a cluster in memory. The default of a node that runs alone.
//! * [`zookeeper`]: a ZooKeeper ensemble.

pub mod in_process;
pub mod zookeeper;

pub use in_process::{InProcessCluster, InProcessCoordination};
pub use zookeeper::{Claim, Digest, ZookeeperConfig, ZookeeperCoordination};

use holdfast_actors::ports::coordination::{ClusterIdentity, CoordinationError, CoordinationResult, FORMAT};

/// What both adapters refuse before they ask anybody.
fn check_new_cluster(identity: &ClusterIdentity) -> CoordinationResult<()> {
    if identity.format != FORMAT {
        return Err(CoordinationError::Invalid(format!("new clusters have format {FORMAT}")));
    }
    identity.check().map_err(CoordinationError::Invalid)
}
