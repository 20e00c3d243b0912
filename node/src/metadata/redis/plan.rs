//! What should become of the state of the cache: a decision on what one node knows.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_actors::ports::coordination::{CacheMode, CacheSeen, CacheState};
use holdfast_protocol::NodeId;

/// Failures that lengthen the pause: to about half a minute.
const FAILURES_MAX: u32 = 5;
/// A cache that was on for so many times the last pause did not fail at once.
const STEADY: u32 = 5;
/// How long warming may take. Writes with unknown outcomes hold it up for a minute.
const WARMING_MAX: Duration = Duration::from_secs(150);

/// What is known.
pub(super) struct Look<'a> {
    /// This node.
    pub(super) me: NodeId,
    /// The state, and for how long it is so.
    pub(super) state: &'a CacheState,
    pub(super) age: Duration,
    /// Whether every live node is known to have seen it.
    pub(super) is_settled: bool,
    /// The server that this node reaches.
    pub(super) server: Option<&'a str>,
    /// See [`pause`].
    pub(super) retry: Duration,
    /// What every live node said last. Only asked for by [`wants_to_know`].
    pub(super) said: &'a BTreeMap<NodeId, CacheSeen>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plan {
    Nothing,
    Warm(String),
    TurnOn,
    TurnOff(&'static str),
}

/// Whether a decision needs what the others say.
pub(super) fn wants_to_know(state: &CacheState, is_settled: bool) -> bool {
    match state.mode {
        CacheMode::Off => is_settled,
        CacheMode::Warming => true,
        CacheMode::On => false,
    }
}

/// The decision.
pub(super) fn plan(look: &Look<'_>) -> Plan {
    let state = look.state;
    let is_other = look.server.is_some_and(|server| server != state.server);
    // One of them is enough; that several try does no harm.
    let leads = look.said.keys().next() == Some(&look.me);
    match state.mode {
        CacheMode::Off => match look.server {
            Some(server) if leads && look.is_settled && look.age >= pause(look.retry, state.failures) => {
                let all = look.said.values().all(|seen| seen.server.as_deref() == Some(server));
                if all { Plan::Warm(server.to_owned()) } else { Plan::Nothing }
            }
            _ => Plan::Nothing,
        },
        CacheMode::Warming if is_other => Plan::TurnOff("the cache server was restarted or replaced"),
        CacheMode::Warming if look.age >= WARMING_MAX => Plan::TurnOff("not every node followed in time"),
        CacheMode::Warming => {
            let followed = look.said.values().all(|seen| seen.generation >= state.generation);
            if leads && followed { Plan::TurnOn } else { Plan::Nothing }
        }
        CacheMode::On if is_other => Plan::TurnOff("the cache server was restarted or replaced"),
        CacheMode::On => Plan::Nothing,
    }
}

/// How long the cache is off before it is tried again: `retry`, doubled with each failure in a row.
fn pause(retry: Duration, failures: u32) -> Duration {
    retry * 2_u32.pow(failures.min(FAILURES_MAX))
}

/// The count of failures in a row after the cache is switched off now, having been on for `steady`.
pub(super) fn failures(present: &CacheState, steady: Option<Duration>, retry: Duration) -> u32 {
    if steady.is_some_and(|steady| steady >= pause(retry, present.failures) * STEADY) {
        0
    } else {
        present.failures.saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Duration = Duration::from_secs(1);

    fn said(servers: &[(u64, u64, Option<&str>)]) -> BTreeMap<NodeId, CacheSeen> {
        let seen = |generation, server: Option<&str>| CacheSeen {
            generation,
            server: server.map(str::to_owned),
            problem: None,
        };
        servers.iter().map(|(id, generation, server)| (NodeId::from(*id), seen(*generation, *server))).collect()
    }

    fn decide(me: u64, state: &CacheState, age: u64, server: Option<&str>, said: &BTreeMap<NodeId, CacheSeen>) -> Plan {
        let age = Duration::from_secs(age);
        plan(&Look { me: NodeId::from(me), state, age, is_settled: true, server, retry: RETRY, said })
    }

    #[test]
    fn it_is_warmed_when_every_live_node_reaches_the_same_server_and_not_before_its_pause() {
        let off = CacheState { failures: 2, ..CacheState::initial() };
        let all = said(&[(1, 1, Some("s")), (2, 1, Some("s"))]);
        assert_eq!(decide(1, &off, 4, Some("s"), &all), Plan::Warm("s".into()));
        assert_eq!(decide(1, &off, 3, Some("s"), &all), Plan::Nothing, "too soon");
        assert_eq!(decide(2, &off, 9, Some("s"), &all), Plan::Nothing, "another one leads");
        assert_eq!(decide(1, &off, 9, Some("t"), &all), Plan::Nothing);
        assert_eq!(decide(1, &off, 9, None, &all), Plan::Nothing);
        for other in [None, Some("t")] {
            let one = said(&[(1, 1, Some("s")), (2, 1, other)]);
            assert_eq!(decide(1, &off, 9, Some("s"), &one), Plan::Nothing, "one node keeps it off");
        }
        let look = Look {
            me: NodeId::from(1),
            state: &off,
            age: Duration::from_secs(99),
            is_settled: false,
            server: Some("s"),
            retry: RETRY,
            said: &all,
        };
        assert_eq!(plan(&look), Plan::Nothing, "somebody may still read it");
    }

    #[test]
    fn it_is_on_when_every_live_node_marks() {
        let warming = CacheState::initial().warming(None, "s");
        let all = said(&[(1, 2, Some("s")), (2, 2, None)]);
        assert_eq!(decide(1, &warming, 1, Some("s"), &all), Plan::TurnOn);
        let one = said(&[(1, 2, Some("s")), (2, 1, Some("s"))]);
        assert_eq!(decide(1, &warming, 1, Some("s"), &one), Plan::Nothing);
        assert!(matches!(decide(1, &warming, 200, Some("s"), &one), Plan::TurnOff(_)));
        assert!(matches!(decide(2, &warming, 1, Some("t"), &all), Plan::TurnOff(_)));
    }

    #[test]
    fn whoever_finds_another_server_switches_it_off() {
        let on = CacheState::initial().warming(None, "s").on(None);
        let none = BTreeMap::new();
        assert!(matches!(decide(2, &on, 1, Some("t"), &none), Plan::TurnOff(_)));
        assert_eq!(decide(2, &on, 1, Some("s"), &none), Plan::Nothing);
        assert_eq!(decide(2, &on, 1, None, &none), Plan::Nothing, "that is for a writer to say");
    }

    #[test]
    fn failures_in_a_row_are_counted_and_forgotten() {
        let state = CacheState { failures: 3, ..CacheState::initial() };
        assert_eq!(failures(&state, None, RETRY), 4);
        assert_eq!(failures(&state, Some(Duration::from_secs(1)), RETRY), 4);
        assert_eq!(failures(&state, Some(Duration::from_secs(40)), RETRY), 0);
        assert_eq!(pause(RETRY, 0), RETRY);
        assert_eq!(pause(RETRY, 100), Duration::from_secs(32));
    }
}
