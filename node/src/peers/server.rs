//! Answers peers: a task for each connection, and under it one for each stream.
//!
//! Before the first stream is accepted the connection's certificate was verified by TLS, and here the role in it is
//! held against the protocol that was asked for. A stream's task ends when its operation does, when the caller gives it
//! up, or with its connection; a chunk that was being written is dropped then and leaves nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use holdfast_actors::ports::chunks::{ChunkBody, ChunkError, ChunkSpec};
use holdfast_actors::ports::peers::{Fence, PeerError, ReplicaService, ReplicaWrite};
use holdfast_protocol::NodeId;
use holdfast_protocol::peer::block::{BLOCK_BYTES_MAX, BlockHead};
use holdfast_protocol::peer::{ALPN_ENROL, ALPN_PEER, Answer, FrameError, Request, WireError, cut};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, WriteError};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::body::crc32c;
use super::client::{InGauge, peer_certificate};
use super::handshakes::{Admission, Handshake, Handshakes};
use super::quic::{CODE_DROPPED, CODE_REFUSED};
use super::stream::{StreamError, read_bytes, read_frame, write_frame};
use super::{PeerOptions, convert};
use crate::pki::Role;
use crate::pki::ca::{self, Facts};
use crate::pki::enrol::Issuer;
use crate::telemetry::seldom::Seldom;

/// Chunks of a stream that are taken from QUIC at a time.
const CHUNKS_AT_A_TIME: usize = 32;
/// Refused connections are told of at most so often.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(1);
/// Time for an enrolment.
const ENROL_TIMEOUT: Duration = Duration::from_secs(30);

/// What is served.
#[derive(Clone)]
pub(super) struct Serving {
    pub(super) service: Arc<dyn ReplicaService>,
    pub(super) issuer: Option<Arc<Issuer>>,
    pub(super) options: PeerOptions,
}

/// Accepts connections until the endpoint closes or the future is dropped, and ends them then.
pub(super) async fn accept(endpoint: Endpoint, serving: Serving, handshakes: Handshakes) {
    let mut connections = JoinSet::new();
    let refusals = Arc::new(Refusals(Seldom::new(REFUSALS_LOGGED_EVERY)));
    loop {
        tokio::select! {
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { return };
                let address = incoming.remote_address().ip();
                match handshakes.admit(address, incoming.remote_address_validated()) {
                    Admission::Granted(handshake) => {
                        connections.spawn(handle_incoming(incoming, serving.clone(), handshake, refusals.clone()));
                    }
                    // Fails only for those whose address is validated already.
                    Admission::Validate => drop(incoming.retry()),
                    Admission::Full => {
                        count_failure("too_many");
                        refusals.log(&incoming.remote_address(), "too many handshakes are under way");
                        incoming.refuse();
                    }
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Tells of refused connections, once a second at most: strangers must not fill the log.
struct Refusals(Seldom);

impl Refusals {
    fn log(&self, remote: &SocketAddr, reason: &str) {
        if let Some(untold) = self.0.untold() {
            tracing::warn!(%remote, reason, untold, "a peer's connection was refused");
        }
    }
}

fn count_failure(reason: &'static str) {
    metrics::counter!("holdfast_peer_handshake_failures_total", "side" => "answering", "reason" => reason).increment(1);
}

async fn handle_incoming(incoming: Incoming, serving: Serving, handshake: Handshake, refusals: Arc<Refusals>) {
    let remote = incoming.remote_address();
    let connection = match timeout(serving.options.dial_timeout, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            refusals.log(&remote, &super::quic::describe(&error));
            return;
        }
        Err(_) => return count_failure("timeout"),
    };
    drop(handshake);
    let Some(facts) = peer_certificate(&connection).and_then(|certificate| ca::facts(&certificate).ok()) else {
        count_failure("no_certificate");
        return connection.close(CODE_REFUSED, b"no certificate");
    };
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let alpn = data.and_then(|data| data.protocol).unwrap_or_default();
    match facts.subject.role {
        Role::Node(node) if alpn == ALPN_PEER => serve_peer(connection, node, &facts, serving).await,
        Role::Enrol if alpn == ALPN_ENROL => serve_enrolment(connection, &facts, serving.issuer).await,
        _ => {
            tracing::warn!(%remote, subject = %facts.subject, "a peer asked for what its certificate does not allow");
            count_failure("role");
            connection.close(CODE_REFUSED, b"the certificate does not allow this protocol");
        }
    }
}

async fn serve_enrolment(connection: Connection, facts: &Facts, issuer: Option<Arc<Issuer>>) {
    let Some(issuer) = issuer else {
        return connection.close(CODE_REFUSED, b"this node issues no certificates");
    };
    if timeout(ENROL_TIMEOUT, issuer.serve(&connection, &facts.serial)).await.is_err() {
        connection.close(CODE_REFUSED, b"the enrolment took too long");
    }
}

async fn serve_peer(connection: Connection, from: NodeId, facts: &Facts, serving: Serving) {
    let _counted = InGauge::new(metrics::gauge!("holdfast_peer_connections", "side" => "answered"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let rest = Duration::from_secs(facts.not_after_unix_seconds.max(0) as u64).saturating_sub(now);
    let expired = tokio::time::sleep(rest);
    tokio::pin!(expired);
    // Dropped with the connection, and its sinks with it.
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept_bi() => match accepted {
                Ok((send, recv)) => {
                    let stream = Stream { send, recv, from, serving: serving.clone() };
                    streams.spawn(stream.answer());
                }
                Err(error) => {
                    tracing::debug!(%from, reason = super::quic::describe(&error), "a peer's connection ended");
                    return;
                }
            },
            Some(_) = streams.join_next() => {}
            () = &mut expired => {
                return connection.close(CODE_REFUSED, b"the certificate has expired");
            }
        }
    }
}

/// Why an operation ends without the answer that was asked for.
enum Failure {
    /// To be answered.
    Answer(WireError),
    /// Nobody is there to hear it.
    Gone,
}

impl From<PeerError> for Failure {
    fn from(error: PeerError) -> Self {
        Self::Answer(convert::error_to_wire(&error))
    }
}

impl From<ChunkError> for Failure {
    fn from(error: ChunkError) -> Self {
        Self::Answer(convert::chunk_error_to_wire(&error))
    }
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Frame(FrameError::Version { found }) => Self::Answer(WireError::version(found)),
            StreamError::Frame(error) => Self::Answer(WireError::Protocol { detail: cut(&error.to_string()) }),
            StreamError::Ended => Self::Answer(WireError::Protocol { detail: error.to_string() }),
            StreamError::Read(_) | StreamError::Write(_) => Self::Gone,
        }
    }
}

impl From<WriteError> for Failure {
    fn from(_: WriteError) -> Self {
        Self::Gone
    }
}

/// A step under a deadline.
async fn within<T, E>(deadline: Duration, step: impl Future<Output = Result<T, E>>) -> Result<T, Failure>
where
    Failure: From<E>,
{
    match timeout(deadline, step).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Failure::Answer(WireError::Timeout)),
    }
}

