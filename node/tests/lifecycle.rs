//! Lifecycle rules over real metadata, at times that the test chooses: what is due goes, once, and nothing else does.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_actors::domain::cleanup::PassEnd;
use holdfast_actors::domain::lifecycle::{Expiration, LifecycleRule, LifecycleRules, NoncurrentExpiration, RuleFilter};
use holdfast_actors::flow::lifecycle::{LifecycleParts, LifecycleSettings, LifecycleStats, LifecycleTeller};
use holdfast_actors::ports::metadata::{
    BucketConfigKind, BucketId, CannedAcl, ContentSource, ListUploadsQuery, ListVersionsQuery, NewObject, NewUpload,
    ObjectAttributes, Tag, Versioning, samples,
};
use holdfast_actors::ports::{AccessLog, Clock, MetadataError, MetadataStore, Outbox, TierLedger};
use holdfast_protocol::{ContentId, UploadId, VersionId};

#[path = "lifecycle/moves.rs"]
mod moves;
#[path = "lifecycle/passes.rs"]
mod passes;
#[allow(dead_code, reason = "this test uses a part")]
#[path = "support/metadata.rs"]
mod support_metadata;

use support_metadata::{HOUR, HandClock, Metadata, NOON, change_request, delete, events};

const DAY: u64 = 24 * HOUR;

struct World {
    parts: LifecycleParts,
    outbox: Arc<dyn Outbox>,
    ledger: Arc<dyn TierLedger>,
    reads: Arc<dyn AccessLog>,
    clock: Arc<HandClock>,
    bucket: BucketId,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new(versioning: Versioning) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let Metadata { store: metadata, outbox, ledger, reads, bucket } = Metadata::new(dir.path(), versioning).await;
        let clock = HandClock::new(NOON);
        let parts = LifecycleParts {
            metadata,
            tiers: None,
            reads: Some(reads.clone()),
            clock: clock.clone(),
            cluster: None,
            teller: Some(LifecycleTeller { node: "node".into(), region: "us-east-1".into() }),
            settings: LifecycleSettings::default(),
        };
        Self { parts, outbox, ledger, reads, clock, bucket, _dir: dir }
    }

    fn store(&self) -> &dyn MetadataStore {
        &*self.parts.metadata
    }

    fn at(&self, now_ms: u64) {
        self.clock.set(now_ms);
    }

    async fn rules(&self, rules: Vec<LifecycleRule>) {
        self.set(LifecycleRules { rules, ..LifecycleRules::default() }).await;
    }

    async fn set(&self, rules: LifecycleRules) {
        let rules = LifecycleRules { generation: rand::random::<u64>() >> 1, ..rules };
        rules.check().unwrap();
        let text = serde_json::to_string(&rules).unwrap();
        self.store().set_bucket_config("bucket", self.bucket, BucketConfigKind::Lifecycle, Some(text)).await.unwrap();
    }

    async fn put(&self, key: &str) -> VersionId {
        self.put_tagged(key, &[]).await
    }

    async fn put_tagged(&self, key: &str, tags: &[(&str, &str)]) -> VersionId {
        self.put_sized(key, tags, 5).await
    }

    async fn put_sized(&self, key: &str, tags: &[(&str, &str)], size_bytes: u64) -> VersionId {
        let now_ms = self.clock.now_ms();
        let id = ContentId::generate(now_ms / 1_000);
        let object = NewObject {
            version: VersionId::generate(now_ms / 1_000),
            now_ms,
            content: ContentSource::New(samples::content(id, size_bytes)),
            tags: tags_of(tags),
            ..samples::object(self.bucket, key)
        };
        self.store().commit_object(object).await.unwrap().object.version
    }

    async fn delete(&self, key: &str, version: Option<VersionId>) {
        delete(self.store(), self.bucket, key, version, self.clock.now_ms()).await;
    }

    async fn tag(&self, key: &str, version: Option<VersionId>, tags: &[(&str, &str)]) {
        let now_ms = self.clock.now_ms();
        let request = change_request(self.bucket, key, version, now_ms);
        self.store().set_object_tags(request, tags_of(tags)).await.unwrap();
    }

    /// Passes until nothing is left, and what they did together.
    async fn pass(&self) -> LifecycleStats {
        let mut all = LifecycleStats::default();
        for _ in 0..1_000 {
            let (stats, end) = self.parts.pass().await.unwrap();
            all.examined += stats.examined;
            all.expired += stats.expired;
            all.noncurrent += stats.noncurrent;
            all.markers += stats.markers;
            all.uploads += stats.uploads;
            all.transitions += stats.transitions;
            all.changed += stats.changed;
            if end == PassEnd::Done {
                return all;
            }
        }
        panic!("passes do not come to an end");
    }

    async fn exists(&self, key: &str) -> bool {
        match self.store().object(self.bucket, key, None).await {
            Ok(object) => !object.is_delete_marker(),
            Err(MetadataError::NoSuchKey) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// `(key, version, is a marker)` of everything.
    async fn versions(&self) -> Vec<(String, VersionId, bool)> {
        let query = ListVersionsQuery { limit: 1_000, ..ListVersionsQuery::default() };
        let page = self.store().list_versions(self.bucket, query).await.unwrap();
        page.entries.iter().map(|v| (v.key.clone(), v.version, v.is_delete_marker())).collect()
    }

    /// Events told, in the order of their ids: name and key.
    async fn events(&self) -> Vec<String> {
        events(&*self.outbox).await
    }
}

fn tags_of(tags: &[(&str, &str)]) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag { key: (*key).into(), value: (*value).into() }).collect()
}

