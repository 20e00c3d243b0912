//! `holdfast dev` and `holdfast node`: run a node until a signal.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::output::Output;
use super::{CliResult, ConfigArgs, Exit, Failure, root, variables};
use crate::admin::Pair;
use crate::assemble::dev::DevCluster;
use crate::assemble::{self, Root, RunningNode};
use crate::config::{Config, Overrides, listen_addr};

mod welcome;

use welcome::{Welcome, endpoint};

/// Threads of the control runtime: actors, the admin API and background work. The data plane has its own.
const CONTROL_THREADS: usize = 2;

/// How long a process that ends waits for threads that are in a call of the system. Everything acknowledged is durable.
const LEFT_BEHIND_MAX: Duration = Duration::from_secs(2);

/// The first credentials of a node.
const ROOT_PAIR: [&str; 2] = ["HOLDFAST_ROOT_ACCESS_KEY", "HOLDFAST_ROOT_SECRET_KEY"];

/// Under which name buckets are subdomains of a node that is tried out, unless its configuration names others: SDKs put
/// the bucket before the host name that they are given, unless that is an address.
const DEV_DOMAIN: &str = "localhost";

#[derive(Args)]
#[command(after_help = "Examples:
  holdfast dev
  holdfast dev --nodes 3
  holdfast dev --data-dir /tmp/try --s3-addr 127.0.0.1:0 --admin-addr 127.0.0.1:0 --json

With --json, one line tells addresses and credentials as soon as requests are served. Buckets are
found at BUCKET.localhost too, unless s3.domains names other domains.")]
pub(super) struct DevArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where S3 is served; port 0 takes a free one [default: 127.0.0.1:9000].
    #[arg(long, value_name = "ADDR", env = "HOLDFAST_S3_ADDR", value_parser = listen_addr)]
    s3_addr: Option<SocketAddr>,
    /// Where the admin API, health and metrics are served; port 0 takes a free one [default: 127.0.0.1:9001].
    #[arg(long, value_name = "ADDR", env = "HOLDFAST_ADMIN_ADDR", value_parser = listen_addr)]
    admin_addr: Option<SocketAddr>,
    /// Access key of the root user [default: made at the first start].
    #[arg(long, env = "HOLDFAST_ACCESS_KEY", requires = "secret")]
    access_key: Option<String>,
    /// Its secret. Everybody on this machine can read it here, in the list of processes: where it matters use
    /// --secret-key-file, or the variable.
    #[arg(long, env = "HOLDFAST_SECRET_KEY", hide_env_values = true, requires = "access_key", group = "secret")]
    secret_key: Option<String>,
    /// A file of mode 0600 that holds the secret; - is standard input.
    #[arg(long, value_name = "PATH", requires = "access_key", group = "secret")]
    secret_key_file: Option<std::path::PathBuf>,
    /// Run a cluster of so many nodes in this process, each on ports of its own.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=7))]
    nodes: Option<u8>,
}

#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "The first start needs a root credential: set HOLDFAST_ROOT_ACCESS_KEY and
HOLDFAST_ROOT_SECRET_KEY, or run `holdfast root create` before. Example:
  holdfast node --config /etc/holdfast/holdfast.toml"
)]
pub(super) struct NodeArgs {
    #[command(subcommand)]
    pub(super) command: Option<super::nodes::NodeCommand>,
    #[command(flatten)]
    config: ConfigArgs,
    /// Where S3 is served.
    #[arg(long, value_name = "ADDR", env = "HOLDFAST_S3_ADDR", value_parser = listen_addr)]
    s3_addr: Option<SocketAddr>,
    /// Where the admin API, health and metrics are served.
    #[arg(long, value_name = "ADDR", env = "HOLDFAST_ADMIN_ADDR", value_parser = listen_addr)]
    admin_addr: Option<SocketAddr>,
}

/// The runtime that a node's control plane runs on.
pub(super) fn control_runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("holdfast-control")
        .enable_all()
        .build()
}

/// Runs a node to its end on `runtime`, and does not wait for long for what it left behind: a call of the system that
/// does not return, such as one on a file server that is gone, must not keep a process that was asked to end.
pub(super) fn to_the_end<T>(runtime: Runtime, node: impl Future<Output = T>) -> T {
    let ended = runtime.block_on(node);
    runtime.shutdown_timeout(LEFT_BEHIND_MAX);
    ended
}

