//! The socket, and how QUIC is tuned.
//!
//! What counts for the cost of a byte is how many bytes a system call and a packet carry: packets of up to 6,500 bytes
//! where the path allows it, ten of them in one call (GSO), which stays below the 64 KiB that a datagram may have.
//! AES-128-GCM is asked for first. Acknowledgements are asked for less often than the default, since they cost as much
//! as data.
//!
//! A process that was killed said nothing to its peers. When the next one has the socket it answers what they send on
//! connections that it does not have by a reset, which they believe, since the key for it is the same ([`reset_key`]).
//! Otherwise each of them would wait until the connection has been silent for long.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::CubicConfig;
use quinn::{
    AckFrequencyConfig, AsyncTimer, AsyncUdpSocket, ConnectionError, ConnectionId, ConnectionIdGenerator, Endpoint,
    EndpointConfig, MtuDiscoveryConfig, Runtime, TokioRuntime, TransportConfig, VarInt,
};
use ring::hmac;
use rustix::net::sockopt;
use tokio::runtime::Handle;

use super::{PeerOptions, tls};
use crate::pki::{NodeIdentity, PkiError};

/// Ten packets of this size, the most that one call sends, stay below 64 KiB.
const MTU_MAX: u16 = 6_500;
/// Of the socket, each way: enough for what arrives while the reader does not run.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// The first flight of a connection: peers are near, and a chunk should not wait for the window to open.
const INITIAL_WINDOW_BYTES: u64 = 256 << 10;
/// Connections that wait to be looked at; packets of further ones are dropped.
const INCOMING_MAX: usize = 256;
/// Of a connection id: as many as quinn takes by itself.
const CONNECTION_ID_BYTES: usize = 8;
/// What a node's key for resets is made from, beside its id and the cluster's key.
const RESET_LABEL: &[u8] = b"holdfast: resets of peers' connections";

/// The node stops, or does not need the connection any more.
pub(crate) const CODE_CLOSED: VarInt = VarInt::from_u32(0);
/// What the other side wants does not fit its certificate.
pub(crate) const CODE_REFUSED: VarInt = VarInt::from_u32(1);
/// A stream was given up by its caller.
pub(crate) const CODE_DROPPED: VarInt = VarInt::from_u32(2);

/// Runs QUIC's tasks and timers on the control runtime, whichever runtime a call comes from: those of the data plane
/// are single threads that must not carry other cores' traffic.
#[derive(Debug)]
struct ControlRuntime(Handle);

impl Runtime for ControlRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _inside = self.0.enter();
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let _inside = self.0.enter();
        TokioRuntime.wrap_udp_socket(socket)
    }
}

/// Ids of connections that say nothing, not even which process made them.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; CONNECTION_ID_BYTES]>())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// A node's key for resets: the same after a restart, another one for each node, and known to the cluster alone.
fn reset_key(identity: &NodeIdentity) -> hmac::Key {
    let of_cluster = hmac::Key::new(hmac::HMAC_SHA256, identity.ca().key_pem().as_bytes());
    let mut context = hmac::Context::with_key(&of_cluster);
    context.update(RESET_LABEL);
    context.update(&identity.node().0);
    hmac::Key::new(hmac::HMAC_SHA256, context.sign().as_ref())
}

/// Binds a socket of somebody who is nobody's peer.
pub(crate) fn endpoint(runtime: &Handle, bind: SocketAddr, _options: &PeerOptions) -> io::Result<Endpoint> {
    make(runtime, bind, EndpointConfig::default())
}

/// Binds a node's socket. It answers nobody before it is given a server's configuration.
pub(super) fn node_endpoint(runtime: &Handle, bind: SocketAddr, identity: &NodeIdentity) -> io::Result<Endpoint> {
    let mut config = EndpointConfig::new(Arc::new(reset_key(identity)));
    config.cid_generator(|| Box::new(RandomIds));
    make(runtime, bind, config)
}

fn make(runtime: &Handle, bind: SocketAddr, mut config: EndpointConfig) -> io::Result<Endpoint> {
    let socket = UdpSocket::bind(bind)?;
    enlarge_buffers(&socket);
    config.max_udp_payload_size(MTU_MAX).expect("6,500 is a valid size");
    Endpoint::new(config, None, socket, Arc::new(ControlRuntime(runtime.clone())))
}

