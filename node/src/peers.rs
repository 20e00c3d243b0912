//! The `Peers` port over QUIC, and the server that answers it with a [`ReplicaService`].
//!
//! A node has one UDP socket for peers, at which it dials and answers. There is one connection to each peer, dialled
//! when it is first needed and again when it broke or when this node's certificate was renewed; each operation is a
//! stream of it. The frames are described in `holdfast_protocol::peer`, who may connect in [`crate::pki`].
//!
//! * [`quic`]: the socket and how QUIC is tuned. Its tasks run on the control runtime, whoever calls.
//! * [`tls`]: certificates at the handshake. [`handshakes`]: how many strangers may be at it.
//! * [`client`]: the port. [`sink`] and [`body`] are its two streams of payload.
//! * [`server`]: answers, one task a stream.
//! * [`stream`]: frames on a stream. [`convert`]: between the port's types and those of frames.
//!
//! # Bounds
//! | what | bound |
//! |---|---|
//! | bytes sent and not acknowledged, per peer | the send window |
//! | bytes handed to [`PeerSink::send`] that wait for the window | a budget per peer and one for all peers together |
//! | bytes received and not yet read, per connection | the connection's window; a disk that does not keep up is not read for |
//! | handshakes of whoever dials | 64, 32 of one address; addresses are validated when more than a few are under way |
//! | streams per connection | [`PeerOptions::streams_per_peer_max`] |
//! | time | each wait has a deadline, see [`PeerOptions`] |
//!
//! Payload is not copied by the sender. The receiver copies it once: into the disk's buffers when it writes, into a
//! block that is verified before it is handed out when it reads.
//!
//! [`ReplicaService`]: holdfast_actors::ports::peers::ReplicaService
//! [`PeerSink::send`]: holdfast_actors::ports::peers::PeerSink::send

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_actors::ports::peers::ReplicaService;
use holdfast_protocol::NodeId;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::pki::enrol::Issuer;
use crate::pki::{NodeIdentity, PkiError};

pub mod body;
pub mod client;
mod convert;
mod handshakes;
pub(crate) mod quic;
pub mod server;
pub mod sink;
pub(crate) mod stream;
pub(crate) mod tls;

pub use client::QuicPeers;
pub use handshakes::HANDSHAKES_MAX;

use handshakes::Handshakes;

/// Where a node can be reached, `host:port`; `None` when it is not known.
pub type AddressBook = Arc<dyn Fn(NodeId) -> Option<String> + Send + Sync>;

/// Times and sizes.
#[derive(Debug, Clone)]
pub struct PeerOptions {
    /// For a connection to stand.
    pub dial_timeout: Duration,
    /// The shortest pause after a failed dial; it doubles with each.
    pub backoff_min: Duration,
    /// The longest.
    pub backoff_max: Duration,
    /// For an answer that needs no flush of data.
    pub request_timeout: Duration,
    /// For some of a payload to be taken by the peer.
    pub progress_timeout: Duration,
    /// For a chunk to become durable, or for deletions.
    pub durable_timeout: Duration,
    /// For the next piece of a payload from the caller. A client of S3 may be slow, so this is long.
    pub payload_timeout: Duration,
    /// A silent connection is dead after this, unless its peer is back and says before that it knows nothing of it.
    pub idle_timeout: Duration,
    /// An idle connection is kept alive so often.
    pub keep_alive: Duration,
    /// Streams that a peer may have open at a time.
    pub streams_per_peer_max: u32,
    /// Bytes that wait to be sent to one peer.
    pub waiting_bytes_per_peer_max: u32,
    /// Bytes that wait to be sent to all of them.
    pub waiting_bytes_max: u32,
    /// Bytes that a stream may be ahead of its reader.
    pub stream_window_bytes: u32,
    /// Bytes that a connection may be ahead of its readers.
    pub connection_window_bytes: u32,
    /// Bytes that are on the way to a peer, not acknowledged.
    pub send_window_bytes: u64,
}

