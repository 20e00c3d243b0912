//! Clusters of nodes in this process, each with its own certificate, socket and chunks in memory.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::peers::conformance::SHARD_COUNT;
use holdfast_actors::ports::peers::memory::MemoryReplica;
use holdfast_node::peers::{AddressBook, PeerEndpoint, PeerOptions, PeerParts, QuicPeers};
use holdfast_node::pki::enrol::Issuer;
use holdfast_node::pki::verify::{PeerVerifier, server_name};
use holdfast_node::pki::{IdentityOptions, NodeIdentity, init_cluster};
use holdfast_protocol::{ClusterId, NodeId};
use parking_lot::Mutex;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use tokio::runtime::Handle;

/// Times that a machine that stands still for some seconds does not exceed.
pub fn options() -> PeerOptions {
    PeerOptions {
        dial_timeout: Duration::from_secs(10),
        request_timeout: Duration::from_secs(30),
        progress_timeout: Duration::from_secs(30),
        idle_timeout: Duration::from_secs(20),
        ..PeerOptions::default()
    }
}

type Addresses = Arc<Mutex<HashMap<NodeId, String>>>;

/// A cluster, and where its nodes are.
pub struct Cluster {
    pub id: ClusterId,
    pub addresses: Addresses,
    /// Of certificates.
    pub lifetime: Duration,
    first: Option<Arc<NodeIdentity>>,
}

/// One node.
pub struct Node {
    pub id: NodeId,
    pub identity: Arc<NodeIdentity>,
    pub service: Arc<MemoryReplica>,
    pub issuer: Arc<Issuer>,
    pub data_dir: tempfile::TempDir,
    endpoint: PeerEndpoint,
}

impl Cluster {
    pub fn new(id: ClusterId) -> Self {
        let lifetime = IdentityOptions::default().lifetime;
        Self { id, addresses: Addresses::default(), lifetime, first: None }
    }

    pub fn book(&self) -> AddressBook {
        let addresses = Arc::clone(&self.addresses);
        Arc::new(move |node| addresses.lock().get(&node).cloned())
    }

    /// A new node, with the first one's CA, as a copy of its files would make it.
    pub fn node(&mut self, options: PeerOptions) -> Node {
        self.node_on(options, Arc::new(MemoryChunkStore::new()))
    }

    pub fn node_on(&mut self, options: PeerOptions, store: Arc<MemoryChunkStore>) -> Node {
        let (id, dir) = (NodeId::generate(), tempfile::tempdir().unwrap());
        init_cluster(dir.path(), id, self.id).unwrap();
        if let Some(first) = &self.first {
            let cluster = dir.path().join("cluster");
            std::fs::write(cluster.join("ca.pem"), first.ca().certificate_pem()).unwrap();
            std::fs::write(cluster.join("ca.key"), first.ca().key_pem().as_bytes()).unwrap();
        }
        let node = self.start(id, dir, options, store);
        self.first.get_or_insert_with(|| Arc::clone(&node.identity));
        node
    }

    pub fn start_again(&self, id: NodeId, dir: tempfile::TempDir, options: PeerOptions) -> Node {
        self.start(id, dir, options, Arc::new(MemoryChunkStore::new()))
    }

    fn start(&self, id: NodeId, dir: tempfile::TempDir, options: PeerOptions, store: Arc<MemoryChunkStore>) -> Node {
        let identity = load(dir.path(), id, self.lifetime);
        let service = Arc::new(MemoryReplica::new(id, store, SHARD_COUNT));
        let issuer = Arc::new(Issuer::new(Arc::clone(&identity), dir.path()).knowing(self.book()));
        let parts = PeerParts {
            runtime: Handle::current(),
            bind: "127.0.0.1:0".parse().unwrap(),
            identity: Arc::clone(&identity),
            addresses: self.book(),
            options,
        };
        let mut endpoint = PeerEndpoint::bind(parts).unwrap();
        endpoint.serve(service.clone(), Some(Arc::clone(&issuer))).unwrap();
        self.addresses.lock().insert(id, endpoint.local_addr().to_string());
        Node { id, identity, service, issuer, data_dir: dir, endpoint }
    }
}

pub fn load(dir: &Path, id: NodeId, lifetime: Duration) -> Arc<NodeIdentity> {
    NodeIdentity::load(dir, id, IdentityOptions { lifetime }).unwrap().unwrap()
}

impl Node {
    pub fn peers(&self) -> QuicPeers {
        self.endpoint.peers()
    }

    pub fn handshakes(&self) -> usize {
        self.endpoint.handshakes()
    }

    pub fn address(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }

    /// Stops it; its directory can be started again.
    pub async fn stop(self) -> (NodeId, tempfile::TempDir) {
        self.endpoint.shutdown().await;
        (self.id, self.data_dir)
    }
}

/// Shows one certificate.
#[derive(Debug)]
pub struct Shows(pub Arc<CertifiedKey>);

impl rustls::client::ResolvesClientCert for Shows {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl rustls::server::ResolvesServerCert for Shows {
    fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// A connection to `to` made by hand, by whoever holds `certificate`.
pub async fn dial_by_hand(
    to: &Node,
    certificate: Option<Arc<CertifiedKey>>,
    alpn: &[u8],
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let provider = Arc::new(ring::default_provider());
    let ca = to.identity.ca().certificate().clone();
    let verifier = PeerVerifier::new(to.identity.cluster(), ca, Arc::clone(&provider)).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut tls = match certificate {
        Some(certificate) => builder.with_client_cert_resolver(Arc::new(Shows(certificate))),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.connect_with(config, to.address(), &server_name(to.id)).unwrap().await
}
