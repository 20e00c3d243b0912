//! One move, from its claim to its end.

use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::journal::ErrorKind;
use holdfast_protocol::{ChunkLabel, TierName};
use tokio::time::Instant;

use super::backoff::pause_after;
use super::events::draft_of_move;
use super::mover::{Mover, MoverError, Outcome};
use super::source::{Source, SourceError};
use super::stub::StoredStub;
use crate::domain::events::EventDraft;
use crate::domain::objects::labels::label_of_moved;
use crate::flow::put::{StoreError, StoredContent};
use crate::ports::metadata::{Content, ContentPlace, MetadataResult, MoveEnd, MoveReason, Moved, ObjectVersion};
use crate::ports::tiering::Move;
use crate::ports::tiers::TierError;
use crate::ports::{ChunkError, MetadataError};

/// How often is looked whether this node is still a member of its cluster.
const LOOK: Duration = Duration::from_secs(1);

/// Why a move came to no end.
#[derive(Debug, thiserror::Error)]
pub(super) enum MoveError {
    /// Somebody else has it.
    #[error("the move was taken over or is over")]
    Superseded,
    /// This node must not go on.
    #[error("the node is fenced: it cannot prove its membership")]
    Fenced,
    /// Metadata fails.
    #[error(transparent)]
    Metadata(MoverError),
    /// The tier that it goes to fails.
    #[error("tier {tier}: {error}")]
    Tier {
        /// Which one.
        tier: TierName,
        /// How.
        error: TierError,
    },
    /// What is to be moved cannot be read.
    #[error("read what is to be moved: {0}")]
    Source(SourceError),
    /// What the tier took does not come back.
    #[error("read back what was stored: {0}")]
    ReadBack(SourceError),
    /// The cluster does not take it.
    #[error("store on the cluster: {0}")]
    Store(StoreError),
    /// The chunk on the cluster that stands for bytes in a tier cannot be written.
    #[error("write the stub: {0}")]
    Stub(ChunkError),
    /// What chunks are labelled with cannot be written.
    #[error("label: {0}")]
    Label(#[from] serde_json::Error),
}

impl From<MoverError> for MoveError {
    fn from(error: MoverError) -> Self {
        match error {
            MoverError::Metadata(MetadataError::Superseded) => Self::Superseded,
            other => Self::Metadata(other),
        }
    }
}

impl MoveError {
    /// What a tier said.
    fn of_tier(&self) -> Option<(&TierName, &TierError)> {
        match self {
            Self::Tier { tier, error }
            | Self::Source(SourceError::Tier { tier, error })
            | Self::ReadBack(SourceError::Tier { tier, error }) => Some((tier, error)),
            _ => None,
        }
    }

    /// The tier that fails as a whole, where it is that.
    fn failing_tier(&self) -> Option<&TierName> {
        let (tier, error) = self.of_tier()?;
        matches!(error, TierError::Unavailable(_) | TierError::Full(_) | TierError::Denied(_)).then_some(tier)
    }

    /// Whether a tier has no room, which keeps nobody from what lies in it.
    fn is_full(&self) -> bool {
        matches!(self, Self::Tier { error: TierError::Full(_), .. })
    }

    /// The tier whose bytes are damaged, where it is that.
    fn damaging_tier(&self) -> Option<&TierName> {
        match self {
            Self::Source(SourceError::Damaged { tier, .. } | SourceError::Short { tier, .. })
            | Self::ReadBack(SourceError::Damaged { tier, .. } | SourceError::Short { tier, .. }) => Some(tier),
            other => {
                other.of_tier().filter(|(_, error)| matches!(error, TierError::Corrupt { .. })).map(|(tier, _)| tier)
            }
        }
    }

    fn is_damage(&self) -> bool {
        match self {
            Self::Source(error) | Self::ReadBack(error) => error.is_damage(),
            Self::Tier { error, .. } => matches!(error, TierError::Corrupt { .. }),
            Self::Store(StoreError::Digest(_)) => true,
            _ => false,
        }
    }

