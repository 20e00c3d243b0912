//! The command line: noun, then verb.
//!
//! `dev` and `node` run a node; `root`, `config` and some of `cluster` work on files, and on services that these name;
//! `bench` measures any S3 endpoint. Everything else is a client of the admin API and does nothing that another client
//! could not. Results go to standard output, as text or with
//! `--json` as one JSON document; all else goes to standard error. Exit codes are [`Exit`]'s.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use holdfast_storage::error::OpenError;
use rustix::fs::Mode;

use crate::assemble::InUse;
use crate::assemble::cluster_tools::{Misused, Taken};
use crate::config::{Loaded, Overrides};

mod buckets;
mod chunks;
mod client;
mod cluster;
mod config;
mod events;
mod journal;
mod keys;
mod layout;
mod nodes;
mod operate;
mod output;
mod repair;
mod root;
mod run;
mod secret;
mod shards;
mod tiers;
mod users;
mod variables;

/// What the process tells its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// Not found.
    NotFound = 3,
    /// Exists already, or in use.
    Conflict = 4,
    /// The node cannot be reached.
    Unreachable = 5,
}

/// A command that failed.
#[derive(Debug)]
pub struct Failure {
    /// For the caller.
    pub exit: Exit,
    /// For people.
    pub error: anyhow::Error,
}

impl Failure {
    pub(crate) fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Usage, error: error.into() }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let exit = if is_in_use(&error) {
            Exit::Conflict
        } else if error.chain().any(|cause| cause.is::<Misused>()) {
            Exit::Usage
        } else {
            Exit::Failed
        };
        Self { exit, error }
    }
}

/// Whether somebody else has what the command needs: the data directory, a disk, an address.
fn is_in_use(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<InUse>()
            || cause.is::<Taken>()
            || matches!(cause.downcast_ref::<OpenError>(), Some(OpenError::Locked { .. }))
            || cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::AddrInUse)
    })
}

type CliResult<T = ()> = Result<T, Failure>;

/// Private cloud storage for machines that you own.
#[derive(Parser)]
#[command(
    name = "holdfast",
    version,
    max_term_width = HELP_CHARS_MAX,
    arg_required_else_help = true,
    after_help = EXAMPLES
)]
struct Cli {
    /// Print results as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

/// The longest line of help. A longer one is broken where it ends, an example in the middle of its command.
const HELP_CHARS_MAX: usize = 100;

const EXAMPLES: &str = "\
Examples:
  holdfast dev                                    one node with everything embedded, ready to try
  holdfast node --config /etc/holdfast/holdfast.toml
  holdfast user create alice && holdfast key create alice
  holdfast bucket list --json
  holdfast dev --nodes 3                          a cluster in one process, ready to try
  holdfast cluster status                         how the cluster is, and what is wrong
  holdfast node list                              its nodes

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 not found, 4 exists or in use,
5 unreachable.";

#[derive(Subcommand)]
enum Command {
    /// Run one node, or several, with everything embedded and print how to use it.
    Dev(run::DevArgs),
    /// Run a node from its configuration; or list, drain and remove the nodes of a cluster.
    Node(run::NodeArgs),
    /// The cluster: make it, join it, see how it is, save its metadata.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Which nodes there are to be: staged, shown with its cost, then applied.
    #[command(subcommand)]
    Layout(layout::LayoutCommand),
    /// Shards: who holds what.
    #[command(subcommand)]
    Shard(shards::ShardCommand),
    /// Objects: where their bytes are.
    #[command(subcommand)]
    Object(shards::ObjectCommand),
    /// Events of objects: what waits, what passes.
    #[command(subcommand)]
    Events(events::EventsCommand),
    /// Repairs: what waits, and what is being healed.
    #[command(subcommand)]
    Repair(repair::RepairCommand),
    /// Cold tiers: what lies there, and what moves there and back.
    #[command(subcommand)]
    Tier(tiers::TierCommand),
    /// Errors worth a look.
    #[command(subcommand)]
    Errors(journal::ErrorsCommand),
    /// Who did what through the admin API.
    #[command(subcommand)]
    Audit(journal::AuditCommand),
    /// The first credentials of a node, made while it is stopped.
    #[command(subcommand)]
    Root(root::RootCommand),
    /// Users.
    #[command(subcommand)]
    User(users::UserCommand),
    /// Access keys.
    #[command(subcommand)]
    Key(keys::KeyCommand),
    /// Buckets.
    #[command(subcommand)]
    Bucket(buckets::BucketCommand),
    /// Show what a node does and how it is.
    Status(client::ClientArgs),
    /// Give space back now instead of when it is due.
    #[command(subcommand)]
    Cleanup(operate::CleanupCommand),
    /// Read everything that is stored and compare checksums.
    #[command(subcommand)]
    Scrub(operate::ScrubCommand),
    /// Configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Measure an S3 endpoint.
    Bench(crate::bench::BenchArgs),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Where configuration comes from.
#[derive(Args, Debug, Clone, Default)]
pub(crate) struct ConfigArgs {
    /// Configuration file [default: ./holdfast.toml, else /etc/holdfast/holdfast.toml, if there is one].
    #[arg(long, value_name = "FILE", env = "HOLDFAST_CONFIG")]
    config: Option<PathBuf>,
    /// Directory for metadata, identity and, unless configured otherwise, chunks.
    #[arg(long, value_name = "DIR", env = "HOLDFAST_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

/// What the names of holdfast's own variables begin with.
const PREFIX: &str = "HOLDFAST_";

/// Where a node's admin API is: for a node where it listens, for a client where it finds the node.
const ADMIN_ADDR: &str = "HOLDFAST_ADMIN_ADDR";

/// Variables that stand for flags of [`ConfigArgs`], and hold paths.
const PATH_VARIABLES: [&str; 2] = ["HOLDFAST_CONFIG", "HOLDFAST_DATA_DIR"];

impl ConfigArgs {
    pub(crate) fn load(&self, more: Overrides) -> CliResult<Loaded> {
        self.load_from(settings(std::env::vars_os())?.into_iter(), more)
    }

