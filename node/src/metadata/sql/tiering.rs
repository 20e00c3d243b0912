//! The ledger of cold tiers: which there are, the queue of moves, and the pieces that tiers are to delete.
//!
//! What is given out is given out under a lock of its lane or tier, and for a while. Attempt numbers are sequence
//! numbers: each is given once, and of one lane they rise.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use holdfast_actors::ports::journal::cut;
use holdfast_actors::ports::metadata::{Content, MetadataError, MetadataResult, MoveReason};
use holdfast_actors::ports::tiering::{Claim, DuePiece, LaneBacklog, Move, TierLedger, TierRecord, TierUsage};
use holdfast_actors::ports::tiers::PieceName;
use holdfast_protocol::{ContentId, TierName};
use sqlx::AssertSqlSafe;

use super::moves::{MOVE_COLUMNS, claimed, move_from_row, release_pieces};
use super::reads::{Cold, content_from_row};
use super::store::boxed;
use super::{Backend, Dialect, Done, Fields, Locks, Reader, Session, Shape, SqlMetadataStore, Value, values};
use crate::metadata::rows;

mod pieces;
mod tiers;

use pieces::{due_pieces, finish_pieces};
use tiers::{ALL_TIERS, add, remove, tier_from_row};

/// The longest error that is kept of a move.
const ERROR_BYTES_MAX: usize = 1024;
/// Moves that are given out at once: each takes a sequence number of the transaction.
const CLAIMED_MAX: u32 = 1000;
/// Moves that are made due in one transaction.
const RETRIED_MAX: i64 = 1000;
/// Nothing but the end of a restore is so far away: claims take an hour at most, pauses and graces hours. What seems so
/// was written by a clock that was ahead.
const FAR_MS: u64 = 7 * 24 * 3_600_000;
/// What is given out: its table, the column with the tier, and the index in order of time.
const MOVES: [&str; 3] = ["moves", "lane", "moves_by_due"];
const PIECES: [&str; 3] = ["tier_pieces", "tier", "tier_pieces_by_due"];

/// The statement that finds what a claim is after, those that wait longest first.
fn due_moves(dialect: Dialect, lane: &TierName, claim: Claim, limit: u32) -> (String, Vec<Value>) {
    let (mut values, mut but) = (values![lane.as_str(), rows::signed(claim.now_ms)], "");
    if claim.spares_restored {
        values.push(rows::reason_code(MoveReason::Return).0.into());
        but = "AND reason <> ? ";
    }
    let back = if claim.to_cluster_only { "AND target IS NULL " } else { "" };
    values.push(i64::from(limit.min(CLAIMED_MAX)).into());
    let sql = format!(
        "SELECT {MOVE_COLUMNS} FROM moves {} WHERE lane = ? AND due_ms <= ? {but}{back}ORDER BY due_ms, id LIMIT ?",
        dialect.by_index("moves_by_due")
    );
    (sql, values)
}

async fn claim_moves<S: Session>(tx: &mut S, lane: &TierName, claim: Claim, limit: u32) -> MetadataResult<Vec<Move>> {
    let (sql, values) = due_moves(S::DIALECT, lane, claim, limit);
    let found = tx.fetch(AssertSqlSafe(sql), values).await?;
    let found: Vec<Move> = found.iter().map(move_from_row).collect::<MetadataResult<_>>()?;
    give_out(tx, &found, claim).await
}

/// Gives out moves, but for those that became others since they were read.
async fn give_out<S: Session>(tx: &mut S, found: &[Move], claim: Claim) -> MetadataResult<Vec<Move>> {
    let mut claims = Vec::with_capacity(found.len());
    for before in found {
        let attempt = tx.take_sequence();
        // Somebody may have replaced or changed it since it was read.
        let sql = "UPDATE moves SET attempt = ?, owner = ?, due_ms = ? WHERE id = ? AND attempt = ? AND due_ms = ?";
        let values = values![
            attempt,
            claim.owner.as_bytes(),
            rows::signed(claim.until_ms),
            rows::signed(before.id),
            rows::signed(before.attempt),
            rows::signed(before.due_ms),
        ];
        if tx.execute(sql, values).await?.rows_affected == 1 {
            let attempt = rows::unsigned(attempt)?;
            claims.push(Move { attempt, owner: Some(claim.owner), due_ms: claim.until_ms, ..before.clone() });
        }
    }
    Ok(claims)
}

