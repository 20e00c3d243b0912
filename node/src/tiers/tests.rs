use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use holdfast_actors::ports::metadata::{Content, MetadataResult};
use holdfast_actors::ports::tiering::{Claim, DuePiece, LaneBacklog, Move, TierLedger, TierRecord, TierUsage};
use holdfast_actors::ports::tiers::{PieceName, TierError, Tiers};
use holdfast_actors::ports::{MetadataError, SystemClock};
use holdfast_actors::wait::eventually;
use holdfast_protocol::admin::{DirectorySettings, OssCredentials, OssSettings, SecretText, TierSettings};
use holdfast_protocol::{ContentId, TierName};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::adapters;
use super::registry::{Build, RegistryParts, TierRegistry};
use super::settings::Seal;
use super::watch::{self, WatchSettings};
use crate::secrets::{NodeSecret, OpenSecretError, SecretOpener, SecretSealer};

const DEADLINE: Duration = Duration::from_secs(60);

/// The secret that nodes of a cluster have in common.
struct Secret(NodeSecret);

impl SecretSealer for Secret {
    fn seal_secret(&self, secret: &str, access_key: &str) -> Result<Vec<u8>, String> {
        self.0.seal(access_key, secret).map_err(|error| error.to_string())
    }
}

impl SecretOpener for Secret {
    fn open_secret(&self, sealed: &[u8], access_key: &str) -> Result<zeroize::Zeroizing<String>, OpenSecretError> {
        self.0.open(access_key, sealed).map_err(|error| OpenSecretError(error.to_string()))
    }
}

fn secret() -> Arc<Secret> {
    Arc::new(Secret(NodeSecret::from_bytes(&[7; 32])))
}

pub(super) fn seal() -> Seal {
    Seal { sealer: secret(), opener: secret() }
}

/// Which tiers there are, in memory. Nothing lies in them.
#[derive(Default)]
struct Ledger {
    tiers: Mutex<BTreeMap<TierName, TierRecord>>,
    asked: AtomicUsize,
    /// How often it was counted what lies in them.
    counted: AtomicUsize,
    is_down: AtomicBool,
}

fn none<T>() -> MetadataResult<T> {
    Err(MetadataError::Unavailable("nothing lies in these tiers".into()))
}

#[async_trait]
impl TierLedger for Ledger {
    async fn tiers(&self) -> MetadataResult<Vec<TierRecord>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.is_down.load(Ordering::SeqCst) {
            return Err(MetadataError::Unavailable("it is down".into()));
        }
        Ok(self.tiers.lock().values().cloned().collect())
    }

    async fn add_tier(
        &self,
        name: TierName,
        settings: String,
        now_ms: u64,
        _: Option<&[TierRecord]>,
    ) -> MetadataResult<TierRecord> {
        let record = TierRecord { name: name.clone(), settings, created_ms: now_ms, revision: 1 };
        self.tiers.lock().insert(name, record.clone());
        Ok(record)
    }

    async fn change_tier(
        &self,
        name: &TierName,
        settings: String,
        _: Option<&[TierRecord]>,
    ) -> MetadataResult<TierRecord> {
        let mut tiers = self.tiers.lock();
        let record = tiers.get_mut(name).ok_or(MetadataError::NotFound("tier"))?;
        (record.settings, record.revision) = (settings, record.revision + 1);
        Ok(record.clone())
    }

    async fn change_empty_tier(
        &self,
        name: &TierName,
        settings: String,
        _: Option<&[TierRecord]>,
    ) -> MetadataResult<TierRecord> {
        self.change_tier(name, settings, None).await
    }

    async fn remove_tier(&self, name: &TierName) -> MetadataResult<()> {
        self.tiers.lock().remove(name).map(drop).ok_or(MetadataError::NotFound("tier"))
    }

    async fn tier_usage(&self) -> MetadataResult<Vec<TierUsage>> {
        self.counted.fetch_add(1, Ordering::SeqCst);
        Ok(vec![])
    }

    async fn cold_contents(&self, _: &TierName, _: Option<ContentId>, _: u32) -> MetadataResult<Vec<Arc<Content>>> {
        none()
    }

    async fn claim_moves(&self, _: &TierName, _: Claim, _: u32) -> MetadataResult<Vec<Move>> {
        none()
    }

    async fn renew_move(&self, _: u64, _: u64, _: u64, _: u64) -> MetadataResult<()> {
        none()
    }

    async fn postpone_move(&self, _: u64, _: u64, _: u64, _: Option<&str>) -> MetadataResult<()> {
        none()
    }

    async fn drop_move(&self, _: u64, _: u64) -> MetadataResult<()> {
        none()
    }

    async fn moves(&self, _: Option<&TierName>, _: u64, _: u32) -> MetadataResult<Vec<Move>> {
        none()
    }

    async fn move_backlog(&self, _: u64) -> MetadataResult<Vec<LaneBacklog>> {
        Ok(vec![])
    }

    async fn retry_moves(&self, _: &TierName, _: u64) -> MetadataResult<u64> {
        none()
    }

    async fn reserve_pieces(&self, _: u64, _: u64, _: &TierName, _: &[PieceName], _: u64) -> MetadataResult<()> {
        none()
    }

    async fn due_pieces(&self, _: &TierName, _: u64, _: u64, _: u32) -> MetadataResult<Vec<DuePiece>> {
        none()
    }

    async fn finish_pieces(&self, _: &[DuePiece], _: u64) -> MetadataResult<()> {
        none()
    }
}

