//! Multipart uploads.

use futures::future::join_all;
use holdfast_protocol::{ChecksumAlgorithm, ChecksumType, UploadId, VersionId};

use super::{Store, T0, assembled, bucket, bucket_with, latest, part, put, upload};
use crate::ports::metadata::{
    BucketId, CompleteUpload, ListAfter, ListUploadsQuery, MetadataError, NewUpload, Part, ReplicaEvidence, Tag,
    Versioning, WritePrecondition,
};

fn completion(upload: &NewUpload, parts: &[Part]) -> CompleteUpload {
    CompleteUpload {
        bucket: upload.bucket,
        key: upload.key.clone(),
        upload: upload.id,
        parts: parts.iter().map(|part| (part.number, part.content)).collect(),
        content: assembled(parts),
        version: VersionId::generate(T0 / 1000),
        now_ms: T0 + 5,
        precondition: WritePrecondition::default(),
        event: None,
    }
}

async fn started(store: &Store, id: BucketId, key: &str, parts: &[Part]) -> NewUpload {
    let upload = upload(id, key);
    store.create_upload(upload.clone()).await.unwrap();
    for part in parts {
        store.put_part(id, key, upload.id, part.clone(), ReplicaEvidence::default()).await.unwrap();
    }
    upload
}

/// The object has what the upload was started with, and the upload is over.
pub async fn parts_become_an_object(store: Store) {
    let id = bucket(&store, "b").await.id;
    let mut new = upload(id, "k");
    new.tags = vec![Tag { key: "t".into(), value: "v".into() }];
    new.checksum = Some((ChecksumAlgorithm::Crc32c, ChecksumType::Composite));
    store.create_upload(new.clone()).await.unwrap();
    let stored = store.upload(id, "k", new.id).await.unwrap();
    assert_eq!(stored.bucket_name, "b");
    assert_eq!((stored.new.tags.clone(), stored.new.checksum), (new.tags.clone(), new.checksum));
    let mut parts: Vec<Part> = [7, 1, 10_000].map(|number| part(number, u64::from(number) * 10)).to_vec();
    parts[0].checksum = Some((ChecksumAlgorithm::Crc32c, vec![1, 2, 3, 4]));
    for part in &parts {
        store.put_part(id, "k", new.id, part.clone(), ReplicaEvidence::default()).await.unwrap();
    }
    parts.sort_by_key(|part| part.number);
    assert_eq!(store.list_parts(new.id, 0, 1000).await.unwrap(), parts);
    assert_eq!(store.list_parts(new.id, 1, 1).await.unwrap(), parts[1..2]);
    assert_eq!(store.list_parts(new.id, 10_000, 10).await.unwrap(), []);
    assert!(matches!(latest(&store, id, "k").await, Err(MetadataError::NoSuchKey)), "not visible before");

    let committed = store.complete_upload(completion(&new, &parts)).await.unwrap();
    let read = latest(&store, id, "k").await.unwrap();
    assert_eq!(read, committed.object);
    assert_eq!((read.tags.clone(), read.attributes.clone()), (new.tags.clone(), new.attributes.clone()));
    assert_eq!(*read.content.as_ref().unwrap().parts, assembled(&parts).parts);
    assert!(matches!(store.upload(id, "k", new.id).await, Err(MetadataError::NoSuchUpload)));
    assert!(matches!(store.list_parts(new.id, 0, 10).await, Err(MetadataError::NoSuchUpload)));
    let late = store.put_part(id, "k", new.id, part(2, 1), ReplicaEvidence::default()).await;
    assert!(matches!(late, Err(MetadataError::NoSuchUpload)));
    let again = store.complete_upload(completion(&new, &parts)).await;
    assert!(matches!(again, Err(MetadataError::NoSuchUpload)));
    assert_eq!(store.due_reclaims(T0 + 1000, 10, None).await.unwrap(), []);
}

/// A part that is missing, or was uploaded anew since it was read, is refused and changes nothing.
pub async fn a_completion_checks_its_parts(store: Store) {
    let id = bucket(&store, "b").await.id;
    let parts = [part(1, 10), part(2, 20)];
    let upload = started(&store, id, "k", &parts).await;
    let with_missing = [parts[0].clone(), part(3, 30)];
    let refused = store.complete_upload(completion(&upload, &with_missing)).await;
    assert!(matches!(refused, Err(MetadataError::InvalidPart(3))), "{refused:?}");
    let anew = part(2, 25);
    store.put_part(id, "k", upload.id, anew.clone(), ReplicaEvidence::default()).await.unwrap();
    let refused = store.complete_upload(completion(&upload, &parts)).await;
    assert!(matches!(refused, Err(MetadataError::InvalidPart(2))), "{refused:?}");
    assert!(matches!(latest(&store, id, "k").await, Err(MetadataError::NoSuchKey)));
    assert_eq!(store.list_parts(upload.id, 0, 10).await.unwrap().len(), 2);
    let mut elsewhere = completion(&upload, &[parts[0].clone(), anew.clone()]);
    elsewhere.key = "other".into();
    assert!(matches!(store.complete_upload(elsewhere).await, Err(MetadataError::NoSuchUpload)));
    // A part that is sent again as it is stays what it is.
    store.put_part(id, "k", upload.id, anew.clone(), ReplicaEvidence::default()).await.unwrap();
    store.complete_upload(completion(&upload, &[parts[0].clone(), anew])).await.unwrap();
    let due = store.due_reclaims(T0 + 1000, 10, None).await.unwrap();
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].manifest.extents[0].content, parts[1].content);
}

