//! The port: calls to other nodes.
//!
//! A connection is dialled by whoever needs it first; the others wait for that dial. After a failure nobody dials for a
//! while, and calls fail at once. A connection is replaced when it broke, when this node's certificate was renewed since it
//! was made, and when the peer's has expired; operations under way end on the one they began on.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use bytes::Bytes;
use holdfast_actors::ports::chunks::{ChunkBody, ChunkInfo};
use holdfast_actors::ports::peers::{
    Fence, IDS_MAX, LIST_MAX, PeerError, PeerHealth, PeerSink, Peers, ReplicaWrite, ShardDigest, ShardReport,
};
use holdfast_protocol::peer::{ALPN_PEER, Answer, Request};
use holdfast_protocol::{ChunkId, NodeId};
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError, Endpoint};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::stream::{Call, StreamError, read_bytes, read_frame, write_frame};
use super::{AddressBook, PeerOptions, PeerParts, body, convert, quic, sink, tls};
use crate::pki::verify::{PeerVerifier, server_name};
use crate::pki::{NodeIdentity, PkiError, ca};

/// The way to all peers. Cheap to clone.
#[derive(Clone)]
pub struct QuicPeers {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    identity: Arc<NodeIdentity>,
    verifier: Arc<PeerVerifier>,
    addresses: AddressBook,
    options: PeerOptions,
    links: Mutex<HashMap<NodeId, Arc<Link>>>,
    waiting: Arc<Semaphore>,
}

/// The way to one peer.
pub(super) struct Link {
    node: NodeId,
    live: ArcSwapOption<Live>,
    dial: tokio::sync::Mutex<Backoff>,
    /// Why one side does not accept the other's certificate, while that is so.
    distrust: Mutex<Option<String>>,
    /// Bytes that may wait to be sent to this peer.
    pub(super) waiting: Arc<Semaphore>,
}

struct Live {
    connection: Connection,
    /// What this node showed.
    shown: Arc<CertifiedKey>,
    /// When what the peer showed ends.
    until: SystemTime,
    _counted: InGauge,
}

/// One more in a gauge while it lives.
pub(super) struct InGauge(metrics::Gauge);

