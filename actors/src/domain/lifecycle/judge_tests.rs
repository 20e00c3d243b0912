//! What is due, by one rule and by several, and that streams miss nothing of it.

use proptest::prelude::*;

use holdfast_protocol::VersionId;

use super::*;
use crate::domain::lifecycle::{Expiration, LifecycleRule, NoncurrentExpiration, RuleFilter, StreamKind};

const DAY_MS: u64 = 86_400_000;
/// 1 January 2024, 12:00.
const NOON: u64 = 1_704_110_400_000;

fn rule(id: &str) -> LifecycleRule {
    LifecycleRule {
        id: id.into(),
        enabled: true,
        filter: RuleFilter::default(),
        expiration: None,
        noncurrent: None,
        transitions: Vec::new(),
        noncurrent_transitions: Vec::new(),
        abort_uploads_days: None,
    }
}

fn after_days(id: &str, days: u32) -> LifecycleRule {
    LifecycleRule { expiration: Some(Expiration { days: Some(days), ..Expiration::default() }), ..rule(id) }
}

fn rules(rules: Vec<LifecycleRule>) -> LifecycleRules {
    LifecycleRules { rules, ..LifecycleRules::default() }
}

fn newer(newer: u32) -> Known {
    Known { newer, read_ms: None }
}

fn version(standing: Standing) -> AgedVersion {
    AgedVersion {
        key: "logs/a".into(),
        version: VersionId::NULL,
        sequence: 1,
        standing,
        last_modified_ms: NOON,
        since_ms: NOON,
        size_bytes: (!matches!(standing, Standing::Marker { .. })).then_some(5),
        tags: Vec::new(),
        class: None,
    }
}

#[test]
fn a_current_version_expires_at_the_midnight_after_its_days() {
    let rules = rules(vec![after_days("a", 1)]);
    let current = version(Standing::Current);
    let midnight = NOON + DAY_MS + DAY_MS / 2;
    assert_eq!(rules.judge(&current, newer(0), midnight - 1, Day::REAL), None);
    let due = Due { action: LifecycleAction::ExpireCurrent, since_ms: midnight, to: None };
    assert_eq!(rules.judge(&current, newer(0), midnight, Day::REAL), Some(due));
    assert_eq!(rules.expiry("logs/a", 5, &[], NOON, Day::REAL), Some((midnight, "a")));
}

#[test]
fn the_first_of_several_rules_counts_and_a_disabled_one_does_not() {
    let mut first = after_days("first", 1);
    let date = LifecycleRule {
        expiration: Some(Expiration { date_ms: Some(NOON + DAY_MS / 2), ..Expiration::default() }),
        filter: RuleFilter { prefix: Some("other/".into()), ..RuleFilter::default() },
        ..rule("date")
    };
    let expiry = |first: &LifecycleRule, key: &str| {
        let rules = rules(vec![after_days("second", 2), first.clone(), date.clone()]);
        rules.expiry(key, 5, &[], NOON, Day::REAL).map(|(_, id)| id.to_owned())
    };
    assert_eq!(expiry(&first, "logs/a").as_deref(), Some("first"));
    assert_eq!(expiry(&first, "other/a").as_deref(), Some("date"));
    first.enabled = false;
    assert_eq!(expiry(&first, "logs/a").as_deref(), Some("second"));
}

#[test]
fn a_date_is_due_for_whatever_is_there_then_or_comes_later() {
    let date_ms = NOON + DAY_MS / 2;
    let expiration = Some(Expiration { date_ms: Some(date_ms), ..Expiration::default() });
    let rules = rules(vec![LifecycleRule { expiration, ..rule("a") }]);
    let late = AgedVersion { last_modified_ms: date_ms + 5, ..version(Standing::Current) };
    assert!(rules.judge(&version(Standing::Current), newer(0), date_ms - 1, Day::REAL).is_none());
    assert!(rules.judge(&version(Standing::Current), newer(0), date_ms, Day::REAL).is_some());
    assert!(rules.judge(&late, newer(0), date_ms + 6, Day::REAL).is_some());
    assert!(rules.streams(date_ms - 1, Day::REAL).is_empty());
    assert_eq!(rules.streams(date_ms, Day::REAL).len(), 2);
}

