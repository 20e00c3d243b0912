//! An operator beside the faults: commands to whichever node answers, drains that are taken back.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use super::round::{Round, up_to};
use crate::cluster::Member;
use crate::content::Random;
use crate::node::binary;

/// Pause between commands.
const PAUSE: Duration = Duration::from_secs(12);
/// How long a drain goes on before it is taken back.
const DRAIN: Duration = Duration::from_secs(15);
/// Time for a command to be carried out when nothing is wrong any more.
const SETTLE: Duration = Duration::from_secs(90);
/// A node that stands still answers nothing; in seconds.
const PATIENCE: &str = "20";

/// The way to one node's admin API, without the node: that is its tormentor's.
#[derive(Debug, Clone)]
pub struct Desk {
    id: String,
    admin: SocketAddr,
    data: PathBuf,
    scratch: PathBuf,
}

impl Desk {
    /// The desk of a node.
    pub fn of(member: &Member) -> Self {
        let node = &member.node;
        let (data, scratch) = (node.data_dir().to_owned(), node.scratch().to_owned());
        Self { id: member.id.clone(), admin: node.admin(), data, scratch }
    }

    fn command(&self, arguments: &[&str]) -> Output {
        Command::new("timeout")
            .args(["-s", "KILL", PATIENCE])
            .arg(binary())
            .args(arguments)
            .env("HOLDFAST_CONFIG", self.scratch.join("holdfast.toml"))
            .env("HOLDFAST_ADMIN_ADDR", self.admin.to_string())
            .env("HOLDFAST_DATA_DIR", &self.data)
            .current_dir(&self.scratch)
            .output()
            .unwrap()
    }
}

/// Gives commands until the round is over; then none is drained and repairs go on.
pub fn work(desks: &[Desk], round: &Round<'_>, mut random: Random) {
    loop {
        round.wait_up_to(&mut random, PAUSE);
        if round.is_over() {
            return;
        }
        let desk = &desks[random.below(desks.len() as u64) as usize];
        match random.below(6) {
            0 => {
                tell(desk, &["repair", "pause"], round);
                round.wait_up_to(&mut random, DRAIN / 2);
                insist(desks, &["repair", "resume"], round);
            }
            1 => drop(tell(desk, &["cleanup", "run"], round)),
            2 => drop(tell(desk, &["scrub", "run"], round)),
            // Three replicas need three nodes.
            _ if desks.len() > 3 && round.choose(&mut random, &["drain"]).is_some() => {
                let leaver = &desks[random.below(desks.len() as u64) as usize];
                tell(desk, &["node", "drain", &leaver.id], round);
                round.wait(up_to(&mut random, DRAIN));
                insist(desks, &["node", "undrain", &leaver.id], round);
            }
            _ => {}
        }
    }
}

fn tell(desk: &Desk, arguments: &[&str], round: &Round<'_>) -> bool {
    let output = desk.command(arguments);
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint = complaint.lines().next().unwrap_or_default();
    round.say(&format!("operator at {}: {arguments:?}: {:?} {complaint}", desk.admin, output.status.code()));
    output.status.success()
}

/// Asks one node after the other until one does it.
fn insist(desks: &[Desk], arguments: &[&str], round: &Round<'_>) {
    let mut begin = Instant::now();
    let mut over = false;
    loop {
        if desks.iter().any(|desk| tell(desk, arguments, round)) {
            return;
        }
        if !over && round.is_over() {
            (begin, over) = (Instant::now(), true);
        }
        if over && begin.elapsed() > SETTLE {
            round.fail();
            panic!("no node carries out {arguments:?} within {SETTLE:?} after the faults");
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}
