//! `holdfast repair …`

use clap::Subcommand;
use holdfast_protocol::admin::RepairInfo;

use super::CliResult;
use super::client::ClientArgs;
use super::output::{Output, bytes, table};

#[derive(Subcommand)]
pub(super) enum RepairCommand {
    /// Show repairs that wait, and what this node copies and compares.
    Status {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Compare replicas of this node's shards now, and repair what differs.
    #[command(
        after_help = "Each node compares the shards of which it is the first live member. Ask each node for all of them:
  for addr in 10.0.0.1:9001 10.0.0.2:9001; do holdfast repair start --admin-addr $addr; done"
    )]
    Start {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Stop this node's repairs after those at hand. Copies for shards that it joins go on.
    Pause {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Go on with this node's repairs.
    Resume {
        #[command(flatten)]
        client: ClientArgs,
    },
}

pub(super) async fn run(command: RepairCommand, out: Output) -> CliResult {
    let nothing = serde_json::json!({});
    let info: RepairInfo = match command {
        RepairCommand::Status { client } => client.connect()?.get("/repair").await?,
        RepairCommand::Start { client } => client.connect()?.post("/repair/start", &nothing).await?,
        RepairCommand::Pause { client } => client.connect()?.post("/repair/pause", &nothing).await?,
        RepairCommand::Resume { client } => client.connect()?.post("/repair/resume", &nothing).await?,
    };
    Ok(out.print(&info, text)?)
}

fn text(info: &RepairInfo) -> String {
    let backlog = match &info.backlog {
        Some(backlog) if backlog.is_empty() => "none".to_owned(),
        Some(backlog) => backlog.iter().map(|(node, n)| format!("{n} for {node}")).collect::<Vec<_>>().join(", "),
        None => "unknown, metadata does not answer".to_owned(),
    };
    let mut text = format!(
        "node {}{}\n  waiting    {backlog}\n  done       {} ({}), {} failed attempts\n  pace       {}/s of at most {}/s\n",
        info.node,
        if info.paused { " (repairs are paused)" } else { "" },
        info.done,
        bytes(info.bytes),
        info.failures,
        bytes(info.rate_bytes),
        bytes(info.bandwidth_bytes)
    );
    let comparison = &info.comparison;
    text.push_str(&format!(
        "  compared   {} of {} shards are the same everywhere{}; {} repairs queued\n",
        comparison.verified,
        comparison.shards,
        if comparison.running { " (running)" } else { "" },
        comparison.repairs_queued
    ));
    for (shard, reason) in &comparison.unverified {
        text.push_str(&format!("             shard {shard}: {reason}\n"));
    }
    for error in info.last_errors.iter().chain(&comparison.last_error) {
        text.push_str(&format!("  error      {error}\n"));
    }
    if !info.copies.is_empty() {
        text.push('\n');
        text.push_str(&table(
            ["COPIES", "PHASE", "CHUNKS", "OF", "BYTES", "OF", "LAST ERROR"],
            info.copies.iter().map(|copy| {
                [
                    format!("shard {}", copy.shard),
                    copy.phase.clone(),
                    copy.chunks_done.to_string(),
                    copy.chunks_expected.to_string(),
                    bytes(copy.bytes_done),
                    bytes(copy.bytes_expected),
                    copy.last_error.clone().unwrap_or_default(),
                ]
            }),
        ));
    }
    text
}
