//! Random faults on a real cluster under load, for as long as one likes; `docs/soak.md` is its manual.
//!
//! ```sh
//! cargo build --release -p holdfast-node
//! HOLDFAST_BIN=$PWD/target/release/holdfast cargo run -p holdfast-cluster-tests --example soak -- --minutes 10
//! ```

#![allow(clippy::unwrap_used, reason = "as in tests")]

use std::time::Duration;

use holdfast_cluster_tests::soak::{Plan, round::KINDS, run};

const USAGE: &str =
    "soak [--seed N] [--minutes N] [--round SECONDS] [--nodes N] [--faults KIND,KIND…] [--events] [--logs DIR]";

fn main() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut plan = Plan {
        seed: now.as_nanos() as u64 % 1_000_000_000,
        length: Duration::from_secs(300),
        round: Duration::from_secs(60),
        nodes: 4,
        kinds: KINDS.to_vec(),
        events: false,
        logs: "soak-logs".into(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--events" {
            plan.events = true;
            continue;
        }
        let value = arguments.next().unwrap_or_else(|| panic!("{USAGE}"));
        let number = || value.parse::<u64>().unwrap_or_else(|_| panic!("{argument} wants a number; {USAGE}"));
        match argument.as_str() {
            "--seed" => plan.seed = number(),
            "--minutes" => plan.length = Duration::from_secs(60 * number()),
            "--round" => plan.round = Duration::from_secs(number()),
            "--nodes" => plan.nodes = number() as usize,
            "--logs" => plan.logs = value.into(),
            "--faults" => {
                let known = |kind: &str| KINDS.iter().copied().find(|known| *known == kind);
                let kinds =
                    value.split(',').map(|kind| known(kind).unwrap_or_else(|| panic!("`{kind}` is none of {KINDS:?}")));
                plan.kinds = kinds.collect();
            }
            _ => panic!("{USAGE}"),
        }
    }
    plan.logs = plan.logs.join(plan.seed.to_string());
    assert!(plan.nodes >= 3, "three replicas need three nodes");
    run(&plan);
}
