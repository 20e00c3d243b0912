//! What every adapter of [`Journal`] does, as tests; [`crate::journal_conformance!`] expands them.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(missing_docs, reason = "the names of the cases say what they check")]

use std::sync::Arc;

use bytes::Bytes;
use holdfast_protocol::EventId;
use holdfast_protocol::journal::{AuditRecord, ErrorKind, ErrorRecord};

use super::{AuditFilter, DETAIL_BYTES_MAX, ErrorFilter, Journal, NewDeadLetter, Retention};
use crate::ports::events::{Message, Topic};
use crate::ports::metadata::MetadataError;

/// Expands the suite. `$factory` is an `async fn() -> (Arc<dyn Journal>, impl Sized)`; the second value is kept until
/// the test is over.
#[macro_export]
macro_rules! journal_conformance {
    ($factory:path) => {
        $crate::journal_conformance! { @tests $factory;
            errors_are_kept_once_and_shown_newest_first
            errors_are_filtered_and_paged
            long_texts_are_cut_off
            audit_is_kept_and_filtered
            logs_are_trimmed_by_age_and_number
            dead_letters_are_kept_once_shown_and_discarded
            dead_letter_is_given_back_as_the_message_that_it_was
        }
    };
    (@tests $factory:path; $($test:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let (store, guard) = $factory().await;
                $crate::ports::journal::conformance::$test(store).await;
                drop(guard);
            }
        )*
    };
}

const T0: u64 = 1_800_000_000_000;

fn error(n: u64, node: &str, kind: ErrorKind) -> ErrorRecord {
    ErrorRecord {
        id: format!("report-{n}"),
        at_ms: T0 + n,
        node: node.into(),
        kind,
        subject: format!("chunk-{n}"),
        detail: "bytes differ".into(),
    }
}

fn audit(n: u64, action: &str) -> AuditRecord {
    AuditRecord {
        at_ms: T0 + n,
        node: "a".into(),
        actor: "admin token".into(),
        source: "127.0.0.1".into(),
        action: action.into(),
        target: format!("/v1/users/{n}"),
        result: 201,
        request_id: format!("{n:016x}"),
    }
}

fn letter(n: u64) -> NewDeadLetter {
    NewDeadLetter {
        topic: Topic::Tasks,
        group: "tasks".into(),
        message: Message {
            id: EventId { sequence: n, nonce: 7 },
            order_key: format!("content/{n} ü"),
            tag: "reclaim".into(),
            keys: vec!["word".into(), EventId { sequence: n, nonce: 7 }.to_string()],
            body: Bytes::from(format!("{{\"n\":{n}}}")),
        },
        attempts: 8,
        error: "it always fails".into(),
        now_ms: T0 + n,
    }
}

fn ids(entries: &[holdfast_protocol::journal::Entry<ErrorRecord>]) -> Vec<&str> {
    entries.iter().map(|entry| entry.record.id.as_str()).collect()
}

pub async fn errors_are_kept_once_and_shown_newest_first(store: Arc<dyn Journal>) {
    store.add_errors(&[]).await.unwrap();
    let first = [error(1, "a", ErrorKind::Corruption), error(2, "b", ErrorKind::DiskFenced)];
    store.add_errors(&first).await.unwrap();
    store.add_errors(&[first[1].clone(), error(3, "a", ErrorKind::Other)]).await.unwrap();
    let all = store.errors(&ErrorFilter::default(), None, 10).await.unwrap();
    assert_eq!(ids(&all), ["report-3", "report-2", "report-1"]);
    assert_eq!(all[2].record, first[0]);
    assert!(all.is_sorted_by(|x, y| x.number > y.number));
}

pub async fn errors_are_filtered_and_paged(store: Arc<dyn Journal>) {
    let kinds = [ErrorKind::Corruption, ErrorKind::DiskFenced];
    let many: Vec<_> = (0..200).map(|n| error(n, ["a", "b"][n as usize % 2], kinds[n as usize / 2 % 2])).collect();
    store.add_errors(&many).await.unwrap();
    let filter = ErrorFilter { since_ms: T0 + 100, node: Some("a".into()), kind: Some(ErrorKind::DiskFenced) };
    let (mut found, mut before) = (Vec::new(), None);
    loop {
        let page = store.errors(&filter, before, 7).await.unwrap();
        let Some(last) = page.last() else { break };
        before = Some(last.number);
        found.extend(page);
    }
    let expected: Vec<&ErrorRecord> = many
        .iter()
        .rev()
        .filter(|e| e.at_ms >= filter.since_ms && e.node == "a" && e.kind == ErrorKind::DiskFenced)
        .collect();
    assert_eq!(found.iter().map(|entry| &entry.record).collect::<Vec<_>>(), expected);
    assert!(!expected.is_empty());
}

pub async fn long_texts_are_cut_off(store: Arc<dyn Journal>) {
    let long = ErrorRecord {
        id: "i".repeat(5_000),
        node: "n".repeat(5_000),
        subject: "ü".repeat(5_000),
        detail: "ü".repeat(5_000),
        ..error(1, "a", ErrorKind::Other)
    };
    store.add_errors(std::slice::from_ref(&long)).await.unwrap();
    let found = store.errors(&ErrorFilter::default(), None, 10).await.unwrap();
    let kept = &found[0].record.detail;
    assert!(long.detail.starts_with(kept) && (1..=DETAIL_BYTES_MAX).contains(&kept.len()), "{}", kept.len());
    let target = "t".repeat(5_000);
    store.add_audit(&AuditRecord { target: target.clone(), ..audit(1, "x") }).await.unwrap();
    let kept = &store.audit(&AuditFilter::default(), None, 1).await.unwrap()[0].record.target.clone();
    assert!(target.starts_with(kept) && kept.len() < target.len());
}

