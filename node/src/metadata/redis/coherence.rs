//! Reading through the cache, marking writes in it, and having it switched off.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, try_join_all};
use holdfast_actors::ports::coordination::{
    CacheMode, CacheState, Coordination, CoordinationError, invalidate_cache, turn_cache_off,
};
use holdfast_actors::ports::metadata::{MetadataError, MetadataResult};
use holdfast_protocol::{ClusterId, NodeId};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::codec::{self, Entry};
use super::entry::{Answer, Finish, Nonce, Step, nonce};
use super::gate::{Duty, Gate};
use super::link::{Link, LinkError};
use super::options::RedisCacheOptions;
use super::plan;
use crate::metadata::caching::{Flights, own};

mod write;

use write::Marks;
pub(super) use write::Write;

/// How long a mark counts after its writer was heard of last. A writer that says nothing for so long is dead, and so is
/// its transaction: the database ends a session that says nothing for 30 s, and an unknown outcome is settled in a
/// minute.
const MARK_TTL: Duration = Duration::from_secs(180);
/// How long a reader may take from finding nothing to filling.
const FILL_TTL: Duration = Duration::from_secs(15);
/// How long a write waits for this node to be one that the others wait for: it is being registered.
const STANDING_PATIENCE: Duration = Duration::from_secs(1);
/// Pause before coordination is asked again.
const RETRY: Duration = Duration::from_millis(100);

/// What all parts of the cache on this node share.
pub(super) struct Core {
    pub(super) me: NodeId,
    pub(super) gate: Arc<Gate>,
    pub(super) link: Link,
    pub(super) coordination: Arc<dyn Coordination>,
    pub(super) options: RedisCacheOptions,
    prefix: String,
    /// Who switches the cache off does it for all that wait for that.
    turning: tokio::sync::Mutex<()>,
}

/// Names an entry, whatever the keyspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    kind: char,
    name: Vec<u8>,
}

impl Name {
    pub(super) fn of<E: Entry>(name: impl Into<Vec<u8>>) -> Self {
        Self { kind: E::KIND, name: name.into() }
    }
}

/// What the cache says of an entry.
enum Looked {
    Value(Vec<u8>),
    Fill(Nonce),
    Bypass(&'static str),
}

fn bypassed(reason: &'static str) {
    metrics::counter!("holdfast_metadata_cache_bypasses_total", "reason" => reason).increment(1);
}

/// Keys of all clusters and keyspaces begin like this.
fn prefix_of(cluster: ClusterId) -> String {
    format!("holdfast:{cluster}:")
}

impl Core {
    pub(super) fn new(
        cluster: ClusterId,
        me: NodeId,
        coordination: Arc<dyn Coordination>,
        options: RedisCacheOptions,
    ) -> Self {
        let prefix = prefix_of(cluster);
        let probe = format!("{prefix}probe:{me}").into_bytes();
        Self {
            me,
            gate: Arc::new(Gate::new(coordination.ownership())),
            link: Link::new(options.clone(), probe),
            coordination,
            options,
            prefix,
            turning: tokio::sync::Mutex::default(),
        }
    }

    fn key(&self, keyspace: u64, name: &Name) -> Vec<u8> {
        let mut key = format!("{}{keyspace}:{}:", self.prefix, name.kind).into_bytes();
        key.extend_from_slice(&name.name);
        key
    }

