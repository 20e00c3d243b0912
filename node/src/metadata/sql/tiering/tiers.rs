//! Which cold tiers there are. Changes are made under the lock of all tiers, so that what was judged beside the others
//! still holds when it is written.

use holdfast_actors::ports::metadata::{MetadataError, MetadataResult};
use holdfast_actors::ports::tiering::TierRecord;
use holdfast_protocol::TierName;
use sqlx::AssertSqlSafe;

use super::super::store::boxed;
use super::super::{Backend, Fields, Locks, Session, SqlMetadataStore, values};
use crate::metadata::rows;

pub(super) const ALL_TIERS: &str = "SELECT name, settings, created_ms, revision FROM tiers ORDER BY name";

/// Whether the version that a row of `moves` is about is there, with the content that is to be moved.
const HAS_VERSION: &str = "EXISTS (SELECT 1 FROM objects o WHERE o.bucket = moves.bucket AND o.`key` = moves.`key` \
     AND o.version = moves.version AND o.content = moves.content) \
     OR EXISTS (SELECT 1 FROM history h WHERE h.bucket = moves.bucket AND h.`key` = moves.`key` \
     AND h.version = moves.version AND h.content = moves.content)";

/// Whether the version that a row of `moves` is about goes to a tier, named twice, when its restore is over.
const RETURNS_TO: &str = "EXISTS (SELECT 1 FROM objects o WHERE o.bucket = moves.bucket AND o.`key` = moves.`key` \
     AND o.version = moves.version AND o.class = ?) \
     OR EXISTS (SELECT 1 FROM history h WHERE h.bucket = moves.bucket AND h.`key` = moves.`key` \
     AND h.version = moves.version AND h.class = ?)";

const MISSING: MetadataError = MetadataError::NotFound("tier");

pub(super) fn tier_from_row(row: &impl Fields) -> MetadataResult<TierRecord> {
    Ok(TierRecord {
        name: rows::tier(row.text(0)?)?,
        settings: row.text(1)?.to_owned(),
        created_ms: rows::unsigned(row.number(2)?)?,
        revision: rows::unsigned(row.number(3)?)?,
    })
}

async fn tier<S: Session>(tx: &mut S, name: &TierName) -> MetadataResult<Option<TierRecord>> {
    let sql = "SELECT name, settings, created_ms, revision FROM tiers WHERE name = ?";
    let row = tx.fetch_optional(sql, values![name.as_str()]).await?;
    row.as_ref().map(tier_from_row).transpose()
}

async fn all<S: Session>(tx: &mut S) -> MetadataResult<Vec<TierRecord>> {
    tx.fetch(ALL_TIERS, Vec::new()).await?.iter().map(tier_from_row).collect()
}

/// Refuses what was judged by other tiers than those of now.
async fn check_judged<S: Session>(tx: &mut S, judged: Option<&[TierRecord]>) -> MetadataResult<()> {
    if let Some(judged) = judged
        && all(tx).await? != judged
    {
        return Err(MetadataError::PreconditionFailed);
    }
    Ok(())
}

pub(super) async fn add<S: Session>(tx: &mut S, new: &TierRecord, judged: Option<&[TierRecord]>) -> MetadataResult<()> {
    if tier(tx, &new.name).await?.is_some() {
        return Err(MetadataError::Exists("tier"));
    }
    check_judged(tx, judged).await?;
    let sql = "INSERT INTO tiers (name, settings, created_ms, revision) VALUES (?, ?, ?, ?)";
    let values = values![new.name.as_str(), &*new.settings, rows::signed(new.created_ms), rows::signed(new.revision)];
    tx.execute(sql, values).await.map(drop)
}

async fn change<S: Session>(
    tx: &mut S,
    (name, settings, judged): (&TierName, &str, Option<&[TierRecord]>),
    is_to_be_empty: bool,
) -> MetadataResult<TierRecord> {
    check_judged(tx, judged).await?;
    let sql = "UPDATE tiers SET settings = ?, revision = revision + 1 WHERE name = ?";
    tx.execute(sql, values![settings, name.as_str()]).await?;
    // They are due when their claims would have ended.
    let sql = "UPDATE moves SET owner = NULL WHERE lane = ? AND owner IS NOT NULL";
    tx.execute(sql, values![name.as_str()]).await?;
    // After that: a commit under one of those claims has ended, or will be refused.
    if is_to_be_empty {
        let sql = "SELECT 1 FROM contents WHERE tier = ? LIMIT 1";
        if tx.fetch_optional(sql, values![name.as_str()]).await?.is_some() {
            return Err(MetadataError::TierInUse);
        }
    }
    tier(tx, name).await?.ok_or(MISSING)
}

pub(super) async fn remove<S: Session>(tx: &mut S, name: &TierName) -> MetadataResult<()> {
    if tier(tx, name).await?.is_none() {
        return Err(MISSING);
    }
    // One statement, as what leaves one of the tables may stand in another one then.
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM contents WHERE tier = ?) OR EXISTS (SELECT 1 FROM tier_pieces WHERE tier = ?) \
         OR EXISTS (SELECT 1 FROM moves WHERE (lane = ? OR target = ?) AND (owner IS NOT NULL OR {HAS_VERSION})) \
         OR EXISTS (SELECT 1 FROM moves WHERE target IS NULL AND ({RETURNS_TO}))"
    );
    let name = name.as_str();
    let used = tx.fetch_optional(AssertSqlSafe(sql), values![name, name, name, name, name, name]).await?;
    if used.is_some_and(|row| !matches!(row.number(0), Ok(0))) {
        return Err(MetadataError::TierInUse);
    }
    // Their versions were overwritten or deleted before they were due.
    let sql = format!("DELETE FROM moves WHERE (lane = ? OR target = ?) AND owner IS NULL AND NOT ({HAS_VERSION})");
    tx.execute(AssertSqlSafe(sql), values![name, name]).await?;
    tx.execute("DELETE FROM tiers WHERE name = ?", values![name]).await.map(drop)
}

#[allow(private_bounds, reason = "the backends are this module's own")]
impl<B: Backend> SqlMetadataStore<B> {
    /// Replaces the settings of a tier.
    pub(super) async fn change_settings(
        &self,
        name: &TierName,
        settings: String,
        judged: Option<&[TierRecord]>,
        is_to_be_empty: bool,
    ) -> MetadataResult<TierRecord> {
        let given = (name.clone(), settings, judged.map(<[TierRecord]>::to_vec), is_to_be_empty);
        self.run(Locks::none().tiers().tier(name), given, |tx, given| {
            boxed(async move {
                let (name, settings, judged, is_to_be_empty) = &*given;
                change(tx, (name, settings.as_str(), judged.as_deref()), *is_to_be_empty).await
            })
        })
        .await
    }
}
