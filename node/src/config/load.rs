//! Reads the layers of configuration and says exactly where one is wrong.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::{Config, check};

/// Used when it exists in the working directory.
pub const WORKING_FILE: &str = "holdfast.toml";

/// Used when it exists and there is none in the working directory.
pub const SYSTEM_FILE: &str = "/etc/holdfast/holdfast.toml";

/// Keys that have no default and so do not appear in the serialised default.
const OPTIONAL_KEYS: [(&str, &str); 19] = [
    ("s3", "tls_cert"),
    ("s3", "tls_key"),
    ("admin", "token_file"),
    ("cluster", "zookeeper_auth_file"),
    ("cluster", "advertise_peer"),
    ("cluster", "advertise_s3"),
    ("cluster", "advertise_admin"),
    ("metadata", "password_file"),
    ("metadata", "tls_ca"),
    ("redis", "user"),
    ("redis", "password_file"),
    ("redis", "tls_ca"),
    ("cache", "password_file"),
    ("cache", "sentinel_password_file"),
    ("cache", "tls_ca"),
    ("events", "access_key"),
    ("events", "secret_key_file"),
    ("events", "tls_ca"),
    ("events", "tls_server_name"),
];

/// Variables that do not follow the pattern `HOLDFAST_<SECTION>_<KEY>`.
const ALIASES: [(&str, &str, &str); 1] = [("HOLDFAST_DATA_DIR", "node", "data_dir")];

/// What flags set, before everything else.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--data-dir`
    pub data_dir: Option<PathBuf>,
    /// `--s3-addr`
    pub s3_addr: Option<SocketAddr>,
    /// `--admin-addr`
    pub admin_addr: Option<SocketAddr>,
}

/// A configuration that is not usable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file or the variable at fault.
    pub source: String,
    /// Line and column in the file, from 1.
    pub position: Option<(usize, usize)>,
    /// What is wrong.
    pub message: String,
    /// How to put it right.
    pub hint: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if let Some((line, column)) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  help: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}

/// A configuration and where it was read.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values in force.
    pub config: Config,
    /// The file, if there was one.
    pub file: Option<PathBuf>,
}

/// Reads `file` (or the first of the usual places that exists), then `environment`, then `overrides`, and checks the result.
///
/// # Errors
/// Every fault found, in order; syntax errors come alone.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    overrides: &Overrides,
) -> Result<Loaded, Vec<ConfigError>> {
    let file = match file {
        Some(file) => Some(file.to_owned()),
        None => usual_file(Path::new(WORKING_FILE), Path::new(SYSTEM_FILE)),
    };
    let text = match &file {
        Some(file) => read(file).map_err(|error| vec![error])?,
        None => String::new(),
    };
    let name = file.as_ref().map_or_else(|| "configuration".to_owned(), |file| file.display().to_string());
    let (config, sources) = merge(&name, &text, environment)?;
    let config = apply(config, overrides);
    let faults: Vec<ConfigError> = check::faults(&config)
        .into_iter()
        .map(|fault| {
            let variable = sources.iter().find(|(section, key, _)| (section.as_str(), key.as_str()) == fault.key);
            let position = position_of(&text, fault.key.0, fault.key.1);
            let (source, position) = match (variable, position) {
                (Some((_, _, variable)), _) => (format!("environment variable {variable}"), None),
                (None, None) => (format!("{name}: [{}] {}", fault.key.0, fault.key.1), None),
                (None, position) => (name.clone(), position),
            };
            ConfigError {
                source,
                position,
                message: format!("{}.{}: {}", fault.key.0, fault.key.1, fault.message),
                hint: Some(fault.hint),
            }
        })
        .collect();
    if faults.is_empty() { Ok(Loaded { config, file }) } else { Err(faults) }
}

/// The file that is used when none is named. Where nobody can tell whether there is one for the whole system, as in a directory
/// that this user may not look into, that is for reading it to say: a node is not to start with the defaults instead.
fn usual_file(working: &Path, system: &Path) -> Option<PathBuf> {
    if working.is_file() {
        return Some(working.to_owned());
    }
    let is_there = match std::fs::metadata(system) {
        Ok(about) => about.is_file(),
        Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
    };
    is_there.then(|| system.to_owned())
}

/// Which section and key each variable set.
type Sources = Vec<(String, String, String)>;

