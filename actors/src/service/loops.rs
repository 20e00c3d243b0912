//! Actors that each run one loop of background work, which requests do not wait for.
//!
//! ```text
//! LoopsSupervisor ── BackgroundLoop ×n
//! ```
//!
//! **Restart rule.** One for one after a pause; what follows when they end too often is [`TooOften`], the starter's
//! choice.
//!
//! **Mailboxes** hold the end of a loop, and one restart for each that ended.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent, async_trait};
use tokio::task::JoinSet;

use super::children::{CHILD_STOP_TIMEOUT, RESPAWN_DELAY, ended};
use crate::domain::restarts::{RestartBudget, RestartVerdict};

/// Pause after a loop ended too often.
const REST: Duration = Duration::from_secs(60);

/// What follows when loops end more often than a budget allows.
#[derive(Clone)]
pub enum TooOften {
    /// Each loop has a budget of its own, and one that used it up rests for [`REST`]: what it does piles up where it is
    /// durable, and a node that stopped would help nobody.
    Rest(RestartBudget),
    /// All share one budget. The reason is told, and nothing is started any more: the node must stop. So it is told
    /// when the supervisor itself ends.
    Fail(RestartBudget, Arc<dyn Fn(String) + Send + Sync>),
}

impl TooOften {
    /// A minute's rest after ten ends within a minute.
    pub fn rest() -> Self {
        Self::Rest(RestartBudget::new(10, 60_000))
    }
}

/// A loop: makes the future that runs until it cannot go on, and says why.
#[derive(Clone)]
pub struct LoopSpec {
    /// For logs and metrics.
    pub name: &'static str,
    /// Makes it, anew for every start.
    pub run: Arc<dyn Fn() -> BoxFuture<'static, String> + Send + Sync>,
}

/// The running loops.
pub struct LoopsHandle {
    supervisor: ActorRef<Respawn>,
    children: Arc<Children>,
}

type Children = Mutex<HashMap<&'static str, ActorCell>>;

/// Starts loops under a supervisor of their own.
///
/// # Errors
/// When an actor cannot be started.
pub async fn start(loops: Vec<LoopSpec>, too_often: TooOften) -> Result<LoopsHandle, SpawnErr> {
    let children = Arc::<Children>::default();
    let arguments = (loops, too_often.clone(), children.clone());
    let (supervisor, ended) = LoopsSupervisor::spawn(None, LoopsSupervisor, arguments).await?;
    if let TooOften::Fail(_, fail) = too_often {
        tokio::spawn(async move {
            drop(ended.await);
            fail("the supervisor of the loops ended".into());
        });
    }
    Ok(LoopsHandle { supervisor, children })
}

impl LoopsHandle {
    /// Stops the loops at their next awaits, waiting at most `deadline`; then the actors are killed.
    pub async fn stop(&self, deadline: Duration) {
        if self.supervisor.stop_and_wait(None, Some(deadline)).await.is_err() {
            self.supervisor.kill();
        }
    }

    /// Kills an actor as a bug in it would, for tests of supervision.
    pub fn kill_actor(&self, name: &str) -> bool {
        self.children.lock().get(name).map(ActorCell::kill).is_some()
    }

    /// Identity of the current actor of a loop; changes with every restart.
    pub fn actor_id(&self, name: &str) -> Option<String> {
        self.children.lock().get(name).map(|actor| actor.get_id().to_string())
    }
}

impl Drop for LoopsHandle {
    fn drop(&mut self) {
        self.supervisor.kill();
    }
}

struct LoopsSupervisor;

/// Start a loop that ended a moment ago.
#[derive(Debug)]
struct Respawn(usize);

struct State {
    loops: Vec<LoopSpec>,
    /// One for each loop, or one for all.
    restarts: Vec<RestartBudget>,
    too_often: TooOften,
    started: Instant,
    ids: HashMap<ActorId, usize>,
    children: Arc<Children>,
}

#[async_trait]
impl Actor for LoopsSupervisor {
    type Msg = Respawn;
    type State = State;
    type Arguments = (Vec<LoopSpec>, TooOften, Arc<Children>);

    async fn pre_start(
        &self,
        myself: ActorRef<Respawn>,
        (loops, too_often, children): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let restarts = match &too_often {
            TooOften::Rest(budget) => vec![budget.clone(); loops.len()],
            TooOften::Fail(budget, _) => vec![budget.clone()],
        };
        let mut state = State { loops, restarts, too_often, started: Instant::now(), ids: HashMap::new(), children };
        for at in 0..state.loops.len() {
            state.spawn(&myself, at).await?;
        }
        Ok(state)
    }

