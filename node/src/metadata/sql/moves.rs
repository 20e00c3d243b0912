//! Moves of bytes between the cluster's disks and cold tiers: how one is asked for, and how it ends.
//!
//! A move has a row as long as it is wanted. Whoever asks for another one of the same version replaces that row, with
//! another number, so that who is at work on the old one is told that it is over. A version's row changes only here and
//! at the end of a move, by comparison with the content that was moved: overwrites, deletions and other moves win by
//! themselves.
//!
//! A change of the latest version gives it a new sequence number, as in [`super::versions`].

use holdfast_actors::domain::events::{EventDraft, EventOutcome};
use holdfast_actors::ports::metadata::{
    BucketId, ETag, MetadataError, MetadataResult, MoveQueued, MoveReason, MoveRequest, Restore, Versioning,
};
use holdfast_actors::ports::tiering::Move;
use holdfast_protocol::{ColdPlace, ContentId, TierName, VersionId};
use sqlx::AssertSqlSafe;

use super::key_ops::{Key, check_judged, version_values};
use super::versions::versioning_of;
use super::{Fields, Session, Shape, outbox, values};
use crate::metadata::rows;

mod commit;

pub(super) use commit::commit;

/// What a [`Move`] is read from.
pub(super) const MOVE_COLUMNS: &str = "id, bucket, `key`, version, content, lane, target, reason, keep_ms, queued_ms, due_ms, \
     attempt, owner, failures, error, COALESCE((SELECT b.name FROM buckets b WHERE b.id = moves.bucket), '')";

pub(super) fn move_from_row(row: &impl Fields) -> MetadataResult<Move> {
    let failures = row.number(13)?;
    Ok(Move {
        id: rows::unsigned(row.number(0)?)?,
        bucket: BucketId(rows::unsigned(row.number(1)?)?),
        bucket_name: row.text(15)?.to_owned(),
        key: rows::key(row.bytes(2)?.to_vec())?,
        version: rows::version_id(row.bytes(3)?)?,
        content: rows::content_id(row.bytes(4)?)?,
        lane: rows::tier(row.text(5)?)?,
        to: rows::class(row.text_or_null(6)?)?,
        reason: rows::reason(row.number(7)?, row.number_or_null(8)?)?,
        queued_ms: rows::unsigned(row.number(9)?)?,
        due_ms: rows::unsigned(row.number(10)?)?,
        attempt: rows::unsigned(row.number(11)?)?,
        owner: row.bytes_or_null(12)?.map(rows::node_id).transpose()?,
        failures: u32::try_from(failures).map_err(|_| MetadataError::Corrupt(format!("{failures} failures")))?,
        error: row.text_or_null(14)?.map(str::to_owned),
    })
}

/// A move to be queued.
pub(super) struct NewMove<'a> {
    pub(super) place: Key<'a>,
    pub(super) version: VersionId,
    pub(super) content: ContentId,
    pub(super) lane: TierName,
    pub(super) to: Option<TierName>,
    pub(super) reason: MoveReason,
    pub(super) queued_ms: u64,
    pub(super) due_ms: u64,
}

/// Queues moves in the place of those that their versions had.
pub(super) async fn queue<S: Session>(tx: &mut S, new: &[NewMove<'_>]) -> MetadataResult<()> {
    tx.execute_many(Shape::QueueMoves, &[], new, |new| {
        let (bucket, key) = new.place;
        let (reason, keep_ms) = rows::reason_code(new.reason);
        values![
            rows::signed(bucket.0),
            key.as_bytes(),
            new.version.as_bytes(),
            new.content.as_bytes(),
            new.lane.as_str(),
            new.to.as_ref().map(TierName::as_str),
            reason,
            keep_ms,
            rows::signed(new.queued_ms),
            rows::signed(new.due_ms),
        ]
    })
    .await
}

/// A version that is an object, as far as moves ask for it.
struct Found {
    /// Which table holds it.
    is_current: bool,
    version: VersionId,
    content: ContentId,
    class: Option<TierName>,
    restore: Option<Restore>,
    /// Where its bytes are.
    lies_in: Option<TierName>,
    size_bytes: u64,
    etag: ETag,
}

/// What becomes of a version.
struct Change<'a> {
    content: ContentId,
    class: Option<&'a TierName>,
    restore: Option<Restore>,
}