/// Whether something of a lane or tier is due. Asked before the transaction that gives it out: every node looks every
/// few seconds, nearly always for nothing, and those transactions wait for each other.
async fn is_any_due<R: Reader>(
    reads: &R,
    [table, column, index]: [&str; 3],
    name: &TierName,
    now_ms: u64,
) -> MetadataResult<bool> {
    let index = R::DIALECT.by_index(index);
    let sql = format!("SELECT 1 FROM {table} {index} WHERE {column} = ? AND due_ms <= ? LIMIT 1");
    let found = reads.fetch_optional(AssertSqlSafe(sql), values![name.as_str(), rows::signed(now_ms)]).await?;
    Ok(found.is_some())
}

/// Whether a change of a claimed move found it.
fn still_claimed(done: Done) -> MetadataResult<()> {
    if done.rows_affected == 0 { Err(MetadataError::Superseded) } else { Ok(()) }
}

async fn postpone<S: Session>(
    tx: &mut S,
    (id, attempt): (u64, u64),
    due_ms: u64,
    error: Option<&str>,
) -> MetadataResult<()> {
    let mut values = values![rows::signed(due_ms)];
    let failed = match error {
        Some(error) => {
            values.push(cut(error, ERROR_BYTES_MAX).into());
            ", failures = failures + 1, error = ?"
        }
        None => "",
    };
    let sql =
        format!("UPDATE moves SET owner = NULL, due_ms = ?{failed} WHERE id = ? AND attempt = ? AND owner IS NOT NULL");
    values.extend(values![rows::signed(id), rows::signed(attempt)]);
    still_claimed(tx.execute(AssertSqlSafe(sql), values).await?)?;
    release_pieces(tx, attempt).await
}

/// Makes moves due that failed, or that a clock which was ahead put off; a bounded number of them. Returns how many.
async fn retry_some<S: Session>(tx: &mut S, lane: &TierName, now_ms: u64) -> MetadataResult<u64> {
    const WAIT: &str = "lane = ? AND due_ms > ? AND (owner IS NULL AND failures > 0 \
         OR due_ms > ? AND (owner IS NOT NULL OR reason <> ?)) LIMIT ?";
    // SQLite has no LIMIT for UPDATE. By a subquery MariaDB would look at, and lock, the moves of all lanes.
    let sql = match S::DIALECT {
        Dialect::Sqlite => {
            format!("UPDATE moves SET due_ms = ? WHERE id IN (SELECT id FROM moves WHERE {WAIT})")
        }
        Dialect::Mysql => format!("UPDATE moves SET due_ms = ? WHERE {WAIT}"),
    };
    let (now, far) = (rows::signed(now_ms), rows::signed(now_ms.saturating_add(FAR_MS)));
    let (returns, _) = rows::reason_code(MoveReason::Return);
    let lane = lane.as_str();
    let done = tx.execute(AssertSqlSafe(sql), values![now, lane, now, far, returns, RETRIED_MAX]).await?;
    let sql = "UPDATE tier_pieces SET due_ms = ? WHERE tier = ? AND due_ms > ?";
    tx.execute(sql, values![now, lane, far]).await?;
    Ok(done.rows_affected)
}

#[async_trait]
#[allow(private_bounds, reason = "the backends are this module's own")]
impl<B: Backend> TierLedger for SqlMetadataStore<B> {
    async fn tiers(&self) -> MetadataResult<Vec<TierRecord>> {
        self.backend.reads().fetch(ALL_TIERS, Vec::new()).await?.iter().map(tier_from_row).collect()
    }

    async fn add_tier(
        &self,
        name: TierName,
        settings: String,
        now_ms: u64,
        judged: Option<&[TierRecord]>,
    ) -> MetadataResult<TierRecord> {
        let locks = Locks::none().tiers().tier(&name);
        let record = TierRecord { name, settings, created_ms: now_ms, revision: 1 };
        let given = (record.clone(), judged.map(<[TierRecord]>::to_vec));
        let added =
            self.run(locks, given, |tx, given| boxed(async move { add(tx, &given.0, given.1.as_deref()).await }));
        added.await.map(|()| record)
    }

    async fn change_tier(
        &self,
        name: &TierName,
        settings: String,
        judged: Option<&[TierRecord]>,
    ) -> MetadataResult<TierRecord> {
        self.change_settings(name, settings, judged, false).await
    }

    async fn change_empty_tier(
        &self,
        name: &TierName,
        settings: String,
        judged: Option<&[TierRecord]>,
    ) -> MetadataResult<TierRecord> {
        self.change_settings(name, settings, judged, true).await
    }

    async fn remove_tier(&self, name: &TierName) -> MetadataResult<()> {
        let (locks, name) = (Locks::none().tiers().tier(name), name.clone());
        self.backend
            .write(locks, move |tx| {
                let name = name.clone();
                boxed(async move { remove(tx, &name).await })
            })
            .await
    }

