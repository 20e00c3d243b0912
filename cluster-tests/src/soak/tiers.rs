//! The cold tiers of the soak, what befalls them, and what has to be true of them when nothing does any more.
//!
//! One is another Holdfast node behind a proxy, as a store of S3; the other a FastDFS, which whoever runs the soak
//! brings along ([`Fastdfs`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::round::{Round, up_to};
use crate::client::{Client, Request};
use crate::cluster::Cluster;
use crate::content::Random;
use crate::node::{ACCESS_KEY, Node, SECRET_KEY};
use crate::services::tcp_proxy::{Flow, TcpProxy};
use crate::tiers::{FAST, STORE_BUCKET, add_oss_at, contents, settle, store};

/// The tier that is a store of S3, and its storage class.
pub const OSS: &str = "OSS";
/// The tier in FastDFS, and its storage class.
pub const FASTDFS: &str = "FASTDFS";
/// Kinds of faults of tiers.
const OF_TIERS: [&str; 4] = ["tier-down", "tier-slow", "tier-cut", "tier-corrupt"];
/// Pause between the faults of one tier.
const PAUSE: Duration = Duration::from_secs(15);
/// How long a fault lasts.
const AWAY: Duration = Duration::from_secs(10);
/// Time for an operator's command to be carried out when nothing is wrong any more.
const TOLD: Duration = Duration::from_secs(60);
/// Time for what was deleted to go from tiers.
const EMPTY: Duration = Duration::from_secs(180);
/// Moves of one node to one tier at a time, the default of `tiering.moves_per_tier`.
const MOVES_PER_TIER: usize = 4;
/// Pieces that rot at a time.
const ROTTEN: usize = 6;

/// A FastDFS with faults on demand.
pub trait Fastdfs: Debug + Sync {
    /// What `holdfast` is to be told to set up a tier of this name in it.
    fn arguments(&self, tier: &str) -> Vec<String>;
    /// Begins a fault of a kind; says which. Only one at a time is begun.
    fn begin(&self, kind: &str, random: &mut Random) -> String;
    /// Ends the fault.
    fn end(&self);
    /// The files of each storage: paths and lengths.
    fn files(&self) -> Vec<Vec<(String, u64)>>;
}

/// See the module's page.
#[derive(Debug)]
pub struct Tiers<'a> {
    store: Node,
    proxy: TcpProxy,
    fastdfs: &'a dyn Fastdfs,
}

/// What nodes are to be told so that moves are fast enough for a soak.
pub fn environment() -> impl Iterator<Item = (&'static str, &'static str)> {
    let fast = FAST.into_iter().filter(|(name, _)| name.starts_with("HOLDFAST_TIERING_"));
    // What was sent into a way that is cut arrives when it is open again: a piece is deleted once more after that.
    fast.map(|(name, value)| (name, if name == "HOLDFAST_TIERING_PIECE_GRACE" { "20 s" } else { value }))
}

