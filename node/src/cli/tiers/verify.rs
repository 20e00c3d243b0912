//! `holdfast tier verify`: reads a tier page by page.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use holdfast_protocol::admin::{TierStatus, VerifiedTier, VerifyTier};

use super::super::client::ClientArgs;
use super::super::output::{Output, bytes, table};
use super::super::{CliResult, Exit, Failure};
use super::moves::{bar, until_interrupted};
use super::path;

/// Longer than the node lets one page take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(400);
/// Damage shown in text; all of it is in JSON and in the error log.
const SHOWN: usize = 50;

/// A share, written `1%` or `0.01`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Share(f64);

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.trim().strip_suffix('%') {
            Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
            None => text.trim().parse(),
        };
        match parsed {
            Ok(share) if share > 0.0 && share <= 1.0 => Ok(Self(share)),
            _ => Err("write a share above 0 and up to 1, such as 1% or 0.01".into()),
        }
    }
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("how much").required(true).args(["all", "sample"]))]
pub(in crate::cli) struct VerifyArgs {
    /// The tier.
    name: String,
    /// Read everything.
    #[arg(long)]
    all: bool,
    /// Read a random share of the contents, such as 1%.
    #[arg(long, value_name = "SHARE")]
    sample: Option<Share>,
    /// Which sample, to read one again or to go on with it [default: another one each time].
    #[arg(long, value_name = "N", requires = "sample")]
    seed: Option<u32>,
    /// Go on where an earlier command was interrupted, as it told.
    #[arg(long, value_name = "PLACE")]
    after: Option<String>,
    #[command(flatten)]
    client: ClientArgs,
}

pub(super) async fn run(args: VerifyArgs, out: Output) -> CliResult {
    let api = args.client.connect()?.with_timeout(ANSWER_TIMEOUT).without_reuse();
    let path = path(&args.name);
    let share = args.sample.map(|share| share.0);
    let seed = args.seed.unwrap_or_else(rand::random);
    let mut request = VerifyTier { sample: share, seed, after: args.after.clone(), bytes_max: None };
    let status: TierStatus = api.get(&format!("{path}/status")).await?;
    let held = status.tier.usage.unwrap_or_default();
    let expected = (held.bytes as f64 * share.unwrap_or(1.0)) as u64;
    let template = "{bar:30} {bytes} of about {total_bytes} checked, {bytes_per_sec}, {eta} left{msg}";
    let progress = bar(out, Some(expected), template)?;
    let path = format!("{path}/verify");
    let mut all = VerifiedTier::default();
    loop {
        let page = until_interrupted(|| api.post::<VerifiedTier>(&path, &request)).await;
        match page {
            Ok(page) => all.add(page),
            Err(failure) => {
                progress.finish_and_clear();
                // What was found until now is not lost.
                out.print(&all, text)?;
                let sample =
                    share.map_or_else(|| "--all".to_owned(), |share| format!("--sample {share} --seed {seed}"));
                let place = request.after.map_or_else(String::new, |after| format!(" --after {after}"));
                let error = failure.error.context(format!("not finished; go on with {sample}{place}"));
                return Err(Failure { exit: failure.exit, error });
            }
        }
        // What is stored meanwhile may make it more than was expected.
        progress.set_length(expected.max(all.bytes));
        progress.set_position(all.bytes);
        let wrong = all.damaged.len() + all.unread.len();
        progress.set_message(if wrong > 0 { format!("; {wrong} NOT GOOD") } else { String::new() });
        match &all.next {
            Some(next) => request.after = Some(next.clone()),
            None => break,
        }
    }
    progress.finish_and_clear();
    out.print(&all, text)?;
    match (all.damaged.len(), all.unread.len()) {
        (0, 0) => Ok(()),
        (0, unread) => fail(format!("{unread} contents could not be read: nothing is known about them")),
        (damaged, 0) => fail(format!("{damaged} contents are damaged: see `holdfast errors list --kind corruption`")),
        (damaged, unread) => fail(format!("{damaged} contents are damaged, {unread} could not be read")),
    }
}

fn fail(message: String) -> CliResult {
    Err(Failure { exit: Exit::Failed, error: anyhow::anyhow!(message) })
}

fn text(all: &VerifiedTier) -> String {
    let mut text = format!(
        "{} of {} contents checked, {}; {} damaged, {} could not be read\n",
        all.checked,
        all.contents,
        bytes(all.bytes),
        all.damaged.len(),
        all.unread.len()
    );
    if !all.damaged.is_empty() {
        let row = |damaged: &holdfast_protocol::admin::DamagedContent| {
            let size = bytes(damaged.size_bytes);
            [damaged.content.clone(), size, damaged.what.clone(), damaged.piece.clone(), damaged.detail.clone()]
        };
        text.push('\n');
        text.push_str(&table(
            ["CONTENT", "SIZE", "DAMAGE", "PIECE", "DETAIL"],
            all.damaged.iter().take(SHOWN).map(row),
        ));
    }
    if !all.unread.is_empty() {
        let row = |unread: &holdfast_protocol::admin::UnreadContent| [unread.content.clone(), unread.error.clone()];
        text.push('\n');
        text.push_str(&table(["NOT READ", "WHY"], all.unread.iter().take(SHOWN).map(row)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_is_a_number_or_percent() {
        assert_eq!("1%".parse::<Share>().unwrap(), Share(0.01));
        assert_eq!("0.5".parse::<Share>().unwrap(), Share(0.5));
        assert_eq!("100 %".parse::<Share>().unwrap(), Share(1.0));
        for text in ["0", "0%", "101%", "-1", "x", "NaN", ""] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }
}
