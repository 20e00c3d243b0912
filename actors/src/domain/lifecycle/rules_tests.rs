//! Which rules are taken, and what they match.

use super::*;

fn tag(key: &str, value: &str) -> Tag {
    Tag { key: key.into(), value: value.into() }
}

fn rule() -> LifecycleRule {
    LifecycleRule {
        id: "a".into(),
        enabled: true,
        filter: RuleFilter::default(),
        expiration: Some(Expiration { days: Some(1), ..Expiration::default() }),
        noncurrent: None,
        transitions: Vec::new(),
        noncurrent_transitions: Vec::new(),
        abort_uploads_days: None,
    }
}

fn check(rules: Vec<LifecycleRule>) -> Result<(), RuleFault> {
    LifecycleRules { rules, ..LifecycleRules::default() }.check()
}

fn fault(change: impl FnOnce(&mut LifecycleRule)) -> RuleFault {
    let mut changed = rule();
    change(&mut changed);
    check(vec![changed]).expect_err("it is refused")
}

#[test]
fn a_configuration_has_one_to_a_thousand_rules_with_ids_of_their_own() {
    let many = |count: usize| (0..count).map(|n| LifecycleRule { id: n.to_string(), ..rule() }).collect();
    assert_eq!(check(many(1)), Ok(()));
    assert_eq!(check(many(1_000)), Ok(()));
    assert!(matches!(check(many(0)), Err(RuleFault::Malformed(_))));
    assert!(matches!(check(many(1_001)), Err(RuleFault::Malformed(_))));
    assert!(matches!(check(vec![rule(), rule()]), Err(RuleFault::Argument(_))));
    assert_eq!(check(vec![LifecycleRule { id: "\u{e9}".repeat(255), ..rule() }]), Ok(()));
    assert!(matches!(fault(|rule| rule.id = "x".repeat(256)), RuleFault::Argument(_)));
}

#[test]
fn a_rule_without_an_action_is_refused() {
    assert!(matches!(fault(|rule| rule.expiration = None), RuleFault::Request(_)));
    assert!(matches!(fault(|rule| rule.expiration = Some(Expiration::default())), RuleFault::Malformed(_)));
}

#[test]
fn numbers_have_the_ranges_of_s3() {
    let expiration = |expiration| fault(|rule| rule.expiration = Some(expiration));
    let none = Expiration::default();
    assert!(matches!(expiration(Expiration { days: Some(0), ..none }), RuleFault::Argument(_)));
    assert!(matches!(expiration(Expiration { date_ms: Some(1), ..none }), RuleFault::Argument(_)));
    let both = Expiration { days: Some(1), date_ms: Some(0), ..none };
    assert!(matches!(expiration(both), RuleFault::Malformed(_)));
    let noncurrent = |days, keep| fault(|rule| rule.noncurrent = Some(NoncurrentExpiration { days, keep }));
    assert!(matches!(noncurrent(0, None), RuleFault::Argument(_)));
    assert!(matches!(noncurrent(1, Some(0)), RuleFault::Argument(_)));
    assert!(matches!(noncurrent(1, Some(101)), RuleFault::Argument(_)));
    assert!(matches!(fault(|rule| rule.abort_uploads_days = Some(0)), RuleFault::Argument(_)));
    let fine = LifecycleRule {
        noncurrent: Some(NoncurrentExpiration { days: 1, keep: Some(100) }),
        abort_uploads_days: Some(1),
        ..rule()
    };
    assert_eq!(check(vec![fine]), Ok(()));
}

#[test]
fn markers_and_uploads_have_no_tags_and_no_sizes() {
    let markers = Some(Expiration { lone_markers: Some(true), ..Expiration::default() });
    let filters: [fn() -> RuleFilter; 2] = [
        || RuleFilter { tags: vec![tag("a", "b")], ..RuleFilter::default() },
        || RuleFilter { larger_than_bytes: Some(1), ..RuleFilter::default() },
    ];
    for filter in filters {
        assert!(matches!(fault(|rule| (rule.filter, rule.expiration) = (filter(), markers)), RuleFault::Request(_)));
        assert!(matches!(
            fault(|rule| (rule.filter, rule.abort_uploads_days) = (filter(), Some(1))),
            RuleFault::Request(_)
        ));
    }
    let with_days = Expiration { days: Some(1), lone_markers: Some(true), ..Expiration::default() };
    assert!(matches!(fault(|rule| rule.expiration = Some(with_days)), RuleFault::Malformed(_)));
    assert_eq!(check(vec![LifecycleRule { expiration: markers, ..rule() }]), Ok(()));
}

