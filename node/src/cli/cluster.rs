//! `holdfast cluster …`
//!
//! `status` and `join-token` are clients of a running node. The others work on the files of a node that is stopped,
//! since there is no cluster, or no metadata, that a node could run with yet.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use holdfast_protocol::admin::{ClusterStatus, JoinToken, NewJoinToken};
use holdfast_protocol::cluster::SHARD_COUNT_DEFAULT;
use indicatif::{ProgressBar, ProgressStyle};
use zeroize::Zeroizing;

use super::client::{ApiClient, ClientArgs};
use super::output::{Output, timestamp};
use super::{CliResult, ConfigArgs, Exit, Failure, nodes, repair};
use crate::admin::{USER_NAME, is_user_name};
use crate::assemble::cluster_tools as tools;
use crate::config::{Config, Overrides, Span};
use crate::secret_file;

/// Longest join token that is read.
const TOKEN_BYTES_MAX: u64 = 16 << 10;

/// Time between looks at a cluster that is waited for.
const STATUS_POLL: Duration = Duration::from_millis(500);

/// What nothing but the operator can see to.
const SHARED_TIERS: &str = "Cold tiers came back, with what lies in them. If the cluster of the backup still runs, or \
     will run again, keep this one from writing to their stores before its nodes start: each would delete pieces that the \
     other one needs (docs/tiers.md, \"Two clusters of one backup\").";

#[derive(Subcommand)]
pub(super) enum ClusterCommand {
    /// Show how the cluster is: nodes, shards, repairs, and what is wrong.
    #[command(
        after_help = "It ends with 0 whatever it shows; with --wait it ends with 0 when the cluster is healthy, and
with 1 when it is not after --timeout. A node that is starting is waited for; it ends with 5 if that
does not answer in all that time. Examples:
  holdfast cluster status
  holdfast cluster status --wait --timeout \"10 min\"
  holdfast cluster status --json | jq -r .health"
    )]
    Status(StatusArgs),
    /// Make a cluster, on its first node, which must be stopped.
    #[command(
        after_help = "The configuration names ZooKeeper (cluster.zookeeper) and the database (metadata.url). What is
made: the cluster's identity in ZooKeeper, its certificate authority and its secret in this node's
data directory. Then start the node, and let others join:

  holdfast cluster init --config /etc/holdfast/holdfast.toml --replicas 3
  holdfast root create  --config /etc/holdfast/holdfast.toml
  holdfast node         --config /etc/holdfast/holdfast.toml &
  holdfast cluster join-token --config /etc/holdfast/holdfast.toml --out token

Copy the token to the next machine."
    )]
    Init(InitArgs),
    /// Make a token that lets one machine join. Whoever has it is given the cluster's keys: keep it secret.
    #[command(after_help = "Examples:
  holdfast cluster join-token --out /root/token
  holdfast cluster join-token | ssh node2 holdfast cluster join --token-file -")]
    JoinToken(JoinTokenArgs),
    /// Make this node, which must be stopped, one of a cluster.
    #[command(
        after_help = "The token comes from a file or from standard input, never from the command line, where every
process could read it. Afterwards start the node, and give it data:

  holdfast cluster join --config /etc/holdfast/holdfast.toml --token-file /root/token
  holdfast node --config /etc/holdfast/holdfast.toml &
  holdfast layout assign --all-new && holdfast layout apply --yes"
    )]
    Join(JoinArgs),
    /// Replace the cluster's certificate authority, when somebody else may have a node's keys. On one node, while all
    /// are stopped.
    #[command(
        after_help = "Every node has the key of the authority, so nobody can be shut out as long as it stays. Copy
what this makes to each node that is to stay, before any is started: then they let in nobody else.
docs/operations.md, \"A machine in the wrong hands\", says what else such a machine knew. The key that
is made can be read by nobody but the user who makes it: be the one whom the node runs as. Example:

  C=/var/lib/holdfast/cluster
  runuser -u holdfast -- holdfast cluster new-authority --config /etc/holdfast/holdfast.toml
  scp -p $C/ca.pem $C/ca.key node2:$C/