    async fn tier_usage(&self) -> MetadataResult<Vec<TierUsage>> {
        let mut usage = BTreeMap::new();
        let none = |tier: &TierName| TierUsage { tier: tier.clone(), contents: 0, size_bytes: 0, pieces_to_delete: 0 };
        for record in self.tiers().await? {
            usage.insert(record.name.clone(), none(&record.name));
        }
        let sql =
            "SELECT tier, COUNT(*), CAST(SUM(size_bytes) AS SIGNED) FROM contents WHERE tier IS NOT NULL GROUP BY tier";
        for row in self.backend.reads().fetch(sql, Vec::new()).await? {
            let tier = rows::tier(row.text(0)?)?;
            let of = usage.entry(tier.clone()).or_insert_with(|| none(&tier));
            of.contents = rows::unsigned(row.number(1)?)?;
            of.size_bytes = rows::unsigned(row.number(2)?)?;
        }
        let sql = "SELECT tier, COUNT(*) FROM tier_pieces GROUP BY tier";
        for row in self.backend.reads().fetch(sql, Vec::new()).await? {
            let tier = rows::tier(row.text(0)?)?;
            usage.entry(tier.clone()).or_insert_with(|| none(&tier)).pieces_to_delete = rows::unsigned(row.number(1)?)?;
        }
        Ok(usage.into_values().collect())
    }

    async fn cold_contents(
        &self,
        tier: &TierName,
        after: Option<ContentId>,
        limit: u32,
    ) -> MetadataResult<Vec<Arc<Content>>> {
        let sql = format!(
            "SELECT id, manifest, etag_md5, etag_parts, checksum, parts, tier, cold FROM contents {} \
             WHERE tier = ? AND id > ? ORDER BY id LIMIT ?",
            B::Reads::DIALECT.by_index("contents_by_tier")
        );
        // Before all ids is the empty one.
        let after = after.map_or_else(Vec::new, |after| after.as_bytes().to_vec());
        let found = self.backend.reads().fetch(AssertSqlSafe(sql), values![tier.as_str(), after, i64::from(limit)]);
        let content = |row| content_from_row(row, rows::content_id(Fields::bytes(row, 0)?)?, 1, Cold::Loaded);
        found.await?.iter().map(|row| content(row).map(Arc::new)).collect()
    }

    async fn claim_moves(&self, lane: &TierName, claim: Claim, limit: u32) -> MetadataResult<Vec<Move>> {
        if claim.to_cluster_only {
            // There may be few or none among very many that wait for room: no transaction waits for the search.
            let (sql, values) = due_moves(B::Reads::DIALECT, lane, claim, limit);
            let found = self.backend.reads().fetch(AssertSqlSafe(sql), values).await?;
            let found: Arc<[Move]> = found.iter().map(move_from_row).collect::<MetadataResult<_>>()?;
            if found.is_empty() {
                return Ok(Vec::new());
            }
            return self
                .backend
                .write(Locks::none().lane(lane), move |tx| {
                    let found = found.clone();
                    boxed(async move { give_out(tx, &found, claim).await })
                })
                .await;
        }
        if !is_any_due(self.backend.reads(), MOVES, lane, claim.now_ms).await? {
            return Ok(Vec::new());
        }
        let (locks, lane) = (Locks::none().lane(lane), lane.clone());
        self.backend
            .write(locks, move |tx| {
                let lane = lane.clone();
                boxed(async move { claim_moves(tx, &lane, claim, limit).await })
            })
            .await
    }

    async fn renew_move(&self, id: u64, attempt: u64, until_ms: u64, pieces_until_ms: u64) -> MetadataResult<()> {
        self.backend
            .write(Locks::none(), move |tx| {
                boxed(async move {
                    let attempt = rows::signed(attempt);
                    let sql = "UPDATE moves SET due_ms = ? WHERE id = ? AND attempt = ? AND owner IS NOT NULL";
                    still_claimed(tx.execute(sql, values![rows::signed(until_ms), rows::signed(id), attempt]).await?)?;
                    let sql = "UPDATE tier_pieces SET due_ms = ? WHERE attempt = ? AND claimed = 0";
                    tx.execute(sql, values![rows::signed(pieces_until_ms), attempt]).await.map(drop)
                })
            })
            .await
    }

    async fn postpone_move(&self, id: u64, attempt: u64, due_ms: u64, error: Option<&str>) -> MetadataResult<()> {
        let error: Option<Arc<str>> = error.map(Into::into);
        self.backend
            .write(Locks::none(), move |tx| {
                let error = error.clone();
                boxed(async move { postpone(tx, (id, attempt), due_ms, error.as_deref()).await })
            })
            .await
    }

