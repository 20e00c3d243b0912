//! Which tiers there are, and the adapter of each.
//!
//! [`Tiers::tier`] answers from memory. What is there comes from the database by [`TierRegistry::refresh_now`], which
//! the loop in `watch` calls, too. Adapters are built and checked by tasks of their own, one at a time for each tier,
//! so that one that hangs holds nobody up. A tier's adapter is built once for each record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_actors::ports::tiering::{TierLedger, TierRecord};
use holdfast_actors::ports::tiers::{ColdTier, TierError, TierHealth, TierResult, Tiers};
use holdfast_protocol::TierName;
use holdfast_protocol::admin::TierSettings;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use self::entry::Entry;
use super::adapters::{self, OpenSettings};
use super::settings::{self, Seal};
use crate::secrets::{SecretOpener, SecretSealer};

mod entry;
mod state;

pub use state::{PreparedTier, TierState};

/// How long an adapter may take to be built.
const BUILD_PATIENCE: Duration = Duration::from_secs(60);
/// How long a tier may take to say how it is.
const CHECK_PATIENCE: Duration = Duration::from_secs(60);
/// How long somebody who made a change waits for the adapters that it needs.
const BUILD_WAIT: Duration = Duration::from_secs(5);
/// The database is asked once in this time, at most, for names that are not known.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(1);

/// Makes an adapter.
pub(super) type Build = Arc<dyn Fn(OpenSettings) -> BoxFuture<'static, TierResult<Arc<dyn ColdTier>>> + Send + Sync>;

/// What a registry works on.
pub struct RegistryParts {
    /// Which tiers there are.
    pub ledger: Arc<dyn TierLedger>,
    /// Seals secrets of settings.
    pub sealer: Arc<dyn SecretSealer>,
    /// Opens them.
    pub opener: Arc<dyn SecretOpener>,
}

/// The tiers of a node. Cheap to clone.
#[derive(Clone)]
pub struct TierRegistry(Arc<Inner>);

struct Inner {
    ledger: Arc<dyn TierLedger>,
    seal: Seal,
    build: Build,
    /// Where adapters are built and checked: requests come on threads of the data plane, which have other work.
    runtime: Handle,
    entries: RwLock<BTreeMap<TierName, Entry>>,
    /// Held by who asks the database.
    loading: tokio::sync::Mutex<()>,
    /// When the last answer was asked for, and what became of it.
    loaded: Mutex<Option<(Instant, Result<(), String>)>>,
    /// Somebody asked for a name that is not known.
    wanted: Notify,
    /// An adapter was built, or not.
    built: watch::Sender<()>,
}

impl TierRegistry {
    /// An empty one. Must be called on the runtime that adapters are to be built on.
    pub fn new(parts: RegistryParts) -> Self {
        Self::with_build(parts, Arc::new(|open| adapters::open(open).boxed()))
    }

    pub(super) fn with_build(parts: RegistryParts, build: Build) -> Self {
        let RegistryParts { ledger, sealer, opener } = parts;
        Self(Arc::new(Inner {
            ledger,
            seal: Seal { sealer, opener },
            build,
            runtime: Handle::current(),
            entries: RwLock::default(),
            loading: tokio::sync::Mutex::default(),
            loaded: Mutex::default(),
            wanted: Notify::new(),
            built: watch::Sender::new(()),
        }))
    }

    /// Where tiers are written down.
    pub fn ledger(&self) -> &Arc<dyn TierLedger> {
        &self.0.ledger
    }

    /// Takes over what the database has now, and waits a moment for adapters that have to be built for it.
    ///
    /// # Errors
    /// [`TierError::Unavailable`] when the database does not answer; what was known stays.
    pub async fn refresh_now(&self) -> TierResult<()> {
        self.load(Duration::ZERO).await?;
        self.wait_for_builds().await;
        Ok(())
    }

    /// Tries settings of a tier that is to be added. An empty directory is made a tier by this.
    ///
    /// # Errors
    /// [`TierError::Invalid`] when the settings cannot work, and those of the tier.
    pub async fn build_for_add(&self, name: &TierName, settings: TierSettings) -> TierResult<PreparedTier> {
        let (stored, open) = self.0.seal.take(name, settings, None)?;
        prepare(stored, open, |open| adapters::create(open).boxed()).await
    }

