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

/// The most letters in which a name may be wrong so that it is still told which one was meant.
const SLIPS_MAX: usize = 3;

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

/// Reads `file` (or the first of the usual places that exists), then `environment`, then `overrides`, and checks the
/// result.
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

/// The file that is used when none is named. Where nobody can tell whether there is one for the whole system, as in a
/// directory that this user may not look into, that is for reading it to say: a node is not to start with the defaults
/// instead.
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

/// The name of every variable that sets something in the configuration.
pub fn variables() -> Vec<String> {
    let keys = known_keys().into_iter().map(|(section, key, _)| variable_of(&section, &key));
    keys.chain(ALIASES.map(|(alias, ..)| alias.to_owned())).collect()
}

fn variable_of(section: &str, key: &str) -> String {
    format!("HOLDFAST_{}_{}", section.to_uppercase(), key.to_uppercase())
}

/// The section that a variable means, if it means one.
fn section_of(variable: &str, known: &[(String, String, Option<Value>)]) -> Option<String> {
    // Not settings of the node but of commands.
    if variable.starts_with("HOLDFAST_ADMIN_TOKEN") {
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
    if message.contains("expected a string") || message.contains("expected path string") {
        return Some("write it in quotes".into());
    }
    if message.contains("expected a boolean") {
        return Some("write true or false, without quotes".into());
    }
    if message.contains("expected a sequence") {
        return Some("write a list, such as [\"one\", \"two\"]".into());
    }
    message.contains("duplicate key").then(|| "a section or key may appear once: merge them".into())
}

/// The nearest of the names that exist, or all of them.
fn suggest<'a>(wrong: &str, existing: impl Iterator<Item = &'a str>) -> String {
    let existing: Vec<&str> = existing.collect();
    match nearest(wrong, existing.iter().copied()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("it can be one of: {}", existing.join(", ")),
    }
}

/// The one of the names that exist which a wrong one is a slip of the pen of, if there is one.
pub fn nearest<'a>(wrong: &str, existing: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, name) = existing.map(|name| (distance(wrong, name), name)).min()?;
    (distance <= SLIPS_MAX).then_some(name)
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
mod tests;
