//! Locks between nodes of one process: a queue for each name, behind one lock that is held for the time of a map
//! operation.
//!
//! Nothing is stored. Tokens are the time of day in milliseconds, or one more than the last: so they also rise over a
//! restart, and where the clock was set back meanwhile, [`Locks::raise`] puts it right.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use holdfast_actors::ports::coordination::Ownership;
use holdfast_actors::ports::locks::{FencingToken, Lease, LockError, LockName, LockResult, Locks};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};

/// Nobody takes a lock away here, so a grant has no end; this is as good.
const FOREVER: Duration = Duration::from_secs(3600 * 24 * 365 * 100);

/// Locks of one process. Clones are the same locks.
#[derive(Clone, Default)]
pub struct InProcessLocks {
    shared: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The last token, of all names.
    token: u64,
    /// Numbers requests.
    counter: u64,
    /// Of names that somebody holds.
    queues: HashMap<LockName, Queue>,
}

struct Queue {
    holder: u64,
    held: watch::Sender<bool>,
    waiting: VecDeque<(u64, oneshot::Sender<Grant>)>,
}

struct Grant {
    token: FencingToken,
    held: watch::Receiver<bool>,
}

impl State {
    fn grant(&mut self) -> (watch::Sender<bool>, Grant) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.token = (self.token + 1).max(now.as_millis() as u64);
        let (held, watch) = watch::channel(true);
        (held, Grant { token: FencingToken(self.token), held: watch })
    }

    /// Takes a request out, whether it waits or holds; the next one is then granted.
    fn leave(&mut self, name: &LockName, request: u64) {
        let Some(queue) = self.queues.get_mut(name) else { return };
        queue.waiting.retain(|(waiting, _)| *waiting != request);
        if queue.holder != request {
            return;
        }
        queue.held.send_replace(false);
        let Some((next, reply)) = queue.waiting.pop_front() else {
            self.queues.remove(name);
            return;
        };
        let (held, grant) = self.grant();
        if let Some(queue) = self.queues.get_mut(name) {
            (queue.holder, queue.held) = (next, held);
        }
        // Whoever waits leaves the queue, under the lock, before it stops to listen.
        drop(reply.send(grant));
    }
}

impl InProcessLocks {
    /// No locks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a lock away from its holder, as a service does with one that it gave up; for tests.
    pub fn take_away(&self, lease: &Lease) {
        if let Ok(request) = lease.key().parse() {
            self.shared.lock().leave(lease.name(), request);
        }
    }
}

/// A request that was not answered; dropped, it is taken back.
struct Request<'a> {
    locks: &'a InProcessLocks,
    name: &'a LockName,
    number: u64,
    taken: bool,
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if !self.taken {
            self.locks.shared.lock().leave(self.name, self.number);
        }
    }
}

impl Request<'_> {
    fn take(mut self, grant: Grant) -> Lease {
        self.taken = true;
        let ownership = Ownership::default();
        ownership.extend(Instant::now(), FOREVER);
        let (shared, name, number) = (self.locks.shared.clone(), self.name.clone(), self.number);
        let release = Box::new(move || -> futures::future::BoxFuture<'static, ()> {
            // At once: there is nothing to wait for.
            shared.lock().leave(&name, number);
            Box::pin(std::future::ready(()))
        });
        Lease::new(self.name.clone(), grant.token, self.number.to_string(), grant.held, ownership, release)
    }
}

#[async_trait]
impl Locks for InProcessLocks {
    async fn acquire(&self, name: &LockName, patience: Duration) -> LockResult<Lease> {
        let (reply, answer) = oneshot::channel();
        let (request, granted) = {
            let mut state = self.shared.lock();
            state.counter += 1;
            let number = state.counter;
            let request = Request { locks: self, name, number, taken: false };
            match state.queues.get_mut(name) {
                Some(queue) => {
                    queue.waiting.push_back((number, reply));
                    (request, None)
                }
                None => {
                    let (held, grant) = state.grant();
                    state.queues.insert(name.clone(), Queue { holder: number, held, waiting: VecDeque::new() });
                    (request, Some(grant))
                }
            }
        };
        if let Some(grant) = granted {
            return Ok(request.take(grant));
        }
        match timeout(patience, answer).await {
            Ok(Ok(grant)) => Ok(request.take(grant)),
            _ => Err(LockError::TimedOut { name: name.clone(), patience }),
        }
    }

    async fn raise(&self, _: &LockName, above: FencingToken) -> LockResult<()> {
        let mut state = self.shared.lock();
        state.token = state.token.max(above.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use holdfast_actors::ports::locks::conformance::{Harness, Participant};

    use super::*;

    struct InProcessHarness(InProcessLocks);

    #[async_trait]
    impl Harness for InProcessHarness {
        async fn participant(&self) -> Participant {
            Participant { locks: Arc::new(self.0.clone()), connection: None }
        }

        async fn take_away(&self, lease: &Lease) {
            self.0.take_away(lease);
        }

        async fn waiting(&self, lock: &LockName) -> Option<usize> {
            Some(self.0.shared.lock().queues.get(lock).map_or(0, |queue| queue.waiting.len()))
        }

        fn time_limit(&self) -> Duration {
            Duration::from_millis(500)
        }
    }

    mod conformance {
        use super::*;

        holdfast_actors::locks_conformance!(InProcessHarness(InProcessLocks::new()));
    }

    #[tokio::test]
    async fn nothing_is_kept_of_a_lock_that_nobody_holds() {
        let locks = InProcessLocks::new();
        for i in 0..100 {
            let name = LockName::new(format!("upload-{i}")).unwrap();
            let lease = locks.acquire(&name, Duration::ZERO).await.unwrap();
            assert!(locks.acquire(&name, Duration::ZERO).await.is_err());
            lease.release().await;
        }
        assert!(locks.shared.lock().queues.is_empty());
    }
}