    /// The value of an entry, from the cache or by `load`. Readers that find nothing while no write is in progress
    /// share one load. Errors other than that there is nothing are not kept.
    pub(super) async fn read<E: Entry>(
        self: &Arc<Self>,
        flights: &Arc<Flights<E>>,
        name: &Name,
        load: impl FnOnce() -> BoxFuture<'static, MetadataResult<Arc<E>>>,
    ) -> MetadataResult<Arc<E>> {
        let (state, term) = match self.gate.reading() {
            Ok(reading) => reading,
            Err(closed) => {
                bypassed(closed.as_str());
                return load().await;
            }
        };
        let key = self.key(state.keyspace, name);
        let looked = self.look(&state, &key).await;
        if self.gate.standing() != Some(term) {
            // Somebody may have written without waiting for this node.
            bypassed("fenced");
            return load().await;
        }
        match looked {
            Looked::Value(bytes) => match codec::decode::<E>(&bytes) {
                Some(found) => {
                    metrics::counter!("holdfast_metadata_cache_hits_total", "cache" => E::CACHE).increment(1);
                    found.map(Arc::new)
                }
                None => {
                    bypassed("not_understood");
                    self.forget(&state, &key).await;
                    load().await
                }
            },
            Looked::Fill(nonce) => {
                metrics::counter!("holdfast_metadata_cache_misses_total", "cache" => E::CACHE).increment(1);
                // The nonce was good a moment ago, so no write has begun since whoever was given it first began to
                // load.
                let flight = [&key[..], nonce.as_bytes()].concat();
                let shared = flights.join(flight.clone(), || {
                    let (core, flights, load) = (self.clone(), flights.clone(), load());
                    async move {
                        let result = load.await.map_err(Arc::new);
                        let form = match &result {
                            Ok(value) => codec::encode(&**value).map(|form| (form, core.options.value_ttl)),
                            Err(error) if E::is_absent(error) => {
                                Some((codec::encode_absent(), core.options.absent_ttl))
                            }
                            Err(_) => None,
                        };
                        // Nobody waits for the cache to take it; who comes until it has shares what was loaded.
                        tokio::spawn(async move {
                            if let Some((value, ttl)) = form {
                                core.fill(&state, &key, nonce, value, ttl).await;
                            }
                            flights.land(&flight);
                        });
                        result
                    }
                    .boxed()
                });
                own(shared.await)
            }
            Looked::Bypass(reason) => {
                bypassed(reason);
                load().await
            }
        }
    }

    async fn look(&self, state: &CacheState, key: &[u8]) -> Looked {
        let looked = async {
            if let Some(value) = self.link.peek(&state.server, key).await? {
                return Ok(Looked::Value(value));
            }
            let step = Step::Get { nonce: nonce(), ttl: FILL_TTL };
            Ok(match self.link.step(&state.server, key, &step).await? {
                Answer::Value(value) => Looked::Value(value),
                Answer::Nothing(nonce) => Looked::Fill(nonce),
                _ => Looked::Bypass("marked"),
            })
        };
        looked.await.unwrap_or_else(|error: LinkError| Looked::Bypass(error.as_str()))
    }

    async fn fill(&self, state: &CacheState, key: &[u8], nonce: Nonce, value: Vec<u8>, ttl: Duration) {
        let outcome = if value.len() > self.options.value_bytes_max {
            "too_large"
        } else {
            match self.link.step(&state.server, key, &Step::Fill { nonce, value, ttl }).await {
                Ok(Answer::Filled(true)) => "landed",
                Ok(_) => "stale",
                Err(error) => error.as_str(),
            }
        };
        metrics::counter!("holdfast_metadata_cache_fills_total", "outcome" => outcome).increment(1);
    }

    /// Looks only whether the cache has a value that can be used.
    pub(super) async fn peek<E: Entry>(&self, name: &Name) -> Option<MetadataResult<E>> {
        let (state, term) = self.gate.reading().ok()?;
        let key = self.key(state.keyspace, name);
        let found = self.link.peek(&state.server, &key).await.ok()??;
        if self.gate.standing() != Some(term) {
            return None;
        }
        codec::decode(&found)
    }

    /// Takes a value away that is of no use.
    pub(super) async fn discard(&self, name: &Name) {
        if let Ok((state, _)) = self.gate.reading() {
            self.forget(&state, &self.key(state.keyspace, name)).await;
        }
    }

    async fn forget(&self, state: &CacheState, key: &[u8]) {
        if let Err(error) = self.link.forget(&state.server, key).await {
            tracing::debug!(%error, "forget an entry of the cache");
        }
    }

