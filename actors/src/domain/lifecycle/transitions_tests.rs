//! Which moves are taken, which of several counts, and that streams miss none of it.

use proptest::prelude::*;

use holdfast_protocol::VersionId;

use super::*;
use crate::domain::lifecycle::{
    Due, Expiration, LifecycleAction, NoncurrentExpiration, RuleFilter, Stream, StreamKind,
};
use crate::ports::metadata::Tag;

const DAY_MS: u64 = 86_400_000;
const HALF: u64 = DAY_MS / 2;
/// 1 January 2024, 12:00.
const NOON: u64 = 1_704_110_400_000;
const LARGE: u64 = 1 << 20;

fn tier(name: &str) -> Option<TierName> {
    (name != STANDARD).then(|| name.parse().expect("a name of a tier"))
}

fn days(days: u32, to: &str) -> Transition {
    Transition { days: Some(days), to: tier(to), ..Transition::default() }
}

fn date(date_ms: u64, to: &str) -> Transition {
    Transition { date_ms: Some(date_ms), to: tier(to), ..Transition::default() }
}

fn idle(days: u32, to: &str) -> Transition {
    Transition { idle_days: Some(days), to: tier(to), ..Transition::default() }
}

fn noncurrent(days: u32, keep: Option<u32>, to: &str) -> NoncurrentTransition {
    NoncurrentTransition { days, keep, to: tier(to) }
}

fn rule(transitions: Vec<Transition>) -> LifecycleRule {
    LifecycleRule {
        id: "a".into(),
        enabled: true,
        filter: RuleFilter::default(),
        expiration: None,
        noncurrent: None,
        transitions,
        noncurrent_transitions: Vec::new(),
        abort_uploads_days: None,
    }
}

fn older(noncurrent_transitions: Vec<NoncurrentTransition>) -> LifecycleRule {
    LifecycleRule { noncurrent_transitions, ..rule(Vec::new()) }
}

fn rules(rules: Vec<LifecycleRule>) -> LifecycleRules {
    LifecycleRules { rules, ..LifecycleRules::default() }
}

fn version(standing: Standing, class: &str) -> AgedVersion {
    AgedVersion {
        key: "logs/a".into(),
        version: VersionId::NULL,
        sequence: 1,
        standing,
        last_modified_ms: NOON,
        since_ms: NOON,
        size_bytes: (!matches!(standing, Standing::Marker { .. })).then_some(LARGE),
        tags: Vec::new(),
        class: tier(class),
    }
}

/// Where a version goes, if it is to go anywhere.
fn goes(rules: &LifecycleRules, version: &AgedVersion, known: Known, now_ms: u64) -> Option<String> {
    let due = rules.judge(version, known, now_ms, Day::REAL)?;
    assert_eq!(due.action, LifecycleAction::Transition);
    Some(class_name(due.to.as_ref()).to_owned())
}

fn current_goes(rules: &LifecycleRules, class: &str, now_ms: u64) -> Option<String> {
    goes(rules, &version(Standing::Current, class), Known::default(), now_ms)
}

fn fault(changed: LifecycleRule) -> RuleFault {
    rules(vec![changed]).check().expect_err("it is refused")
}

fn taken(rule: LifecycleRule) {
    assert_eq!(rules(vec![rule]).check(), Ok(()));
}

