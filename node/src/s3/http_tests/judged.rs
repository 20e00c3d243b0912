//! What was decided about is what a request is carried out on, whatever comes in between.

use std::sync::Arc;

use holdfast_actors::flow::cold::read::{ColdReadSettings, ColdReads};
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::metadata::{Bucket, BucketId, CannedAcl, ObjectVersion, Tag};
use holdfast_actors::ports::tiers::EmptyTiers;
use http::StatusCode;

use super::support::Fixture;

#[tokio::test]
async fn an_object_that_is_overwritten_after_the_decision_is_not_given_out_by_it() {
    let cold = ColdReads::new(Arc::new(EmptyTiers), ColdReadSettings::default());
    let fixture = Fixture::of_front(Arc::new(MemoryChunkStore::new()), cold);
    // Puts an object there, to be overwritten by another as soon as it was read.
    let overwrite = |acl: CannedAcl, tags: &[(&str, &str)], next_acl: CannedAcl, next_tags: &[(&str, &str)]| {
        fixture.store.add_object("photos", "k", next_acl, next_tags);
        let mut next = ObjectVersion::clone(fixture.store.objects.lock().values().next().unwrap());
        next.sequence = 2;
        fixture.store.add_object("photos", "k", acl, tags);
        *fixture.store.overwriting.lock() = Some(Arc::new(next));
    };
    let (open, shut) = (CannedAcl::PublicRead, CannedAcl::Private);
    for method in ["GET", "HEAD"] {
        overwrite(open, &[], shut, &[]);
        let answer = fixture.anonymous(method, "/photos/k", &[], b"").await;
        assert_eq!(answer.status, StatusCode::CONFLICT, "{method}: {answer:?}");
        assert_eq!(fixture.anonymous(method, "/photos/k", &[], b"").await.status, StatusCode::FORBIDDEN, "{method}");
    }
    overwrite(open, &[], open, &[("a", "b")]);
    assert_eq!(fixture.anonymous("GET", "/photos/k", &[], b"").await.status, StatusCode::OK, "as open as before");
    fixture
        .put_policy(
            r#"{"Effect":"Allow","Principal":{"AWS":"bob"},"Action":"s3:GetObject","Resource":"arn:aws:s3:::photos/*",
                "Condition":{"StringEquals":{"s3:ExistingObjectTag/state":"released"}}}"#,
        )
        .await;
    let released: &[(&str, &str)] = &[("state", "released")];
    overwrite(shut, released, shut, &[]);
    assert_eq!(fixture.call("bob", "GET", "/photos/k", &[], b"").await.code(), "OperationAborted");
    overwrite(shut, released, shut, &[]);
    let copy = [("x-amz-copy-source", "/photos/k")];
    assert_eq!(fixture.call("bob", "PUT", "/drafts/k", &copy, b"").await.code(), "OperationAborted");
    overwrite(shut, released, shut, released);
    assert_eq!(fixture.call("bob", "GET", "/photos/k", &[], b"").await.status, StatusCode::OK);

    fixture
        .put_policy(
            r#"{"Effect":"Allow","Principal":{"AWS":"bob"},"Action":"s3:DeleteObject","Resource":"arn:aws:s3:::photos/*",
                "Condition":{"StringEquals":{"s3:ExistingObjectTag/state":"released"}}}"#,
        )
        .await;
    overwrite(shut, released, shut, &[]);
    let answer = fixture.call("bob", "DELETE", "/photos/k", &[], b"").await;
    assert_eq!(answer.code(), "OperationAborted", "{answer:?}");
    overwrite(shut, released, shut, &[]);
    let list = b"<Delete><Object><Key>k</Key></Object></Delete>";
    let answer = fixture.call("bob", "POST", "/photos?delete", &[], list).await;
    assert!(answer.body.contains("<Code>OperationAborted</Code>"), "{answer:?}");
    assert_eq!(fixture.call("ann", "HEAD", "/photos/k", &[], b"").await.status, StatusCode::OK, "it is still there");
    fixture.store.add_object("photos", "k", shut, released);
    assert_eq!(fixture.call("bob", "DELETE", "/photos/k", &[], b"").await.status, StatusCode::NO_CONTENT);
    assert_eq!(fixture.call("ann", "HEAD", "/photos/k", &[], b"").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn tags_and_an_acl_are_set_only_on_the_object_whose_tags_allowed_it() {
    let cold = ColdReads::new(Arc::new(EmptyTiers), ColdReadSettings::default());
    let fixture = Fixture::of_front(Arc::new(MemoryChunkStore::new()), cold);
    fixture
        .put_policy(
            r#"{"Effect":"Allow","Principal":{"AWS":"bob"},"Resource":"arn:aws:s3:::photos/*",
                "Action":["s3:PutObjectTagging","s3:DeleteObjectTagging","s3:PutObjectAcl"],
                "Condition":{"StringEquals":{"s3:ExistingObjectTag/state":"draft"}}}"#,
        )
        .await;
    let object = |state: &str| {
        fixture.store.add_object("photos", "k", CannedAcl::Private, &[("state", state)]);
        ObjectVersion::clone(fixture.store.objects.lock().values().next().unwrap())
    };
    let signed = Arc::new(ObjectVersion { sequence: 2, ..object("signed") });
    type Sent<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [u8]);
    let tags = b"<Tagging><TagSet><Tag><Key>state</Key><Value>published</Value></Tag></TagSet></Tagging>";
    let acl = [("x-amz-acl", "public-read")];
    let requests: [Sent<'_>; 3] =
        [("PUT", "tagging", &[], tags), ("DELETE", "tagging", &[], b""), ("PUT", "acl", &acl, b"")];
    for (method, what, headers, body) in requests {
        let path = format!("/photos/k?{what}");
        object("draft");
        *fixture.store.overtaking.lock() = Some(Arc::clone(&signed));
        let answer = fixture.call("bob", method, &path, headers, body).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::CONFLICT, "OperationAborted"), "{method} {what}");
        assert_eq!(fixture.store.objects.lock().values().next(), Some(&signed), "{method} {what}");
        assert_eq!(fixture.call("bob", method, &path, headers, body).await.code(), "AccessDenied", "{method} {what}");

        let before = object("draft");
        let answer = fixture.call("bob", method, &path, headers, body).await;
        assert!(answer.status.is_success(), "{method} {what}: {answer:?}");
        let after = Arc::clone(fixture.store.objects.lock().values().next().unwrap());
        assert_ne!((&after.tags, after.acl), (&before.tags, before.acl), "{method} {what}");
    }
}

