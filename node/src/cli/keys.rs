//! `holdfast key …`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use holdfast_protocol::admin::{CreatedKey, Key, NewKey, RotateKey, SetEnabled};
use zeroize::Zeroizing;

use super::client::{ClientArgs, segment};
use super::output::{Output, table, timestamp};
use super::secret::secret;
use super::{CliResult, Failure};

/// The secret half of a given pair, where the list of processes does not show it.
const SECRET_KEY: &str = "HOLDFAST_SECRET_KEY";

#[derive(Subcommand)]
pub(super) enum KeyCommand {
    /// Make a key for a user, or import a given pair. The secret is told this once.
    #[command(after_help = "Examples:
  holdfast key create alice --description laptop
  holdfast key create alice --access-key AKEXAMPLE --secret-key-file /root/secret
  printf %s \"$SECRET\" | holdfast key create alice --access-key AKEXAMPLE --secret-key-file -")]
    Create(NewKeyArgs),
    /// Import a pair that exists elsewhere (the same as create with a given pair).
    #[command(after_help = "Example:
  printf %s \"$SECRET\" | holdfast key import alice --access-key AKEXAMPLE --secret-key-file -")]
    Import(NewKeyArgs),
    /// List keys, of one user or of all.
    List {
        /// Only this user's.
        #[arg(long)]
        user: Option<String>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show one key, without its secret.
    Show {
        /// The access key.
        access_key: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Let a disabled key work again.
    Enable {
        /// The access key.
        access_key: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Refuse a key from the next request on.
    Disable {
        /// The access key.
        access_key: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Make a new key for the same user and disable the old one.
    Rotate {
        /// The access key.
        access_key: String,
        /// Leave the old key enabled, to be disabled later.
        #[arg(long)]
        keep_old: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Remove a key.
    Delete {
        /// The access key.
        access_key: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Args)]
pub(super) struct NewKeyArgs {
    /// The user that the key speaks for.
    user: String,
    /// A note, to know the key by.
    #[arg(long, default_value = "")]
    description: String,
    /// The public half of a given pair.
    #[arg(long)]
    access_key: Option<String>,
    /// The secret half of a given pair. Everybody on this machine can read it here, in the list of processes: better
    /// use --secret-key-file, or the variable HOLDFAST_SECRET_KEY.
    #[arg(long, requires = "access_key", group = "secret")]
    secret_key: Option<String>,
    /// A file of mode 0600 that holds the secret half; - is standard input.
    #[arg(long, value_name = "PATH", requires = "access_key", group = "secret")]
    secret_key_file: Option<PathBuf>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(command: KeyCommand, out: Output) -> CliResult {
    match command {
        KeyCommand::Create(args) => create(args, out).await?,
        KeyCommand::Import(args) => {
            if args.access_key.is_none() {
                return Err(Failure::usage(anyhow::anyhow!("give the pair with --access-key and --secret-key-file")));
            }
            create(args, out).await?;
        }
        KeyCommand::List { user, client } => {
            let keys: Vec<Key> = client.connect()?.list("/keys", user.as_deref()).await?;
            out.print(&keys, |keys| rows(keys))?;
        }
        KeyCommand::Show { access_key, client } => {
            let key: Key = client.connect()?.get(&format!("/keys/{}", segment(&access_key))).await?;
            out.print(&key, |key| rows(std::slice::from_ref(key)))?;
        }
        KeyCommand::Enable { access_key, client } => set_enabled(&access_key, true, &client, out).await?,
        KeyCommand::Disable { access_key, client } => set_enabled(&access_key, false, &client, out).await?,
        KeyCommand::Rotate { access_key, keep_old, client } => {
            let path = format!("/keys/{}/rotate", segment(&access_key));
            let created: CreatedKey = client.connect()?.post(&path, &RotateKey { keep_old }).await?;
            out.print(&created, created_text)?;
        }
        KeyCommand::Delete { access_key, client } => {
            client.connect()?.delete(&format!("/keys/{}", segment(&access_key))).await?;
            out.print(&serde_json::json!({ "deleted": access_key }), |_| format!("key {access_key} deleted\n"))?;
        }
    }
    Ok(())
}

async fn create(args: NewKeyArgs, out: Output) -> CliResult {
    let is_given = args.access_key.is_some();
    let variable = std::env::var(SECRET_KEY).ok();
    let secret_key = secret_of_pair(is_given, secret(args.secret_key, args.secret_key_file)?, variable)?;
    let secret_key = secret_key.map(|secret| secret.to_string());
    let new = NewKey { user: args.user, description: args.description, access_key: args.access_key, secret_key };
    let created: CreatedKey = args.client.connect()?.post("/keys", &new).await?;
    Ok(out.print(&created, |created| if is_given { imported_text(created) } else { created_text(created) })?)
}

/// The secret half of a pair, if one is given. The variable is also that of `holdfast dev` and of `holdfast bench`, so
/// it counts only where the public half is named: else whoever tries those would be told that a new key exists.
fn secret_of_pair(
    is_given: bool,
    secret: Option<Zeroizing<String>>,
    variable: Option<String>,
) -> CliResult<Option<Zeroizing<String>>> {
    if !is_given {
        return Ok(None);
    }
    match secret.or_else(|| variable.filter(|value| !value.is_empty()).map(Zeroizing::new)) {
        Some(secret) => Ok(Some(secret)),
        None => Err(Failure::usage(anyhow::anyhow!(
            "--access-key names a pair: give its secret half with --secret-key-file, or in {SECRET_KEY}"
        ))),
    }
}

async fn set_enabled(access_key: &str, enabled: bool, client: &ClientArgs, out: Output) -> CliResult {
    let path = format!("/keys/{}", segment(access_key));
    let key: Key = client.connect()?.patch(&path, &SetEnabled { enabled }).await?;
    let state = if enabled { "enabled" } else { "disabled" };
    Ok(out.print(&key, |key| format!("key {} {state}\n", key.access_key))?)
}

fn created_text(created: &CreatedKey) -> String {
    format!(
        "access key: {}\nsecret key: {}\nuser:       {}\n\nThe secret is shown this once: keep it.\n",
        created.key.access_key, created.secret_key, created.key.user
    )
}

/// Who imports a pair has its secret, which need not come onto a screen or into the log of a script.
fn imported_text(created: &CreatedKey) -> String {
    format!("access key {} of {} is imported with the given secret\n", created.key.access_key, created.key.user)
}

fn rows(keys: &[Key]) -> String {
    let row = |key: &Key| {
        let state = if key.enabled { "enabled" } else { "disabled" };
        [key.access_key.clone(), key.user.clone(), state.into(), timestamp(key.created_ms), key.description.clone()]
    };
    table(["ACCESS KEY", "USER", "STATE", "CREATED", "DESCRIPTION"], keys.iter().map(row))
}

#[cfg(test)]
mod tests {
    use super::super::Exit;
    use super::*;

    #[test]
    fn a_secret_in_the_environment_counts_only_with_the_key_that_it_is_of() {
        let of = |is_given, secret: Option<&str>, variable: Option<&str>| {
            let secret = secret.map(|secret| Zeroizing::new(secret.to_owned()));
            secret_of_pair(is_given, secret, variable.map(str::to_owned)).map(|secret| secret.map(|s| s.to_string()))
        };
        assert_eq!(of(false, None, Some("of dev")).unwrap(), None);
        assert_eq!(of(true, None, Some("variable")).unwrap().as_deref(), Some("variable"));
        assert_eq!(of(true, Some("file"), Some("variable")).unwrap().as_deref(), Some("file"));
        for none in [None, Some("")] {
            let failure = of(true, None, none).unwrap_err();
            assert!(failure.exit == Exit::Usage && failure.error.to_string().contains("--secret-key-file"));
        }
    }
}
