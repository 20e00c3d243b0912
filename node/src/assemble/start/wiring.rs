//! What each part of a node is given by its start.

use std::net::SocketAddr;
use std::sync::Arc;

use holdfast_actors::flow::relay::RelayOwner;
use holdfast_actors::ports::coordination::{NodeAddresses, NodeAnnouncement};
use holdfast_actors::ports::tiers::Tiers;
use holdfast_actors::service::cluster::Findings;
use holdfast_protocol::NodeId;
use holdfast_storage::buf::{LARGE_BYTES, SMALL_BYTES};

use super::super::cluster::{self, ClusterPorts, JointParts};
use super::super::journal::JournalParts;
use super::super::lifecycle::LifecycleStart;
use super::super::tiers::TierParts;
use super::super::transport::Served;
use super::opened::LocalDisks;
use super::{Common, Member, Unregistered};
use crate::config::Config;
use crate::tiers::Counts;

pub(super) fn joint_parts(
    config: &Config,
    common: &Common,
    ports: ClusterPorts,
    local: &LocalDisks,
    findings: Arc<Findings>,
) -> JointParts {
    JointParts {
        me: common.me,
        ports,
        local: local.chunks.clone(),
        disks: local.disks.clone(),
        findings,
        clock: common.clock.clone(),
        reporter: common.reporter.clone(),
        buffers_bytes: config.storage.large_buffers as usize * LARGE_BYTES
            + config.storage.small_buffers as usize * SMALL_BYTES,
    }
}

/// What a node says of itself at first.
pub(super) fn announcement(config: &Config, me: NodeId, served: &Served, admin_addr: SocketAddr) -> NodeAnnouncement {
    let told = |told: &Option<String>, bound: String| told.clone().unwrap_or(bound);
    let addresses = NodeAddresses {
        peer: told(&config.cluster.advertise_peer, served.addr.clone()),
        s3: told(&config.cluster.advertise_s3, config.s3.addr.to_string()),
        admin: told(&config.cluster.advertise_admin, admin_addr.to_string()),
    };
    cluster::announcement(config, me, addresses)
}

pub(super) fn relay_owner(common: &Common, member: Option<&Member>) -> RelayOwner {
    match member {
        None => RelayOwner::Alone,
        Some(member) => RelayOwner::Cluster { coordination: member.joint.coordination.clone(), me: common.me },
    }
}

pub(super) fn tier_parts(node: &Unregistered, member: Option<&Member>) -> TierParts {
    let common = &node.common;
    TierParts {
        ledger: node.metadata.tiers.clone(),
        metadata: node.metadata.store.clone(),
        chunks: node.chunks.clone(),
        clock: common.clock.clone(),
        sealer: common.vault.clone(),
        opener: common.vault.clone(),
        reporter: common.reporter.clone(),
        me: common.me,
        ownership: member.map(|member| member.joint.coordination.ownership()),
        node_name: common.data_dir_name.clone(),
        counts: member.map_or_else(|| Arc::new(|| true) as Counts, |member| member.joint.counts()),
    }
}

pub(super) fn journal_parts(config: &Config, node: &Unregistered) -> JournalParts {
    JournalParts {
        journal: node.metadata.journal.clone(),
        bus: node.bus.clone(),
        reporter: node.common.reporter.clone(),
        clock: node.common.clock.clone(),
        config: config.journal.clone(),
    }
}

pub(super) fn lifecycle_start(node: &Unregistered, tiers: Arc<dyn Tiers>, member: Option<&Member>) -> LifecycleStart {
    LifecycleStart {
        metadata: node.metadata.store.clone(),
        tiers,
        reads: node.metadata.reads.clone(),
        clock: node.common.clock.clone(),
        cluster: member.map(|member| member.joint.lifecycle_duty()),
        node_name: node.common.data_dir_name.clone(),
    }
}
