//! The loop that keeps a registry up to date, looks how the tiers are, and shows their figures.
//!
//! What lies in the tiers and what waits costs the database the more the more there is, and is the same whoever counts
//! it: one node counts for all ([`Counts`]). After a query the next one waits a hundred times as long as that one took,
//! and so takes a hundredth of a connection at most.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_actors::ports::tiers::Tiers as _;
use holdfast_actors::ports::{Clock, MetadataError};
use holdfast_protocol::TierName;
use metrics::gauge;

use super::registry::TierRegistry;

/// The longest time between checks of a tier.
const CHECKS_EACH: Duration = Duration::from_secs(30);
/// So many looks for changes come between checks of a tier, if that is sooner.
const CHECKS_LOOKS: u32 = 6;
/// The shortest time between counts of what lies in the tiers.
const USAGE_EACH: Duration = Duration::from_secs(60);
/// The shortest time between counts of what waits.
const BACKLOG_EACH: Duration = Duration::from_secs(15);
/// How many times as long as a query took the next one waits.
const QUERY_SHARE: u32 = 100;

/// Tells whether this node is the one that counts for all. The others show nothing, or 0 once they counted before, so
/// that figures can be added up over all nodes.
pub type Counts = Arc<dyn Fn() -> bool + Send + Sync>;

/// How the loop goes.
#[derive(Clone)]
pub struct WatchSettings {
    /// Time between looks for changes.
    pub refresh: Duration,
    /// For ages.
    pub clock: Arc<dyn Clock>,
    /// Who counts.
    pub counts: Counts,
}

/// Runs until it is dropped.
pub async fn run(registry: TierRegistry, settings: WatchSettings) -> String {
    tokio::select! {
        () = follow(&registry, settings.refresh) => "tiers are followed no more".into(),
        () = show(&registry, &settings) => "tiers are shown no more".into(),
    }
}

async fn follow(registry: &TierRegistry, refresh: Duration) {
    let mut told: Option<String> = None;
    let mut shown = BTreeSet::new();
    let checks_each = refresh.saturating_mul(CHECKS_LOOKS).min(CHECKS_EACH);
    loop {
        let problem = registry.turn(refresh, checks_each).await.err().map(|error| error.to_string());
        if problem != told {
            match &problem {
                Some(problem) => tracing::warn!(problem, "look for changes of the cold tiers: what was known stays"),
                None => tracing::info!("changes of the cold tiers are seen again"),
            }
            told = problem;
        }
        registry.say_what_changed();
        show_up(registry, &mut shown);
        tokio::select! {
            () = tokio::time::sleep(refresh) => {}
            () = registry.wanted() => {}
        }
    }
}

/// Shows which tiers are up. A tier that was removed is neither.
fn show_up(registry: &TierRegistry, shown: &mut BTreeSet<TierName>) {
    let states = registry.states();
    for state in &states {
        if let Some(is_up) = state.is_up {
            gauge!("holdfast_tier_up", "tier" => state.name.to_string()).set(f64::from(u8::from(is_up)));
        }
    }
    let names: BTreeSet<TierName> = states.into_iter().map(|state| state.name).collect();
    for gone in shown.difference(&names) {
        gauge!("holdfast_tier_up", "tier" => gone.to_string()).set(f64::NAN);
        show_usage(gone, Usage::default());
        show_backlog(gone, Backlog::default());
    }
    *shown = names;
}

async fn show(registry: &TierRegistry, settings: &WatchSettings) {
    let clock = &*settings.clock;
    let mut is_shown = false;
    let (mut usage, mut backlog) =
        (Pace::new("count what lies in the cold tiers"), Pace::new("count the moves that wait"));
    loop {
        let names = registry.names();
        let counts = (settings.counts)();
        if is_shown && !counts {
            for name in &names {
                show_usage(name, Usage::default());
                show_backlog(name, Backlog::default());
            }
        }
        if counts && !is_shown {
            // It may have been so before: what it knew then is not shown any more.
            (usage.due, backlog.due) = (Instant::now(), Instant::now());
        }
        is_shown = counts;
        if counts && !names.is_empty() {
            usage.step(USAGE_EACH, count_usage(registry, &names)).await;
            backlog.step(BACKLOG_EACH, count_backlog(registry, &names, clock)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// When a query is due, and whether it failed.
struct Pace {
    what: &'static str,
    due: Instant,
    is_failing: bool,
}

impl Pace {
    fn new(what: &'static str) -> Self {
        Self { what, due: Instant::now(), is_failing: false }
    }

    async fn step(&mut self, each: Duration, query: impl Future<Output = Result<(), MetadataError>>) {
        let begun = Instant::now();
        if begun < self.due {
            return;
        }
        let result = query.await;
        match &result {
            Err(error) if !self.is_failing => tracing::warn!(%error, "{}", self.what),
            _ => {}
        }
        self.is_failing = result.is_err();
        self.due = Instant::now() + each.max(begun.elapsed() * QUERY_SHARE);
    }
}

#[derive(Default)]
struct Usage {
    size_bytes: u64,
    contents: u64,
    pieces_to_delete: u64,
}

async fn count_usage(registry: &TierRegistry, names: &[TierName]) -> Result<(), MetadataError> {
    let counted = registry.ledger().tier_usage().await?;
    for name in names {
        let of = counted.iter().find(|usage| usage.tier == *name);
        let usage = of.map_or_else(Usage::default, |usage| Usage {
            size_bytes: usage.size_bytes,
            contents: usage.contents,
            pieces_to_delete: usage.pieces_to_delete,
        });
        show_usage(name, usage);
    }
    Ok(())
}

fn show_usage(tier: &TierName, usage: Usage) {
    gauge!("holdfast_tier_size_bytes", "tier" => tier.to_string()).set(usage.size_bytes as f64);
    gauge!("holdfast_tier_objects", "tier" => tier.to_string()).set(usage.contents as f64);
    gauge!("holdfast_tier_pieces_to_delete", "tier" => tier.to_string()).set(usage.pieces_to_delete as f64);
}

#[derive(Default)]
struct Backlog {
    due: u64,
    failing: u64,
    waiting: u64,
    lag_seconds: f64,
}

async fn count_backlog(registry: &TierRegistry, names: &[TierName], clock: &dyn Clock) -> Result<(), MetadataError> {
    let now_ms = clock.now_ms();
    let counted = registry.ledger().move_backlog(now_ms).await?;
    for name in names {
        let of = counted.iter().find(|lane| lane.lane == *name);
        let backlog = of.map_or_else(Backlog::default, |lane| Backlog {
            due: lane.due,
            failing: lane.failing,
            waiting: lane.waiting,
            lag_seconds: lane.oldest_due_ms.map_or(0.0, |due_ms| now_ms.saturating_sub(due_ms) as f64 / 1_000.0),
        });
        show_backlog(name, backlog);
    }
    Ok(())
}

fn show_backlog(tier: &TierName, backlog: Backlog) {
    gauge!("holdfast_tier_moves_due", "tier" => tier.to_string()).set(backlog.due as f64);
    gauge!("holdfast_tier_moves_failing", "tier" => tier.to_string()).set(backlog.failing as f64);
    gauge!("holdfast_tier_moves_waiting", "tier" => tier.to_string()).set(backlog.waiting as f64);
    gauge!("holdfast_tier_move_lag_seconds", "tier" => tier.to_string()).set(backlog.lag_seconds);
}
