//! Variables whose names begin like those of settings.
//!
//! A key that a section does not have is refused with the configuration. A name of which not even the section exists
//! may be a slip of the pen, or belong to something else that is called after holdfast. So nothing that runs is ended
//! for it: a node warns of it in its log and `holdfast config show` on standard error, and `holdfast config check` calls
//! it an error.

use std::collections::BTreeSet;
use std::fmt;

use clap::CommandFactory;

use super::client::ADMIN_TOKEN;
use super::{Cli, CliResult, PREFIX};
use crate::config;

/// Those of tests, which what they start inherits.
const OF_TESTS: [&str; 3] = ["HOLDFAST_TEST_", "HOLDFAST_SIM_", "HOLDFAST_BIN"];

/// What Kubernetes writes before the address of a service.
const LINK_SCHEMES: [&str; 3] = ["tcp://", "udp://", "sctp://"];

/// A variable that nothing reads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stray {
    name: String,
    /// What may have been meant.
    help: String,
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, help } = self;
        write!(f, "environment variable {name}: nothing reads a variable of this name\n  help: {help}")
    }
}

/// The variables of this process that nothing reads.
///
/// # Errors
/// When one that may be a setting is no text.
pub(super) fn strays() -> CliResult<Vec<Stray>> {
    let given = super::settings(std::env::vars_os())?;
    Ok(strays_among(given.iter().map(|(name, _)| name.as_str())))
}

/// Says in the log which variables nothing reads.
///
/// # Errors
/// As [`strays`].
pub(super) fn warn_of_strays() -> CliResult {
    for Stray { name, help } in strays()? {
        tracing::warn!(variable = name, help, "nothing reads an environment variable of this name");
    }
    Ok(())
}

fn strays_among<'a>(given: impl Iterator<Item = &'a str>) -> Vec<Stray> {
    let known = known();
    let is_known = |name: &str| known.contains(name) || OF_TESTS.iter().any(|of_tests| name.starts_with(of_tests));
    let strays = given.filter(|name| !is_known(name));
    strays.map(|name| Stray { name: name.to_owned(), help: help(name, &known) }).collect()
}

/// The names that the configuration and the commands know.
fn known() -> BTreeSet<String> {
    fn of_commands(command: &clap::Command, known: &mut BTreeSet<String>) {
        let names = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
        known.extend(names.map(str::to_owned));
        for command in command.get_subcommands() {
            of_commands(command, known);
        }
    }
    let mut known: BTreeSet<String> = config::variables().into_iter().collect();
    known.insert(ADMIN_TOKEN.to_owned());
    of_commands(&Cli::command(), &mut known);
    known
}

fn help(name: &str, known: &BTreeSet<String>) -> String {
    let names = || known.iter().map(String::as_str);
    // The key without its section.
    let key = name.strip_prefix(PREFIX).map(|key| format!("_{key}"));
    let of_key = || names().find(|known| key.as_ref().is_some_and(|key| known.ends_with(key.as_str())));
    match config::nearest(name, names()).or_else(of_key) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => "settings are HOLDFAST_<SECTION>_<KEY>; docs/configuration.md names all of them".to_owned(),
    }
}

/// Whether Kubernetes made a variable: each container is told of each service beside it, and one that is called
/// `holdfast` or `holdfast-s3` gives names like those of settings.
pub(super) fn is_service_link(name: &str, value: &str) -> bool {
    let is_of_port = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.split("_PORT_").skip(1).any(is_of_port)
        || (name.ends_with("_PORT") && LINK_SCHEMES.iter().any(|scheme| value.starts_with(scheme)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn helps(names: &[&str]) -> Vec<String> {
        strays_among(names.iter().copied()).into_iter().map(|stray| stray.help).collect()
    }

    #[test]
    fn a_name_that_nothing_reads_is_told_with_the_one_that_may_be_meant() {
        for (wrong, meant) in [
            ("HOLDFAST_METADTA_URL", "HOLDFAST_METADATA_URL"),
            ("HOLDFAST_METDATA__URL", "HOLDFAST_METADATA_URL"),
            ("HOLDFAST_CLUSTRE_ZOOKEEPER", "HOLDFAST_CLUSTER_ZOOKEEPER"),
            ("HOLDFAST_DISKS", "HOLDFAST_NODE_DISKS"),
            ("HOLDFAST_ROOT_ACESS_KEY", "HOLDFAST_ROOT_ACCESS_KEY"),
            ("HOLDFAST_ADMIN_TOKEN_FIL", "HOLDFAST_ADMIN_TOKEN_FILE"),
            ("HOLDFAST_DATADIR", "HOLDFAST_DATA_DIR"),
        ] {
            assert_eq!(helps(&[wrong]), [format!("did you mean `{meant}`?")], "{wrong}");
        }
        let help = helps(&["HOLDFAST_OF_SOMETHING_ELSE_ENTIRELY"]);
        assert!(help.len() == 1 && help[0].contains("docs/configuration.md"), "{help:?}");
    }

    #[test]
    fn what_is_read_or_belongs_to_tests_is_no_stray() {
        let read = [
            "HOLDFAST_CONFIG",
            "HOLDFAST_DATA_DIR",
            "HOLDFAST_S3_ADDR",
            "HOLDFAST_ADMIN_TOKEN",
            "HOLDFAST_ADMIN_TOKEN_FILE",
            "HOLDFAST_ACCESS_KEY",
            "HOLDFAST_SECRET_KEY",
            "HOLDFAST_ENDPOINT",
            "HOLDFAST_ROOT_ACCESS_KEY",
            "HOLDFAST_ROOT_SECRET_KEY",
            "HOLDFAST_TEST_SEED",
            "HOLDFAST_BIN",
        ];
        assert!(helps(&read).is_empty(), "{:?}", strays_among(read.into_iter()));
        assert!(strays_among(known().iter().map(String::as_str)).is_empty());
    }

    #[test]
    fn what_kubernetes_sets_is_no_setting_and_no_setting_looks_like_it() {
        for (name, value) in [
            ("HOLDFAST_SERVICE_HOST", "10.0.0.1"),
            ("HOLDFAST_S3_SERVICE_PORT", "9000"),
            ("HOLDFAST_S3_SERVICE_PORT_HTTP", "9000"),
            ("HOLDFAST_S3_PORT", "tcp://10.0.0.1:9000"),
            ("HOLDFAST_S3_PORT_9000_TCP_ADDR", "10.0.0.1"),
        ] {
            assert!(is_service_link(name, value), "{name}");
        }
        assert!(!is_service_link("HOLDFAST_S3_PORT", "9000"), "somebody means the port");
        assert!(known().iter().all(|name| !is_service_link(name, "tcp://10.0.0.1:9000")));
    }
}
