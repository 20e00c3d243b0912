//! The admin server itself: connections and request ids.

use std::future::Future;
use std::time::Duration;

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::audit::Client;
use super::{AdminState, router};
use crate::http::shares::Shares;
use crate::telemetry::seldom::Seldom;

/// Connections at once: monitoring and a few operators. The next one waits in the listen queue.
const CONNECTIONS_MAX: usize = 256;

/// Of them those of one address, or of one IPv6 network: whoever else looks whether the node lives gets an answer.
const CONNECTIONS_PER_ADDRESS: usize = CONNECTIONS_MAX / 4;

/// What is buffered of a connection, and so the size of a head, as at the S3 port. Beyond it the answer is 431.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// Time for a request's head to arrive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest life of a connection, whatever happens on it: longer than the longest command.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);

/// Without descriptors it would be told many times a second.
static ACCEPT_ERRORS: Seldom = Seldom::new(Duration::from_secs(10));

/// Pause after an error of `accept`, such as too many open files, so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves the admin API until `stop` resolves, then lets open requests end for at most `drain`.
pub async fn serve(listener: TcpListener, state: AdminState, stop: impl Future<Output = ()>, drain: Duration) {
    let service = router(state);
    let connections = TaskTracker::new();
    let slots = std::sync::Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let shares = Shares::new(CONNECTIONS_PER_ADDRESS, Vec::new());
    let (closing, _) = tokio::sync::watch::channel(false);
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = async {
                let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
                listener.accept().await.map(|(stream, from)| (stream, from, slot))
            } => accepted,
        };
        let (stream, from, slot) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(untold) = ACCEPT_ERRORS.untold() {
                    tracing::warn!(%error, untold, "connections to the admin port cannot be accepted");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(share) = shares.take(from.ip()) else {
            tracing::debug!(%from, "this address has its share of the admin connections");
            continue;
        };
        let service = TowerToHyperService::new(service.clone().layer(axum::Extension(Client(from))));
        let mut closing = closing.subscribe();
        connections.spawn(async move {
            let _place = (share, slot);
            // To tell HTTP/2 from HTTP/1 would take the first bytes, for which no limit of time holds.
            let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new()).http1_only();
            let mut http1 = builder.http1();
            http1.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            let whole = async {
                tokio::select! {
                    result = connection.as_mut() => return drop(result),
                    _ = closing.wait_for(|closing| *closing) => connection.as_mut().graceful_shutdown(),
                }
                drop(connection.await);
            };
            if tokio::time::timeout(CONNECTION_TIMEOUT, whole).await.is_err() {
                tracing::debug!("admin connection closed at its time limit");
            }
        });
    }
    closing.send_replace(true);
    connections.close();
    if tokio::time::timeout(drain, connections.wait()).await.is_err() {
        tracing::warn!("admin requests were cut off by the stop");
    }
}

tokio::task_local! {
    static REQUEST_ID: String;
}

/// The id of the request being answered.
pub(super) fn current_request_id() -> String {
    REQUEST_ID.try_with(Clone::clone).unwrap_or_default()
}

/// A part of a request that goes to a task of its own.
pub(super) fn with_current_request_id<F: Future>(part: F) -> impl Future<Output = F::Output> {
    REQUEST_ID.scope(current_request_id(), part.in_current_span())
}

/// Middleware: gives each request an id, which is in its log lines and in the answer.
pub(super) async fn request_id(request: Request, next: Next) -> Response {
    let id = hex::encode(rand::random::<[u8; 8]>());
    let span = tracing::info_span!("admin", request_id = id, method = %request.method(), path = request.uri().path());
    let mut response = REQUEST_ID.scope(id.clone(), next.run(request).instrument(span)).await;
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nothing_comes_makes_room_for_others() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, AdminState::default(), std::future::pending(), Duration::ZERO));
        let mut silent = TcpStream::connect(address).await.unwrap();
        let begun = Instant::now();
        // Whether it ends well does not matter.
        let _ = silent.read_to_end(&mut Vec::new()).await;
        assert!(begun.elapsed() < CONNECTION_TIMEOUT / 2, "{:?}", begun.elapsed());
        server.abort();
    }

    #[tokio::test]
    async fn a_head_without_an_end_is_not_kept() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, AdminState::default(), std::future::pending(), Duration::ZERO));
        let mut stream = TcpStream::connect(address).await.unwrap();
        // No byte more: what is left unread makes of the end a reset, which may take the answer along.
        let mut head = b"GET /health/live HTTP/1.1\r\nx-long: ".to_vec();
        head.resize(HEAD_BYTES_MAX, b'x');
        stream.write_all(&head).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&answer));
        server.abort();
    }

    #[tokio::test]
    async fn one_address_does_not_take_all_connections() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, AdminState::default(), std::future::pending(), Duration::ZERO));
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_PER_ADDRESS {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        let (mut one_more, mut read) = (TcpStream::connect(address).await.unwrap(), Vec::new());
        // Whether it ends well does not matter. If it had a place, the others would end before it: they are older.
        tokio::select! {
            biased;
            _ = one_more.read_to_end(&mut read) => {}
            _ = held[0].readable() => panic!("it has a place"),
        }
        server.abort();
    }
}
