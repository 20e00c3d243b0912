//! Random histories against a model that is too simple to be wrong: a list of versions a key, newest first.

use std::collections::BTreeMap;

use holdfast_protocol::{ContentId, UploadId, VersionId};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::{Store, T0, bucket, content_of, copy_of, delete_request, object, seeds, upload};
use crate::ports::metadata::{
    BucketId, ContentSource, Deleted, ListAfter, ListQuery, ListUploadsQuery, ListVersionsQuery, MetadataError,
    Versioning, WritePrecondition,
};

#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    version: VersionId,
    content: Option<ContentId>,
}

#[derive(Debug, Default)]
struct Model {
    versioning: Versioning,
    keys: BTreeMap<String, Vec<Version>>,
}

impl Model {
    fn current(&self, key: &str) -> Option<&Version> {
        self.keys.get(key)?.first().filter(|version| version.content.is_some())
    }

    fn put(&mut self, key: &str, version: VersionId, content: ContentId) {
        let version = if self.versioning == Versioning::Enabled { version } else { VersionId::NULL };
        self.add(key, Version { version, content: Some(content) });
    }

    fn add(&mut self, key: &str, version: Version) {
        let versions = self.keys.entry(key.to_owned()).or_default();
        if version.version.is_null() {
            versions.retain(|old| !old.version.is_null());
        }
        versions.insert(0, version);
    }

    fn delete(&mut self, key: &str, version: Option<VersionId>, marker: VersionId) -> Deleted {
        let told = |version| (self.versioning != Versioning::Unversioned).then_some(version);
        let deleted = match (version, self.versioning) {
            (Some(version), _) => {
                let versions = self.keys.entry(key.to_owned()).or_default();
                let delete_marker = versions.iter().any(|v| v.version == version && v.content.is_none());
                versions.retain(|old| old.version != version);
                Deleted { version: told(version), delete_marker }
            }
            (None, Versioning::Unversioned) => {
                self.keys.remove(key);
                Deleted { version: None, delete_marker: false }
            }
            (None, versioning) => {
                let version = if versioning == Versioning::Enabled { marker } else { VersionId::NULL };
                self.add(key, Version { version, content: None });
                Deleted { version: Some(version), delete_marker: true }
            }
        };
        self.keys.retain(|_, versions| !versions.is_empty());
        deleted
    }
}

const PIECES: [&str; 10] = ["a", "b", "/", "//", "-", "\u{e9}", "\u{1F980}", "\0", "\u{7f}", "z"];

fn random_key(rng: &mut StdRng) -> String {
    loop {
        let key: String = (0..rng.random_range(1..5)).map(|_| *PIECES.choose(rng).unwrap()).collect();
        if !key.is_empty() {
            return key;
        }
    }
}

/// What a listing of `keys` gives: keys and common prefixes in order, the latter marked.
fn grouped<'a>(keys: impl Iterator<Item = &'a String>, prefix: &str, delimiter: Option<&str>) -> Vec<(String, bool)> {
    let mut out: Vec<(String, bool)> = Vec::new();
    for key in keys.filter(|key| key.starts_with(prefix)) {
        let rest = &key[prefix.len()..];
        match delimiter.and_then(|delimiter| Some(rest.find(delimiter)? + delimiter.len())) {
            Some(end) => {
                let common = (format!("{prefix}{}", &rest[..end]), true);
                if out.last() != Some(&common) {
                    out.push(common);
                }
            }
            None => out.push((key.clone(), false)),
        }
    }
    out
}

fn random_query(rng: &mut StdRng) -> (String, Option<String>, u32) {
    let prefix = if rng.random_bool(0.5) { String::new() } else { (*PIECES.choose(rng).unwrap()).to_owned() };
    let delimiter = rng.random_bool(0.7).then(|| (*["/", "//", "-", "\u{1F980}", "a"].choose(rng).unwrap()).to_owned());
    (prefix, delimiter, rng.random_range(1..9))
}

