//! `holdfast node list|drain|undrain|remove`

use std::time::Duration;

use clap::{Args, Subcommand};
use holdfast_protocol::admin::{DrainStatus, NodeInfo};
use indicatif::{ProgressBar, ProgressStyle};

use super::client::{ApiClient, ClientArgs};
use super::output::{Output, bytes, table};
use super::{CliResult, Exit, Failure};

/// Time between looks at a drain.
const DRAIN_POLL: Duration = Duration::from_millis(500);

#[derive(Subcommand)]
pub(super) enum NodeCommand {
    /// List the nodes that are alive or in the layout.
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Move everything off a node, which stays in the layout. Applied at once.
    #[command(
        after_help = "A node is drained when no shard names it and it holds no chunk; only then does this say so.
What it held is deleted there after cluster.leave_grace, and only once other nodes were seen to
have it.

Examples:
  holdfast node drain 5f3a --wait
  holdfast node drain 5f3a && holdfast node list"
    )]
    Drain(DrainArgs),
    /// Take a drained node back.
    Undrain {
        /// The node's id, or as much of its beginning as tells it apart.
        node: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Take a node out of the layout. Drained before, it costs nothing; else its shards are rebuilt on the others
    /// first.
    #[command(after_help = "Examples:
  holdfast node drain 5f3a --wait && holdfast node remove 5f3a
  holdfast node remove 5f3a --force     a node that will never come back")]
    Remove {
        /// The node's id, or as much of its beginning as tells it apart.
        node: String,
        /// Also if it still holds data or cannot be asked.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Args)]
pub(super) struct DrainArgs {
    /// The node's id, or as much of its beginning as tells it apart.
    node: String,
    /// Wait until it is verified that the node is empty.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(command: NodeCommand, out: Output) -> CliResult {
    match command {
        NodeCommand::List { client } => {
            let nodes: Vec<NodeInfo> = client.connect()?.get("/nodes").await?;
            Ok(out.print(&nodes, |nodes| rows(nodes))?)
        }
        NodeCommand::Drain(args) => drain(args, out).await,
        NodeCommand::Undrain { node, client } => {
            let api = client.connect()?;
            let node = resolve(&api, &node).await?;
            let status: DrainStatus = api.post(&format!("/nodes/{node}/undrain"), &serde_json::json!({})).await?;
            Ok(out.print(&status, |_| format!("node {node} takes data again\n"))?)
        }
        NodeCommand::Remove { node, force, client } => {
            let api = client.connect()?;
            let node = resolve(&api, &node).await?;
            api.delete(&format!("/nodes/{node}?force={force}")).await?;
            let text = format!(
                "node {node} removed from the layout: its process may be stopped. `holdfast layout assign {node}` takes it back\n\
                 If it shall not come back, erase `cluster/` and `node.secret` in its data directory: they are the cluster's keys\n"
            );
            Ok(out.print(&serde_json::json!({ "removed": node }), |_| text)?)
        }
    }
}

/// The id of a node that is named by the beginning of it.
pub(super) async fn resolve(api: &ApiClient, text: &str) -> CliResult<String> {
    if text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(text.to_lowercase());
    }
    known(api, text).await
}

/// The same, of a node that is alive or in the layout.
pub(super) async fn known(api: &ApiClient, text: &str) -> CliResult<String> {
    if text.is_empty() {
        return Err(Failure::usage(anyhow::anyhow!("name a node: `holdfast node list` shows all")));
    }
    let nodes: Vec<NodeInfo> = api.get("/nodes").await?;
    let mut found = nodes.iter().filter(|node| node.id.starts_with(&text.to_lowercase()));
    match (found.next(), found.next()) {
        (Some(node), None) => Ok(node.id.clone()),
        (Some(_), Some(_)) => {
            Err(Failure::usage(anyhow::anyhow!("several nodes begin with {text}: write more of the id")))
        }
        (None, _) => Err(Failure {
            exit: Exit::NotFound,
            error: anyhow::anyhow!("no node begins with {text:?}: `holdfast node list` shows all"),
        }),
    }
}

async fn drain(args: DrainArgs, out: Output) -> CliResult {
    let api = args.client.connect()?;
    let node = resolve(&api, &args.node).await?;
    let mut status: DrainStatus = api.post(&format!("/nodes/{node}/drain"), &serde_json::json!({})).await?;
    if !args.wait {
        return Ok(out.print(&status, drain_text)?);
    }
    let style = ProgressStyle::with_template("{bar:30} {pos} of {len} shards moved, about {eta} left; {msg}")?;
    let total = u64::from(status.shards_left);
    let progress = if out.json { ProgressBar::hidden() } else { ProgressBar::new(total).with_style(style) };
    while !status.done {
        tokio::time::sleep(DRAIN_POLL).await;
        // The node that answers may be busy or start again meanwhile: the drain goes on without it.
        match api.get::<DrainStatus>(&format!("/nodes/{node}/drain")).await {
            Ok(seen) => status = seen,
            Err(failure) if failure.exit == Exit::Unreachable => continue,
            Err(failure) => return Err(failure),
        }
        if !status.draining {
            return Err(Failure {
                exit: Exit::Conflict,
                error: anyhow::anyhow!("the drain of node {node} was taken back by somebody else"),
            });
        }
        progress.set_position(total.saturating_sub(u64::from(status.shards_left)));
        progress.set_message(status.waiting_for.clone());
    }
    progress.finish_and_clear();
    Ok(out.print(&status, drain_text)?)
}

fn drain_text(status: &DrainStatus) -> String {
    if status.done {
        return format!("node {} is drained: no shard names it, and it holds no chunk\n", status.node);
    }
    format!(
        "node {} is draining: {} shards left, {} to be copied; {}\n",
        status.node, status.shards_left, status.shards_to_copy, status.waiting_for
    )
}

/// Of a node that is not here nobody knows it.
fn size(node: &NodeInfo, size: u64) -> String {
    if node.state == "absent" { "-".into() } else { bytes(size) }
}

pub(super) fn rows(nodes: &[NodeInfo]) -> String {
    let row = |node: &NodeInfo| {
        let layout = match (node.in_layout, node.draining) {
            (false, _) => "-".to_owned(),
            (true, true) => "draining".to_owned(),
            (true, false) => node.weight.to_string(),
        };
        let shards = &node.shards;
        [
            node.id.clone(),
            node.state.clone(),
            node.zone.clone(),
            layout,
            format!("{}/{}/{}", shards.member, shards.joining, shards.leaving),
            node.repairs.map_or_else(|| "?".into(), |n| n.to_string()),
            size(node, node.free_bytes),
            size(node, node.capacity_bytes),
            node.s3_addr.clone(),
            node.admin_addr.clone(),
            node.version.clone(),
        ]
    };
    let heading =
        ["NODE", "STATE", "ZONE", "WEIGHT", "HAS/JOINS/LEAVES", "REPAIRS", "FREE", "SIZE", "S3", "ADMIN", "VERSION"];
    table(heading, nodes.iter().map(row))
}
