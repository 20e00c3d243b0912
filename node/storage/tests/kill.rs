//! kill -9 on real files: a child process writes and says what is acknowledged; it is killed, and everything it said
//! must be there.
//!
//! The child is this test binary itself, told by an environment variable.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{get, id, payload, put};
use holdfast_storage::{Engine, EngineConfig};

const CHILD: &str = "HOLDFAST_KILL_TEST_DIR";
const FIRST: &str = "HOLDFAST_KILL_TEST_FIRST";
const ROUNDS: u32 = 4;
const CHUNKS_A_ROUND: u32 = 100_000;

fn kill_config(dir: &Path) -> EngineConfig {
    let mut config = common::config(dir);
    config.segment_size_bytes = 32 << 20;
    config.background = true;
    config
}

fn len_of(n: u32) -> usize {
    [100, 4000, 5000, 70_000, 300_000, 2_000_000][n as usize % 6] + n as usize % 97
}

/// Writes chunks from `first` on with eight writers, deletes every fifth, and says each outcome on stdout.
async fn child(dir: PathBuf, first: u32) {
    let (engine, _) = Engine::open(kill_config(&dir), common::std_io(), common::pool()).await.unwrap();
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        // One write a line; a line that was cut by the kill has no end.
        out.write_all(line.as_bytes()).unwrap();
        out.flush().unwrap();
    };
    let writers = (0..8).map(|writer| {
        let engine = engine.clone();
        async move {
            for n in (first + writer..first + CHUNKS_A_ROUND).step_by(8) {
                put(&engine, id(n), &payload(u64::from(n), len_of(n))).await.unwrap();
                say(format!("put {n} .\n"));
                if n % 5 == 0 {
                    say(format!("deleting {n} .\n"));
                    engine.delete(&[id(n)]).await.unwrap();
                    say(format!("deleted {n} .\n"));
                }
            }
        }
    });
    futures::future::join_all(writers).await;
}

#[derive(Default)]
struct Said {
    put: BTreeSet<u32>,
    deleting: BTreeSet<u32>,
    deleted: BTreeSet<u32>,
}

impl Said {
    fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let (Some(verb), Some(n), Some(".")) = (words.next(), words.next(), words.next()) else { return };
        let Ok(n) = n.parse() else { return };
        match verb {
            "put" => self.put.insert(n),
            "deleting" => self.deleting.insert(n),
            "deleted" => self.deleted.insert(n),
            _ => false,
        };
    }
}

#[tokio::test]
async fn kill_9_loses_nothing_acknowledged_and_brings_nothing_back() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let first = std::env::var(FIRST).unwrap().parse().unwrap();
        return child(dir.into(), first).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut said = Said::default();
    let mut lengths = BTreeMap::new();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill_9_loses_nothing_acknowledged_and_brings_nothing_back", "--nocapture"])
            .env(CHILD, dir.path())
            .env(FIRST, (round * CHUNKS_A_ROUND).to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Killed after so many acknowledgements, at whatever it is doing then.
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        let enough = 40 + 37 * round as usize;
        let heard = out.by_ref().map_while(Result::ok).take(enough);
        heard.for_each(|line| said.hear(&line));
        child.kill().unwrap();
        out.map_while(Result::ok).for_each(|line| said.hear(&line));
        child.wait().unwrap();
        let (engine, report) = Engine::open(kill_config(dir.path()), common::std_io(), common::pool()).await.unwrap();
        assert_eq!(report.damaged, []);
        check(&engine, &said, &mut lengths).await;
    }
    assert!(said.put.len() > 100 && said.deleted.len() > 10, "{} put, {} deleted", said.put.len(), said.deleted.len());
}

async fn check(engine: &Engine, said: &Said, lengths: &mut BTreeMap<u32, usize>) {
    for n in &said.put {
        lengths.insert(*n, len_of(*n));
        if !said.deleting.contains(n) {
            assert!(get(engine, id(*n)).await.unwrap() == payload(u64::from(*n), len_of(*n)), "chunk {n}");
        }
    }
    for n in &said.deleted {
        assert!(engine.stat(&id(*n)).is_none(), "chunk {n} is back");
    }
    // What was written without our hearing of it is whole.
    for stat in engine.list(None, usize::MAX) {
        let n = stat.id.index();
        assert!(get(engine, stat.id).await.unwrap() == payload(u64::from(n), len_of(n)), "chunk {n}");
    }
}
