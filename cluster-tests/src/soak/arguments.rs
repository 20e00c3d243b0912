//! What the command line of the soak says.

use std::collections::BTreeSet;
use std::time::Duration;

use super::round::KINDS;
use super::{NODES_MAX, Plan};

/// What is printed for `--help`, before the kinds of faults.
const HELP: &str = "\
Random faults on a real cluster under load, for as long as one likes; docs/soak.md says what is done and checked.

usage: HOLDFAST_BIN=/path/to/holdfast soak [options]

  --seed N              which faults befall whom, and for how long (the time)
  --minutes N           for how long, rests and repairs included (5)
  --round SECONDS       of faults before everything has to heal (60)
  --nodes N             at the beginning, 3 to 6 (4)
  --faults KIND,KIND…   kinds of faults (all)
  --events              with a RocketMQ, to which nodes publish
  --logs DIR            where the logs of nodes are kept when something was wrong (soak-logs)
  --help                this

kinds of faults:";
/// The longest time that may be asked for, in seconds: ten years.
const TIME_MAX_S: u64 = 10 * 365 * 24 * 3600;

/// What is to be done.
#[derive(Debug)]
pub enum Command {
    /// A soak.
    Run(Plan),
    /// This is to be printed.
    Help(String),
}

/// Reads the arguments, without the program's own name; `seed` is for where none is given.
///
/// # Errors
/// Says in one line what is wrong.
pub fn parse(arguments: impl IntoIterator<Item = String>, seed: u64) -> Result<Command, String> {
    let mut plan = Plan {
        seed,
        length: Duration::from_secs(300),
        round: Duration::from_secs(60),
        nodes: 4,
        kinds: KINDS.to_vec(),
        events: false,
        logs: "soak-logs".into(),
    };
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--help" | "-h" => return Ok(Command::Help(format!("{HELP} {}", KINDS.join(", ")))),
            "--events" => {
                plan.events = true;
                continue;
            }
            "--seed" | "--minutes" | "--round" | "--nodes" | "--faults" | "--logs" => {}
            _ => return Err(format!("no argument is called `{argument}`; --help lists them")),
        }
        let value = arguments.next().ok_or_else(|| format!("{argument} wants a value"))?;
        let number = |least: u64, most: u64| match value.parse::<u64>() {
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            Ok(_) | Err(_) => Err(format!("{argument} wants a number from {least} to {most}, not `{value}`")),
        };
        match argument.as_str() {
            "--seed" => plan.seed = number(0, u64::MAX)?,
            "--minutes" => plan.length = Duration::from_secs(60 * number(0, TIME_MAX_S / 60)?),
            "--round" => plan.round = Duration::from_secs(number(1, TIME_MAX_S)?),
            // Three replicas need three nodes.
            "--nodes" => plan.nodes = number(3, NODES_MAX as u64)? as usize,
            "--faults" => plan.kinds = kinds(&value)?,
            _ => plan.logs = value.into(),
        }
    }
    plan.logs = plan.logs.join(plan.seed.to_string());
    Ok(Command::Run(plan))
}

fn kinds(value: &str) -> Result<Vec<&'static str>, String> {
    let known = |kind: &str| KINDS.into_iter().find(|known| *known == kind);
    let kinds: Result<BTreeSet<_>, _> = value
        .split(',')
        .map(|kind| {
            known(kind).ok_or_else(|| format!("no kind of fault is called `{kind}`; there are {}", KINDS.join(", ")))
        })
        .collect();
    kinds.map(|kinds| kinds.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(str::to_owned), 7)
    }

    fn plan(line: &str) -> Plan {
        match parsed(line) {
            Ok(Command::Run(plan)) => plan,
            other => panic!("`{line}` is {other:?}"),
        }
    }

    #[test]
    fn arguments_change_the_plan() {
        let plain = plan("");
        assert_eq!((plain.seed, plain.nodes, plain.events), (7, 4, false));
        assert_eq!((plain.kinds, plain.logs), (KINDS.to_vec(), "soak-logs/7".into()));
        let other = plan("--seed 9 --minutes 2 --round 10 --nodes 3 --faults rot,kill,rot --events --logs kept");
        assert_eq!((other.seed, other.nodes, other.events), (9, 3, true));
        assert_eq!((other.length, other.round), (Duration::from_secs(120), Duration::from_secs(10)));
        assert_eq!((other.kinds, other.logs), (vec!["kill", "rot"], "kept/9".into()));
    }

    #[test]
    fn wrong_arguments_are_told_in_one_line() {
        let lines = [
            "--seeds 1",
            "1",
            "--seed",
            "--seed x",
            "--seed -1",
            "--nodes 2",
            "--nodes 7",
            "--round 0",
            "--minutes 99999999999999999999",
            "--minutes 9999999999999",
            "--faults kil",
            "--faults",
            "--faults kill,",
        ];
        for line in lines {
            let told = parsed(line).err().unwrap_or_else(|| panic!("`{line}` is taken"));
            assert!(told.lines().count() == 1, "{line}: {told}");
        }
    }

    #[test]
    fn help_names_every_kind_and_nothing_runs() {
        let Ok(Command::Help(text)) = parsed("--seed 1 --help --nonsense") else { panic!("no help") };
        assert!(KINDS.iter().all(|kind| text.contains(kind)), "{text}");
    }
}