fn parts(ledger: &Arc<Ledger>) -> RegistryParts {
    RegistryParts { ledger: ledger.clone(), sealer: secret(), opener: secret() }
}

fn registry(ledger: &Arc<Ledger>) -> TierRegistry {
    TierRegistry::new(parts(ledger))
}

fn name(text: &str) -> TierName {
    text.parse().unwrap()
}

fn directory(root: &Path) -> TierSettings {
    let root = root.to_str().unwrap().to_owned();
    TierSettings::Directory(DirectorySettings { root, piece_bytes_max: None, patience_ms: None })
}

async fn add(registry: &TierRegistry, tier: &str, settings: TierSettings) {
    let prepared = registry.build_for_add(&name(tier), settings).await.unwrap();
    registry.ledger().add_tier(name(tier), prepared.stored, 1, None).await.unwrap();
}

/// Adds a tier without trying it.
async fn add_untried(ledger: &Ledger, tier: &str, settings: &TierSettings) {
    ledger.add_tier(name(tier), serde_json::to_string(settings).unwrap(), 1, None).await.unwrap();
}

#[tokio::test]
async fn tier_that_another_node_added_changed_and_removed_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Arc::<Ledger>::default();
    let (here, there) = (registry(&ledger), registry(&ledger));
    assert!(!there.is_set_up(&name("COLD")).await.unwrap());
    std::fs::create_dir(dir.path().join("a")).unwrap();
    add(&here, "COLD", directory(&dir.path().join("a"))).await;

    assert!(there.is_set_up(&name("COLD")).await.unwrap(), "it is usable at once");
    there.refresh_now().await.unwrap();
    let first = there.tier(&name("COLD")).unwrap();
    assert_eq!((first.kind(), there.names()), ("directory", vec![name("COLD")]));
    there.refresh_now().await.unwrap();
    assert!(Arc::ptr_eq(&first, &there.tier(&name("COLD")).unwrap()), "one adapter a record");

    let mut changed = directory(&dir.path().join("a"));
    if let TierSettings::Directory(settings) = &mut changed {
        settings.piece_bytes_max = Some(1 << 26);
    }
    let prepared = here.build_for_change(&name("COLD"), changed).await.unwrap();
    ledger.change_tier(&name("COLD"), prepared.stored, None).await.unwrap();
    there.refresh_now().await.unwrap();
    assert_eq!(there.tier(&name("COLD")).unwrap().piece_bytes_max(), 1 << 26);

    ledger.remove_tier(&name("COLD")).await.unwrap();
    there.refresh_now().await.unwrap();
    assert!(matches!(there.tier(&name("COLD")).err(), Some(TierError::Denied(_))));
    assert!(there.names().is_empty());
}

