//! Listeners, the runtimes that serve them, and their end.
//!
//! **Data plane.** [`DataPlane::PerCore`] runs one thread a core with a runtime and, where io_uring works, a ring of
//! its own; each thread has a listener on the same port (`SO_REUSEPORT`), and a connection stays on the thread that
//! accepted it. [`DataPlane::MultiThread`] runs the same code as tasks of the runtime that it is started on.
//!
//! **Limits.** Connections: beyond the limit they wait in the listen queue; beyond one address's share they are closed.
//! Heads: size, number of headers, time. Bodies and answers: the least pace. Handshakes: time.
//!
//! **Shutdown.** [`HttpServer::shutdown`] closes the listeners, lets each connection finish the request at hand, cuts
//! what is left at the deadline, and returns when every connection's task has ended. Dropping the server cuts at once.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use holdfast_storage::buf::BufferPool;
use holdfast_storage::io::uring;
use http::{Request, Response};
use http_body::Body;
use hyper::service::Service;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use super::body::RequestBody;
use super::conn::ConnMetrics;
use super::pace::Pace;
use super::shares::Shares;
use super::tls::Tls;
use crate::addresses::AddressBlock;

mod accept;
mod ending;
mod listen;

use accept::{Spawn, accept};
use listen::{Sharing, listen};

/// How long tasks that were cut may take to end.
const CUT_MAX: Duration = Duration::from_secs(5);

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
    /// Listeners that are served.
    served: Arc<watch::Sender<usize>>,
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
    /// Binds and serves. `factory` makes the service of each connection, on the thread that serves it. Must be called
    /// on a tokio runtime.
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
        let served = Arc::new(watch::Sender::new(listeners.len()));
        let mut server = HttpServer { local_addr, shared: shared.clone(), ended: vec![], served, watcher: None };
        for (number, listener) in listeners.into_iter().enumerate() {
            let (ends, ended) = oneshot::channel::<()>();
            server.ended.push(ended);
            let (served, drain) = (server.served.clone(), shared.drain.clone());
            let running = Running { number, served, drain, _ends: ends };
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

    /// Resolves when nothing accepts connections any more, though the server was not told to end.
    pub async fn lost(&self) {
        none_left(&self.served).await;
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

/// Kept by what serves one listener, and dropped with it, even by a panic.
struct Running {
    number: usize,
    served: Arc<watch::Sender<usize>>,
    drain: CancellationToken,
    _ends: oneshot::Sender<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.drain.is_cancelled() {
            return;
        }
        tracing::error!(listener = self.number, "what accepts connections here has ended, which is a bug");
        self.served.send_modify(|served| *served -= 1);
    }
}

async fn none_left(served: &watch::Sender<usize>) {
    if served.subscribe().wait_for(|served| *served == 0).await.is_err() {
        std::future::pending::<()>().await;
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

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn panics(_running: Running) {
        panic!("a bug");
    }

    #[test]
    fn listeners_that_end_by_themselves_are_missed_and_told_ends_are_not() {
        let served = Arc::new(watch::Sender::new(2));
        let drain = CancellationToken::new();
        let running = |number| {
            let (ends, _) = oneshot::channel();
            Running { number, served: served.clone(), drain: drain.clone(), _ends: ends }
        };
        let (first, second, third) = (running(0), running(1), running(2));
        drop(first);
        assert!(none_left(&served).now_or_never().is_none(), "one is left");
        assert!(thread::spawn(move || panics(second)).join().is_err());
        assert!(none_left(&served).now_or_never().is_some());
        drain.cancel();
        drop(third);
        assert_eq!(*served.borrow(), 0, "it was told to end");
    }
}
