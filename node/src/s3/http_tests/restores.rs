//! RestoreObject: who may ask for it, and what is answered to what became of it.

use holdfast_actors::ports::metadata::{CannedAcl, MoveQueued, MoveReason, OnlyIf, OnlyNoncurrent, Tag};

use super::support::{Answer, Fixture, HOST};

const DAY_MS: u64 = 86_400_000;
const TWO_DAYS: &[u8] = b"<RestoreRequest><Days>2</Days></RestoreRequest>";

async fn restore(fixture: &Fixture, user: &str, queued: Option<MoveQueued>) -> Answer {
    *fixture.store.queued.lock() = queued;
    fixture.call(user, "POST", "/photos/k?restore", &[], TWO_DAYS).await
}

#[tokio::test]
async fn status_tells_what_became_of_the_request() {
    let fixture = Fixture::new();
    fixture.put_object("k", CannedAcl::Private, &[]);
    for (queued, status, code) in [
        (Some(MoveQueued::Queued), 202, ""),
        (Some(MoveQueued::Extended), 200, ""),
        (Some(MoveQueued::InPlace), 200, ""),
        (Some(MoveQueued::Ongoing), 409, "RestoreAlreadyInProgress"),
        (None, 403, "InvalidObjectState"),
    ] {
        let answer = restore(&fixture, "ann", queued).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (status, code), "{queued:?} {answer:?}");
        assert!(!code.is_empty() || answer.body.is_empty(), "{answer:?}");
    }
}

#[tokio::test]
async fn days_end_at_a_midnight() {
    let fixture = Fixture::new();
    fixture.put_object("k", CannedAcl::Private, &[]);
    restore(&fixture, "ann", Some(MoveQueued::Queued)).await;
    let asked = fixture.store.moves.lock().pop().unwrap();
    let MoveReason::Restore { keep_ms } = asked.reason else { panic!("{asked:?}") };
    assert_eq!((asked.now_ms + keep_ms) % DAY_MS, 0);
    assert!((2 * DAY_MS + 1..=3 * DAY_MS).contains(&keep_ms), "{keep_ms}");
    assert_eq!((asked.key.as_str(), asked.to), ("k", None));
}

#[tokio::test]
async fn policy_decides_who_else_may_restore() {
    let fixture = Fixture::new();
    fixture.put_object("k", CannedAcl::PublicRead, &[]);
    let queued = Some(MoveQueued::Queued);
    assert_eq!(restore(&fixture, "bob", queued).await.code(), "AccessDenied");
    let statement = |effect: &str, user: &str| {
        format!(
            r#"{{"Effect":"{effect}","Principal":{{"AWS":"{user}"}},"Action":"s3:RestoreObject",
               "Resource":"arn:aws:s3:::photos/*"}}"#
        )
    };
    fixture.put_policy(&statement("Allow", "bob")).await;
    assert_eq!(restore(&fixture, "bob", queued).await.status, 202);
    fixture.put_policy(&statement("Deny", "ann")).await;
    assert_eq!(restore(&fixture, "ann", queued).await.code(), "AccessDenied");
    assert_eq!(fixture.store.moves.lock().len(), 1, "what is refused asks for no move");
}

#[tokio::test]
async fn what_tags_allowed_is_asked_for_the_object_that_has_them() {
    let fixture = Fixture::new();
    fixture.put_object("k", CannedAcl::Private, &[("state", "released")]);
    fixture
        .put_policy(
            r#"{"Effect":"Allow","Principal":{"AWS":"bob"},"Action":"s3:RestoreObject",
                "Resource":"arn:aws:s3:::photos/*",
                "Condition":{"StringEquals":{"s3:ExistingObjectTag/state":"released"}}}"#,
        )
        .await;
    assert_eq!(restore(&fixture, "bob", Some(MoveQueued::Queued)).await.status, 202);
    let asked = fixture.store.moves.lock().pop().unwrap();
    let tags = vec![Tag { key: "state".into(), value: "released".into() }];
    let noncurrent = Some(OnlyNoncurrent { tags, newer: 0 });
    assert_eq!(asked.only_if, Some(OnlyIf { sequence: 1, noncurrent, ..OnlyIf::default() }));
    fixture.call("ann", "DELETE", "/photos?policy", &[], b"").await;
    assert_eq!(restore(&fixture, "ann", Some(MoveQueued::Queued)).await.status, 202);
    assert_eq!(fixture.store.moves.lock().pop().unwrap().only_if, None, "nobody looked at tags");
}

#[tokio::test]
async fn requests_are_looked_at_in_whatever_way_the_bucket_is_addressed() {
    let fixture = Fixture::new();
    fixture.put_object("k", CannedAcl::Private, &[]);
    for (host, path) in [(HOST, "/photos/k"), ("photos.s3.test", "/k")] {
        for (days, status) in [("2", 202), ("2<![CDATA[0]]>", 400)] {
            *fixture.store.queued.lock() = Some(MoveQueued::Queued);
            let body = format!("<RestoreRequest><Days>{days}</Days></RestoreRequest>");
            // Another document's parameter makes it no other operation.
            let query = [("delete", ""), ("restore", "")];
            let request = fixture.signer("ann").request("POST", host, path, &query, &[], body.as_bytes());
            let answer = fixture.send(request).await;
            assert_eq!(answer.status.as_u16(), status, "{host} {path} {answer:?}");
        }
    }
}