#[test]
fn a_rule_moves_on_from_class_to_class_each_once_by_days_or_dates_and_expires_later() {
    taken(rule(vec![days(0, "OSS"), days(30, "FASTDFS"), idle(3, "ARCHIVE"), days(31, STANDARD)]));
    taken(rule(vec![date(0, "OSS"), date(DAY_MS, "FASTDFS")]));
    assert!(matches!(fault(rule(vec![days(0, "OSS"), days(30, "OSS")])), RuleFault::Request(_)));
    assert!(matches!(fault(rule(vec![days(0, STANDARD), days(30, STANDARD)])), RuleFault::Request(_)));
    assert!(matches!(fault(rule(vec![days(0, "OSS"), date(0, "FASTDFS")])), RuleFault::Request(_)));
    assert!(matches!(fault(rule(vec![date(1, "OSS")])), RuleFault::Argument(_)));
    assert!(matches!(fault(rule(vec![Transition::default()])), RuleFault::Malformed(_)));
    for two in [
        Transition { date_ms: Some(0), ..days(1, "OSS") },
        Transition { idle_days: Some(1), ..days(1, "OSS") },
        Transition { idle_days: Some(1), ..date(0, "OSS") },
    ] {
        assert!(matches!(fault(rule(vec![two])), RuleFault::Malformed(_)));
    }
    let expires = |expiration: Expiration, transition: Transition| LifecycleRule {
        expiration: Some(expiration),
        ..rule(vec![transition])
    };
    let after = |days| Expiration { days: Some(days), ..Expiration::default() };
    let on = |date_ms| Expiration { date_ms: Some(date_ms), ..Expiration::default() };
    taken(expires(after(31), days(30, "OSS")));
    taken(expires(on(DAY_MS), date(0, "OSS")));
    taken(expires(Expiration { lone_markers: Some(true), ..Expiration::default() }, date(0, "OSS")));
    for (expiration, transition) in [
        (after(30), days(30, "OSS")),
        (after(2), idle(2, "OSS")),
        (on(0), date(0, "OSS")),
        (on(0), date(DAY_MS, "OSS")),
    ] {
        assert!(matches!(fault(expires(expiration, transition)), RuleFault::Argument(_)));
    }
    assert!(matches!(fault(expires(on(DAY_MS), days(1, "OSS"))), RuleFault::Request(_)));
    assert!(matches!(fault(expires(after(9), date(0, "OSS"))), RuleFault::Request(_)));
}

#[test]
fn days_since_the_last_read_are_at_least_one_and_lead_to_a_tier() {
    taken(rule(vec![idle(1, "OSS")]));
    assert!(matches!(fault(rule(vec![idle(0, "OSS")])), RuleFault::Argument(_)));
    assert!(matches!(fault(rule(vec![idle(1, STANDARD)])), RuleFault::Argument(_)));
}

#[test]
fn older_versions_move_before_they_go() {
    let goes =
        |days, moves| LifecycleRule { noncurrent: Some(NoncurrentExpiration { days, keep: None }), ..older(moves) };
    taken(goes(4, vec![noncurrent(0, None, "OSS"), noncurrent(3, Some(100), "FASTDFS")]));
    assert!(matches!(fault(goes(3, vec![noncurrent(3, None, "OSS")])), RuleFault::Argument(_)));
    for keep in [0, 101] {
        assert!(matches!(fault(older(vec![noncurrent(3, Some(keep), "OSS")])), RuleFault::Argument(_)));
    }
    let twice = vec![noncurrent(3, None, "OSS"), noncurrent(4, None, "OSS")];
    assert!(matches!(fault(older(twice)), RuleFault::Request(_)));
}

#[test]
fn a_latest_version_moves_at_the_midnight_after_its_days_and_only_once() {
    let one = rules(vec![rule(vec![days(1, "OSS")])]);
    let midnight = NOON + HALF + DAY_MS;
    assert_eq!(current_goes(&one, STANDARD, midnight - 1), None);
    let due = Due { action: LifecycleAction::Transition, since_ms: midnight, to: tier("OSS") };
    let standard = version(Standing::Current, STANDARD);
    assert_eq!(one.judge(&standard, Known::default(), midnight, Day::REAL), Some(due));
    assert_eq!(current_goes(&one, "OSS", midnight), None, "it has the class already");
    let at_once = rules(vec![rule(vec![days(0, "OSS")])]);
    assert_eq!(current_goes(&at_once, STANDARD, NOON + HALF - 1), None);
    assert_eq!(current_goes(&at_once, STANDARD, NOON + HALF).as_deref(), Some("OSS"));
}

