//! Random faults on a real cluster under load, for as long as one likes; `docs/soak.md` is its manual.
//!
//! ```sh
//! cargo build --release -p holdfast-node
//! HOLDFAST_BIN=$PWD/target/release/holdfast cargo run -p holdfast-cluster-tests --example soak -- --minutes 10
//! ```

#![allow(clippy::unwrap_used, reason = "as in tests")]

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_cluster_tests::content::Random;
use holdfast_cluster_tests::soak::arguments::{Command, parse};
use holdfast_cluster_tests::soak::run;
use holdfast_cluster_tests::soak::tiers::Fastdfs;
use holdfast_cluster_tests::tiers::fastdfs_arguments;
use holdfast_tiers::fastdfs::double::{Double, DoubleConfig, Faults};

const TRACKERS: usize = 2;
const STORAGES: usize = 2;
/// Commands of storages: a deletion, a download, the upload of bytes under a name that is known.
const DELETE: u8 = 12;
const DOWNLOAD: u8 = 14;
const UPLOAD_SLAVE: u8 = 21;

fn main() -> ExitCode {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    match parse(std::env::args().skip(1), now.as_nanos() as u64 % 1_000_000_000) {
        Ok(Command::Run(plan)) => {
            if let Some(binary) = std::env::var_os("HOLDFAST_BIN").map(PathBuf::from)
                && !(binary.is_absolute() && binary.is_file())
            {
                eprintln!("soak: HOLDFAST_BIN has to be the absolute path of a program, not `{}`", binary.display());
                return ExitCode::from(2);
            }
            run(&plan, &Trapped::start());
            ExitCode::SUCCESS
        }
        Ok(Command::Help(text)) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(wrong) => {
            eprintln!("soak: {wrong}");
            ExitCode::from(2)
        }
    }
}

/// A server that does not run.
#[derive(Debug, Clone, Copy)]
enum Stopped {
    Tracker(usize),
    Storage(usize),
}

/// The double of FastDFS, in this process.
#[derive(Debug)]
struct Trapped {
    double: Double,
    /// What the files hold that were damaged, by a hash: whatever else is there was uploaded since.
    damaged: Mutex<HashSet<u64>>,
    stopped: Mutex<Vec<Stopped>>,
    runtime: tokio::runtime::Runtime,
}

impl Trapped {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let config = DoubleConfig { trackers: TRACKERS, storages_a_group: STORAGES, ..DoubleConfig::default() };
        let double = runtime.block_on(Double::start(config));
        Self { double, damaged: Mutex::default(), stopped: Mutex::default(), runtime }
    }

    fn stop(&self, server: Stopped) {
        self.stopped.lock().unwrap().push(server);
        self.runtime.block_on(async {
            match server {
                Stopped::Tracker(at) => self.double.stop_tracker(at).await,
                Stopped::Storage(at) => self.double.stop_storage(at).await,
            }
        });
    }

    fn down(&self, random: &mut Random) -> String {
        let one = random.below(2) as usize;
        match random.below(5) {
            0 => {
                self.stop(Stopped::Tracker(one));
                format!("tracker {one} is dead")
            }
            1 => {
                self.double.set_groups_vanished(true);
                "trackers know no group".into()
            }
            2 => {
                (0..STORAGES).for_each(|at| self.stop(Stopped::Storage(at)));
                "all storages are dead".into()
            }
            way => {
                self.stop(Stopped::Storage(one));
                if way == 3 {
                    // The trackers have noticed.
                    self.double.set_status(one, 5);
                }
                format!("storage {one} is dead (noticed: {})", way == 3)
            }
        }
    }

    fn slow(&self, random: &mut Random) -> String {
        let (one, delay) = (random.below(2) as usize, Duration::from_millis(50 + random.below(2_000)));
        match random.below(3) {
            0 => {
                self.double.set_lag(true);
                "replicas lag".into()
            }
            1 => {
                self.double.tracker_faults(one, |faults| faults.delay = Some(delay));
                format!("tracker {one} takes {delay:?}")
            }
            _ => {
                self.double.storage_faults(one, |faults| faults.delay = Some(delay));
                format!("storage {one} takes {delay:?}")
            }
        }
    }

    fn cut(&self, random: &mut Random) -> String {
        let (one, bytes) = (random.below(2) as usize, random.below(10_000) as usize);
        let what = match random.below(5) {
            0 => self.fault(one, |faults| faults.cut_downloads_at = Some(bytes), "breaks off downloads"),
            1 => self.fault(one, |faults| faults.lose_answers = vec![UPLOAD_SLAVE, DELETE, DOWNLOAD], "loses answers"),
            2 => self.fault(one, |faults| faults.hang = vec![DELETE, DOWNLOAD], "does not answer"),
            3 => self.fault(one, |faults| faults.hold_uploads = true, "holds uploads"),
            _ => {
                self.double.close_idle_connections();
                "closes idle connections"
            }
        };
        format!("storage {one} {what}")
    }

    fn corrupt(&self, random: &mut Random) -> String {
        let one = random.below(2) as usize;
        let what = match random.below(5) {
            0 => self.fault(one, |faults| faults.corrupt_uploads = true, "flips a bit of uploads"),
            1 => self.fault(one, |faults| faults.truncate_uploads = true, "loses the end of uploads"),
            2 => self.fault(one, |faults| faults.babble = true, "answers nonsense"),
            _ => {
                let damaged = &mut *self.damaged.lock().unwrap();
                self.double.damage(one, |bytes| {
                    flip(bytes);
                    damaged.insert(hash(bytes));
                });
                "has other bytes in all files"
            }
        };
        format!("storage {one} {what}")
    }

    fn fault(&self, storage: usize, change: impl FnOnce(&mut Faults), what: &'static str) -> &'static str {
        self.double.storage_faults(storage, change);
        what
    }
}

impl Fastdfs for Trapped {
    fn arguments(&self, tier: &str) -> Vec<String> {
        let config = self.double.config();
        fastdfs_arguments(tier, &config.trackers, &config.address_map)
    }

    fn begin(&self, kind: &str, random: &mut Random) -> String {
        match kind {
            "tier-down" => self.down(random),
            "tier-slow" => self.slow(random),
            "tier-cut" => self.cut(random),
            _ => self.corrupt(random),
        }
    }

    fn end(&self) {
        let damaged = std::mem::take(&mut *self.damaged.lock().unwrap());
        for at in 0..STORAGES {
            self.double.storage_faults(at, |faults| *faults = Faults::default());
            self.double.damage(at, |bytes| {
                if damaged.contains(&hash(bytes)) {
                    flip(bytes);
                }
            });
            // Active.
            self.double.set_status(at, 7);
        }
        for at in 0..TRACKERS {
            self.double.tracker_faults(at, |faults| *faults = Faults::default());
        }
        for server in std::mem::take(&mut *self.stopped.lock().unwrap()) {
            self.runtime.block_on(async {
                match server {
                    Stopped::Tracker(at) => self.double.start_tracker(at).await,
                    Stopped::Storage(at) => self.double.start_storage(at).await,
                }
            });
        }
        self.double.set_groups_vanished(false);
        self.double.set_lag(false);
    }

    fn files(&self) -> Vec<Vec<(String, u64)>> {
        assert!(!self.double.saw_pipelining(), "a node sent a request before it had the answer to the one before");
        (0..STORAGES).map(|at| self.double.files(at)).collect()
    }
}

fn flip(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