#[test]
fn conditions_of_a_filter_are_those_that_s3_takes() {
    let filter = |filter: RuleFilter| fault(|rule| rule.filter = filter);
    let (a, b) = (tag("a", "1"), tag("a", "2"));
    let two = RuleFilter { prefix: Some("p".into()), tags: vec![a.clone()], ..RuleFilter::default() };
    assert!(matches!(filter(two.clone()), RuleFault::Malformed(_)));
    assert_eq!(
        check(vec![LifecycleRule { filter: RuleFilter { form: FilterForm::And, ..two.clone() }, ..rule() }]),
        Ok(())
    );
    let and = |filter: RuleFilter| RuleFilter { form: FilterForm::And, ..filter };
    assert!(matches!(
        filter(and(RuleFilter { tags: vec![a.clone()], ..RuleFilter::default() })),
        RuleFault::Malformed(_)
    ));
    assert!(matches!(filter(and(RuleFilter { tags: vec![a, b], ..RuleFilter::default() })), RuleFault::Request(_)));
    let sizes = RuleFilter { larger_than_bytes: Some(5), smaller_than_bytes: Some(5), ..RuleFilter::default() };
    assert!(matches!(filter(and(sizes)), RuleFault::Request(_)));
    let long = RuleFilter { prefix: Some("x".repeat(1_025)), ..RuleFilter::default() };
    assert!(matches!(filter(long), RuleFault::Request(_)));
}

#[test]
fn a_filter_matches_when_all_its_conditions_hold() {
    let filter = RuleFilter {
        form: FilterForm::And,
        prefix: Some("logs/".into()),
        tags: vec![tag("keep", "no")],
        larger_than_bytes: Some(10),
        smaller_than_bytes: Some(20),
    };
    let tags = [tag("other", "x"), tag("keep", "no")];
    assert!(filter.matches("logs/a", Some(11), &tags) && filter.matches("logs/a", Some(19), &tags));
    for (key, size, tags) in [
        ("log", Some(11), &tags[..]),
        ("logs/a", Some(10), &tags[..]),
        ("logs/a", Some(20), &tags[..]),
        ("logs/a", None, &tags[..]),
        ("logs/a", Some(11), &tags[..1]),
    ] {
        assert!(!filter.matches(key, size, tags), "{key} {size:?} {tags:?}");
    }
    assert!(RuleFilter::default().matches("anything", None, &[]));
}

#[test]
fn rules_are_read_as_they_are_stored() {
    let full = LifecycleRules {
        generation: u64::MAX >> 1,
        transition_minimum: Some("varies_by_storage_class".into()),
        reads_since_ms: Some(5),
        rules: vec![
            LifecycleRule {
                transitions: vec![Transition { days: Some(0), to: "OSS".parse().ok(), ..Transition::default() }],
                noncurrent_transitions: vec![NoncurrentTransition { days: 3, keep: Some(2), to: None }],
                ..rule()
            },
            LifecycleRule { noncurrent: Some(NoncurrentExpiration { days: 3, keep: Some(2) }), ..rule() },
            LifecycleRule { id: "b".into(), enabled: false, abort_uploads_days: Some(4), ..rule() },
        ],
    };
    let text = serde_json::to_string(&full).expect("it serialises");
    assert_eq!(serde_json::from_str::<LifecycleRules>(&text).expect("it is read"), full);
}

#[test]
fn rules_that_were_stored_before_there_were_moves_are_read() {
    let stored = r#"{"generation":7,"transition_minimum":"whatever","rules":[{"id":"a","enabled":true,"filter":{"form":"single"},
        "expiration":{"days":3}}]}"#;
    let rules = serde_json::from_str::<LifecycleRules>(stored).expect("it is read");
    assert_eq!((rules.rules[0].transitions.len(), rules.asks_for_reads()), (0, false));
    assert_eq!(rules.minimum().as_str(), "all_storage_classes_128K");
    assert_eq!(rules.check(), Ok(()));
}

#[test]
fn rules_with_a_condition_of_a_newer_version_are_not_understood_rather_than_wider() {
    let rules = LifecycleRules {
        rules: vec![LifecycleRule {
            filter: RuleFilter { prefix: Some("logs/".into()), ..RuleFilter::default() },
            noncurrent: Some(NoncurrentExpiration { days: 3, keep: None }),
            transitions: vec![Transition { days: Some(0), ..Transition::default() }],
            noncurrent_transitions: vec![NoncurrentTransition::default()],
            ..rule()
        }],
        ..LifecycleRules::default()
    };
    let stored = serde_json::to_value(&rules).expect("it serialises");
    assert!(serde_json::from_value::<LifecycleRules>(stored.clone()).is_ok());
    for place in [
        "",
        "/rules/0",
        "/rules/0/filter",
        "/rules/0/expiration",
        "/rules/0/noncurrent",
        "/rules/0/transitions/0",
        "/rules/0/noncurrent_transitions/0",
    ] {
        let mut newer = stored.clone();
        newer.pointer_mut(place).expect("it is there")["only_if_cold"] = true.into();
        let error = serde_json::from_value::<LifecycleRules>(newer).expect_err(place);
        assert!(error.to_string().contains("only_if_cold"), "{place}: {error}");
    }
}
