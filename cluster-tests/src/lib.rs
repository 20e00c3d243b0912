//! Black-box tests of real Holdfast nodes.
//!
//! The tests start the `holdfast` binary as a process, speak to it over sockets, kill it, restart it and look at what
//! it kept. Nothing here shares code with the server: the client below has its own HTTP and its own signatures, so that
//! a mistake on one side cannot hide behind the same mistake on the other. One test takes the FastDFS double of
//! `node/tiers`, which is held against a real FastDFS by the suite that both run.
//!
//! | module | what it is |
//! |---|---|
//! | [`node`] | a node process: start on free ports, wait until ready, kill -9, SIGTERM, restart; logs on failure |
//! | [`cluster`] | several nodes with ZooKeeper and MariaDB, made as an operator would; partitions |
//! | [`workload`] | concurrent clients on all nodes, every answer taken down and every byte compared |
//! | [`client`] | blocking HTTP/1.1 with SigV4, down to single bytes on the socket |
//! | [`history`], [`checker`] | what concurrent clients did and saw, and whether one register a key explains it |
//! | [`model`] | what a store may hold after requests whose answers were lost |
//! | [`disk`] | small disks, and damage on disks |
//! | [`certificates`] | authorities and certificates of the test's own, forged ones too |
//! | [`content`] | pseudo-random contents and numbers from seeds |
//! | [`services`] | real ZooKeeper, MariaDB, Redis and RocketMQ, private to a test |
//! | [`tiers`] | cold tiers as an operator sets them up and looks at them |
//! | [`told`] | writers whose acknowledged changes are accounted for in the events that were received |
//! | [`soak`] | random faults for as long as one likes, from a seed; `docs/soak.md` |
//! | [`program`] | runs aws-cli, rclone, s3cmd, restic, curl |

// A test that goes wrong should panic where it does: `unwrap` is how this crate says so.
#![allow(clippy::unwrap_used)]

pub mod certificates;
pub mod checker;
pub mod client;
pub mod cluster;
pub mod content;
pub mod disk;
pub mod history;
pub mod model;
pub mod node;
pub mod program;
pub mod services;
pub mod soak;
pub mod tiers;
pub mod told;
pub mod workload;

use std::fmt::Display;
use std::time::{Duration, Instant};

/// The shortest and the longest pause between two questions.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(300)];

/// Asks `what` again and again until it is true.
///
/// # Panics
/// When it is not true within `limit`; `name` says what was waited for.
#[track_caller]
pub fn eventually(name: &str, limit: Duration, mut what: impl FnMut() -> bool) {
    until_some(name, limit, || what().then_some(()));
}

/// Asks again and again until there is something, and returns it.
///
/// # Panics
/// When there is nothing within `limit`; `name` says what was waited for.
#[track_caller]
pub fn until_some<T>(name: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    until_ok(name, limit, || ask().ok_or("not yet"))
}

/// Tries again and again until it succeeds, and returns what that gave. Many an attempt starts a program: whoever is
/// waited for has the processor for as long as the attempt took before the next one comes.
///
/// # Panics
/// When it does not succeed within `limit`; `name` says what was waited for, the last failure why.
#[track_caller]
pub fn until_ok<T, E: Display>(name: &str, limit: Duration, mut attempt: impl FnMut() -> Result<T, E>) -> T {
    let begin = Instant::now();
    loop {
        let tried = Instant::now();
        match attempt() {
            Ok(done) => return done,
            Err(failure) => assert!(begin.elapsed() < limit, "waited {limit:?} in vain for: {name}: {failure}"),
        }
        std::thread::sleep(tried.elapsed().clamp(PAUSES[0], PAUSES[1]));
    }
}

/// A number that the environment may set, for longer runs by hand than CI has time for.
pub fn parameter(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not `{text}`")),
        Err(_) => default,
    }
}

/// The seed of a random test: `HOLDFAST_TEST_SEED`, or a new one. Printed, so that a failure can be replayed.
pub fn seed(test: &str) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = parameter("HOLDFAST_TEST_SEED", now % 1_000_000_000);
    println!("{test}: HOLDFAST_TEST_SEED={seed}");
    seed
}
