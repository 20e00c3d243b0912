//! Locks on a Redis server: a value with a time limit, set only if there is none, renewed and removed only by who set
//! it.
//!
//! Every step is one script, so it happens whole or not at all. For each name there are, under one hash tag:
//!
//! | key | what |
//! |---|---|
//! | `holder` | the random id of the request that holds the lock; goes by itself after the time limit |
//! | `queue` | requests in the order in which they came |
//! | `seen` | until when each of them is believed to wait; who stops asking loses its place |
//! | `token` | the last fencing token; kept for a week |
//!
//! Waiters ask again and again, the more seldom the more are before them: every node waits for a few locks all the
//! time. The holder renews at a fifth of the time limit, and counts as the holder only for two thirds of it after it
//! *sent* the last renewal that was answered: by its own clock it stops before the server grants the lock to the next.
//!
//! **What Redis cannot promise.** A server that restarts with old data, or a replica that takes over without the last
//! writes, has forgotten grants: two may hold a lock until the first one's next renewal. The fence of the guarded write
//! decides then. Tokens are the server's time of day in milliseconds or one more than the last, so they rise even if
//! the counter was forgotten; where the clock went back too, guarded writes are refused until [`Locks::raise`] has told
//! the server.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_actors::ports::coordination::Ownership;
use holdfast_actors::ports::locks::{FencingToken, Lease, LockError, LockName, LockResult, Locks};
use redis::{RedisError, Script, ScriptInvocation};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::redis::{Redis, is_denied};

/// A waiter that did not ask for so long has lost its place: far longer than its pauses, far shorter than anybody
/// waits.
const PLACE: Duration = Duration::from_secs(3);
/// Pause of the first in the queue, varied by half as all pauses.
const PAUSE_FIRST: Duration = Duration::from_millis(30);
/// Pause of the others, for each that is before them.
const PAUSE_EACH: Duration = Duration::from_millis(150);
/// The longest pause: one that asks so often twice in vain still has its place.
const PAUSE_MAX: Duration = Duration::from_millis(800);
/// Pause after a command failed, before it is tried once more.
const RETRY: Duration = Duration::from_millis(50);
/// A token is remembered so long after the last grant; the clock alone is enough then.
const TOKEN_KEPT: Duration = Duration::from_secs(7 * 86_400);

/// `holder queue seen token`, then: id, time limit, place, whether to stand in the queue, how long tokens are kept.
/// Returns `{1, token}`, or `{0, place in the queue}`.
static ENTER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now)) do
  redis.call('ZREM', KEYS[2], gone)
  redis.call('ZREM', KEYS[3], gone)
end
local holder = redis.call('GET', KEYS[1])
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {1, redis.call('GET', KEYS[4])}
end
local first = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
if not holder and (not first or first == ARGV[1]) then
  local token = tonumber(redis.call('GET', KEYS[4]) or '0') + 1
  if token < now then token = now end
  local text = string.format('%.0f', token)
  redis.call('SET', KEYS[4], text, 'PX', ARGV[5])
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2], 'NX')
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  return {1, text}
end
if ARGV[4] == '0' then return {0, '0'} end
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
  redis.call('ZADD', KEYS[2], tonumber(last or '0') + 1, ARGV[1])
end
redis.call('ZADD', KEYS[3], now + ARGV[3], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[3] * 2)
redis.call('PEXPIRE', KEYS[3], ARGV[3] * 2)
return {0, tostring(redis.call('ZRANK', KEYS[2], ARGV[1]))}",
    )
});

/// `holder queue seen`, then the id.
static LEAVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0",
    )
});

/// `holder`, then the id and the time limit. Returns 1 if the lock is still held.
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0",
    )
});

/// `token`, then what it is to be at least, and how long it is kept.
static RAISE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
if tonumber(redis.call('GET', KEYS[1]) or '0') < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return 0",
    )
});

/// Locks on a Redis server. Cheap to clone.
#[derive(Clone)]
pub struct RedisLocks {
    redis: Redis,
    /// Before every key, so that several clusters can share a server.
    prefix: Arc<str>,
    time_limit: Duration,
}

impl RedisLocks {
    /// Locks whose keys begin with `prefix`, and whose holders are waited for for `time_limit`. A command must not take
    /// longer than a fifth of that, or a single slow one loses a lock.
    pub fn new(redis: Redis, prefix: &str, time_limit: Duration) -> Self {
        Self { redis, prefix: prefix.into(), time_limit }
    }

    fn valid(&self) -> Duration {
        self.time_limit * 2 / 3
    }

    fn key(&self, name: &LockName, part: &str) -> String {
        // The part in braces decides where a cluster of servers keeps it: all of a name in one place.
        format!("{}lock:{{{name}}}:{part}", self.prefix)
    }

    fn enter<'a>(&self, name: &LockName, id: &str, wait: bool) -> ScriptInvocation<'a> {
        let mut call = ENTER.prepare_invoke();
        call.key(self.key(name, "holder")).key(self.key(name, "queue")).key(self.key(name, "seen"));
        call.key(self.key(name, "token")).arg(id).arg(self.time_limit.as_millis() as u64);
        call.arg(PLACE.as_millis() as u64).arg(u8::from(wait)).arg(TOKEN_KEPT.as_millis() as u64);
        call
    }

    /// Gives up a place in the queue and the lock itself, whichever `id` has.
    async fn leave(&self, name: &LockName, id: &str) {
        let mut call = LEAVE.prepare_invoke();
        call.key(self.key(name, "holder")).key(self.key(name, "queue")).key(self.key(name, "seen")).arg(id);
        if let Err(error) = self.redis.invoke::<i64>(&call).await {
            tracing::debug!(lock = %name, %error, "a lock could not be given back, its time limit does it");
        }
    }