/// Two clients complete one upload, with other parts.
pub async fn exactly_one_of_two_completers_wins(store: Store) {
    let id = bucket(&store, "b").await.id;
    for round in 0..5 {
        let key = format!("k{round}");
        let parts = [part(1, 10), part(2, 20), part(3, 30)];
        let upload = started(&store, id, &key, &parts).await;
        let attempts = [&parts[..2], &parts[1..], &parts[..]].map(|chosen| {
            let store = store.clone();
            let completion = completion(&upload, chosen);
            tokio::spawn(async move { store.complete_upload(completion).await })
        });
        let mut won = Vec::new();
        for result in join_all(attempts).await {
            match result.unwrap() {
                Ok(committed) => won.push(committed.object),
                Err(error) => assert!(matches!(error, MetadataError::NoSuchUpload), "{error:?}"),
            }
        }
        assert_eq!(won.len(), 1);
        assert_eq!(latest(&store, id, &key).await.unwrap(), won[0]);
        let extents = &won[0].content.as_ref().unwrap().manifest.extents;
        let (held, chunks): (usize, Vec<_>) = (extents.len(), extents.iter().map(|extent| extent.content).collect());
        let due = store.due_reclaims(T0 + 1000, 10, None).await.unwrap();
        assert_eq!(held + due.len(), 3, "each part is held or queued");
        store.finish_reclaims(&due.iter().map(|reclaim| reclaim.item).collect::<Vec<_>>(), None).await.unwrap();
        assert_eq!(store.known_contents(&chunks).await.unwrap().len(), held, "else their chunks were orphans");
    }
}

/// A client may try again with another condition.
pub async fn a_refused_precondition_leaves_the_upload(store: Store) {
    let id = bucket(&store, "b").await.id;
    put(&store, id, "k", 1).await;
    let parts = [part(1, 10)];
    let upload = started(&store, id, "k", &parts).await;
    let mut conditional = completion(&upload, &parts);
    conditional.precondition.must_not_exist = true;
    assert!(matches!(store.complete_upload(conditional).await, Err(MetadataError::PreconditionFailed)));
    assert_eq!(store.list_parts(upload.id, 0, 10).await.unwrap(), parts);
    store.complete_upload(completion(&upload, &parts)).await.unwrap();
}

/// All parts are queued; the upload is gone.
pub async fn abort_queues_the_parts(store: Store) {
    let id = bucket(&store, "b").await.id;
    let parts: Vec<Part> = (1..=70).map(|number| part(number, 10)).collect();
    let upload = started(&store, id, "k", &parts).await;
    let elsewhere = store.abort_upload(id, "other", upload.id, T0).await;
    assert!(matches!(elsewhere, Err(MetadataError::NoSuchUpload)));
    store.abort_upload(id, "k", upload.id, T0).await.unwrap();
    assert!(matches!(store.abort_upload(id, "k", upload.id, T0).await, Err(MetadataError::NoSuchUpload)));
    assert!(matches!(store.list_parts(upload.id, 0, 10).await, Err(MetadataError::NoSuchUpload)));
    assert_eq!(store.due_reclaims(T0 + 1, 1000, None).await.unwrap().len(), 70);
}

/// Either the object exists and no part of it is queued, or everything is queued.
pub async fn an_abort_and_a_completion_exclude_each_other(store: Store) {
    let id = bucket(&store, "b").await.id;
    for round in 0..10 {
        let key = format!("k{round}");
        let parts = [part(1, 10), part(2, 20)];
        let upload = started(&store, id, &key, &parts).await;
        let completing = tokio::spawn({
            let (store, completion) = (store.clone(), completion(&upload, &parts));
            async move { store.complete_upload(completion).await.is_ok() }
        });
        let aborting = tokio::spawn({
            let (store, key) = (store.clone(), key.clone());
            async move { store.abort_upload(id, &key, upload.id, T0).await.is_ok() }
        });
        let (completed, aborted) = (completing.await.unwrap(), aborting.await.unwrap());
        assert_ne!(completed, aborted);
        assert_eq!(latest(&store, id, &key).await.is_ok(), completed);
        let due = store.due_reclaims(T0 + 1000, 10, None).await.unwrap();
        assert_eq!(due.len(), if aborted { 2 } else { 0 });
        store.finish_reclaims(&due.iter().map(|reclaim| reclaim.item).collect::<Vec<_>>(), None).await.unwrap();
    }
}