async fn find<S: Session>(tx: &mut S, place: Key<'_>, version: Option<VersionId>) -> MetadataResult<Option<Found>> {
    let of = |table: &str, is_current: u8, more: &str| {
        format!(
            "SELECT o.version, {is_current}, o.content, o.class, o.restore_ms, c.tier, c.size_bytes, c.etag_md5, c.etag_parts \
             FROM {table} o LEFT JOIN contents c ON c.id = o.content WHERE o.bucket = ? AND o.key = ?{more}"
        )
    };
    let (sql, values) = match version {
        None => (of("objects", 1, ""), values![rows::signed(place.0.0), place.1.as_bytes()]),
        Some(version) => {
            let named = " AND o.version = ?";
            let mut values = version_values(place, version);
            values.extend(values.clone());
            (format!("{} UNION ALL {}", of("objects", 1, named), of("history", 0, named)), values)
        }
    };
    let row = tx.fetch_optional(AssertSqlSafe(sql), values).await?;
    let Some(row) = row else { return Ok(None) };
    // Delete markers have none.
    let Some(content) = row.bytes_or_null(2)?.map(rows::content_id).transpose()? else { return Ok(None) };
    let etag = row.bytes_or_null(7)?;
    let etag = etag.ok_or_else(|| MetadataError::Corrupt(format!("content {content} of an object is missing")))?;
    Ok(Some(Found {
        is_current: row.number(1)? != 0,
        version: rows::version_id(row.bytes(0)?)?,
        content,
        class: rows::class(row.text_or_null(3)?)?,
        restore: rows::restore(row.number_or_null(4)?)?,
        lies_in: rows::class(row.text_or_null(5)?)?,
        size_bytes: rows::unsigned(row.number(6)?)?,
        etag: rows::etag(etag, row.number_or_null(8)?)?,
    }))
}

/// The move that waits for a version.
async fn waiting<S: Session>(tx: &mut S, place: Key<'_>, version: VersionId) -> MetadataResult<Option<Move>> {
    let sql = format!(
        "SELECT {MOVE_COLUMNS} FROM moves WHERE bucket = ? AND `key` = ? AND version = ?{}",
        S::DIALECT.for_update()
    );
    let row = tx.fetch_optional(AssertSqlSafe(sql), version_values(place, version)).await?;
    row.as_ref().map(move_from_row).transpose()
}

async fn forget<S: Session>(tx: &mut S, id: u64) -> MetadataResult<()> {
    tx.execute("DELETE FROM moves WHERE id = ?", values![rows::signed(id)]).await.map(drop)
}

/// What an attempt that is over has stored may be deleted at once, unless that was begun: no commit takes it off the
/// list any more. It stays unsure, and so is deleted once more after the grace: a request that was sent may take effect
/// until then.
pub(super) async fn release_pieces<S: Session>(tx: &mut S, attempt: u64) -> MetadataResult<()> {
    let sql = "UPDATE tier_pieces SET due_ms = 0 WHERE attempt = ? AND claimed = 0";
    tx.execute(sql, values![rows::signed(attempt)]).await.map(drop)
}

/// Takes the pieces of a content that comes with its place, not by a move, off the list of what is to be deleted: on
/// top of a dump that was put back, they are those of an attempt that was under way when it was made, and was committed
/// since.
pub(super) async fn keep_pieces<S: Session>(tx: &mut S, place: &ColdPlace) -> MetadataResult<()> {
    let head = values![place.tier.as_str()];
    tx.execute_many(Shape::KeepPieces, &head, &place.names, |name| values![name.as_str()]).await
}