    /// Stands in the queue until the lock is granted, the time is over or the server fails twice.
    async fn stand(
        &self,
        name: &LockName,
        id: &str,
        patience: Duration,
    ) -> LockResult<Option<(FencingToken, Instant)>> {
        let deadline = Instant::now() + patience;
        let call = self.enter(name, id, !patience.is_zero());
        let mut failed = false;
        loop {
            let sent = Instant::now();
            let pause = match self.redis.invoke::<(u8, String)>(&call).await {
                Ok((1, token)) => {
                    let token = token.parse().map_err(|_| LockError::Unavailable(format!("token {token}")))?;
                    return Ok(Some((FencingToken(token), sent)));
                }
                Ok((_, place)) => {
                    failed = false;
                    pause_at(&place).mul_f64(rand::random_range(0.5..1.5))
                }
                Err(error) if is_denied(&error) => return Err(LockError::Denied(error.to_string())),
                Err(error) if failed => return Err(LockError::Unavailable(error.to_string())),
                Err(_) => {
                    failed = true;
                    RETRY
                }
            };
            if !failed && Instant::now() >= deadline {
                return Ok(None);
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            sleep(if failed { pause } else { pause.min(rest) }).await;
        }
    }

    async fn run(self, name: LockName, patience: Duration, mut reply: oneshot::Sender<LockResult<Lease>>) {
        let id = hex::encode(rand::random::<[u8; 16]>());
        let turn = tokio::select! {
            turn = self.stand(&name, &id, patience) => turn,
            () = reply.closed() => Ok(None),
        };
        match turn {
            Ok(Some((token, sent))) => drop(reply.send(Ok(self.grant(name, id, token, sent)))),
            Ok(None) => {
                self.leave(&name, &id).await;
                drop(reply.send(Err(LockError::TimedOut { name, patience })));
            }
            Err(error) => {
                drop(reply.send(Err(error)));
                self.leave(&name, &id).await;
            }
        }
    }

    fn grant(self, name: LockName, id: String, token: FencingToken, sent: Instant) -> Lease {
        let ownership = Ownership::default();
        ownership.extend(sent, self.valid());
        let (held, watch) = watch::channel(true);
        let released = CancellationToken::new();
        let renewing = self.clone().renew(name.clone(), id.clone(), ownership.clone(), held);
        let over = released.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = renewing => {}
                () = over.cancelled() => {}
            }
        });
        let (lock, key) = (name.clone(), id.clone());
        let release = Box::new(move || -> BoxFuture<'static, ()> {
            released.cancel();
            async move { self.leave(&lock, &key).await }.boxed()
        });
        Lease::new(name, token, id, watch, ownership, release)
    }

    /// Renews until the lock is lost.
    async fn renew(self, name: LockName, id: String, ownership: Ownership, held: watch::Sender<bool>) {
        let mut call = RENEW.prepare_invoke();
        call.key(self.key(&name, "holder")).arg(&id).arg(self.time_limit.as_millis() as u64);
        let reason = loop {
            sleep((self.time_limit / 5).min(ownership.remaining())).await;
            if !ownership.is_proven() {
                break "it could not be renewed in time".to_owned();
            }
            let sent = Instant::now();
            let answer: Result<i64, RedisError> = tokio::select! {
                answer = self.redis.invoke(&call) => answer,
                () = sleep(ownership.remaining()) => continue,
            };
            match answer {
                Ok(1) => ownership.extend(sent, self.valid()),
                Ok(_) => break "the server does not know it any more".to_owned(),
                Err(error) => tracing::debug!(lock = %name, %error, "renew a lock"),
            }
        };
        ownership.revoke();
        held.send_replace(false);
        metrics::counter!("holdfast_locks_lost_total", "backend" => "redis").increment(1);
        tracing::warn!(lock = %name, reason, "a lock was lost");
        self.leave(&name, &id).await;
    }
}

#[async_trait]
impl Locks for RedisLocks {
    async fn acquire(&self, name: &LockName, patience: Duration) -> LockResult<Lease> {
        // A task asks for the caller, so that one who is dropped leaves nothing behind.
        let (reply, answer) = oneshot::channel();
        tokio::spawn(self.clone().run(name.clone(), patience, reply));
        answer.await.unwrap_or_else(|_| Err(LockError::Unavailable("the runtime is stopping".into())))
    }

    async fn raise(&self, name: &LockName, above: FencingToken) -> LockResult<()> {
        let mut call = RAISE.prepare_invoke();
        call.key(self.key(name, "token")).arg(above.0).arg(TOKEN_KEPT.as_millis() as u64);
        match self.redis.invoke::<i64>(&call).await {
            Ok(_) => Ok(()),
            Err(error) if is_denied(&error) => Err(LockError::Denied(error.to_string())),
            Err(error) => Err(LockError::Unavailable(error.to_string())),
        }
    }
}

/// How long who has this place in the queue waits before it asks again; the first one has place 0.
fn pause_at(place: &str) -> Duration {
    match place.parse::<u32>() {
        Ok(0) => PAUSE_FIRST,
        Ok(before) => PAUSE_EACH.saturating_mul(before).min(PAUSE_MAX),
        Err(_) => PAUSE_EACH,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_many_before_it_asks_seldom_and_keeps_its_place() {
        let pauses = ["0", "1", "2", "199"].map(pause_at);
        assert_eq!(pauses, [30, 150, 300, 800].map(Duration::from_millis));
        assert!(PAUSE_MAX.mul_f64(1.5) * 2 < PLACE);
    }
}