#[tokio::test]
async fn tier_that_hangs_or_cannot_be_built_blocks_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Arc::<Ledger>::default();
    let build: Build = Arc::new(|open| {
        if format!("{:?}", open.settings).contains("hangs") {
            return std::future::pending().boxed();
        }
        adapters::open(open).boxed()
    });
    let registry = TierRegistry::with_build(parts(&ledger), build);
    add_untried(&ledger, "HANGS", &directory(Path::new("/hangs"))).await;
    add_untried(&ledger, "MISSING", &directory(&dir.path().join("missing"))).await;
    ledger.add_tier(name("STRANGE"), r#"{"kind":"tape"}"#.into(), 1, None).await.unwrap();
    std::fs::create_dir(dir.path().join("a")).unwrap();
    add(&registry, "GOOD", directory(&dir.path().join("a"))).await;
    registry.turn(Duration::ZERO, DEADLINE).await.unwrap();
    eventually("the good one is there", || registry.tier(&name("GOOD")).is_ok()).await;
    let error = |tier: &str| registry.tier(&name(tier)).err();
    eventually("the missing one is told of", || registry.states()[2].problem.is_some()).await;
    assert!(matches!(error("HANGS"), Some(TierError::Unavailable(_))), "{:?}", error("HANGS"));
    assert!(matches!(error("MISSING"), Some(TierError::Unavailable(why)) if why.contains("missing")));
    eventually("the strange one is told of", || matches!(error("STRANGE"), Some(TierError::Denied(_)))).await;
    for (state, up) in registry.states().iter().zip([None, None, Some(false), Some(false)]) {
        assert_eq!(state.is_up, up, "{state:?}");
    }
}

#[tokio::test]
async fn tier_that_can_be_built_again_is_found_by_the_loop() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("a");
    let ledger = Arc::<Ledger>::default();
    let registry = registry(&ledger);
    add_untried(&ledger, "COLD", &directory(&root)).await;
    let settings =
        WatchSettings { refresh: Duration::from_millis(20), clock: Arc::new(SystemClock), counts: Arc::new(|| true) };
    let watching = tokio::spawn(watch::run(registry.clone(), settings));
    let is_up = || registry.states().first().and_then(|state| state.is_up);
    eventually("it is down", || is_up() == Some(false)).await;
    std::fs::create_dir(&root).unwrap();
    registry.build_for_add(&name("COLD"), directory(&root)).await.unwrap();
    eventually("it is up", || is_up() == Some(true)).await;
    watching.abort();
}

/// What all nodes would count alike costs the database once.
#[tokio::test(start_paused = true)]
async fn what_lies_in_tiers_is_counted_while_it_is_this_nodes_to_count() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Arc::<Ledger>::default();
    let registry = registry(&ledger);
    add_untried(&ledger, "COLD", &directory(dir.path())).await;
    let counts = Arc::new(AtomicBool::new(false));
    let asked = counts.clone();
    let settings = WatchSettings {
        refresh: Duration::from_secs(5),
        clock: Arc::new(SystemClock),
        counts: Arc::new(move || asked.load(Ordering::SeqCst)),
    };
    let watching = tokio::spawn(watch::run(registry.clone(), settings));
    let counted = || ledger.counted.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(counted(), 0, "another node counts");
    counts.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(counted() > 0, "it is this node's now");
    counts.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = counted();
    counts.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(counted() > before, "zero was shown meanwhile, and is not for long");
    watching.abort();
}

#[tokio::test]
async fn adapter_goes_on_while_changed_settings_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Arc::<Ledger>::default();
    let registry = registry(&ledger);
    add(&registry, "COLD", directory(dir.path())).await;
    registry.refresh_now().await.unwrap();
    let before = registry.tier(&name("COLD")).unwrap();
    let wrong = serde_json::to_string(&directory(Path::new("/nowhere/at/all"))).unwrap();
    ledger.change_tier(&name("COLD"), wrong, None).await.unwrap();
    registry.refresh_now().await.unwrap();
    assert!(Arc::ptr_eq(&before, &registry.tier(&name("COLD")).unwrap()));
    assert!(registry.fresh(&name("COLD")).await.is_err(), "it is good for reading, nothing new goes there");
    let state = registry.states().remove(0);
    assert_eq!(state.is_up, Some(false));
    assert!(state.problem.unwrap().contains("those before"));
    assert!(registry.check(&name("COLD")).await.is_err(), "the check is of the settings that are stored");

    // Another tier of the same name has nothing to do with it.
    let record = TierRecord { created_ms: 2, ..ledger.tiers.lock()[&name("COLD")].clone() };
    ledger.tiers.lock().insert(name("COLD"), record);
    registry.refresh_now().await.unwrap();
    assert!(registry.tier(&name("COLD")).is_err());
}