#[test]
fn a_noncurrent_version_goes_when_old_enough_and_not_among_those_kept() {
    let noncurrent = Some(NoncurrentExpiration { days: 1, keep: Some(2) });
    let rules = rules(vec![LifecycleRule { noncurrent, ..rule("a") }]);
    let (old, later) = (version(Standing::Noncurrent), NOON + 3 * DAY_MS);
    assert_eq!(rules.judge(&old, newer(1), later, Day::REAL), None);
    assert!(rules.judge(&old, newer(2), later, Day::REAL).is_some());
    assert_eq!(rules.judge(&old, newer(2), NOON + DAY_MS, Day::REAL), None);
    assert_eq!(rules.keeps("logs/a"), [(2, 1)]);
    // It counts from when it became noncurrent, not from when it was written.
    let young = AgedVersion { since_ms: later, ..old };
    assert_eq!(rules.judge(&young, newer(2), later, Day::REAL), None);
}

#[test]
fn a_marker_goes_only_when_it_hides_nothing() {
    let lone = Some(Expiration { lone_markers: Some(true), ..Expiration::default() });
    let by_flag = rules(vec![LifecycleRule { expiration: lone, ..rule("a") }]);
    let by_days = rules(vec![after_days("a", 1)]);
    let later = NOON + 3 * DAY_MS;
    for rules in [&by_flag, &by_days] {
        let judge = |is_alone| rules.judge(&version(Standing::Marker { is_alone }), newer(0), later, Day::REAL);
        assert_eq!(judge(false), None);
        assert_eq!(judge(true).map(|due| due.action), Some(LifecycleAction::RemoveMarker));
    }
    let alone = version(Standing::Marker { is_alone: true });
    assert!(by_flag.judge(&alone, newer(0), NOON, Day::REAL).is_some());
    assert!(by_days.judge(&alone, newer(0), NOON, Day::REAL).is_none());
    // The flag is about markers only.
    assert_eq!(by_flag.judge(&version(Standing::Current), newer(0), later, Day::REAL), None);
    let sized = RuleFilter { smaller_than_bytes: Some(10), ..RuleFilter::default() };
    let sized = rules(vec![LifecycleRule { filter: sized, ..after_days("a", 1) }]);
    assert_eq!(sized.judge(&alone, newer(0), later, Day::REAL), None);
}

#[test]
fn an_upload_is_aborted_by_the_first_rule_for_its_key() {
    let filter = RuleFilter { prefix: Some("logs/".into()), ..RuleFilter::default() };
    let rules = rules(vec![LifecycleRule { filter, abort_uploads_days: Some(1), ..rule("a") }]);
    let later = NOON + 2 * DAY_MS;
    let action = rules.judge_upload("logs/a", NOON, later, Day::REAL).map(|due| due.action);
    assert_eq!(action, Some(LifecycleAction::AbortUpload));
    assert_eq!(rules.judge_upload("other", NOON, later, Day::REAL), None);
    assert_eq!(rules.judge_upload("logs/a", NOON, NOON + DAY_MS, Day::REAL), None);
}

#[test]
fn rules_of_one_age_share_a_stream() {
    let many = (0..1_000).map(|n| after_days(&n.to_string(), 1 + n % 2)).collect();
    let streams = rules(many).streams(NOON, Day::REAL);
    let names: Vec<&str> = streams.iter().map(|stream| stream.name.as_str()).collect();
    assert_eq!(names, ["current.1d", "markers.1d", "current.2d", "markers.2d"]);
}

proptest! {
    /// Whatever is due by its age lies within a stream of its kind, and what lies beyond all streams is not due: so a
    /// walk that goes on from where it stood passes by nothing.
    #[test]
    fn streams_end_where_nothing_more_is_due(
        days in prop::collection::vec(1u32..20, 1..6),
        day_ms in 1_000u64..DAY_MS,
        age_ms in 0u64..40 * DAY_MS,
    ) {
        let day = Day::of_ms(day_ms);
        let rule_of = |(at, days): (usize, &u32)| LifecycleRule {
            noncurrent: Some(NoncurrentExpiration { days: *days, keep: None }),
            abort_uploads_days: Some(*days),
            ..after_days(&at.to_string(), *days)
        };
        let rules = rules(days.iter().enumerate().map(rule_of).collect());
        let begun = NOON - age_ms;
        let at = |standing| AgedVersion { last_modified_ms: begun, since_ms: begun, ..version(standing) };
        let within = |kind: StreamKind| {
            rules.streams(NOON, day).iter().any(|stream| stream.kind == kind && begun <= stream.until_ms)
        };
        let judged = |standing| rules.judge(&at(standing), newer(0), NOON, day).is_some();
        prop_assert_eq!(judged(Standing::Current), within(StreamKind::Current));
        prop_assert_eq!(judged(Standing::Noncurrent), within(StreamKind::Noncurrent));
        prop_assert_eq!(judged(Standing::Marker { is_alone: true }), within(StreamKind::Markers));
        let upload = rules.judge_upload("k", begun, NOON, day).is_some();
        prop_assert_eq!(upload, within(StreamKind::Uploads));
    }
}