    /// Whether the commit may have happened.
    fn is_unknown(&self) -> bool {
        matches!(self, Self::Metadata(MoverError::Metadata(MetadataError::Unknown(_))))
    }
}

/// A move whose bytes are where they are wanted.
pub(super) enum Ready {
    /// They were there before, or there are none.
    InPlace,
    /// On the cluster's disks; who holds them owns the chunks.
    Cluster(Content, StoredContent),
    /// In a tier; who holds the stub owns it.
    Tier(Content, StoredStub),
}

/// What is to be moved, as it was read.
pub(super) struct Subject {
    pub(super) version: Arc<ObjectVersion>,
    pub(super) content: Arc<Content>,
    pub(super) source: Source,
}

impl Subject {
    /// The label of the chunks that the move writes.
    pub(super) fn label(&self, job: &Move) -> Result<ChunkLabel, MoveError> {
        let class = match job.reason {
            MoveReason::Stored | MoveReason::Lifecycle | MoveReason::Command => job.to.as_ref(),
            MoveReason::Restore { .. } | MoveReason::Return => self.version.class.as_ref(),
        };
        let (label, left_out) = label_of_moved(&job.bucket_name, &self.version, class)?;
        if let Some(left_out) = left_out {
            tracing::warn!(
                id = job.id,
                bucket = job.bucket_name,
                key = job.key,
                left_out,
                "a version has more tags and headers than a label has room for: a rebuild from the disks would not bring \
                 them back"
            );
        }
        Ok(label)
    }
}

impl Mover {
    /// Makes a claimed move.
    pub(super) async fn carry_out(&self, job: &Move) -> Outcome {
        let outcome = match self.try_carry_out(job).await {
            Ok(outcome) => outcome,
            Err(error) => self.on_failure(job, &error).await,
        };
        let direction = direction(job);
        let tier = job.lane.to_string();
        if let Outcome::Moved { bytes } = outcome {
            self.breakers.on_success(&job.lane);
            if let Some(tier) = &job.to {
                self.full.on_success(tier);
            }
            metrics::counter!("holdfast_tier_moved_bytes_total", "tier" => tier.clone(), "direction" => direction)
                .increment(bytes);
        }
        let labels = [("tier", tier), ("direction", direction.to_owned()), ("outcome", outcome.as_str().to_owned())];
        metrics::counter!("holdfast_tier_moves_total", &labels).increment(1);
        outcome
    }

    async fn try_carry_out(&self, job: &Move) -> Result<Outcome, MoveError> {
        // The commit is not watched: what it compares is enough, and cut off its end would not be known.
        let prepared = tokio::select! {
            biased;
            prepared = self.prepare(job) => prepared?,
            why = self.watch(job) => return Err(why),
        };
        let Some((ready, event)) = prepared else {
            self.timed("drop a move", self.parts.ledger.drop_move(job.id, job.attempt)).await?;
            return Ok(Outcome::Overtaken);
        };
        let done = match &ready {
            Ready::Cluster(content, _) | Ready::Tier(content, _) => Outcome::Moved { bytes: content.size_bytes() },
            Ready::InPlace => Outcome::InPlace,
        };
        match self.commit(job, ready, event).await? {
            MoveEnd::Done => Ok(done),
            MoveEnd::Overtaken => Ok(Outcome::Overtaken),
        }
    }

    /// Renews the claim; returns why the work has to end.
    async fn watch(&self, job: &Move) -> MoveError {
        let claim = self.parts.settings.claim;
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(LOOK.min(claim / 3)).await;
            if !self.is_member() {
                return MoveError::Fenced;
            }
            if renewed.elapsed() < claim / 3 {
                continue;
            }
            let asked = Instant::now();
            let (until_ms, pieces_until_ms) = self.claim_ends_ms();
            let renew = self.parts.ledger.renew_move(job.id, job.attempt, until_ms, pieces_until_ms);
            match self.timed("renew a claim", renew).await.map_err(MoveError::from) {
                Ok(()) => renewed = asked,
                Err(MoveError::Superseded) => return MoveError::Superseded,
                // Somebody else may have it by now.
                Err(error) if renewed.elapsed() >= claim => return error,
                Err(error) => tracing::debug!(%error, id = job.id, "a claim cannot be renewed, it is tried again"),
            }
        }
    }

