//! A soak: a cluster of real processes with all its services, under load, through random faults that overlap, for as
//! long as one likes.
//!
//! `examples/soak.rs` runs it; `docs/soak.md` says how, and what is made and checked. It goes in rounds. In a round
//! each node ([`nodes`]) and each service ([`services`]) has a thread that does it harm at random times, and an
//! operator ([`operator`]) gives commands. Then everything is ended, and the cluster has to become healthy by itself,
//! while the clients rest. Between rounds nodes come and are lost. At the end every answer that any client got has to
//! be explained ([`checks`], [`stories`], [`checker`](crate::checker)).
//!
//! The seed decides who suffers what and for how long, not the moment at which a node gets there: a seed that failed is
//! likely to fail again, not certain to.

pub mod arguments;
pub mod checks;
pub mod cold;
mod crowd;
pub mod nodes;
pub mod operator;
pub mod round;
pub mod services;
pub mod stories;
pub mod tiers;

use std::fs;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use self::cold::Cold;
use self::nodes::Victim;
use self::operator::Desk;
use self::round::Round;
use self::stories::Stories;
use self::tiers::{Fastdfs, Tiers};
use crate::client::Request;
use crate::cluster::{Cluster, Options, REBUILD_DELAY, private_file};
use crate::content::Random;
use crate::disk::SmallDisk;
use crate::services::rocketmq::{self, RocketMq};
use crate::workload::{BUCKET, Workload};

/// Time for a cluster to become healthy by itself, on a busy machine.
const HEAL: Duration = Duration::from_secs(240);
/// Changes that must be acknowledged when all is well again, and the time for them.
const PROGRESS: (u64, Duration) = (40, Duration::from_secs(90));
/// Nodes that lie on small disks, which are filled.
const SMALL: usize = 2;
const SMALL_MIB: u64 = 3 << 10;
/// More nodes than this are too many for a small machine.
const NODES_MAX: usize = 6;

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// From which all choices come.
    pub seed: u64,
    /// For how long faults are made, rests between them included.
    pub length: Duration,
    /// Of one round.
    pub round: Duration,
    /// Nodes at the beginning.
    pub nodes: usize,
    /// The kinds of faults, of [`round::KINDS`].
    pub kinds: Vec<&'static str>,
    /// Whether there is a RocketMQ to which nodes publish.
    pub events: bool,
    /// Where the logs of nodes go when something was wrong.
    pub logs: PathBuf,
}

/// Runs a soak, with a FastDFS for a cold tier.
///
/// # Panics
/// When anything is not as promised; what, is printed, and the logs of the nodes are kept.
pub fn run(plan: &Plan, fastdfs: &dyn Fastdfs) {
    println!("soak: --seed {} with {:?}", plan.seed, plan.kinds);
    let place = tempfile::tempdir_in(crate::node::binary().parent().unwrap()).unwrap();
    let small: Vec<(PathBuf, SmallDisk)> = (0..if plan.kinds.contains(&"full") { SMALL } else { 0 })
        .map(|at| {
            let dir = place.path().join(format!("small-{at}"));
            fs::create_dir(&dir).unwrap();
            let disk = SmallDisk::new(&dir, SMALL_MIB);
            (disk.path().to_owned(), disk)
        })
        .collect();
    let mut rocketmq = plan.events.then(RocketMq::start);
    let mut environment: Vec<_> = tiers::environment().collect();
    if let Some(rocketmq) = &rocketmq {
        let secret = place.path().join("secret");
        private_file(&secret, rocketmq::SECRET_KEY);
        // For as long as the process lives.
        environment.push(("HOLDFAST_EVENTS_ROCKETMQ", &*String::leak(rocketmq.name_servers())));
        environment.push(("HOLDFAST_EVENTS_ACCESS_KEY", rocketmq::ACCESS_KEY));
        environment.push(("HOLDFAST_EVENTS_SECRET_KEY_FILE", &*String::leak(secret.display().to_string())));
    }
    let mut tiers = Tiers::start(fastdfs);
    let disks = small.iter().map(|(path, _)| Some(path.join("disk"))).collect();
    let mut cluster =
        Cluster::start_with(plan.nodes, Options { environment, disks, cache: true, ..Options::default() });
    let small: Vec<PathBuf> = small.iter().map(|(path, _)| path.clone()).collect();
    let result = catch_unwind(AssertUnwindSafe(|| soak(plan, &mut cluster, rocketmq.as_mut(), &mut tiers, &small)));
    if let Err(panic) = result {
        fs::create_dir_all(&plan.logs).unwrap();
        for (at, member) in cluster.members.iter().enumerate() {
            fs::write(plan.logs.join(format!("node-{at}-{}.log", member.id)), member.node.log()).unwrap();
        }
        println!("the logs of the nodes are in {}", plan.logs.display());
        resume_unwind(panic);
    }
    println!("soak: --seed {} found nothing wrong", plan.seed);
}