struct Stream {
    send: SendStream,
    recv: RecvStream,
    from: NodeId,
    serving: Serving,
}

impl Stream {
    async fn answer(mut self) {
        let given_up = self.send.stopped();
        let mut op = "unknown";
        let served = tokio::select! {
            served = self.serve(&mut op) => served,
            // The caller waits no more, or its connection is gone: what was begun is dropped.
            _ = given_up => Err(Failure::Gone),
        };
        let outcome = match served {
            Ok(()) => "ok",
            Err(Failure::Gone) => {
                self.send.reset(CODE_DROPPED).ok();
                "dropped"
            }
            Err(Failure::Answer(error)) => {
                self.refuse(error).await;
                "error"
            }
        };
        metrics::counter!("holdfast_peer_served_total", "op" => op, "outcome" => outcome).increment(1);
    }

    /// Says why nothing more is taken.
    async fn refuse(&mut self, error: WireError) {
        let deadline = self.serving.options.progress_timeout;
        let answered = timeout(deadline, write_frame(&mut self.send, &Answer::Error(error))).await;
        if !matches!(answered, Ok(Ok(()))) {
            self.send.reset(CODE_DROPPED).ok();
        }
        // Fails only on a stream that is closed already.
        self.send.finish().ok();
        // What the caller still sends is not read any more; it looks for the answer then.
        self.recv.stop(CODE_DROPPED).ok();
    }

    async fn say(&mut self, answer: &Answer) -> Result<(), Failure> {
        within(self.serving.options.progress_timeout, write_frame(&mut self.send, answer)).await
    }