#[test]
fn of_several_moves_the_last_that_is_due_counts() {
    let both = rules(vec![rule(vec![days(5, "FASTDFS"), days(2, "OSS")]), rule(vec![date(NOON + HALF, STANDARD)])]);
    let at = |days: u64| NOON + HALF + days * DAY_MS;
    assert_eq!(current_goes(&both, "OSS", at(1)).as_deref(), Some(STANDARD), "the date is the only one yet");
    assert_eq!(current_goes(&both, STANDARD, at(2)).as_deref(), Some("OSS"));
    assert_eq!(current_goes(&both, STANDARD, at(5)).as_deref(), Some("FASTDFS"));
    assert_eq!(current_goes(&both, "FASTDFS", at(9)), None, "what was due before does not bring it back");
    let equal = rules(vec![rule(vec![days(2, "OSS"), days(2, "FASTDFS")])]);
    assert_eq!(current_goes(&equal, "FASTDFS", at(2)).as_deref(), Some("OSS"), "the one that stands first");
    let back = rules(vec![rule(vec![days(2, "OSS"), days(4, STANDARD)])]);
    assert_eq!(current_goes(&back, "OSS", at(4)).as_deref(), Some(STANDARD));
}

#[test]
fn what_expires_is_not_moved() {
    let expiration = Some(Expiration { days: Some(3), ..Expiration::default() });
    let both = rules(vec![LifecycleRule { expiration, ..rule(vec![days(1, "OSS")]) }]);
    let judge = |now_ms| both.judge(&version(Standing::Current, STANDARD), Known::default(), now_ms, Day::REAL);
    assert_eq!(judge(NOON + 2 * DAY_MS).map(|due| due.action), Some(LifecycleAction::Transition));
    assert_eq!(judge(NOON + 9 * DAY_MS).map(|due| due.action), Some(LifecycleAction::ExpireCurrent));
    let removal = Some(NoncurrentExpiration { days: 3, keep: Some(2) });
    let both = rules(vec![LifecycleRule { noncurrent: removal, ..older(vec![noncurrent(1, None, "OSS")]) }]);
    let judge = |newer| {
        let known = Known { newer, read_ms: None };
        let old = version(Standing::Noncurrent, STANDARD);
        both.judge(&old, known, NOON + 9 * DAY_MS, Day::REAL).map(|due| due.action)
    };
    assert_eq!(judge(2), Some(LifecycleAction::RemoveNoncurrent));
    assert_eq!(judge(1), Some(LifecycleAction::Transition), "kept, but not where it is");
}

#[test]
fn small_objects_stay_unless_the_rules_say_otherwise() {
    let sized = |size_bytes| AgedVersion { size_bytes: Some(size_bytes), ..version(Standing::Current, STANDARD) };
    let later = NOON + 9 * DAY_MS;
    let goes_to = |rules: &LifecycleRules, size| goes(rules, &sized(size), Known::default(), later);
    for (class, varies_small) in
        [("OSS", true), ("GLACIER", true), ("DEEP_ARCHIVE", true), ("GLACIER_IR", false), ("STANDARD_IA", false)]
    {
        let mut one = rules(vec![rule(vec![days(1, class)])]);
        assert_eq!(goes_to(&one, (128 << 10) - 1), None, "{class}");
        assert_eq!(goes_to(&one, 128 << 10).as_deref(), Some(class));
        one.transition_minimum = Some("varies_by_storage_class".into());
        assert_eq!(goes_to(&one, 1).is_some(), varies_small, "{class}");
        one.transition_minimum = None;
        for filter in [
            RuleFilter { larger_than_bytes: Some(0), ..RuleFilter::default() },
            RuleFilter { smaller_than_bytes: Some(LARGE), ..RuleFilter::default() },
        ] {
            one.rules[0].filter = filter;
            assert_eq!(goes_to(&one, 1).as_deref(), Some(class), "the filter names a size");
        }
    }
    let small = AgedVersion { size_bytes: Some(1), ..version(Standing::Current, "OSS") };
    let back = rules(vec![rule(vec![days(1, STANDARD)])]);
    assert_eq!(
        goes(&back, &small, Known::default(), later).as_deref(),
        Some(STANDARD),
        "no object is too small for disks"
    );
}

