//! The connection to the server that holds the cache.
//!
//! A connection is to one process for all its life and is never made anew behind anybody's back: what was marked over
//! one counts only for that process. So each new one asks the server who it is ([`Identity`]), and users name the
//! server that they mean; a connection to any other is no connection for them.
//!
//! **Breaker.** While there is no connection nobody waits for one: calls fail at once, and one task tries to connect. A
//! connection is given up when it breaks, when [`SILENCES_MAX`] calls in a row were not answered in time, or when the
//! look after it ([`CHECK_EVERY`]) finds that the server does not answer, is no primary any more, or refuses writes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use redis::{FromRedisValue as _, RedisError, Value};
use tokio::sync::watch;
use tokio::time::timeout;

use super::connect::{self, Connected};
use super::entry::{Answer, SCRIPT, Step, nonce};
use super::options::RedisCacheOptions;

/// How often a connection is looked after, and how long the server may take to answer then if readers and writers do
/// not wait for longer.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Pauses between tries to connect.
const RETRY: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(2);
/// Calls in a row without an answer that end a connection: one alone is a stall, several are a server that is gone.
const SILENCES_MAX: u32 = 4;
/// A mark made only to see whether it can be made.
const PROBE_TTL: Duration = Duration::from_secs(10);

/// Which process a server is, and since when it is a primary: its `run_id` and `master_replid`. A restart changes the
/// first, a promotion the second.
pub(super) type Identity = String;

/// Why a step was not carried out, or perhaps was.
#[derive(Debug, Clone)]
pub(super) enum LinkError {
    /// There is no connection, or none to the server that was meant.
    Absent,
    /// No answer in time.
    Silent,
    /// The connection broke.
    Broken(String),
    /// The server's answer.
    Refused(String),
}

impl LinkError {
    /// For metrics.
    pub(super) const fn as_str(&self) -> &'static str {
        match self {
            Self::Absent => "unreachable",
            Self::Silent => "timeout",
            Self::Broken(_) => "broken",
            Self::Refused(_) => "refused",
        }
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("the cache server cannot be reached, or is another one"),
            Self::Silent => f.write_str("the cache server did not answer in time"),
            Self::Broken(why) => write!(f, "the connection to the cache server broke: {why}"),
            Self::Refused(why) => write!(f, "the cache server refused: {why}"),
        }
    }
}

/// What this node has to say of the server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// The server that can be used.
    pub(super) server: Option<Identity>,
    /// Why there is none.
    pub(super) problem: Option<String>,
}

struct Live {
    connection: Connected,
    server: Identity,
    silences: AtomicU32,
}

struct Shared {
    options: RedisCacheOptions,
    live: ArcSwapOption<Live>,
    reach: watch::Sender<Reach>,
    /// Wakes the task that keeps the connection: it was given up.
    lost: tokio::sync::Notify,
    sha: String,
    probe_key: Vec<u8>,
}

/// See the module's page. Clones are the same link.
#[derive(Clone)]
pub(super) struct Link(Arc<Shared>);

impl Link {
    /// A link that [`Link::keep`] has to keep. `probe_key` is an entry of this node's own.
    pub(super) fn new(options: RedisCacheOptions, probe_key: Vec<u8>) -> Self {
        let problem = Some("not connected yet".to_owned());
        Self(Arc::new(Shared {
            options,
            live: ArcSwapOption::empty(),
            reach: watch::Sender::new(Reach { server: None, problem }),
            lost: tokio::sync::Notify::new(),
            sha: hex::encode(sha1(SCRIPT.as_bytes())),
            probe_key,
        }))
    }

    /// What can be reached.
    pub(super) fn reach(&self) -> watch::Receiver<Reach> {
        self.0.reach.subscribe()
    }

    fn live(&self, server: &str) -> Result<Arc<Live>, LinkError> {
        self.0.live.load_full().filter(|live| live.server == server).ok_or(LinkError::Absent)
    }

    /// The value of an entry, if it has one. Says nothing about why it has none.
    pub(super) async fn peek(&self, server: &str, key: &[u8]) -> Result<Option<Vec<u8>>, LinkError> {
        let live = self.live(server)?;
        let mut command = redis::cmd("HGET");
        command.arg(key).arg("v");
        let value = self.call(&live, "peek", &command, self.0.options.read_timeout).await?;
        Option::<Vec<u8>>::from_redis_value(value).map_err(|error| LinkError::Refused(error.to_string()))
    }

    /// Takes the value of an entry away.
    pub(super) async fn forget(&self, server: &str, key: &[u8]) -> Result<(), LinkError> {
        let live = self.live(server)?;
        let mut command = redis::cmd("HDEL");
        command.arg(key).arg("v");
        self.call(&live, "forget", &command, self.0.options.read_timeout).await.map(drop)
    }

    /// Carries a step out on an entry. After an error it may have been carried out.
    pub(super) async fn step(&self, server: &str, key: &[u8], step: &Step) -> Result<Answer, LinkError> {
        let live = self.live(server)?;
        let limit = match step {
            Step::Get { .. } => self.0.options.read_timeout,
            Step::Fill { .. } | Step::Mark { .. } | Step::Finish { .. } => self.0.options.write_timeout,
        };
        self.step_on(&live, key, step, limit).await
    }