fn soak(
    plan: &Plan,
    cluster: &mut Cluster,
    mut rocketmq: Option<&mut RocketMq>,
    tiers: &mut Tiers<'_>,
    small: &[PathBuf],
) {
    let mut random = Random::new(plan.seed);
    let client = cluster.client(0);
    [BUCKET, stories::BUCKET, stories::VERSIONED, cold::BUCKET]
        .into_iter()
        .for_each(|bucket| client.create_bucket(bucket));
    let body = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    let (path, query) = (format!("/{}", stories::VERSIONED), [("versioning", "")]);
    let enabled =
        client.send_until_served(&Request { method: "PUT", path: &path, query: &query, body, ..Request::default() });
    assert_eq!(enabled.status, 200, "{}", enabled.text());

    tiers.add_to(cluster);

    let load = Workload::new(plan.seed, cluster.addresses());
    let clients = Clients {
        load: &load,
        tales: &Stories::new(plan.seed, cluster.addresses()),
        cold: &Cold::new(plan.seed, cluster.addresses()),
    };
    let mut faults = 0;
    let (began, stop) = (Instant::now(), AtomicBool::new(false));
    load.run(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| clients.tales.run(&stop));
            scope.spawn(|| clients.cold.run(&stop));
            let _stop = StopAtEnd(&stop);
            for number in 1.. {
                load.make_progress("all is well", PROGRESS.0, PROGRESS.1);
                if began.elapsed() >= plan.length && number > 1 {
                    break;
                }
                // A node that was lost for good is the damage of its round.
                let lost = number > 1 && membership(plan, cluster, &mut random, clients, began);
                let victims: Vec<usize> = present(cluster);
                let damaged = victims[random.below(victims.len() as u64) as usize];
                let round = Round::new(began, plan.round, &plan.kinds, (!lost).then_some(damaged));
                round.say(&format!("round {number} of nodes {victims:?}; node {damaged} may be damaged: {}", !lost));
                torment(cluster, rocketmq.as_deref_mut(), tiers, small, &round, &mut random);
                faults += round.faults() + usize::from(lost);
                round.say("the faults have ended");
                // On a busy machine a replica is late at any time, and then a repair waits.
                clients.rest(true);
                cluster.wait_until_healthy("after the faults", HEAL);
                checks::no_rot_is_left(cluster);
                cluster.wait_until_healthy("after scrubs", HEAL);
                tiers.settle(cluster);
                checks::nodes_are_bounded(cluster);
                clients.rest(false);
            }
        });
    });
    cluster.wait_until_healthy("at the end", HEAL);
    load.verify();
    clients.tales.verify();
    clients.cold.verify();
    tiers.settle(cluster);
    tiers.verify(cluster);
    if plan.events {
        checks::everything_is_told(cluster);
    }
    checks::all_space_comes_back(cluster);
    tiers.become_empty(cluster, faults);
    cluster.wait_until_healthy("when all is deleted", HEAL);
    checks::nodes_are_bounded(cluster);
    checks::nobody_panicked(cluster);
}

