//! Leases and locks: a queue of ephemeral sequential nodes. The first holds it, everyone else watches the one before.
//!
//! A task stands in the queue for the caller, so that a caller who is dropped leaves nothing behind: the task then
//! removes its candidate. A candidate whose creation was not answered is found by the nonce in its name.
//!
//! That the candidate of a lease is gone is told by the mirror, which watches all leases. Locks it does not watch, so
//! the holder of a lock watches its own candidate.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use holdfast_actors::ports::coordination::{
    CoordinationError, CoordinationResult, FencingToken, Lease, LeaseName, Version,
};
use holdfast_protocol::NodeId;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};
use zookeeper_client as zk;

use super::session::{Shared, connected, is_open, refused};
use super::stored::{CandidateRecord, LOCKS, ROOT, decode, encode, lease_path, lock_path, nonce, sequence};

const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// A watch tells when the predecessor leaves; this is how often it is looked for all the same.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A lease: one of a few, shown to everybody, whose queue stays.
    Lease,
    /// A lock: one of many, whose queue ZooKeeper removes when it is empty.
    Lock,
}

/// Stands in the queue and returns the lease, or `None` when it was taken and `only_if_free`.
pub(super) async fn acquire(
    shared: &Arc<Shared>,
    kind: Kind,
    lease: &LeaseName,
    node: NodeId,
    only_if_free: bool,
) -> CoordinationResult<Option<Lease>> {
    let client = shared.ready(shared.deadline()).await?;
    let (reply, answer) = oneshot::channel();
    let parent = match kind {
        Kind::Lease => lease_path(lease),
        Kind::Lock => lock_path(lease),
    };
    let stand = Stand { shared: shared.clone(), client, kind, lease: lease.clone(), parent };
    tokio::spawn(stand.run(node, only_if_free, reply));
    answer.await.unwrap_or(Err(CoordinationError::SessionExpired))
}

/// What whoever is the first has: the token, and of a lock what tells that its candidate is gone.
type Turn = (FencingToken, Option<zk::OneshotWatcher>);

type Reply = oneshot::Sender<CoordinationResult<Option<Lease>>>;

struct Stand {
    shared: Arc<Shared>,
    /// The session to which the candidate belongs.
    client: zk::Client,
    kind: Kind,
    lease: LeaseName,
    parent: String,
}

impl Stand {
    async fn run(self, node: NodeId, only_if_free: bool, mut reply: Reply) {
        let candidate = match self.enter(node).await {
            Ok(candidate) => candidate,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let closed = self.shared.closed.clone();
        let turn = tokio::select! {
            turn = self.wait(&candidate, only_if_free) => turn,
            () = reply.closed() => Ok(None),
            () = closed.cancelled() => Err(CoordinationError::SessionExpired),
        };
        match turn {
            Ok(Some((token, watcher))) => {
                // If the caller is gone, the lease in the answer is dropped with it, which gives it back.
                drop(reply.send(Ok(Some(self.grant(candidate, token, watcher)))));
            }
            other => {
                drop(reply.send(other.map(|_| None)));
                remove(&self.client, &candidate).await;
            }
        }
    }

    fn grant(&self, candidate: String, token: FencingToken, watcher: Option<zk::OneshotWatcher>) -> Lease {
        let (held, watch) = watch::channel(true);
        self.shared.held.lock().insert(candidate.clone(), held);
        // If the session ended before the lease was entered, nobody else will declare it lost.
        let session = self.client.session_id();
        if !self.shared.client().is_ok_and(|c| c.session_id() == session) {
            self.shared.lose_lease(&candidate);
        }
        if let Some(watcher) = watcher {
            // It fires when the lock is given back, at the latest when the session ends, and outlives connections.
            let (shared, path) = (self.shared.clone(), candidate.clone());
            tokio::spawn(async move {
                if watcher.changed().await.event_type == zk::EventType::NodeDeleted {
                    shared.lose_lease(&path);
                }
            });
        }
        // A lease must not keep the session of a closed participant alive: it holds no client, but asks for it.
        let (shared, path) = (self.shared.clone(), candidate.clone());
        let release = Box::new(move || -> BoxFuture<'static, ()> {
            async move {
                shared.lose_lease(&path);
                if let Some(client) = shared.client().ok().filter(|c| c.session_id() == session) {
                    remove(&client, &path).await;
                }
            }
            .boxed()
        });
        Lease::new(self.lease.clone(), token, candidate, watch, self.shared.ownership.clone(), release)
    }

    /// Puts a candidate into the queue and returns its path.
    async fn enter(&self, node: NodeId) -> CoordinationResult<String> {
        let value = encode(&CandidateRecord { node })?;
        let prefix = format!("{}/{}-", self.parent, nonce());
        let options = zk::CreateMode::EphemeralSequential.with_acls(self.shared.config.acls());
        loop {
            let error = match self.client.create(&prefix, &value.bytes, &options).await {
                Ok((_, number)) => return Ok(format!("{prefix}{number}")),
                Err(error) => error,
            };
            if error == zk::Error::NoNode {
                self.make_parent().await?;
            } else if !is_open(&error) {
                return Err(refused("enter the queue", &error));
            } else if let Some(entered) = self.find(&prefix).await? {
                return Ok(entered);
            }
        }
    }

    async fn make_parent(&self) -> CoordinationResult<()> {
        let mode = match self.kind {
            Kind::Lease => zk::CreateMode::Persistent,
            Kind::Lock => zk::CreateMode::Container,
        };
        let options = mode.with_acls(self.shared.config.acls());
        match self.insist(|| self.client.create(&self.parent, b"", &options)).await {
            Ok(_) | Err(zk::Error::NodeExists) => Ok(()),
            Err(zk::Error::NoNode) if self.kind == Kind::Lock => self.make_locks().await,
            Err(zk::Error::NoNode) => Err(CoordinationError::NotFound("cluster".into())),
            Err(error) => Err(refused("make a queue", &error)),
        }
    }