/// The runtime of commands.
pub(super) fn client_runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

pub(super) async fn dev(args: DevArgs, out: Output) -> CliResult {
    let overrides = Overrides { s3_addr: args.s3_addr, admin_addr: args.admin_addr, ..Overrides::default() };
    let mut config = args.config.load(overrides)?.config;
    if config.s3.domains.is_empty() {
        config.s3.domains.push(DEV_DOMAIN.into());
    }
    if std::env::var_os("HOLDFAST_LOG_LEVEL").is_none() && config.log == crate::config::LogConfig::default() {
        // What is printed below is for people to read; trouble is still logged.
        config.log.level = "warn,holdfast=info".into();
    }
    let secret_key = super::secret::secret(args.secret_key, args.secret_key_file)?;
    let root = match root::given(args.access_key.as_deref(), secret_key.as_ref().map(|secret| secret.as_str()))? {
        Some(pair) => Root::Given(pair),
        None => Root::Generate,
    };
    crate::telemetry::init_logs(&config.log);
    variables::warn_of_strays()?;
    let data_dir = std::path::absolute(&config.node.data_dir)?;
    if args.nodes.is_none() && config.cluster.is_on() {
        return Err(Failure::usage(anyhow::anyhow!(
            "`holdfast dev` has everything embedded, but cluster.zookeeper is set: run `holdfast node`, or use --nodes"
        )));
    }
    let nodes = args.nodes;
    let start = async {
        anyhow::Ok(match nodes {
            None => Running::One(Box::new(assemble::start(config.clone(), root).await?)),
            Some(nodes) => Running::Several(Box::new(assemble::dev::start(&config, nodes, root).await?)),
        })
    };
    let (running, signals) = unless_ended(start).await?;
    let pair = running.root().cloned().ok_or_else(|| anyhow::anyhow!("a development node has a root credential"))?;
    let welcome = Welcome { nodes: running.nodes(), config: &config, pair: &pair, data_dir: &data_dir };
    out.print(&welcome.json(), |_| welcome.text())?;
    run_until_signal(running, &config, signals).await
}

/// What runs until a signal.
enum Running {
    One(Box<RunningNode>),
    Several(Box<DevCluster>),
}

impl Running {
    fn nodes(&self) -> Vec<&RunningNode> {
        match self {
            Self::One(node) => vec![node],
            Self::Several(cluster) => cluster.nodes().collect(),
        }
    }

    fn root(&self) -> Option<&Pair> {
        self.nodes().into_iter().find_map(RunningNode::root)
    }

    async fn failed(&self) -> String {
        match self {
            Self::One(node) => node.failed().await,
            Self::Several(cluster) => cluster.failed().await,
        }
    }

    async fn shutdown(self) {
        match self {
            Self::One(node) => node.shutdown().await,
            Self::Several(cluster) => cluster.shutdown().await,
        }
    }
}

pub(super) async fn node(args: NodeArgs, out: Output) -> CliResult {
    let overrides = Overrides { s3_addr: args.s3_addr, admin_addr: args.admin_addr, ..Overrides::default() };
    let config = args.config.load(overrides)?.config;
    let (given, is_half) = {
        let [access_key, secret_key] = ROOT_PAIR.map(|name| std::env::var(name).ok());
        let is_half = access_key.is_some() != secret_key.is_some();
        (root::given(access_key.as_deref(), secret_key.as_deref())?, is_half)
    };
    crate::telemetry::init_logs(&config.log);
    if is_half {
        tracing::warn!("of {} and {} only one is set: neither is used", ROOT_PAIR[0], ROOT_PAIR[1]);
    }
    variables::warn_of_strays()?;
    let start = assemble::start(config.clone(), given.map_or(Root::Require, Root::Given));
    let (node, signals) = unless_ended(start).await?;
    if out.json {
        let ready = serde_json::json!({
            "event": "ready",
            "endpoint": endpoint(&config, node.s3_addr()),
            "s3_addr": node.s3_addr(),
            "admin_addr": node.admin_addr(),
            "node_id": node.id().to_string(),
            "pid": std::process::id(),
        });
        out.print(&ready, |_| String::new())?;
    }
    run_until_signal(Running::One(Box::new(node)), &config, signals).await
}

/// What ends a node; each is noticed from when it is watched on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    fn watch() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: hangup()?,
        })
    }

    /// Resolves at the next of any.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = received(self.hangup.as_mut()) => {}
        }
    }
}

