//! From configuration to what the actors are made of.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_actors::domain::admission::{ClassLimits, Limits, Refusal};
use holdfast_actors::flow::report::Reporter;
use holdfast_actors::flow::tasks::Dispatcher;
use holdfast_actors::ports::Disk;
use holdfast_actors::service::cleanup::CleanupSettings;
use holdfast_actors::service::disk::DiskSettings;
use holdfast_actors::service::{NodeHandle, NodeParts};

use crate::config::Config;

/// How often the actors look at the health of disks and metadata.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// How long the actors may take for their first look.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(10);

/// Restarts of actors within a minute before the node gives up.
pub(super) const RESTARTS_MAX: usize = 10;

/// See [`RESTARTS_MAX`].
pub(super) const RESTART_WINDOW: Duration = Duration::from_secs(60);

/// Bytes that one step of compaction moves: about a second of a slow disk.
const COMPACT_STEP_BYTES: u64 = 64 << 20;

/// Time between steps of scrub.
const SCRUB_INTERVAL: Duration = Duration::from_secs(10);

pub(super) fn node_parts(
    config: &Config,
    disks: Vec<Arc<dyn Disk>>,
    dispatcher: Dispatcher,
    reporter: Reporter,
) -> NodeParts {
    let limits = &config.limits;
    let class = |jobs_max, bytes_max| ClassLimits { jobs_max, bytes_max, queue_max: limits.queue, refused: None };
    let cleanup = &config.cleanup;
    NodeParts {
        disks,
        dispatcher,
        reporter,
        limits: Limits {
            read: class(limits.read_jobs, u64::MAX),
            write: class(limits.write_jobs, limits.inflight_bytes.get()),
            queue_wait_ms: limits.queue_wait.duration().as_millis() as u64,
        },
        disk: DiskSettings {
            scrub_period: config.storage.scrub_period.nonzero(),
            scrub_interval: SCRUB_INTERVAL,
            checkpoint_interval: config.storage.checkpoint_interval.duration(),
            compact_interval: config.storage.compact_interval.duration(),
            compact_step_bytes: COMPACT_STEP_BYTES,
            step_timeout: Duration::from_secs(300),
        },
        cleanup: CleanupSettings {
            tick: cleanup.interval.duration().min(Duration::from_secs(1)),
            stale_upload_age: cleanup.stale_upload_age.nonzero(),
            grace: cleanup.grace.duration(),
            upload_interval: cleanup.interval.duration(),
            reclaim_interval: cleanup.interval.duration(),
            orphan_interval: cleanup.orphan_interval.duration(),
            pass_timeout: Duration::from_secs(600),
        },
        health_interval: HEALTH_INTERVAL,
        restarts_max: RESTARTS_MAX,
        restart_window: RESTART_WINDOW,
    }
}

/// Waits until the ingest actor has published what the node admits.
pub(super) async fn first_look(actors: &NodeHandle) -> anyhow::Result<()> {
    let begun = Instant::now();
    while actors.health().reads_refused == Some(Refusal::Starting) {
        if begun.elapsed() > FIRST_LOOK_MAX {
            anyhow::bail!("the actors did not get to work within {} s", FIRST_LOOK_MAX.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}