The authority before comes back from a node that still has it, the same way."
    )]
    NewAuthority {
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Write everything that the metadata holds to a file, as JSON lines.
    #[command(after_help = "Secrets of access keys are in it sealed: they open only with the cluster's secret
(node.secret in a data directory), which has to be kept apart. Chunks are not in it. Examples:
  holdfast cluster backup-metadata --out /backup/metadata.jsonl
  holdfast cluster backup-metadata | zstd > metadata.jsonl.zst")]
    BackupMetadata {
        /// The file, which must not exist; - is standard output.
        #[arg(long, value_name = "FILE", default_value = "-")]
        out: PathBuf,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Put a backup back into an empty metadata store, while no node runs.
    #[command(after_help = "Example:\n  holdfast cluster restore-metadata --from /backup/metadata.jsonl")]
    RestoreMetadata {
        /// The file; - is standard input.
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Rebuild metadata that is lost, without a backup, from the labels of the chunks on this node's disks.
    #[command(
        after_help = "The metadata store must be empty of buckets and all nodes stopped. In a cluster run it on one
node after the other, and then on all once more: each has a part of the chunks, and of an object of
several chunks one node may have the beginning and another one the end. Start no node before.
docs/operations.md says what labels do not hold and what is therefore not rebuilt. Example, on the
first node, on all others and then on all again, and at last on the last one:
  C=/etc/holdfast/holdfast.toml
  holdfast cluster rebuild-metadata --config $C --owner root
  holdfast cluster rebuild-metadata --config $C --owner root --add
  holdfast cluster rebuild-metadata --config $C --owner root --add --complete-uploads"
    )]
    RebuildMetadata(RebuildArgs),
}

#[derive(Args)]
pub(super) struct StatusArgs {
    /// Wait until the cluster is healthy.
    #[arg(long)]
    wait: bool,
    /// How long to wait.
    #[arg(long, default_value = "10 min", requires = "wait")]
    timeout: Span,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Args)]
pub(super) struct InitArgs {
    /// Shards, which stay as many for ever.
    #[arg(long, default_value_t = SHARD_COUNT_DEFAULT)]
    shards: u32,
    /// Replicas of each shard; can be changed later.
    #[arg(long, default_value_t = 3)]
    replicas: u32,
    /// Make the cluster of this node once more, in a ZooKeeper that has lost all it had and of which there is no copy.
    /// All nodes must be stopped: docs/operations.md, "Lose ZooKeeper".
    #[arg(long, requires = "shards")]
    again: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Args)]
