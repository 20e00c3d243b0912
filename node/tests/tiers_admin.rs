//! Cold tiers over the admin API of a node in this process, on SQLite and a directory. The node's own movers are off:
//! what a mover would do is done here, so that nothing depends on time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use holdfast_actors::domain::lifecycle::{LifecycleRule, LifecycleRules, RuleFilter, Transition};
use holdfast_actors::flow::cold::blocks::BlockSums;
use holdfast_actors::ports::metadata::{BucketConfigKind, Content, ContentPlace, MoveEnd, Moved, ReplicaEvidence};
use holdfast_actors::ports::tiering::Claim;
use holdfast_actors::ports::tiers::{ColdTier, PieceSpec};
use holdfast_actors::ports::{MetadataStore, TierLedger};
use holdfast_node::assemble::RunningNode;
use holdfast_node::config::Config;
use holdfast_node::metadata::{SqliteMetadataStore, SqliteOptions};
use holdfast_protocol::admin::{
    Bucket, ErrorBody, ErrorCode, MovesPage, Page, RequestedMoves, RetriedMoves, TierCheck, TierSample, TierStatus,
    TierView, UnreadContent, VerifiedTier,
};
use holdfast_protocol::journal::{AuditRecord, Entry};
use holdfast_protocol::{ColdPlace, ContentId, Manifest, NodeId, TierName};
use holdfast_tiers::directory::{DirectoryConfig, DirectoryTier};
use http::{Method, StatusCode};
use serde_json::{Value, json};

#[allow(dead_code, reason = "this test uses a part")]
mod support;
#[path = "support/admin.rs"]
mod support_admin;

use support::S3;
use support_admin::Admin;

/// Long after the present, so that whatever is queued is due.
const LATER_MS: u64 = 1 << 42;