    /// Tries settings that are to replace those of a tier. An access key without a secret keeps the secret that is
    /// stored.
    ///
    /// # Errors
    /// [`TierError::Invalid`] when the settings cannot work, or are those of another kind of tier;
    /// [`TierError::Denied`] when there is no tier of this name; those of the tier.
    pub async fn build_for_change(&self, name: &TierName, settings: TierSettings) -> TierResult<PreparedTier> {
        self.load(Duration::ZERO).await?;
        let record = self.0.entries.read().get(name).map(|entry| entry.record.clone());
        let record = record.ok_or_else(|| not_set_up(name))?;
        // What is not understood can be replaced.
        let before = settings::parse(&record.settings).ok();
        if let Some(before) = &before
            && before.kind() != settings.kind()
        {
            let (is, wanted) = (before.kind(), settings.kind());
            return Err(TierError::Invalid(format!(
                "{name} is of kind {is}, and cannot become {wanted}: add another tier"
            )));
        }
        let (stored, open) = self.0.seal.take(name, settings, before.as_ref())?;
        prepare(stored, open, |open| (self.0.build)(open)).await
    }

    /// Asks a tier how it is, after another try to build its adapter if there is none.
    ///
    /// # Errors
    /// Those of the tier; [`TierError::Denied`] when there is none of this name.
    pub async fn check(&self, name: &TierName) -> TierResult<TierHealth> {
        self.load(Duration::ZERO).await?;
        if let Some(entry) = self.0.entries.write().get_mut(name) {
            entry.retry_now();
        }
        self.0.build_due();
        self.wait_for_builds().await;
        let (record, tier) = {
            let entries = self.0.entries.read();
            let entry = entries.get(name).ok_or_else(|| not_set_up(name))?;
            (entry.record.clone(), entry.current()?)
        };
        let health = check(&*tier).await;
        self.0.checked(&record, health.as_ref().map(Clone::clone).map_err(ToString::to_string));
        health
    }

    /// How each tier is, by name.
    pub fn states(&self) -> Vec<TierState> {
        self.0.entries.read().values().map(Entry::state).collect()
    }

    /// What the loop does each time: takes over what the database has, `pause` after the last time at the earliest, and
    /// starts what is due.
    pub(super) async fn turn(&self, pause: Duration, checks_each: Duration) -> TierResult<()> {
        let loaded = self.load(pause.min(UNKNOWN_PAUSE)).await;
        self.0.build_due();
        self.0.check_due(checks_each);
        loaded
    }

    /// Resolves when somebody asks for a name that is not known.
    pub(super) async fn wanted(&self) {
        self.0.wanted.notified().await;
    }

    /// Tells in the log of each tier that went down or came up since the last call.
    pub(super) fn say_what_changed(&self) {
        for entry in self.0.entries.write().values_mut() {
            entry.say_what_changed();
        }
    }

    /// Asks the database, unless another caller did so after this call; `pause` after the last time, at the earliest.
    async fn load(&self, pause: Duration) -> TierResult<()> {
        let asked = Instant::now();
        let _loading = self.0.loading.lock().await;
        let last = self.0.loaded.lock().clone();
        if let Some((begun, result)) = last {
            if begun > asked {
                return result.map_err(TierError::Unavailable);
            }
            // With the lock: who comes now shares the answer.
            tokio::time::sleep_until(begun + pause).await;
        }
        let begun = Instant::now();
        let result = match self.0.ledger.tiers().await {
            Ok(records) => {
                self.0.take(records);
                Ok(())
            }
            Err(error) => Err(format!("which tiers there are is not known: {error}")),
        };
        *self.0.loaded.lock() = Some((begun, result.clone()));
        result.map_err(TierError::Unavailable)
    }

    async fn wait_for_builds(&self) {
        let mut built = self.0.built.subscribe();
        let none_runs = built.wait_for(|()| !self.0.entries.read().values().any(Entry::is_building));
        // Whoever takes longer is told of in the state.
        drop(tokio::time::timeout(BUILD_WAIT, none_runs).await);
    }
}

impl Inner {
    /// Takes over what the database has.
    fn take(self: &Arc<Self>, records: Vec<TierRecord>) {
        let mut entries = self.entries.write();
        let mut before = std::mem::take(&mut *entries);
        for record in records {
            let (name, revision) = (record.name.clone(), record.revision);
            let entry = match before.remove(&name) {
                Some(entry) if entry.record == record => entry,
                Some(entry) => {
                    tracing::info!(tier = %name, revision, "the settings of a cold tier have changed");
                    entry.replaced_by(record)
                }
                None => {
                    tracing::info!(tier = %name, revision, "there is a cold tier");
                    Entry::new(record)
                }
            };
            entries.insert(name, entry);
        }
        for name in before.keys() {
            tracing::info!(tier = %name, "a cold tier was removed");
        }
        drop(entries);
        // Adapters are dropped without the lock.
        drop(before);
        self.build_due();
    }