impl Default for PeerOptions {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(3),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            progress_timeout: Duration::from_secs(10),
            durable_timeout: Duration::from_secs(30),
            payload_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(1),
            streams_per_peer_max: 512,
            waiting_bytes_per_peer_max: 32 << 20,
            waiting_bytes_max: 96 << 20,
            // Smaller windows lose throughput on two busy cores, where a reader may not run for milliseconds.
            stream_window_bytes: 8 << 20,
            connection_window_bytes: 32 << 20,
            send_window_bytes: 8 << 20,
        }
    }
}

/// What a node needs to talk to its peers.
pub struct PeerParts {
    /// The control runtime. Multi-threaded; it outlives the endpoint.
    pub runtime: Handle,
    /// Where to listen, and to dial from.
    pub bind: SocketAddr,
    /// Who this node is.
    pub identity: Arc<NodeIdentity>,
    /// Where the others are.
    pub addresses: AddressBook,
    /// Times and sizes.
    pub options: PeerOptions,
}

/// Why the endpoint cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be had.
    #[error("bind the peer address {address}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The node's certificate cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// A node's socket for its peers. Dropping it closes all connections.
pub struct PeerEndpoint {
    endpoint: quinn::Endpoint,
    address: SocketAddr,
    parts: PeerParts,
    peers: QuicPeers,
    handshakes: Handshakes,
    tasks: Vec<AbortHandle>,
    /// Cancelled when peers are answered no more, for whatever reason.
    ended: CancellationToken,
}

impl PeerEndpoint {
    /// Binds the socket. Calls of [`Self::peers`] work from here on; others are answered after [`Self::serve`].
    ///
    /// # Errors
    /// [`StartError`].
    pub fn bind(parts: PeerParts) -> Result<Self, StartError> {
        let bind_error = |source| StartError::Bind { address: parts.bind, source };
        let endpoint = quic::node_endpoint(&parts.runtime, parts.bind, &parts.identity).map_err(bind_error)?;
        let address = endpoint.local_addr().map_err(bind_error)?;
        let peers = QuicPeers::new(endpoint.clone(), &parts)?;
        let (handshakes, ended) = (Handshakes::default(), CancellationToken::new());
        Ok(Self { endpoint, address, parts, peers, handshakes, tasks: Vec::new(), ended })
    }

    /// The address bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Handshakes under way of those who dialled this node.
    pub fn handshakes(&self) -> usize {
        self.handshakes.count()
    }

    /// The port for this node's callers.
    pub fn peers(&self) -> QuicPeers {
        self.peers.clone()
    }

    /// Answers peers with `service` and enrolments with `issuer`, and keeps the node's certificate renewed.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn serve(&mut self, service: Arc<dyn ReplicaService>, issuer: Option<Arc<Issuer>>) -> Result<(), StartError> {
        let config = quic::server_config(&self.parts.identity, &self.parts.options)?;
        self.endpoint.set_server_config(Some(config));
        let accepting = server::accept(
            self.endpoint.clone(),
            server::Serving { service, issuer, options: self.parts.options.clone() },
            self.handshakes.clone(),
        );
        let renewing = Arc::clone(&self.parts.identity).keep_renewed();
        let guard = self.ended.clone().drop_guard();
        let accepting = async move {
            let _guard = guard;
            accepting.await;
        };
        self.tasks.push(self.parts.runtime.spawn(accepting).abort_handle());
        self.tasks.push(self.parts.runtime.spawn(renewing).abort_handle());
        Ok(())
    }

    /// Resolves when peers are answered no more: any error of the socket, even one that would pass, is the end of it to
    /// the QUIC library.
    pub async fn lost(&self) {
        self.ended.cancelled().await;
    }

    /// Closes all connections and waits, at most a second, until the peers know.
    pub async fn shutdown(self) {
        self.endpoint.close(quic::CODE_CLOSED, b"the node stops");
        // The peers notice by their own timeouts otherwise.
        tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await.ok();
    }
}

impl Drop for PeerEndpoint {
    fn drop(&mut self) {
        // First, so that the peers are told why; a connection whose task ends says nothing of that. What is to be sent
        // for it is sent by tasks of the runtime, which outlives the endpoint.
        self.endpoint.close(quic::CODE_CLOSED, b"the node stops");
        for task in &self.tasks {
            task.abort();
        }
    }
}
