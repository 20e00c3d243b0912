//! The connection to one peer: dialled by whoever needs it first, kept, and dialled again when it is of no use any
//! more.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use holdfast_actors::ports::peers::PeerError;
use holdfast_protocol::NodeId;
use holdfast_protocol::peer::ALPN_PEER;
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::QuicPeers;
use super::outcome::InGauge;
use crate::peers::{PeerOptions, quic, tls};
use crate::pki::ca;
use crate::pki::verify::server_name;

/// The way to one peer.
pub(in crate::peers) struct Link {
    node: NodeId,
    live: ArcSwapOption<Live>,
    dial: tokio::sync::Mutex<Backoff>,
    /// Why one side does not accept the other's certificate, while that is so.
    distrust: Mutex<Option<String>>,
    /// Bytes that may wait to be sent to this peer.
    pub(in crate::peers) waiting: Arc<Semaphore>,
}

struct Live {
    connection: Connection,
    /// What this node showed.
    shown: Arc<CertifiedKey>,
    /// When what the peer showed ends.
    until: SystemTime,
    _counted: InGauge,
}

#[derive(Default)]
struct Backoff {
    pause: Duration,
    not_before: Option<Instant>,
    last: String,
}

impl Backoff {
    fn failed(&mut self, detail: &str, options: &PeerOptions) {
        self.pause = (self.pause * 2).min(options.backoff_max).max(options.backoff_min);
        self.not_before = Some(Instant::now() + self.pause.mul_f64(rand::random_range(0.75..1.25)));
        detail.clone_into(&mut self.last);
    }
}

/// Why a dial failed.
struct DialError {
    detail: String,
    /// One side does not accept the other's certificate.
    distrust: bool,
}

impl From<String> for DialError {
    fn from(detail: String) -> Self {
        Self { detail, distrust: false }
    }
}

impl From<&str> for DialError {
    fn from(detail: &str) -> Self {
        detail.to_owned().into()
    }
}

impl Link {
    pub(super) fn new(node: NodeId, options: &PeerOptions) -> Self {
        Self {
            node,
            live: ArcSwapOption::empty(),
            dial: tokio::sync::Mutex::default(),
            distrust: Mutex::default(),
            waiting: Arc::new(Semaphore::new(options.waiting_bytes_per_peer_max as usize)),
        }
    }

    /// The peer, if one of the two does not accept the other's certificate at present, as far as this node noticed, and
    /// why.
    pub(super) fn distrusted(&self) -> Option<(NodeId, String)> {
        Some((self.node, self.distrust.lock().clone()?))
    }

    /// Remembers why the two do not accept each other, and says so when that is news.
    pub(in crate::peers) fn distrusts(&self, detail: Option<&str>) {
        let before = std::mem::replace(&mut *self.distrust.lock(), detail.map(str::to_owned));
        match detail {
            Some(reason) if before.as_deref().map(kind_of) != Some(kind_of(reason)) => {
                tracing::warn!(node = %self.node, reason, "a peer and this node do not accept each other's certificates");
            }
            None if before.is_some() => tracing::info!(node = %self.node, "the peer's certificate is accepted again"),
            _ => {}
        }
    }
}

/// A reason without its numbers: how long a certificate has been expired changes from dial to dial.
fn kind_of(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_ascii_digit()).collect()
}

impl QuicPeers {
    fn usable(&self, link: &Link) -> Option<Connection> {
        let live = link.live.load();
        let live = live.as_ref()?;
        let usable = live.connection.close_reason().is_none()
            && Arc::ptr_eq(&live.shown, &self.inner.identity.certified_key())
            && SystemTime::now() < live.until;
        usable.then(|| live.connection.clone())
    }

