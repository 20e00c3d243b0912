//! `holdfast events …`

use std::time::Duration;

use clap::Subcommand;
use holdfast_protocol::admin::{EventsLag, EventsPage, ReplayEvents, ReplayedEvents};

use super::CliResult;
use super::client::ClientArgs;
use super::journal::DeadCommand;
use super::output::{Output, one_line, print_line, table, timestamp};
use crate::config::Span;

/// How long the node waits for an event before it answers without one.
const WAIT_MS: u64 = 10_000;
/// More than that.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// A replay may move many rows.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(600);

#[derive(Subcommand)]
pub(super) enum EventsCommand {
    /// Show events as they are published, one a line, until interrupted. Takes nothing away from consumers.
    Tail {
        /// Topic: objects, tasks or errors.
        #[arg(long, default_value = "objects")]
        topic: String,
        /// Begin with the oldest event that the broker has.
        #[arg(long)]
        oldest: bool,
        /// End after so many events.
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        /// End when no event came for this long, such as "5 s".
        #[arg(long, value_name = "TIME")]
        idle: Option<Span>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Publish events again that were published lately, with the same ids. Consumers that keep ids are not troubled.
    Replay {
        /// Events of the last so long, such as "15 min".
        #[arg(long, value_name = "TIME")]
        last: Span,
        /// Only of this bucket.
        #[arg(long)]
        bucket: Option<String>,
        /// Only of keys that begin so.
        #[arg(long, requires = "bucket")]
        prefix: Option<String>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show what waits to be published, and who publishes it.
    Lag {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Messages that failed too often and wait for a decision.
    #[command(subcommand)]
    Dead(DeadCommand),
}

pub(super) async fn run(command: EventsCommand, out: Output) -> CliResult {
    match command {
        EventsCommand::Tail { topic, oldest, count, idle, client } => {
            tail(&topic, oldest, count, idle, &client, out).await
        }
        EventsCommand::Replay { last, bucket, prefix, client } => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let from_ms = now.saturating_sub(last.duration()).as_millis() as u64;
            let wanted = ReplayEvents { from_ms, to_ms: None, bucket, prefix };
            let client = client.connect()?.with_timeout(REPLAY_TIMEOUT);
            let done: ReplayedEvents = client.post("/events/replay", &wanted).await?;
            Ok(out.print(&done, |done| format!("{} events are published again\n", done.events))?)
        }
        EventsCommand::Dead(command) => super::journal::dead(command, out).await,
        EventsCommand::Lag { client } => {
            let lag: EventsLag = client.connect()?.get("/events/lag").await?;
            Ok(out.print(&lag, text)?)
        }
    }
}

async fn tail(
    topic: &str,
    oldest: bool,
    count: Option<u64>,
    idle: Option<Span>,
    client: &ClientArgs,
    out: Output,
) -> CliResult {
    let client = client.connect()?.with_timeout(ANSWER_TIMEOUT);
    let idle_ms = idle.map(|idle| idle.duration().as_millis() as u64);
    let mut after: Option<String> = None;
    let mut shown = 0;
    let mut last_event = std::time::Instant::now();
    while count.is_none_or(|count| shown < count) {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("topic", topic);
        match &after {
            Some(after) => query.append_pair("after", after),
            None => query.append_pair("oldest", if oldest { "true" } else { "false" }),
        };
        // The first answer says where the end is: it must not wait.
        let wait_ms = if after.is_some() { idle_ms.map_or(WAIT_MS, |idle| idle.min(WAIT_MS)) } else { 0 };
        query.append_pair("wait_ms", &wait_ms.to_string());
        let page: EventsPage = client.get(&format!("/events/tail?{}", query.finish())).await?;
        if !page.events.is_empty() {
            last_event = std::time::Instant::now();
        } else if idle_ms.is_some_and(|idle| last_event.elapsed().as_millis() as u64 >= idle) {
            return Ok(());
        }
        for event in page.events {
            if count.is_some_and(|count| shown >= count) {
                break;
            }
            shown += 1;
            // One a line, to be read as they come.
            let line = if out.json {
                serde_json::to_string(&event)?
            } else {
                one_line(&format!("{}  {:<40} {}", event.id, event.tag, event.order_key)).into_owned()
            };
            if !print_line(&line)? {
                return Ok(());
            }
        }
        after = Some(page.next);
    }
    Ok(())
}

fn text(lag: &EventsLag) -> String {
    let mut text = match (lag.on, &lag.bus_error) {
        (false, _) => "events of objects are off: set events.rocketmq\n".to_owned(),
        (true, None) => "events can be published\n".to_owned(),
        (true, Some(error)) => format!("events cannot be published: {error}\n"),
    };
    let oldest = lag.oldest_age_ms.map(|age| format!(", the oldest for {} s", age / 1_000)).unwrap_or_default();
    text.push_str(&format!("{} wait{oldest}; {} can be published again\n", lag.rows, lag.published));
    text.push_str(&table(
        ["PARTITION", "PUBLISHED BY", "WAITING", "OLDEST", "LAST ERROR"],
        lag.partitions.iter().map(|partition| {
            [
                partition.partition.to_string(),
                partition.owner.clone().unwrap_or_else(|| "nobody".into()),
                partition.rows.to_string(),
                partition.oldest_ms.map(timestamp).unwrap_or_default(),
                partition.last_error.clone().unwrap_or_default(),
            ]
        }),
    ));
    text
}