async fn change<S: Session>(tx: &mut S, place: Key<'_>, found: &Found, change: Change<'_>) -> MetadataResult<()> {
    let mut values =
        values![change.content.as_bytes(), change.class.map(TierName::as_str), rows::restore_code(change.restore),];
    let sql = if found.is_current {
        values.push(tx.take_sequence().into());
        "UPDATE objects SET content = ?, class = ?, restore_ms = ?, sequence = ? \
         WHERE bucket = ? AND `key` = ? AND version = ?"
    } else {
        "UPDATE history SET content = ?, class = ?, restore_ms = ? WHERE bucket = ? AND `key` = ? AND version = ?"
    };
    values.extend(version_values(place, found.version));
    tx.execute(sql, values).await.map(drop)
}

async fn tell<S: Session>(
    tx: &mut S,
    (bucket, key): Key<'_>,
    found: &Found,
    event: Option<&EventDraft>,
    now_ms: u64,
) -> MetadataResult<()> {
    if event.is_none() {
        return Ok(());
    }
    let (version, etag) = (found.version.to_string(), found.etag.to_string());
    let outcome = EventOutcome {
        key,
        version: (versioning_of(tx, bucket).await? != Versioning::Unversioned).then_some(&*version),
        content: Some((found.size_bytes, &etag)),
        made_marker: false,
        now_ms,
    };
    let row = outbox::row_of(tx, event, &outcome)?;
    outbox::insert(tx, row.as_slice()).await
}

pub(super) async fn request<S: Session>(tx: &mut S, request: &MoveRequest) -> MetadataResult<MoveQueued> {
    let place: Key<'_> = (request.bucket, &request.key);
    let missing = || if request.version.is_some() { MetadataError::NoSuchVersion } else { MetadataError::NoSuchKey };
    let found = find(tx, place, request.version).await?.ok_or_else(missing)?;
    if let Some(only_if) = &request.only_if {
        check_judged(tx, place, request.version, only_if).await?;
    }
    let before = waiting(tx, place, found.version).await?;
    match request.reason {
        MoveReason::Restore { keep_ms } => request_restore(tx, request, &found, before, keep_ms).await,
        MoveReason::Lifecycle | MoveReason::Command | MoveReason::Stored | MoveReason::Return => {
            request_class(tx, request, &found, before).await
        }
    }
}

/// Makes a move that failed due.
async fn try_now<S: Session>(tx: &mut S, waiting: &Move, now_ms: u64) -> MetadataResult<()> {
    if waiting.failures > 0 && waiting.owner.is_none() && waiting.due_ms > now_ms {
        let sql = "UPDATE moves SET due_ms = ? WHERE id = ?";
        tx.execute(sql, values![rows::signed(now_ms), rows::signed(waiting.id)]).await?;
    }
    Ok(())
}