fn rule(id: &str) -> LifecycleRule {
    LifecycleRule {
        id: id.into(),
        enabled: true,
        filter: RuleFilter::default(),
        expiration: None,
        noncurrent: None,
        transitions: vec![],
        noncurrent_transitions: vec![],
        abort_uploads_days: None,
    }
}

fn after_days(days: u32) -> LifecycleRule {
    LifecycleRule {
        expiration: Some(Expiration { days: Some(days), ..Expiration::default() }),
        ..rule(&format!("after {days}"))
    }
}

fn prefix(prefix: &str) -> RuleFilter {
    RuleFilter { prefix: Some(prefix.into()), ..RuleFilter::default() }
}

#[tokio::test]
async fn an_object_expires_at_its_midnight_and_one_that_was_overwritten_since_does_not() {
    let world = World::new(Versioning::Unversioned).await;
    world.rules(vec![LifecycleRule { filter: prefix("logs/"), ..after_days(1) }]).await;
    for key in ["logs/old", "logs/overwritten", "other"] {
        world.put(key).await;
        assert!(world.exists(key).await, "and is in the cache from here on");
    }
    world.at(NOON + DAY);
    world.put("logs/overwritten").await;
    assert_eq!(world.pass().await.expired, 0, "a day old, but the midnight is not there");
    let midnight = NOON + DAY + 12 * HOUR;
    world.at(midnight - 1);
    assert_eq!(world.pass().await.examined, 0);
    world.at(midnight);
    assert_eq!(world.pass().await.expired, 1);
    assert!(!world.exists("logs/old").await && world.exists("logs/overwritten").await && world.exists("other").await);
    assert_eq!(world.events().await, ["LifecycleExpiration:Delete bucket/logs/old"]);
    world.at(midnight + DAY);
    assert_eq!(world.pass().await.expired, 1);
    assert!(!world.exists("logs/overwritten").await);
}

/// Goes well when it is first looked at, and is a hundred days ahead from then on.
struct LeapingClock(AtomicU64);

impl Clock for LeapingClock {
    fn now_ms(&self) -> u64 {
        NOON + if self.0.fetch_add(1, Ordering::Relaxed) == 0 { 0 } else { 100 * DAY }
    }
}