    async fn serve(&mut self, op: &mut &'static str) -> Result<(), Failure> {
        let (request_timeout, durable) = (self.serving.options.request_timeout, self.serving.options.durable_timeout);
        let request: Request = within(request_timeout, read_frame(&mut self.recv)).await?;
        *op = request.name();
        let (service, from) = (Arc::clone(&self.serving.service), self.from);
        let answer = match request {
            Request::Write { shard, epoch, chunk, size_bytes, label_bytes } => {
                let label = within(request_timeout, read_bytes(&mut self.recv, label_bytes as usize)).await?;
                let spec = ChunkSpec { id: chunk, size_bytes, label };
                self.write(ReplicaWrite { fence: Fence { shard, epoch }, spec }).await?;
                Answer::Done
            }
            Request::Read { chunk, start, end } => {
                let body = service.read(from, chunk, start..end)?;
                self.say(&Answer::Data { size_bytes: end - start }).await?;
                return self.send_body(body, end - start).await;
            }
            Request::Probe { chunks } => {
                let infos = within(request_timeout, service.probe(from, &chunks)).await?;
                let sizes_bytes = infos.iter().map(|info| info.map(|info| info.size_bytes)).collect();
                Answer::Probed { sizes_bytes }
            }
            Request::Label { chunk } => {
                let label = within(request_timeout, service.label(from, chunk)).await?;
                self.say(&Answer::Label { size_bytes: label.len() as u32 }).await?;
                within(self.serving.options.progress_timeout, self.send.write_chunk(label)).await?;
                return Ok(());
            }
            Request::List { shard, epoch, after, limit } => {
                let list = service.list(from, Fence { shard, epoch }, after, limit as usize);
                let chunks = within(request_timeout, list).await?;
                Answer::Listed { chunks: chunks.iter().map(convert::info_to_wire).collect() }
            }
            Request::Digest { shard, epoch } => {
                let digest = within(request_timeout, service.digest(from, Fence { shard, epoch })).await?;
                Answer::Digest(convert::digest_to_wire(digest))
            }
            Request::Delete { chunks } => {
                within(durable, service.delete(from, &chunks)).await?;
                Answer::Done
            }
            Request::Report { report } => {
                within(request_timeout, service.report(from, convert::report_from_wire(report))).await?;
                Answer::Done
            }
            Request::Health => {
                Answer::Health(convert::health_to_wire(within(request_timeout, service.health(from)).await?))
            }
        };
        self.say(&answer).await
    }

    /// Takes a chunk. Nothing is read from the stream while the disk does not take it, so that the caller waits.
    async fn write(&mut self, write: ReplicaWrite) -> Result<(), Failure> {
        let (request_timeout, durable, payload) = {
            let options = &self.serving.options;
            (options.request_timeout, options.durable_timeout, options.payload_timeout)
        };
        let mut left_bytes = write.spec.size_bytes as usize;
        let mut sink = within(request_timeout, self.serving.service.create(self.from, write)).await?;
        self.say(&Answer::Ready).await?;
        let taken_back = sink.taken_back();
        let mut taken_back = std::pin::pin!(taken_back.cancelled());
        let mut chunks: [Bytes; CHUNKS_AT_A_TIME] = Default::default();
        loop {
            let read = async {
                tokio::select! {
                    biased;
                    read = self.recv.read_chunks(&mut chunks) => {
                        read.map_err(|error| Failure::from(StreamError::Read(error)))
                    }
                    // Others have the place now; the caller looks for this answer when it goes on.
                    () = &mut taken_back => Err(Failure::Answer(WireError::Busy)),
                }
            };
            // The end of the stream says that the caller wants the chunk: one that was given up is reset instead.
            let Some(count) = within(payload, read).await? else { break };
            for chunk in &mut chunks[..count] {
                let chunk = std::mem::take(chunk);
                left_bytes = left_bytes
                    .checked_sub(chunk.len())
                    .ok_or_else(|| ChunkError::Invalid("more bytes than announced".to_owned()))?;
                metrics::counter!("holdfast_peer_received_bytes_total", "op" => "write").increment(chunk.len() as u64);
                sink.write(&chunk).await?;
            }
        }
        sink.finish_input()?;
        within(durable, sink.finish()).await?;
        Ok(())
    }

    async fn send_body(&mut self, mut body: ChunkBody, size_bytes: u32) -> Result<(), Failure> {
        match self.send_blocks(&mut body, size_bytes).await {
            Err(Failure::Answer(error)) => {
                let head = BlockHead::FAILED.encode().expect("an empty block is within the limit");
                let progress = self.serving.options.progress_timeout;
                within(progress, self.send.write_chunk(Bytes::copy_from_slice(&head))).await?;
                Err(Failure::Answer(error))
            }
            result => result,
        }
    }

    async fn send_blocks(&mut self, body: &mut ChunkBody, mut left_bytes: u32) -> Result<(), Failure> {
        let options = &self.serving.options;
        let (request_timeout, progress) = (options.request_timeout, options.progress_timeout);
        while left_bytes > 0 {
            let piece = timeout(request_timeout, body.next()).await.map_err(|_| Failure::Answer(WireError::Timeout))?;
            let short = || Failure::Answer(WireError::Io { detail: "the chunk's payload ends early".to_owned() });
            let mut piece = piece.ok_or_else(short)??;
            while !piece.is_empty() {
                let block = piece.split_to(piece.len().min(BLOCK_BYTES_MAX));
                let size_bytes = block.len() as u32;
                left_bytes = left_bytes.checked_sub(size_bytes).ok_or_else(|| {
                    Failure::Answer(WireError::Io { detail: "the chunk's payload is too long".into() })
                })?;
                // Over bytes that the store verified just before.
                let head = BlockHead { size_bytes, crc32c: crc32c(&block) };
                let head = head.encode().map_err(StreamError::Frame)?;
                let mut parts = [Bytes::copy_from_slice(&head), block];
                within(progress, self.send.write_all_chunks(&mut parts)).await?;
                metrics::counter!("holdfast_peer_sent_bytes_total", "op" => "read").increment(u64::from(size_bytes));
            }
        }
        Ok(())
    }
}
