//! `holdfast tier move` and `holdfast tier recall`: asks page by page, and may wait for the bytes.

use std::time::Duration;

use clap::Args;
use holdfast_protocol::admin::{MovesPage, RequestMoves, RequestedMoves};
use holdfast_protocol::tiers::STANDARD;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Instant, sleep};

use super::super::client::{ApiClient, ClientArgs, segment};
use super::super::output::{Output, bytes, one_line, quoted};
use super::super::{CliResult, Exit, Failure};

/// A page is a few hundred transactions.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// Pauses between looks at what still moves: from, to. A look takes longer the more moves there are: it gets a small
/// share of the time.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];
const LOOK_SHARE: u32 = 10;
/// Pauses before a page is asked for again that the node could not deal with.
const TRY_AGAIN: [u64; 4] = [1, 2, 5, 10];

#[derive(Args)]
pub(in crate::cli) struct Which {
    /// One object as BUCKET/KEY; or a bucket, with --prefix or --all.
    #[arg(value_name = "BUCKET[/KEY]")]
    what: String,
    /// All objects whose keys begin so (their latest versions).
    #[arg(long, conflicts_with = "all")]
    prefix: Option<String>,
    /// All objects of the bucket (their latest versions).
    #[arg(long)]
    all: bool,
    /// One version instead of the latest, of one object.
    #[arg(long, value_name = "ID")]
    version_id: Option<String>,
    /// Go on behind this key, where an earlier command was interrupted.
    #[arg(long, value_name = "KEY")]
    after: Option<String>,
    /// Wait until nothing of it moves any more. Interrupting that stops no move.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Args)]
pub(in crate::cli) struct MoveArgs {
    #[command(flatten)]
    which: Which,
    /// Storage class: a tier's name, or STANDARD for the cluster's own disks.
    #[arg(long, value_name = "CLASS")]
    to: String,
}

#[derive(Args)]
pub(in crate::cli) struct RecallArgs {
    #[command(flatten)]
    which: Which,
    /// Only for so many days: their class stays, and they go back at the end.
    #[arg(long, value_name = "N")]
    days: Option<u32>,
}

pub(super) async fn go(args: MoveArgs, out: Output) -> CliResult {
    let first = args.which.request(args.to, None)?;
    args.which.run(first, out).await
}

pub(super) async fn recall(args: RecallArgs, out: Output) -> CliResult {
    let first = args.which.request(STANDARD.to_owned(), args.days)?;
    args.which.run(first, out).await
}

impl Which {
    /// The bucket, and what is asked of it.
    fn request(&self, to: String, days: Option<u32>) -> CliResult<(String, RequestMoves)> {
        let usage = |message: &str| Err(Failure::usage(anyhow::anyhow!("{message}")));
        let (bucket, key) = match self.what.split_once('/') {
            Some((bucket, key)) if !key.is_empty() => (bucket, Some(key.to_owned())),
            Some((bucket, _)) => (bucket, None),
            None => (self.what.as_str(), None),
        };
        let many = self.prefix.is_some() || self.all;
        match (&key, many) {
            (Some(_), true) => return usage("give a key, or --prefix or --all, not both"),
            (None, false) => return usage("give BUCKET/KEY, or a bucket with --prefix or --all"),
            (None, true) if self.version_id.is_some() => return usage("a version needs its key"),
            (Some(_), false) if self.after.is_some() => return usage("--after goes with --prefix or --all"),
            _ => {}
        }
        let request = RequestMoves {
            key,
            version: self.version_id.clone(),
            prefix: self.prefix.clone(),
            to,
            days,
            after: self.after.clone(),
            limit: None,
        };
        Ok((bucket.to_owned(), request))
    }