impl<'a> Tiers<'a> {
    /// Starts the store.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(fastdfs: &'a dyn Fastdfs) -> Self {
        let store = store();
        let proxy = TcpProxy::start(store.s3());
        Self { store, proxy, fastdfs }
    }

    /// Tells a cluster of both.
    ///
    /// # Panics
    /// When it does not take them.
    pub fn add_to(&self, cluster: &Cluster) {
        let node = &cluster.members[0].node;
        add_oss_at(node, OSS, &format!("http://{}", self.proxy.address()), ACCESS_KEY, SECRET_KEY);
        node.cli(&self.fastdfs.arguments(FASTDFS).iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Makes faults of both until the round is over, and ends them.
    pub fn suffer(&mut self, round: &Round<'_>, mut of_store: Random, mut of_fastdfs: Random) {
        let fastdfs = self.fastdfs;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                again_and_again(round, &mut of_fastdfs, |kind, random| {
                    let away = up_to(random, AWAY);
                    round.say(&format!("FastDFS: {} ({kind}) for {away:?}", fastdfs.begin(kind, random)));
                    round.wait(away);
                    fastdfs.end();
                    round.say("FastDFS serves");
                })
            });
            again_and_again(round, &mut of_store, |kind, random| self.harm_store(kind, round, random));
        });
    }

    fn harm_store(&mut self, kind: &str, round: &Round<'_>, random: &mut Random) {
        let away = up_to(random, AWAY);
        match kind {
            "tier-down" => {
                round.say(&format!("the store of S3 is killed, for {away:?}"));
                self.store.kill();
                round.wait(away);
                self.store.restart();
            }
            "tier-slow" => {
                round.say(&format!("the store of S3 is slow for {away:?}"));
                let until = Instant::now() + away;
                while Instant::now() < until && !round.is_over() {
                    self.store.signal(Signal::STOP);
                    std::thread::sleep(Duration::from_millis(200 + random.below(1_500)));
                    self.store.signal(Signal::CONT);
                    std::thread::sleep(Duration::from_millis(20 + random.below(200)));
                }
            }
            "tier-cut" if random.chance(40) => {
                round.say(&format!("connections to the store of S3 break for {away:?}"));
                let until = Instant::now() + away;
                while Instant::now() < until && !round.is_over() {
                    self.proxy.sever();
                    std::thread::sleep(Duration::from_millis(random.below(700)));
                }
            }
            "tier-cut" => {
                let flow = if random.chance(40) { Flow::AnswersHeld } else { Flow::Stalled };
                round.say(&format!("nobody reaches the store of S3 ({flow:?}) for {away:?}"));
                self.proxy.set(flow);
                round.wait(away);
                if random.chance(50) {
                    self.proxy.sever();
                }
                self.proxy.set(Flow::Open);
            }
            _ => {
                let client = self.store.client();
                let keys = client.list(STORE_BUCKET, "").unwrap_or_default();
                // Each once: what was changed twice would be mended into what was wrong.
                let some: BTreeSet<&String> =
                    (0..ROTTEN.min(keys.len())).map(|_| &keys[random.below(keys.len() as u64) as usize]).collect();
                let rotten: Vec<Rotten> = some.into_iter().filter_map(|key| Rotten::make(&client, key)).collect();
                round.say(&format!("{} pieces in the store of S3 are other bytes for {away:?}", rotten.len()));
                round.wait(away);
                let mended = rotten.iter().filter(|piece| piece.mend(&client)).count();
                round.say(&format!("{mended} of them are right again, the others are gone"));
            }
        }
        round.say("the store of S3 serves");
    }

    /// Moves that failed are tried now and not later, and nothing waits any more.
    ///
    /// # Panics
    /// When something does.
    pub fn settle(&self, cluster: &Cluster) {
        let node = &cluster.members.iter().find(|member| member.node.is_running()).expect("a node runs").node;
        for tier in [OSS, FASTDFS] {
            crate::eventually("moves are tried again", TOLD, || {
                node.try_cli(&["tier", "retry", tier]).status.success()
            });
            let begin = Instant::now();
            settle(node, tier);
            println!("{tier} has settled after {:?}: {} contents", begin.elapsed(), contents(node, tier));
        }
    }

    /// Tiers hold what metadata knows, all of it whole, and nothing else.
    ///
    /// # Panics
    /// When they do not.
    pub fn verify(&self, cluster: &Cluster) {
        let node = &cluster.members.iter().find(|member| member.node.is_running()).expect("a node runs").node;
        for tier in [OSS, FASTDFS] {
            println!("{}", node.cli(&["tier", "verify", tier, "--all"]).trim_end());
        }
        // What was deleted under a clock that is ahead waits for as much longer.
        let begin = Instant::now();
        loop {
            let stored = self.store.client().list(STORE_BUCKET, "").unwrap();
            let full = |files: &Vec<(String, u64)>| files.iter().filter(|(_, bytes)| *bytes > 0).count() as u64;
            let (files, wanted) = (self.fastdfs.files(), [contents(node, OSS), contents(node, FASTDFS)]);
            if stored.len() as u64 == wanted[0] && files.iter().all(|files| full(files) == wanted[1]) {
                println!("tiers hold what metadata knows after {:?}", begin.elapsed());
                return;
            }
            assert!(
                begin.elapsed() < EMPTY,
                "tiers do not hold {wanted:?} contents, but the store of S3 {stored:?}\n\
                 and FastDFS {files:?}; tables:\n{}",
                tables(cluster)
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Waits until both are empty. FastDFS gives names and cannot be listed: one that a mover got when something befell
    /// it stays, an empty file, for each move that it had in work at most.
    ///
    /// # Panics
    /// When something else stays.
    pub fn become_empty(&self, cluster: &Cluster, faults: usize) {
        let begin = Instant::now();
        loop {
            let stored = self.store.client().list(STORE_BUCKET, "").unwrap();
            let files = self.fastdfs.files();
            let names = files.iter().map(Vec::len).max().unwrap_or(0);
            let full: Vec<_> = files.iter().flatten().filter(|(_, bytes)| *bytes > 0).collect();
            if stored.is_empty() && full.is_empty() {
                println!("tiers are empty after {:?}; {names} empty names stay in FastDFS", begin.elapsed());
                let most = faults * MOVES_PER_TIER;
                assert!(names <= most, "{names} names stay in FastDFS after {faults} faults: {files:?}");
                return;
            }
            assert!(
                begin.elapsed() < EMPTY,
                "although everything was deleted there are in the store of S3 {stored:?}\nand in FastDFS {full:?}\n{}",
                tables(cluster)
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

/// What metadata knows of pieces, of what is to be deleted, and of moves.
fn tables(cluster: &Cluster) -> String {
    let queries = [
        "SELECT HEX(id), tier, HEX(cold) FROM holdfast.contents WHERE tier IS NOT NULL",
        "SELECT * FROM holdfast.tier_pieces",
        "SELECT COUNT(*), tier FROM holdfast.reclaims GROUP BY tier",
        "SELECT id, `key`, HEX(content), lane, target, attempt, due_ms, error FROM holdfast.moves",
    ];
    queries.map(|query| cluster.mariadb.sql(query)).join("\n--\n")
}

/// Until the round is over: pauses, and does `fault` with a kind that may be.
fn again_and_again(round: &Round<'_>, random: &mut Random, mut fault: impl FnMut(&str, &mut Random)) {
    loop {
        round.wait_up_to(random, PAUSE);
        if round.is_over() {
            return;
        }
        if let Some(kind) = round.choose(random, &OF_TIERS) {
            fault(kind, random);
        }
    }
}

/// A piece in a store that was given other bytes of the same length.
#[derive(Debug)]
struct Rotten {
    path: String,
    headers: BTreeMap<String, String>,
    right: Vec<u8>,
    /// Of the other bytes.
    etag: String,
}

impl Rotten {
    /// Changes a byte of a piece; nothing when it went or changed meanwhile.
    fn make(client: &Client, key: &str) -> Option<Self> {
        let path = format!("/{STORE_BUCKET}/{key}");
        let was = client.send(&Request { method: "GET", path: &path, ..Request::default() }).ok()?;
        let etag = was.header("etag").filter(|_| was.status == 200 && !was.body.is_empty())?.to_owned();
        let kept = |name: &str| name.starts_with("x-amz-meta-") || name == "content-type";
        let headers = was.headers.iter().filter(|(name, _)| kept(name)).cloned().collect();
        let mut piece = Self { path, headers, right: was.body.clone(), etag };
        let mut wrong = was.body;
        let middle = wrong.len() / 2;
        wrong[middle] ^= 0x10;
        piece.etag = piece.replace(client, &wrong)?;
        Some(piece)
    }

    /// Gives it its own bytes again; false when it is not there any more.
    fn mend(&self, client: &Client) -> bool {
        self.replace(client, &self.right).is_some()
    }

    /// Puts other bytes where the piece still is what it was; the new ETag.
    fn replace(&self, client: &Client, body: &[u8]) -> Option<String> {
        let mut headers: Vec<(&str, &str)> = self.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        headers.push(("if-match", &self.etag));
        let request = Request { method: "PUT", path: &self.path, headers: &headers, body, ..Request::default() };
        let put = client.send_until_served(&request);
        match put.status {
            200 => put.header("etag").map(str::to_owned),
            404 | 412 => None,
            other => panic!("{} in the store: {other} {}", self.path, put.text()),
        }
    }
}