impl InGauge {
    pub(super) fn new(gauge: metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for InGauge {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
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
    /// Remembers why the two do not accept each other, and says so when that is news.
    pub(super) fn distrusts(&self, detail: Option<&str>) {
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

/// An operation that has a stream.
pub(super) struct Opened {
    pub(super) call: Call,
    pub(super) link: Arc<Link>,
}

/// Counts how an operation ended. Dropped without a result, it was given up.
pub(super) struct Outcome {
    op: &'static str,
    outcome: &'static str,
    _in_flight: InGauge,
}

impl Outcome {
    pub(super) fn new(op: &'static str) -> Self {
        Self { op, outcome: "dropped", _in_flight: InGauge::new(metrics::gauge!("holdfast_peer_in_flight")) }
    }

    pub(super) fn is<T>(&mut self, result: &Result<T, PeerError>) {
        self.outcome = match result {
            Ok(_) => "ok",
            Err(PeerError::Unreachable { .. }) => "unreachable",
            Err(PeerError::Timeout { .. }) => "timeout",
            Err(PeerError::Stale { .. }) => "stale",
            Err(PeerError::Fenced) => "fenced",
            Err(PeerError::Busy) => "busy",
            Err(PeerError::Chunk(_)) => "chunk_error",
            Err(PeerError::Protocol(_)) => "protocol",
        };
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        metrics::counter!("holdfast_peer_requests_total", "op" => self.op, "outcome" => self.outcome).increment(1);
    }
}

impl QuicPeers {
    pub(super) fn new(endpoint: Endpoint, parts: &PeerParts) -> Result<Self, PkiError> {
        let ca = parts.identity.ca().certificate().clone();
        let verifier = PeerVerifier::new(parts.identity.cluster(), ca, tls::provider())?;
        let inner = Inner {
            endpoint,
            identity: Arc::clone(&parts.identity),
            verifier,
            addresses: Arc::clone(&parts.addresses),
            options: parts.options.clone(),
            links: Mutex::default(),
            waiting: Arc::new(Semaphore::new(parts.options.waiting_bytes_max as usize)),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(super) fn options(&self) -> &PeerOptions {
        &self.inner.options
    }

    pub(super) fn waiting(&self) -> &Arc<Semaphore> {
        &self.inner.waiting
    }

    fn link(&self, node: NodeId) -> Arc<Link> {
        let mut links = self.inner.links.lock();
        let link = links.entry(node).or_insert_with(|| {
            Arc::new(Link {
                node,
                live: ArcSwapOption::empty(),
                dial: tokio::sync::Mutex::default(),
                distrust: Mutex::default(),
                waiting: Arc::new(Semaphore::new(self.inner.options.waiting_bytes_per_peer_max as usize)),
            })
        });
        Arc::clone(link)
    }

    fn usable(&self, link: &Link) -> Option<Connection> {
        let live = link.live.load();
        let live = live.as_ref()?;
        let usable = live.connection.close_reason().is_none()
            && Arc::ptr_eq(&live.shown, &self.inner.identity.certified_key())
            && SystemTime::now() < live.until;
        usable.then(|| live.connection.clone())
    }

    async fn connection(&self, link: &Link) -> Result<Connection, PeerError> {
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
        // Whoever answers looks at the certificate of whoever dialled only after that one believes that the connection stands:
        // its refusal shows here.
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

    /// The peers of which one does not accept the other's certificate at present, as far as this node noticed, and why.
    fn distrusted(&self) -> Vec<(NodeId, String)> {
        let links = self.inner.links.lock();
        let mut found: Vec<(NodeId, String)> =
            links.values().filter_map(|link| Some((link.node, link.distrust.lock().clone()?))).collect();
        found.sort_unstable();
        found
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

    /// A stream to a peer, with the request sent.
    pub(super) async fn open(&self, node: NodeId, request: &Request) -> Result<Opened, PeerError> {
        let link = self.link(node);
        // A connection that broke unseen is dialled again once.
        let mut connection = self.connection(&link).await?;
        let mut opened = timeout(self.inner.options.request_timeout, connection.open_bi()).await;
        if let Ok(Err(_)) = &opened {
            connection = self.connection(&link).await?;
            opened = timeout(self.inner.options.request_timeout, connection.open_bi()).await;
        }
        let streams = opened
            // The peer has as many of this node's streams as it takes.
            .map_err(|_| PeerError::Busy)?
            .map_err(|error| PeerError::Unreachable { node, detail: quic::describe(&error) })?;
        let mut call = Call::new(streams);
        self.in_time(node, write_frame(&mut call.send, request)).await?;
        Ok(Opened { call, link })
    }

    /// A step of an operation under the deadline for answers.
    pub(super) async fn in_time<T>(
        &self,
        node: NodeId,
        step: impl Future<Output = Result<T, StreamError>>,
    ) -> Result<T, PeerError> {
        within(node, self.inner.options.request_timeout, step).await
    }

    async fn ask(&self, node: NodeId, request: Request, deadline: Duration) -> Result<(Answer, Opened), PeerError> {
        let mut opened = self.open(node, &request).await?;
        // Fails only when the peer has answered already.
        opened.call.send.finish().ok();
        let answer = within(node, deadline, read_frame(&mut opened.call.recv)).await?;
        opened.link.distrusts(None);
        match answer {
            Answer::Error(error) => {
                opened.call.done();
                Err(convert::error_from_wire(node, error))
            }
            answer => Ok((answer, opened)),
        }
    }

    /// An operation of one request and one answer.
    async fn call<T>(
        &self,
        node: NodeId,
        request: Request,
        deadline: Duration,
        take: impl FnOnce(Answer) -> Option<T>,
    ) -> Result<T, PeerError> {
        let mut outcome = Outcome::new(request.name());
        let result = async {
            let (answer, mut opened) = self.ask(node, request, deadline).await?;
            opened.call.done();
            take(answer).ok_or_else(|| unexpected(node))
        }
        .await;
        outcome.is(&result);
        result
    }

    async fn fetch_label(&self, node: NodeId, chunk: ChunkId) -> Result<Bytes, PeerError> {
        let deadline = self.inner.options.request_timeout;
        let (answer, mut opened) = self.ask(node, Request::Label { chunk }, deadline).await?;
        let Answer::Label { size_bytes } = answer else {
            return Err(unexpected(node));
        };
        let label = self.in_time(node, read_bytes(&mut opened.call.recv, size_bytes as usize)).await?;
        opened.call.done();
        Ok(label)
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

/// A step of an operation under a deadline.
pub(super) async fn within<T>(
    node: NodeId,
    deadline: Duration,
    step: impl Future<Output = Result<T, StreamError>>,
) -> Result<T, PeerError> {
    match timeout(deadline, step).await {
        Ok(result) => result.map_err(|error| convert::stream_error(node, error)),
        Err(_) => Err(PeerError::Timeout { node }),
    }
}

/// An answer to another question.
pub(super) fn unexpected(node: NodeId) -> PeerError {
    PeerError::Protocol(format!("node {node} answered something else than was asked"))
}

/// The certificate that the other side showed; it was verified during the handshake.
pub(super) fn peer_certificate(connection: &Connection) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.into_iter().next()
}

fn check_ids(chunks: &[ChunkId]) -> Result<(), PeerError> {
    if chunks.len() > IDS_MAX {
        return Err(PeerError::Protocol(format!("{} chunk ids in a request, at most {IDS_MAX}", chunks.len())));
    }
    Ok(())
}

#[async_trait]
impl Peers for QuicPeers {
    async fn create(&self, node: NodeId, write: ReplicaWrite) -> Result<Box<dyn PeerSink>, PeerError> {
        sink::create(self.clone(), node, write).await
    }

    fn read(&self, node: NodeId, chunk: ChunkId, range: Range<u32>) -> ChunkBody {
        body::read(self.clone(), node, chunk, range)
    }

    async fn probe(&self, node: NodeId, chunks: &[ChunkId]) -> Result<Vec<Option<ChunkInfo>>, PeerError> {
        check_ids(chunks)?;
        let request = Request::Probe { chunks: chunks.to_vec() };
        self.call(node, request, self.inner.options.request_timeout, |answer| match answer {
            Answer::Probed { sizes_bytes } if sizes_bytes.len() == chunks.len() => {
                let infos = chunks.iter().zip(sizes_bytes);
                Some(infos.map(|(id, size)| size.map(|size_bytes| ChunkInfo { id: *id, size_bytes })).collect())
            }
            _ => None,
        })
        .await
    }

    async fn label(&self, node: NodeId, chunk: ChunkId) -> Result<Bytes, PeerError> {
        let mut outcome = Outcome::new("label");
        let result = self.fetch_label(node, chunk).await;
        outcome.is(&result);
        result
    }

    async fn list(
        &self,
        node: NodeId,
        fence: Fence,
        after: Option<ChunkId>,
        limit: usize,
    ) -> Result<Vec<ChunkInfo>, PeerError> {
        let limit = limit.min(LIST_MAX);
        let request = Request::List { shard: fence.shard, epoch: fence.epoch, after, limit: limit as u32 };
        self.call(node, request, self.inner.options.request_timeout, |answer| match answer {
            Answer::Listed { chunks } if chunks.len() <= limit => {
                Some(chunks.iter().map(convert::info_from_wire).collect())
            }
            _ => None,
        })
        .await
    }

    async fn digest(&self, node: NodeId, fence: Fence) -> Result<ShardDigest, PeerError> {
        let request = Request::Digest { shard: fence.shard, epoch: fence.epoch };
        self.call(node, request, self.inner.options.request_timeout, |answer| match answer {
            Answer::Digest(digest) => Some(convert::digest_from_wire(digest)),
            _ => None,
        })
        .await
    }

    async fn delete(&self, node: NodeId, chunks: &[ChunkId]) -> Result<(), PeerError> {
        check_ids(chunks)?;
        let request = Request::Delete { chunks: chunks.to_vec() };
        self.call(node, request, self.inner.options.durable_timeout, is_done).await
    }

    async fn report(&self, controller: NodeId, report: ShardReport) -> Result<(), PeerError> {
        let request = Request::Report { report: convert::report_to_wire(report) };
        self.call(controller, request, self.inner.options.request_timeout, is_done).await
    }

    fn refusals(&self) -> Vec<(NodeId, String)> {
        self.distrusted()
    }

    async fn health(&self, node: NodeId) -> Result<PeerHealth, PeerError> {
        self.call(node, Request::Health, self.inner.options.request_timeout, |answer| match answer {
            Answer::Health(health) => Some(convert::health_from_wire(health)),
            _ => None,
        })
        .await
    }
}

fn is_done(answer: Answer) -> Option<()> {
    matches!(answer, Answer::Done).then_some(())
}
