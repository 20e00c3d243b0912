//! Listeners, the runtimes that serve them, and their end.
//!
//! **Data plane.** [`DataPlane::PerCore`] runs one thread a core with a runtime and, where io_uring works, a ring of its own;
//! each thread has a listener on the same port (`SO_REUSEPORT`), and a connection stays on the thread that accepted it.
//! [`DataPlane::MultiThread`] runs the same code as tasks of the runtime that it is started on.
//!
//! **Limits.** Connections: beyond the limit they wait in the listen queue; beyond one address's share they are closed.
//! Heads: size, number of headers, time. Bodies and answers: the least pace. Handshakes: time.
//!
//! **Shutdown.** [`HttpServer::shutdown`] closes the listeners, lets each connection finish the request at hand, cuts what is
//! left at the deadline, and returns when every connection's task has ended. Dropping the server cuts at once.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use holdfast_storage::buf::BufferPool;
use holdfast_storage::io::uring;
use http::{HeaderValue, Request, Response, header};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::RequestBody;
use super::conn::{Conn, ConnMetrics};
use super::linger::Unread;
use super::pace::Pace;
use super::shares::{Share, Shares};
use super::tls::Tls;
use crate::addresses::AddressBlock;
use crate::telemetry::seldom::Seldom;

mod ending;
mod listen;

use ending::Ending;
use listen::{Sharing, listen};

/// Without descriptors each listener would tell of it many times a second.
static ACCEPT_ERRORS: Seldom = Seldom::new(Duration::from_secs(10));

/// Pause after `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long tasks that were cut may take to end.
const CUT_MAX: Duration = Duration::from_secs(5);

/// What hyper reads at a time, and the bound of what it buffers for a connection.
const READ_BUFFER_BYTES: usize = 256 << 10;

/// Any error of a service or a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where connections are served.
#[derive(Clone)]
pub enum DataPlane {
    /// A thread, a runtime and a listener for each core.
    PerCore {
        /// How many.
        threads: usize,
        /// The pool that each thread's ring registers; `None` where io_uring is not used.
        rings: Option<Arc<BufferPool>>,
    },
    /// The multi-threaded runtime on which the server is started.
    MultiThread,
}

/// What a client may ask of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections served at a time.
    pub connections_max: usize,
    /// Connections of one address, or one IPv6 network, at a time.
    pub connections_per_address: usize,
    /// Addresses whose connections are not counted by address.
    pub exempt_addresses: Vec<AddressBlock>,
    /// From when a request is waited for until its head is complete; also how long a connection may be idle.
    pub head_timeout: Duration,
    /// Size of a head. Beyond it the answer is 431.
    pub head_bytes_max: usize,
    /// Number of headers. Beyond it the answer is 431.
    pub headers_max: usize,
    /// The least progress of bodies and answers.
    pub pace: Pace,
    /// From accepting a connection to the end of its TLS handshake.
    pub handshake_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 8192,
            connections_per_address: 8192,
            exempt_addresses: vec![],
            head_timeout: Duration::from_secs(60),
            // S3 allows 8 KiB of headers, of which 2 KiB metadata, and URLs of presigned requests come on top.
            head_bytes_max: 32 << 10,
            headers_max: 100,
            pace: Pace::default(),
            handshake_timeout: Duration::from_secs(10),
        }
    }
}

/// How to serve.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where to listen; port 0 takes a free one.
    pub addr: SocketAddr,
    /// Which threads serve.
    pub data_plane: DataPlane,
    /// What clients may ask.
    pub limits: Limits,
    /// HTTPS instead of HTTP.
    pub tls: Option<Tls>,
}

/// What a service is told about its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnInfo {
    /// The client.
    pub peer: SocketAddr,
    /// Whether the connection is encrypted.
    pub tls: bool,
}

/// How a shutdown went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Every connection had finished its request by the deadline.
    pub in_time: bool,
    /// Every connection's task has ended.
    pub all_left: bool,
}

/// A running server. Dropping it cuts all connections.
pub struct HttpServer {
    local_addr: SocketAddr,
    shared: Shared,
    ended: Vec<oneshot::Receiver<()>>,
    watcher: Option<tokio::task::JoinHandle<()>>,
}

/// What all threads share.
#[derive(Clone)]
struct Shared {
    limits: Arc<Limits>,
    tls: Option<Tls>,
    metrics: Arc<ConnMetrics>,
    permits: Arc<Semaphore>,
    shares: Arc<Shares>,
    /// Accept no more; finish what is at hand.
    drain: CancellationToken,
    /// Stop.
    cut: CancellationToken,
}

