//! What is paused for the whole cluster.

use holdfast_protocol::NodeId;

use super::{Harness, found, insist, until};
use crate::ports::coordination::{CoordinationError, Pause, Pauses, set_repair_pause};

pub async fn pause_holds_for_everybody_until_it_is_taken_back(harness: &dyn Harness) {
    let (a, b) = (harness.participant().await, harness.participant().await);
    let early = a.store_pauses(None, &Pauses::default()).await;
    assert!(matches!(early, Err(CoordinationError::NotFound(_))), "{early:?}");
    found(&a).await;
    assert_eq!(a.pauses().await.unwrap(), None);
    let paused = |by: &str| Some(Pause { since_ms: 5, by: by.into(), node: NodeId::from(1) });
    assert_eq!(set_repair_pause(&*a.coordination, paused("first")).await.unwrap(), paused("first"));
    until(b.watch_pauses(), |pauses| pauses.repairs == paused("first")).await;
    let again = set_repair_pause(&*b.coordination, paused("second")).await.unwrap();
    assert_eq!(again, paused("first"), "it is as old as it is");

    // Neither who asked for it nor a session is needed for it to hold.
    a.close().await;
    drop(a);
    b.expire().await;
    insist(|| b.renew_session()).await;
    let late = harness.participant().await;
    until(late.watch_pauses(), |pauses| pauses.repairs == paused("first")).await;
    let found = late.pauses().await.unwrap().expect("it was stored");
    assert_eq!(found.value.repairs, paused("first"));

    let stale = late.store_pauses(None, &Pauses::default()).await;
    assert!(matches!(stale, Err(CoordinationError::Conflict(_))), "{stale:?}");
    assert_eq!(set_repair_pause(&*b.coordination, None).await.unwrap(), None);
    until(late.watch_pauses(), |pauses| pauses.repairs.is_none()).await;
    let stale = late.store_pauses(Some(found.version), &found.value).await;
    assert!(matches!(stale, Err(CoordinationError::Conflict(_))), "{stale:?}");
    assert_eq!(set_repair_pause(&*late.coordination, paused("third")).await.unwrap(), paused("third"));
    until(b.watch_pauses(), |pauses| pauses.repairs == paused("third")).await;
}
