//! Measurements: `cargo test -p holdfast-node --lib measure -- --ignored --nocapture --test-threads 1`.

use std::time::Instant;

use holdfast_actors::domain::lifecycle::{LifecycleRule, LifecycleRules, RuleFilter, Transition};
use holdfast_actors::flow::lifecycle::{LifecycleParts, LifecycleSettings};
use holdfast_actors::ports::Clock;
use holdfast_actors::ports::metadata::BucketConfigKind;
use holdfast_actors::ports::tiering::Claim;
use holdfast_protocol::{NodeId, TierName};

use super::*;

/// `prefixes` common prefixes with `keys` keys each, written straight into the database.
pub(super) async fn fill(store: &SqliteMetadataStore, bucket: BucketId, prefixes: u32, keys: u32) {
    let bucket = i64::try_from(bucket.0).unwrap();
    write(store, move |tx| {
        boxed(async move {
            sqlx::query(
                "INSERT INTO contents (id, refs, size_bytes, manifest, etag_md5) VALUES (x'000000000000000000000000', \
                     1000000000, 0, x'', x'00000000000000000000000000000000')",
            )
            .execute(tx.conn())
            .await
            .unwrap();
            sqlx::query(
                "WITH RECURSIVE p(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM p WHERE i + 1 < ?2), \
                     n(j) AS (SELECT 0 UNION ALL SELECT j + 1 FROM n WHERE j + 1 < ?3) \
                     INSERT INTO objects (bucket, key, sequence, version, content, modified_ms, owner, acl) \
                     SELECT ?1, CAST(printf('%08d/%08d', i, j) AS BLOB), 0, x'000000000000000000000000', \
                     x'000000000000000000000000', 0, 'alice', 0 FROM p CROSS JOIN n",
            )
            .bind(bucket)
            .bind(i64::from(prefixes))
            .bind(i64::from(keys))
            .execute(tx.conn())
            .await
            .unwrap();
            Ok(())
        })
    })
    .await
    .unwrap();
}

/// CPU time of this process, user and system.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_commits_of_64_clients() {
    let directory = tempfile::tempdir_in(std::env::var("HOLDFAST_MEASURE_DIR").unwrap_or_else(|_| "/var/tmp".into()));
    let directory = directory.unwrap();
    let store = Arc::new(open(directory.path()).await);
    let id = bucket(&store).await;
    for (name, overwrite) in [("new keys", false), ("overwrites", true)] {
        let log = super::log_pages(&directory.path().join("metadata.db-wal"));
        let (started, cpu) = (Instant::now(), cpu_seconds());
        let per_client = 500u32;
        let clients = (0..64).map(|client| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0..per_client {
                    let key = if overwrite { format!("c{client}") } else { format!("c{client}/object-{i:08}.bin") };
                    store.commit_object(object(id, &key)).await.unwrap();
                }
            })
        });
        for client in futures::future::join_all(clients).await {
            client.unwrap();
        }
        let commits = f64::from(64 * per_client);
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{name}: {:.0} commits/s, {:.1} µs CPU a commit, log {} -> {} pages",
            commits / seconds,
            (cpu_seconds() - cpu) * 1e6 / commits,
            log,
            super::log_pages(&directory.path().join("metadata.db-wal")),
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_listing_a_million_keys() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let store = open(directory.path()).await;
    let id = bucket(&store).await;
    fill(&store, id, 1000, 1000).await;
    let list = async |prefix: &str, delimiter: Option<&str>, limit| {
        let query =
            ListQuery { prefix: prefix.into(), delimiter: delimiter.map(str::to_owned), limit, ..Default::default() };
        let started = Instant::now();
        let page = store.list_objects(id, query).await.unwrap();
        println!(
            "prefix {prefix:?} delimiter {delimiter:?}: {} entries, {} prefixes in {:?}",
            page.entries.len(),
            page.common_prefixes.len(),
            started.elapsed()
        );
    };
    list("", Some("/"), 1000).await;
    list("0000", Some("/"), 1000).await;
    list("", Some("/"), 10).await;
    list("", None, 1000).await;
    list("00000500/", Some("/"), 1000).await;
    // A million keys under one prefix: one common prefix.
    list("", Some("0"), 1000).await;
    let started = Instant::now();
    for i in 0..1000 {
        store.object(id, &format!("{i:08}/{i:08}"), None).await.unwrap();
    }
    println!("{:?} a read of one object, not cached", started.elapsed() / 1000);
}