    /// Starts to build what is due.
    fn build_due(self: &Arc<Self>) {
        let now = Instant::now();
        for entry in self.entries.write().values_mut().filter(|entry| entry.build_is_due(now)) {
            let record = entry.record.clone();
            let open = settings::parse(&record.settings).and_then(|settings| self.seal.open(&record.name, settings));
            let (registry, build) = (Arc::downgrade(self), self.build.clone());
            let task = self.runtime.spawn(async move {
                let result = match open {
                    Ok(open) => in_time(BUILD_PATIENCE, build(open)).await,
                    Err(error) => Err(error),
                };
                if let Some(registry) = registry.upgrade() {
                    registry.built(&record, result);
                }
            });
            entry.build_began(task);
        }
    }

    fn built(&self, record: &TierRecord, result: TierResult<Arc<dyn ColdTier>>) {
        let old = match self.entries.write().get_mut(&record.name) {
            Some(entry) if entry.record == *record => entry.build_ended(result, Instant::now()),
            _ => None,
        };
        drop(old);
        self.built.send_replace(());
    }

    /// Starts the checks that are due.
    fn check_due(self: &Arc<Self>, each: Duration) {
        let now = Instant::now();
        for entry in self.entries.write().values_mut() {
            let Some(tier) = entry.check_is_due(now, each) else { continue };
            let (registry, record) = (Arc::downgrade(self), entry.record.clone());
            let task = self.runtime.spawn(async move {
                let health = check(&*tier).await.map_err(|error| error.to_string());
                if let Some(registry) = registry.upgrade() {
                    registry.checked(&record, health);
                }
            });
            entry.check_began(task, now);
        }
    }

    fn checked(&self, record: &TierRecord, health: Result<TierHealth, String>) {
        if let Some(entry) = self.entries.write().get_mut(&record.name)
            && entry.record == *record
        {
            entry.check_ended(health);
        }
    }
}

#[async_trait]
impl Tiers for TierRegistry {
    fn tier(&self, name: &TierName) -> TierResult<Arc<dyn ColdTier>> {
        if let Some(entry) = self.0.entries.read().get(name) {
            return entry.tier();
        }
        let fresh =
            self.0.loaded.lock().as_ref().is_some_and(|(at, result)| result.is_ok() && at.elapsed() < UNKNOWN_PAUSE);
        if fresh {
            return Err(not_set_up(name));
        }
        self.0.wanted.notify_one();
        Err(TierError::Unavailable(format!("the tier {name} is not known here yet")))
    }

    async fn is_set_up(&self, name: &TierName) -> TierResult<bool> {
        if self.0.entries.read().contains_key(name) {
            return Ok(true);
        }
        self.load(UNKNOWN_PAUSE).await?;
        Ok(self.0.entries.read().contains_key(name))
    }

    async fn fresh(&self, name: &TierName) -> TierResult<Arc<dyn ColdTier>> {
        self.load(Duration::ZERO).await?;
        let current = || self.0.entries.read().get(name).ok_or_else(|| not_set_up(name)).and_then(Entry::current);
        if let Ok(tier) = current() {
            return Ok(tier);
        }
        self.wait_for_builds().await;
        current()
    }

    fn names(&self) -> Vec<TierName> {
        self.0.entries.read().keys().cloned().collect()
    }
}

async fn prepare(
    stored: String,
    open: OpenSettings,
    build: impl FnOnce(OpenSettings) -> BoxFuture<'static, TierResult<Arc<dyn ColdTier>>>,
) -> TierResult<PreparedTier> {
    let settings = open.settings.clone();
    let tier = in_time(BUILD_PATIENCE, build(open)).await?;
    let health = check(&*tier).await?;
    Ok(PreparedTier { tier, stored, settings, health })
}

async fn check(tier: &dyn ColdTier) -> TierResult<TierHealth> {
    in_time(CHECK_PATIENCE, tier.check()).await
}

async fn in_time<T>(patience: Duration, work: impl Future<Output = TierResult<T>>) -> TierResult<T> {
    match tokio::time::timeout(patience, work).await {
        Ok(result) => result,
        Err(_) => Err(TierError::Unavailable(format!("it gives no answer within {} s", patience.as_secs()))),
    }
}

fn not_set_up(name: &TierName) -> TierError {
    TierError::Denied(format!("no tier {name} is set up"))
}