/// Starts a node, unless a signal comes first: that ends the process at once. The kernel does so only where the process
/// is not the first of its container; to that one it gives no signal that it does not watch. The watch is a task of its
/// own, since a start may stand in a call of the system. Gives back the signals, of which none is missed in between:
/// whoever reads that a node is ready may end it at once.
async fn unless_ended<T>(start: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<(T, Signals)> {
    let mut signals = Signals::watch()?;
    let (done, is_done) = oneshot::channel::<()>();
    let watch = tokio::spawn(async move {
        let is_asked = tokio::select! {
            biased;
            _ = is_done => false,
            () = signals.any() => true,
        };
        if is_asked {
            tracing::info!("asked to end before the node was ready");
            std::process::exit(0);
        }
        signals
    });
    let started = start.await;
    drop(done);
    let signals = watch.await?;
    Ok((started?, signals))
}

/// Waits for a signal or for the actors to give up, then stops cleanly. A second SIGTERM or SIGINT ends the process at
/// once.
async fn run_until_signal(node: Running, config: &Config, signals: Signals) -> CliResult {
    let Signals { mut terminate, mut interrupt, mut hangup } = signals;
    let mut asked = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let (requests, failed) = tokio::select! {
        // Session managers send SIGTERM and SIGHUP together: the one must not make the other one a second request.
        biased;
        () = asked() => (1, None),
        () = received(hangup.as_mut()) => (0, None),
        reason = node.failed() => (0, Some(reason)),
    };
    match &failed {
        Some(reason) => tracing::error!(reason, "stopping after a failure"),
        None => tracing::info!("stopping; a second signal ends the process at once"),
    }
    // Draining has its own limit; what comes after it is short. This one catches what hangs.
    let limit = config.node.shutdown_timeout.duration() + Duration::from_secs(30);
    tokio::select! {
        stopped = tokio::time::timeout(limit, node.shutdown()) => match stopped {
            Ok(()) => tracing::info!("stopped"),
            Err(_) => tracing::error!("the stop took too long; everything acknowledged is durable all the same"),
        },
        () = insisted(requests, asked) => std::process::exit(130),
    }
    match failed {
        Some(reason) => Err(Failure { exit: Exit::Failed, error: anyhow::anyhow!(reason) }),
        None => Ok(()),
    }
}

/// Resolves when the end was asked for twice, `requests` times of them before. Who only hung up, and a node that stops
/// by itself, asked for nothing yet.
async fn insisted(requests: u32, mut asked: impl AsyncFnMut()) {
    for _ in requests..2 {
        asked().await;
    }
}

/// SIGHUP, which would end the process at once otherwise: the terminal is gone, or somebody expects that something is
/// read anew. `None` where whoever started the process has it ignored, as `nohup` does.
fn hangup() -> std::io::Result<Option<Signal>> {
    if std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status)) {
        return Ok(None);
    }
    signal(SignalKind::hangup()).map(Some)
}

/// Whether a process with this `/proc/PID/status` ignores SIGHUP, the first signal.
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}

/// Waits for a signal that may not be watched.
async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_who_asks_twice_ends_the_process_at_once() {
        for requests in [0, 1] {
            let mut more = 0;
            insisted(requests, async || more += 1).await;
            assert_eq!(requests + more, 2);
        }
    }

    #[test]
    fn a_call_that_does_not_return_does_not_keep_the_process() {
        let (end, stands_still) = std::sync::mpsc::channel::<()>();
        let (ended, has_ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let node = async {
                let (began, begun) = tokio::sync::oneshot::channel();
                tokio::task::spawn_blocking(move || {
                    began.send(()).ok();
                    stands_still.recv().ok();
                });
                begun.await.unwrap();
                7
            };
            ended.send(to_the_end(control_runtime().unwrap(), node)).unwrap();
        });
        assert_eq!(has_ended.recv_timeout(Duration::from_secs(60)), Ok(7));
        drop(end);
    }

    #[test]
    fn a_hangup_that_is_ignored_is_left_alone() {
        for (mask, ignores) in [("0000000000001001", true), ("0000000000001000", false), ("", false), ("x", false)] {
            assert_eq!(ignores_hangup(&format!("Name:\tholdfast\nSigIgn:\t{mask}\nSigCgt:\t1\n")), ignores, "{mask}");
        }
        assert!(!ignores_hangup(""));
    }
}
