//! `holdfast repair …`

use std::collections::BTreeMap;

use clap::Subcommand;
use holdfast_protocol::admin::{PauseInfo, RepairInfo};

use super::CliResult;
use super::client::ClientArgs;
use super::output::{Output, bytes, table, timestamp};

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
    /// Stop the repairs of all nodes after those at hand, until they are told to go on. Copies for shards that a node
    /// joins go on.
    Pause {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Let all nodes go on with their repairs.
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

/// Since when, and by whom.
pub(super) fn pause_text(pause: &PauseInfo) -> String {
    format!("paused on all nodes since {} by {} at node {}", timestamp(pause.since_ms), pause.by, pause.node)
}

fn text(info: &RepairInfo) -> String {
    let backlog = match &info.backlog {
        Some(backlog) if backlog.is_empty() => "none".to_owned(),
        Some(backlog) => backlog.iter().map(|(node, n)| format!("{n} for {node}")).collect::<Vec<_>>().join(", "),
        None => "unknown, metadata does not answer".to_owned(),
    };
    let paused = match &info.pause {
        Some(pause) => format!(" (repairs are {})", pause_text(pause)),
        // A node of a version that pauses each one by itself.
        None if info.paused => " (repairs of this node are paused, not those of others)".to_owned(),
        None => String::new(),
    };
    let mut text = format!(
        "node {}{}\n  waiting    {backlog}\n  done       {} ({}), {} failed attempts\n  pace       {}/s of at most {}/s\n",
        info.node,
        paused,
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
    let mut by_reason: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (shard, reason) in &comparison.unverified {
        by_reason.entry(reason).or_default().push(shard.to_string());
    }
    for (reason, shards) in by_reason {
        text.push_str(&format!("             {reason}: shards {}\n", shards.join(", ")));
    }
    let untold = comparison.shards.saturating_sub(comparison.verified + comparison.unverified.len() as u32);
    if untold > 0 {
        text.push_str(&format!("             and {untold} more shards\n"));
    }
    // The same one again and again is one thing to look at.
    let mut errors: BTreeMap<&str, u32> = BTreeMap::new();
    for error in info.last_errors.iter().chain(&comparison.last_error) {
        *errors.entry(error).or_default() += 1;
    }
    let names_chunk = errors.keys().any(|error| error.contains("chunk "));
    for (error, times) in errors {
        let times = if times > 1 { format!(" ({times} times)") } else { String::new() };
        text.push_str(&format!("  error      {error}{times}\n"));
    }
    if names_chunk {
        text.push_str("             `holdfast object of-chunk CHUNK_ID` shows whose a chunk is\n");
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

#[cfg(test)]
mod tests {
    use holdfast_protocol::admin::ComparisonInfo;

    use super::*;

    #[test]
    fn what_is_not_compared_and_what_failed_is_told_once_with_how_much_more_there_is() {
        let comparison = ComparisonInfo {
            running: false,
            shards: 256,
            verified: 0,
            unverified: (0..16).map(|shard| (shard, "degraded".to_owned())).collect(),
            repairs_queued: 0,
            last_error: None,
        };
        let info = RepairInfo {
            node: "5f3a".into(),
            paused: true,
            pause: Some(PauseInfo { since_ms: 1_000, by: "admin token (alice)".into(), node: "77".into() }),
            backlog: Some(vec![]),
            done: 0,
            bytes: 0,
            failures: 3,
            rate_bytes: 0,
            bandwidth_bytes: 1,
            last_errors: vec!["no database".into(), "no database".into(), "chunk 7: no room".into()],
            copies: vec![],
            comparison,
        };
        let text = text(&info);
        assert!(text.contains("degraded: shards 0, 1, 2"), "{text}");
        assert!(text.contains("and 240 more shards"), "{text}");
        let paused = "(repairs are paused on all nodes since 1970-01-01T00:00:01Z by admin token (alice) at node 77)\n";
        assert!(text.starts_with("node 5f3a ") && text.contains(paused), "{text}");
        assert!(text.contains("no database (2 times)\n") && text.contains("no room\n"), "{text}");
        assert!(text.contains("of-chunk"), "the way to the object: {text}");
    }

    /// The command may be newer than the node that it asks, which then paused nobody but itself.
    #[test]
    fn a_node_of_an_older_version_is_said_to_pause_itself_only() {
        let older = serde_json::json!({
            "node": "5f3a", "paused": true, "backlog": [], "done": 0, "failures": 0, "bytes": 0, "rate_bytes": 0,
            "bandwidth_bytes": 1, "last_errors": [], "copies": [],
            "comparison": { "running": false, "shards": 1, "verified": 1, "unverified": [], "repairs_queued": 0 }
        });
        let mut info: RepairInfo = serde_json::from_value(older).unwrap();
        assert!(text(&info).starts_with("node 5f3a (repairs of this node are paused, not those of others)\n"));
        info.paused = false;
        assert!(text(&info).starts_with("node 5f3a\n"));
    }
}
