//! What befalls ZooKeeper, MariaDB, Redis and RocketMQ. At the end of a round they serve.

use std::time::Duration;

use rustix::process::Signal;

use super::round::{Round, up_to};
use crate::cluster::SESSION;
use crate::content::Random;
use crate::services::mariadb::Mariadb;
use crate::services::redis::Server as Redis;
use crate::services::rocketmq::RocketMq;
use crate::services::zookeeper::Ensemble;

/// Pause between the faults of one service.
const PAUSE: Duration = Duration::from_secs(30);
/// How long one stays away.
const AWAY: Duration = Duration::from_secs(8);

/// Until the round is over: pauses, and does `fault` where `kind` may be.
fn again_and_again(round: &Round<'_>, kind: &'static str, mut random: Random, mut fault: impl FnMut(&mut Random)) {
    loop {
        round.wait_up_to(&mut random, PAUSE);
        if round.is_over() {
            return;
        }
        if round.choose(&mut random, &[kind]).is_some() {
            fault(&mut random);
        }
    }
}

/// Servers are killed or paused, one or all.
pub fn zookeeper(ensemble: &mut Ensemble, round: &Round<'_>, random: Random) {
    again_and_again(round, "zookeeper", random, |random| {
        let one = random.below(ensemble.servers.len() as u64) as usize;
        match random.below(4) {
            0 => {
                let away = up_to(random, SESSION * 2);
                round.say(&format!("all of ZooKeeper is killed, for {away:?}"));
                ensemble.kill_all();
                round.wait(away);
            }
            1 => {
                let away = up_to(random, AWAY);
                round.say(&format!("ZooKeeper's server {one} stands still for {away:?}"));
                ensemble.servers[one].signal(Signal::STOP);
                round.wait(away);
                ensemble.servers[one].signal(Signal::CONT);
            }
            _ => {
                let away = up_to(random, AWAY);
                round.say(&format!("ZooKeeper's server {one} is killed, for {away:?}"));
                ensemble.servers[one].kill();
                round.wait(away);
            }
        }
        ensemble.start_all();
        round.say("ZooKeeper is whole");
    });
}

/// It is killed or paused.
pub fn database(mariadb: &mut Mariadb, round: &Round<'_>, random: Random) {
    again_and_again(round, "database", random, |random| {
        let away = up_to(random, AWAY);
        if random.chance(60) {
            round.say(&format!("the database is killed, for {away:?}"));
            mariadb.kill();
            round.wait(if random.chance(50) { Duration::ZERO } else { away });
            mariadb.restart();
        } else {
            round.say(&format!("the database stands still for {away:?}"));
            mariadb.signal(Signal::STOP);
            round.wait(away);
            mariadb.signal(Signal::CONT);
        }
        round.say("the database serves");
    });
}

/// It is killed and comes back empty or with old data, is paused or flushed.
pub fn redis(redis: &mut Redis, round: &Round<'_>, random: Random) {
    again_and_again(round, "redis", random, |random| {
        let away = up_to(random, AWAY);
        let way = random.below(5);
        match way {
            0 => {
                round.say("Redis is flushed");
                redis.command(&["FLUSHALL"]);
                return;
            }
            1 => {
                round.say(&format!("Redis stands still for {away:?}"));
                redis.signal(Signal::STOP);
                round.wait(away);
                redis.signal(Signal::CONT);
            }
            2 => {
                redis.save();
                round.say(&format!("Redis saves; in {away:?} it is killed and comes back with that"));
                round.wait(away);
                redis.kill();
                redis.run();
                redis.forget_saved();
            }
            _ => {
                round.say(&format!("Redis is killed, for {away:?}"));
                redis.kill();
                round.wait(if random.chance(40) { Duration::ZERO } else { away });
                redis.run();
            }
        }
        round.say("Redis serves");
    });
}

/// The broker is killed or paused.
pub fn broker(rocketmq: &mut RocketMq, round: &Round<'_>, random: Random) {
    again_and_again(round, "broker", random, |random| {
        let away = up_to(random, AWAY * 2);
        if random.chance(60) {
            round.say(&format!("the broker is killed, for {away:?}"));
            rocketmq.kill_broker();
            round.wait(away);
            rocketmq.restart_broker();
        } else {
            round.say(&format!("the broker stands still for {away:?}"));
            rocketmq.signal_broker(Signal::STOP);
            round.wait(away);
            rocketmq.signal_broker(Signal::CONT);
        }
        round.say("the broker serves");
    });
}