    /// The configuration for a client, which reads [`ADMIN_ADDR`] itself: it takes more than a node can listen at.
    pub(crate) fn load_for_client(&self) -> CliResult<Loaded> {
        let variables = settings(std::env::vars_os())?.into_iter().filter(|(name, _)| name != ADMIN_ADDR);
        self.load_from(variables, Overrides::default())
    }

    fn load_from(&self, variables: impl Iterator<Item = (String, String)>, more: Overrides) -> CliResult<Loaded> {
        let overrides = Overrides { data_dir: self.data_dir.clone(), ..more };
        crate::config::load(self.config.as_deref(), variables, &overrides).map_err(|faults| {
            let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
            Failure::usage(anyhow::anyhow!("{}", lines.join("\n")))
        })
    }
}

/// The variables that may be settings, which those are not that Kubernetes makes of services beside the node. What
/// others hold is nobody's concern here, and need not be text.
fn settings(variables: impl Iterator<Item = (OsString, OsString)>) -> CliResult<Vec<(String, String)>> {
    let mut settings = Vec::new();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        match value.into_string() {
            Ok(value) if variables::is_service_link(name, &value) => {}
            Ok(value) => settings.push((name.to_owned(), value)),
            // Flags take these, as the paths that they are.
            Err(_) if PATH_VARIABLES.contains(&name) => {}
            Err(_) => {
                let error = anyhow::anyhow!("environment variable {name}: what it holds is not UTF-8");
                return Err(Failure::usage(error));
            }
        }
    }
    Ok(settings)
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    // Whatever is written is for this user only, also what a library writes: SQLite asks for files that everybody may
    // read.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error),
    };
    let out = output::Output { json: cli.json };
    match dispatch(cli.command, out) {
        Ok(code) => code,
        Err(failure) => {
            out.failure(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Answers a command line that is none, or that asks for help. Whoever asked for JSON gets it here, too.
fn not_understood(error: &clap::Error) -> ExitCode {
    match wrong_usage(error).filter(|_| std::env::args_os().any(|word| word == "--json")) {
        Some(failure) => output::Output { json: true }.failure(&failure),
        // Where nobody can be told, the exit code tells.
        None => drop(error.print()),
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Failed as u8))
}

/// What is wrong with a command line; nothing with one that asks for help.
fn wrong_usage(error: &clap::Error) -> Option<Failure> {
    let asks = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::DisplayVersion
    );
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned();
    (!asks).then(|| Failure::usage(anyhow::anyhow!(text)))
}

fn dispatch(command: Command, out: output::Output) -> CliResult<ExitCode> {
    let done = |()| ExitCode::from(Exit::Done as u8);
    match command {
        Command::Config(command) => config::run(command, out).map(done),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "holdfast", &mut script);
            output::still_read(std::io::stdout().write_all(&script))?;
            Ok(done(()))
        }
        Command::Dev(args) => run::to_the_end(run::control_runtime()?, run::dev(args, out)).map(done),
        Command::Node(run::NodeArgs { command: Some(command), .. }) => {
            run::client_runtime()?.block_on(nodes::run(command, out)).map(done)
        }
        Command::Node(args) => run::to_the_end(run::control_runtime()?, run::node(args, out)).map(done),
        Command::Cluster(command) => run::client_runtime()?.block_on(cluster::run(command, out)).map(done),
        Command::Layout(command) => run::client_runtime()?.block_on(layout::run(command, out)).map(done),
        Command::Shard(command) => run::client_runtime()?.block_on(shards::shard(command, out)).map(done),
        Command::Object(command) => run::client_runtime()?.block_on(shards::object(command, out)).map(done),
        Command::Events(command) => run::client_runtime()?.block_on(events::run(command, out)).map(done),
        Command::Repair(command) => run::client_runtime()?.block_on(repair::run(command, out)).map(done),
        Command::Tier(command) => run::client_runtime()?.block_on(tiers::run(command, out)).map(done),
        Command::Errors(command) => run::client_runtime()?.block_on(journal::errors(command, out)).map(done),
        Command::Audit(command) => run::client_runtime()?.block_on(journal::audit(command, out)).map(done),
        Command::Bench(args) => Ok(run::client_runtime()?.block_on(crate::bench::run(args))?),
        Command::Root(command) => run::client_runtime()?.block_on(root::run(command, out)).map(done),
        Command::User(command) => run::client_runtime()?.block_on(users::run(command, out)).map(done),
        Command::Key(command) => run::client_runtime()?.block_on(keys::run(command, out)).map(done),
        Command::Bucket(command) => run::client_runtime()?.block_on(buckets::run(command, out)).map(done),
        Command::Status(args) => run::client_runtime()?.block_on(operate::status(args, out)).map(done),
        Command::Cleanup(command) => run::client_runtime()?.block_on(operate::cleanup(command, out)).map(done),
        Command::Scrub(command) => run::client_runtime()?.block_on(operate::scrub(command, out)).map(done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_somebody_else_has_is_a_conflict() {
        use anyhow::Context as _;
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = std::net::TcpListener::bind(taken.local_addr().unwrap()).context("listen");
        assert_eq!(Failure::from(bound.unwrap_err()).exit, Exit::Conflict);
        let locked = OpenError::Locked { dir: "d".into() };
        assert_eq!(Failure::from(anyhow::Error::from(locked).context("open disk d")).exit, Exit::Conflict);
        assert_eq!(Failure::from(anyhow::anyhow!("broken")).exit, Exit::Failed);
        let misused = anyhow::Error::from(Misused("too many".into())).context("make the cluster");
        assert_eq!(Failure::from(misused).exit, Exit::Usage);
    }

    #[test]
    fn the_commands_of_a_cluster_are_understood() {
        for line in [
            "cluster status --wait --timeout 5min",
            "cluster init --shards 16 --replicas 3 --config f",
            "cluster init --again --shards 16",
            "cluster join-token --out token --valid 10min",
            "cluster join --token-file -",
            "cluster new-authority --config f",
            "cluster backup-metadata --out f",
            "cluster restore-metadata --from f",
            "cluster rebuild-metadata --dry-run",
            "layout show",
            "layout assign 5f3a --zone z --weight 5",
            "layout assign --all-new",
            "layout remove 5f3a",
            "layout set-replicas 3",
            "layout diff",
            "layout apply --layout-version 3",
            "layout apply --yes",
            "layout revert",
            "node",
            "node --config f",
            "node list",
            "node drain 5f3a --wait",
            "node undrain 5f3a",
            "node remove 5f3a --force",
            "shard list --unhealthy",
            "shard show 7",
            "shard where bucket/key/with/slashes",
            "object stat bucket/key --version-id v",
            "object of-chunk chunk 0123456789abcdef0123456789abcdef --search --json",
            "events tail --oldest --count 5 --idle 5s",
            "events replay --last 15min --bucket b --prefix p",
            "events lag",
            "repair status",
            "repair start",
            "repair pause",
            "repair resume",
            "tier list --json",
            "tier add ARCHIVE --directory /mnt/archive",
            "tier add OSS --oss-endpoint https://h --oss-bucket b --oss-access-key k --secret-key-file -",
            "tier add FASTDFS --fastdfs-tracker a:22122 --fastdfs-tracker b:22122 --fastdfs-map 172.17.0.2=10.0.0.7",
            "tier set OSS --oss-storage-class IA",
            "tier show OSS",
            "tier remove OSS",
            "tier check OSS",
            "tier status",
            "tier status OSS",
            "tier moves OSS --bucket b --prefix p --failing --limit 10",
            "tier retry OSS",
            "tier move b/key --to OSS --wait",
            "tier move b --prefix p --to STANDARD --after k",
            "tier recall b --all --days 7",
            "tier verify OSS --sample 1%",
            "tier verify OSS --all --after 0123",
            "bucket storage-class b",
            "bucket storage-class b OSS",
            "scrub start",
            "scrub status",
            "dev --nodes 3",
            "errors list --since 24h --node 5f3a --kind corruption --json",
            "audit list --since 2026-01-31T00:00:00Z",
            "events dead list",
            "events dead show 7",
            "events dead requeue 7",
            "events dead discard 7",
        ] {
            let words = std::iter::once("holdfast").chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
        // A token on a command line would be seen by every process.
        assert!(Cli::try_parse_from(["holdfast", "cluster", "join", "--token", "secret"]).is_err());
        let secret = ["holdfast", "tier", "add", "OSS", "--oss-access-key", "k", "--oss-secret-key", "secret"];
        assert!(Cli::try_parse_from(secret).is_err());
        assert!(Cli::try_parse_from(["holdfast", "tier", "verify", "OSS"]).is_err(), "all, or which sample");
        assert!(Cli::try_parse_from(["holdfast", "node", "--s3-addr", "127.0.0.1:1", "list"]).is_err());
        let owner = ["holdfast", "cluster", "rebuild-metadata", "--owner", "no name"];
        assert!(Cli::try_parse_from(owner).is_err(), "a user of that name could not be named again");
        for nodes in ["1", "8"] {
            assert!(Cli::try_parse_from(["holdfast", "dev", "--nodes", nodes]).is_err(), "{nodes}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_command_line_is_told_without_a_heading_and_help_is_not_wrong() {
        let wrong = |line: &str| wrong_usage(&Cli::try_parse_from(line.split(' ')).err().expect("no command"));
        let failure = wrong("holdfast user shwo --json").expect("it is wrong");
        let text = failure.error.to_string();
        assert!(failure.exit == Exit::Usage && text.contains("shwo"), "{text}");
        assert!(!text.starts_with("error") && !text.ends_with('\n'), "{text}");
        for line in ["holdfast --help", "holdfast user", "holdfast --version"] {
            assert!(wrong(line).is_none(), "{line}");
        }
    }

    #[test]
    fn no_line_of_an_example_is_broken() {
        fn look(command: &clap::Command) {
            for text in [command.get_after_help(), command.get_after_long_help()].into_iter().flatten() {
                for line in text.to_string().lines() {
                    let chars = line.chars().count();
                    assert!(chars <= HELP_CHARS_MAX, "{}: {chars} characters: {line}", command.get_name());
                }
            }
            command.get_subcommands().for_each(look);
        }
        look(&Cli::command());
    }

    #[test]
    fn a_variable_that_is_no_text_matters_only_where_it_is_a_setting() {
        use std::os::unix::ffi::OsStringExt as _;
        let odd = || OsString::from_vec(b"/srv/\xff".to_vec());
        let region = ("HOLDFAST_S3_REGION".into(), "eu".into());
        let others = [("LC_NAME".into(), odd()), (odd(), "x".into()), ("HOLDFAST_DATA_DIR".into(), odd()), region];
        let told = settings(others.into_iter()).unwrap();
        assert_eq!(told, [("HOLDFAST_S3_REGION".to_owned(), "eu".to_owned())]);
        let failure = settings([("HOLDFAST_S3_TLS_KEY".into(), odd())].into_iter()).unwrap_err();
        let text = failure.error.to_string();
        assert!(failure.exit == Exit::Usage && text.contains("HOLDFAST_S3_TLS_KEY"), "{text}");
    }

    #[test]
    fn json_may_stand_anywhere() {
        for line in [["holdfast", "--json", "user", "list"], ["holdfast", "user", "list", "--json"]] {
            assert!(Cli::try_parse_from(line).unwrap().json);
        }
    }
}