    async fn post_stop(&self, myself: ActorRef<Respawn>, _: &mut State) -> Result<(), ActorProcessingErr> {
        myself.stop_children_and_wait(None, Some(CHILD_STOP_TIMEOUT)).await;
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Respawn>,
        Respawn(at): Respawn,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match state.spawn(&myself, at).await {
            Ok(()) => tracing::info!(actor = state.loops[at].name, "actor restarted"),
            Err(error) => state.on_ended(&myself, at, &format!("start: {error}")),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Respawn>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let Some((id, reason)) = ended(event) else { return Ok(()) };
        if let Some(at) = state.ids.remove(&id) {
            state.on_ended(&myself, at, &reason);
        }
        Ok(())
    }
}

impl State {
    async fn spawn(&mut self, myself: &ActorRef<Respawn>, at: usize) -> Result<(), SpawnErr> {
        let spec = self.loops[at].clone();
        let name = spec.name;
        let (actor, _) = BackgroundLoop::spawn_linked(None, BackgroundLoop, spec, myself.get_cell()).await?;
        self.ids.insert(actor.get_id(), at);
        self.children.lock().insert(name, actor.get_cell());
        Ok(())
    }

    fn on_ended(&mut self, myself: &ActorRef<Respawn>, at: usize, reason: &str) {
        let name = self.loops[at].name;
        metrics::counter!("holdfast_actor_restarts_total", "actor" => name).increment(1);
        let budget = if self.restarts.len() == 1 { 0 } else { at };
        let pause = match (self.restarts[budget].on_failure(self.started.elapsed().as_millis() as u64), &self.too_often)
        {
            (RestartVerdict::Restart, _) => {
                tracing::warn!(actor = name, reason, "actor ended, restarting it");
                RESPAWN_DELAY
            }
            (RestartVerdict::Escalate, TooOften::Rest(_)) => {
                tracing::error!(actor = name, reason, rest_s = REST.as_secs(), "actor ends too often, it rests");
                REST
            }
            (RestartVerdict::Escalate, TooOften::Fail(_, fail)) => {
                let why = format!("the {name} actor failed too often: {reason}");
                tracing::error!(why, "giving up, the node must stop");
                return fail(why);
            }
        };
        drop(myself.send_after(pause, move || Respawn(at)));
    }
}

/// Runs one loop as its tracked task.
struct BackgroundLoop;

/// The loop ended, with the reason.
#[derive(Debug)]
struct Ended(String);

#[async_trait]
impl Actor for BackgroundLoop {
    type Msg = Ended;
    /// Aborts the loop when the actor ends in whatever way.
    type State = JoinSet<()>;
    type Arguments = LoopSpec;

    async fn pre_start(&self, myself: ActorRef<Ended>, spec: LoopSpec) -> Result<JoinSet<()>, ActorProcessingErr> {
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let ended = AssertUnwindSafe(async { (spec.run)().await }).catch_unwind().await;
            let reason = ended.unwrap_or_else(|_| "it panicked".into());
            drop(myself.send_message(Ended(reason)));
        });
        Ok(tasks)
    }

    async fn handle(
        &self,
        _: ActorRef<Ended>,
        Ended(why): Ended,
        _: &mut JoinSet<()>,
    ) -> Result<(), ActorProcessingErr> {
        Err(why.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::wait::eventually;

    #[tokio::test]
    async fn loop_that_ends_panics_or_is_killed_is_started_again() {
        let starts = Arc::new(AtomicU32::new(0));
        let counted = starts.clone();
        let run = move || {
            let turn = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                match turn {
                    0 => "enough".to_owned(),
                    1 => panic!("a bug"),
                    _ => std::future::pending().await,
                }
            }
            .boxed()
        };
        let loops = start(vec![LoopSpec { name: "test", run: Arc::new(run) }], TooOften::rest()).await.unwrap();
        eventually("it runs a third time", || starts.load(Ordering::SeqCst) == 3).await;
        // Which actor is the present one is noted a moment after its loop has begun.
        let kill_the_third = || {
            let runs = starts.load(Ordering::SeqCst);
            assert!(runs > 3 || loops.kill_actor("test"));
            runs > 3
        };
        eventually("it runs a fourth time", kill_the_third).await;
        loops.stop(Duration::from_secs(5)).await;
    }

    #[tokio::test]
    async fn loops_that_end_too_often_are_told_of_once_and_left_alone() {
        let (starts, told) = (Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(Vec::new())));
        let counted = starts.clone();
        let run = move || {
            counted.fetch_add(1, Ordering::SeqCst);
            async { "it cannot".to_owned() }.boxed()
        };
        let heard = told.clone();
        let rule = TooOften::Fail(RestartBudget::new(2, 60_000), Arc::new(move |why| heard.lock().push(why)));
        let pending = LoopSpec { name: "well", run: Arc::new(|| std::future::pending().boxed()) };
        let loops = start(vec![pending, LoopSpec { name: "ill", run: Arc::new(run) }], rule).await.unwrap();
        eventually("it is told", || !told.lock().is_empty()).await;
        assert_eq!(starts.load(Ordering::SeqCst), 3);
        assert_eq!(*told.lock(), ["the ill actor failed too often: it cannot"]);
        loops.stop(Duration::from_secs(5)).await;
        eventually("the end is told", || told.lock().len() == 2).await;
    }
}