/// Of each prefix every so many keys are old, the rest is young.
async fn age(store: &SqliteMetadataStore, every: u32, young_ms: u64) {
    let young_ms = i64::try_from(young_ms).unwrap();
    write(store, move |tx| {
        boxed(async move {
            let sql = "UPDATE objects SET modified_ms = CASE WHEN CAST(substr(key, 10) AS INTEGER) % ?1 = 0 \
                       THEN 1 ELSE ?2 END";
            sqlx::query(sql).bind(i64::from(every)).bind(young_ms).execute(tx.conn()).await.map_err(refused).map(drop)
        })
    })
    .await
    .unwrap();
}

/// A thousand objects that are due among ten thousand, and among a million that are not: prefixes, keys of each, and
/// which of those are old.
const DUE_AMONG: [(u32, u32, u32); 2] = [(10, 1_000, 10), (1_000, 1_000, 1_000)];

/// Finding what is due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_finding_what_is_due() {
    for (prefixes, keys, every) in DUE_AMONG {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let store = open(directory.path()).await;
        let id = bucket(&store).await;
        fill(&store, id, prefixes, keys).await;
        age(&store, every, 1_000_000).await;
        let mut due = 0;
        let started = Instant::now();
        let mut at = AgePosition::default();
        loop {
            let page = store.aged_versions(id, AgedKind::Current, &at, 999, 256).await.unwrap();
            let Some(last) = page.last() else { break };
            at = last.position();
            due += page.len();
        }
        let took = started.elapsed();
        println!("{due} due among {}: {took:?}, {:?} each", prefixes * keys, took / due.max(1) as u32);
    }
}

struct FixedClock(u64);

impl Clock for FixedClock {
    fn now_ms(&self) -> u64 {
        self.0
    }
}

/// Finding what a rule is to move, judging it, putting it on the queue of moves, and claiming it there: by age, and by
/// the time since the last read, which nobody noted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn measure_finding_what_is_due_to_be_moved() {
    const NOW_MS: u64 = 1_704_110_400_000;
    let oss: TierName = "OSS".parse().unwrap();
    let by_age = Transition { days: Some(1), to: Some(oss.clone()), ..Transition::default() };
    let by_read = Transition { idle_days: Some(1), to: Some(oss.clone()), ..Transition::default() };
    for (name, transition) in [("age", by_age), ("last read", by_read)] {
        for (prefixes, keys, every) in DUE_AMONG {
            let directory = tempfile::tempdir_in("/var/tmp").unwrap();
            let store = Arc::new(open(directory.path()).await);
            let id = bucket(&store).await;
            fill(&store, id, prefixes, keys).await;
            age(&store, every, NOW_MS).await;
            write(&store, move |tx| {
                boxed(async move {
                    let sql = "UPDATE contents SET size_bytes = 1048576";
                    sqlx::query(sql).execute(tx.conn()).await.map_err(refused).map(drop)
                })
            })
            .await
            .unwrap();
            let rule = LifecycleRule {
                id: "moves".into(),
                enabled: true,
                filter: RuleFilter::default(),
                expiration: None,
                noncurrent: None,
                transitions: vec![transition.clone()],
                noncurrent_transitions: vec![],
                abort_uploads_days: None,
            };
            let rules = serde_json::to_string(&LifecycleRules { rules: vec![rule], ..Default::default() }).unwrap();
            store.set_bucket_config("b", id, BucketConfigKind::Lifecycle, Some(rules)).await.unwrap();
            let parts = LifecycleParts {
                metadata: store.clone(),
                tiers: None,
                reads: Some(store.clone()),
                clock: Arc::new(FixedClock(NOW_MS)),
                cluster: None,
                teller: None,
                settings: LifecycleSettings::default(),
            };
            let started = Instant::now();
            let (stats, _) = parts.pass().await.unwrap();
            let took = started.elapsed();
            let claim = Claim {
                owner: NodeId::from(1),
                now_ms: NOW_MS,
                until_ms: NOW_MS + 1,
                spares_restored: true,
                to_cluster_only: false,
            };
            let started = Instant::now();
            let claimed = store.claim_moves(&oss, claim, 1_000).await.unwrap().len();
            println!(
                "by {name}: {} of {} examined, {} asked to move in {took:?}, {:?} each; {claimed} claimed in {:?}",
                stats.examined,
                prefixes * keys,
                stats.transitions,
                took / (stats.transitions.max(1) as u32),
                started.elapsed()
            );
        }
    }
}