#[tokio::test]
async fn nothing_expires_by_a_clock_that_leaps_in_the_middle_of_a_pass() {
    let world = World::new(Versioning::Unversioned).await;
    world.rules(vec![after_days(1)]).await;
    world.put("young").await;
    let parts = LifecycleParts { clock: Arc::new(LeapingClock(AtomicU64::new(0))), ..world.parts.clone() };
    let (stats, end) = parts.pass().await.unwrap();
    assert_eq!((stats.expired, end), (0, PassEnd::More), "there is more to do when the clock was looked at");
    assert!(world.exists("young").await);
    // Who has it waited for decides.
    assert_eq!(parts.pass().await.unwrap().0.expired, 1);
}

#[tokio::test]
async fn a_versioned_object_goes_step_by_step_under_a_marker_until_nothing_is_left() {
    let world = World::new(Versioning::Enabled).await;
    let lone = Some(Expiration { lone_markers: Some(true), ..Expiration::default() });
    world
        .rules(vec![
            LifecycleRule { noncurrent: Some(NoncurrentExpiration { days: 2, keep: None }), ..after_days(1) },
            LifecycleRule { expiration: lone, ..rule("markers") },
        ])
        .await;
    let version = world.put("k").await;
    world.at(NOON + 2 * DAY);
    assert_eq!(world.pass().await.expired, 1);
    let versions = world.versions().await;
    assert_eq!(versions.len(), 2);
    assert!(versions[0].2 && versions[1] == ("k".to_owned(), version, false), "{versions:?}");
    assert!(!world.exists("k").await);

    world.at(NOON + 4 * DAY);
    assert_eq!(world.pass().await.noncurrent, 0, "noncurrent since two days, but the midnight is not there");
    world.at(NOON + 5 * DAY);
    let stats = world.pass().await;
    assert_eq!((stats.noncurrent, stats.markers), (1, 1), "the marker hides nothing from then on");
    assert_eq!(world.versions().await, []);
    assert_eq!(
        world.events().await,
        [
            "LifecycleExpiration:DeleteMarkerCreated bucket/k",
            "LifecycleExpiration:Delete bucket/k",
            "LifecycleExpiration:Delete bucket/k",
        ]
    );
    world.store().set_bucket_config("bucket", world.bucket, BucketConfigKind::Lifecycle, None).await.unwrap();
    world.store().delete_bucket("bucket", world.bucket).await.unwrap();
}

#[tokio::test]
async fn a_marker_that_hides_something_stays() {
    let world = World::new(Versioning::Enabled).await;
    let lone = Some(Expiration { lone_markers: Some(true), ..Expiration::default() });
    world.rules(vec![LifecycleRule { expiration: lone, ..rule("markers") }]).await;
    let version = world.put("hidden").await;
    world.delete("hidden", None).await;
    world.delete("never", None).await;
    world.at(NOON + DAY);
    assert_eq!(world.pass().await.markers, 1);
    let left: Vec<String> = world.versions().await.into_iter().map(|(key, ..)| key).collect();
    assert_eq!(left, ["hidden", "hidden"]);
    assert_eq!(world.pass().await.examined, 0);
    // A client removes what it hides.
    world.delete("hidden", Some(version)).await;
    assert_eq!(world.pass().await.markers, 1);
    assert_eq!(world.versions().await, []);
}