pub(super) struct JoinTokenArgs {
    /// How long it is valid, at most a day.
    #[arg(long, default_value = "1 h")]
    valid: Span,
    /// A file for it, which must not exist and only its owner can read; - is standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    out: PathBuf,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Args)]
pub(super) struct JoinArgs {
    /// A file of mode 0600 with the token; - reads it from standard input.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Args)]
pub(super) struct RebuildArgs {
    /// The user who is to own buckets, and objects whose label names no owner.
    #[arg(long, default_value = crate::assemble::ROOT_USER, value_parser = user_name)]
    owner: String,
    /// Only count what would be rebuilt.
    #[arg(long)]
    dry_run: bool,
    /// Go on where buckets exist already, as on the second node of a cluster.
    #[arg(long)]
    add: bool,
    /// Make objects of all multipart uploads whose parts are there from the first on, also of those that nobody had
    /// completed: labels do not tell which were. Only at the end, on the last node, when all parts have been found.
    #[arg(long, conflicts_with = "dry_run")]
    complete_uploads: bool,
    /// Bring back also what has no end, as far as it is there and nothing else has its name: writes that broke off, and
    /// objects that lost their end. Only at the end, when all nodes were walked.
    #[arg(long, conflicts_with = "dry_run")]
    unended: bool,
    /// Only find objects of the metadata that were moved to or from a cold tier since: after a backup was put back.
    #[arg(long, requires = "add", conflicts_with_all = ["dry_run", "complete_uploads", "unended"])]
    moved_only: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// The name of a user who is made where there is none yet.
fn user_name(text: &str) -> Result<String, String> {
    if is_user_name(text) { Ok(text.to_owned()) } else { Err(USER_NAME.to_owned()) }
}

pub(super) async fn run(command: ClusterCommand, out: Output) -> CliResult {
    match command {
        ClusterCommand::Status(args) => status(args, out).await,
        ClusterCommand::Init(args) => {
            let config = quiet(&args.config)?;
            let made = if args.again {
                tools::init_again(&config, args.shards, args.replicas).await?
            } else {
                tools::init(&config, args.shards, args.replicas).await?
            };
            let value = serde_json::json!({
                "cluster_id": made.cluster.to_string(),
                "node_id": made.node.to_string(),
                "shards": args.shards,
                "replicas": args.replicas,
            });
            let next = if args.again {
                "Run FLUSHALL on the Redis of cache.redis, if there is one, start all nodes, and give each its place in the layout"
            } else {
                "Start it, then let others join"
            };
            Ok(out.print(&value, |_| format!("cluster {} made; this node is {}. {next}\n", made.cluster, made.node))?)
        }
        ClusterCommand::JoinToken(args) => join_token(args, out).await,
        ClusterCommand::Join(args) => {
            let config = quiet(&args.config)?;
            let token = read_token(&args.token_file)?;
            let made = tools::join(&config, &token).await?;
            let value = serde_json::json!({ "cluster_id": made.cluster.to_string(), "node_id": made.node.to_string() });
            Ok(out.print(&value, |_| format!("node {} joined cluster {}: start it\n", made.node, made.cluster))?)
        }
        ClusterCommand::NewAuthority { config } => {
            let config = quiet(&config)?;
            let (made, [certificate, key]) = (tools::new_authority(&config)?, tools::authority_files(&config));
            let value = serde_json::json!({
                "cluster_id": made.cluster.to_string(),
                "node_id": made.node.to_string(),
                "certificate": certificate,
                "key": key,
            });
            Ok(out.print(&value, |_| {
                format!(
                    "cluster {} has a new authority: copy {} and {} to all other nodes that are to stay, then start them\n",
                    made.cluster,
                    certificate.display(),
                    key.display()
                )
            })?)
        }
        ClusterCommand::BackupMetadata { out: file, config } => {
            let config = quiet(&config)?;
            if file == Path::new("-") {
                let counts = tools::backup(&config, &mut std::io::stdout().lock()).await?;
                let told = if out.json { serde_json::to_string(&counts)? } else { counts.text() };
                // Standard output is the backup itself, and whole, whether or not anybody can be told.
                drop(writeln!(std::io::stderr(), "{told}"));
                return Ok(());
            }
            let counts = tools::backup_to(&config, &file).await?;
            Ok(out.print(&counts, |counts| format!("{}\n", counts.text()))?)
        }
        ClusterCommand::RestoreMetadata { from, config } => {
            let config = quiet(&config)?;
            let counts = if from == Path::new("-") {
                tools::restore_stream(&config, &mut std::io::stdin().lock()).await?
            } else {
                let file = std::fs::File::open(&from).with_context(|| format!("open {}", from.display()));
                tools::restore(&config, &mut std::io::BufReader::new(file.map_err(Failure::usage)?)).await?
            };
            if counts.tiers > 0 {
                // What came back is there, whether or not anybody can be told.
                drop(writeln!(std::io::stderr(), "{SHARED_TIERS}"));
            }
            Ok(out.print(&counts, |counts| format!("{}\n", counts.text()))?)
        }
        ClusterCommand::RebuildMetadata(args) => {
            let config = quiet(&args.config)?;
            let options = tools::RebuildOptions {
                dry_run: args.dry_run,
                add: args.add,
                complete_uploads: args.complete_uploads,
                moved_only: args.moved_only,
                unended: args.unended,
                ..tools::RebuildOptions::default()
            };
            let report = tools::rebuild(&config, &args.owner, options).await?;
            Ok(out.print(&report, tools::RebuildReport::text)?)
        }
    }
}

/// The configuration. Of logs only what is wrong is shown, such as a service that is waited for.
fn quiet(args: &ConfigArgs) -> CliResult<Config> {
    let config = args.load(Overrides::default())?.config;
    let mut log = config.log.clone();
    if log.level == "info" {
        log.level = "warn".into();
    }
    crate::telemetry::init_logs(&log);
    Ok(config)
}

async fn status(args: StatusArgs, out: Output) -> CliResult {
    if !args.wait {
        let status: ClusterStatus = args.client.connect()?.get("/cluster").await?;
        return Ok(out.print(&status, status_text)?);
    }
    let style = ProgressStyle::with_template("{bar:30} {pos} of {len} shards healthy, about {eta} left; {msg}")?;
    let progress = if out.json { ProgressBar::hidden() } else { ProgressBar::new(0).with_style(style) };
    let deadline = tokio::time::Instant::now() + args.timeout.duration();
    // The node that is asked may be starting, as after an upgrade.
    let seen = loop {
        let seen = args.client.connect()?.get::<ClusterStatus>("/cluster").await;
        match &seen {
            Ok(status) if status.health == "healthy" => break seen,
            Ok(status) => {
                progress.set_length(u64::from(status.shards.total));
                progress.set_position(u64::from(status.shards.healthy));
                progress.set_message(status.health.clone());
            }
            Err(failure) if failure.exit == Exit::Unreachable => progress.set_message("the node does not answer"),
            Err(_) => break seen,
        }
        if tokio::time::Instant::now() >= deadline {
            break seen;
        }
        tokio::time::sleep(STATUS_POLL).await;
    };
    progress.finish_and_clear();
    let status = seen?;
    out.print(&status, status_text)?;
    if status.health != "healthy" {
        return Err(Failure { exit: Exit::Failed, error: anyhow::anyhow!("the cluster is {}", status.health) });
    }
    Ok(())
}

async fn join_token(args: JoinTokenArgs, out: Output) -> CliResult {
    let seconds = u32::try_from(args.valid.duration().as_secs()).unwrap_or(u32::MAX);
    let request = NewJoinToken { valid_seconds: seconds };
    let client = args.client.connect()?;
    if args.out == Path::new("-") {
        let made: JoinToken = client.post("/cluster/join-tokens", &request).await?;
        if std::io::stdout().is_terminal() {
            eprintln!("whoever has this token until {} can join the cluster:", timestamp(made.expires_ms));
        }
        return Ok(out.print(&made, |made| format!("{}\n", made.token))?);
    }
    let made = join_token_to(&client, &request, &args.out).await?;
    let value = serde_json::json!({ "file": args.out, "expires_ms": made.expires_ms });
    Ok(out.print(&value, |_| {
        format!("{} lets machines join until {}\n", args.out.display(), timestamp(made.expires_ms))
    })?)
}

/// Has a token made and writes it to `path`. The file is made first: a token that has no place would be valid all the
/// same, and nobody would know of it.
async fn join_token_to(client: &ApiClient, request: &NewJoinToken, path: &Path) -> CliResult<JoinToken> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| cannot_make(path, error))?;
    let written = async {
        let made: JoinToken = client.post("/cluster/join-tokens", request).await?;
        let line = Zeroizing::new(format!("{}\n", made.token));
        file.write_all(line.as_bytes()).context("write the token")?;
        Ok::<_, Failure>(made)
    };
    let written = written.await;
    if written.is_err() {
        // The next try would find the name taken, by nothing or by half a token.
        std::fs::remove_file(path).ok();
    }
    written
}

fn cannot_make(file: &Path, error: std::io::Error) -> Failure {
    let exists = error.kind() == std::io::ErrorKind::AlreadyExists;
    let hint = if exists { ": a token is not written over, choose another name" } else { "" };
    let error = anyhow::Error::new(error).context(format!("make {}{hint}", file.display()));
    Failure { exit: if exists { Exit::Conflict } else { Exit::Failed }, error }
}

fn read_token(file: &Path) -> CliResult<Zeroizing<String>> {
    let text = if file == Path::new("-") {
        let mut text = Zeroizing::new(String::new());
        std::io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut text).context("read the token")?;
        text
    } else {
        secret_file::read_at_most(file, TOKEN_BYTES_MAX).context("join token").map_err(Failure::usage)?
    };
    if text.trim().is_empty() {
        return Err(Failure::usage(anyhow::anyhow!("there is no token: make one with `holdfast cluster join-token`")));
    }
    Ok(Zeroizing::new(text.trim().to_owned()))
}