    /// Brings the bytes where they are wanted. `None`: there is nothing to move any more.
    async fn prepare(&self, job: &Move) -> Result<Option<(Ready, Option<EventDraft>)>, MoveError> {
        let version = self.parts.metadata.object(job.bucket, &job.key, Some(job.version));
        let version = match self.timed("read a version", version).await {
            Ok(version) => version,
            Err(MoverError::Metadata(
                MetadataError::NoSuchBucket | MetadataError::NoSuchKey | MetadataError::NoSuchVersion,
            )) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Some(content) = version.content.clone().filter(|content| content.id == job.content) else {
            return Ok(None);
        };
        let event = self.event(job).await?;
        if content.size_bytes() == 0 || content.cold().map(|place| &place.tier) == job.to.as_ref() {
            return Ok(Some((Ready::InPlace, event)));
        }
        let _place = self.place(&job.lane, content.size_bytes()).await;
        let source = self.source(&content)?;
        let subject = Subject { version, content, source };
        let ready = match &job.to {
            Some(tier) => self.offload(job, &subject, tier).await?,
            None => self.recall(job, &subject).await?,
        };
        Ok(Some((ready, event)))
    }

    fn source(&self, content: &Arc<Content>) -> Result<Source, MoveError> {
        match &content.place {
            ContentPlace::Cluster => {
                Ok(Source::Cluster { chunks: self.parts.chunks.clone(), content: content.clone() })
            }
            ContentPlace::Tier(place) => match self.parts.tiers.tier(&place.tier) {
                Ok(tier) => Ok(Source::Tier { tier, place: place.clone(), tries: self.parts.settings.piece_tries }),
                Err(error) => Err(MoveError::Source(SourceError::Tier { tier: place.tier.clone(), error })),
            },
            ContentPlace::NotLoaded => {
                let detail = "a version that was read does not say where its bytes are".to_owned();
                Err(MoveError::Metadata(MetadataError::Corrupt(detail).into()))
            }
        }
    }

    async fn event(&self, job: &Move) -> Result<Option<EventDraft>, MoveError> {
        let Some(teller) = &self.parts.teller else { return Ok(None) };
        let bucket = self.timed("read a bucket", self.parts.metadata.bucket(&job.bucket_name)).await?;
        Ok(Some(draft_of_move(teller, &bucket, job.reason)))
    }

    async fn commit(&self, job: &Move, ready: Ready, event: Option<EventDraft>) -> Result<MoveEnd, MoveError> {
        let result = match ready {
            Ready::InPlace => self.commit_moved(job, Moved::Nowhere, event).await,
            Ready::Cluster(content, stored) => {
                let moved = Moved::To { content, evidence: stored.evidence.clone() };
                stored.settle_move(self.commit_moved(job, moved, event)).await
            }
            Ready::Tier(content, stub) => {
                let moved = Moved::To { content, evidence: stub.evidence.clone() };
                stub.settle(self.commit_moved(job, moved, event)).await
            }
        };
        result.map_err(|error| MoverError::from(error).into())
    }

    async fn commit_moved(&self, job: &Move, moved: Moved, event: Option<EventDraft>) -> MetadataResult<MoveEnd> {
        let commit = job.commit(moved, event, self.parts.clock.now_ms());
        match tokio::time::timeout(self.parts.settings.call_timeout, self.parts.metadata.commit_move(commit)).await {
            Ok(result) => result,
            Err(_) => Err(MetadataError::Unknown("the commit of a move took too long".into())),
        }
    }

    async fn on_failure(&self, job: &Move, error: &MoveError) -> Outcome {
        let (id, key) = (job.id, job.key.as_str());
        // Whoever else has the move, the end of the claim, or the commit that happened after all, sees to the rest.
        if matches!(error, MoveError::Superseded | MoveError::Fenced) || error.is_unknown() {
            tracing::info!(%error, id, key, tier = %job.lane, "a move is left to others");
            return Outcome::Lost;
        }
        tracing::warn!(%error, id, bucket = job.bucket_name, key, tier = %job.lane, "a move failed, it is tried again");
        if let Some(tier) = error.damaging_tier() {
            metrics::counter!("holdfast_tier_corrupt_total", "tier" => tier.to_string()).increment(1);
        }
        let failing = error.failing_tier();
        if let Some(reporter) = &self.parts.reporter {
            let object = || format!("{}/{} version {}", job.bucket_name, job.key, job.version);
            if error.is_damage() {
                reporter.report(ErrorKind::Corruption, object(), error.to_string());
            } else if let Some(tier) = failing {
                reporter.report(ErrorKind::TierFailed, format!("tier {tier}"), error.to_string());
            }
        }
        let settings = &self.parts.settings;
        // Where the tier as a whole fails it is left alone anyway, and when it works again, nothing waits for an hour.
        let longest =
            if failing.is_some() { settings.breaker_max.min(settings.backoff_max) } else { settings.backoff_max };
        let pause = pause_after(job.failures.saturating_add(1), settings.backoff_min, longest);
        let due_ms = self.parts.clock.now_ms() + pause.as_millis() as u64;
        let text = error.to_string();
        let postpone = self.parts.ledger.postpone_move(job.id, job.attempt, due_ms, Some(&text));
        if let Err(error) = self.timed("postpone a move", postpone).await {
            tracing::debug!(%error, id, "a move cannot be postponed, it is due when its claim ends");
        }
        match failing {
            Some(tier) if error.is_full() => self.full.on_failure(tier),
            // After the move was postponed: the answer may take longer than what is left of the claim.
            Some(tier) if matches!(error, MoveError::Source(_)) => self.suspect(tier).await,
            Some(tier) => self.breakers.on_failure(tier),
            None => {}
        }
        Outcome::Failed
    }
}

/// For metrics. A move from tier to tier goes out.
fn direction(job: &Move) -> &'static str {
    if job.to.is_some() { "out" } else { "in" }
}