async fn check_lists(store: &Store, id: BucketId, model: &Model, rng: &mut StdRng) {
    let (prefix, delimiter, limit) = random_query(rng);
    // Objects.
    let visible = model.keys.keys().filter(|key| model.current(key).is_some());
    let expected = grouped(visible, &prefix, delimiter.as_deref());
    let mut query = ListQuery { prefix: prefix.clone(), delimiter: delimiter.clone(), after: ListAfter::Start, limit };
    let mut listed = Vec::new();
    loop {
        let page = store.list_objects(id, query.clone()).await.unwrap();
        let mut rows: Vec<(String, bool)> = page.entries.into_iter().map(|entry| (entry.key, false)).collect();
        rows.extend(page.common_prefixes.into_iter().map(|prefix| (prefix, true)));
        assert!(rows.len() <= limit as usize);
        rows.sort();
        listed.extend(rows);
        let Some(next) = page.next else { break };
        query.after = next;
    }
    assert_eq!(listed, expected, "objects by {query:?}");

    // Versions.
    let mut expected = Vec::new();
    for (name, is_prefix) in grouped(model.keys.keys(), &prefix, delimiter.as_deref()) {
        if is_prefix {
            expected.push((name, None, false));
        } else {
            for (i, version) in model.keys[&name].iter().enumerate() {
                expected.push((name.clone(), Some(version.clone()), i == 0));
            }
        }
    }
    let mut query = ListVersionsQuery { prefix, delimiter, limit, ..Default::default() };
    let mut listed = Vec::new();
    loop {
        let page = store.list_versions(id, query.clone()).await.unwrap();
        let rows: Vec<_> = page
            .entries
            .iter()
            .map(|v| {
                let version = Version { version: v.version, content: v.content.as_ref().map(|content| content.id) };
                (v.key.clone(), Some(version), v.is_latest)
            })
            .collect();
        let prefixes: Vec<_> = page.common_prefixes.into_iter().map(|prefix| (prefix, None, false)).collect();
        assert!(rows.len() + prefixes.len() <= limit as usize);
        listed.extend(merge(rows, prefixes));
        let Some((after, after_version)) = page.next else { break };
        query = ListVersionsQuery { after, after_version, ..query };
    }
    assert_eq!(listed, expected, "versions by {query:?}");
}

type Row = (String, Option<Version>, bool);

/// By name, keeping the order of equal names.
fn merge(mut rows: Vec<Row>, prefixes: Vec<Row>) -> Vec<Row> {
    rows.extend(prefixes);
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    rows
}

async fn check_key(store: &Store, id: BucketId, model: &Model, key: &str) {
    match (store.object(id, key, None).await, model.keys.get(key).and_then(|versions| versions.first())) {
        (Ok(read), Some(expected)) => {
            let content = read.content.as_ref().map(|content| content.id);
            assert_eq!((read.version, content, read.is_latest), (expected.version, expected.content, true));
        }
        (Err(MetadataError::NoSuchKey), None) => {}
        (read, expected) => panic!("key {key:?}: {read:?}, expected {expected:?}"),
    }
    for (i, version) in model.keys.get(key).into_iter().flatten().enumerate() {
        let read = store.object(id, key, Some(version.version)).await.unwrap();
        assert_eq!((read.content.as_ref().map(|content| content.id), read.is_latest), (version.content, i == 0));
    }
}

