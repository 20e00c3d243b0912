//! Request bodies that must arrive at a least pace.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::linger::Unread;
use super::pace::{Pace, PaceGuard};

/// Why a request body ended early.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client sent too slowly; the answer is `RequestTimeout`.
    #[error("the client sent its body too slowly")]
    TooSlow,
    /// The client went away or broke the protocol.
    #[error("read the request body: {0}")]
    Broken(#[source] hyper::Error),
}

/// Whether a body was read to its end. Shared by the body and its connection.
#[derive(Debug, Clone, Default)]
pub(super) struct BodyEnd(Arc<AtomicBool>);

impl BodyEnd {
    fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn reached(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The body of a request. Ends with [`BodyError::TooSlow`] when the client falls below the pace; the connection is
/// closed after the answer, since the rest of the body is still to come.
pub struct RequestBody {
    inner: Incoming,
    guard: PaceGuard,
    failed: bool,
    ended: bool,
    unread: Unread,
    /// `None` where nobody asks.
    end: Option<BodyEnd>,
}

impl RequestBody {
    pub(super) fn new(inner: Incoming, pace: Pace, unread: Unread, end: Option<BodyEnd>) -> RequestBody {
        RequestBody { inner, guard: PaceGuard::new(pace), failed: false, ended: false, unread, end }
    }

    fn note_end(&mut self) {
        self.ended = true;
        if let Some(end) = &self.end {
            end.note();
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if !self.ended && !self.inner.is_end_stream() {
            self.unread.note();
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.failed {
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.guard.moved(frame.data_ref().map_or(0, Bytes::len));
                // Who knows the length does not ask for more.
                if this.inner.is_end_stream() {
                    this.note_end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(BodyError::Broken(error)))),
            Poll::Ready(None) => {
                this.note_end();
                Poll::Ready(None)
            }
            Poll::Pending => this.guard.poll_too_slow(cx).map(|()| {
                this.failed = true;
                metrics::counter!("holdfast_http_too_slow_total", "direction" => "request").increment(1);
                Some(Err(BodyError::TooSlow))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