/// For cleanup, which ends unfinished uploads.
pub async fn stale_uploads_come_oldest_first(store: Store) {
    let id = bucket(&store, "b").await.id;
    let mut ids = Vec::new();
    for age in [3, 1, 2] {
        let new = NewUpload { now_ms: T0 + age, ..upload(id, "k") };
        ids.push((age, new.id));
        store.create_upload(new).await.unwrap();
    }
    ids.sort_unstable();
    let stale = store.stale_uploads(T0 + 3, 10).await.unwrap();
    assert_eq!(stale.iter().map(|upload| upload.new.id).collect::<Vec<_>>(), [ids[0].1, ids[1].1]);
    assert_eq!(stale[0].bucket_name, "b");
    assert_eq!(store.stale_uploads(T0 + 10, 1).await.unwrap().len(), 1);
}

/// By its id alone, and only once it is old enough.
pub async fn an_upload_expires_once_and_only_when_it_is_old(store: Store) {
    let id = bucket(&store, "b").await.id;
    let upload = started(&store, id, "k", &[part(1, 10), part(2, 20)]).await;
    let begun_ms = upload.now_ms;
    assert!(!store.expire_upload(upload.id, begun_ms, T0).await.unwrap(), "too young");
    assert!(store.upload(id, "k", upload.id).await.is_ok());
    assert!(store.expire_upload(upload.id, begun_ms + 1, T0).await.unwrap());
    assert!(!store.expire_upload(upload.id, begun_ms + 1, T0).await.unwrap(), "it is gone");
    assert!(matches!(store.upload(id, "k", upload.id).await, Err(MetadataError::NoSuchUpload)));
    assert_eq!(store.due_reclaims(T0 + 1, 10, None).await.unwrap().len(), 2);
    let done = started(&store, id, "k", &[part(1, 30)]).await;
    store.complete_upload(completion(&done, &store.list_parts(done.id, 0, 10).await.unwrap())).await.unwrap();
    assert!(!store.expire_upload(done.id, u64::MAX >> 1, T0).await.unwrap(), "it became an object");
    assert!(latest(&store, id, "k").await.is_ok());
}

/// Several uploads of one key page by their ids.
pub async fn lists_uploads_by_key_and_id(store: Store) {
    let id = bucket(&store, "b").await.id;
    let mut expected: Vec<(String, UploadId)> = Vec::new();
    for key in ["a", "b", "b", "b", "c/x", "c/y", "d"] {
        let new = upload(id, key);
        expected.push((key.into(), new.id));
        store.create_upload(new).await.unwrap();
    }
    expected.sort();
    let mut query = ListUploadsQuery { limit: 2, ..Default::default() };
    let mut listed = Vec::new();
    loop {
        let page = store.list_uploads(id, query.clone()).await.unwrap();
        assert!(page.entries.len() <= 2);
        listed.extend(page.entries.iter().map(|upload| (upload.new.key.clone(), upload.new.id)));
        let Some((after, after_upload)) = page.next else { break };
        query = ListUploadsQuery { after, after_upload, ..query };
    }
    assert_eq!(listed, expected);
    let grouped = ListUploadsQuery { delimiter: Some("/".into()), limit: 100, ..Default::default() };
    let page = store.list_uploads(id, grouped).await.unwrap();
    assert_eq!((page.entries.len(), page.common_prefixes), (5, vec!["c/".to_owned()]));
    let past = ListUploadsQuery { after: ListAfter::Key("b".into()), limit: 100, ..Default::default() };
    assert_eq!(store.list_uploads(id, past).await.unwrap().entries.len(), 3, "without an upload: after the key");
}

/// The bucket's state at the completion counts, not that at the start.
pub async fn a_completion_adds_a_version_where_versioning_is_on(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Unversioned).await;
    put(&store, id, "k", 1).await;
    let parts = [part(1, 10)];
    let upload = started(&store, id, "k", &parts).await;
    store.set_versioning("b", id, Versioning::Enabled).await.unwrap();
    let completion = completion(&upload, &parts);
    let version = completion.version;
    let committed = store.complete_upload(completion).await.unwrap();
    assert_eq!((committed.object.version, committed.versioning), (version, Versioning::Enabled));
    assert!(store.object(id, "k", Some(VersionId::NULL)).await.is_ok());
}