#[tokio::test]
async fn who_writes_sees_a_change_through_another_node_at_once() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let ledger = Arc::<Ledger>::default();
    let (registry, other) = (registry(&ledger), registry(&ledger));
    add(&registry, "COLD", directory(dirs[0].path())).await;
    registry.refresh_now().await.unwrap();
    let before = registry.fresh(&name("COLD")).await.unwrap();
    assert!(Arc::ptr_eq(&before, &registry.tier(&name("COLD")).unwrap()));
    add(&other, "OTHER", directory(dirs[1].path())).await;
    let moved = ledger.tiers.lock()[&name("OTHER")].settings.clone();
    ledger.change_tier(&name("COLD"), moved, None).await.unwrap();
    let after = registry.fresh(&name("COLD")).await.unwrap();
    assert!(!Arc::ptr_eq(&before, &after));
    assert!(Arc::ptr_eq(&after, &registry.tier(&name("COLD")).unwrap()));
}

#[tokio::test]
async fn what_was_known_stays_while_the_database_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Arc::<Ledger>::default();
    let registry = registry(&ledger);
    add(&registry, "COLD", directory(dir.path())).await;
    registry.refresh_now().await.unwrap();
    ledger.is_down.store(true, Ordering::SeqCst);
    assert!(matches!(registry.refresh_now().await, Err(TierError::Unavailable(_))));
    assert!(registry.tier(&name("COLD")).is_ok());
    assert!(registry.is_set_up(&name("COLD")).await.unwrap());
    assert!(registry.is_set_up(&name("OTHER")).await.is_err(), "nobody knows");
}

#[tokio::test(start_paused = true)]
async fn many_who_ask_for_unknown_names_ask_the_database_once_a_second() {
    let ledger = Arc::<Ledger>::default();
    let registry = registry(&ledger);
    registry.refresh_now().await.unwrap();
    let ask = || async {
        let unknown = name("OTHER");
        let asking = (0..100).map(|_| registry.is_set_up(&unknown));
        for answer in futures::future::join_all(asking).await {
            assert!(!answer.unwrap());
        }
        ledger.asked.load(Ordering::SeqCst)
    };
    let begun = Instant::now();
    assert_eq!(ask().await, 2);
    assert_eq!(ask().await, 3);
    assert!(begun.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
async fn settings_with_mistakes_are_refused_before_they_are_stored() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("something"), "x").unwrap();
    let ledger = Arc::<Ledger>::default();
    let registry = registry(&ledger);
    assert!(registry.build_for_add(&name("COLD"), directory(dir.path())).await.is_err(), "somebody else's directory");
    let keys = OssCredentials::Keys {
        access_key_id: "id".into(),
        secret_access_key: Some(SecretText::new("very-secret")),
        sealed_secret: None,
    };
    let oss = OssSettings { credentials: keys, ..OssSettings::new("http://127.0.0.1:9", "r", "cold") };
    let refused = registry.build_for_add(&name("COLD"), TierSettings::Oss(oss.clone())).await.unwrap_err();
    assert!(matches!(&refused, TierError::Invalid(why) if why.contains("path style")), "{refused}");
    let missing = registry.build_for_change(&name("COLD"), TierSettings::Oss(oss)).await.unwrap_err();
    assert!(matches!(missing, TierError::Denied(_)), "{missing}");
}

#[tokio::test]
async fn kind_of_a_tier_stays() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Arc::<Ledger>::default();
    let registry = registry(&ledger);
    add(&registry, "COLD", directory(dir.path())).await;
    let other = TierSettings::Oss(OssSettings::new("https://h", "r", "cold"));
    let refused = registry.build_for_change(&name("COLD"), other).await.unwrap_err();
    assert!(matches!(&refused, TierError::Invalid(why) if why.contains("kind")), "{refused}");
}

#[tokio::test]
async fn secrets_are_in_no_state_and_no_record() {
    let ledger = Arc::<Ledger>::default();
    let registry = registry(&ledger);
    let keys = OssCredentials::Keys {
        access_key_id: "id".into(),
        secret_access_key: Some(SecretText::new("very-secret")),
        sealed_secret: None,
    };
    let oss = OssSettings { credentials: keys, ..OssSettings::new("https://127.0.0.1.example.com:9", "r", "cold") };
    let (stored, _) = seal().take(&name("OSS"), TierSettings::Oss(oss), None).unwrap();
    let record = ledger.add_tier(name("OSS"), stored, 1, None).await.unwrap();
    registry.refresh_now().await.unwrap();
    assert_eq!(registry.tier(&name("OSS")).unwrap().kind(), "oss", "another node with the same secret opens it");
    let state = registry.states().remove(0);
    let told = serde_json::to_string(&state.settings).unwrap();
    assert!(told.contains("access_key_id") && !told.contains("secret"), "{told}");
    for text in [format!("{record:?}"), format!("{state:?}")] {
        assert!(!text.contains("very-secret"), "{text}");
    }
}