    async fn step_on(&self, live: &Live, key: &[u8], step: &Step, limit: Duration) -> Result<Answer, LinkError> {
        let script = |command: &str, script: &str| {
            let mut command = redis::cmd(command);
            command.arg(script).arg(1).arg(key);
            step.write_to(&mut command);
            command
        };
        let value = match self.call(live, step.name(), &script("EVALSHA", &self.0.sha), limit).await {
            // It forgets scripts when it is restarted, or told to.
            Err(LinkError::Refused(why)) if why.contains("NOSCRIPT") || why.contains("NoScript") => {
                self.call(live, step.name(), &script("EVAL", SCRIPT), limit).await?
            }
            result => result?,
        };
        step.answer(value).map_err(|error| LinkError::Refused(error.to_string()))
    }

    async fn call(
        &self,
        live: &Live,
        name: &'static str,
        command: &redis::Cmd,
        limit: Duration,
    ) -> Result<Value, LinkError> {
        let (begun, mut connection) = (Instant::now(), live.connection.connection.clone());
        let answer = timeout(limit, connection.send_packed_command(command)).await;
        metrics::histogram!("holdfast_metadata_cache_seconds", "step" => name).record(begun.elapsed().as_secs_f64());
        match answer {
            Ok(Ok(Value::ServerError(error))) => {
                live.silences.store(0, Ordering::Relaxed);
                Err(LinkError::Refused(error.to_string()))
            }
            Ok(Ok(value)) => {
                live.silences.store(0, Ordering::Relaxed);
                Ok(value)
            }
            Ok(Err(error)) => Err(self.failed(live, &error)),
            Err(_) => {
                if live.silences.fetch_add(1, Ordering::Relaxed) + 1 >= SILENCES_MAX {
                    self.give_up(live, "it does not answer");
                }
                Err(LinkError::Silent)
            }
        }
    }

    fn failed(&self, live: &Live, error: &RedisError) -> LinkError {
        if matches!(error.kind(), redis::ErrorKind::Server(_) | redis::ErrorKind::Extension) {
            live.silences.store(0, Ordering::Relaxed);
            return LinkError::Refused(error.to_string());
        }
        self.give_up(live, &error.to_string());
        LinkError::Broken(error.to_string())
    }

    /// Ends a connection, if it is the present one.
    fn give_up(&self, live: &Live, why: &str) {
        let present = self.0.live.load_full();
        if let Some(present) = present.filter(|present| std::ptr::eq(&**present, live)) {
            let before = self.0.live.compare_and_swap(&present, None);
            if before.as_ref().is_some_and(|before| Arc::ptr_eq(before, &present)) {
                tracing::warn!(why, "the cache server is given up");
                self.say(None, Some(why.to_owned()));
                self.0.lost.notify_one();
            }
        }
    }

    fn say(&self, server: Option<Identity>, problem: Option<String>) {
        let new = Reach { server, problem };
        self.0.reach.send_if_modified(|reach| {
            let changed = *reach != new;
            *reach = new;
            changed
        });
    }

    /// Connects, looks after the connection, and connects again. Never ends.
    pub(super) async fn keep(self) {
        let mut pause = *RETRY.start();
        loop {
            match connect::connect(&self.0.options).await {
                Ok((connection, server)) => {
                    let live = Arc::new(Live { connection, server, silences: AtomicU32::new(0) });
                    let problem = self.probe(&live).await.err();
                    if problem.is_none() {
                        pause = *RETRY.start();
                    }
                    self.0.live.store(Some(live.clone()));
                    self.judge(&live, problem);
                    self.look_after(&live).await;
                }
                Err(problem) => self.say(None, Some(problem)),
            }
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(*RETRY.end());
        }
    }

    fn judge(&self, live: &Live, problem: Option<String>) {
        let server = problem.is_none().then(|| live.server.clone());
        self.say(server, problem);
    }

    /// Until the connection is given up.
    async fn look_after(&self, live: &Arc<Live>) {
        loop {
            tokio::select! {
                () = self.0.lost.notified() => {}
                () = tokio::time::sleep(CHECK_EVERY) => {}
            }
            if !self.0.live.load_full().is_some_and(|present| Arc::ptr_eq(&present, live)) {
                return;
            }
            let limit = self.0.options.read_timeout.max(CHECK_EVERY);
            match timeout(limit, connect::identify(&mut live.connection.connection.clone())).await {
                Ok(Ok(server)) if server == live.server => {
                    let problem = self.probe(live).await.err();
                    if self.0.live.load_full().is_some_and(|present| Arc::ptr_eq(&present, live)) {
                        self.judge(live, problem);
                    }
                }
                Ok(Ok(_)) => self.give_up(live, "it is not the primary any more that it was"),
                Ok(Err(problem)) => self.give_up(live, &problem),
                Err(_) => self.give_up(live, "it does not answer"),
            }
        }
    }

    /// Whether a write could be marked.
    async fn probe(&self, live: &Live) -> Result<(), String> {
        let token = nonce();
        let steps = [Step::Mark { token: token.clone(), ttl: PROBE_TTL }, Step::Finish { token, value: None }];
        let limit = self.0.options.write_timeout.max(CHECK_EVERY);
        for step in steps {
            self.step_on(live, &self.0.probe_key, &step, limit).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// By which the server names a script.
fn sha1(bytes: &[u8]) -> [u8; 20] {
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, bytes);
    let mut out = [0; 20];
    out.copy_from_slice(digest.as_ref());
    out
}
