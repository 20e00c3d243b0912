use super::super::keys::NoFacts;
use super::*;

fn work() -> Work {
    Work::of_decision()
}

/// Whoever keeps policies reckons with 64 bytes for each byte of their text.
#[test]
fn a_token_is_small_and_a_pattern_has_no_room_for_more() {
    let text = "abc".repeat(1_000);
    for pattern in [Pattern::wildcards(&text), Pattern::literal(&text), Pattern::with_variables(&text, true).unwrap()] {
        let bytes = pattern.tokens.capacity() * size_of::<Token>();
        assert!(bytes <= 56 * text.len(), "{bytes}");
    }
}

/// The definition, by recursion: what the iterative matcher must agree with.
fn reference(pattern: &[char], text: &[char]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some(('*', rest)) => (0..=text.len()).any(|n| reference(rest, &text[n..])),
        Some(('?', rest)) => !text.is_empty() && reference(rest, &text[1..]),
        Some((c, rest)) => text.first() == Some(c) && reference(rest, &text[1..]),
    }
}

proptest::proptest! {
    #[test]
    fn matching_agrees_with_its_definition(pattern in "[ab*?é]{0,9}", text in "[abé]{0,9}") {
        let chars = |s: &str| s.chars().collect::<Vec<_>>();
        let expected = reference(&chars(&pattern), &chars(&text));
        proptest::prop_assert_eq!(Pattern::wildcards(&pattern).matches(&text, &NoFacts, &work()), expected);
    }

    #[test]
    fn pieces_that_repeat_themselves_are_found(
        pattern in "[ab]{0,2}(\\*[ab]{1,6}){1,3}\\*?",
        text in "[ab]{0,16}",
    ) {
        let chars = |s: &str| s.chars().collect::<Vec<_>>();
        let expected = reference(&chars(&pattern), &chars(&text));
        proptest::prop_assert_eq!(Pattern::wildcards(&pattern).matches(&text, &NoFacts, &work()), expected);
    }

    #[test]
    fn variables_are_taken_literally(pattern in "[ab*?$]{0,7}", value in "[ab*?é]{0,4}", text in "[abé*?]{0,9}") {
        struct Prefix(String);
        impl Facts for Prefix {
            fn values(&self, _key: &ConditionKey) -> Vec<std::borrow::Cow<'_, str>> {
                vec![self.0.as_str().into()]
            }
        }
        // A character of the value stands for itself, also one that is a wildcard elsewhere.
        let shifted = |c: char| match c {
            '*' => '+',
            '?' => '!',
            c => c,
        };
        let resolved: Vec<char> = pattern
            .chars()
            .flat_map(|c| if c == '$' { value.chars().map(shifted).collect() } else { vec![c] })
            .collect();
        let expected = reference(&resolved, &text.chars().map(shifted).collect::<Vec<_>>());
        let pattern = Pattern::with_variables(&pattern.replace('$', "${s3:prefix}"), true).unwrap();
        proptest::prop_assert_eq!(pattern.matches(&text, &Prefix(value), &work()), expected);
    }
}

#[test]
fn many_stars_take_no_exponential_time() {
    let pattern = Pattern::wildcards(&"a*".repeat(2_000));
    let text = format!("{}b", "a".repeat(1_000));
    assert!(!pattern.matches(&text, &NoFacts, &work()));
    let pattern = Pattern::wildcards(&format!("{}b", "*a".repeat(500)));
    assert!(!pattern.matches(&"a".repeat(1_024), &NoFacts, &work()));
}

#[test]
fn pieces_are_looked_for_in_one_pass() {
    // Each piece nearly stands at every place. One by one that would be 1,700 times 32,768 comparisons a piece.
    let pattern = Pattern::wildcards(&format!("*{}b*", "a".repeat(1_700)).repeat(10));
    let work = work();
    assert!(!pattern.matches(&"a".repeat(32 << 10), &NoFacts, &work));
    assert!(!work.is_exhausted(), "the answer is one");
    let text = format!("{}b", "a".repeat(1_800)).repeat(10);
    assert!(pattern.matches(&text, &NoFacts, &Work::of_decision()));
    assert!(!pattern.matches(&text[..text.len() - 1], &NoFacts, &Work::of_decision()));
}