    /// Where all locks are, with what is added to their tokens.
    async fn make_locks(&self) -> CoordinationResult<()> {
        let options = zk::CreateMode::Persistent.with_acls(self.shared.config.acls());
        let nothing = encode(&0_u64)?;
        match self.insist(|| self.client.create(LOCKS, &nothing.bytes, &options)).await {
            Ok(_) | Err(zk::Error::NodeExists) => Ok(()),
            Err(error) => Err(refused("make the place of locks", &error)),
        }
    }

    /// The token of a candidate that is the first; of a lock with what tells that the candidate is gone.
    async fn token(&self, candidate: &str) -> CoordinationResult<Turn> {
        let look = |e: zk::Error| refused("look into the queue", &e);
        let (stat, watcher) = match self.kind {
            Kind::Lease => (self.insist(|| self.client.check_stat(candidate)).await.map_err(look)?, None),
            Kind::Lock => {
                let watched = self.insist(|| self.client.check_and_watch_stat(candidate)).await;
                let (stat, watcher) = watched.map_err(look)?;
                (stat, Some(watcher))
            }
        };
        let created = stat.ok_or_else(|| CoordinationError::LeaseLost(self.lease.clone()))?.czxid as u64;
        if self.kind == Kind::Lease {
            return Ok((FencingToken(created), watcher));
        }
        let found = self.insist(|| self.client.get_data(LOCKS)).await;
        let (bytes, _) = found.map_err(|e| refused("read what is added to tokens", &e))?;
        Ok((FencingToken(created.saturating_add(decode(LOCKS, &bytes)?)), watcher))
    }

    /// The candidate whose creation was not answered, if it took place.
    async fn find(&self, prefix: &str) -> CoordinationResult<Option<String>> {
        let found = self
            .insist(|| async {
                self.client.sync(ROOT).await?;
                self.client.list_children(&self.parent).await
            })
            .await;
        let children = match found {
            Ok(children) => children,
            Err(zk::Error::NoNode) => return Ok(None),
            Err(error) => return Err(refused("look into the queue", &error)),
        };
        Ok(children.into_iter().map(|c| format!("{}/{c}", self.parent)).find(|c| c.starts_with(prefix)))
    }

    /// Waits until the candidate is the first. The token is the transaction that created it: candidates are served in
    /// the order in which they were created, so tokens rise.
    async fn wait(&self, candidate: &str, only_if_free: bool) -> CoordinationResult<Option<Turn>> {
        let own = sequence(candidate).ok_or_else(|| CoordinationError::Corrupt(candidate.to_owned()))?;
        loop {
            let children = self.insist(|| self.client.list_children(&self.parent)).await;
            let children = children.map_err(|e| refused("look into the queue", &e))?;
            let before = children.iter().filter_map(|c| sequence(c).map(|s| (s, c))).filter(|(s, _)| *s < own).max();
            let Some((_, before)) = before else { return self.token(candidate).await.map(Some) };
            if only_if_free {
                return Ok(None);
            }
            let path = format!("{}/{before}", self.parent);
            let watched = self.insist(|| self.client.check_and_watch_stat(&path)).await;
            if let (Some(_), watcher) = watched.map_err(|e| refused("watch the queue", &e))? {
                self.gone(&path, watcher).await?;
            }
        }
    }

    /// Waits until the one before may have left. All nodes stand in a few queues for as long as they run: the list of
    /// them all is not to be read by each of them each time.
    async fn gone(&self, path: &str, watcher: zk::OneshotWatcher) -> CoordinationResult<()> {
        let mut changed = pin!(watcher.changed());
        while timeout(LOOK_AGAIN, changed.as_mut()).await.is_err() {
            let found = self.insist(|| self.client.check_stat(path)).await;
            if found.map_err(|e| refused("look into the queue", &e))?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Asks until there is an answer or the session is over: the place in the queue lasts as long as the session.
    async fn insist<T, F>(&self, call: impl Fn() -> F) -> Result<T, zk::Error>
    where
        F: Future<Output = Result<T, zk::Error>>,
    {
        loop {
            if !connected(&self.client).await {
                return Err(zk::Error::SessionExpired);
            }
            match call().await {
                Err(error) if is_open(&error) => sleep(RETRY_PAUSE).await,
                result => return result,
            }
        }
    }
}

/// Makes the tokens of all locks higher than `above`.
pub(super) async fn raise_tokens(shared: &Shared, above: FencingToken) -> CoordinationResult<()> {
    loop {
        let found = shared.latest(shared.deadline(), LOCKS).await?;
        let (bytes, stat) = found.ok_or_else(|| CoordinationError::NotFound("lock".into()))?;
        if decode::<u64>(LOCKS, &bytes)? >= above.0 {
            return Ok(());
        }
        let value = encode(&above.0)?;
        let expected = Some(Version(stat.version));
        match shared.compare_and_set(LOCKS, "what is added to tokens", expected, &value, None).await {
            Err(CoordinationError::Conflict(_)) => {}
            result => return result.map(drop),
        }
    }
}

/// Removes a candidate, for as long as its session lives; after that it is gone by itself.
async fn remove(client: &zk::Client, path: &str) {
    while connected(client).await {
        match client.delete(path, None).await {
            Err(error) if is_open(&error) => sleep(RETRY_PAUSE).await,
            _ => return,
        }
    }
}