#[test]
fn only_what_matches_the_filter_and_has_bytes_is_moved() {
    let later = NOON + 9 * DAY_MS;
    let filter = RuleFilter { tags: vec![Tag { key: "k".into(), value: "v".into() }], ..RuleFilter::default() };
    let tagged = LifecycleRule { filter, ..rule(vec![days(1, "OSS")]) };
    assert_eq!(current_goes(&rules(vec![tagged]), STANDARD, later), None);
    let off = LifecycleRule { enabled: false, ..rule(vec![days(1, "OSS")]) };
    assert_eq!(current_goes(&rules(vec![off]), STANDARD, later), None);
    let all = LifecycleRule {
        noncurrent_transitions: vec![noncurrent(1, None, "OSS")],
        ..rule(vec![days(1, "OSS"), date(0, "FASTDFS")])
    };
    let all = rules(vec![all]);
    let old_marker = AgedVersion { size_bytes: None, ..version(Standing::Noncurrent, STANDARD) };
    for marker in [
        version(Standing::Marker { is_alone: true }, STANDARD),
        version(Standing::Marker { is_alone: false }, STANDARD),
        old_marker,
    ] {
        assert_eq!(goes(&all, &marker, Known::default(), later), None, "{marker:?}");
    }
    assert_eq!(goes(&all, &version(Standing::Noncurrent, STANDARD), Known::default(), later).as_deref(), Some("OSS"));
}

#[test]
fn the_newest_older_versions_stay_where_they_are() {
    let one = rules(vec![older(vec![noncurrent(1, Some(2), "OSS")]), older(vec![noncurrent(3, Some(1), "FASTDFS")])]);
    let old = version(Standing::Noncurrent, STANDARD);
    let judge = |newer, days: u64| goes(&one, &old, Known { newer, read_ms: None }, NOON + HALF + days * DAY_MS);
    assert_eq!(judge(0, 9), None);
    assert_eq!(judge(2, 0), None);
    assert_eq!(judge(2, 1).as_deref(), Some("OSS"));
    assert_eq!(judge(1, 2), None);
    assert_eq!(judge(1, 3).as_deref(), Some("FASTDFS"));
    assert_eq!(one.keeps("logs/a"), [(2, 1), (1, 3)], "from the most on");
}

#[test]
fn a_read_puts_the_move_off_and_brings_back_what_another_rule_wants_on_disks() {
    let mut one = rules(vec![rule(vec![idle(2, "OSS")])]);
    let at = |days: u64| NOON + HALF + days * DAY_MS;
    let read_on = |days: u64| Known { newer: 0, read_ms: Some(NOON - HALF + days * DAY_MS) };
    let current = |class| version(Standing::Current, class);
    assert_eq!(goes(&one, &current(STANDARD), Known::default(), at(1)), None);
    assert_eq!(goes(&one, &current(STANDARD), Known::default(), at(2)).as_deref(), Some("OSS"));
    assert_eq!(goes(&one, &current(STANDARD), read_on(4), at(5)), None);
    assert_eq!(goes(&one, &current(STANDARD), read_on(4), at(6)).as_deref(), Some("OSS"));
    assert_eq!(goes(&one, &current("OSS"), read_on(7), at(8)), None, "nothing says where else it belongs");
    // What was there before reads were noted may have been read.
    one.reads_since_ms = Some(NOON + 6 * DAY_MS);
    assert_eq!(goes(&one, &current(STANDARD), Known::default(), at(7)), None);
    assert_eq!(goes(&one, &current(STANDARD), Known::default(), at(8)).as_deref(), Some("OSS"));
    one.rules.push(rule(vec![days(0, STANDARD)]));
    assert_eq!(goes(&one, &current("OSS"), Known::default(), at(9)), None);
    assert_eq!(goes(&one, &current("OSS"), read_on(9), at(9)).as_deref(), Some(STANDARD));
}