#[tokio::test]
async fn an_object_that_comes_after_a_deletion_of_nothing_was_allowed_stays() {
    let cold = ColdReads::new(Arc::new(EmptyTiers), ColdReadSettings::default());
    let fixture = Fixture::of_front(Arc::new(MemoryChunkStore::new()), cold);
    let delete = r#""Principal":{"AWS":"bob"},"Action":"s3:DeleteObject","Resource":"arn:aws:s3:::photos/*""#;
    let held = r#""Condition":{"StringEquals":{"s3:ExistingObjectTag/state":"held"}}"#;
    fixture.put_policy(&format!(r#"{{"Effect":"Allow",{delete}}},{{"Effect":"Deny",{delete},{held}}}"#)).await;
    fixture.store.add_object("photos", "k", CannedAcl::Private, &[("state", "held")]);
    let held = Arc::clone(fixture.store.objects.lock().values().next().unwrap());
    // Nothing is there, until somebody has looked.
    let comes = || {
        fixture.store.objects.lock().clear();
        *fixture.store.overwriting.lock() = Some(Arc::clone(&held));
    };
    comes();
    let answer = fixture.call("bob", "DELETE", "/photos/k", &[], b"").await;
    assert_eq!(answer.code(), "OperationAborted", "{answer:?}");
    comes();
    let list = b"<Delete><Object><Key>k</Key></Object></Delete>";
    let answer = fixture.call("bob", "POST", "/photos?delete", &[], list).await;
    assert!(answer.body.contains("<Code>OperationAborted</Code>"), "{answer:?}");
    assert_eq!(fixture.call("ann", "HEAD", "/photos/k", &[], b"").await.status, StatusCode::OK, "it is still there");

    fixture.store.objects.lock().clear();
    assert_eq!(fixture.call("bob", "DELETE", "/photos/k", &[], b"").await.status, StatusCode::NO_CONTENT);
    for etag in ["*", "\"5d41402abc4b2a76b9719d911017c592\""] {
        let answer = fixture.call("bob", "DELETE", "/photos/k", &[("if-match", etag)], b"").await;
        assert_eq!(answer.code(), "NoSuchKey", "{etag}: {answer:?}");
        comes();
        let answer = fixture.call("bob", "DELETE", "/photos/k", &[("if-match", etag)], b"").await;
        assert_eq!(answer.code(), "OperationAborted", "{etag}: {answer:?}");
        fixture.store.objects.lock().clear();
    }
}

#[tokio::test]
async fn a_copy_is_of_the_bucket_that_was_decided_about() {
    let cold = ColdReads::new(Arc::new(EmptyTiers), ColdReadSettings::default());
    let fixture = Fixture::of_front(Arc::new(MemoryChunkStore::new()), cold);
    fixture.store.add_bucket("sketches", "bob");
    // Once that was read, it is gone, and Ann has made one of its name.
    let photos = Arc::clone(&fixture.store.buckets.lock()["photos"]);
    let of_ann = Bucket { name: "sketches".to_owned(), ..Bucket::clone(&photos) };
    fixture.store.add_object("photos", "k", CannedAcl::Private, &[]);
    *fixture.store.replacing.lock() = Some(Arc::new(of_ann));
    let copy = || fixture.call("bob", "PUT", "/drafts/k", &[("x-amz-copy-source", "sketches/k")], b"");
    assert_eq!(copy().await.code(), "NoSuchKey", "there was none in Bob's");
    assert_eq!(copy().await.code(), "AccessDenied", "it is Ann's now");
}

#[tokio::test]
async fn a_bucket_that_was_made_since_the_decision_is_left_alone() {
    let cold = ColdReads::new(Arc::new(EmptyTiers), ColdReadSettings::default());
    let fixture = Fixture::of_front(Arc::new(MemoryChunkStore::new()), cold);
    let of_ann = Arc::clone(&fixture.store.buckets.lock()["photos"]);
    let of_bob = Arc::new(Bucket { id: BucketId(99), owner: "bob".to_owned(), ..Bucket::clone(&of_ann) });
    let none: &[(&str, &str)] = &[];
    let acl: &[(&str, &str)] = &[("x-amz-acl", "public-read")];
    for (method, target, headers) in
        [("DELETE", "/photos", none), ("DELETE", "/photos?tagging", none), ("PUT", "/photos?acl", acl)]
    {
        fixture.store.buckets.lock().insert("photos".to_owned(), Arc::clone(&of_ann));
        // Once Ann's was read, it is gone, and Bob has made one of its name.
        *fixture.store.replacing.lock() = Some(Arc::clone(&of_bob));
        let answer = fixture.call("ann", method, target, headers, b"").await;
        assert_eq!(answer.code(), "NoSuchBucket", "{method} {target}: {answer:?}");
        assert_eq!(fixture.store.buckets.lock().get("photos"), Some(&of_bob), "{method} {target}");
    }
}

#[tokio::test]
async fn a_deletion_that_was_allowed_by_tags_says_why_it_did_not_happen() {
    let cold = ColdReads::new(Arc::new(EmptyTiers), ColdReadSettings::default());
    let fixture = Fixture::of_front(Arc::new(MemoryChunkStore::new()), cold);
    fixture
        .put_policy(
            r#"{"Effect":"Allow","Principal":{"AWS":"bob"},"Resource":"arn:aws:s3:::photos/*",
                "Action":["s3:DeleteObject","s3:DeleteObjectVersion"],
                "Condition":{"StringEquals":{"s3:ExistingObjectTag/state":"released"}}}"#,
        )
        .await;
    let released: &[(&str, &str)] = &[("state", "released")];
    fixture.store.add_object("photos", "k", CannedAcl::Private, released);
    let etag = [("if-match", "\"5d41402abc4b2a76b9719d911017c592\"")];
    let answer = fixture.call("bob", "DELETE", "/photos/k", &etag, b"").await;
    assert_eq!(answer.code(), "PreconditionFailed", "to try again is of no use: {answer:?}");

    let twice = b"<Delete><Object><Key>k</Key></Object><Object><Key>k</Key></Object></Delete>";
    let answer = fixture.call("bob", "POST", "/photos?delete", &[], twice).await;
    assert_eq!(answer.body.matches("<Deleted>").count(), 2, "{answer:?}");

    // A noncurrent version keeps its number when it gets other tags.
    fixture.store.add_object("photos", "k", CannedAcl::Private, released);
    let noncurrent = |tags: Vec<Tag>| {
        let mut objects = fixture.store.objects.lock();
        let object = objects.values_mut().next().unwrap();
        let changed = ObjectVersion { is_latest: false, tags, ..ObjectVersion::clone(object) };
        *object = Arc::new(changed);
        Arc::clone(object)
    };
    let held = noncurrent(Vec::new());
    noncurrent(vec![Tag { key: "state".to_owned(), value: "released".to_owned() }]);
    *fixture.store.overwriting.lock() = Some(held);
    let answer = fixture.call("bob", "DELETE", "/photos/k?versionId=null", &[], b"").await;
    assert_eq!(answer.code(), "OperationAborted", "{answer:?}");
}
