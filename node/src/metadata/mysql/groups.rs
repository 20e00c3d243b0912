//! Operations on keys that wait together share a transaction, and so one flush of the server's log.
//!
//! A few transactions run at once; while they do, what comes in waits and becomes the next ones. So a lone PUT waits
//! for nobody, and many of them cost few commits. The queue is bounded: beyond it callers get `Busy` at once.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use holdfast_actors::ports::metadata::{BucketId, MetadataError, MetadataResult};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::pool::Pool;
use super::tx::transaction_until;
use crate::metadata::sql::Locks;
use crate::metadata::sql::key_ops::{KeyDone, KeyOp, run_group};
use crate::metadata::sql::shapes::ROWS_MAX;
use crate::metadata::sql::store::boxed;

/// Operations that may wait.
pub(super) const QUEUE_OPS_MAX: usize = 1024;
/// Transactions at once. More would split what waits into smaller groups.
const GROUPS_MAX: usize = 4;

/// An operation and who waits for it.
pub(super) struct Waiting {
    pub(super) op: KeyOp,
    /// When it is too late to begin.
    pub(super) until: Instant,
    pub(super) reply: oneshot::Sender<MetadataResult<KeyDone>>,
}

/// Forms groups until the queue is closed and empty.
pub(super) async fn run(pool: Pool, mut queue: mpsc::Receiver<Waiting>) {
    let running = Arc::new(Semaphore::new(GROUPS_MAX));
    let mut waiting: VecDeque<Waiting> = VecDeque::new();
    loop {
        if waiting.is_empty() {
            match queue.recv().await {
                Some(first) => waiting.push_back(first),
                None => break,
            }
        }
        let Ok(permit) = Arc::clone(&running).acquire_owned().await else { break };
        while waiting.len() < QUEUE_OPS_MAX
            && let Ok(next) = queue.try_recv()
        {
            waiting.push_back(next);
        }
        refuse_late(&mut waiting);
        // The first one has waited longest.
        let until = waiting.front().map(|first| first.until);
        let (ops, replies) = take_group(&mut waiting);
        // Without those that were taken: nothing is shown here again before the next one comes.
        metrics::gauge!("holdfast_metadata_queue_jobs").set((waiting.len() + queue.len()) as f64);
        let Some(until) = until else { continue };
        metrics::histogram!("holdfast_metadata_batch_jobs").record(ops.len() as f64);
        let pool = pool.clone();
        tokio::spawn(async move {
            let results = run_ops(&pool, ops, until).await;
            drop(permit);
            for (reply, result) in replies.into_iter().zip(results) {
                reply.send(result).ok();
            }
        });
    }
    // What runs is answered before the store is closed.
    let _all = running.acquire_many(GROUPS_MAX as u32).await;
}

/// Answers those for which it is too late. A group that began with one would be refused as a whole, and those that came
/// after it with it.
fn refuse_late(waiting: &mut VecDeque<Waiting>) {
    let now = Instant::now();
    while waiting.front().is_some_and(|first| first.until <= now)
        && let Some(late) = waiting.pop_front()
    {
        metrics::counter!("holdfast_metadata_refused_total").increment(1);
        late.reply.send(Err(MetadataError::Busy)).ok();
    }
}

/// Operations on distinct keys, from the front. One whose key is in the group already waits, and keeps its place.
fn take_group(waiting: &mut VecDeque<Waiting>) -> (Vec<KeyOp>, Vec<oneshot::Sender<MetadataResult<KeyDone>>>) {
    let mut keys: HashSet<(BucketId, String)> = HashSet::new();
    let (mut ops, mut replies, mut left) = (Vec::new(), Vec::new(), VecDeque::new());
    for next in waiting.drain(..) {
        if ops.len() < ROWS_MAX && keys.insert((next.op.bucket(), next.op.key().to_owned())) {
            ops.push(next.op);
            replies.push(next.reply);
        } else {
            left.push_back(next);
        }
    }
    *waiting = left;
    (ops, replies)
}

