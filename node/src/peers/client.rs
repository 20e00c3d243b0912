//! The port: calls to other nodes.
//!
//! A connection is dialled by whoever needs it first; the others wait for that dial. After a failure nobody dials for a
//! while, and calls fail at once. A connection is replaced when it broke, when this node's certificate was renewed
//! since it was made, and when the peer's has expired; operations under way end on the one they began on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_actors::ports::peers::PeerError;
use holdfast_protocol::NodeId;
use holdfast_protocol::peer::{Answer, Request};
use parking_lot::Mutex;
use quinn::Endpoint;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::stream::{Call, StreamError, read_frame, write_frame};
use super::{AddressBook, PeerOptions, PeerParts, convert, quic, tls};
use crate::pki::verify::PeerVerifier;
use crate::pki::{NodeIdentity, PkiError};

mod link;
mod outcome;
mod verbs;

use link::Link;
pub(super) use link::peer_certificate;
pub(super) use outcome::{InGauge, Outcome};

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

/// An operation that has a stream.
pub(super) struct Opened {
    pub(super) call: Call,
    pub(super) link: Arc<Link>,
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
        let link = links.entry(node).or_insert_with(|| Arc::new(Link::new(node, &self.inner.options)));
        Arc::clone(link)
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
