//! The connections to all servers, trackers and storages alike.
//!
//! Of each server there are at most `connections_max`; who finds none waits, for at most the idle timeout. A connection
//! comes back when its [`Lease`] is dropped, and only when it is clean; it is used again within [`IDLE`], after which
//! the server is about to close it. A server may close it before (a restart), so a request that was the first on a used
//! connection and ended without a byte of reply is sent again, once, on a new one.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::connection::{Connection, Limits};
use super::failure::{Failure, Outcome};

/// How long a connection may lie unused: a server closes it after its `network_timeout`, which is 60 s unless it was
/// changed, and 30 s in its oldest example.
pub(super) const IDLE: Duration = Duration::from_secs(20);
/// How long a server that did not answer is asked after the others.
const AVOID: Duration = Duration::from_secs(5);
/// Who gives up after this part of the idle timeout has found out that a server does not answer: readers wait for less
/// long than the idle timeout, and each of them would wait for the same server.
const SILENT_PART: u32 = 3;
/// Servers remembered: as many as a large cluster has. What a tracker says must not fill the memory.
const SERVERS_KEPT: usize = 1024;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Pool {
    limits: Limits,
    connections_max: usize,
    servers: Mutex<HashMap<String, Arc<Server>>>,
}

#[derive(Debug)]
struct Server {
    address: String,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<(Connection, Instant)>>,
    failed_at: Mutex<Option<Instant>>,
}

/// A connection, for as long as somebody needs it.
#[derive(Debug)]
pub(super) struct Lease {
    /// There until the drop.
    connection: Option<Connection>,
    server: Arc<Server>,
    reused: bool,
    _permit: OwnedSemaphorePermit,
}

impl Deref for Lease {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("a connection until the drop")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("a connection until the drop")
    }
}

/// Somebody waits for a server's answer, or gives up when this is dropped.
struct Waiting {
    server: Arc<Server>,
    since: Instant,
    silent: Duration,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.since.elapsed() >= self.silent {
            self.server.failed();
        }
    }
}

impl Lease {
    /// The server broke off within what it was sending: for a while others are asked first.
    pub(super) fn broke_off(&self) {
        self.server.failed();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take().filter(Connection::clean) {
            self.server.idle.lock().push((connection, Instant::now()));
        }
    }
}

impl Pool {
    pub(super) fn new(limits: Limits, connections_max: usize) -> Self {
        Self { limits, connections_max, servers: Mutex::new(HashMap::new()) }
    }

    /// The limits of every wait.
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    fn server(&self, address: &str) -> Arc<Server> {
        let mut servers = self.servers.lock();
        if let Some(server) = servers.get(address) {
            return server.clone();
        }
        if servers.len() >= SERVERS_KEPT {
            servers.retain(|_, server| Arc::strong_count(server) > 1);
        }
        let server = Arc::new(Server {
            address: address.into(),
            permits: Arc::new(Semaphore::new(self.connections_max)),
            idle: Mutex::new(Vec::new()),
            failed_at: Mutex::new(None),
        });
        servers.insert(address.into(), server.clone());
        server
    }

    /// Whether the server gave no answer a moment ago, so that others should be asked first.
    pub(super) fn failed_lately(&self, address: &str) -> bool {
        let server = self.servers.lock().get(address).cloned();
        server.is_some_and(|server| server.failed_at.lock().is_some_and(|at| at.elapsed() < AVOID))
    }

    /// A connection to `host:port`, used before if `reuse` allows it.
    async fn lease(&self, address: &str, reuse: bool) -> Outcome<Lease> {
        let server = self.server(address);
        let permit = timeout(self.limits.idle(), server.permits.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            let text = format!("all {} connections are busy for {:?}", self.connections_max, self.limits.idle());
            return Err(Failure::Broken(text));
        };
        let used = if reuse { server.take_idle() } else { None };
        let used = used.and_then(|connection| connection.here().ok());
        let reused = used.is_some();
        let connection = match used {
            Some(connection) => connection,
            None => Connection::connect(address, self.limits).await.inspect_err(|_| server.failed())?,
        };
        Ok(Lease { connection: Some(connection), server, reused, _permit: permit })
    }

    /// Sends a request that does no harm when it is sent twice, and gives its reply or the status of a refusal, with
    /// the connection for more.
    pub(super) async fn exchange_on(
        &self,
        address: &str,
        frame: &[u8],
        body_bytes_max: usize,
    ) -> Outcome<(Lease, Result<Bytes, u8>)> {
        let mut lease = self.lease(address, true).await?;
        let waiting = self.waiting(&lease);
        let mut answer = lease.exchange(frame, body_bytes_max).await;
        if matches!(answer, Err(Failure::Closed(_))) && lease.reused {
            lease = self.renew(lease, address).await?;
            answer = lease.exchange(frame, body_bytes_max).await;
        }
        drop(waiting);
        lease.server.note(answer.as_ref().err());
        match answer {
            Ok(body) => Ok((lease, Ok(body))),
            Err(Failure::Status(status)) => Ok((lease, Err(status))),
            Err(failure) => Err(failure),
        }
    }

    /// As [`Pool::exchange_on`], without the connection.
    pub(super) async fn exchange(&self, address: &str, frame: &[u8], body_bytes_max: usize) -> Outcome<Bytes> {
        let (_, answer) = self.exchange_on(address, frame, body_bytes_max).await?;
        answer.map_err(Failure::Status)
    }

    /// Sends a request whose reply may be large, and gives the reply's length and the connection to read it from.
    pub(super) async fn ask(&self, address: &str, frame: &[u8]) -> Outcome<(Lease, u64)> {
        let mut lease = self.lease(address, true).await?;
        let waiting = self.waiting(&lease);
        let mut answer = lease.ask(frame).await;
        if matches!(answer, Err(Failure::Closed(_))) && lease.reused {
            lease = self.renew(lease, address).await?;
            answer = lease.ask(frame).await;
        }
        drop(waiting);
        lease.server.note(answer.as_ref().err());
        Ok((lease, answer?))
    }

    fn waiting(&self, lease: &Lease) -> Waiting {
        let silent = self.limits.idle() / SILENT_PART;
        Waiting { server: Arc::clone(&lease.server), since: Instant::now(), silent }
    }

    /// A new connection in place of one that turned out to be closed: those that lay beside it are not better.
    async fn renew(&self, closed: Lease, address: &str) -> Outcome<Lease> {
        closed.server.idle.lock().clear();
        drop(closed);
        self.lease(address, false).await
    }

    /// How many connections lie unused.
    #[cfg(test)]
    pub(super) fn idle_count(&self) -> usize {
        self.servers.lock().values().map(|server| server.idle.lock().len()).sum()
    }
}

impl Server {
    fn failed(&self) {
        *self.failed_at.lock() = Some(Instant::now());
    }

    /// Remembers whether the server answered.
    fn note(&self, failure: Option<&Failure>) {
        match failure {
            Some(Failure::Unreachable(_) | Failure::Closed(_) | Failure::Broken(_)) => {
                tracing::debug!(server = %self.address, "a FastDFS server gave no answer");
                self.failed();
            }
            _ => *self.failed_at.lock() = None,
        }
    }

    /// The connection that was used last; those that lay for too long are closed.
    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        idle.retain(|(_, since)| since.elapsed() < IDLE);
        while let Some((connection, _)) = idle.pop() {
            if connection.alive() {
                return Some(connection);
            }
        }
        None
    }
}