#[test]
fn what_costs_little_is_charged_little() {
    let found_at_once = format!("*{}b", "a*".repeat(4_000));
    for (pattern, text) in [("*".repeat(9_000), "a".repeat(1_000)), (found_at_once, "a".repeat(9_000) + "b")] {
        let work = work();
        assert!(Pattern::wildcards(&pattern).matches(&text, &NoFacts, &work));
        assert!(!work.is_exhausted(), "{}", &pattern[..4]);
    }
}

#[test]
fn what_is_put_together_of_a_pattern_is_charged() {
    let pattern = Pattern::with_variables(&format!("{}${{aws:username}}", "a".repeat(10_000)), true).unwrap();
    let work = work();
    assert!(!(0..1_000).any(|_| pattern.matches("b", &NoFacts, &work)));
    assert!(work.is_exhausted());
}

#[test]
fn what_cannot_be_done_in_one_pass_is_given_up() {
    let pattern = Pattern::wildcards(&format!("*{}?b*", "a".repeat(10_000)));
    let work = work();
    assert!(!pattern.matches(&"a".repeat(32 << 10), &NoFacts, &work));
    assert!(work.is_exhausted());
}

#[test]
fn values_that_are_longer_than_the_text_are_not_put_together() {
    struct Long(String);
    impl Facts for Long {
        fn values(&self, _key: &ConditionKey) -> Vec<std::borrow::Cow<'_, str>> {
            vec![self.0.as_str().into()]
        }
    }
    let facts = Long("x".repeat(30_000));
    let pattern = Pattern::with_variables(&"${s3:prefix}".repeat(1_500), true).unwrap();
    let work = work();
    assert!(!pattern.matches("b/key", &facts, &work));
    assert!(!work.is_exhausted(), "the first value says it all");
    let pattern = Pattern::with_variables("*${s3:prefix}*", true).unwrap();
    assert!(pattern.matches(&format!("b/{}/key", facts.0), &facts, &work));
}

proptest::proptest! {
    #[test]
    fn letters_of_either_case_are_found_within_pieces(pattern in "[aB*É]{0,9}", text in "[aBÉ]{0,9}") {
        let chars = |s: &str| s.to_lowercase().chars().collect::<Vec<_>>();
        let expected = reference(&chars(&pattern), &chars(&text));
        let swapped: String = text.chars().map(|c| if c.is_lowercase() { 'A' } else { c }).collect();
        let matches = Pattern::wildcards(&pattern).matches_folded(&swapped, &NoFacts, &work());
        proptest::prop_assert_eq!(matches, expected);
    }
}

#[test]
fn variables_are_taken_literally_and_match_nothing_when_absent() {
    struct Named(&'static str);
    impl Facts for Named {
        fn values(&self, key: &ConditionKey) -> Vec<std::borrow::Cow<'_, str>> {
            if *key == ConditionKey::UserName { vec![self.0.into()] } else { Vec::new() }
        }
    }
    let pattern = Pattern::with_variables("b/home/${aws:username}/*", true).unwrap();
    assert!(pattern.matches("b/home/ann/x", &Named("ann"), &work()));
    assert!(!pattern.matches("b/home/bob/x", &Named("ann"), &work()));
    assert!(!pattern.matches("b/home/bob/x", &Named("*"), &work()), "a user named * gains nothing");
    assert!(!pattern.matches("b/home//x", &NoFacts, &work()));
    let pattern = Pattern::with_variables("b/${aws:username, 'guest'}/${*}${$}", true).unwrap();
    assert!(pattern.matches("b/guest/*$", &NoFacts, &work()));
    assert_eq!(Pattern::with_variables("b/${aws:username", true), Err(PatternError::Unclosed));
    assert!(matches!(Pattern::with_variables("${aws:nonsense}", true), Err(PatternError::UnknownVariable(_))));
}
