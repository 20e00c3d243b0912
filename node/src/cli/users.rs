//! `holdfast user …`

use clap::Subcommand;
use holdfast_protocol::admin::{NewUser, SetEnabled, User};

use super::CliResult;
use super::client::{ClientArgs, segment};
use super::output::{Output, table, timestamp};

#[derive(Subcommand)]
pub(super) enum UserCommand {
    /// Add a user.
    #[command(after_help = "Example:\n  holdfast user create alice && holdfast key create alice")]
    Create {
        /// 1 to 64 letters, digits and _ . - @ +
        name: String,
        /// May use every bucket.
        #[arg(long)]
        admin: bool,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// List users.
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Show one user.
    Show {
        /// The user.
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Let a disabled user's keys work again.
    Enable {
        /// The user.
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Refuse all keys of a user from the next request on.
    Disable {
        /// The user.
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Remove a user who owns no buckets, and the user's keys.
    Delete {
        /// The user.
        name: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

pub(super) async fn run(command: UserCommand, out: Output) -> CliResult {
    match command {
        UserCommand::Create { name, admin, client } => {
            let user: User = client.connect()?.post("/users", &NewUser { name, admin }).await?;
            out.print(&user, |user| format!("user {} created\n", user.name))?;
        }
        UserCommand::List { client } => {
            let users: Vec<User> = client.connect()?.list("/users", None).await?;
            out.print(&users, |users| rows(users))?;
        }
        UserCommand::Show { name, client } => {
            let user: User = client.connect()?.get(&format!("/users/{}", segment(&name))).await?;
            out.print(&user, |user| rows(std::slice::from_ref(user)))?;
        }
        UserCommand::Enable { name, client } => set_enabled(&name, true, &client, out).await?,
        UserCommand::Disable { name, client } => set_enabled(&name, false, &client, out).await?,
        UserCommand::Delete { name, client } => {
            client.connect()?.delete(&format!("/users/{}", segment(&name))).await?;
            out.print(&serde_json::json!({ "deleted": name }), |_| format!("user {name} deleted\n"))?;
        }
    }
    Ok(())
}

async fn set_enabled(name: &str, enabled: bool, client: &ClientArgs, out: Output) -> CliResult {
    let path = format!("/users/{}", segment(name));
    let user: User = client.connect()?.patch(&path, &SetEnabled { enabled }).await?;
    let state = if enabled { "enabled" } else { "disabled" };
    Ok(out.print(&user, |user| format!("user {} {state}\n", user.name))?)
}

fn rows(users: &[User]) -> String {
    let row = |user: &User| {
        let role = if user.admin { "admin" } else { "user" };
        let state = if user.enabled { "enabled" } else { "disabled" };
        [user.name.clone(), role.into(), state.into(), timestamp(user.created_ms)]
    };
    table(["NAME", "ROLE", "STATE", "CREATED"], users.iter().map(row))
}