/// A request for another class.
async fn request_class<S: Session>(
    tx: &mut S,
    request: &MoveRequest,
    found: &Found,
    before: Option<Move>,
) -> MetadataResult<MoveQueued> {
    let (place, content): (Key<'_>, _) = ((request.bucket, &request.key), found.content);
    let is_restored = match found.restore {
        Some(Restore::Ongoing) => true,
        Some(Restore::Until(until_ms)) => until_ms > request.now_ms,
        None => false,
    };
    if is_restored && request.reason == MoveReason::Lifecycle {
        // Somebody wants it on the cluster's disks until then. The end of the restore has rules look at it again.
        return Ok(MoveQueued::Ongoing);
    }
    let Some(lane) = request.to.as_ref().or(found.lies_in.as_ref()).filter(|_| request.to != found.lies_in) else {
        let before = before.map(|before| (before.id, before.content == content && is_restore(before.reason)));
        // A restore that is under way is not what somebody changed his mind about. One that is over lies where it is to
        // stay.
        let restore = found.restore.filter(|_| matches!(before, Some((_, true))));
        if found.class != request.to || found.restore != restore {
            change(tx, place, found, Change { content, class: request.to.as_ref(), restore }).await?;
        }
        if let Some((id, false)) = before {
            forget(tx, id).await?;
        }
        return Ok(MoveQueued::InPlace);
    };
    if let Some(before) = before
        && before.content == content
        && before.to == request.to
        && changes_class(before.reason)
    {
        try_now(tx, &before, request.now_ms).await?;
        return Ok(MoveQueued::Waiting);
    }
    if found.restore == Some(Restore::Ongoing) {
        // Its move is given up.
        change(tx, place, found, Change { content, class: found.class.as_ref(), restore: None }).await?;
    }
    let new = NewMove {
        place,
        version: found.version,
        content,
        lane: lane.clone(),
        to: request.to.clone(),
        reason: request.reason,
        queued_ms: request.now_ms,
        due_ms: request.now_ms,
    };
    queue(tx, &[new]).await?;
    Ok(MoveQueued::Queued)
}

/// A request for a cold version to lie on the cluster's disks for a while. A version has one move, so a change of class
/// that waits ends here, but is not forgotten: the class is the wanted one from now on, and the end of the restore
/// leads there. One to the cluster's disks goes on, as it does all that is asked for.
async fn request_restore<S: Session>(
    tx: &mut S,
    request: &MoveRequest,
    found: &Found,
    before: Option<Move>,
    keep_ms: u64,
) -> MetadataResult<MoveQueued> {
    let place: Key<'_> = (request.bucket, &request.key);
    let class = found.class.as_ref().ok_or(MetadataError::NotCold)?;
    let before = before.filter(|before| before.content == found.content);
    let class = match &before {
        Some(change) if changes_class(change.reason) => match &change.to {
            Some(wanted) => wanted,
            None => {
                try_now(tx, change, request.now_ms).await?;
                return Ok(MoveQueued::Ongoing);
            }
        },
        _ => class,
    };
    let (version, content, queued_ms) = (found.version, found.content, request.now_ms);
    let Some(tier) = &found.lies_in else {
        let until_ms = request.now_ms.saturating_add(keep_ms);
        let restore = Some(Restore::Until(until_ms));
        change(tx, place, found, Change { content, class: Some(class), restore }).await?;
        let (lane, to) = (class.clone(), Some(class.clone()));
        let reason = MoveReason::Return;
        queue(tx, &[NewMove { place, version, content, lane, to, reason, queued_ms, due_ms: until_ms }]).await?;
        return Ok(MoveQueued::Extended);
    };
    if before.as_ref().is_some_and(|before| is_restore(before.reason)) {
        return Ok(MoveQueued::Ongoing);
    }
    change(tx, place, found, Change { content, class: Some(class), restore: Some(Restore::Ongoing) }).await?;
    let (lane, reason) = (tier.clone(), request.reason);
    queue(tx, &[NewMove { place, version, content, lane, to: None, reason, queued_ms, due_ms: queued_ms }]).await?;
    tell(tx, place, found, request.event.as_ref(), request.now_ms).await?;
    Ok(MoveQueued::Queued)
}

fn is_restore(reason: MoveReason) -> bool {
    matches!(reason, MoveReason::Restore { .. })
}

fn changes_class(reason: MoveReason) -> bool {
    matches!(reason, MoveReason::Stored | MoveReason::Lifecycle | MoveReason::Command)
}

/// A move that is claimed by this very attempt; it stays so until the commit.
///
/// # Errors
/// `Superseded`.
pub(super) async fn claimed<S: Session>(tx: &mut S, id: u64, attempt: u64) -> MetadataResult<Move> {
    let sql = format!("SELECT {MOVE_COLUMNS} FROM moves WHERE id = ?{}", S::DIALECT.for_update());
    let row = tx.fetch_optional(AssertSqlSafe(sql), values![rows::signed(id)]).await?;
    let claimed = row.as_ref().map(move_from_row).transpose()?;
    claimed.filter(|found| found.attempt == attempt && found.owner.is_some()).ok_or(MetadataError::Superseded)
}
