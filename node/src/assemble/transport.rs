//! The way between the nodes of a cluster: within the process, or by QUIC.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use holdfast_actors::ports::coordination::Membership;
use holdfast_actors::ports::peers::in_process::InProcessNetwork;
use holdfast_actors::ports::peers::{Peers, ReplicaService};
use holdfast_protocol::NodeId;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::data_dir::DataDir;
use crate::admin::Enrolment;
use crate::config::Config;
use crate::peers::{AddressBook, PeerEndpoint, PeerOptions, PeerParts};
use crate::pki::enrol::Issuer;
use crate::pki::{IdentityOptions, NodeIdentity};

/// How peers are reached.
pub(super) enum Transport {
    /// Directly.
    InProcess(InProcessNetwork),
    /// By QUIC.
    Quic(Box<QuicTransport>),
}

/// What a node needs to be served by QUIC.
pub(super) struct QuicTransport {
    identity: Arc<NodeIdentity>,
    data_dir: PathBuf,
    bind: SocketAddr,
    advertised: Option<String>,
    options: PeerOptions,
}

/// How peers are talked to. One that brings a chunk waits for a client, and says nothing until it has a piece, which
/// may be all of the chunk: it is given as long as the client is.
fn peer_options(config: &Config) -> PeerOptions {
    let options = PeerOptions::default();
    let payload_timeout = options.payload_timeout.max(config.limits.chunk_timeout.duration());
    PeerOptions { payload_timeout, ..options }
}

/// A node that is served to its peers, until this is dropped.
pub(super) struct Served {
    /// The way to the others.
    pub(super) peers: Arc<dyn Peers>,
    /// Where the others reach this node.
    pub(super) addr: String,
    in_process: Option<(InProcessNetwork, NodeId)>,
    endpoint: Option<PeerEndpoint>,
    enrolment: Option<Arc<dyn Enrolment>>,
}

impl Transport {
    /// By QUIC, with the certificates in the data directory.
    ///
    /// # Errors
    /// When they are missing or cannot be used.
    pub(super) fn quic(config: &Config, data_dir: &DataDir) -> anyhow::Result<Self> {
        let loaded = NodeIdentity::load(data_dir.path(), data_dir.node_id(), IdentityOptions::default());
        let Some(identity) = loaded.context("read the node's certificate")? else {
            bail!("this node has no certificate: run `holdfast cluster init` or `holdfast cluster join` first");
        };
        Ok(Self::Quic(Box::new(QuicTransport {
            identity,
            data_dir: data_dir.path().to_owned(),
            bind: config.cluster.peer_addr,
            advertised: config.cluster.advertise_peer.clone(),
            options: peer_options(config),
        })))
    }

    /// Serves `service` to the peers of `me`.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub(super) fn serve(
        self,
        me: NodeId,
        service: &Arc<dyn ReplicaService>,
        membership: watch::Receiver<Arc<Membership>>,
    ) -> anyhow::Result<Served> {
        match self {
            Self::InProcess(network) => {
                network.join(me, service);
                let peers = Arc::new(network.peers_of(me));
                let addr = format!("in-process:{me}");
                Ok(Served { peers, addr, in_process: Some((network, me)), endpoint: None, enrolment: None })
            }
            Self::Quic(quic) => quic.serve(service, membership),
        }
    }
}

impl QuicTransport {
    fn serve(
        self,
        service: &Arc<dyn ReplicaService>,
        membership: watch::Receiver<Arc<Membership>>,
    ) -> anyhow::Result<Served> {
        let addresses: AddressBook = Arc::new(move |node| {
            membership.borrow().nodes.get(&node).map(|live| live.announcement.addresses.peer.clone())
        });
        let issuer = Arc::new(Issuer::new(self.identity.clone(), &self.data_dir).knowing(addresses.clone()));
        let mut endpoint = PeerEndpoint::bind(PeerParts {
            runtime: Handle::current(),
            bind: self.bind,
            identity: self.identity,
            addresses,
            options: self.options,
        })
        .with_context(|| format!("listen on cluster.peer_addr {}", self.bind))?;
        endpoint.serve(service.clone(), Some(issuer.clone())).context("serve peers")?;
        let addr = self.advertised.unwrap_or_else(|| endpoint.local_addr().to_string());
        Ok(Served {
            peers: Arc::new(endpoint.peers()),
            addr: addr.clone(),
            in_process: None,
            endpoint: Some(endpoint),
            enrolment: Some(Arc::new(Tokens { issuer, addr })),
        })
    }
}

impl Served {
    /// What makes join tokens; nodes of one process need none.
    pub(super) fn enrolment(&self) -> Option<Arc<dyn Enrolment>> {
        self.enrolment.clone()
    }

    /// Resolves when peers cannot be served any more.
    pub(super) async fn lost(&self) {
        match &self.endpoint {
            Some(endpoint) => endpoint.lost().await,
            None => std::future::pending().await,
        }
    }

    /// Serves no more requests of peers.
    pub(super) async fn stop(&mut self) {
        self.leave();
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.shutdown().await;
        }
    }

    fn leave(&mut self) {
        if let Some((network, me)) = self.in_process.take() {
            network.leave(me);
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Tokens that lead to this node.
struct Tokens {
    issuer: Arc<Issuer>,
    addr: String,
}

impl Enrolment for Tokens {
    fn issue_token(&self, seconds: u32) -> Result<(String, u64), String> {
        let lifetime = Duration::from_secs(u64::from(seconds));
        let token = self.issuer.issue_token(vec![self.addr.clone()], lifetime).map_err(|error| error.to_string())?;
        let until = SystemTime::now() + lifetime;
        let expires_ms = until.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        Ok((token.to_text().to_string(), expires_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else no write of a client that is as slow as it may be, and whose object is one piece, would find its quorum.
    #[test]
    fn a_peer_may_be_as_slow_with_a_chunk_as_a_client() {
        let mut config = Config::default();
        assert_eq!(peer_options(&config).payload_timeout, config.limits.chunk_timeout.duration());
        config.limits.chunk_timeout = crate::config::Span::seconds(1);
        assert_eq!(peer_options(&config).payload_timeout, PeerOptions::default().payload_timeout);
    }
}
