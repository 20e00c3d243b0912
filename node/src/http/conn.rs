//! One connection as hyper sees it: reads and writes of a socket, where writing knows mapped segments.
//!
//! hyper hands over response heads and body slices as they are. A slice above [`COPY_MAX`] that lies in a mapped
//! segment leaves by splice, to its end; everything else is written by `sendmsg`, which copies, and is counted in
//! `holdfast_http_copied_bytes_total`. If hyper ever copied a body before it came here, only that counter would show
//! it.
//!
//! **No page fault on this thread.** A mapped slice is sent only when it is resident and verified. What was evicted
//! since the engine lent it is first brought back, verified, by the mapping's hook; if that fails (the data is corrupt)
//! the connection is cut, as the head with the length has been sent.
//!
//! **Turns.** After [`TURN_BYTES_MAX`] the connection lets others run. A reader that is too slow is cut off
//! ([`super::pace`]). With TLS the slices are encrypted in user space: resident, counted as copied, otherwise the same.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use holdfast_storage::mapping::splice;
use hyper::rt::ReadBufCursor;
use hyper_util::rt::TokioIo;
use metrics::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::linger::{Linger, Unread};
use super::pace::Pace;

mod out;

pub use out::COPY_MAX;
use out::{Out, Wrote};

/// Bytes that a connection sends before it lets others on its thread run.
const TURN_BYTES_MAX: usize = 2 << 20;

/// Counters of connections, looked up once.
#[derive(Clone)]
pub(super) struct ConnMetrics {
    copied_bytes: Counter,
    spliced_bytes: Counter,
    refreshes: Counter,
    too_slow: Counter,
}

impl ConnMetrics {
    pub(super) fn new() -> ConnMetrics {
        ConnMetrics {
            copied_bytes: metrics::counter!("holdfast_http_copied_bytes_total"),
            spliced_bytes: metrics::counter!("holdfast_http_spliced_bytes_total"),
            refreshes: metrics::counter!("holdfast_http_evicted_before_send_total"),
            too_slow: metrics::counter!("holdfast_http_too_slow_total", "direction" => "response"),
        }
    }
}

/// A socket, with TLS or without.
enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    fn socket(&self) -> &TcpStream {
        match self {
            Transport::Plain(stream) => stream,
            Transport::Tls(stream) => stream.get_ref().0,
        }
    }

    /// How much of what was sent the peer has not taken; nothing, if the kernel does not say.
    fn untaken_bytes(&self) -> u64 {
        splice::untaken_bytes(self.socket()).unwrap_or_default()
    }
}

/// One connection.
pub struct Conn {
    /// `TokioIo` turns hyper's read buffers into tokio's.
    io: TokioIo<Transport>,
    out: Out,
    linger: Linger,
    /// The sending side is closed.
    shut: bool,
}

impl Conn {
    pub(super) fn plain(stream: TcpStream, pace: Pace, metrics: Arc<ConnMetrics>, unread: Unread) -> Conn {
        Conn::new(Transport::Plain(stream), pace, metrics, unread)
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>, pace: Pace, metrics: Arc<ConnMetrics>, unread: Unread) -> Conn {
        Conn::new(Transport::Tls(Box::new(stream)), pace, metrics, unread)
    }

    fn new(transport: Transport, pace: Pace, metrics: Arc<ConnMetrics>, unread: Unread) -> Conn {
        let out = Out::new(pace, metrics);
        Conn { io: TokioIo::new(transport), out, linger: Linger::new(unread), shut: false }
    }

    /// The peer's address.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.io.inner().socket().peer_addr()
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let out = &mut self.out;
        if out.turn_bytes >= TURN_BYTES_MAX {
            out.turn_bytes = 0;
            // Not `yield_now`: the waker puts the task behind those that are ready, and the ring gets its turn.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if let Some((refresh, _)) = &mut out.refresh {
                let refreshed = ready!(refresh.as_mut().poll(cx));
                out.fresh = out.refresh.take().map(|(_, located)| located);
                refreshed?;
            }
            let wrote = match self.io.inner_mut() {
                Transport::Plain(stream) => out.send_plain(stream, cx, slices)?,
                Transport::Tls(stream) => out.send_tls(stream, cx, slices)?,
            };
            match wrote {
                Wrote::Bytes(bytes) => {
                    out.guard.moved(bytes);
                    (out.fresh, out.refreshes) = (None, 0);
                    out.turn_bytes += bytes;
                    return Poll::Ready(Ok(bytes));
                }
                Wrote::Full => {
                    (out.fresh, out.refreshes) = (None, 0);
                    out.turn_bytes = 0;
                    let slow = out.guard.poll_slower_than_queue(cx, || self.io.inner().untaken_bytes());
                    return slow.map(|()| {
                        out.metrics.too_slow.increment(1);
                        Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads too slowly"))
                    });
                }
                Wrote::Evicted => {}
            }
        }
    }
}

impl hyper::rt::Read for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, &[IoSlice::new(buf)])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, slices)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Conn { io, out, .. } = &mut *self;
        match Pin::new(io.inner_mut()).poll_flush(cx) {
            Poll::Pending => {
                let slow = out.guard.poll_slower_than_queue(cx, || io.inner().untaken_bytes());
                slow.map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
            flushed => flushed,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Conn { io, out, linger, shut } = &mut *self;
        if !*shut {
            match Pin::new(io.inner_mut()).poll_shutdown(cx) {
                Poll::Pending => {
                    let slow = out.guard.poll_slower_than_queue(cx, || io.inner().untaken_bytes());
                    return slow.map(|()| Err(io::ErrorKind::TimedOut.into()));
                }
                Poll::Ready(result) => result?,
            }
            *shut = true;
        }
        linger.poll_done(cx, Pin::new(io.inner_mut())).map(Ok)
    }
}

impl AsyncRead for Transport {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
