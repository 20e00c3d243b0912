//! What befalls a node: its process, its ways to everything else, its disk.
//!
//! One thread a node, so that faults of several nodes overlap. At the end of a round the node runs and reaches
//! everything.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::process::Signal;

use super::round::{Round, up_to};
use crate::cluster::{Member, SESSION};
use crate::content::Random;
use crate::disk::{files, flip_bytes};
use crate::services::tcp_proxy::Flow;
use crate::services::udp_network::UdpNetwork;

/// Pause between the faults of one node.
const PAUSE: Duration = Duration::from_secs(14);
/// How long a node stays away, or cut off.
const AWAY: Duration = Duration::from_secs(9);
/// Time for a node to start when nothing else is wrong any more.
const START: Duration = Duration::from_secs(180);
/// One attempt of these: ZooKeeper may be away for longer.
const ATTEMPT: Duration = Duration::from_secs(20);
/// What a filled disk has left, at most.
const ROOM_BYTES: u64 = 24 << 20;
/// Places of one disk that rot, at most.
const ROTTEN: u64 = 6;
/// A clock is off by so many seconds at most: what is deleted by one that is ahead gives its space back later by as
/// much, and is waited for at the end.
const LEAP_MAX_S: u64 = 60;

const OF_NODES: [&str; 13] = [
    "kill",
    "crash-loop",
    "pause",
    "stop",
    "peers",
    "cut-zookeeper",
    "cut-database",
    "cut-redis",
    "full",
    "rot",
    "rot-index",
    "replace",
    "clock",
];

/// A node with what its faults need.
#[derive(Debug)]
pub struct Victim<'a> {
    /// Its place.
    pub at: usize,
    /// Itself.
    pub member: &'a mut Member,
    /// The way to its peers.
    pub network: &'a UdpNetwork,
    /// The places of the others.
    pub others: Vec<usize>,
    /// Where its chunks are.
    pub disk: PathBuf,
    /// The small file system that they are on, if they are on one.
    pub small: Option<PathBuf>,
}