/// Puts, copies, deletions with and without versions, conditions and changes of versioning; after each step the key,
/// and now and then all listings, are what the model says. At the end exactly the contents that nothing holds are due.
pub async fn random_histories_match_a_naive_model(store: Store) {
    for (round, seed) in seeds(3).into_iter().enumerate() {
        println!("HOLDFAST_TEST_SEED={seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let name = format!("model{round}");
        let id = bucket(&store, &name).await.id;
        let mut model = Model::default();
        let mut keys: Vec<String> = (0..12).map(|_| random_key(&mut rng)).collect();
        keys.sort();
        keys.dedup();
        let mut contents = Vec::new();
        for step in 0..120 {
            let key = keys.choose(&mut rng).unwrap().clone();
            match rng.random_range(0..100) {
                0..45 => {
                    let mut new = object(id, &key, step as u8);
                    let must_not_exist = rng.random_bool(0.2);
                    new.precondition = WritePrecondition { must_not_exist, must_match: None };
                    let ContentSource::New(content) = &new.content else { unreachable!("a new object") };
                    let (content, version) = (content.id, new.version);
                    match store.commit_object(new).await {
                        Ok(_) => {
                            assert!(!(must_not_exist && model.current(&key).is_some()));
                            contents.push(content);
                            model.put(&key, version, content);
                        }
                        Err(MetadataError::PreconditionFailed) => {
                            assert!(must_not_exist && model.current(&key).is_some());
                        }
                        Err(error) => panic!("{error:?}"),
                    }
                }
                45..60 => {
                    let source = keys.choose(&mut rng).unwrap();
                    let Ok(source) = store.object(id, source, None).await else { continue };
                    if source.is_delete_marker() {
                        continue;
                    }
                    let copy = copy_of(id, &key, content_of(&source));
                    let version = copy.version;
                    store.commit_object(copy).await.unwrap();
                    model.put(&key, version, content_of(&source));
                }
                60..75 => {
                    let request = delete_request(&key, None);
                    let expected = model.delete(&key, None, request.marker_version);
                    let deleted = store.delete_objects(id, vec![request], T0).await.unwrap().remove(0).unwrap();
                    assert_eq!(deleted, expected);
                }
                75..92 => {
                    let versions = model.keys.get(&key).cloned().unwrap_or_default();
                    let version = versions.choose(&mut rng).map_or(VersionId([5; 12]), |version| version.version);
                    let request = delete_request(&key, Some(version));
                    let expected = model.delete(&key, Some(version), request.marker_version);
                    let deleted = store.delete_objects(id, vec![request], T0).await.unwrap().remove(0).unwrap();
                    assert_eq!(deleted, expected);
                }
                92..97 => {
                    let wanted = *[Versioning::Enabled, Versioning::Suspended].choose(&mut rng).unwrap();
                    store.set_versioning(&name, id, wanted).await.unwrap();
                    model.versioning = wanted;
                }
                _ => check_lists(&store, id, &model, &mut rng).await,
            }
            check_key(&store, id, &model, &key).await;
        }
        for _ in 0..6 {
            check_lists(&store, id, &model, &mut rng).await;
        }
        let held: Vec<ContentId> = model.keys.values().flatten().filter_map(|version| version.content).collect();
        let mut unheld: Vec<ContentId> = contents.into_iter().filter(|content| !held.contains(content)).collect();
        let due = store.due_reclaims(T0 + 1_000_000, 1000, None).await.unwrap();
        let mut reclaimed: Vec<ContentId> = due.iter().map(|reclaim| reclaim.manifest.extents[0].content).collect();
        unheld.sort();
        reclaimed.sort();
        assert_eq!(reclaimed, unheld);
        store.finish_reclaims(&due.iter().map(|reclaim| reclaim.item).collect::<Vec<_>>(), None).await.unwrap();
    }
}

/// Uploads group and page as objects do.
pub async fn random_uploads_list_as_a_naive_model(store: Store) {
    for (round, seed) in seeds(2).into_iter().enumerate() {
        println!("HOLDFAST_TEST_SEED={seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let id = bucket(&store, &format!("uploads{round}")).await.id;
        let mut model: BTreeMap<String, Vec<UploadId>> = BTreeMap::new();
        for _ in 0..30 {
            let new = upload(id, &random_key(&mut rng));
            model.entry(new.key.clone()).or_default().push(new.id);
            store.create_upload(new).await.unwrap();
        }
        for uploads in model.values_mut() {
            uploads.sort();
        }
        for _ in 0..10 {
            let (prefix, delimiter, limit) = random_query(&mut rng);
            let mut expected = Vec::new();
            for (name, is_prefix) in grouped(model.keys(), &prefix, delimiter.as_deref()) {
                if is_prefix {
                    expected.push((name, None));
                } else {
                    expected.extend(model[&name].iter().map(|upload| (name.clone(), Some(*upload))));
                }
            }
            let mut query = ListUploadsQuery { prefix, delimiter, limit, ..Default::default() };
            let mut listed = Vec::new();
            loop {
                let page = store.list_uploads(id, query.clone()).await.unwrap();
                let mut rows: Vec<_> =
                    page.entries.iter().map(|upload| (upload.new.key.clone(), Some(upload.new.id))).collect();
                rows.extend(page.common_prefixes.into_iter().map(|prefix| (prefix, None)));
                assert!(rows.len() <= limit as usize);
                rows.sort();
                listed.extend(rows);
                let Some((after, after_upload)) = page.next else { break };
                query = ListUploadsQuery { after, after_upload, ..query };
            }
            assert_eq!(listed, expected, "uploads by {query:?}");
        }
    }
}