fn merge(
    name: &str,
    text: &str,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<(Config, Sources), Vec<ConfigError>> {
    // Typed first, on the text itself: only this gives errors with a position.
    toml::from_str::<Config>(text).map_err(|error| vec![from_toml(name, text, &error)])?;
    let mut table: Table = toml::from_str(text).map_err(|error| vec![from_toml(name, text, &error)])?;
    let known = known_keys();
    let mut sources = Sources::new();
    let mut faults = Vec::new();
    let mut environment: Vec<_> = environment.into_iter().collect();
    environment.sort();
    for (variable, text) in environment {
        let target = match ALIASES.iter().find(|(alias, ..)| *alias == variable) {
            Some((_, section, key)) => known.iter().find(|(s, k, _)| (s.as_str(), k.as_str()) == (*section, *key)),
            None => known.iter().find(|(s, k, _)| variable_of(s, k) == variable),
        };
        let Some((section, key, default)) = target else {
            if let Some(section) = section_of(&variable, &known) {
                let keys: Vec<String> =
                    known.iter().filter(|(s, ..)| *s == section).map(|(s, k, _)| variable_of(s, k)).collect();
                faults.push(ConfigError {
                    source: format!("environment variable {variable}"),
                    position: None,
                    message: "there is no such setting".into(),
                    hint: Some(suggest(&variable, keys.iter().map(String::as_str))),
                });
            }
            continue;
        };
        let entry = table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(entry) = entry else { continue };
        let before = entry.insert(key.clone(), value_like(default.as_ref(), &text));
        if let Err(error) = Config::deserialize(Value::Table(table.clone())) {
            faults.push(ConfigError {
                source: format!("environment variable {variable}"),
                position: None,
                message: error.message().to_owned(),
                hint: default.as_ref().map(|default| format!("the default is {default}")),
            });
            // Goes on with what was there, to find the other faults too.
            if let Some(Value::Table(entry)) = table.get_mut(section) {
                match before {
                    Some(before) => entry.insert(key.clone(), before),
                    None => entry.remove(key),
                };
            }
        } else {
            sources.push((section.clone(), key.clone(), variable));
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let config = Config::deserialize(Value::Table(table)).map_err(|error| vec![from_toml(name, text, &error)])?;
    Ok((config, sources))
}

/// The text of a file.
fn read(file: &Path) -> Result<String, ConfigError> {
    let bytes = std::fs::read(file).map_err(|error| ConfigError {
        source: file.display().to_string(),
        position: None,
        message: format!("read configuration file: {error}"),
        hint: Some("name a file that this user can read with --config or HOLDFAST_CONFIG".into()),
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        ConfigError {
            source: file.display().to_string(),
            position: Some(line_and_column(&String::from_utf8_lossy(good), good.len())),
            message: "what stands here is not UTF-8".into(),
            hint: Some("save the file as UTF-8".into()),
        }
    })
}

fn apply(mut config: Config, overrides: &Overrides) -> Config {
    if let Some(dir) = &overrides.data_dir {
        config.node.data_dir.clone_from(dir);
    }
    if let Some(addr) = overrides.s3_addr {
        config.s3.addr = addr;
    }
    if let Some(addr) = overrides.admin_addr {
        config.admin.addr = addr;
    }
    config
}

/// Every key with its default.
fn known_keys() -> Vec<(String, String, Option<Value>)> {
    let defaults = Table::try_from(Config::default()).expect("the default configuration is representable");
    let mut known = Vec::new();
    for (section, keys) in defaults {
        if let Value::Table(keys) = keys {
            known.extend(keys.into_iter().map(|(key, value)| (section.clone(), key, Some(value))));
        }
    }
    known.extend(OPTIONAL_KEYS.map(|(section, key)| (section.to_owned(), key.to_owned(), None)));
    known
}

fn variable_of(section: &str, key: &str) -> String {
    format!("HOLDFAST_{}_{}", section.to_uppercase(), key.to_uppercase())
}

/// The section that a variable means, if it means one.
fn section_of(variable: &str, known: &[(String, String, Option<Value>)]) -> Option<String> {
    // Not settings of the node but of commands.
    if variable.starts_with("HOLDFAST_ADMIN_TOKEN") || variable.starts_with("HOLDFAST_ADMIN_URL") {
        return None;
    }
    known.iter().map(|(s, ..)| s).find(|s| variable.starts_with(&variable_of(s, ""))).cloned()
}

/// A variable's text as a value of the same type as the default.
fn value_like(default: Option<&Value>, text: &str) -> Value {
    match default {
        Some(Value::Integer(_)) => text.trim().parse().map_or_else(|_| Value::String(text.into()), Value::Integer),
        Some(Value::Boolean(_)) => text.trim().parse().map_or_else(|_| Value::String(text.into()), Value::Boolean),
        Some(Value::Array(_)) => Value::Array(
            text.split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Value::String(item.into()))
                .collect(),
        ),
        _ => Value::String(text.into()),
    }
}

fn from_toml(name: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let message = error.message().to_owned();
    let hint = hint_for(&message);
    ConfigError {
        source: name.to_owned(),
        position: error.span().map(|span| line_and_column(text, span.start)),
        message,
        hint,
    }
}

/// How to put a reader's error right.
fn hint_for(message: &str) -> Option<String> {
    if message.contains("unknown field") {
        let mut quoted = message.split('`').skip(1).step_by(2);
        let wrong = quoted.next()?;
        return Some(suggest(wrong, quoted));
    }
    if message.contains("socket address") {
        return Some("write an address and a port, such as \"127.0.0.1:9000\"".into());
    }
    if message.contains("expected u32") || message.contains("expected u64") {
        return Some("write a whole number, without quotes and without a sign".into());
    }
    if message.contains("expected a string") {
        return Some("write it in quotes".into());
    }
    message.contains("duplicate key").then(|| "a section or key may appear once: merge them".into())
}

/// The nearest of the names that exist, or all of them.
fn suggest<'a>(wrong: &str, existing: impl Iterator<Item = &'a str>) -> String {
    let existing: Vec<&str> = existing.collect();
    let nearest = existing.iter().map(|name| (distance(wrong, name), *name)).min();
    match nearest {
        Some((distance, name)) if distance <= 3 => format!("did you mean `{name}`?"),
        _ => format!("it can be one of: {}", existing.join(", ")),
    }
}

/// Edits between two names (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replace = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(at)];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Where the value of a key stands in the file.
fn position_of(text: &str, section: &str, key: &str) -> Option<(usize, usize)> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let (_, section) = document.get_ref().iter().find(|(name, _)| name.get_ref() == section)?;
    let (_, value) = section.get_ref().as_table()?.iter().find(|(name, _)| name.get_ref() == key)?;
    Some(line_and_column(text, value.span().start))
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::fuzz::{Target, damage};

    use super::*;

    fn load_text(text: &str, environment: &[(&str, &str)]) -> Result<Config, Vec<ConfigError>> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("holdfast.toml");
        std::fs::write(&file, text).unwrap();
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        load(Some(&file), environment, &Overrides::default()).map(|loaded| loaded.config)
    }

    fn the_fault(text: &str, environment: &[(&str, &str)]) -> ConfigError {
        let mut faults = load_text(text, environment).unwrap_err();
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults.remove(0)
    }

    #[test]
    fn flags_beat_environment_beats_file_beats_default() {
        let text = "[s3]\naddr = \"127.0.0.1:1\"\nregion = \"file\"\n";
        let config = load_text(text, &[("HOLDFAST_S3_REGION", "env"), ("HOLDFAST_LIMITS_READ_JOBS", "7")]).unwrap();
        assert_eq!((config.s3.region.as_str(), config.s3.addr.port()), ("env", 1));
        assert_eq!((config.limits.read_jobs, config.admin.addr.port()), (7, 9001));
        let flags = Overrides { s3_addr: Some("127.0.0.1:3".parse().unwrap()), ..Overrides::default() };
        assert_eq!(apply(config, &flags).s3.addr.port(), 3);
    }

    #[test]
    fn localhost_is_an_address_and_other_names_are_named_with_their_line() {
        let text = "[s3]\naddr = \"localhost:1\"\n[cluster]\npeer_addr = \"localhost:2\"\n";
        let config = load_text(text, &[("HOLDFAST_ADMIN_ADDR", "localhost:3")]).unwrap();
        assert_eq!(config.s3.addr.to_string(), "127.0.0.1:1");
        assert_eq!(config.cluster.peer_addr.to_string(), "127.0.0.1:2");
        assert_eq!(config.admin.addr.to_string(), "127.0.0.1:3");
        let fault = the_fault("[s3]\n\naddr = \"node1:9000\"\n", &[]);
        assert_eq!(fault.position.unwrap().0, 3, "{fault}");
        assert!(fault.message.contains("node1:9000"), "{fault}");
    }

    #[test]
    fn lists_and_aliases_come_from_the_environment() {
        let config = load_text(
            "",
            &[("HOLDFAST_NODE_DISKS", "/a, /b"), ("HOLDFAST_DATA_DIR", "/data"), ("HOLDFAST_ACCESS_KEY", "x")],
        )
        .unwrap();
        assert_eq!(config.node.disks, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(config.node.data_dir, PathBuf::from("/data"));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_a_suggestion() {
        let fault = the_fault("[s3]\nregion = \"x\"\nadr = \"127.0.0.1:9000\"\n", &[]);
        assert_eq!(fault.position, Some((3, 1)));
        assert_eq!(fault.hint.unwrap(), "did you mean `addr`?");
    }

    #[test]
    fn a_wrong_unit_is_named_with_its_line() {
        let fault = the_fault("[limits]\n\nqueue_wait = \"10 parsec\"\n", &[]);
        assert_eq!(fault.position.unwrap().0, 3);
        assert!(fault.message.contains("10 parsec"), "{fault}");
    }

    #[test]
    fn a_level_with_a_slip_of_the_pen_does_not_silence_the_log() {
        for wrong in ["warning", "inf", "info,holdfast_storage", "a=loud"] {
            let fault = the_fault(&format!("[log]\n\nlevel = \"{wrong}\"\n"), &[]);
            assert_eq!(fault.position.map(|(line, _)| line), Some(3), "{wrong}: {fault}");
        }
        for right in ["off", "WARN", "info,holdfast_storage=debug", "warn,holdfast=info", "info,[s3_request]=trace"] {
            assert!(load_text("", &[("HOLDFAST_LOG_LEVEL", right)]).is_ok(), "{right}");
        }
    }

    #[test]
    fn a_value_of_another_type_is_told_how_to_be_written() {
        for (text, hint) in [("[limits]\nread_jobs = \"5\"\n", "whole number"), ("[s3]\nregion = 5\n", "in quotes")] {
            let fault = the_fault(text, &[]);
            assert!(fault.position.is_some() && fault.hint.as_ref().is_some_and(|told| told.contains(hint)), "{fault}");
        }
    }

    #[test]
    fn a_value_out_of_range_is_named_with_its_line() {
        let fault = the_fault("[limits]\nread_jobs = 0\n", &[]);
        assert_eq!(fault.position, Some((2, 13)));
        assert!(fault.hint.is_some());
    }

    #[test]
    fn a_cluster_without_metadata_is_named_with_its_line() {
        let fault = the_fault("[cluster]\nzookeeper = \"127.0.0.1:2181/holdfast\"\n", &[]);
        assert_eq!(fault.position, Some((2, 13)), "{fault}");
        assert!(fault.hint.as_ref().unwrap().contains("metadata.url"), "{fault}");
        let fault = the_fault("[metadata]\nurl = \"mysql://u@h/d\"\n", &[]);
        assert_eq!(fault.position.unwrap().0, 2, "{fault}");
        assert!(fault.hint.as_ref().unwrap().contains("cluster.zookeeper"), "{fault}");
    }

    #[test]
    fn an_address_that_nobody_can_reach_is_refused() {
        let cluster =
            "[metadata]\nurl = \"mysql://u@h/d\"\n[cluster]\nzookeeper = \"h:1/x\"\npeer_addr = \"0.0.0.0:9002\"\n";
        let fault = the_fault(cluster, &[]);
        assert!(fault.message.starts_with("cluster.peer_addr"), "{fault}");
        let told = format!("{cluster}advertise_peer = \"node1.example:9002\"\n");
        assert!(load_text(&told, &[]).unwrap().cluster.is_on());
        let fault = the_fault(&format!("{cluster}advertise_peer = \"node1\"\n"), &[]);
        assert!(fault.message.starts_with("cluster.advertise_peer"), "{fault}");
    }

    #[test]
    fn a_password_in_the_url_is_refused() {
        let text = "[cluster]\nzookeeper = \"h:1/x\"\n[metadata]\nurl = \"mysql://u:secret@h/d\"\n";
        let fault = the_fault(text, &[]);
        assert!(fault.hint.as_ref().unwrap().contains("password_file"), "{fault}");
    }

    #[test]
    fn a_ca_that_would_check_nothing_is_refused() {
        let text = "[cluster]\nzookeeper = \"h:1/x\"\n[metadata]\nurl = \"mysql://u@h/d\"\ntls_ca = \"/ca.pem\"\n";
        let fault = the_fault(text, &[]);
        assert!(fault.hint.as_ref().unwrap().contains("verify-identity"), "{fault}");
        assert!(load_text(&format!("{text}tls = \"verify-ca\"\n"), &[]).is_ok());
    }

    #[test]
    fn blocks_of_addresses_are_checked() {
        let fault = the_fault("[limits]\nconnections_exempt = [\"10.0.0.0/8\", \"balancer\"]\n", &[]);
        assert_eq!(fault.position.unwrap().0, 2, "{fault}");
        let config = load_text("", &[("HOLDFAST_LIMITS_CONNECTIONS_EXEMPT", "10.0.0.0/8, fd00::/8")]).unwrap();
        assert_eq!(config.limits.connections_exempt, ["10.0.0.0/8", "fd00::/8"]);
        assert_eq!(config.limits.connections_of_address(), 2_500);
        let config = load_text("[limits]\nconnections = 3\n", &[]).unwrap();
        assert_eq!(config.limits.connections_of_address(), 1);
    }

    #[test]
    fn a_faulty_variable_is_named() {
        let fault = the_fault("", &[("HOLDFAST_S3_ADDR", "nowhere")]);
        assert_eq!(fault.source, "environment variable HOLDFAST_S3_ADDR");
        let fault = the_fault("", &[("HOLDFAST_S3_REGON", "x")]);
        assert_eq!(fault.hint.unwrap(), "did you mean `HOLDFAST_S3_REGION`?");
        let fault = the_fault("", &[("HOLDFAST_LIMITS_WRITE_JOBS", "0")]);
        assert_eq!(fault.source, "environment variable HOLDFAST_LIMITS_WRITE_JOBS");
    }

    #[test]
    fn a_system_file_that_cannot_be_looked_at_is_not_taken_for_absent() {
        let dir = tempfile::tempdir().unwrap();
        let (working, system) = (dir.path().join("working.toml"), dir.path().join("system.toml"));
        assert_eq!(usual_file(&working, &system), None);
        std::fs::write(&system, "").unwrap();
        assert_eq!(usual_file(&working, &system).as_deref(), Some(&*system));
        assert_eq!(usual_file(&working, &system.join("below")), None, "there is nothing below a file");
        // Whoever runs the tests may look everywhere: a loop of links is what nobody can follow.
        let around = dir.path().join("around");
        std::os::unix::fs::symlink(&around, &around).unwrap();
        assert_eq!(usual_file(&working, &around).as_deref(), Some(&*around));
        std::fs::write(&working, "").unwrap();
        assert_eq!(usual_file(&working, &system).as_deref(), Some(&*working));
    }

    #[test]
    fn bytes_that_are_no_text_are_named_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("holdfast.toml");
        std::fs::write(&file, b"[s3]\nregion = \"\xff\"\n").unwrap();
        let faults = load(Some(&file), [], &Overrides::default()).map(|loaded| loaded.config).unwrap_err();
        assert_eq!(faults[0].position, Some((2, 11)), "{faults:?}");
    }

    #[test]
    fn syntax_errors_have_a_position() {
        assert_eq!(the_fault("[s3]\nregion = \n", &[]).position.unwrap().0, 2);
    }

    #[test]
    fn damaged_configurations_are_refused_with_a_place_in_them() {
        fn body(bytes: &[u8]) {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            match merge("file", text, [("HOLDFAST_S3_REGION".to_owned(), text.to_owned())]) {
                Ok((config, _)) => {
                    for fault in check::faults(&config) {
                        position_of(text, fault.key.0, fault.key.1);
                    }
                    // What was read is written, and read as the same.
                    let again: Config = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
                    assert_eq!(again, config);
                }
                Err(faults) => {
                    for (line, column) in faults.iter().filter_map(|fault| fault.position) {
                        assert!(line <= text.matches('\n').count() + 1 && column <= text.len() + 1, "{line}:{column}");
                    }
                }
            }
        }
        fn seeds() -> Vec<Vec<u8>> {
            let small = "[node]\ndata_dir = \"/d\u{e9}\"\ndisks = [\"/a\", '/b']\n[limits]\nread_jobs = 7 # so many\n\
                         queue_wait = \"10 s\"\ninflight_bytes = \"64 MiB\"\n[cluster]\nzookeeper = \"h:1,g:2/x\"\n\
                         advertise_peer = \"[::1]:9002\"\n[metadata]\nurl = \"mysql://u@h/d\"\n[log]\nlevel = \"info,a=debug\"\n";
            vec![small.into(), include_bytes!("../../../holdfast.example.toml").to_vec()]
        }
        damage::run(&[Target { name: "configuration", body, seeds }], 500);
    }

    #[test]
    fn the_example_shows_every_key_with_its_default() {
        let text = include_str!("../../../holdfast.example.toml");
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(config, Config::default());
        for (section, key, _) in known_keys() {
            let commented = text.contains(&format!("\n# {key} ="));
            assert!(position_of(text, &section, &key).is_some() || commented, "{section}.{key} is not in the example");
        }
    }

    #[test]
    fn the_manual_names_every_key() {
        let text = include_str!("../../../docs/configuration.md");
        for (section, key, _) in known_keys() {
            assert!(text.contains(&format!("`{section}.{key}`")), "{section}.{key} is not in the manual");
        }
    }
}