impl Victim<'_> {
    /// Makes faults until the round is over, and ends them.
    pub fn suffer(mut self, round: &Round<'_>, mut random: Random) {
        loop {
            round.wait_up_to(&mut random, PAUSE);
            if round.is_over() {
                break;
            }
            if let Some(kind) = round.choose(&mut random, &OF_NODES) {
                self.fault(kind, round, &mut random);
            }
        }
    }

    fn fault(&mut self, kind: &str, round: &Round<'_>, random: &mut Random) {
        let at = self.at;
        let away = up_to(random, AWAY);
        let flow = if random.chance(25) { Flow::AnswersHeld } else { Flow::Stalled };
        match kind {
            "kill" => {
                round.say(&format!("node {at} is killed, for {away:?}"));
                self.member.node.kill();
                round.wait(if random.chance(30) { Duration::ZERO } else { away });
                self.bring_back(round);
            }
            "crash-loop" => {
                round.say(&format!("node {at} is killed again and again while it starts"));
                for _ in 0..2 + random.below(4) {
                    self.member.node.kill();
                    let limit = Duration::from_millis(random.below(1_500));
                    // Nearly always too short.
                    let _ = self.member.node.try_restart_within(limit);
                }
                if !self.member.node.is_running() {
                    self.bring_back(round);
                }
            }
            "pause" => {
                let pause = up_to(random, SESSION * 3);
                round.say(&format!("node {at} stands still for {pause:?}"));
                self.member.node.signal(Signal::STOP);
                round.wait(pause);
                self.member.node.signal(Signal::CONT);
                round.say(&format!("node {at} goes on"));
            }
            "stop" => {
                round.say(&format!("node {at} is stopped by SIGTERM, for {away:?}"));
                self.member.node.stop();
                round.wait(away);
                self.bring_back(round);
            }
            "peers" => self.cut_peers(away, round, random),
            "cut-zookeeper" => {
                round.say(&format!("node {at} is cut off from ZooKeeper ({flow:?}) for {away:?}"));
                self.member.zookeeper.iter().for_each(|proxy| proxy.set(flow));
                round.wait(away);
                if random.chance(30) {
                    self.member.zookeeper.iter().for_each(|proxy| proxy.sever());
                }
                self.member.zookeeper.iter().for_each(|proxy| proxy.set(Flow::Open));
                round.say(&format!("node {at} reaches ZooKeeper"));
            }
            "cut-database" => {
                round.say(&format!("node {at} is cut off from the database ({flow:?}) for {away:?}"));
                self.member.database.set(flow);
                round.wait(away);
                if random.chance(50) {
                    self.member.database.sever();
                }
                self.member.database.set(Flow::Open);
                round.say(&format!("node {at} reaches the database"));
            }
            "cut-redis" => {
                let Some(redis) = &self.member.redis else { return };
                round.say(&format!("node {at} is cut off from Redis ({flow:?}) for {away:?}"));
                redis.set(flow);
                round.wait(away);
                if random.chance(50) {
                    redis.sever();
                }
                redis.set(Flow::Open);
                round.say(&format!("node {at} reaches Redis"));
            }
            "full" => self.fill(away, round, random),
            "rot" if round.may_damage(at) => self.rot(round, random),
            "rot-index" if has_index(&self.disk) => {
                self.member.node.kill();
                let count = 1 + random.below(ROTTEN);
                let rotten: Vec<String> = (0..count).filter_map(|_| rot_index(&self.disk, random)).collect();
                round.say(&format!("node {at}: index files rot while it is down: {}", rotten.join(", ")));
                self.bring_back(round);
            }
            "clock" => {
                let ahead = random.below(2 * LEAP_MAX_S + 1) as i64 - LEAP_MAX_S as i64;
                // Right again, half the time.
                let ahead = if random.chance(50) { 0 } else { ahead };
                round.say(&format!("node {at} is killed; its clock is {ahead:+} s off from now on"));
                self.member.node.kill();
                self.member.node.set_clock(ahead);
                self.bring_back(round);
            }
            "replace" if round.may_damage(at) => {
                round.say(&format!("node {at} is given an empty disk"));
                self.member.node.kill();
                fs::remove_dir_all(&self.disk).unwrap();
                fs::create_dir_all(&self.disk).unwrap();
                fs::write(self.disk.join("replaced"), "").unwrap();
                self.bring_back(round);
            }
            _ => {}
        }
    }

    /// Starts the node, however often it takes while other things are wrong.
    fn bring_back(&mut self, round: &Round<'_>) {
        let mut begin = Instant::now();
        let mut over = round.is_over();
        loop {
            match self.member.node.try_restart_within(ATTEMPT) {
                Ok(()) => break,
                Err(error) => round.say(&format!("node {} does not start: {error:#}", self.at)),
            }
            // Its time counts from when the other faults ended.
            if !over && round.is_over() {
                (begin, over) = (Instant::now(), true);
            }
            if over && begin.elapsed() > START {
                round.fail();
                panic!("node {} does not start within {START:?} after the faults", self.at);
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        round.say(&format!("node {} is back", self.at));
    }

    fn cut_peers(&self, away: Duration, round: &Round<'_>, random: &mut Random) {
        let at = self.at;
        let all = random.chance(40);
        let one = self.others[random.below(self.others.len() as u64) as usize];
        let them = if all { self.others.clone() } else { vec![one] };
        let way = random.below(4);
        for other in &them {
            match way {
                0 => self.network.cut(at, *other),
                1 => self.network.cut(*other, at),
                2 => self.network.delay(at, *other, Duration::from_millis(2)),
                _ => self.network.cut_both(at, *other),
            }
        }
        let how = ["is not heard by", "does not hear", "is slow to", "is cut off from"][way as usize];
        round.say(&format!("node {at} {how} nodes {them:?} for {away:?}"));
        round.wait(away);
        // A cut that the other one made of the same pair ends with it.
        them.iter().for_each(|other| self.network.mend(at, *other));
        round.say(&format!("node {at} reaches nodes {them:?}"));
    }

    /// Takes nearly all room of a small disk. Nothing is written: the room is reserved.
    fn fill(&self, away: Duration, round: &Round<'_>, random: &mut Random) {
        let Some(small) = &self.small else { return };
        let ballast = small.join("ballast");
        let room = statvfs(small).unwrap();
        let left = random.below(ROOM_BYTES);
        let size = (room.f_bavail * room.f_frsize).saturating_sub(left);
        let file = File::create(&ballast).unwrap();
        // The node may take room at the same time: then there is less left, or the disk is full already.
        let filled = fallocate(&file, FallocateFlags::empty(), 0, size.max(1)).is_ok();
        round.say(&format!("node {}: {left} bytes are left on its disk (filled: {filled}) for {away:?}", self.at));
        round.wait(away);
        drop(file);
        fs::remove_file(&ballast).unwrap();
        round.say(&format!("node {}: its disk has room again", self.at));
    }

    /// Flips bytes in the segments of the disk, under a node that runs or is down for it.
    fn rot(&mut self, round: &Round<'_>, random: &mut Random) {
        let down = random.chance(50);
        if down {
            self.member.node.kill();
        }
        let count = 1 + random.below(ROTTEN);
        let flipped: Vec<String> = (0..count).filter_map(|_| flip(&self.disk, random)).collect();
        round.say(&format!("node {} rots (down: {down}): {}", self.at, flipped.join(", ")));
        if down {
            self.bring_back(round);
        }
    }
}

fn is_index(path: &Path) -> bool {
    path.extension() == Some("index".as_ref())
}

/// Whether some segment of the disk has an index file.
fn has_index(disk: &Path) -> bool {
    fs::read_dir(disk).is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|entry| is_index(&entry.path()))))
}