fn status_text(status: &ClusterStatus) -> String {
    let mut text = format!(
        "cluster {} is {}\n",
        status.cluster_id,
        if status.health == "healthy" { "healthy".to_owned() } else { status.health.to_uppercase() }
    );
    for reason in &status.reasons {
        text.push_str(&format!("  {} ({})\n", reason.message, reason.code));
    }
    let shards = &status.shards;
    let kinds = [
        (shards.healthy, "healthy"),
        (shards.moving, "moving"),
        (shards.degraded, "degraded"),
        (shards.no_quorum, "without a write quorum"),
        (shards.unavailable, "unavailable"),
        (shards.unplaced, "not placed"),
    ];
    let kinds: Vec<String> = kinds.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    text.push_str(&format!(
        "  {} shards: {}\n  {} replicas each, layout version {}{}\n  repairs waiting: {}{}\n  controller: {}, this node: {} ({})\n{}",
        shards.total,
        kinds.join(", "),
        status.replication_factor,
        status.layout_version,
        if status.staged_changes > 0 { format!(", {} changes staged", status.staged_changes) } else { String::new() },
        status.repairs.map_or_else(|| "unknown, metadata does not answer".into(), |n| n.to_string()),
        status.repair_pause.as_ref().map_or_else(String::new, |pause| format!(" ({})", repair::pause_text(pause))),
        status.controller.as_deref().unwrap_or("none"),
        status.node_id,
        status.session,
        if status.cache.is_some() { "" } else { "\n" }
    ));
    if let Some(cache) = &status.cache {
        let why = cache.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        text.push_str(&format!("  cache: {}{why}\n", cache.state));
        for waiting in &cache.waiting_for {
            text.push_str(&format!("    waits for {}: {}\n", waiting.node_id, waiting.problem));
        }
        text.push('\n');
    }
    text.push_str(&nodes::rows(&status.nodes));
    text
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request for a token of a minute.
    async fn answer(listener: &TcpListener, status: &str, body: &str) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut request, end) = (Vec::new(), br#"{"valid_seconds":60}"#);
        while !request.ends_with(end) {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0, "a whole request");
        }
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn no_token_is_made_that_has_no_place() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (client, request) = (ApiClient::of(listener.local_addr().unwrap()), NewJoinToken { valid_seconds: 60 });
        fs::write(&file, "another token\n").unwrap();
        tokio::select! {
            biased;
            _ = listener.accept() => panic!("a token was asked for"),
            made = join_token_to(&client, &request, &file) => assert_eq!(made.unwrap_err().exit, Exit::Conflict),
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "another token\n");
    }

    #[tokio::test]
    async fn a_file_is_left_with_a_token_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (address, request) = (listener.local_addr().unwrap(), NewJoinToken { valid_seconds: 60 });
        let refusal = r#"{"error":{"code":"not_possible","message":"this node runs alone","request_id":"1"}}"#;
        // One client each: it would keep the connection.
        let client = ApiClient::of(address);
        let (made, ()) =
            tokio::join!(join_token_to(&client, &request, &file), answer(&listener, "409 Conflict", refusal));
        assert_eq!(made.unwrap_err().exit, Exit::Failed);
        assert!(!file.exists());

        let (client, token) = (ApiClient::of(address), r#"{"token":"who has it joins","expires_ms":7}"#);
        let (made, ()) = tokio::join!(join_token_to(&client, &request, &file), answer(&listener, "201 Created", token));
        assert_eq!(made.unwrap().expires_ms, 7);
        assert_eq!(*read_token(&file).unwrap(), "who has it joins");
    }

    #[test]
    fn a_token_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        fs::write(&file, "who has it joins\n").unwrap();
        for mode in [0o644, 0o640] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            let failure = read_token(&file).unwrap_err();
            let text = format!("{:#}", failure.error);
            assert!(text.ends_with(&format!("run chmod 600 {}", file.display())), "{text}");
            assert_eq!(failure.exit, Exit::Usage);
        }
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(*read_token(&file).unwrap(), "who has it joins");
        assert_eq!(read_token(&dir.path().join("absent")).unwrap_err().exit, Exit::Usage);
    }
}