    async fn drop_move(&self, id: u64, attempt: u64) -> MetadataResult<()> {
        self.backend
            .write(Locks::none(), move |tx| {
                boxed(async move {
                    let sql = "DELETE FROM moves WHERE id = ? AND attempt = ? AND owner IS NOT NULL";
                    still_claimed(tx.execute(sql, values![rows::signed(id), rows::signed(attempt)]).await?)?;
                    release_pieces(tx, attempt).await
                })
            })
            .await
    }

    async fn moves(&self, lane: Option<&TierName>, after: u64, limit: u32) -> MetadataResult<Vec<Move>> {
        let (mut values, mut of_lane) = (values![rows::signed(after)], "");
        if let Some(lane) = lane {
            values.push(lane.as_str().into());
            of_lane = "AND lane = ? ";
        }
        values.push(i64::from(limit).into());
        let sql = format!("SELECT {MOVE_COLUMNS} FROM moves WHERE id > ? {of_lane}ORDER BY id LIMIT ?");
        self.backend.reads().fetch(AssertSqlSafe(sql), values).await?.iter().map(move_from_row).collect()
    }

    async fn move_backlog(&self, now_ms: u64) -> MetadataResult<Vec<LaneBacklog>> {
        let sql = "SELECT lane, COUNT(*), \
             CAST(SUM(CASE WHEN owner IS NOT NULL OR due_ms <= ? THEN 1 ELSE 0 END) AS SIGNED), \
             CAST(SUM(CASE WHEN failures > 0 THEN 1 ELSE 0 END) AS SIGNED), \
             MIN(CASE WHEN due_ms <= ? THEN due_ms END) FROM moves GROUP BY lane ORDER BY lane";
        let now = rows::signed(now_ms);
        let backlog = |row: &<B::Reads as Reader>::Row| {
            Ok(LaneBacklog {
                lane: rows::tier(row.text(0)?)?,
                waiting: rows::unsigned(row.number(1)?)?,
                due: rows::unsigned(row.number(2)?)?,
                failing: rows::unsigned(row.number(3)?)?,
                oldest_due_ms: row.number_or_null(4)?.map(rows::unsigned).transpose()?,
            })
        };
        self.backend.reads().fetch(sql, values![now, now]).await?.iter().map(backlog).collect()
    }

    async fn retry_moves(&self, lane: &TierName, now_ms: u64) -> MetadataResult<u64> {
        let mut retried = 0;
        loop {
            let lane = lane.clone();
            let done = self.backend.write(Locks::none(), move |tx| {
                let lane = lane.clone();
                boxed(async move { retry_some(tx, &lane, now_ms).await })
            });
            let done = done.await?;
            retried += done;
            if done == 0 {
                return Ok(retried);
            }
        }
    }

    async fn reserve_pieces(
        &self,
        id: u64,
        attempt: u64,
        tier: &TierName,
        names: &[PieceName],
        due_ms: u64,
    ) -> MetadataResult<()> {
        let owned = Arc::new((tier.clone(), names.to_vec()));
        self.backend
            .write(Locks::none(), move |tx| {
                let owned = owned.clone();
                boxed(async move {
                    let (tier, names) = &*owned;
                    claimed(tx, id, attempt).await?;
                    tx.execute_many(Shape::InsertPieces, &[], names, |name| {
                        values![tier.as_str(), name.as_str(), rows::signed(attempt), rows::signed(due_ms), 1_i64]
                    })
                    .await
                })
            })
            .await
    }

    async fn due_pieces(
        &self,
        tier: &TierName,
        now_ms: u64,
        again_ms: u64,
        limit: u32,
    ) -> MetadataResult<Vec<DuePiece>> {
        if !is_any_due(self.backend.reads(), PIECES, tier, now_ms).await? {
            return Ok(Vec::new());
        }
        let (locks, tier) = (Locks::none().pieces(tier), tier.clone());
        self.backend
            .write(locks, move |tx| {
                let tier = tier.clone();
                boxed(async move { due_pieces(tx, &tier, now_ms, again_ms, limit).await })
            })
            .await
    }

    async fn finish_pieces(&self, pieces: &[DuePiece], again_ms: u64) -> MetadataResult<()> {
        let pieces: Arc<[DuePiece]> = pieces.into();
        self.backend
            .write(Locks::none(), move |tx| {
                let pieces = pieces.clone();
                boxed(async move { finish_pieces(tx, &pieces, again_ms).await })
            })
            .await
    }
}