struct World {
    dir: tempfile::TempDir,
    config: Config,
    node: RunningNode,
    admin: Admin,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = support::config(dir.path());
        config.tiering.enabled = false;
        let node = support::start(&config).await;
        let admin = Admin::of(&node, &config);
        Self { dir, config, node, admin }
    }

    fn root(&self, name: &str) -> PathBuf {
        let root = self.dir.path().join(name);
        std::fs::create_dir_all(&root).expect("a directory");
        root
    }

    async fn add(&self, name: &str) -> PathBuf {
        let root = self.root(name);
        let tier: TierView = self.admin.post("/v1/tiers", new_tier(name, &root)).await;
        assert_eq!((tier.name.as_str(), tier.kind.as_str(), tier.revision), (name, "directory", 1));
        root
    }

    async fn bucket(&self, name: &str) {
        let owner = holdfast_node::assemble::ROOT_USER;
        self.admin.post::<Bucket>("/v1/buckets", json!({ "name": name, "owner": owner })).await;
    }

    async fn put(&self, path: &str, body: &[u8]) {
        let sent = S3::of(&self.node).put(path, Bytes::copy_from_slice(body)).await;
        assert_eq!(sent.expect("an answer").0, StatusCode::OK, "{path}");
    }

    async fn remove(&self, path: &str) {
        let (status, answer) = self.admin.call(Method::DELETE, path, &Value::Null).await;
        assert_eq!(status, StatusCode::NO_CONTENT, "{path}: {answer:?}");
    }

    /// Changes the settings of a tier.
    async fn change(&self, path: &str, change: &Value) -> TierView {
        let (status, answer) = self.admin.call(Method::PUT, path, change).await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer:?}");
        serde_json::from_slice(&answer).expect("the tier")
    }

    /// A tier COLD and a bucket in which each of `keys` has these bytes.
    async fn cold_with(&self, keys: &[&str], body: &[u8]) -> PathBuf {
        let root = self.add("COLD").await;
        self.bucket("bucket").await;
        for key in keys {
            self.put(&format!("/bucket/{key}"), body).await;
        }
        root
    }

    async fn refused(&self, method: Method, path: &str, body: &Value) -> (StatusCode, ErrorCode, String) {
        let (status, answer) = self.admin.call(method.clone(), path, body).await;
        assert!(!status.is_success(), "{method} {path} {body}: {answer:?}");
        let ErrorBody { error } = serde_json::from_slice(&answer).expect("an error");
        (status, error.code, error.message)
    }

    /// The metadata behind the node's back.
    async fn store(&self) -> Arc<SqliteMetadataStore> {
        let path = self.config.node.data_dir.join("metadata.sqlite");
        Arc::new(SqliteMetadataStore::open(&path, SqliteOptions::default()).await.expect("metadata"))
    }

    /// Does what a mover does with everything that is to go to a tier; the bytes are `data` for all.
    async fn move_all(&self, tier: &str, root: &Path, data: &[u8], piece_bytes: u64) -> Vec<ContentId> {
        let (store, name): (_, TierName) = (self.store().await, tier.parse().expect("a name"));
        let directory = DirectoryTier::open(DirectoryConfig::new(root)).await.expect("the tier");
        let mut moved = Vec::new();
        for claimed in store.claim_moves(&name, claim(), 100).await.expect("claims") {
            let size_bytes = data.len() as u64;
            let old = store.object(claimed.bucket, &claimed.key, None).await.expect("the object");
            let old = old.content.clone().expect("its content");
            let id = ContentId::generate(1_700_000_000);
            let mut sums = BlockSums::new(ColdPlace::block_bytes_for(size_bytes));
            sums.update(data);
            let mut place = ColdPlace {
                tier: name.clone(),
                size_bytes,
                piece_bytes,
                block_bytes: ColdPlace::block_bytes_for(size_bytes),
                names: Vec::new(),
                sums: sums.finish(),
            };
            for index in 0..place.piece_count() as u32 {
                let range = place.piece(index);
                let bytes = Bytes::copy_from_slice(&data[range.start as usize..range.end as usize]);
                let spec =
                    PieceSpec { content: id, index, attempt: claimed.attempt, size_bytes: range.end - range.start };
                let piece = directory.reserve(&spec).await.expect("a name");
                let names = [piece.clone()];
                let due_ms = LATER_MS + 2;
                store.reserve_pieces(claimed.id, claimed.attempt, &name, &names, due_ms).await.expect("it is noted");
                directory.put(&piece, &spec, stream::iter([Ok(bytes)]).boxed()).await.expect("it is stored");
                place.names.push(piece.as_str().to_owned());
            }
            let content = Content {
                id,
                manifest: Manifest::single(id, size_bytes),
                place: ContentPlace::Tier(Arc::new(place)),
                ..(*old).clone()
            };
            let to = Moved::To { content, evidence: ReplicaEvidence::default() };
            let commit = claimed.commit(to, None, LATER_MS);
            assert_eq!(store.commit_move(commit).await.expect("the commit"), MoveEnd::Done);
            moved.push(id);
        }
        moved
    }
}

/// Of everything that waits, by a node that is none.
fn claim() -> Claim {
    Claim {
        owner: NodeId([1; 8]),
        now_ms: LATER_MS,
        until_ms: LATER_MS + 1,
        spares_restored: false,
        to_cluster_only: false,
    }
}

