//! The tasks that follow the state of the cache, tell the others, and move it on.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use holdfast_actors::ports::coordination::{CacheMode, CacheSeen, CacheState, CoordinationError};
use holdfast_protocol::NodeId;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::coherence::Core;
use super::plan::{self, Look, Plan};

/// How often the state is thought about when nothing happens.
const TICK: Duration = Duration::from_millis(500);
/// How long to wait for the others in one go.
const SETTLE_PATIENCE: Duration = Duration::from_secs(5);

/// Runs a task until it ends. One that panics begins anew: a node that followed no more would go on reading from a
/// cache that the others have left.
pub(super) fn keep_up<F>(what: &'static str, run: impl Fn() -> F + Send + 'static) -> AbortHandle
where
    F: Future<Output = ()> + Send + 'static,
{
    let kept = async move {
        while AssertUnwindSafe(run()).catch_unwind().await.is_err() {
            tracing::error!(what, "a task of the cache panicked, it begins anew");
            sleep(TICK).await;
        }
    };
    tokio::spawn(kept).abort_handle()
}

/// Acts by each new state at once, and says what this node has seen and reaches.
pub(super) async fn follow(core: Arc<Core>, seen: watch::Sender<CacheSeen>) {
    let mut states = core.coordination.watch_cache_state();
    let mut reach = core.link.reach();
    let mut changed = core.gate.changed();
    let mut acted_by = 0;
    loop {
        let state = states.borrow_and_update().clone();
        changed.borrow_and_update();
        if core.gate.apply(&state) {
            show(&state);
        }
        let (server, problem) = {
            let reach = reach.borrow_and_update();
            (reach.server.clone(), reach.problem.clone())
        };
        let follows = match state.mode {
            CacheMode::Off | CacheMode::On => true,
            // Its writes without marks are over, and the next ones can be marked.
            CacheMode::Warming => {
                core.gate.is_drained(state.generation) && server.as_ref().is_some_and(|server| *server == state.server)
            }
        };
        if follows {
            acted_by = state.generation;
        }
        let new = CacheSeen { generation: acted_by, server, problem };
        seen.send_if_modified(|present| {
            let is_new = *present != new;
            *present = new;
            is_new
        });
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = reach.changed() => if changed.is_err() { return },
            _ = changed.changed() => {}
        }
    }
}

fn show(state: &CacheState) {
    let mode = match state.mode {
        CacheMode::Off => 0.0,
        CacheMode::Warming => 1.0,
        CacheMode::On => 2.0,
    };
    metrics::gauge!("holdfast_metadata_cache_state").set(mode);
    metrics::gauge!("holdfast_metadata_cache_generation").set(state.generation as f64);
    let by = state.by.map(|node| node.to_string());
    tracing::info!(generation = state.generation, by, reason = state.reason, "the cache is {}", state.mode.as_str());
}

/// Thinks about what should become of the state, and does it.
pub(super) async fn lead(core: Arc<Core>) {
    let mut changed = core.gate.changed();
    let mut reach = core.link.reach();
    let mut told = Vec::new();
    loop {
        changed.borrow_and_update();
        reach.borrow_and_update();
        if let Err(error) = think(&core, &mut told).await {
            tracing::debug!(%error, "think about the state of the cache");
        }
        tokio::select! {
            _ = changed.changed() => {}
            changed = reach.changed() => if changed.is_err() { return },
            () = sleep(TICK.min(core.options.retry)) => {}
        }
    }
}

async fn think(core: &Core, told: &mut Vec<String>) -> Result<(), CoordinationError> {
    metrics::gauge!("holdfast_metadata_cache_writes_in_progress").set(core.gate.writes() as f64);
    let (state, _, is_settled, _) = core.gate.look();
    if state.generation == 0 {
        return Ok(());
    }
    if state.mode == CacheMode::Off && !is_settled {
        // Whoever becomes alive later acts by this state or a newer one.
        core.coordination.cache_generation_seen(state.generation, SETTLE_PATIENCE).await?;
        core.gate.settle(state.generation);
    }
    let (state, since, is_settled, _) = core.gate.look();
    let leads = core.coordination.membership().borrow().nodes.keys().next() == Some(&core.me);
    let said = if leads && plan::wants_to_know(&state, is_settled) {
        core.coordination.cache_seen().await?
    } else {
        BTreeMap::new()
    };
    let server = core.link.reach().borrow().server.clone();
    // Who does not lead has asked nobody, and waits for nobody.
    tell(&state, &said, server.as_deref(), told);
    let look = Look {
        me: core.me,
        state: &state,
        age: since.elapsed(),
        is_settled,
        server: server.as_deref(),
        retry: core.options.retry,
        said: &said,
    };
    let next = match plan::plan(&look) {
        Plan::Nothing => return Ok(()),
        Plan::Warm(server) => state.warming(Some(core.me), &server),
        Plan::TurnOn => state.on(Some(core.me)),
        Plan::TurnOff(reason) => {
            state.off(Some(core.me), reason, plan::failures(&state, core.steady(), core.options.retry))
        }
    };
    let present = core.coordination.cache_state().await?;
    if present.value != *state {
        return Ok(());
    }
    match core.coordination.store_cache_state(present.version, &next).await {
        Ok(_) => {
            if next.mode == CacheMode::Off {
                let reason = if state.mode == CacheMode::Warming { "not_followed" } else { "other_server" };
                metrics::counter!("holdfast_metadata_cache_turned_off_total", "reason" => reason).increment(1);
            }
            Ok(())
        }
        Err(CoordinationError::Conflict(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Says who keeps the cache from being used, when that changes.
fn tell(state: &CacheState, said: &BTreeMap<NodeId, CacheSeen>, server: Option<&str>, told: &mut Vec<String>) {
    let is_other = |seen: &CacheSeen| server.is_some() && seen.server.is_some() && seen.server.as_deref() != server;
    let waiting: Vec<String> = said
        .iter()
        .filter(|(_, seen)| seen.server.is_none() || is_other(seen) || seen.generation < state.generation)
        .map(|(node, seen)| match &seen.problem {
            Some(problem) => format!("{node}: {problem}"),
            None if is_other(seen) => format!("{node}: reaches another server than this node: compare cache.redis"),
            None => format!("{node}: has yet to follow"),
        })
        .collect();
    metrics::gauge!("holdfast_metadata_cache_waiting_nodes").set(waiting.len() as f64);
    if waiting != *told {
        if !waiting.is_empty() {
            tracing::info!(mode = state.mode.as_str(), nodes = waiting.join("; "), "the cache waits for nodes");
        }
        *told = waiting;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_begins_anew() {
        let begun = Arc::new(AtomicU32::new(0));
        let counted = begun.clone();
        let task = keep_up("test", move || {
            let turn = counted.fetch_add(1, Ordering::SeqCst);
            async move { assert!(turn > 0, "a bug") }
        });
        while !task.is_finished() {
            sleep(TICK).await;
        }
        assert_eq!(begun.load(Ordering::SeqCst), 2);
    }
}