impl HttpServer {
    /// Binds and serves. `factory` makes the service of each connection, on the thread that serves it. Must be called on a
    /// tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be bound or the threads cannot be started.
    pub fn start<F, S, B>(config: ServerConfig, factory: F) -> io::Result<HttpServer>
    where
        F: Fn(ConnInfo) -> S + Clone + Send + 'static,
        S: Service<Request<RequestBody>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let shared = Shared {
            permits: Arc::new(Semaphore::new(config.limits.connections_max)),
            shares: Shares::new(config.limits.connections_per_address, config.limits.exempt_addresses.clone()),
            limits: Arc::new(config.limits),
            tls: config.tls.clone(),
            metrics: Arc::new(ConnMetrics::new()),
            drain: CancellationToken::new(),
            cut: CancellationToken::new(),
        };
        let threads = match &config.data_plane {
            DataPlane::PerCore { threads, .. } => (*threads).max(1),
            DataPlane::MultiThread => 1,
        };
        let mut listeners = vec![listen(config.addr, Sharing::Exclusive)?];
        let local_addr = listeners[0].local_addr()?;
        for _ in 1..threads {
            listeners.push(listen(local_addr, Sharing::WithOurs)?);
        }
        let mut server = HttpServer { local_addr, shared: shared.clone(), ended: vec![], watcher: None };
        for (number, listener) in listeners.into_iter().enumerate() {
            let (running, ended) = oneshot::channel::<()>();
            server.ended.push(ended);
            let (shared, factory) = (shared.clone(), factory.clone());
            match &config.data_plane {
                DataPlane::MultiThread => {
                    tokio::spawn(async move {
                        accept(listener, shared, factory, Spawn::Anywhere).await;
                        drop(running);
                    });
                }
                DataPlane::PerCore { rings, .. } => {
                    let rings = rings.clone();
                    thread::Builder::new().name(format!("data-{number}")).spawn(move || {
                        run_thread(rings.as_ref(), accept(listener, shared, factory, Spawn::OnThisThread));
                        drop(running);
                    })?;
                }
            }
        }
        server.watcher = config.tls.map(|tls| tokio::spawn(tls.watch()));
        Ok(server)
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.shared.limits.connections_max - self.shared.permits.available_permits()
    }

    /// Ends the server as the module's page says: `deadline` for the requests at hand, then the rest is cut.
    pub async fn shutdown(mut self, deadline: Duration) -> Drained {
        self.shared.drain.cancel();
        let mut ended = futures::future::join_all(std::mem::take(&mut self.ended));
        if tokio::time::timeout(deadline, &mut ended).await.is_ok() {
            return Drained { in_time: true, all_left: true };
        }
        tracing::warn!(connections = self.connections(), "requests did not end before the deadline, cutting them");
        self.shared.cut.cancel();
        let all_left = tokio::time::timeout(CUT_MAX, ended).await.is_ok();
        if !all_left {
            tracing::error!(connections = self.connections(), "tasks of connections do not end");
        }
        Drained { in_time: false, all_left }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.shared.drain.cancel();
        self.shared.cut.cancel();
        if let Some(watcher) = self.watcher.take() {
            watcher.abort();
        }
    }
}

/// Runs one data-plane thread to its end.
fn run_thread(rings: Option<&Arc<BufferPool>>, main: impl Future<Output = ()>) {
    let ran = match rings {
        Some(pool) => uring::block_on(pool, main),
        None => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map(|runtime| LocalSet::new().block_on(&runtime, main)),
    };
    if let Err(error) = ran {
        tracing::error!(%error, "start the runtime of a data-plane thread");
    }
}

/// Where the tasks of connections run.
#[derive(Debug, Clone, Copy)]
enum Spawn {
    OnThisThread,
    Anywhere,
}

async fn accept<F, S, B>(listener: StdListener, shared: Shared, factory: F, spawn: Spawn)
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
    let tracker = TaskTracker::new();
    let gauge = metrics::gauge!("holdfast_http_connections");
    while let Some((stream, peer, place)) = next(&listener, &shared).await {
        let (shared, factory, gauge) = (shared.clone(), factory.clone(), gauge.clone());
        let task = async move {
            gauge.increment(1.0);
            let cut = shared.cut.clone();
            tokio::select! {
                () = connection(stream, peer, shared, factory) => {}
                () = cut.cancelled() => {}
            }
            gauge.decrement(1.0);
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
