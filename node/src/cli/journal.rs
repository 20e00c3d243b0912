//! `holdfast errors …`, `holdfast audit …` and `holdfast events dead …`

use clap::Subcommand;
use holdfast_protocol::admin::Page;
use holdfast_protocol::journal::{AuditRecord, DeadLetter, Entry, ErrorRecord};
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::client::{ApiClient, ClientArgs};
use super::output::{Output, one_line, table, timestamp};
use super::{CliResult, Exit, Failure};
use crate::config::Span;

/// Length of the id of a node in a cluster; one that runs alone has a longer one.
const NODE_ID_CHARS: usize = 16;

#[derive(Subcommand)]
pub(super) enum ErrorsCommand {
    /// Show errors worth a look, newest first.
    #[command(after_help = "`holdfast object of-chunk CHUNK_ID` shows whose a chunk is. Examples:
  holdfast errors list --since 24h --kind corruption
  holdfast errors list --since 2026-01-31T00:00:00Z --json")]
    List {
        /// Only those since then: a time (RFC 3339), or how long ago, such as "24 h".
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Only those of this node: its id, or as much of its beginning as tells it apart.
        #[arg(long)]
        node: Option<String>,
        /// Only those of this kind: corruption, disk-fenced, replication-short, tier-failed, task-failed, other.
        #[arg(long)]
        kind: Option<String>,
        /// Show so many at most.
        #[arg(long, default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Subcommand)]
pub(super) enum AuditCommand {
    /// Show what was done through the admin API, newest first.
    List {
        /// Only entries since then: a time (RFC 3339), or how long ago, such as "24 h".
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Only those of this node: its id, or as much of its beginning as tells it apart.
        #[arg(long)]
        node: Option<String>,
        /// Only those whose action begins so, such as "POST /v1/keys".
        #[arg(long)]
        action: Option<String>,
        /// Show so many at most.
        #[arg(long, default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Subcommand)]
pub(super) enum DeadCommand {
    /// List them, oldest first.
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show one with its body.
    Show {
        /// Its number.
        number: u64,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Publish one again, once what made it fail is put right.
    Requeue {
        /// Its number.
        number: u64,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Forget one.
    Discard {
        /// Its number.
        number: u64,
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// A time, from `2026-01-31T00:00:00Z` or from how long ago it was.
fn since_ms(text: &str) -> CliResult<u64> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(u64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0));
    }
    let ago: Span = text.parse().map_err(|_| {
        let hint = "write a time such as 2026-01-31T00:00:00Z, or how long ago, such as \"24 h\"";
        Failure::usage(anyhow::anyhow!("--since {text:?}: {hint}"))
    })?;
    let now_ms = u64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
    Ok(now_ms.saturating_sub(ago.duration().as_millis() as u64))
}

/// The node that entries are wanted of. One that is gone for good is only known by its whole id.
async fn which_node(api: &ApiClient, node: Option<String>) -> CliResult<Option<String>> {
    match node {
        Some(text) if text.len() < NODE_ID_CHARS => match super::nodes::known(api, &text).await {
            // A node that runs alone knows of no others.
            Err(failure) if failure.exit == Exit::Failed => Ok(Some(text)),
            found => found.map(Some),
        },
        node => Ok(node.map(|text| text.to_lowercase())),
    }
}

/// Pages of a list until there are `limit` entries.
async fn entries<T: DeserializeOwned>(
    client: &ApiClient,
    path: &str,
    filters: &[(&str, Option<String>)],
    limit: u32,
) -> CliResult<Vec<T>> {
    let mut found: Vec<T> = Vec::new();
    let mut after: Option<String> = None;
    while found.len() < limit as usize {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in filters {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        if let Some(after) = &after {
            query.append_pair("after", after);
        }
        let left = (limit as usize - found.len()).min(1_000);
        query.append_pair("limit", &left.to_string());
        let page: Page<T> = client.get(&format!("{path}?{}", query.finish())).await?;
        found.extend(page.items);
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    Ok(found)
}

pub(super) async fn errors(command: ErrorsCommand, out: Output) -> CliResult {
    let ErrorsCommand::List { since, node, kind, limit, client } = command;
    let since = since.as_deref().map(since_ms).transpose()?.map(|ms| ms.to_string());
    let api = client.connect()?;
    let filters = [("since_ms", since), ("node", which_node(&api, node).await?), ("kind", kind)];
    let found: Vec<Entry<ErrorRecord>> = entries(&api, "/errors", &filters, limit).await?;
    Ok(out.print(&found, |found| {
        let row = |entry: &Entry<ErrorRecord>| {
            let ErrorRecord { at_ms, node, kind, subject, detail, .. } = &entry.record;
            [timestamp(*at_ms), kind.as_str().into(), node.clone(), subject.clone(), detail.clone()]
        };
        table(["TIME", "KIND", "NODE", "SUBJECT", "DETAIL"], found.iter().map(row))
    })?)
}

pub(super) async fn audit(command: AuditCommand, out: Output) -> CliResult {
    let AuditCommand::List { since, node, action, limit, client } = command;
    let since = since.as_deref().map(since_ms).transpose()?.map(|ms| ms.to_string());
    let api = client.connect()?;
    let filters = [("since_ms", since), ("node", which_node(&api, node).await?), ("action", action)];
    let found: Vec<Entry<AuditRecord>> = entries(&api, "/audit", &filters, limit).await?;
    Ok(out.print(&found, |found| {
        let row = |entry: &Entry<AuditRecord>| {
            let AuditRecord { at_ms, actor, source, action, target, result, .. } = &entry.record;
            let result = result.to_string();
            [timestamp(*at_ms), actor.clone(), source.clone(), action.clone(), target.clone(), result]
        };
        table(["TIME", "WHO", "FROM", "ACTION", "TARGET", "RESULT"], found.iter().map(row))
    })?)
}

pub(super) async fn dead(command: DeadCommand, out: Output) -> CliResult {
    match command {
        DeadCommand::List { client } => {
            let found: Vec<DeadLetter> = client.connect()?.list("/events/dead", None).await?;
            out.print(&found, |found| {
                let row = |letter: &DeadLetter| {
                    let (number, attempts) = (letter.number.to_string(), letter.attempts.to_string());
                    let kind = format!("{}/{}", letter.topic, letter.tag);
                    [number, timestamp(letter.buried_ms), kind, letter.group.clone(), attempts, letter.error.clone()]
                };
                table(["NUMBER", "GIVEN UP", "MESSAGE", "GROUP", "TRIES", "ERROR"], found.iter().map(row))
            })?;
        }
        DeadCommand::Show { number, client } => {
            let letter: DeadLetter = client.connect()?.get(&format!("/events/dead/{number}")).await?;
            out.print(&letter, text)?;
        }
        DeadCommand::Requeue { number, client } => {
            let path = format!("/events/dead/{number}/requeue");
            let letter: DeadLetter = client.connect()?.post(&path, &serde_json::json!({})).await?;
            out.print(&letter, |letter| format!("message {} is published again\n", letter.id))?;
        }
        DeadCommand::Discard { number, client } => {
            client.connect()?.delete(&format!("/events/dead/{number}")).await?;
            out.print(&serde_json::json!({ "discarded": number }), |_| format!("dead letter {number} discarded\n"))?;
        }
    }
    Ok(())
}

fn text(letter: &DeadLetter) -> String {
    format!(
        "number     {}\nmessage    {}\ntopic      {}\ntag        {}\ngroup      {}\norder key  {}\ntries      {}\n\
         given up   {}\nerror      {}\nbody       {}\n",
        letter.number,
        letter.id,
        letter.topic,
        letter.tag,
        letter.group,
        one_line(&letter.order_key),
        letter.attempts,
        timestamp(letter.buried_ms),
        one_line(&letter.error),
        letter.body.as_deref().unwrap_or("(not text)"),
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// It knows of no nodes among which one could be meant.
    #[tokio::test]
    async fn the_id_of_a_node_that_runs_alone_is_taken_as_it_is() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let api = ApiClient::of(listener.local_addr().unwrap());
        let body = r#"{"error":{"code":"not_possible","message":"this node runs alone","request_id":"1"}}"#;
        let answer = format!("HTTP/1.1 409 Conflict\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let alone = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut head).await.unwrap(), 0, "a whole request");
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let (node, ()) = tokio::join!(which_node(&api, Some("Ab".into())), alone);
        assert_eq!(node.unwrap().as_deref(), Some("Ab"));
    }

    #[test]
    fn since_is_a_time_or_how_long_ago() {
        assert_eq!(since_ms("1970-01-01T00:01:00Z").ok(), Some(60_000));
        let hour_ago = since_ms("1 h").ok().unwrap();
        let now_ms = (OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000) as u64;
        assert!((now_ms - 3_660_000..=now_ms - 3_540_000).contains(&hour_ago), "{hour_ago}");
        assert!(since_ms("yesterday").is_err());
    }
}
