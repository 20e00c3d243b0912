//! Movers and sweepers over real metadata and tiers in directories, at times that the test chooses.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{TryStreamExt as _, stream};
use holdfast_actors::domain::cleanup::PassEnd;
use holdfast_actors::flow::cold::blocks::BlockCheck;
use holdfast_actors::flow::cold::mover::{MoverParts, MoverSettings, MoverStats};
use holdfast_actors::flow::cold::sweep::{SweeperParts, SweeperSettings};
use holdfast_actors::flow::get::ContentReader;
use holdfast_actors::flow::lifecycle::LifecycleTeller;
use holdfast_actors::flow::put::{StoreRequest, store};
use holdfast_actors::flow::reclaim::{InFlightWrites, Limits, Reclaimer};
pub use holdfast_actors::ports::chunks::conformance::pattern;
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::metadata::{
    BucketId, Content, ContentSource, ETag, ListVersionsQuery, MoveQueued, MoveReason, MoveRequest, NewObject,
    ObjectAttributes, ObjectVersion, Versioning, samples,
};
use holdfast_actors::ports::tiering::Move;
use holdfast_actors::ports::tiers::PieceName;
use holdfast_actors::ports::tiers::Tiers as _;
use holdfast_actors::ports::{ChunkStore, Clock, MetadataStore, Outbox, TierLedger};
use holdfast_actors::wait::until_ok;
use holdfast_protocol::{ChunkId, ChunkLabel, ContentId, NodeId, STUB_INDEX, TierName, VersionId};
use holdfast_tiers::directory::{DirectoryConfig, DirectoryTier};

use super::doubles::{Double, Registry};
pub use super::support_metadata::{HOUR, NOON};
use super::support_metadata::{HandClock, Metadata, delete, events};
use super::yielding::Yielding;

/// Two blocks: an object of a few hundred KiB has several pieces.
pub const PIECE_BYTES: u64 = 256 << 10;
/// More passes than any test needs: what is due after them will never be done.
const PASSES_MAX: usize = 1_000;

pub fn tier(name: &str) -> TierName {
    name.parse().unwrap()
}

pub fn node(number: u64) -> NodeId {
    NodeId::from(number)
}

pub struct World {
    pub mover: MoverParts,
    pub sweeper: SweeperParts,
    pub reclaimer: Reclaimer,
    pub memory: Arc<MemoryChunkStore>,
    pub ledger: Arc<dyn TierLedger>,
    pub outbox: Arc<dyn Outbox>,
    pub registry: Arc<Registry>,
    pub one: Arc<Double>,
    pub clock: Arc<HandClock>,
    pub bucket: BucketId,
    dir: tempfile::TempDir,
}

