//! `holdfast config …`

use std::io::Write as _;
use std::path::PathBuf;

use clap::Subcommand;

use super::output::Output;
use super::{CliResult, ConfigArgs, Failure, variables};
use crate::config::Overrides;

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Check a configuration and name the line, or the environment variable, at fault.
    #[command(after_help = "A variable that begins with HOLDFAST_ and that nothing reads is at fault, too: a node only
warns of it. Example:
  holdfast config check /etc/holdfast/holdfast.toml")]
    Check {
        /// The file [default: the one that the node would use].
        file: Option<PathBuf>,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Print the values in force, from file, environment and defaults. There are no secrets in a configuration, only
    /// the names of files that hold them. Variables that nothing reads are told of on standard error.
    Show {
        #[command(flatten)]
        config: ConfigArgs,
    },
}

pub(super) fn run(command: ConfigCommand, out: Output) -> CliResult {
    match command {
        ConfigCommand::Check { file, mut config } => {
            config.config = file.or(config.config);
            let loaded = config.load(Overrides::default())?;
            let strays: Vec<String> = variables::strays()?.iter().map(ToString::to_string).collect();
            if !strays.is_empty() {
                return Err(Failure::usage(anyhow::anyhow!("{}", strays.join("\n"))));
            }
            let file = loaded.file.as_ref().map(|file| file.display().to_string());
            let value = serde_json::json!({ "ok": true, "file": file });
            let what = file.unwrap_or_else(|| "no file; environment and defaults".into());
            out.print(&value, |_| format!("{what}: good\n"))?;
        }
        ConfigCommand::Show { config } => {
            let loaded = config.load(Overrides::default())?;
            let text = toml::to_string(&loaded.config)?;
            for stray in variables::strays()? {
                // What is in force is shown, whether or not anybody can be told.
                drop(writeln!(std::io::stderr(), "warning: {stray}"));
            }
            out.print(&loaded.config, |_| text)?;
        }
    }
    Ok(())
}
