//! `holdfast layout …`

use std::io::{IsTerminal, Write};

use clap::{Args, Subcommand};
use holdfast_protocol::admin::{ApplyLayout, LayoutCost, LayoutState, LayoutView, NodeInfo, StageChange};
use holdfast_protocol::cluster::LayoutChange;

use super::client::{ApiClient, ClientArgs};
use super::nodes::resolve;
use super::output::{Output, bytes, table};
use super::{CliResult, Exit, Failure};

#[derive(Subcommand)]
pub(super) enum LayoutCommand {
    /// Show the layout in force and what is staged.
    Show {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Stage: add a node, or change its zone and weight.
    #[command(after_help = "Examples:
  holdfast layout assign --all-new            every node that is alive and not in the layout
  holdfast layout assign 5f3a --zone rack-2 --weight 4000
  holdfast layout diff && holdfast layout apply --yes")]
    Assign(AssignArgs),
    /// Stage: move everything off a node and forget it.
    Remove {
        /// The node's id, or as much of its beginning as tells it apart.
        node: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Stage: change how often data is stored.
    SetReplicas {
        /// Replicas of each shard, 1 to 7.
        replicas: u32,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show what applying would move: shards and bytes, by node.
    Diff {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Put what is staged in force.
    #[command(after_help = "Without --layout-version or --yes it shows the cost and asks. Examples:
  holdfast layout apply --layout-version 4    exactly what `holdfast layout diff` showed, or nothing
  holdfast layout apply --yes                 whatever is staged")]
    Apply(ApplyArgs),
    /// Forget what is staged.
    Revert {
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Args)]
pub(super) struct AssignArgs {
    /// The node's id, or as much of its beginning as tells it apart.
    #[arg(required_unless_present = "all_new")]
    node: Option<String>,
    /// Every node that is alive and not in the layout.
    #[arg(long, conflicts_with = "node")]
    all_new: bool,
    /// What fails together with the node [default: its configuration's].
    #[arg(long)]
    zone: Option<String>,
    /// Its share of the data relative to the others; 0 takes requests, but no data [default: its capacity in GiB].
    #[arg(long, allow_negative_numbers = true)]
    weight: Option<u32>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Args)]
pub(super) struct ApplyArgs {
    /// The version that was shown; another one is refused.
    #[arg(long, value_name = "N")]
    layout_version: Option<u64>,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(command: LayoutCommand, out: Output) -> CliResult {
    let nothing = serde_json::json!({});
    match command {
        LayoutCommand::Show { client } => {
            let view: LayoutView = client.connect()?.get("/layout").await?;
            Ok(out.print(&view, view_text)?)
        }
        LayoutCommand::Assign(args) => assign(args, out).await,
        LayoutCommand::Remove { node, client } => {
            let api = client.connect()?;
            let node = node_id(&resolve(&api, &node).await?)?;
            stage(&api, LayoutChange::Remove { node }).await.and_then(|view| printed(out, &view))
        }
        LayoutCommand::SetReplicas { replicas, client } => {
            let api = client.connect()?;
            stage(&api, LayoutChange::SetReplicationFactor { replicas }).await.and_then(|view| printed(out, &view))
        }
        LayoutCommand::Diff { client } => {
            let cost: LayoutCost = client.connect()?.get("/layout/diff").await?;
            out.print(&cost, cost_text)?;
            match &cost.impossible {
                Some(_) => {
                    let error = anyhow::anyhow!("what is staged cannot be applied");
                    Err(Failure { exit: Exit::Failed, error })
                }
                None => Ok(()),
            }
        }
        LayoutCommand::Apply(args) => apply(args, out).await,
        LayoutCommand::Revert { client } => {
            let view: LayoutView = client.connect()?.post("/layout/revert", &nothing).await?;
            Ok(out.print(&view, |_| "nothing is staged any more\n".into())?)
        }
    }
}

async fn stage(api: &ApiClient, change: LayoutChange) -> CliResult<LayoutView> {
    api.post("/layout/changes", &StageChange { change }).await
}

fn printed(out: Output, view: &LayoutView) -> CliResult {
    Ok(out.print(view, |view| match view.staged.len() {
        0 => "nothing is staged: it is in force already\n".into(),
        1 => "1 change staged; `holdfast layout diff` shows what it costs\n".into(),
        n => format!("{n} changes staged; `holdfast layout diff` shows what they cost\n"),
    })?)
}

fn node_id(text: &str) -> CliResult<holdfast_protocol::NodeId> {
    text.parse().map_err(Failure::usage)
}

async fn assign(args: AssignArgs, out: Output) -> CliResult {
    let api = args.client.connect()?;
    let nodes: Vec<NodeInfo> = api.get("/nodes").await?;
    let chosen: Vec<String> = match &args.node {
        Some(node) => vec![resolve(&api, node).await?],
        None => nodes.iter().filter(|node| !node.in_layout).map(|node| node.id.clone()).collect(),
    };
    let mut staged: LayoutView = api.get("/layout").await?;
    for id in &chosen {
        // With --all-new, what was staged before stays as it is.
        if args.all_new && staged.preview.nodes.contains_key(id) {
            continue;
        }
        let known = nodes.iter().find(|node| node.id == *id);
        let missing = |what: &str| {
            Failure::usage(anyhow::anyhow!(
                "node {id} is not alive, so it cannot be asked: give its {what} with --{what}"
            ))
        };
        let zone = args.zone.clone().or_else(|| known.map(|n| n.zone.clone())).ok_or_else(|| missing("zone"))?;
        let by_capacity = || known.filter(|n| n.capacity_bytes > 0).map(|n| gib(n.capacity_bytes));
        let weight = args.weight.or_else(by_capacity).ok_or_else(|| missing("weight"))?;
        staged = stage(&api, LayoutChange::Assign { node: node_id(id)?, zone, weight }).await?;
    }
    printed(out, &staged)
}

/// At least 1: a small node still takes data.
fn gib(bytes: u64) -> u32 {
    u32::try_from(bytes >> 30).unwrap_or(u32::MAX).clamp(1, holdfast_protocol::cluster::WEIGHT_MAX)
}

async fn apply(args: ApplyArgs, out: Output) -> CliResult {
    let api = args.client.connect()?;
    let version = match args.layout_version {
        Some(version) => version,
        None => {
            let cost: LayoutCost = api.get("/layout/diff").await?;
            if !args.yes {
                possible(&cost)?;
                agreed(&cost, out)?;
            }
            cost.next_version
        }
    };
    let view: LayoutView = api.post("/layout/apply", &ApplyLayout { version }).await?;
    Ok(out.print(&view, |view| {
        format!("layout version {} is in force; `holdfast cluster status` shows how far it is\n", view.version)
    })?)
}

/// Whether there is anything that somebody could agree to.
fn possible(cost: &LayoutCost) -> CliResult {
    let (exit, error) = match &cost.impossible {
        _ if cost.staged.is_empty() => {
            (Exit::Conflict, anyhow::anyhow!("nothing is staged: `holdfast layout assign` stages a node"))
        }
        Some(reason) => (Exit::Failed, anyhow::anyhow!("what is staged cannot be applied: {reason}")),
        None => return Ok(()),
    };
    Err(Failure { exit, error })
}

/// Shows what it costs, and asks.
fn agreed(cost: &LayoutCost, out: Output) -> CliResult {
    if out.json || !std::io::stdin().is_terminal() {
        let error = anyhow::anyhow!(
            "nobody can be asked: name the version that was shown with --layout-version {}, or give --yes",
            cost.next_version
        );
        return Err(Failure::usage(error));
    }
    eprint!("{}Apply? [y/N] ", cost_text(cost));
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        return Err(Failure { exit: Exit::Failed, error: anyhow::anyhow!("nothing was applied") });
    }
    Ok(())
}

fn view_text(view: &LayoutView) -> String {
    let mut text = format!("version {}, {} replicas\n\n", view.version, view.applied.replication_factor);
    text.push_str(&state_text(&view.applied));
    if view.staged.is_empty() {
        text.push_str("\nnothing is staged\n");
        return text;
    }
    text.push_str("\nstaged:\n");
    for change in &view.staged {
        text.push_str(&format!("  {}\n", change_text(change)));
    }
    text.push_str(&format!("\nwith that, {} replicas:\n\n", view.preview.replication_factor));
    text.push_str(&state_text(&view.preview));
    text
}

fn state_text(state: &LayoutState) -> String {
    let rows = state.nodes.iter().map(|(id, node)| {
        let draining = if node.draining { "yes" } else { "no" };
        [id.clone(), node.zone.clone(), node.weight.to_string(), draining.into()]
    });
    table(["NODE", "ZONE", "WEIGHT", "DRAINING"], rows)
}

fn change_text(change: &LayoutChange) -> String {
    match change {
        LayoutChange::Assign { node, zone, weight } => format!("assign {node} to zone {zone} with weight {weight}"),
        LayoutChange::Drain { node } => format!("drain {node}"),
        LayoutChange::Undrain { node } => format!("undrain {node}"),
        LayoutChange::Remove { node } => format!("remove {node}"),
        LayoutChange::SetReplicationFactor { replicas } => format!("store everything {replicas} times"),
    }
}

fn cost_text(cost: &LayoutCost) -> String {
    if cost.staged.is_empty() {
        return "nothing is staged\n".into();
    }
    let mut text = format!("to become version {}:\n", cost.next_version);
    for change in &cost.staged {
        text.push_str(&format!("  {}\n", change_text(change)));
    }
    if let Some(reason) = &cost.impossible {
        text.push_str(&format!(
            "\nNOT POSSIBLE: {reason}\n`holdfast layout assign` and `set-replicas` change what is staged, `revert` forgets it\n"
        ));
        return text;
    }
    text.push_str(&format!(
        "\n{} shards change, {} replicas and {} are to be copied\n",
        cost.shards_changed,
        cost.replicas_moved,
        bytes(cost.bytes_moved)
    ));
    if cost.shards_unmeasured > 0 {
        text.push_str(&format!("({} shards could not be measured: their bytes come on top)\n", cost.shards_unmeasured));
    }
    text.push('\n');
    text.push_str(&table(
        ["NODE", "REPLICAS", "AFTER", "COPIES IN", "GIVES UP"],
        cost.nodes.iter().map(|node| {
            [
                node.node.clone(),
                node.replicas_before.to_string(),
                node.replicas_after.to_string(),
                bytes(node.incoming_bytes),
                bytes(node.outgoing_bytes),
            ]
        }),
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_asked_about_what_cannot_be() {
        let change = LayoutChange::SetReplicationFactor { replicas: 5 };
        let cost = |staged: Vec<LayoutChange>, impossible: Option<&str>| LayoutCost {
            next_version: 2,
            staged,
            impossible: impossible.map(str::to_owned),
            shards_changed: 0,
            replicas_moved: 0,
            bytes_moved: 0,
            shards_unmeasured: 0,
            nodes: vec![],
        };
        assert!(possible(&cost(vec![change.clone()], None)).is_ok());
        assert_eq!(possible(&cost(vec![], None)).unwrap_err().exit, Exit::Conflict);
        let failure = possible(&cost(vec![change], Some("too few nodes"))).unwrap_err();
        assert!(failure.exit == Exit::Failed && failure.error.to_string().contains("too few nodes"), "{failure:?}");
    }
}