fn names(rules: &LifecycleRules) -> Vec<String> {
    rules.streams(NOON, Day::REAL).into_iter().map(|stream| stream.name).collect()
}

#[test]
fn each_age_and_target_has_a_walk_of_its_own() {
    let expiration = Some(Expiration { days: Some(7), ..Expiration::default() });
    let both = LifecycleRule {
        expiration,
        noncurrent_transitions: vec![noncurrent(3, Some(1), "OSS"), noncurrent(4, None, STANDARD)],
        ..rule(vec![days(5, "OSS"), days(6, STANDARD)])
    };
    let streams = rules(vec![both.clone(), both]).streams(NOON, Day::REAL);
    let names: Vec<&str> = streams.iter().map(|stream| stream.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "current.7d",
            "markers.7d",
            "current.5d.OSS",
            "current.6d.STANDARD",
            "noncurrent.3d.OSS",
            "noncurrent.all.OSS",
            "noncurrent.4d.STANDARD"
        ]
    );
    let tiers: Vec<bool> = streams.iter().map(|stream| stream.tier.is_some()).collect();
    assert_eq!(tiers, [false, false, true, false, true, true, false]);
    let dated = rules(vec![rule(vec![date(NOON - HALF, "OSS")])]);
    assert_eq!(self::names(&dated), [format!("current.from{}.OSS", NOON - HALF)]);
    assert!(dated.streams(NOON - HALF - 1, Day::REAL).is_empty());
}

#[test]
fn names_of_walks_fit_where_they_are_kept() {
    let to = "A".repeat(32);
    let long = LifecycleRule {
        noncurrent_transitions: vec![noncurrent(u32::MAX, Some(1), &to)],
        // The last midnight of the year 9999.
        ..rule(vec![days(u32::MAX, &to), date(253_402_214_400_000, &to), idle(u32::MAX, &to)])
    };
    let streams = rules(vec![long]).streams(u64::MAX / 4, Day::of_ms(1));
    assert_eq!(streams.len(), 7);
    assert!(streams.iter().all(|stream| stream.name.len() <= 64), "{streams:?}");
}

#[test]
fn reads_are_walked_when_they_are_so_old_and_once_more_where_they_may_bring_something_back() {
    let mut one = rules(vec![rule(vec![idle(2, "OSS")])]);
    assert!(one.asks_for_reads());
    assert_eq!((one.idle_days_max(), names(&one)), (Some(2), vec!["current.idle2d.OSS".into(), "read.2d.OSS".into()]));
    one.reads_since_ms = Some(NOON - DAY_MS);
    assert_eq!(names(&one), ["read.2d.OSS"], "reads were not noted for so long");
    one.rules.push(rule(vec![days(0, STANDARD)]));
    assert_eq!(names(&one), ["read.2d.OSS", "current.0d.STANDARD", "read.back"]);
    one.rules[0].enabled = false;
    assert_eq!(names(&one), ["current.0d.STANDARD"]);
    assert!(!one.asks_for_reads());
}

/// Whether a walk of these would meet what is of an age.
fn meets(streams: &[Stream], kind: StreamKind, at_ms: u64) -> bool {
    streams.iter().any(|stream| stream.kind == kind && at_ms <= stream.until_ms)
}

