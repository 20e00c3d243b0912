//! Listings of objects and versions.

use super::{Store, T0, bucket, bucket_with, delete, delete_request, put};
use crate::ports::metadata::{BucketId, ListAfter, ListPage, ListQuery, ListVersionsQuery, Versioning};

async fn list(store: &Store, id: BucketId, query: ListQuery) -> ListPage {
    store.list_objects(id, query).await.unwrap()
}

fn keys(page: &ListPage) -> Vec<&str> {
    page.entries.iter().map(|entry| entry.key.as_str()).collect()
}

/// As in the examples of the S3 documentation.
pub async fn prefixes_and_delimiters_group_keys(store: Store) {
    let id = bucket(&store, "b").await.id;
    let other = bucket(&store, "c").await.id;
    for key in ["sample.jpg", "photos/2006/January/a.jpg", "photos/2006/February/b.jpg", "photos/2006/c.jpg", "photos"]
    {
        put(&store, id, key, 1).await;
    }
    put(&store, other, "photos/elsewhere", 1).await;
    let query = |prefix: &str, delimiter: Option<&str>| ListQuery {
        prefix: prefix.into(),
        delimiter: delimiter.map(str::to_owned),
        limit: 1000,
        ..Default::default()
    };
    let page = list(&store, id, query("", Some("/"))).await;
    assert_eq!((keys(&page), page.common_prefixes.clone()), (vec!["photos", "sample.jpg"], vec!["photos/".to_owned()]));
    let page = list(&store, id, query("photos/2006/", Some("/"))).await;
    assert_eq!(keys(&page), ["photos/2006/c.jpg"]);
    assert_eq!(page.common_prefixes, ["photos/2006/February/", "photos/2006/January/"]);
    let page = list(&store, id, query("photos/", None)).await;
    assert_eq!(page.entries.len(), 3);
    let entry = &page.entries[0];
    assert_eq!((entry.size_bytes, entry.owner.as_str(), entry.last_modified_ms), (1001, "alice", T0 + 1));
    let page = list(&store, id, query("photos/2006", Some("/"))).await;
    assert_eq!(page.common_prefixes, ["photos/2006/"]);
    assert_eq!(list(&store, id, query("q", None)).await.entries.len(), 0);
    let none = ListQuery { limit: 0, ..query("", None) };
    let page = list(&store, id, none).await;
    assert_eq!((page.entries.len(), page.next), (0, None));
}

/// Entries and common prefixes count alike, and no page repeats or leaves out.
pub async fn a_page_goes_on_where_the_last_one_ended(store: Store) {
    let id = bucket(&store, "b").await.id;
    for key in ["a", "b/1", "b/2", "c", "d/1/x", "d/2", "e"] {
        put(&store, id, key, 1).await;
    }
    for limit in 1..=6 {
        let mut query = ListQuery { delimiter: Some("/".into()), limit, ..Default::default() };
        let mut all = Vec::new();
        loop {
            let page = list(&store, id, query.clone()).await;
            assert!(page.entries.len() + page.common_prefixes.len() <= limit as usize);
            all.extend(keys(&page).into_iter().map(str::to_owned));
            all.extend(page.common_prefixes);
            let Some(next) = page.next else { break };
            query.after = next;
        }
        all.sort();
        assert_eq!(all, ["a", "b/", "c", "d/", "e"], "limit {limit}");
    }
    // A start-after in the middle of a common prefix: the rest of it is still there.
    let middle =
        ListQuery { delimiter: Some("/".into()), after: ListAfter::Key("b/1".into()), limit: 1, ..Default::default() };
    assert_eq!(list(&store, id, middle).await.common_prefixes, ["b/"]);
    let past = ListQuery { after: ListAfter::Prefix("b/".into()), limit: 1, ..Default::default() };
    assert_eq!(keys(&list(&store, id, past).await), ["c"]);
}

/// The delimiter is a string, and characters of several bytes count.
pub async fn a_delimiter_may_have_several_characters(store: Store) {
    let id = bucket(&store, "b").await.id;
    for key in ["a--b", "a--c", "a-b", "x\u{1F980}y", "x\u{1F980}z", "x\u{1F981}"] {
        put(&store, id, key, 1).await;
    }
    let query = |delimiter: &str| ListQuery { delimiter: Some(delimiter.into()), limit: 10, ..Default::default() };
    let page = list(&store, id, query("--")).await;
    assert_eq!((page.common_prefixes.clone(), keys(&page).len()), (vec!["a--".to_owned()], 4));
    let page = list(&store, id, query("\u{1F980}")).await;
    assert_eq!((page.common_prefixes.clone(), keys(&page).len()), (vec!["x\u{1F980}".to_owned()], 4));
}

