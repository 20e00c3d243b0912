//! The bodies of a request and its answer, counted; the answer's holds the permit.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use holdfast_actors::domain::admission::JobKind;
use holdfast_actors::service::Permit;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::Meters;

/// Lives as long as the request and its answer.
pub(super) struct Guard {
    _permits: (Permit, Option<OwnedSemaphorePermit>),
    kind: JobKind,
    started: Instant,
    sent_bytes: u64,
    meters: Arc<Meters>,
}

impl Guard {
    pub(super) fn new(
        permits: (Permit, Option<OwnedSemaphorePermit>),
        kind: JobKind,
        started: Instant,
        meters: &Arc<Meters>,
    ) -> Self {
        meters.in_flight.increment(1.0);
        Self { _permits: permits, kind, started, sent_bytes: 0, meters: Arc::clone(meters) }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.meters.in_flight.decrement(1.0);
        self.meters.sent_bytes.increment(self.sent_bytes);
        self.meters.duration[self.kind.index()].record(self.started.elapsed().as_secs_f64());
    }
}

/// A request's body, counted.
pub struct Received<B> {
    pub(super) body: B,
    pub(super) bytes: u64,
    pub(super) meters: Arc<Meters>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for Received<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Drop for Received<B> {
    fn drop(&mut self) {
        // Most requests have none, and the counter is of all cores.
        if self.bytes > 0 {
            self.meters.received_bytes.increment(self.bytes);
        }
    }
}

/// An answer that holds its permit.
pub struct Answer<R> {
    pub(super) inner: Inner<R>,
}

pub(super) enum Inner<R> {
    Passed { body: R, guard: Guard },
    Refused(Option<Bytes>),
}

impl<R: Body<Data = Bytes> + Unpin> Body for Answer<R> {
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        match &mut self.inner {
            Inner::Passed { body, guard } => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                if let Some(Ok(frame)) = &frame {
                    guard.sent_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                Poll::Ready(frame)
            }
            Inner::Refused(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Passed { body, .. } => body.is_end_stream(),
            Inner::Refused(text) => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Passed { body, .. } => body.size_hint(),
            Inner::Refused(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
        }
    }
}
