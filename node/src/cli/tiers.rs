//! `holdfast tier …`
//!
//! What a tier is made of is in [`settings`], moving and waiting in [`moves`], reading all of a tier in [`verify`].

use clap::{Args, Subcommand};
use futures::future::try_join_all;
use holdfast_protocol::admin::{
    ChangeTier, MoveView, MovesPage, NewTier, RetriedMoves, TierCheck, TierSample, TierStatus, TierView,
};

use super::client::{ApiClient, ClientArgs, segment};
use super::output::{Output, bytes, table, timestamp};
use super::{CliResult, Exit, Failure};

mod moves;
mod settings;
mod verify;

#[derive(Subcommand)]
pub(super) enum TierCommand {
    /// List cold tiers, and whether the node reaches them.
    #[command(after_help = "Example:\n  holdfast tier list --json")]
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Add a tier. The node looks first whether it can work with it.
    #[command(after_help = settings::ADD_EXAMPLES)]
    Add {
        /// Its name, which is the storage class: A-Z, 0-9 and _.
        name: String,
        #[command(flatten)]
        settings: settings::SettingsArgs,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Change how a tier is reached. What is not given stays as it is; it must stay the same store.
    #[command(after_help = "Examples:
  holdfast tier set OSS --oss-access-key LTAI5tNEW --secret-key-file /root/oss.secret
  holdfast tier set FASTDFS --fastdfs-tracker 10.0.0.5:22122 --fastdfs-tracker 10.0.0.6:22122
  holdfast tier show OSS --json | jq .settings > oss.json    and, edited:
  holdfast tier set OSS --settings-file oss.json")]
    Set {
        /// The tier.
        name: String,
        #[command(flatten)]
        settings: settings::SettingsArgs,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show a tier with its settings, without secrets.
    #[command(after_help = "Example:\n  holdfast tier show OSS --json")]
    Show {
        /// The tier.
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Remove a tier that nothing lies in.
    #[command(after_help = "What is in the way is named. Examples:
  holdfast tier recall photos --all --wait
  holdfast tier remove OSS             when cleanup.grace is over and the tier's copies are deleted
  holdfast tier remove OSS --force     rules that name it wait for a tier of that name")]
    Remove {
        /// The tier.
        name: String,
        /// Also if it is the default class of a bucket, or lifecycle rules name it. Never if something lies in it.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Look whether the node reaches a tier now. Ends with 1 if it does not.
    #[command(after_help = "Each node reaches a tier by itself. Ask each node:
  for addr in 10.0.0.1:9001 10.0.0.2:9001; do holdfast tier check OSS --admin-addr $addr; done")]
    Check {
        /// The tier.
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show what lies in tiers, what moves, and why moves fail.
    #[command(after_help = "Examples:\n  holdfast tier status\n  holdfast tier status OSS --json")]
    Status {
        /// Only this tier.
        name: Option<String>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List moves that wait or are under way.
    #[command(after_help = "Examples:
  holdfast tier moves OSS --failing
  holdfast tier moves --bucket photos --prefix 2025/ --limit 1000 --json")]
    Moves(MovesArgs),
    /// Try moves that failed again now, instead of when their pause is over.
    #[command(after_help = "For when what was wrong is put right. Example:\n  holdfast tier retry OSS")]
    Retry {
        /// The tier.
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Give objects another storage class; nodes move their bytes in the background.
    #[command(after_help = "Examples:
  holdfast tier move photos/2019/cat.jpg --to OSS
  holdfast tier move photos --prefix 2019/ --to OSS --wait
  holdfast tier move photos --all --to FASTDFS

It can be interrupted and given again: objects that wait or are there already are left as they are.")]
    Move(moves::MoveArgs),
    /// Bring objects back to the cluster's disks, for good or for some days.
    #[command(after_help = "Examples:
  holdfast tier recall photos/2019/cat.jpg --wait
  holdfast tier recall photos --prefix 2019/ --days 7        their class stays, and they go back
  holdfast tier recall photos --all --wait")]
    Recall(moves::RecallArgs),
    /// Read what lies in a tier and compare it with what was stored. Ends with 1 if anything is damaged or unreadable.
    #[command(after_help = "Examples:
  holdfast tier verify OSS --sample 1%
  holdfast tier verify FASTDFS --all

Damage goes to `holdfast errors list --kind corruption` too. It can be interrupted; it tells how to
go on.")]
    Verify(verify::VerifyArgs),
}

#[derive(Args)]
pub(super) struct MovesArgs {
    /// Only those of this tier.
    tier: Option<String>,
    /// Only those of this bucket.
    #[arg(long)]
    bucket: Option<String>,
    /// Only of keys that begin so.
    #[arg(long, requires = "bucket")]
    prefix: Option<String>,
    /// Only those that failed the last time.
    #[arg(long)]
    failing: bool,
    /// Show so many at most.
    #[arg(long, default_value_t = 100)]
    limit: u32,
    #[command(flatten)]
    client: ClientArgs,
}

fn path(name: &str) -> String {
    format!("/tiers/{}", segment(name))
}

pub(super) async fn run(command: TierCommand, out: Output) -> CliResult {
    let nothing = serde_json::json!({});
    match command {
        TierCommand::List { client } => {
            let tiers: Vec<TierView> = client.connect()?.get("/tiers").await?;
            Ok(out.print(&tiers, |tiers| rows(tiers))?)
        }
        TierCommand::Add { name, settings, client } => {
            let new = NewTier { name, settings: settings.settings(None)? };
            let tier: TierView = client.connect()?.with_timeout(LOOK_TIMEOUT).post("/tiers", &new).await?;
            Ok(out.print(&tier, |tier| {
                format!(
                    "tier {} added. Nothing moves there until something has its class, for example\n  \
                     holdfast bucket storage-class BUCKET {}\n",
                    tier.name, tier.name
                )
            })?)
        }
        TierCommand::Set { name, settings, client } => set(&name, &settings, &client, out).await,
        TierCommand::Show { name, client } => {
            let tier: TierView = client.connect()?.get(&path(&name)).await?;
            Ok(out.print(&tier, |tier| {
                let settings = serde_json::to_string_pretty(&tier.settings).unwrap_or_default();
                format!(
                    "{}\nrevision {}, added {}\n{settings}\n",
                    rows(std::slice::from_ref(tier)),
                    tier.revision,
                    timestamp(tier.created_ms)
                )
            })?)
        }
        TierCommand::Remove { name, force, client } => {
            client.connect()?.delete(&format!("{}?force={force}", path(&name))).await?;
            Ok(out.print(&serde_json::json!({ "removed": name }), |_| format!("tier {name} removed\n"))?)
        }
        TierCommand::Check { name, client } => {
            let api = client.connect()?.with_timeout(LOOK_TIMEOUT);
            let found: TierCheck = api.post(&format!("{}/check", path(&name)), &nothing).await?;
            out.print(&found, check_text)?;
            if !found.up {
                let error = anyhow::anyhow!("node {} cannot work with tier {name}", found.node);
                return Err(Failure { exit: Exit::Failed, error });
            }
            Ok(())
        }
        TierCommand::Status { name, client } => {
            let api = client.connect()?.with_timeout(LOOK_TIMEOUT);
            let names: Vec<String> = match name {
                Some(name) => vec![name],
                None => api.get::<Vec<TierView>>("/tiers").await?.into_iter().map(|tier| tier.name).collect(),
            };
            let api = &api;
            let asked = names.iter().map(|name| async move { status(api, name).await });
            let found = try_join_all(asked).await?;
            Ok(out.print(&found, |found| {
                if found.is_empty() {
                    NO_TIERS.to_owned()
                } else {
                    found.iter().map(status_text).collect::<Vec<_>>().join("\n")
                }
            })?)
        }
        TierCommand::Moves(args) => {
            let found = list_moves(&args).await?;
            Ok(out.print(&found, |found| moves_rows(found))?)
        }
        TierCommand::Retry { name, client } => {
            let done: RetriedMoves = client.connect()?.post(&format!("{}/retry", path(&name)), &nothing).await?;
            Ok(out.print(&done, |done| format!("{} moves that failed are due now\n", done.moves))?)
        }
        TierCommand::Move(args) => moves::go(args, out).await,
        TierCommand::Recall(args) => moves::recall(args, out).await,
        TierCommand::Verify(args) => verify::run(args, out).await,
    }
}

/// Longer than the node lets a tier take to be built and looked at.
const LOOK_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(150);

const NO_TIERS: &str = "there are no tiers: `holdfast tier add --help` shows how one is added\n";

async fn status(api: &ApiClient, name: &str) -> CliResult<TierStatus> {
    api.get(&format!("{}/status", path(name))).await
}

async fn set(name: &str, settings: &settings::SettingsArgs, client: &ClientArgs, out: Output) -> CliResult {
    let api = client.connect()?.with_timeout(LOOK_TIMEOUT);
    let before: TierView = api.get(&path(name)).await?;
    let change = ChangeTier { settings: settings.settings(before.settings)?, revision: Some(before.revision) };
    let tier: TierView = api.put(&path(name), &change).await?;
    Ok(out.print(&tier, |tier| {
        let found = tier.sample.map_or_else(String::new, sample_text);
        format!(
            "tier {} changed, revision {}; other nodes take it over within seconds\n{found}",
            tier.name, tier.revision
        )
    })?)
}

fn sample_text(sample: TierSample) -> String {
    match sample {
        TierSample { looked_up: 0, .. } => "nothing lies in it that could have been looked up\n".to_owned(),
        TierSample { looked_up, missing: 0 } => format!("{looked_up} pieces in it were looked up, all are there\n"),
        TierSample { looked_up, missing } => {
            format!("{looked_up} pieces in it were looked up, {missing} are not there: see `holdfast tier verify`\n")
        }
    }
}

async fn list_moves(args: &MovesArgs) -> CliResult<Vec<MoveView>> {
    let api = args.client.connect()?;
    let mut found: Vec<MoveView> = Vec::new();
    let mut after: Option<String> = None;
    while found.len() < args.limit as usize {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        let texts = [("tier", &args.tier), ("bucket", &args.bucket), ("prefix", &args.prefix), ("after", &after)];
        for (name, value) in texts {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        if args.failing {
            query.append_pair("failing", "true");
        }
        query.append_pair("limit", "1000");
        let page: MovesPage = api.get(&format!("/moves?{}", query.finish())).await?;
        found.extend(page.items);
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    found.truncate(args.limit as usize);
    Ok(found)
}

fn lag(lag_ms: Option<u64>) -> String {
    lag_ms.map_or_else(String::new, |ms| format!("{} s", ms / 1_000))
}

fn rows(tiers: &[TierView]) -> String {
    if tiers.is_empty() {
        return NO_TIERS.to_owned();
    }
    let row = |tier: &TierView| {
        [
            tier.name.clone(),
            tier.kind.clone(),
            tier.state.clone(),
            tier.backlog.due.to_string(),
            tier.backlog.failing.to_string(),
            lag(tier.backlog.lag_ms),
            tier.settings.as_ref().map(settings::place).unwrap_or_default(),
            tier.reason.clone().unwrap_or_default(),
        ]
    };
    table(["NAME", "KIND", "STATE", "DUE", "FAILING", "LAG", "WHERE", "REMARKS"], tiers.iter().map(row))
}

fn check_text(found: &TierCheck) -> String {
    let mut text = match (&found.error, found.up) {
        (Some(error), _) => format!("{} is down for node {}: {error}\n", found.tier, found.node),
        (None, true) => format!("{} is up for node {}, {} ms\n", found.tier, found.node, found.elapsed_ms),
        (None, false) => format!("{} is down for node {}\n", found.tier, found.node),
    };
    if let Some(free_bytes) = found.free_bytes {
        text.push_str(&format!("  free       {}\n", bytes(free_bytes)));
    }
    for note in &found.notes {
        text.push_str(&format!("  note       {note}\n"));
    }
    text
}

fn status_text(status: &TierStatus) -> String {
    let tier = &status.tier;
    let usage = tier.usage.clone().unwrap_or_default();
    let backlog = &tier.backlog;
    let late = backlog.lag_ms.map(|ms| format!(", the oldest for {} s", ms / 1_000)).unwrap_or_default();
    let more = if status.moves_left_out { format!(" of the first {}", status.moves_seen) } else { String::new() };
    let mut text = format!(
        "{} ({}) is {}{}\n  holds      {} contents, {}\n  to delete  {} pieces\n  due        {} moves{late}\n  \
         at work    {}{more}\n  failing    {}\n  restores   {} under way, {} wait for their end{more}\n",
        tier.name,
        tier.kind,
        tier.state,
        tier.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default(),
        usage.contents,
        bytes(usage.bytes),
        usage.pieces_to_delete,
        backlog.due,
        status.claimed,
        backlog.failing,
        status.restoring,
        status.restored,
    );
    for error in &status.errors {
        text.push_str(&format!("  error      {} (moves: {})\n", error.error, error.moves));
    }
    text
}

fn moves_rows(found: &[MoveView]) -> String {
    let row = |found: &MoveView| {
        let state = match &found.owner {
            Some(owner) => format!("at {owner}"),
            None => timestamp(found.due_ms),
        };
        [
            format!("{}/{}", found.bucket, found.key),
            found.version.clone(),
            found.from.clone().unwrap_or_default(),
            found.to.clone(),
            found.reason.clone(),
            state,
            found.failures.to_string(),
            found.error.clone().unwrap_or_default(),
        ]
    };
    table(["OBJECT", "VERSION", "FROM", "TO", "WHY", "DUE", "FAILED", "LAST ERROR"], found.iter().map(row))
}