/// Keys whose latest version is a marker are not there, however many versions they have.
pub async fn hidden_keys_are_not_listed(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    for i in 0..10 {
        let key = format!("dir/k{i}");
        put(&store, id, &key, 1).await;
        put(&store, id, &key, 2).await;
        if i != 7 {
            delete(&store, id, &key, None).await.unwrap();
        }
    }
    delete(&store, id, "gone/x", None).await.unwrap();
    let page = list(&store, id, ListQuery { limit: 100, ..Default::default() }).await;
    assert_eq!(keys(&page), ["dir/k7"]);
    assert_eq!(page.entries[0].size_bytes, 1002);
    let grouped = ListQuery { delimiter: Some("/".into()), limit: 100, ..Default::default() };
    assert_eq!(list(&store, id, grouped.clone()).await.common_prefixes, ["dir/"]);
    let query = ListVersionsQuery { delimiter: Some("/".into()), limit: 100, ..Default::default() };
    let versions = store.list_versions(id, query).await.unwrap();
    assert_eq!(versions.common_prefixes, ["dir/", "gone/"]);
}

/// A page may end inside a key with many versions.
pub async fn versions_page_inside_a_key(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    let mut expected = Vec::new();
    for key in ["a", "b", "c"] {
        let mut versions = Vec::new();
        for i in 0..7 {
            versions.push((key.to_owned(), put(&store, id, key, i).await.object.version));
        }
        if key == "b" {
            versions.push((key.to_owned(), delete(&store, id, key, None).await.unwrap().version.unwrap()));
        }
        versions.reverse();
        expected.extend(versions);
    }
    for limit in [1, 2, 3, 5, 100] {
        let mut query = ListVersionsQuery { limit, ..Default::default() };
        let mut listed = Vec::new();
        loop {
            let page = store.list_versions(id, query.clone()).await.unwrap();
            assert!(page.entries.len() <= limit as usize);
            listed.extend(page.entries.iter().map(|v| (v.key.clone(), v.version, v.is_latest)));
            let Some((after, after_version)) = page.next else { break };
            query = ListVersionsQuery { after, after_version, ..query };
        }
        let latest: Vec<_> = listed.iter().filter(|(.., is_latest)| *is_latest).map(|(key, ..)| key.as_str()).collect();
        assert_eq!(latest, ["a", "b", "c"], "limit {limit}");
        let listed: Vec<_> = listed.into_iter().map(|(key, version, _)| (key, version)).collect();
        assert_eq!(listed, expected, "limit {limit}");
    }
    let past = ListVersionsQuery { after: ListAfter::Key("a".into()), limit: 1, ..Default::default() };
    assert_eq!(store.list_versions(id, past).await.unwrap().entries[0].key, "b");
}

/// A version that is there all along is listed, once, whatever becomes of those above it meanwhile.
pub async fn what_becomes_the_latest_during_a_listing_is_not_left_out(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    for round in 0..10 {
        let key = format!("k{round}");
        let mut versions = Vec::new();
        for i in 0..8 {
            versions.push(put(&store, id, &key, i).await.object.version);
        }
        let (stay, go) = versions.split_at(2);
        let (listing, deleting) = (store.clone(), store.clone());
        let gone = go.iter().rev().map(|version| delete_request(&key, Some(*version))).collect();
        let deletion = tokio::spawn(async move { deleting.delete_objects(id, gone, T0).await.unwrap() });
        let query =
            ListVersionsQuery { prefix: key, delimiter: Some("/".into()), limit: 100, ..ListVersionsQuery::default() };
        loop {
            let is_last = deletion.is_finished();
            let page = listing.list_versions(id, query.clone()).await.unwrap();
            for version in stay {
                let times = page.entries.iter().filter(|entry| entry.version == *version).count();
                assert_eq!(times, 1, "round {round}: {:?}", page.entries);
            }
            if is_last {
                assert_eq!(page.entries.len(), stay.len());
                break;
            }
        }
        deletion.await.unwrap().into_iter().for_each(|deleted| assert!(deleted.is_ok(), "{deleted:?}"));
    }
}

/// A client that deletes each page before it asks for the next one empties the bucket.
pub async fn a_deleted_version_marker_loses_nothing(store: Store) {
    let id = bucket_with(&store, "b", Versioning::Enabled).await;
    for i in 0..9 {
        put(&store, id, "k", i).await;
        put(&store, id, "l", i).await;
    }
    let mut query = ListVersionsQuery { limit: 4, ..Default::default() };
    loop {
        let page = store.list_versions(id, query.clone()).await.unwrap();
        let requests = page.entries.iter().map(|v| delete_request(&v.key, Some(v.version))).collect();
        for result in store.delete_objects(id, requests, T0).await.unwrap() {
            result.unwrap();
        }
        let Some((after, after_version)) = page.next else { break };
        query = ListVersionsQuery { after, after_version, ..query };
    }
    store.delete_bucket("b", id).await.unwrap();
}