/// Runs operations on distinct keys in one transaction, and should that fail, each in its own. None begins after
/// `until`.
pub(super) async fn run_ops(pool: &Pool, ops: Vec<KeyOp>, until: Instant) -> Vec<MetadataResult<KeyDone>> {
    let ops: Arc<[KeyOp]> = ops.into();
    match run_together(pool, Arc::clone(&ops), until).await {
        Ok(results) => results,
        Err(error) if ops.len() == 1 || !concerns_one(&error) => ops.iter().map(|_| Err(again(&error))).collect(),
        Err(_) => {
            let mut results = Vec::with_capacity(ops.len());
            for place in 0..ops.len() {
                // Without a server each of them would wait for its own time limit, one after the other.
                match pool.acquire().await {
                    Ok(lease) => lease.give_back(),
                    Err(error) => {
                        results.extend(ops[place..].iter().map(|_| Err(again(&error))));
                        break;
                    }
                }
                results.push(run_alone(pool, Arc::clone(&ops), place, until).await);
            }
            results
        }
    }
}

async fn run_together(pool: &Pool, ops: Arc<[KeyOp]>, until: Instant) -> MetadataResult<Vec<MetadataResult<KeyDone>>> {
    let locks = ops.iter().fold(Locks::none(), |locks, op| op.lock(locks));
    transaction_until(pool, &locks, until, move |tx| {
        let ops = Arc::clone(&ops);
        boxed(async move { run_group(tx, &ops).await })
    })
    .await
}

async fn run_alone(pool: &Pool, ops: Arc<[KeyOp]>, place: usize, until: Instant) -> MetadataResult<KeyDone> {
    let locks = ops[place].lock(Locks::none());
    transaction_until(pool, &locks, until, move |tx| {
        let ops = Arc::clone(&ops);
        boxed(async move {
            let mut results = run_group(tx, std::slice::from_ref(&ops[place])).await?;
            results.pop().expect("one operation has one result")
        })
    })
    .await
}

/// Whether an error that ended a group may be one operation's, not the server's. For a deletion there may be room where
/// there is none for the object beside it.
fn concerns_one(error: &MetadataError) -> bool {
    matches!(error, MetadataError::NoSpace(_) | MetadataError::Unavailable(_) | MetadataError::Corrupt(_))
}

fn again(error: &MetadataError) -> MetadataError {
    match error {
        MetadataError::Busy => MetadataError::Busy,
        MetadataError::NoSpace(reason) => MetadataError::NoSpace(reason.clone()),
        MetadataError::Unknown(reason) => MetadataError::Unknown(reason.clone()),
        MetadataError::Corrupt(reason) => MetadataError::Corrupt(reason.clone()),
        MetadataError::Unavailable(reason) => MetadataError::Unavailable(reason.clone()),
        other => MetadataError::Unavailable(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_actors::ports::metadata::samples;

    use super::*;

    #[test]
    fn a_deletion_does_not_fail_with_a_group_for_which_there_is_no_room() {
        assert!(concerns_one(&MetadataError::NoSpace("the table is full".to_owned())));
        assert!(!concerns_one(&MetadataError::Unknown("connection lost".to_owned())), "it may have happened");
    }

    #[test]
    fn who_is_too_late_is_refused_without_those_that_came_after_it() {
        let now = Instant::now();
        let (mut waiting, mut answers) = (VecDeque::new(), Vec::new());
        for until in [now, now, now + std::time::Duration::from_secs(3_600)] {
            let (reply, answer) = oneshot::channel();
            waiting.push_back(Waiting { op: KeyOp::delete(BucketId(1), samples::deletion("k"), 0), until, reply });
            answers.push(answer);
        }
        refuse_late(&mut waiting);
        assert_eq!(waiting.len(), 1);
        for late in &mut answers[..2] {
            assert!(matches!(late.try_recv(), Ok(Err(MetadataError::Busy))));
        }
        assert!(answers[2].try_recv().is_err(), "it is in time");
    }
}