    pub(super) async fn connection(&self, link: &Link) -> Result<Connection, PeerError> {
        if let Some(connection) = self.usable(link) {
            return Ok(connection);
        }
        let mut backoff = link.dial.lock().await;
        // Somebody else may have dialled meanwhile.
        if let Some(connection) = self.usable(link) {
            return Ok(connection);
        }
        let node = link.node;
        if backoff.not_before.is_some_and(|until| Instant::now() < until) {
            return Err(PeerError::Unreachable { node, detail: backoff.last.clone() });
        }
        let options = &self.inner.options;
        // Whoever answers looks at the certificate of whoever dialled only after that one believes that the connection
        // stands: its refusal shows here.
        if let Some(refused) = refused_late(link) {
            link.live.store(None);
            link.distrusts(Some(&refused));
            backoff.failed(&refused, options);
            return Err(PeerError::Unreachable { node, detail: refused });
        }
        let dialled = timeout(options.dial_timeout, self.dial(node)).await;
        match dialled.unwrap_or_else(|_| {
            count_failure("timeout");
            Err("it does not answer".into())
        }) {
            Ok(live) => {
                let connection = live.connection.clone();
                link.live.store(Some(Arc::new(live)));
                // Where the other side refused before, only its answer shows that it does not again.
                let pause = if link.distrust.lock().is_some() { backoff.pause } else { Duration::ZERO };
                *backoff = Backoff { pause, ..Backoff::default() };
                Ok(connection)
            }
            Err(DialError { detail, distrust }) => {
                link.live.store(None);
                if distrust {
                    link.distrusts(Some(&detail));
                }
                backoff.failed(&detail, options);
                tracing::debug!(%node, detail, pause = ?backoff.pause, "a peer cannot be reached");
                Err(PeerError::Unreachable { node, detail })
            }
        }
    }

    async fn dial(&self, node: NodeId) -> Result<Live, DialError> {
        let inner = &self.inner;
        let address = (inner.addresses)(node).ok_or("its address is not known")?;
        let shown = inner.identity.certified_key();
        let tls = tls::client(Arc::clone(&inner.verifier), Arc::clone(&shown), ALPN_PEER);
        let config = quic::client_config(tls.map_err(|error| error.to_string())?, &inner.options);
        let resolved = tokio::net::lookup_host(&address).await.map_err(|error| format!("{address}: {error}"))?;
        let local_is_v4 = inner.endpoint.local_addr().is_ok_and(|local| local.is_ipv4());
        let remote = resolved
            .into_iter()
            .find(|remote| remote.is_ipv4() || !local_is_v4)
            .ok_or_else(|| format!("{address} has no address of the right kind"))?;
        let connecting = inner
            .endpoint
            .connect_with(config, remote, &server_name(node))
            .map_err(|error| format!("{address}: {error}"))?;
        let connection = connecting.await.map_err(|error| {
            match &error {
                // The verifier counted its refusals itself.
                ConnectionError::TransportError(_) => {}
                ConnectionError::TimedOut => count_failure("timeout"),
                ConnectionError::ConnectionClosed(_) | ConnectionError::ApplicationClosed(_) => {
                    count_failure("refused");
                }
                _ => count_failure("transport"),
            }
            DialError { detail: quic::describe(&error), distrust: quic::is_distrust(&error) }
        })?;
        let until = peer_certificate(&connection)
            .and_then(|certificate| ca::facts(&certificate).ok())
            .map(|facts| SystemTime::UNIX_EPOCH + Duration::from_secs(facts.not_after_unix_seconds.max(0) as u64))
            .ok_or("it showed no certificate")?;
        let _counted = InGauge::new(metrics::gauge!("holdfast_peer_connections", "side" => "dialled"));
        Ok(Live { connection, shown, until, _counted })
    }
}

/// Why the peer closed the present connection, if that was since it does not accept this node's certificate.
fn refused_late(link: &Link) -> Option<String> {
    let live = link.live.load();
    let reason = live.as_ref()?.connection.close_reason()?;
    quic::is_distrust(&reason).then(|| {
        count_failure("refused");
        quic::describe(&reason)
    })
}

fn count_failure(reason: &'static str) {
    metrics::counter!("holdfast_peer_handshake_failures_total", "side" => "dialling", "reason" => reason).increment(1);
}

/// The certificate that the other side showed; it was verified during the handshake.
pub(in crate::peers) fn peer_certificate(connection: &Connection) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.into_iter().next()
}
