//! `holdfast root …`: the first credentials of a node, made on its data directory while no node runs on it.

use std::path::PathBuf;

use clap::Subcommand;

use super::output::Output;
use super::{CliResult, ConfigArgs, Failure};
use crate::admin::Pair;
use crate::assemble::{self, Root};
use crate::config::Overrides;

#[derive(Subcommand)]
pub(super) enum RootCommand {
    /// Make the root user with a key, and print it. With a given pair, import that.
    #[command(after_help = "The node must not be running. Examples:
  holdfast root create --config /etc/holdfast/holdfast.toml
  holdfast root create --access-key admin --secret-key-file /root/secret
  HOLDFAST_ROOT_ACCESS_KEY=admin HOLDFAST_ROOT_SECRET_KEY=\"$SECRET\" holdfast root create")]
    Create {
        /// The public half of a given pair.
        #[arg(long, env = "HOLDFAST_ROOT_ACCESS_KEY", requires = "secret")]
        access_key: Option<String>,
        /// The secret half of a given pair. Everybody on this machine can read it here, in the list of processes:
        /// better use --secret-key-file, or the variable.
        #[arg(
            long,
            env = "HOLDFAST_ROOT_SECRET_KEY",
            hide_env_values = true,
            requires = "access_key",
            group = "secret"
        )]
        secret_key: Option<String>,
        /// A file of mode 0600 that holds the secret half; - is standard input.
        #[arg(long, value_name = "PATH", requires = "access_key", group = "secret")]
        secret_key_file: Option<PathBuf>,
        #[command(flatten)]
        config: ConfigArgs,
    },
}

/// A root credential from a pair of options.
pub(super) fn given(access_key: Option<&str>, secret_key: Option<&str>) -> CliResult<Option<Pair>> {
    match (access_key, secret_key) {
        (Some(access_key), Some(secret_key)) => Pair::given(access_key, secret_key)
            .map(Some)
            .map_err(|error| Failure::usage(anyhow::anyhow!("{}", error.message()))),
        _ => Ok(None),
    }
}

pub(super) async fn run(command: RootCommand, out: Output) -> CliResult {
    let RootCommand::Create { access_key, secret_key, secret_key_file, config } = command;
    let config = config.load(Overrides::default())?.config;
    let secret_key = super::secret::secret(secret_key, secret_key_file)?;
    let root = match given(access_key.as_deref(), secret_key.as_ref().map(|secret| secret.as_str()))? {
        Some(pair) => Root::Given(pair),
        None => Root::Generate,
    };
    let pair = assemble::prepare_root(&config, root).await?;
    let value = serde_json::json!({ "access_key": pair.access_key, "secret_key": *pair.secret_key });
    Ok(out.print(&value, |_| format!("access key: {}\nsecret key: {}\n", pair.access_key, pair.secret_key.as_str()))?)
}