fn enlarge_buffers(socket: &UdpSocket) {
    // Beyond the system's limit where the process may, up to it where it may not.
    let receive = sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER_BYTES));
    let send = sockopt::set_socket_send_buffer_size_force(socket, SOCKET_BUFFER_BYTES)
        .or_else(|_| sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER_BYTES));
    let size = sockopt::socket_recv_buffer_size(socket).unwrap_or_default();
    if receive.is_err() || send.is_err() || size < SOCKET_BUFFER_BYTES {
        tracing::warn!(
            size_bytes = size,
            wanted_bytes = SOCKET_BUFFER_BYTES,
            "the peer socket's buffers are small, packets may be lost: raise net.core.rmem_max and net.core.wmem_max"
        );
    }
}

fn transport(options: &PeerOptions) -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(10)).max_ack_delay(Some(Duration::from_millis(5)));
    let mut cubic = CubicConfig::default();
    cubic.initial_window(INITIAL_WINDOW_BYTES);
    let mut config = TransportConfig::default();
    config
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::new(cubic))
        .stream_receive_window(VarInt::from_u32(options.stream_window_bytes))
        .receive_window(VarInt::from_u32(options.connection_window_bytes))
        .send_window(options.send_window_bytes)
        .max_concurrent_bidi_streams(VarInt::from_u32(options.streams_per_peer_max))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(options.idle_timeout.try_into().ok())
        .keep_alive_interval(Some(options.keep_alive));
    Arc::new(config)
}

/// How this node answers.
pub(crate) fn server_config(
    identity: &Arc<NodeIdentity>,
    options: &PeerOptions,
) -> Result<quinn::ServerConfig, PkiError> {
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls::server(identity)?));
    config.transport_config(transport(options)).max_incoming(INCOMING_MAX).migration(false);
    Ok(config)
}

/// How a node dials with this TLS.
pub(crate) fn client_config(
    tls: quinn::crypto::rustls::QuicClientConfig,
    options: &PeerOptions,
) -> quinn::ClientConfig {
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(transport(options));
    config
}

/// TLS's alerts that are about certificates: bad, unsupported, revoked, expired, unknown, of an unknown CA, refused,
/// not signed for, missing.
const CERTIFICATE_ALERTS: [u64; 9] = [42, 43, 44, 45, 46, 48, 49, 51, 116];

/// QUIC's error codes for alerts of TLS begin here.
const TLS_ALERTS: u64 = 0x100;

/// Whether one side does not accept the other's certificate: nothing that goes by while somebody waits.
pub(crate) fn is_distrust(error: &ConnectionError) -> bool {
    let code = match error {
        ConnectionError::TransportError(error) => u64::from(error.code),
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        _ => return false,
    };
    code.checked_sub(TLS_ALERTS).is_some_and(|alert| CERTIFICATE_ALERTS.contains(&alert))
}

/// TLS's alert about a certificate that is not valid at the time.
const EXPIRED_ALERT: u64 = 45;

/// Whether the other side says that this one's certificate has expired, or is not valid yet, which TLS tells alike.
pub(crate) fn says_expired(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::ConnectionClosed(close)
        if u64::from(close.error_code) == TLS_ALERTS + EXPIRED_ALERT)
}

/// What a signature of another CA means.
const OTHER_CA: &str = "it belongs to another cluster, or one of the two lacks the cluster's new authority";

/// What ended a connection, for people.
pub(crate) fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TransportError(error)
            if ["UnknownIssuer", "BadSignature"].iter().any(|reason| error.reason.contains(reason)) =>
        {
            format!("its certificate was not signed by this cluster's CA: {OTHER_CA}")
        }
        ConnectionError::TransportError(error)
            if ["Expired", "expired", "NotValidYet", "not valid yet"]
                .iter()
                .any(|word| error.reason.contains(word)) =>
        {
            format!("its certificate is not valid now, by this node's clock ({})", error.reason)
        }
        ConnectionError::TransportError(error) if !error.reason.is_empty() => error.reason.clone(),
        // 0x100 and TLS's alert.
        ConnectionError::ConnectionClosed(close) => match u64::from(close.error_code) {
            0x12a | 0x12b | 0x12e => "it does not accept this node's certificate".to_owned(),
            0x12d => "this node's certificate is not valid by its clock: compare the clocks of both".to_owned(),
            0x130 | 0x133 => {
                format!("this node's certificate was not signed by its CA: {OTHER_CA}")
            }
            _ => close.to_string(),
        },
        ConnectionError::ApplicationClosed(close) if close.reason.is_empty() => "it closed the connection".to_owned(),
        ConnectionError::ApplicationClosed(close) => String::from_utf8_lossy(&close.reason).into_owned(),
        ConnectionError::TimedOut => "it is silent".to_owned(),
        other => other.to_string(),
    }
}