/// Flips some bytes of an index file, or cuts its end off; says where.
fn rot_index(disk: &Path, random: &mut Random) -> Option<String> {
    let mut indexes: Vec<PathBuf> = files(disk).into_iter().filter(|path| is_index(path)).collect();
    indexes.sort();
    let path = indexes.get(random.below(indexes.len().max(1) as u64) as usize)?;
    let length = fs::metadata(path).ok()?.len();
    let at = random.below(length.max(1));
    let name = path.file_name()?.to_string_lossy();
    if random.chance(20) {
        OpenOptions::new().write(true).open(path).ok()?.set_len(at).ok()?;
        return Some(format!("{name} ends at {at} of {length}"));
    }
    flip_bytes(path, at, (length - at).min(1 + random.below(16)) as usize);
    Some(format!("{name}@{at}"))
}

/// Flips 16 bytes somewhere in what a segment holds; says where.
fn flip(disk: &Path, random: &mut Random) -> Option<String> {
    let mut segments: Vec<PathBuf> =
        files(disk).into_iter().filter(|path| path.extension() == Some("data".as_ref())).collect();
    segments.sort();
    for _ in 0..20 {
        let path = segments.get(random.below(segments.len().max(1) as u64) as usize)?;
        let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { continue };
        let length = file.metadata().ok()?.len();
        // The first block is the segment's own header.
        let from = 4096 + random.below(length.saturating_sub(8192).max(1));
        let Ok(at) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(from)) else { continue };
        let mut bytes = [0; 16];
        if file.read_exact_at(&mut bytes, at).is_err() || bytes.iter().all(|byte| *byte == 0) {
            continue;
        }
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        file.write_all_at(&bytes, at).ok()?;
        file.sync_all().ok()?;
        return Some(format!("{}@{at}", path.file_name()?.to_string_lossy()));
    }
    None
}