pub async fn audit_is_kept_and_filtered(store: Arc<dyn Journal>) {
    for (n, action) in ["create_user", "create_key", "delete_key", "create_bucket"].into_iter().enumerate() {
        store.add_audit(&audit(n as u64, action)).await.unwrap();
    }
    let all = store.audit(&AuditFilter::default(), None, 10).await.unwrap();
    assert_eq!(
        all.iter().map(|e| e.record.action.as_str()).collect::<Vec<_>>(),
        ["create_bucket", "delete_key", "create_key", "create_user"]
    );
    assert_eq!(all[3].record, audit(0, "create_user"));
    let filter = AuditFilter { since_ms: T0 + 1, node: Some("a".into()), action_prefix: Some("create_".into()) };
    let some = store.audit(&filter, Some(all[0].number), 10).await.unwrap();
    assert_eq!(some.iter().map(|e| e.record.action.as_str()).collect::<Vec<_>>(), ["create_key"]);
    let other = AuditFilter { node: Some("b".into()), ..AuditFilter::default() };
    assert!(store.audit(&other, None, 10).await.unwrap().is_empty());
}

pub async fn logs_are_trimmed_by_age_and_number(store: Arc<dyn Journal>) {
    let many: Vec<_> = (0..100).map(|n| error(n, "a", ErrorKind::Other)).collect();
    store.add_errors(&many).await.unwrap();
    for n in 0..10 {
        store.add_audit(&audit(n, "x")).await.unwrap();
    }
    let everything = Retention { from_ms: 0, entries_max: 1_000 };
    assert_eq!(store.trim(everything, everything, 1_000).await.unwrap(), 0);
    let old = Retention { from_ms: T0 + 20, entries_max: 1_000 };
    assert_eq!(store.trim(old, everything, 8).await.unwrap(), 8, "as many at a time as are asked for");
    assert_eq!(store.trim(old, everything, 1_000).await.unwrap(), 12);
    let few = Retention { from_ms: 0, entries_max: 30 };
    let fewer = Retention { from_ms: 0, entries_max: 3 };
    assert_eq!(store.trim(few, fewer, 1_000).await.unwrap(), 50 + 7);
    let left = store.errors(&ErrorFilter::default(), None, 1_000).await.unwrap();
    assert_eq!(left.len(), 30);
    assert_eq!(left[0].record.id, "report-99");
    assert_eq!(store.audit(&AuditFilter::default(), None, 100).await.unwrap().len(), 3);
}

pub async fn dead_letters_are_kept_once_shown_and_discarded(store: Arc<dyn Journal>) {
    for n in [1, 2, 2, 3] {
        store.add_dead_letter(letter(n)).await.unwrap();
    }
    store.add_dead_letter(NewDeadLetter { group: "others".into(), ..letter(1) }).await.unwrap();
    let all = store.dead_letters(0, 10).await.unwrap();
    assert_eq!(all.len(), 4);
    let numbers: Vec<u64> = all.iter().map(|letter| letter.number).collect();
    store.add_dead_letter(letter(3)).await.unwrap();
    assert!(matches!(store.discard(numbers[2]).await, Err(MetadataError::NotFound(_))), "it has a new number");
    let all = store.dead_letters(0, 10).await.unwrap();
    assert_eq!((all.len(), all[3].order_key.as_str()), (4, "content/3 ü"));
    let first = store.dead_letter(all[0].number).await.unwrap();
    assert_eq!(first.body.as_deref(), Some("{\"n\":1}"));
    assert_eq!((first.topic.as_str(), first.group.as_str(), first.attempts), ("tasks", "tasks", 8));
    assert_eq!((first.order_key.as_str(), first.tag.as_str()), ("content/1 ü", "reclaim"));
    assert_eq!(first.error, "it always fails");
    assert_eq!(store.dead_letters(all[1].number, 1).await.unwrap(), all[2..3]);
    store.discard(all[0].number).await.unwrap();
    assert!(matches!(store.discard(all[0].number).await, Err(MetadataError::NotFound(_))));
    assert!(matches!(store.dead_message(all[0].number).await, Err(MetadataError::NotFound(_))));
    assert!(matches!(store.dead_letter(all[0].number).await, Err(MetadataError::NotFound(_))));
    assert_eq!(store.dead_letters(0, 10).await.unwrap(), all[1..]);
}

pub async fn dead_letter_is_given_back_as_the_message_that_it_was(store: Arc<dyn Journal>) {
    let mut letter = letter(1);
    letter.message.body = Bytes::from_static(&[0, 159, 146, 150]);
    store.add_dead_letter(letter.clone()).await.unwrap();
    let number = store.dead_letters(0, 10).await.unwrap()[0].number;
    assert_eq!(store.dead_message(number).await.unwrap(), (Topic::Tasks, letter.message));
    assert_eq!(store.dead_letter(number).await.unwrap().body, None, "it is no text");
}
