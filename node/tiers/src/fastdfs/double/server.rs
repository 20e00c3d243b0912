//! What trackers and storages have in common: connections, and one request after the other on each.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::state::Faults;
use crate::fastdfs::wire::{HEADER_BYTES, Header, command};

/// A server that can be stopped, and started again on the same port.
pub(super) struct Server {
    address: SocketAddr,
    serve: Serve,
    facts: Arc<Facts>,
    running: Mutex<Option<JoinHandle<()>>>,
}

type Serve = Arc<dyn Fn(Link) -> BoxFuture<'static, ()> + Send + Sync>;

/// What is remembered of all connections.
#[derive(Debug)]
struct Facts {
    connections: AtomicU64,
    pipelined: Arc<AtomicBool>,
    closing: watch::Sender<()>,
}

/// A connection from a client.
pub(super) struct Link {
    pub(super) stream: TcpStream,
    pipelined: Arc<AtomicBool>,
    closing: watch::Receiver<()>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = self.running.lock().take() {
            task.abort();
        }
    }
}

impl Server {
    pub(super) fn start<F>(listener: TcpListener, serve: impl Fn(Link) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let server = Self {
            address: listener.local_addr().expect("an address"),
            serve: Arc::new(move |link| Box::pin(serve(link))),
            facts: Arc::new(Facts {
                connections: AtomicU64::new(0),
                pipelined: Arc::default(),
                closing: watch::Sender::new(()),
            }),
            running: Mutex::new(None),
        };
        server.run(listener);
        server
    }

    fn run(&self, listener: TcpListener) {
        let (serve, facts) = (self.serve.clone(), self.facts.clone());
        let accepting = async move {
            // With this task all connections end.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                facts.connections.fetch_add(1, Ordering::Relaxed);
                let closing = facts.closing.subscribe();
                connections.spawn(serve(Link { stream, pipelined: facts.pipelined.clone(), closing }));
                while connections.try_join_next().is_some() {}
            }
        };
        *self.running.lock() = Some(tokio::spawn(accepting));
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) async fn stop(&self) {
        let task = self.running.lock().take();
        if let Some(task) = task {
            task.abort();
            // Until it is over, the port still listens.
            task.await.ok();
        }
    }

    pub(super) async fn restart(&self) {
        loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => return self.run(listener),
                Err(error) => {
                    tracing::debug!(%error, "the port is not free yet");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    pub(super) fn close_idle_connections(&self) {
        self.facts.closing.send_replace(());
    }

    pub(super) fn connections(&self) -> u64 {
        self.facts.connections.load(Ordering::Relaxed)
    }

    pub(super) fn pipelined(&self) -> &AtomicBool {
        &self.facts.pipelined
    }
}

impl Link {
    /// The next request's header; `None` when the connection is over.
    pub(super) async fn header(&mut self) -> Option<Header> {
        let mut bytes = [0; HEADER_BYTES];
        let read = tokio::select! {
            biased;
            changed = self.closing.changed() => {
                changed.ok()?;
                return None;
            }
            read = self.stream.read_exact(&mut bytes) => read,
        };
        read.ok()?;
        Header::decode(bytes).ok()
    }

    /// The next bytes of the request.
    pub(super) async fn take(&mut self, count: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(count).ok().filter(|count| *count <= 1 << 30)?];
        self.stream.read_exact(&mut bytes).await.ok()?;
        Some(bytes)
    }

    /// To be called behind a whole request: does not come back if there is another already.
    pub(super) async fn trap_pipelining(&mut self) {
        let more = tokio::time::timeout(Duration::ZERO, self.stream.peek(&mut [0])).await;
        if matches!(more, Ok(Ok(1))) {
            self.pipelined.store(true, Ordering::Relaxed);
            std::future::pending::<()>().await;
        }
    }

    /// What goes wrong with a request of `command` before it is looked at; `None` when the connection is over with it.
    pub(super) async fn suffer(&mut self, faults: &Faults, command: u8) -> Option<()> {
        if let Some(delay) = faults.delay {
            tokio::time::sleep(delay).await;
        }
        if faults.hang.contains(&command) {
            std::future::pending::<()>().await;
        }
        if faults.babble {
            self.stream.write_all(&[b'x'; 100]).await.ok();
            return None;
        }
        Some(())
    }

    /// Sends a reply.
    pub(super) async fn reply(&mut self, status: u8, body: &[u8]) -> Option<()> {
        let header = Header { body_bytes: body.len() as u64, command: command::REPLY, status };
        let mut reply = header.encode().to_vec();
        reply.extend(body);
        self.stream.write_all(&reply).await.ok()
    }
}