fn new_tier(name: &str, root: &Path) -> Value {
    json!({ "name": name, "settings": { "kind": "directory", "root": root } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tier_is_added_shown_checked_changed_and_removed() {
    let world = World::new().await;
    let admin = &world.admin;
    assert!(admin.get::<Vec<TierView>>("/v1/tiers").await.is_empty());
    let root = world.add("COLD").await;
    let other = world.root("other");
    let (status, code, _) = world.refused(Method::POST, "/v1/tiers", &new_tier("COLD", &other)).await;
    assert_eq!((status, code), (StatusCode::CONFLICT, ErrorCode::Exists));
    assert_eq!(std::fs::read_dir(&other).expect("a list").count(), 0, "nothing was made there");
    let occupied = world.root("occupied");
    std::fs::write(occupied.join("file"), "somebody's").expect("a file");
    for wrong in [new_tier("cold", &other), new_tier("STANDARD", &other), new_tier("OTHER", Path::new("relative"))] {
        let (status, code, _) = world.refused(Method::POST, "/v1/tiers", &wrong).await;
        assert_eq!((status, code), (StatusCode::BAD_REQUEST, ErrorCode::InvalidRequest), "{wrong}");
    }
    world.refused(Method::POST, "/v1/tiers", &new_tier("OTHER", &occupied)).await;

    let tier = admin.get::<Vec<TierView>>("/v1/tiers").await.remove(0);
    assert_eq!((tier.name.as_str(), tier.usage), ("COLD", None));
    let check: TierCheck = admin.post("/v1/tiers/COLD/check", json!({})).await;
    assert!(check.up && check.error.is_none(), "{check:?}");
    assert_eq!(admin.get::<TierView>("/v1/tiers/COLD").await.state, "up");

    let settings = json!({ "kind": "directory", "root": root, "piece_bytes_max": 64 << 20 });
    let change = json!({ "settings": settings, "revision": 1 });
    assert_eq!(world.change("/v1/tiers/COLD", &change).await.revision, 2);
    let (_, code, message) = world.refused(Method::PUT, "/v1/tiers/COLD", &change).await;
    assert_eq!(code, ErrorCode::Conflict, "{message}");
    for path in ["/v1/tiers/NONE", "/v1/tiers/NONE/status"] {
        let (status, _, _) = world.refused(Method::GET, path, &Value::Null).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }

    std::fs::rename(&root, world.dir.path().join("away")).expect("it goes");
    let check: TierCheck = admin.post("/v1/tiers/COLD/check", json!({})).await;
    assert!(!check.up && check.error.is_some(), "{check:?}");

    world.remove("/v1/tiers/COLD").await;
    assert!(admin.get::<Vec<TierView>>("/v1/tiers").await.is_empty());
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tier_that_would_lie_where_another_one_does_is_refused() {
    let world = World::new().await;
    let admin = &world.admin;
    let cold = world.add("COLD").await;
    let other = world.add("OTHER").await;
    let (inside, link) = (world.root("COLD/inside"), world.dir.path().join("link"));
    std::os::unix::fs::symlink(&cold, &link).expect("a link");
    for root in [&cold, &inside, &link] {
        let change = json!({ "settings": { "kind": "directory", "root": root } });
        for (method, path, body) in
            [(Method::POST, "/v1/tiers", new_tier("THIRD", root)), (Method::PUT, "/v1/tiers/OTHER", change)]
        {
            let (status, code, message) = world.refused(method, path, &body).await;
            assert_eq!((status, code), (StatusCode::CONFLICT, ErrorCode::Conflict), "{message}");
            assert!(message.contains("the tier COLD"), "{message}");
        }
    }
    assert_eq!(std::fs::read_dir(&inside).expect("a list").count(), 0, "nothing was made there");
    for (name, root) in [("COLD", &cold), ("OTHER", &other)] {
        let change = json!({ "settings": { "kind": "directory", "root": root, "piece_bytes_max": 64 << 20 } });
        world.change(&format!("/v1/tiers/{name}"), &change).await;
    }
    // The place is free when its tier is gone.
    world.remove("/v1/tiers/COLD").await;
    let again: TierView = admin.post("/v1/tiers", new_tier("THIRD", &link)).await;
    assert_eq!(again.name, "THIRD");
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn class_of_a_bucket_is_that_of_a_tier_that_exists() {
    let world = World::new().await;
    let admin = &world.admin;
    world.cold_with(&[], b"").await;
    assert_eq!(admin.get::<Bucket>("/v1/buckets/bucket").await.storage_class, "STANDARD");
    let set = async |class: &str| {
        let path = "/v1/buckets/bucket/storage-class";
        let (status, answer) = admin.call(Method::PUT, path, &json!({ "class": class })).await;
        let bucket = status.is_success().then(|| serde_json::from_slice::<Bucket>(&answer).expect("a bucket"));
        (status, bucket.map(|bucket| bucket.storage_class))
    };
    assert_eq!(set("COLD").await, (StatusCode::OK, Some("COLD".to_owned())));
    assert_eq!(set("NONE").await, (StatusCode::NOT_FOUND, None));
    assert_eq!(set("no class").await, (StatusCode::BAD_REQUEST, None));
    assert_eq!(admin.get::<Bucket>("/v1/buckets/bucket").await.storage_class, "COLD");
    let (_, code, message) = world.refused(Method::DELETE, "/v1/tiers/COLD", &Value::Null).await;
    assert!(code == ErrorCode::InUse && message.contains("bucket"), "{message}");
    assert_eq!(set("STANDARD").await, (StatusCode::OK, Some("STANDARD".to_owned())));

    // A rule that names it, though it is switched off, is in the way too, unless that is forced.
    let transitions = vec![Transition { days: Some(1), to: "COLD".parse().ok(), ..Transition::default() }];
    let rule = LifecycleRule {
        id: "cool".into(),
        enabled: false,
        filter: RuleFilter::default(),
        expiration: None,
        noncurrent: None,
        transitions,
        noncurrent_transitions: vec![],
        abort_uploads_days: None,
    };
    let rules = LifecycleRules { rules: vec![rule], ..LifecycleRules::default() };
    let rules = serde_json::to_string(&rules).expect("rules");
    let store = world.store().await;
    let id = store.bucket("bucket").await.expect("the bucket").id;
    store.set_bucket_config("bucket", id, BucketConfigKind::Lifecycle, Some(rules)).await.expect("it is set");
    for path in ["/v1/tiers/COLD", "/v1/tiers/COLD?force=false"] {
        let (_, code, message) = world.refused(Method::DELETE, path, &Value::Null).await;
        assert!(code == ErrorCode::InUse && message.contains("bucket (rule \"cool\")"), "{message}");
    }
    world.remove("/v1/tiers/COLD?force=true").await;
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_asked_for_page_by_page_and_can_be_asked_for_again() {
    let world = World::new().await;
    let admin = &world.admin;
    world.cold_with(&["a/1", "a/2", "a/3", "b/1"], b"0123456789").await;
    let ask = |after: Option<String>| {
        let body = json!({ "prefix": "a/", "to": "COLD", "limit": 2, "after": after });
        admin.post::<RequestedMoves>("/v1/buckets/bucket/moves", body)
    };
    let first = ask(None).await;
    assert_eq!((first.objects, first.queued, first.queued_bytes, first.next.as_deref()), (2, 2, 20, Some("a/2")));
    let second = ask(first.next).await;
    assert_eq!((second.objects, second.queued, second.next), (1, 1, None));
    assert_eq!(ask(None).await.queued, 2, "asking again changes nothing");

    let page: MovesPage = admin.get("/v1/moves?tier=COLD&limit=2").await;
    assert_eq!(page.items.len(), 2);
    let rest: MovesPage = admin.get(&format!("/v1/moves?tier=COLD&limit=2&after={}", page.next.expect("more"))).await;
    assert_eq!((rest.items.len(), &rest.next), (1, &None));
    let found = &page.items[0];
    assert_eq!((found.bucket.as_str(), found.to.as_str(), found.reason.as_str()), ("bucket", "COLD", "command"));
    assert!(found.key.starts_with("a/") && found.from.is_none() && found.failures == 0, "{found:?}");
    let one: MovesPage = admin.get("/v1/moves?bucket=bucket&key=a/3&unfinished=true").await;
    assert_eq!(one.items.len(), 1);
    let none: MovesPage = admin.get("/v1/moves?bucket=bucket&prefix=b/").await;
    assert!(none.items.is_empty());

    let status: TierStatus = admin.get("/v1/tiers/COLD/status").await;
    assert_eq!((status.tier.backlog.due, status.moves_seen, status.claimed), (3, 3, 0));
    for path in ["/v1/tiers/COLD", "/v1/tiers/COLD?force=true"] {
        let (_, code, message) = world.refused(Method::DELETE, path, &Value::Null).await;
        assert!(code == ErrorCode::InUse && message.contains("3 moves wait"), "{message}");
    }

    let store = world.store().await;
    let name: TierName = "COLD".parse().expect("a name");
    for claimed in store.claim_moves(&name, claim(), 2).await.expect("claims") {
        let failed = store.postpone_move(claimed.id, claimed.attempt, LATER_MS, Some("the tier is full"));
        failed.await.expect("it is noted");
    }
    let status: TierStatus = admin.get("/v1/tiers/COLD/status").await;
    assert_eq!((status.errors[0].error.as_str(), status.errors[0].moves), ("the tier is full", 2));
    let failing: MovesPage = admin.get("/v1/moves?failing=true").await;
    assert_eq!(failing.items.len(), 2);
    assert_eq!(admin.post::<RetriedMoves>("/v1/tiers/COLD/retry", json!({})).await.moves, 2);

    for wrong in [
        json!({ "key": "a/1", "prefix": "a", "to": "COLD" }),
        json!({ "version": "null", "to": "COLD" }),
        json!({ "key": "a/1", "to": "COLD", "days": 1 }),
        json!({ "key": "a/1", "to": "STANDARD", "days": 0 }),
        json!({ "key": "a/1", "to": "cold" }),
    ] {
        let (status, _, _) = world.refused(Method::POST, "/v1/buckets/bucket/moves", &wrong).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{wrong}");
    }
    for (bucket, missing) in [
        ("none", json!({ "key": "a/1", "to": "COLD" })),
        ("bucket", json!({ "key": "none", "to": "COLD" })),
        ("bucket", json!({ "key": "a/1", "to": "NONE" })),
    ] {
        let path = format!("/v1/buckets/{bucket}/moves");
        let (status, _, _) = world.refused(Method::POST, &path, &missing).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{missing}");
    }
    let restore: RequestedMoves =
        admin.post("/v1/buckets/bucket/moves", json!({ "prefix": "b/", "to": "STANDARD", "days": 1 })).await;
    assert_eq!((restore.objects, restore.passed_over), (1, 1), "what is not cold is not restored");
    let audit: Page<Entry<AuditRecord>> = admin.get("/v1/audit?action=POST%20/v1/buckets/%7Bname%7D/moves").await;
    let asked = audit.items.iter().filter(|entry| entry.record.result == 200).count();
    assert_eq!(asked, 3, "a command of several pages is one entry");
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verification_finds_what_is_missing_short_and_changed_and_goes_on_within_a_content() {
    let world = World::new().await;
    let admin = &world.admin;
    let data: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8 ^ (at >> 12) as u8).collect();
    let root = world.cold_with(&["mismatch", "missing", "right", "short"], &data).await;
    let asked = json!({ "to": "COLD" });
    assert_eq!(admin.post::<RequestedMoves>("/v1/buckets/bucket/moves", asked).await.queued, 4);
    let moved = world.move_all("COLD", &root, &data, 16 << 20).await;
    assert_eq!(moved.len(), 4);
    let status: TierStatus = admin.get("/v1/tiers/COLD/status").await;
    let usage = status.tier.usage.expect("it is counted");
    assert_eq!((usage.contents, usage.bytes, status.moves_seen), (4, 4 * data.len() as u64, 0));
    let (_, code, message) = world.refused(Method::DELETE, "/v1/tiers/COLD", &Value::Null).await;
    assert!(code == ErrorCode::InUse && message.contains("4 contents"), "{message}");

    // The least a call reads is a third of a content.
    let verify_all = async || {
        let (mut all, mut after, mut calls) = (VerifiedTier::default(), None, 0);
        loop {
            let body = json!({ "bytes_max": 1, "after": after });
            let page: VerifiedTier = admin.post("/v1/tiers/COLD/verify", body).await;
            all.add(page);
            calls += 1;
            match &all.next {
                Some(next) => after = Some(next.clone()),
                None => return (all, calls),
            }
        }
    };
    let (all, calls) = verify_all().await;
    assert_eq!((all.contents, all.checked, all.bytes), (4, 4, 4 * data.len() as u64));
    assert!(all.damaged.is_empty() && all.unread.is_empty() && calls >= 8, "{all:?} in {calls} calls");
    let sampled: VerifiedTier =
        admin.post("/v1/tiers/COLD/verify", json!({ "sample": 0.000_000_001, "seed": 1 })).await;
    assert_eq!((sampled.contents, sampled.checked, sampled.next), (4, 0, None));

    let files = files_below(&root);
    let file_of = |content: &ContentId| {
        files.iter().find(|file| file.to_string_lossy().contains(&content.to_string())).expect("its file").clone()
    };
    let mut changed = data.clone();
    changed[2_999_999] ^= 1;
    std::fs::write(file_of(&moved[0]), &changed).expect("it is changed");
    std::fs::remove_file(file_of(&moved[1])).expect("it is gone");
    std::fs::write(file_of(&moved[3]), &data[..1_000_000]).expect("it is cut");
    let found: VerifiedTier = admin.post("/v1/tiers/COLD/verify", json!({})).await;
    let mut damaged: Vec<(String, &str)> =
        found.damaged.iter().map(|damaged| (damaged.content.clone(), damaged.what.as_str())).collect();
    damaged.sort();
    let mut expected =
        [(moved[0].to_string(), "mismatch"), (moved[1].to_string(), "missing"), (moved[3].to_string(), "short")];
    expected.sort();
    assert_eq!(damaged, expected);
    assert_eq!((found.checked, found.contents, found.unread.len()), (1, 4, 0));

    // What is lost already keeps nobody from a change.
    let change = json!({ "settings": { "kind": "directory", "root": root, "piece_bytes_max": 32 << 20 } });
    assert_eq!(world.change("/v1/tiers/COLD", &change).await.sample, Some(TierSample { looked_up: 4, missing: 1 }));

    // Settings that lead to another store would lose all of it.
    let other = world.root("other");
    drop(DirectoryTier::create(DirectoryConfig::new(&other)).await.expect("another tier"));
    let change = json!({ "settings": { "kind": "directory", "root": other } });
    let (_, code, message) = world.refused(Method::PUT, "/v1/tiers/COLD", &change).await;
    assert_eq!(code, ErrorCode::Conflict, "{message}");
    for wrong in [json!({ "sample": 0 }), json!({ "sample": 1.5 }), json!({ "after": "nonsense" })] {
        let (status, _, _) = world.refused(Method::POST, "/v1/tiers/COLD/verify", &wrong).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{wrong}");
    }

    // While the tier works, what cannot be read keeps nobody from what is behind it.
    std::fs::remove_file(file_of(&moved[2])).expect("it is gone");
    std::fs::create_dir(file_of(&moved[2])).expect("something else lies there");
    let (all, _) = verify_all().await;
    let is_that_one = |unread: &UnreadContent| unread.content == moved[2].to_string();
    assert!(!all.unread.is_empty() && all.unread.iter().all(is_that_one), "{all:?}");
    assert_eq!(all.contents, 4);
    world.node.shutdown().await;
}

fn files_below(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(root).expect("a list") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}
