//! The end of a move, in one transaction: the version's content is exchanged if it is the one that was moved, and all
//! that follows from that.

use holdfast_actors::ports::metadata::{
    CommitMove, Content, MetadataError, MetadataResult, MoveEnd, MoveReason, Moved, ReplicaEvidence, Restore,
};
use holdfast_actors::ports::tiering::Move;
use holdfast_protocol::{ColdPlace, ContentId, TierName};
use sqlx::AssertSqlSafe;

use super::{Change, change, claimed, find, forget, release_pieces, tell};
use crate::metadata::rows;
use crate::metadata::sql::key_ops::{Key, dereference, insert_contents};
use crate::metadata::sql::{Fields as _, Session, lifecycle, replicas, values};

pub(in crate::metadata::sql) async fn commit<S: Session>(tx: &mut S, commit: &CommitMove) -> MetadataResult<MoveEnd> {
    let place: Key<'_> = (commit.bucket, &commit.key);
    let job = claimed(tx, commit.id, commit.attempt).await?;
    if (job.bucket, &job.key, job.version) != (commit.bucket, &commit.key, commit.version) {
        return Err(MetadataError::Superseded);
    }
    let found = find(tx, place, Some(commit.version)).await?;
    let Some(found) = found.filter(|found| found.content == commit.from && job.content == commit.from) else {
        forget(tx, job.id).await?;
        release_pieces(tx, commit.attempt).await?;
        return Ok(MoveEnd::Overtaken);
    };
    let content = match &commit.moved {
        Moved::To { content, evidence } => {
            store(tx, &job, content, evidence, commit.now_ms).await?;
            content.id
        }
        Moved::Nowhere if found.size_bytes == 0 || found.lies_in == job.to => found.content,
        Moved::Nowhere => return Err(MetadataError::Corrupt("a move ended where it began".to_owned())),
    };
    let (class, restore) = match job.reason {
        MoveReason::Stored | MoveReason::Lifecycle | MoveReason::Command => (job.to.as_ref(), None),
        MoveReason::Restore { keep_ms } => {
            let until_ms = commit.now_ms.saturating_add(keep_ms);
            (found.class.as_ref(), found.class.as_ref().map(|_| Restore::Until(until_ms)))
        }
        MoveReason::Return => (found.class.as_ref(), None),
    };
    change(tx, place, &found, Change { content, class, restore }).await?;
    if content != found.content {
        dereference(tx, &[found.content], commit.now_ms).await?;
    }
    match (restore, class) {
        (Some(Restore::Until(until_ms)), Some(class)) => {
            queue_return(tx, &job, content, class, commit.now_ms, until_ms).await?;
        }
        _ => forget(tx, job.id).await?,
    }
    if job.reason == MoveReason::Return {
        // Rules left it alone while it was restored.
        lifecycle::queue_recheck(tx, commit.bucket, &commit.key, (!found.is_current).then_some(found.version)).await?;
    }
    tell(tx, place, &found, commit.event.as_ref(), commit.now_ms).await?;
    Ok(MoveEnd::Done)
}

/// Makes a move of a restore the one that leads back.
async fn queue_return<S: Session>(
    tx: &mut S,
    job: &Move,
    content: ContentId,
    class: &TierName,
    now_ms: u64,
    until_ms: u64,
) -> MetadataResult<()> {
    let (reason, keep_ms) = rows::reason_code(MoveReason::Return);
    let sql = "UPDATE moves SET content = ?, lane = ?, target = ?, reason = ?, keep_ms = ?, queued_ms = ?, due_ms = ?, \
         attempt = 0, owner = NULL, failures = 0, error = NULL WHERE id = ?";
    let values = values![
        content.as_bytes(),
        class.as_str(),
        class.as_str(),
        reason,
        keep_ms,
        rows::signed(now_ms),
        rows::signed(until_ms),
        rows::signed(job.id),
    ];
    tx.execute(sql, values).await.map(drop)
}

/// Makes a content known that a move has made.
async fn store<S: Session>(
    tx: &mut S,
    job: &Move,
    content: &Content,
    evidence: &ReplicaEvidence,
    now_ms: u64,
) -> MetadataResult<()> {
    if content.cold().map(|place| &place.tier) != job.to.as_ref() {
        return Err(MetadataError::Corrupt("a move ended in another place than was asked for".to_owned()));
    }
    if replicas::is_condemned(tx, content.id).await? {
        return Err(MetadataError::Condemned);
    }
    let epochs = replicas::load_epochs(tx, &[evidence]).await?;
    rows::check_epochs(evidence, &epochs)?;
    if let Some(place) = content.cold() {
        take_pieces(tx, job.attempt, place).await?;
    }
    insert_contents(tx, &[content]).await?;
    let missed: Vec<_> = evidence.missed.iter().map(|(chunk, node)| (*chunk, *node, now_ms)).collect();
    replicas::queue_repairs(tx, &missed).await
}

/// Takes the pieces of an attempt, all of them and no others, off the list of what is to be deleted.
async fn take_pieces<S: Session>(tx: &mut S, attempt: u64, place: &ColdPlace) -> MetadataResult<()> {
    let attempt = rows::signed(attempt);
    let sql = format!("SELECT tier, name, claimed FROM tier_pieces WHERE attempt = ?{}", S::DIALECT.for_update());
    let found = tx.fetch(AssertSqlSafe(sql), values![attempt]).await?;
    let mut reserved = Vec::with_capacity(found.len());
    for row in &found {
        if row.number(2)? != 0 || row.text(0)? != place.tier.as_str() {
            return Err(MetadataError::Superseded);
        }
        reserved.push(row.text(1)?);
    }
    let mut wanted: Vec<&str> = place.names.iter().map(String::as_str).collect();
    reserved.sort_unstable();
    wanted.sort_unstable();
    if reserved != wanted {
        return Err(MetadataError::Superseded);
    }
    tx.execute("DELETE FROM tier_pieces WHERE attempt = ?", values![attempt]).await.map(drop)
}