    /// Begins a write of these entries: nothing older than it will be found under their names from now on until it is
    /// finished.
    ///
    /// # Errors
    /// `Unavailable`: the cache can be neither marked nor switched off. Nothing may be written then.
    pub(super) async fn begin(self: &Arc<Self>, names: Vec<Name>) -> MetadataResult<Write> {
        let deadline = Instant::now() + self.options.off_patience;
        let refused = |why: String| MetadataError::Unavailable(format!("the cache cannot be kept coherent: {why}"));
        if self.gate.standing().is_none() && self.coordination.ownership().is_session_proven() {
            timeout(STANDING_PATIENCE, self.gate.until(|gate| gate.standing().is_some())).await.ok();
        }
        loop {
            let (ticket, duty) = self.gate.begin();
            match duty {
                Duty::Nothing => return Ok(Write { core: self.clone(), ticket, marks: None }),
                Duty::Wait => {
                    drop(ticket);
                    let decided = timeout_at(deadline, self.gate.until(Gate::is_decided)).await;
                    decided.map_err(|_| refused("not every node has seen that it is off".into()))?;
                }
                Duty::Mark(state) => {
                    let marks = Marks {
                        keys: names.iter().map(|name| self.key(state.keyspace, name)).collect(),
                        state,
                        token: nonce(),
                        renewed: false,
                    };
                    let Err(error) = self.mark(&marks).await else {
                        return Ok(Write { core: self.clone(), ticket, marks: Some(marks) });
                    };
                    drop(ticket);
                    self.leave(marks.state.keyspace, &error, deadline).await.map_err(refused)?;
                }
            }
        }
    }

    async fn mark(&self, marks: &Marks) -> Result<(), LinkError> {
        let step = Step::Mark { token: marks.token.clone(), ttl: MARK_TTL };
        let all = marks.keys.iter().map(|key| self.link.step(&marks.state.server, key, &step));
        try_join_all(all).await.map(drop)
    }

    async fn unmark(&self, marks: &Marks, value: Option<Vec<u8>>) -> Result<(), LinkError> {
        let value = value
            .filter(|value| marks.keys.len() == 1 && !marks.renewed && value.len() <= self.options.value_bytes_max);
        let value = value.map(|value| (value, self.options.value_ttl));
        let step = Step::Finish { token: marks.token.clone(), value };
        let all = marks.keys.iter().map(|key| self.link.step(&marks.state.server, key, &step));
        for answer in try_join_all(all).await? {
            let outcome = match answer {
                Answer::Finished(Finish::Written) => "written",
                Answer::Finished(Finish::Lost) => "mark_lost",
                _ => "emptied",
            };
            metrics::counter!("holdfast_metadata_cache_writes_total", "outcome" => outcome).increment(1);
        }
        Ok(())
    }

    /// Sees to it that nobody reads the entries of `keyspace` any more.
    async fn leave(&self, keyspace: u64, why: &LinkError, deadline: Instant) -> Result<(), String> {
        let mut last = "not every node has seen that it is off".to_owned();
        let left = async {
            {
                let _alone = self.turning.lock().await;
                let is_there = || {
                    let state = self.gate.state();
                    state.mode != CacheMode::Off && state.keyspace == keyspace
                };
                while is_there() {
                    match self.turn_off(keyspace, &why.to_string()).await {
                        Ok(generation) => {
                            metrics::counter!("holdfast_metadata_cache_turned_off_total", "reason" => why.as_str())
                                .increment(1);
                            tracing::warn!(generation, %why, "the cache is switched off");
                            self.gate.until(|_| !is_there()).await;
                        }
                        Err(error) => {
                            last = error.to_string();
                            sleep(RETRY).await;
                        }
                    }
                }
            }
            self.gate.until(|gate| gate.has_left(keyspace)).await;
        };
        timeout_at(deadline, left).await.map_err(|_| last)
    }

    async fn turn_off(&self, keyspace: u64, why: &str) -> Result<u64, CoordinationError> {
        let steady = self.steady();
        let failures = |present: &CacheState| plan::failures(present, steady, self.options.retry);
        turn_cache_off(&*self.coordination, Some(self.me), Some(keyspace), why, failures).await
    }

    /// For how long the cache is on.
    pub(super) fn steady(&self) -> Option<Duration> {
        let (state, _, _, on_since) = self.gate.look();
        on_since.filter(|_| state.mode == CacheMode::On).map(|since| since.elapsed())
    }

    /// A write was not watched over: see [`Ticket::was_watched`](super::gate::Ticket::was_watched).
    async fn invalidate(&self) -> Result<(), CoordinationError> {
        metrics::counter!("holdfast_metadata_cache_turned_off_total", "reason" => "unwatched").increment(1);
        let reason = "a write was not watched over";
        invalidate_cache(&*self.coordination, Some(self.me), reason, self.options.off_patience).await
    }
}