    async fn run(&self, (bucket, request): (String, RequestMoves), out: Output) -> CliResult {
        let api = self.client.connect()?.with_timeout(ANSWER_TIMEOUT).without_reuse();
        let all = ask(&api, &bucket, request.clone(), out).await?;
        if self.wait && all.queued > 0 {
            tokio::select! {
                done = wait(&api, &bucket, &request, all.queued, out) => done?,
                _ = tokio::signal::ctrl_c() => {
                    let error = anyhow::anyhow!("interrupted: what was asked for moves on in the background");
                    return Err(Failure { exit: Exit::Failed, error });
                }
            }
        }
        Ok(out.print(&all, |all| {
            let done = if self.wait { "moved" } else { "to be moved" };
            let passed = match all.passed_over {
                0 => String::new(),
                n => format!(", {n} passed over"),
            };
            format!(
                "{} objects, {}: {} ({}) {done}, {} there already{passed}\n",
                all.objects,
                bytes(all.bytes),
                all.queued,
                bytes(all.queued_bytes),
                all.in_place
            )
        })?)
    }
}

/// Shows how far a command is, where people read what it says.
pub(super) fn bar(out: Output, length: Option<u64>, template: &str) -> CliResult<ProgressBar> {
    if out.json {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template(template)?;
    let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    Ok(bar.with_style(style))
}

/// Asks for all pages.
async fn ask(api: &ApiClient, bucket: &str, mut request: RequestMoves, out: Output) -> CliResult<RequestedMoves> {
    let path = format!("/buckets/{}/moves", segment(bucket));
    let progress = bar(out, None, "{spinner} {pos} objects asked for, {per_sec}, {elapsed}; {msg}")?;
    let mut all = RequestedMoves::default();
    loop {
        let page = until_interrupted(|| api.post::<RequestedMoves>(&path, &request)).await;
        match page {
            Ok(page) => all.add(page),
            Err(failure) => {
                progress.finish_and_clear();
                return Err(with_way_on(failure, &all, request.after.as_deref()));
            }
        }
        progress.set_position(all.objects);
        progress.set_message(format!("{} move", bytes(all.queued_bytes)));
        match &all.next {
            Some(next) => request.after = Some(next.clone()),
            None => break,
        }
    }
    progress.finish_and_clear();
    Ok(all)
}

fn with_way_on(failure: Failure, all: &RequestedMoves, after: Option<&str>) -> Failure {
    match after {
        Some(after) if all.objects > 0 => {
            let note = format!("{} objects were asked for; go on with --after {}", all.objects, quoted(after));
            Failure { exit: failure.exit, error: failure.error.context(note) }
        }
        _ => failure,
    }
}

/// Tries again while the node is busy or cannot be reached.
async fn patiently<T, F: Future<Output = CliResult<T>>>(call: impl Fn() -> F) -> CliResult<T> {
    for seconds in TRY_AGAIN {
        match call().await {
            Err(failure) if failure.exit == Exit::Unreachable => sleep(Duration::from_secs(seconds)).await,
            done => return done,
        }
    }
    call().await
}

/// The same, up to an interrupt: that is a failure like others, so that a command can tell how to go on.
pub(super) async fn until_interrupted<T, F: Future<Output = CliResult<T>>>(call: impl Fn() -> F) -> CliResult<T> {
    tokio::select! {
        done = patiently(call) => done,
        _ = tokio::signal::ctrl_c() => Err(Failure { exit: Exit::Failed, error: anyhow::anyhow!("interrupted") }),
    }
}

/// What of a request still moves.
#[derive(Default)]
struct Left {
    moves: u64,
    failing: u64,
    error: Option<String>,
}

async fn left(api: &ApiClient, bucket: &str, request: &RequestMoves) -> CliResult<Left> {
    let mut left = Left::default();
    let mut after: Option<String> = None;
    loop {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("bucket", bucket).append_pair("unfinished", "true").append_pair("limit", "1000");
        for (name, value) in [("key", &request.key), ("prefix", &request.prefix), ("after", &after)] {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        let path = format!("/moves?{}", query.finish());
        let page: MovesPage = patiently(|| api.get(&path)).await?;
        for found in page.items {
            if request.version.as_ref().is_some_and(|version| found.version != *version) {
                continue;
            }
            left.moves += 1;
            left.failing += u64::from(found.failures > 0);
            left.error = left.error.or(found.error);
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(left),
        }
    }
}

/// Waits until nothing of the request moves.
async fn wait(api: &ApiClient, bucket: &str, request: &RequestMoves, queued: u64, out: Output) -> CliResult {
    let progress = bar(out, Some(queued), "{bar:30} {pos} of {len} moved, {per_sec}, {eta} left{msg}")?;
    loop {
        let begun = Instant::now();
        let left = left(api, bucket, request).await?;
        if left.moves == 0 {
            progress.finish_and_clear();
            return Ok(());
        }
        // Others may ask for more below the same prefix.
        progress.set_length(queued.max(left.moves));
        progress.set_position(queued.saturating_sub(left.moves));
        progress.set_message(match left.error {
            Some(error) if left.failing > 0 => {
                format!("; {} fail and are tried again: {}", left.failing, one_line(&error))
            }
            _ => String::new(),
        });
        sleep((begun.elapsed() * LOOK_SHARE).clamp(PAUSES[0], PAUSES[1])).await;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: MoveArgs,
    }

    fn request(line: &str) -> Option<(String, RequestMoves)> {
        let line = Line::try_parse_from(std::iter::once("move").chain(line.split(' '))).ok()?;
        line.args.which.request(line.args.to, None).ok()
    }

    #[test]
    fn an_object_or_many_are_named_and_never_a_whole_bucket_by_mistake() {
        let (bucket, one) = request("b/a/key --to OSS --version-id v").unwrap();
        assert_eq!((bucket.as_str(), one.key.as_deref(), one.version.as_deref()), ("b", Some("a/key"), Some("v")));
        let (_, some) = request("b --prefix 2019/ --to OSS --after 2019/x").unwrap();
        assert_eq!((some.key, some.prefix.as_deref(), some.after.as_deref()), (None, Some("2019/"), Some("2019/x")));
        assert!(request("b --all --to OSS").is_some_and(|(_, all)| all.prefix.is_none() && all.key.is_none()));
        for line in [
            "b --to OSS",
            "b/ --to OSS",
            "b/key --all --to OSS",
            "b --all --prefix p --to OSS",
            "b/key",
            "b --all --version-id v --to OSS",
        ] {
            assert!(request(line).is_none(), "{line}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn page_is_asked_for_again_while_the_node_is_busy() {
        let tries = std::cell::Cell::new(0);
        let busy_twice = || async {
            tries.set(tries.get() + 1);
            let busy = Failure { exit: Exit::Unreachable, error: anyhow::anyhow!("busy") };
            if tries.get() < 3 { Err(busy) } else { Ok(7) }
        };
        assert_eq!(patiently(busy_twice).await.ok(), Some(7));
        let refused = || async { Err::<(), _>(Failure { exit: Exit::NotFound, error: anyhow::anyhow!("no") }) };
        assert_eq!(patiently(refused).await.err().map(|failure| failure.exit), Some(Exit::NotFound));
    }
}
