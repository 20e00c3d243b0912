//! `holdfast status`, `holdfast cleanup …`, `holdfast scrub …`

use std::time::Duration;

use clap::Subcommand;
use holdfast_protocol::admin::{CleanupStatus, DiskStatus, Status};
use indicatif::{ProgressBar, ProgressStyle};

use super::client::ClientArgs;
use super::output::{Output, bytes, table};
use super::{CliResult, Exit, Failure};

/// A little longer than the node lets a cleanup take.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(330);

/// Time between looks at a running scrub.
const SCRUB_POLL: Duration = Duration::from_millis(500);

#[derive(Subcommand)]
pub(super) enum CleanupCommand {
    /// Run every kind of pass now and wait for its end. Grace and ages hold as configured.
    Run {
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Subcommand)]
pub(super) enum ScrubCommand {
    /// Read everything on this node's disks at full pace. Ends with 1 when something is corrupt.
    #[command(visible_alias = "start")]
    Run {
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show what scrub has done since the start of the node.
    #[command(visible_alias = "status")]
    Show {
        #[command(flatten)]
        client: ClientArgs,
    },
}

pub(super) async fn status(client: ClientArgs, out: Output) -> CliResult {
    let status: Status = client.connect()?.get("/status").await?;
    Ok(out.print(&status, status_text)?)
}

pub(super) async fn cleanup(command: CleanupCommand, out: Output) -> CliResult {
    let CleanupCommand::Run { client } = command;
    let passes: Vec<CleanupStatus> =
        client.connect()?.with_timeout(CLEANUP_TIMEOUT).post("/cleanup", &serde_json::json!({})).await?;
    Ok(out.print(&passes, |passes| cleanup_text(passes))?)
}

pub(super) async fn scrub(command: ScrubCommand, out: Output) -> CliResult {
    match command {
        ScrubCommand::Run { no_wait, client } => {
            let api = client.connect()?;
            // Asked before: little data may have been read by the time that the node says that it has begun.
            let before = api.get::<Status>("/status").await?.disks;
            let corrupt_before: u64 = before.iter().map(|disk| disk.scrub.corrupt).sum();
            let read_before: u64 = before.iter().map(|disk| disk.scrub.bytes).sum();
            let mut disks: Vec<DiskStatus> = api.post("/scrub", &serde_json::json!({})).await?;
            let style = ProgressStyle::with_template("{spinner} {bytes} checked, {bytes_per_sec}, {elapsed}")?;
            let progress = if out.json { ProgressBar::hidden() } else { ProgressBar::new_spinner().with_style(style) };
            while !no_wait && disks.iter().any(|disk| disk.scrub.running) {
                tokio::time::sleep(SCRUB_POLL).await;
                disks = api.get::<Status>("/status").await?.disks;
                let read: u64 = disks.iter().map(|disk| disk.scrub.bytes).sum();
                progress.set_position(read.saturating_sub(read_before));
            }
            progress.finish_and_clear();
            out.print(&disks, |disks| scrub_text(disks))?;
            let corrupt = disks.iter().map(|disk| disk.scrub.corrupt).sum::<u64>().saturating_sub(corrupt_before);
            if corrupt > 0 {
                let error = anyhow::anyhow!(
                    "{corrupt} corrupt chunks found: the node's log names them, and so does `holdfast errors list --kind \
                     corruption`; `holdfast object of-chunk CHUNK_ID` shows whose they are"
                );
                return Err(Failure { exit: Exit::Failed, error });
            }
            Ok(())
        }
        ScrubCommand::Show { client } => {
            let status: Status = client.connect()?.get("/status").await?;
            Ok(out.print(&status.disks, |disks| scrub_text(disks))?)
        }
    }
}

fn status_text(status: &Status) -> String {
    let mut text = format!(
        "node {} (version {}), up {} s, S3 at {}\n",
        status.node_id, status.version, status.uptime_seconds, status.s3_addr
    );
    if status.readiness.ready {
        text.push_str("ready\n");
    }
    for reason in &status.readiness.reasons {
        text.push_str(&format!("NOT READY: {} ({})\n", reason.message, reason.code));
    }
    for reason in &status.readiness.degraded {
        text.push_str(&format!("DEGRADED: {} ({})\n", reason.message, reason.code));
    }
    text.push('\n');
    text.push_str(&table(
        ["DISK", "HEALTH", "LIVE", "FREE", "SIZE", "CHUNKS", "SEGMENTS"],
        status.disks.iter().map(|disk| {
            let health = match &disk.detail {
                Some(detail) => format!("{} ({detail})", disk.health),
                None => disk.health.clone(),
            };
            [
                disk.path.clone(),
                health,
                bytes(disk.live_bytes),
                bytes(disk.free_bytes),
                bytes(disk.total_bytes),
                disk.chunks.to_string(),
                disk.segments.to_string(),
            ]
        }),
    ));
    text.push('\n');
    text.push_str(&table(
        ["REQUESTS", "IN WORK", "OF", "BYTES", "OF", "WAITING"],
        status.admission.iter().map(|class| {
            [
                class.class.clone(),
                class.jobs.to_string(),
                class.jobs_max.to_string(),
                bytes(class.bytes),
                if class.bytes_max == u64::MAX { "-".into() } else { bytes(class.bytes_max) },
                class.queued.to_string(),
            ]
        }),
    ));
    text.push('\n');
    text.push_str(&cleanup_text(&status.cleanup));
    text
}

fn cleanup_text(passes: &[CleanupStatus]) -> String {
    table(
        ["CLEANUP", "PASSES", "FAILED", "ITEMS", "CHUNKS", "BYTES", "LAST ERROR"],
        passes.iter().map(|pass| {
            [
                pass.pass.clone(),
                pass.passes.to_string(),
                pass.failures.to_string(),
                pass.items.to_string(),
                pass.chunks.to_string(),
                bytes(pass.bytes),
                pass.last_error.clone().unwrap_or_default(),
            ]
        }),
    )
}

fn scrub_text(disks: &[DiskStatus]) -> String {
    table(
        ["DISK", "CHECKED", "CHUNKS", "CORRUPT", "PASSES", "RUNNING"],
        disks.iter().map(|disk| {
            [
                disk.path.clone(),
                bytes(disk.scrub.bytes),
                disk.scrub.chunks.to_string(),
                disk.scrub.corrupt.to_string(),
                disk.scrub.passes.to_string(),
                if disk.scrub.running { "yes" } else { "no" }.into(),
            ]
        }),
    )
}