#[test]
fn what_is_due_at_the_next_midnight_is_met_when_all_of_the_day_is_there() {
    let rule = LifecycleRule { noncurrent_transitions: vec![noncurrent(0, None, "OSS")], ..rule(vec![days(0, "OSS")]) };
    let rules = rules(vec![rule]);
    let (midnight, quarter) = (NOON + HALF, DAY_MS / 96);
    for (now_ms, last_ms) in [
        (midnight + quarter - 1, midnight - DAY_MS - 1),
        (midnight + quarter, midnight - 1),
        (midnight + DAY_MS, midnight - 1),
    ] {
        let streams = rules.streams(now_ms, Day::REAL);
        assert!(streams.iter().all(|stream| stream.until_ms == last_ms), "{streams:?}");
        assert_eq!(streams.len(), 2);
    }
}

proptest! {
    /// What should move by its age lies within a walk, and what lies beyond all walks is not due: so walks that go on
    /// from where they stood pass nothing by.
    #[test]
    fn walks_end_where_no_more_moves_are_due(
        ages in prop::collection::vec((1u32..20, prop::bool::ANY), 1..6),
        day_ms in 1_000u64..DAY_MS,
        age_ms in 0u64..40 * DAY_MS,
    ) {
        let day = Day::of_ms(day_ms);
        let rule_of = |(age, far): &(u32, bool)| LifecycleRule {
            noncurrent_transitions: vec![noncurrent(*age, None, if *far { "OSS" } else { "FASTDFS" })],
            ..rule(vec![days(*age, if *far { "OSS" } else { "FASTDFS" })])
        };
        let rules = rules(ages.iter().map(rule_of).collect());
        let begun = NOON - age_ms;
        let judged = |standing| {
            let aged = AgedVersion { last_modified_ms: begun, since_ms: begun, ..version(standing, STANDARD) };
            rules.judge(&aged, Known::default(), NOON, day).is_some()
        };
        let streams = rules.streams(NOON, day);
        prop_assert_eq!(judged(Standing::Current), meets(&streams, StreamKind::Current, begun));
        prop_assert_eq!(judged(Standing::Noncurrent), meets(&streams, StreamKind::Noncurrent, begun));
    }

    /// By the last read, time goes on: whenever an object becomes due, one of the two walks meets it then or later,
    /// beyond where it stood before.
    #[test]
    fn what_becomes_idle_is_met_by_one_of_two_walks(
        idle_days in 1u32..10,
        day_ms in 1_000u64..DAY_MS,
        age_ms in 0u64..30 * DAY_MS,
        since_ms in prop::option::of(0u64..30 * DAY_MS),
        read_ms in prop::option::of(0u64..30 * DAY_MS),
        wait_ms in 1u64..30 * DAY_MS,
    ) {
        let day = Day::of_ms(day_ms);
        let one = LifecycleRules {
            reads_since_ms: since_ms.map(|ms| NOON - ms),
            ..rules(vec![rule(vec![idle(idle_days, "OSS")])])
        };
        let modified = NOON - age_ms;
        // Notes are of whole days.
        let read = read_ms.map(|ms| (NOON - ms) / day_ms * day_ms);
        let aged = AgedVersion { last_modified_ms: modified, since_ms: modified, ..version(Standing::Current, STANDARD) };
        let known = Known { newer: 0, read_ms: read };
        let judged = |now_ms| one.judge(&aged, known, now_ms, day).is_some();
        let met = |now_ms| {
            let streams = one.streams(now_ms, day);
            (meets(&streams, StreamKind::Current, modified), read.is_some_and(|ms| meets(&streams, StreamKind::Read, ms)))
        };
        let (before, now) = (NOON, NOON + wait_ms);
        if judged(now) {
            prop_assert!(met(now).0 || met(now).1, "it is due, and nothing meets it");
            if !judged(before) {
                let (was, is) = (met(before), met(now));
                prop_assert!((is.0 && !was.0) || (is.1 && !was.1), "it became due, and walks had passed it");
            }
        }
    }
}