#[tokio::test]
async fn the_newest_noncurrent_versions_are_kept_whatever_their_age() {
    let world = World::new(Versioning::Enabled).await;
    let noncurrent = Some(NoncurrentExpiration { days: 1, keep: Some(2) });
    world.rules(vec![LifecycleRule { noncurrent, ..rule("keep 2") }]).await;
    let mut made = Vec::new();
    for hour in 0..4 {
        world.at(NOON + hour * HOUR);
        made.push(world.put("k").await);
    }
    world.at(NOON + DAY);
    assert_eq!(world.pass().await.noncurrent, 0, "too many, but too young");
    world.at(NOON + 2 * DAY);
    assert_eq!(world.pass().await.noncurrent, 1);
    world.at(NOON + 9 * DAY);
    assert_eq!(world.pass().await.noncurrent, 0, "old, but not too many");
    // One more makes an old one one too many.
    made.push(world.put("k").await);
    world.at(NOON + 9 * DAY + HOUR);
    assert_eq!(world.pass().await.noncurrent, 1);
    let left: Vec<VersionId> = world.versions().await.into_iter().map(|(_, version, _)| version).collect();
    assert_eq!(left, [made[4], made[3], made[2]]);
}

#[tokio::test]
async fn a_change_of_tags_counts_also_when_the_time_has_passed() {
    let world = World::new(Versioning::Enabled).await;
    let filter = RuleFilter { tags: tags_of(&[("keep", "no")]), ..RuleFilter::default() };
    let noncurrent = Some(NoncurrentExpiration { days: 1, keep: None });
    world.rules(vec![LifecycleRule { filter, noncurrent, ..after_days(1) }]).await;
    let old = world.put("k").await;
    world.put("k").await;
    world.put_tagged("spared", &[("keep", "no")]).await;
    world.tag("spared", None, &[]).await;
    world.at(NOON + 5 * DAY);
    let stats = world.pass().await;
    assert_eq!((stats.expired, stats.noncurrent), (0, 0));
    world.tag("k", Some(old), &[("keep", "no")]).await;
    assert_eq!(world.pass().await.noncurrent, 1);
    world.tag("k", None, &[("keep", "no")]).await;
    assert_eq!(world.pass().await.expired, 1);
    assert!(!world.exists("k").await && world.exists("spared").await);
    assert_eq!(world.pass().await.examined, 0, "all is done");
}

#[tokio::test]
async fn an_old_version_that_is_the_latest_again_expires() {
    let world = World::new(Versioning::Enabled).await;
    world.rules(vec![after_days(1)]).await;
    world.put("k").await;
    world.at(NOON + HOUR);
    let above = world.put("k").await;
    world.at(NOON + 5 * DAY);
    // The one above goes before a pass sees it; the one below is as old.
    world.pass().await;
    let marker = world.versions().await[0].1;
    world.delete("k", Some(marker)).await;
    world.delete("k", Some(above)).await;
    assert!(world.exists("k").await);
    assert_eq!(world.pass().await.expired, 1);
    assert!(!world.exists("k").await);
}

#[tokio::test]
async fn unfinished_uploads_of_a_prefix_are_aborted() {
    let world = World::new(Versioning::Unversioned).await;
    world.rules(vec![LifecycleRule { filter: prefix("in/"), abort_uploads_days: Some(1), ..rule("uploads") }]).await;
    for (key, begun_ms) in [("in/old", NOON), ("out/old", NOON), ("in/young", NOON + DAY)] {
        let new = NewUpload {
            id: UploadId::generate(),
            bucket: world.bucket,
            key: key.into(),
            owner: "alice".into(),
            now_ms: begun_ms,
            attributes: ObjectAttributes::default(),
            tags: vec![],
            acl: CannedAcl::Private,
            checksum: None,
            class: None,
        };
        world.store().create_upload(new).await.unwrap();
    }
    world.at(NOON + 2 * DAY);
    assert_eq!(world.pass().await.uploads, 1);
    let query = ListUploadsQuery { limit: 10, ..ListUploadsQuery::default() };
    let left = world.store().list_uploads(world.bucket, query).await.unwrap().entries;
    let keys: Vec<&str> = left.iter().map(|upload| upload.new.key.as_str()).collect();
    assert_eq!(keys, ["in/young", "out/old"]);
    assert_eq!(world.events().await, [] as [String; 0]);
}