/// All clients, beside each other.
#[derive(Debug, Clone, Copy)]
struct Clients<'a> {
    load: &'a Workload,
    tales: &'a Stories,
    cold: &'a Cold,
}

impl Clients<'_> {
    fn rest(self, rest: bool) {
        self.load.rest(rest);
        self.tales.rest(rest);
        self.cold.rest(rest);
    }

    fn set_nodes(self, addresses: &[SocketAddr]) {
        self.load.set_nodes(addresses.to_vec());
        self.tales.set_nodes(addresses.to_vec());
        self.cold.set_nodes(addresses.to_vec());
    }
}

/// Ends the clients also when what runs beside them panics.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The places of the nodes that were not lost for good.
fn present(cluster: &Cluster) -> Vec<usize> {
    (0..cluster.members.len()).filter(|at| cluster.members[*at].node.is_running()).collect()
}

/// A node comes, or one is lost for good, or neither; true when one was lost.
fn membership(plan: &Plan, cluster: &mut Cluster, random: &mut Random, clients: Clients<'_>, began: Instant) -> bool {
    if !plan.kinds.contains(&"membership") {
        return false;
    }
    let say = |what: &str| println!("{:8.3} {what}", began.elapsed().as_secs_f64());
    let nodes = present(cluster);
    let lost = match random.below(3) {
        0 if cluster.members.len() < NODES_MAX => {
            let at = cluster.add_node();
            cluster.assign_and_apply();
            say(&format!("node {at} has come"));
            false
        }
        1 if nodes.len() > 3 => {
            let at = nodes[random.below(nodes.len() as u64) as usize];
            say(&format!("node {at} is lost for good"));
            cluster.members[at].node.kill();
            let observer = *nodes.iter().find(|node| **node != at).expect("there are others");
            std::thread::sleep(REBUILD_DELAY);
            let id = cluster.members[at].id.clone();
            crate::eventually("a lost node is removed", HEAL, || {
                cluster.members[observer].node.try_cli(&["node", "remove", &id, "--force"]).status.success()
            });
            true
        }
        _ => false,
    };
    let addresses: Vec<_> = present(cluster).into_iter().map(|at| cluster.members[at].node.s3()).collect();
    clients.set_nodes(&addresses);
    lost
}

/// All faults of a round, side by side; returns when all of them are ended.
fn torment(
    cluster: &mut Cluster,
    rocketmq: Option<&mut RocketMq>,
    tiers: &mut Tiers<'_>,
    small: &[PathBuf],
    round: &Round<'_>,
    random: &mut Random,
) {
    let places = present(cluster);
    let desks: Vec<Desk> = places.iter().map(|at| Desk::of(&cluster.members[*at])).collect();
    let Cluster { members, network, ensemble, mariadb, redis, .. } = cluster;
    let network = &*network;
    let mut next = || Random::new(random.next_u64());
    std::thread::scope(|scope| {
        for (at, member) in members.iter_mut().enumerate().filter(|(at, _)| places.contains(at)) {
            let others = places.iter().copied().filter(|other| *other != at).collect();
            let small = small.get(at).cloned();
            let disk =
                small.as_ref().map_or_else(|| member.node.data_dir().join("disks/0"), |small| small.join("disk"));
            let victim = Victim { at, member, network, others, disk, small };
            let random = next();
            scope.spawn(move || victim.suffer(round, random));
        }
        let random = next();
        scope.spawn(move || services::zookeeper(ensemble, round, random));
        let random = next();
        scope.spawn(move || services::database(mariadb, round, random));
        let random = next();
        if let Some(redis) = redis {
            scope.spawn(move || services::redis(redis, round, random));
        }
        let random = next();
        if let Some(rocketmq) = rocketmq {
            scope.spawn(move || services::broker(rocketmq, round, random));
        }
        let (of_store, of_fastdfs) = (next(), next());
        scope.spawn(move || tiers.suffer(round, of_store, of_fastdfs));
        let random = next();
        scope.spawn(move || operator::work(&desks, round, random));
    });
    network.heal();
}