impl World {
    pub async fn new(versioning: Versioning) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let Metadata { store: metadata, outbox, ledger, bucket, .. } = Metadata::new(dir.path(), versioning).await;
        let registry = Arc::new(Registry::default());
        let mut doubles = Vec::new();
        for name in ["ONE", "TWO"] {
            let root = dir.path().join(name);
            std::fs::create_dir(&root).unwrap();
            let config = DirectoryConfig { piece_bytes_max: PIECE_BYTES, ..DirectoryConfig::new(root) };
            let double = Double::new(Arc::new(DirectoryTier::create(config).await.unwrap()));
            registry.add(tier(name), double.clone());
            ledger.add_tier(tier(name), "{}".into(), NOON, None).await.unwrap();
            doubles.push(double);
        }
        let clock = HandClock::new(NOON);
        let memory = Arc::new(MemoryChunkStore::new());
        // The clock goes in leaps, and that is not to hold anything up.
        let (piece_pause, hold) = (Duration::from_millis(1), Duration::ZERO);
        let settings = MoverSettings { piece_pause, hold, moves_per_tier: 8, ..MoverSettings::default() };
        let mover = MoverParts {
            metadata: metadata.clone(),
            ledger: ledger.clone(),
            chunks: Arc::new(Yielding(memory.clone())),
            tiers: registry.clone(),
            clock: clock.clone(),
            node: node(1),
            ownership: None,
            teller: Some(LifecycleTeller { node: "node".into(), region: "us-east-1".into() }),
            reporter: None,
            settings,
        };
        let sweeper = SweeperParts {
            ledger: ledger.clone(),
            tiers: registry.clone(),
            clock: clock.clone(),
            ownership: None,
            settings: SweeperSettings { hold, ..SweeperSettings::default() },
        };
        let reclaimer = Reclaimer {
            metadata,
            chunks: memory.clone(),
            cluster: None,
            clock: clock.clone(),
            in_flight: InFlightWrites::new(Duration::ZERO),
            limits: Limits::default(),
        };
        let one = doubles.swap_remove(0);
        Self { mover, sweeper, reclaimer, memory, ledger, outbox, registry, one, clock, bucket, dir }
    }

    pub fn store(&self) -> &dyn MetadataStore {
        &*self.mover.metadata
    }

    pub fn clock_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    pub fn go_on(&self, ms: u64) {
        self.clock.set(self.clock.now_ms() + ms);
    }

    pub fn go_back(&self, ms: u64) {
        self.clock.set(self.clock.now_ms() - ms);
    }

    /// Stores an object as a PUT does.
    pub async fn put(&self, key: &str, data: &Bytes, class: Option<&str>) -> VersionId {
        let now_ms = self.clock.now_ms();
        let version = VersionId::generate(now_ms / 1_000);
        let request = StoreRequest {
            content: ContentId::generate(now_ms / 1_000),
            label: ChunkLabel {
                bucket: "bucket".into(),
                key: key.into(),
                version,
                part: None,
                content_size_bytes: data.len() as u64,
                created_ms: now_ms,
                attributes: None,
                is_stub: false,
            },
            algorithms: vec![],
        };
        let body = stream::iter([Ok(data.clone())]);
        let stored = store(&self.mover.chunks, request, body, |_| Ok(())).await.unwrap();
        let content = Content {
            manifest: stored.manifest(),
            etag: ETag { md5: stored.digests.md5, parts: None },
            ..samples::content(stored.id(), data.len() as u64)
        };
        let object = NewObject {
            evidence: stored.evidence.clone(),
            ..self.new_object(key, version, ContentSource::New(content), class)
        };
        stored.settle(self.store().commit_object(object)).await.unwrap().object.version
    }

    fn new_object(&self, key: &str, version: VersionId, content: ContentSource, class: Option<&str>) -> NewObject {
        NewObject {
            version,
            now_ms: self.clock.now_ms(),
            content,
            attributes: ObjectAttributes { content_type: Some("text/plain".into()), ..ObjectAttributes::default() },
            class: class.map(tier),
            ..samples::object(self.bucket, key)
        }
    }

    /// As CopyObject does: the content is shared.
    pub async fn copy(&self, from: &str, to: &str, class: Option<&str>) {
        let content = ContentSource::Shared(self.content(from).await.id);
        let version = VersionId::generate(self.clock.now_seconds());
        self.store().commit_object(self.new_object(to, version, content, class)).await.unwrap();
    }

    pub async fn delete(&self, key: &str) {
        delete(self.store(), self.bucket, key, None, self.clock.now_ms()).await;
    }

    /// Deletes an object, and has its pieces due to be deleted.
    pub async fn delete_for_good(&self, key: &str) {
        self.delete(key).await;
        self.go_on(HOUR);
        self.reclaimer.reclaim_due(0).await.unwrap();
        self.go_on(HOUR);
    }

    pub async fn request(&self, key: &str, to: Option<&str>, reason: MoveReason) -> MoveQueued {
        let request = MoveRequest {
            bucket: self.bucket,
            key: key.into(),
            version: None,
            to: to.map(tier),
            reason,
            only_if: None,
            event: None,
            now_ms: self.clock.now_ms(),
        };
        self.store().request_move(request).await.unwrap()
    }

    /// Claims and makes moves of a lane until none is due any more.
    pub async fn pass(&self, lane: &str) -> MoverStats {
        let mut all = MoverStats::default();
        for _ in 0..PASSES_MAX {
            let stats = self.mover.pass(&tier(lane)).await.unwrap();
            if stats.claimed == 0 {
                return all;
            }
            all.claimed += stats.claimed;
            all.moved += stats.moved;
            all.moved_bytes += stats.moved_bytes;
            all.in_place += stats.in_place;
            all.overtaken += stats.overtaken;
            all.lost += stats.lost;
            all.failed += stats.failed;
        }
        panic!("moves of {lane} are due again and again: {all:?}");
    }

    /// The only move that waits.
    pub async fn waiting(&self) -> Move {
        let mut moves = self.ledger.moves(None, 0, 10).await.unwrap();
        assert_eq!(moves.len(), 1, "{moves:?}");
        moves.remove(0)
    }

    /// Waits until the only move that waits has failed.
    pub async fn waiting_fails(&self, what: &str) {
        until_ok(what, async || {
            let waiting = self.waiting().await;
            if waiting.failures > 0 { Ok(()) } else { Err(format!("{waiting:?}")) }
        })
        .await;
    }

    /// Movers that run by themselves look often, and leave a tier that fails alone for longer than any test takes.
    pub fn leave_failing_tiers_alone(&mut self) {
        let (poll, never) = (Duration::from_millis(20), Duration::from_secs(3_600));
        self.mover.settings = MoverSettings { poll, breaker_min: never, breaker_max: never, ..self.mover.settings };
    }

    pub async fn object(&self, key: &str) -> Arc<ObjectVersion> {
        self.store().object(self.bucket, key, None).await.unwrap()
    }

    pub async fn content(&self, key: &str) -> Arc<Content> {
        self.object(key).await.content.clone().unwrap()
    }

    /// Where the bytes are: the name of a tier, or `cluster`.
    pub async fn place(&self, key: &str) -> String {
        self.content(key).await.cold().map_or_else(|| "cluster".to_owned(), |place| place.tier.to_string())
    }

    /// Waits until an object's bytes are there.
    pub async fn comes_to(&self, key: &str, place: &str) {
        until_ok(&format!("{key} comes to {place}"), async || {
            let found = self.place(key).await;
            if found == place { Ok(()) } else { Err(format!("it is in {found}")) }
        })
        .await;
    }

    /// Reads and verifies what an object's content holds, wherever it is.
    pub async fn read(&self, key: &str) -> Vec<u8> {
        let content = self.content(key).await;
        let Some(place) = content.cold() else {
            let end = content.size_bytes();
            let reader = ContentReader::new(self.mover.chunks.clone(), content, 0..end);
            return reader.try_collect::<Vec<Bytes>>().await.unwrap().concat();
        };
        let tier = self.registry.tier(&place.tier).unwrap();
        let mut check = BlockCheck::new(place.clone(), 0);
        let mut all = Vec::new();
        for (index, name) in place.names.iter().enumerate() {
            let piece = place.piece(index as u32);
            let body = tier.get(&PieceName::new(name).unwrap(), 0..piece.end - piece.start).await.unwrap();
            for bytes in body.try_collect::<Vec<Bytes>>().await.unwrap() {
                check.push(bytes).unwrap();
                while let Some(block) = check.next_block() {
                    all.extend_from_slice(&block);
                }
            }
        }
        all
    }

    /// Events told, in the order of their ids: name and key.
    pub async fn events(&self) -> Vec<String> {
        events(&*self.outbox).await
    }

    /// Bytes of files in a tier, after what is to be deleted now.
    pub async fn bytes_in(&self, name: &str) -> u64 {
        self.sweeper.pass(&tier(name)).await.unwrap();
        let root = self.dir.path().join(name);
        files_below(&root, &root).iter().map(|file| root.join(file).metadata().unwrap().len()).sum()
    }

    /// Lets every grace go by while what cleans up runs; then the tiers and the cluster hold what objects refer to, and
    /// nothing else.
    pub async fn assert_clean(&self) {
        for _ in 0..4 {
            self.go_on(3 * HOUR);
            while self.reclaimer.reclaim_due(0).await.unwrap().1 == PassEnd::More {}
            for name in ["ONE", "TWO"] {
                let stats = self.sweeper.pass(&tier(name)).await.unwrap();
                assert_eq!(stats.failed, 0, "{name}");
            }
            let mut cursor = None;
            while self.reclaimer.sweep_orphans(&mut cursor).await.unwrap().1 == PassEnd::More {}
        }
        // Attempts that were cut off clean up behind them on threads of their own.
        until_ok("nothing is left behind, and nothing is missing", || self.compare()).await;
    }

    async fn compare(&self) -> Result<(), String> {
        let mut chunks = BTreeSet::<ChunkId>::new();
        let mut pieces = BTreeSet::<(String, String)>::new();
        let query = ListVersionsQuery { limit: 1_000, ..ListVersionsQuery::default() };
        for listed in self.store().list_versions(self.bucket, query).await.unwrap().entries {
            let version = self.store().object(self.bucket, &listed.key, Some(listed.version)).await.unwrap();
            let Some(content) = &version.content else { continue };
            match content.cold() {
                Some(place) => {
                    chunks.insert(content.id.chunk(STUB_INDEX));
                    pieces.extend(place.names.iter().map(|name| (place.tier.to_string(), name.clone())));
                }
                None => chunks.extend(content.manifest.extents.iter().flat_map(|extent| extent.chunks())),
            }
        }
        let have: BTreeSet<ChunkId> = self.memory.list(None, 10_000).iter().map(|info| info.id).collect();
        if have != chunks {
            return Err(format!("chunks {have:?}, wanted are {chunks:?}"));
        }
        let mut have = BTreeSet::new();
        for name in ["ONE", "TWO"] {
            let root = self.dir.path().join(name);
            have.extend(files_below(&root, &root).into_iter().map(|file| (name.to_owned(), file)));
        }
        if have != pieces {
            return Err(format!("pieces {have:?}, wanted are {pieces:?}"));
        }
        for usage in self.ledger.tier_usage().await.unwrap() {
            if usage.pieces_to_delete > 0 {
                return Err(format!("{usage:?}"));
            }
        }
        Ok(())
    }
}

/// The files of a tier, by their names in it.
fn files_below(root: &Path, path: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(root, &path));
        } else if !path.ends_with(".holdfast-tier") {
            files.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        }
    }
    files
}
