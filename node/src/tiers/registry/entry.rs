//! One tier: its record, its adapter, and how it is.

use std::sync::Arc;
use std::time::Duration;

use holdfast_actors::ports::tiering::TierRecord;
use holdfast_actors::ports::tiers::{ColdTier, TierError, TierHealth, TierResult};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::super::settings;
use super::TierState;

/// The pause after the first failure to build an adapter; it doubles with each.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// The longest pause.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Why there is no adapter for a record.
enum Problem {
    /// Nothing can be done about it here.
    Denied(String),
    /// It is tried again.
    Unavailable(String),
}

/// A tier.
pub(super) struct Entry {
    pub(super) record: TierRecord,
    tier: Option<Arc<dyn ColdTier>>,
    /// Whether `tier` is what `record` asks for, not what the one before it asked for.
    is_current: bool,
    problem: Option<Problem>,
    failures: u32,
    build_at: Instant,
    /// Ends with the entry.
    building: Option<AbortOnDropHandle<()>>,
    checked: Option<Result<TierHealth, String>>,
    /// When the last check began.
    check_began: Option<Instant>,
    checking: Option<AbortOnDropHandle<()>>,
    /// What the log was told last.
    told: Option<String>,
}

impl Entry {
    pub(super) fn new(record: TierRecord) -> Self {
        Self {
            record,
            tier: None,
            is_current: false,
            problem: None,
            failures: 0,
            build_at: Instant::now(),
            building: None,
            checked: None,
            check_began: None,
            checking: None,
            told: None,
        }
    }

    /// The same tier with other settings: its adapter goes on until there is a new one. One that was removed and added
    /// again is another tier.
    pub(super) fn replaced_by(self, record: TierRecord) -> Self {
        let is_same = self.record.created_ms == record.created_ms;
        Self { tier: self.tier.filter(|_| is_same), told: self.told, ..Self::new(record) }
    }

    /// The adapter, or why there is none.
    pub(super) fn tier(&self) -> TierResult<Arc<dyn ColdTier>> {
        match (&self.tier, &self.problem) {
            (Some(tier), _) => Ok(tier.clone()),
            (None, Some(Problem::Denied(why))) => Err(TierError::Denied(why.clone())),
            (None, Some(Problem::Unavailable(why))) => Err(TierError::Unavailable(why.clone())),
            (None, None) => Err(TierError::Unavailable("it is not ready yet".into())),
        }
    }

    /// The adapter by the settings of now.
    pub(super) fn current(&self) -> TierResult<Arc<dyn ColdTier>> {
        match &self.problem {
            Some(Problem::Denied(why)) => Err(TierError::Denied(why.clone())),
            Some(Problem::Unavailable(why)) => Err(TierError::Unavailable(why.clone())),
            None if self.is_current => self.tier(),
            None => Err(TierError::Unavailable("it is not ready yet".into())),
        }
    }

    pub(super) fn is_building(&self) -> bool {
        self.building.as_ref().is_some_and(|task| !task.is_finished())
    }

    pub(super) fn build_is_due(&self, now: Instant) -> bool {
        !self.is_current && !self.is_building() && self.build_at <= now
    }

    pub(super) fn retry_now(&mut self) {
        self.build_at = Instant::now();
    }

    pub(super) fn build_began(&mut self, task: JoinHandle<()>) {
        self.building = Some(AbortOnDropHandle::new(task));
        // Also of a task that panics.
        self.build_at = Instant::now() + (RETRY_MIN * (1 << self.failures.min(6))).min(RETRY_MAX);
    }

    /// Notes what became of it; gives back the adapter that is not needed any more.
    pub(super) fn build_ended(
        &mut self,
        result: TierResult<Arc<dyn ColdTier>>,
        now: Instant,
    ) -> Option<Arc<dyn ColdTier>> {
        // Called by that task as its last work: nothing of it is cut off by this.
        self.building = None;
        match result {
            Ok(tier) => {
                (self.is_current, self.failures, self.problem) = (true, 0, None);
                (self.checked, self.check_began, self.checking) = (None, None, None);
                self.tier.replace(tier)
            }
            Err(error) => {
                let why = error.to_string();
                let is_understood = settings::parse(&self.record.settings).is_ok();
                self.problem = Some(if is_understood { Problem::Unavailable(why) } else { Problem::Denied(why) });
                self.build_at = now + (RETRY_MIN * (1 << self.failures.min(6))).min(RETRY_MAX);
                self.failures += 1;
                None
            }
        }
    }

    /// The adapter, if it is to be asked how it is.
    pub(super) fn check_is_due(&self, now: Instant, each: Duration) -> Option<Arc<dyn ColdTier>> {
        let is_checking = self.checking.as_ref().is_some_and(|task| !task.is_finished());
        let is_due = self.check_began.is_none_or(|began| now >= began + each);
        self.tier.as_ref().filter(|_| self.is_current && !is_checking && is_due).cloned()
    }

    pub(super) fn check_began(&mut self, task: JoinHandle<()>, now: Instant) {
        (self.checking, self.check_began) = (Some(AbortOnDropHandle::new(task)), Some(now));
    }

    pub(super) fn check_ended(&mut self, health: Result<TierHealth, String>) {
        self.checked = Some(health);
    }

    fn problem(&self) -> Option<String> {
        match (&self.problem, &self.checked) {
            (Some(Problem::Denied(why) | Problem::Unavailable(why)), _) if self.tier.is_some() => {
                Some(format!("the changed settings cannot be used, those before are: {why}"))
            }
            (Some(Problem::Denied(why) | Problem::Unavailable(why)), _) | (None, Some(Err(why))) => Some(why.clone()),
            (None, _) => None,
        }
    }

    fn is_up(&self) -> Option<bool> {
        match (self.problem(), &self.checked) {
            (Some(_), _) => Some(false),
            (None, Some(Ok(_))) if self.is_current => Some(true),
            _ => None,
        }
    }

    pub(super) fn state(&self) -> TierState {
        let settings = settings::parse(&self.record.settings).ok();
        TierState {
            name: self.record.name.clone(),
            created_ms: self.record.created_ms,
            revision: self.record.revision,
            settings: settings.map(|settings| settings.without_secrets()),
            is_up: self.is_up(),
            problem: self.problem(),
            health: self.checked.as_ref().and_then(|checked| checked.as_ref().ok()).cloned(),
        }
    }

    pub(super) fn say_what_changed(&mut self) {
        let Some(is_up) = self.is_up() else { return };
        let problem = self.problem();
        if problem == self.told {
            return;
        }
        let tier = &self.record.name;
        match &problem {
            Some(problem) => tracing::warn!(%tier, problem, "a cold tier cannot be worked with"),
            None if is_up => tracing::info!(%tier, "a cold tier can be worked with again"),
            None => {}
        }
        self.told = problem;
    }
}
