//! What operators look up, over the admin API of a node in this process: the error log, the audit log and dead letters,
//! and whose a chunk is.

use holdfast_actors::ports::MetadataStore as _;
use holdfast_actors::ports::metadata::{ContentSource, NewObject, samples};
use holdfast_actors::wait::{until, until_ok};
use holdfast_node::assemble::RunningNode;
use holdfast_node::config::Config;
use holdfast_node::metadata::{SqliteMetadataStore, SqliteOptions};
use holdfast_protocol::admin::{ChunkOwner, ChunkReference, ObjectStat, Page};
use holdfast_protocol::journal::{AuditRecord, DeadLetter, Entry, ErrorKind, ErrorRecord};
use holdfast_protocol::{CHUNK_SIZE_MAX, ChunkId};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::Connection as _;

mod support;
#[path = "support/admin.rs"]
mod support_admin;

use support_admin::Admin;

struct World {
    _dir: tempfile::TempDir,
    config: Config,
    node: RunningNode,
    admin: Admin,
}

async fn world() -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let config = support::config(dir.path());
    let node = support::start(&config).await;
    let admin = Admin::of(&node, &config);
    World { _dir: dir, config, node, admin }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_is_written_down_with_its_result_and_no_secret() {
    let world = world().await;
    let admin = &world.admin;
    admin.post::<Value>("/v1/users", json!({ "name": "alice" })).await;
    let key: Value = admin.post("/v1/keys", json!({ "user": "alice" })).await;
    let (status, _) = admin.call(Method::POST, "/v1/users", &json!({ "name": "alice" })).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let access_key = key["access_key"].as_str().expect("a key");
    let next: Value = admin.post(&format!("/v1/keys/{access_key}/rotate"), json!({ "keep_old": false })).await;
    let (status, _) = admin.call(Method::DELETE, &format!("/v1/keys/{access_key}"), &Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    admin.get::<Value>("/v1/users").await;

    let page: Page<Entry<AuditRecord>> = admin.get("/v1/audit").await;
    let told: Vec<(&str, &str, u16)> =
        page.items.iter().map(|e| (e.record.action.as_str(), e.record.target.as_str(), e.record.result)).collect();
    let path = format!("/v1/keys/{access_key}");
    let rotated = format!("{path}/rotate/{}", next["access_key"].as_str().expect("a key"));
    assert_eq!(
        told,
        [
            ("DELETE /v1/keys/{key}", path.as_str(), 204),
            ("POST /v1/keys/{key}/rotate", rotated.as_str(), 201),
            ("POST /v1/users", "/v1/users", 409),
            ("POST /v1/keys", path.as_str(), 201),
            ("POST /v1/users", "/v1/users/alice", 201),
        ]
    );
    for entry in &page.items {
        let record = &entry.record;
        assert!(record.actor.starts_with("admin token") && record.source.starts_with("127.0.0.1:"), "{record:?}");
        assert!(!record.request_id.is_empty() && record.at_ms > 0, "{record:?}");
    }
    for made in [&key, &next] {
        let secret = made["secret_key"].as_str().expect("a secret");
        assert!(!serde_json::to_string(&page).expect("JSON").contains(secret));
    }

    let page: Page<Entry<AuditRecord>> = admin.get("/v1/audit?action=POST%20/v1/users&limit=1").await;
    assert_eq!(page.items.len(), 1);
    let next = page.next.expect("there is another one");
    let page: Page<Entry<AuditRecord>> =
        admin.get(&format!("/v1/audit?action=POST%20/v1/users&limit=1&after={next}")).await;
    assert_eq!((page.items[0].record.result, page.next), (201, None));
    world.node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_not_written_down_and_wrong_questions_are_refused() {
    let world = world().await;
    let url = format!("http://{}/v1/users", world.node.admin_addr());
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .build_http::<http_body_util::Full<bytes::Bytes>>();
    let request = http::Request::post(url).header("authorization", "Bearer wrong").body(Default::default());
    let answer = client.request(request.expect("a request")).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let page: Page<Entry<AuditRecord>> = world.admin.get("/v1/audit").await;
    assert!(page.items.is_empty());
    for wrong in ["/v1/errors?kind=nonsense", "/v1/errors?after=x", "/v1/audit?since=1", "/v1/events/dead/x"] {
        let (status, body) = world.admin.call(Method::GET, wrong, &Value::Null).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{wrong}: {body:?}");
    }
    let (status, _) = world.admin.call(Method::GET, "/v1/events/dead/7", &Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    world.node.shutdown().await;
}

async fn errors(world: &World) -> Vec<ErrorRecord> {
    let page: Page<Entry<ErrorRecord>> = world.admin.get("/v1/errors").await;
    page.items.into_iter().map(|entry| entry.record).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corruption_on_disk_gets_into_the_error_log_though_its_actor_is_killed() {
    let world = world().await;
    let s3 = support::S3::of(&world.node);
    s3.put("/bucket", bytes::Bytes::new()).await.expect("an answer");
    let content = bytes::Bytes::from(vec![7; 300_000]);
    assert_eq!(s3.put("/bucket/key", content).await.expect("an answer").0, StatusCode::OK);
    let pair = world.node.root().expect("a root credential").clone();
    let World { _dir, config, node, .. } = world;
    node.shutdown().await;
    // One byte of the payload changes on the disk.
    let disk = config.node.data_dir.join("disks").join("0");
    let damaged = walk(&disk).into_iter().any(|file| damage(&file));
    assert!(damaged, "the payload is on the disk");
    let node = support::start(&config).await;
    let admin = Admin::of(&node, &config);
    let world = World { _dir, config, node, admin };
    assert!(world.node.kill_journal(), "it is there to be killed");
    // The answer is cut off before the byte that is wrong.
    drop(support::S3::with(&world.node, &pair).get("/bucket/key").await);
    until_ok("scrub starts", async || world.node.actors().start_scrub().await).await;
    let found = until("it gets into the error log", async || errors(&world).await, |found| !found.is_empty()).await;
    assert_eq!(found[0].kind, ErrorKind::Corruption, "{found:?}");
    assert!(!found[0].node.is_empty() && !found[0].detail.is_empty(), "{found:?}");
    let id = found[0].subject.strip_prefix("chunk ").expect("it is a chunk");
    let owner: ChunkOwner = world.admin.get(&format!("/v1/chunks/{id}")).await;
    let [reference] = &owner.references[..] else { panic!("one object: {owner:?}") };
    assert_eq!((reference.bucket.as_str(), reference.key.as_str()), ("bucket", "key"), "{owner:?}");
    let page: Page<Entry<ErrorRecord>> = world.admin.get("/v1/errors?kind=disk-fenced").await;
    assert!(page.items.is_empty());
    world.node.shutdown().await;
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

/// Changes a byte in the middle of a long run of sevens, if the file has one.
fn damage(file: &std::path::Path) -> bool {
    use std::os::unix::fs::FileExt as _;
    let Ok(bytes) = std::fs::read(file) else { return false };
    let Some(at) = bytes.windows(4_096).position(|window| window.iter().all(|byte| *byte == 7)) else { return false };
    let open = std::fs::OpenOptions::new().write(true).open(file).expect("it can be written");
    open.write_all_at(&[8], at as u64 + 2_000).expect("it is written");
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letter_is_shown_requeued_and_discarded() {
    let world = world().await;
    let database = world.config.node.data_dir.join("metadata.sqlite");
    let mut conn =
        sqlx::SqliteConnection::connect(&format!("sqlite://{}", database.display())).await.expect("a connection");
    let report = ErrorRecord {
        id: "0000000000000007-00000001".into(),
        at_ms: 7,
        node: "n".into(),
        kind: ErrorKind::TaskFailed,
        subject: "a task".into(),
        detail: "it came back from the dead".into(),
    };
    let bodies = [serde_json::to_string(&report).expect("JSON"), "nonsense".into()];
    for (n, body) in bodies.iter().enumerate() {
        sqlx::query(
            "INSERT INTO dead_letters (message, consumers, topic, order_key, tag, words, body, attempts, error, buried_ms) \
             VALUES (?, 'error-log', 2, X'61', 'task-failed', 'x', ?, 12, 'it failed', 1)",
        )
        .bind(format!("{:016x}-00000001", n + 7))
        .bind(body.as_bytes())
        .execute(&mut conn)
        .await
        .expect("a row");
    }
    conn.close().await.expect("closed");
    let page: Page<DeadLetter> = world.admin.get("/v1/events/dead").await;
    assert_eq!(page.items.len(), 2);
    let [good, bad] = &page.items[..] else { panic!("two") };
    assert_eq!((good.topic.as_str(), good.group.as_str(), good.attempts), ("errors", "error-log", 12));
    let shown: DeadLetter = world.admin.get(&format!("/v1/events/dead/{}", good.number)).await;
    assert_eq!(shown.body.as_deref(), Some(bodies[0].as_str()));

    world.admin.post::<DeadLetter>(&format!("/v1/events/dead/{}/requeue", good.number), json!({})).await;
    assert_eq!(errors(&world).await, [report], "its consumer has it");
    // What can never succeed is given up at once, and is kept, once.
    let requeued = world.admin.call(Method::POST, &format!("/v1/events/dead/{}/requeue", bad.number), &json!({})).await;
    assert_eq!(requeued.0, StatusCode::OK, "{requeued:?}");
    let page: Page<DeadLetter> = world.admin.get("/v1/events/dead").await;
    assert_eq!(page.items.len(), 1);
    let again = &page.items[0];
    assert_eq!((again.id.as_str(), again.attempts), (bad.id.as_str(), 1));
    assert!(again.number > bad.number && again.error.contains("not an error report"), "{again:?}");
    for expected in [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND] {
        let path = format!("/v1/events/dead/{}", again.number);
        assert_eq!(world.admin.call(Method::DELETE, &path, &Value::Null).await.0, expected);
    }
    world.node.shutdown().await;
}

async fn references(admin: &Admin, chunk: ChunkId) -> Vec<ChunkReference> {
    let (mut found, mut path) = (Vec::new(), format!("/v1/chunks/{chunk}/references"));
    loop {
        let page: Page<ChunkReference> = admin.get(&path).await;
        found.extend(page.items);
        let Some(next) = page.next else { return found };
        path = format!("/v1/chunks/{chunk}/references?after={}", next.replace('/', "%2F"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_a_chunk_is_is_told_until_nothing_has_it() {
    let world = world().await;
    let (admin, s3) = (&world.admin, support::S3::of(&world.node));
    let owner = async |chunk: ChunkId| admin.get::<ChunkOwner>(&format!("/v1/chunks/{chunk}")).await;
    // More buckets than one page of the walk looks through.
    for name in ["bucket", "copies", "n-1", "n-2", "n-3", "n-4", "n-5", "n-6", "n-7", "n-8", "n-9", "z-last"] {
        let made = s3.put(&format!("/{name}"), bytes::Bytes::new()).await.expect("an answer");
        assert_eq!(made.0, StatusCode::OK, "{name}");
    }
    let size_bytes = CHUNK_SIZE_MAX + 1_000;
    let body = bytes::Bytes::from(vec![7; size_bytes as usize]);
    assert_eq!(s3.put("/bucket/dir/key", body).await.expect("an answer").0, StatusCode::OK);
    assert_eq!(s3.put("/bucket/dir/key2", bytes::Bytes::from("other")).await.expect("an answer").0, StatusCode::OK);
    let stat: ObjectStat = admin.get("/v1/objects/bucket/dir%2Fkey").await;
    let chunk: ChunkId = stat.chunks[1].chunk.parse().expect("an id");

    let found = owner(chunk).await;
    assert_eq!((found.state.as_str(), found.size_bytes, found.references_total), ("object", Some(1_000), 1));
    assert_eq!(found.replicas, stat.chunks[1].replicas);
    let header = found.header.as_ref().expect("a header");
    assert_eq!((header.key.as_str(), header.chunk.as_str()), ("dir/key", stat.chunks[1].chunk.as_str()));
    let here = ChunkReference {
        bucket: "bucket".into(),
        key: "dir/key".into(),
        version: "null".into(),
        is_latest: true,
        part: None,
        offset_bytes: Some(CHUNK_SIZE_MAX),
    };
    assert_eq!(found.references, std::slice::from_ref(&here));
    // A number that its content does not have: the header of the chunk beside it tells of whom it would be.
    let beyond = owner(chunk.content().chunk(2)).await;
    assert_eq!((beyond.state.as_str(), beyond.replicas[0].state.as_str()), ("not_in_object", "missing"));
    assert_eq!(beyond.header.expect("a header").key, "dir/key");

    // Copies are of other keys, and found by the walk.
    let path = world.config.node.data_dir.join("metadata.sqlite");
    let store = SqliteMetadataStore::open(&path, SqliteOptions::default()).await.expect("metadata");
    let mut copies = Vec::new();
    for bucket in ["copies", "z-last"] {
        let id = store.bucket(bucket).await.expect("a bucket").id;
        let content = ContentSource::Shared(chunk.content());
        store.commit_object(NewObject { content, ..samples::object(id, "a/copy") }).await.expect("a copy");
        copies.push(ChunkReference { bucket: bucket.into(), key: "a/copy".into(), ..here.clone() });
    }
    let found = owner(chunk).await;
    assert_eq!((found.references_total, found.references.len()), (3, 1));
    assert_eq!(references(admin, chunk).await, [&[here][..], &copies[..]].concat());
    // Without its key, as where nothing is left of the header.
    let deleted = s3.send(Method::DELETE, "/bucket/dir/key", bytes::Bytes::new()).await.expect("an answer");
    assert_eq!(deleted.0, StatusCode::NO_CONTENT);
    let found = owner(chunk).await;
    assert_eq!((found.state.as_str(), found.references_total, found.references.len()), ("object", 2, 0));
    assert_eq!(references(admin, chunk).await, copies);
    for bucket in ["copies", "z-last"] {
        let path = format!("/{bucket}/a/copy");
        let deleted = s3.send(Method::DELETE, &path, bytes::Bytes::new()).await.expect("an answer");
        assert_eq!(deleted.0, StatusCode::NO_CONTENT);
    }
    let found = owner(chunk).await;
    assert_eq!((found.state.as_str(), found.references_total), ("reclaim", 0), "its grace is not over");
    assert!(found.since_ms.is_some() && found.header.is_some(), "{found:?}");
    assert_eq!(references(admin, chunk).await, []);

    let stranger = owner(ChunkId([0xEE; 16])).await;
    assert_eq!((stranger.state.as_str(), stranger.size_bytes, stranger.header), ("unknown", None, None));
    for wrong in ["/v1/chunks/x", "/v1/chunks/x/references", &format!("/v1/chunks/{chunk}/references?after=b%2Fx")] {
        let (status, body) = admin.call(Method::GET, wrong, &Value::Null).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{wrong}: {body:?}");
    }
    store.close().await;
    world.node.shutdown().await;
}
