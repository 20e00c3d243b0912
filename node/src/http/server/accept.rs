//! One listener: its connections are accepted, and each is served by a task.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioTimer;
use metrics::Gauge;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::TaskTracker;

use super::ending::Ending;
use super::{BoxError, ConnInfo, Shared};
use crate::http::body::RequestBody;
use crate::http::conn::Conn;
use crate::http::linger::Unread;
use crate::http::shares::Share;
use crate::telemetry::seldom::Seldom;

/// Without descriptors each listener would tell of it many times a second.
static ACCEPT_ERRORS: Seldom = Seldom::new(Duration::from_secs(10));

/// Pause after `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What hyper reads at a time, and the bound of what it buffers for a connection.
const READ_BUFFER_BYTES: usize = 256 << 10;

/// Where the tasks of connections run.
#[derive(Debug, Clone, Copy)]
pub(super) enum Spawn {
    OnThisThread,
    Anywhere,
}

/// Accepts and serves until the server ends, and returns when every connection's task has ended.
pub(super) async fn accept<F, S, B>(listener: StdListener, shared: Shared, factory: F, spawn: Spawn)
where
    F: Fn(ConnInfo) -> S + Clone + Send + 'static,
    S: Service<Request<RequestBody>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "register a listener with its runtime");
            return;
        }
    };
    // Of this listener's own: each turn of a connection asks whether it is to end, under the token's lock, and those of
    // other threads are not to wait for it.
    let shared = Shared { drain: shared.drain.child_token(), cut: shared.cut.child_token(), ..shared };
    let tracker = TaskTracker::new();
    let gauge = metrics::gauge!("holdfast_http_connections");
    while let Some((stream, peer, place)) = next(&listener, &shared).await {
        let (shared, factory, gauge) = (shared.clone(), factory.clone(), gauge.clone());
        let task = async move {
            let open = Open::counted(gauge);
            let cut = shared.cut.clone();
            tokio::select! {
                () = connection(stream, peer, shared, factory) => {}
                () = cut.cancelled() => {}
            }
            drop(open);
            drop(place);
        };
        match spawn {
            Spawn::OnThisThread => drop(tracker.spawn_local(task)),
            Spawn::Anywhere => drop(tracker.spawn(task)),
        }
    }
    drop(listener);
    tracker.close();
    tracker.wait().await;
}

/// A connection in the gauge of those that are open, until its task ends, even by a panic.
struct Open(Gauge);

impl Open {
    fn counted(gauge: Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// One of its client's connections, and one of all; given back in this order, so that whoever sees the second free has
/// the first.
type Place = (Share, OwnedSemaphorePermit);

/// The next connection with its place, or `None` when the server ends. At the limit each listener has one accepted
/// client that waits; the others wait in its queue.
async fn next(listener: &TcpListener, shared: &Shared) -> Option<(TcpStream, SocketAddr, Place)> {
    let accepted = async {
        let (stream, peer, share) = loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let Some(share) = shared.shares.take(peer.ip()) else {
                        metrics::counter!("holdfast_http_connections_refused_total").increment(1);
                        tracing::debug!(%peer, "this address has its share of the connections");
                        drop(stream);
                        // A flood of them must not keep this thread from the connections that it has.
                        tokio::task::yield_now().await;
                        continue;
                    };
                    // Else the last packet of an answer waits for the client's acknowledgement of the one before.
                    if stream.set_nodelay(true).is_ok() {
                        break (stream, peer, share);
                    }
                }
                Err(error) if is_about_one_client(&error) => {}
                Err(error) => {
                    metrics::counter!("holdfast_http_accept_errors_total").increment(1);
                    if let Some(untold) = ACCEPT_ERRORS.untold() {
                        tracing::warn!(
                            %error,
                            untold,
                            "connections cannot be accepted: compare process_open_fds with process_max_fds"
                        );
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        let permit = Arc::clone(&shared.permits).acquire_owned().await.expect("the semaphore is never closed");
        (stream, peer, (share, permit))
    };
    tokio::select! {
        accepted = accepted => Some(accepted),
        () = shared.drain.cancelled() => None,
    }
}

fn is_about_one_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

async fn connection<F, S, B>(stream: TcpStream, peer: SocketAddr, shared: Shared, factory: F)
where
    F: Fn(ConnInfo) -> S,
    S: Service<Request<RequestBody>, Response = Response<B>> + Send + 'static,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
{
    let limits = &shared.limits;
    let unread = Unread::default();
    let conn = match &shared.tls {
        None => Conn::plain(stream, limits.pace, Arc::clone(&shared.metrics), unread.clone()),
        Some(tls) => match tokio::time::timeout(limits.handshake_timeout, tls.acceptor().accept(stream)).await {
            Ok(Ok(stream)) => Conn::tls(stream, limits.pace, Arc::clone(&shared.metrics), unread.clone()),
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "tls handshake"),
            Err(_) => return tracing::debug!(%peer, "tls handshake took too long"),
        },
    };
    let service = factory(ConnInfo { peer, tls: shared.tls.is_some() });
    let pace = limits.pace;
    let service = service_fn(move |request: Request<Incoming>| {
        let ending = Ending::of(&request);
        let end = match &ending {
            Ending::Unless(end) => Some(end.clone()),
            Ending::Kept | Ending::Announced => None,
        };
        let answer = service.call(request.map(|incoming| RequestBody::new(incoming, pace, unread.clone(), end)));
        async move {
            let mut response = answer.await?;
            if ending.is_to_be_announced() {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, S::Error>(response)
        }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_timeout)
            .max_headers(limits.headers_max)
            .max_header_size(limits.head_bytes_max)
            .max_buf_size(READ_BUFFER_BYTES)
            .half_close(false)
            .serve_connection(conn, service)
    );
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = shared.drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        // Clients leave in many ways; what a request suffered from that is reported where it is served.
        tracing::debug!(%peer, %error, "connection ended");
    }
}
