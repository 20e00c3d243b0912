//! The one task that writes. Callers queue verbs; the writer takes whatever waits, runs it in one transaction, commits
//! once, and answers all: transactions that wait together share one flush.
//!
//! # Rules
//! * The queue holds [`QUEUE_JOBS_MAX`] jobs; beyond that callers get `Busy` at once.
//! * Each verb runs under a savepoint: one's failure does not undo another's effects.
//! * Nobody is answered before the commit. A caller that went away loses the answer, never the write's consistency.
//! * A verb that panics is a bug, and its batch falls with it; the writer lives on, for there is no other.
//! * A batch for which there is no room is rolled back, all of it, and everybody in it is told `NoSpace`.
//! * Another error out of COMMIT is `Unknown` to all of the batch. Unless it says that nothing was written (a foreign
//!   lock), the store is fenced: a flush that failed is never tried again, later writes are `Unavailable`.
//! * When every sender is gone the writer finishes what was queued and closes the connection.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use holdfast_actors::ports::metadata::{
    BucketId, Committed, DeleteRequest, Deleted, MetadataError, MetadataResult, NewObject,
};
use sqlx::Connection as _;
use tokio::sync::{mpsc, oneshot};

use super::error::{commit_can_be_tried_again, is_full, refused};
use super::tx::Tx;
use crate::metadata::room::Room;
use crate::metadata::sql::key_ops::{KeyDone, KeyOp, run_group};
use crate::metadata::sql::shapes::ROWS_MAX;

/// Jobs that may wait. At 100 µs a job the last one waits for a tenth of a second.
pub(super) const QUEUE_JOBS_MAX: usize = 1024;
/// Jobs that share a commit at most: more would make the first wait for the last without saving flushes worth naming.
const BATCH_JOBS_MAX: usize = 256;

type Reply<T> = oneshot::Sender<MetadataResult<T>>;

/// What a verb leaves behind until the commit's outcome is known.
pub(super) struct Pending {
    /// Whether its effects are to be kept.
    ok: bool,
    /// Answers the caller, given the outcome of the batch.
    answer: Box<dyn FnOnce(Outcome<'_>) + Send>,
}

/// A verb that is no operation on keys.
pub(super) trait Verb: Send {
    /// Runs it in the open transaction.
    fn run(self: Box<Self>, tx: &mut Tx) -> BoxFuture<'_, Pending>;
    /// It will not run.
    fn refuse(self: Box<Self>) -> Pending;
}

/// Work for the writer.
pub(super) enum Job {
    /// `commit_object`.
    Put(Box<NewObject>, Reply<Committed>),
    /// `delete_objects`.
    Delete(BucketId, Vec<DeleteRequest>, u64, Reply<Vec<MetadataResult<Deleted>>>),
    /// All else.
    Verb(Box<dyn Verb>),
}

struct VerbWithReply<T, F> {
    run: F,
    reply: Reply<T>,
}

impl<T, F> Verb for VerbWithReply<T, F>
where
    T: Send + 'static,
    F: for<'a> FnOnce(&'a mut Tx) -> BoxFuture<'a, MetadataResult<T>> + Send + 'static,
{
    fn run(self: Box<Self>, tx: &mut Tx) -> BoxFuture<'_, Pending> {
        Box::pin(async move {
            let result = (self.run)(tx).await;
            pending(result, self.reply)
        })
    }

    fn refuse(self: Box<Self>) -> Pending {
        pending(Err(not_run()), self.reply)
    }
}

fn pending<T: Send + 'static>(result: MetadataResult<T>, reply: Reply<T>) -> Pending {
    Pending {
        ok: result.is_ok(),
        answer: Box::new(move |outcome| {
            reply.send(outcome.of(result)).ok();
        }),
    }
}

/// Packs a verb for the queue.
pub(super) fn verb<T, F>(run: F, reply: Reply<T>) -> Job
where
    T: Send + 'static,
    F: for<'a> FnOnce(&'a mut Tx) -> BoxFuture<'a, MetadataResult<T>> + Send + 'static,
{
    Job::Verb(Box::new(VerbWithReply { run, reply }))
}

/// How the transaction of a batch ended.
#[derive(Clone, Copy)]
pub(super) enum Outcome<'a> {
    /// Durable.
    Committed,
    /// Rolled back for this reason.
    RolledBack(&'a MetadataError),
    /// COMMIT itself failed for this reason.
    Unknown(&'a str),
}

impl Outcome<'_> {
    /// What the caller of a verb with this result is told.
    fn of<T>(self, result: MetadataResult<T>) -> MetadataResult<T> {
        match (self, result) {
            (Self::Committed, result) => result,
            (Self::Unknown(reason), Ok(_)) => Err(MetadataError::Unknown(reason.to_owned())),
            // A refusal may rest on what another verb of the batch did, so it falls with the batch. It had no effect.
            (Self::RolledBack(error), _) => Err(match error {
                MetadataError::NoSpace(reason) => MetadataError::NoSpace(reason.clone()),
                MetadataError::Unavailable(reason) => MetadataError::Unavailable(reason.clone()),
                other => MetadataError::Unavailable(other.to_string()),
            }),
            (Self::Unknown(reason), Err(_)) => Err(MetadataError::Unavailable(reason.to_owned())),
        }
    }
}

/// Runs until the queue is closed and empty.
///
/// `stopped` gets the reason when writes stop for good, and `room` is told when there is none.
pub(super) async fn run(mut tx: Tx, mut queue: mpsc::Receiver<Job>, stopped: Arc<OnceLock<String>>, room: Arc<Room>) {
    let mut jobs = Vec::with_capacity(BATCH_JOBS_MAX);
    while queue.recv_many(&mut jobs, BATCH_JOBS_MAX).await > 0 {
        metrics::gauge!("holdfast_metadata_queue_jobs").set(queue.len() as f64);
        metrics::histogram!("holdfast_metadata_batch_jobs").record(jobs.len() as f64);
        let mut batch = Batch::default();
        let batch_jobs = std::mem::replace(&mut jobs, Vec::with_capacity(BATCH_JOBS_MAX));
        if let Some(reason) = stopped.get() {
            batch.refuse(batch_jobs);
            batch.answer(Outcome::RolledBack(&MetadataError::Unavailable(reason.clone())));
            continue;
        }
        // Nothing half done outlives a panic: the transaction is rolled back, and a job without a slot has lost its
        // reply, which its caller takes for an unknown outcome.
        let ran = AssertUnwindSafe(batch.run(&mut tx, batch_jobs)).catch_unwind().await;
        let panicked = || MetadataError::Unavailable("a verb panicked, which is a bug".to_owned());
        let ran = ran.unwrap_or_else(|_| Err(panicked()));
        // Also where one verb alone found none, and was undone.
        if let Some(detail) = tx.no_space() {
            room.is_missing(detail);
        }
        if let Err(reason) = ran {
            tx.abandon().await;
            if !matches!(reason, MetadataError::NoSpace(_)) {
                tracing::warn!(%reason, "metadata transaction rolled back");
            }
            metrics::counter!("holdfast_metadata_rollbacks_total").increment(1);
            batch.answer(Outcome::RolledBack(&reason));
            continue;
        }
        let started = Instant::now();
        match tx.commit().await {
            Ok(()) => {
                metrics::histogram!("holdfast_metadata_commit_seconds").record(started.elapsed().as_secs_f64());
                metrics::counter!("holdfast_metadata_commits_total").increment(1);
                batch.answer(Outcome::Committed);
            }
            Err(error) => {
                let reason = error.to_string();
                tx.abandon().await;
                metrics::counter!("holdfast_metadata_commits_failed_total").increment(1);
                if is_full(&error) {
                    room.is_missing(&reason);
                    batch.answer(Outcome::RolledBack(&MetadataError::NoSpace(reason)));
                    continue;
                }
                if commit_can_be_tried_again(&error) {
                    tracing::error!(%reason, "metadata commit failed");
                } else {
                    tracing::error!(%reason, "metadata commit failed: no more writes until the node is restarted");
                    stopped.get_or_init(|| format!("writes stopped after a failed commit: {reason}"));
                }
                batch.answer(Outcome::Unknown(&reason));
            }
        }
    }
    if let Err(error) = tx.into_conn().close().await {
        tracing::warn!(%error, "close the metadata database");
    }
}

/// Answers being collected, job by job.
enum Slot {
    Put(Reply<Committed>, Option<MetadataResult<Committed>>),
    Delete(Reply<Vec<MetadataResult<Deleted>>>, Vec<Option<MetadataResult<Deleted>>>),
    Verb(Pending),
}

#[derive(Default)]
struct Batch {
    slots: Vec<Slot>,
    /// Operations on keys that wait for their group: the operation, its job and its place in the job.
    group: Vec<(KeyOp, usize, usize)>,
}

impl Batch {
    /// Runs all jobs in order, in one transaction that is left open. `Err` says why the transaction must be abandoned;
    /// every job has a slot all the same.
    async fn run(&mut self, tx: &mut Tx, jobs: Vec<Job>) -> MetadataResult<()> {
        let mut jobs = jobs.into_iter();
        let result = self.run_open(tx, &mut jobs).await;
        self.refuse(jobs);
        result.map_err(|error| match tx.no_space() {
            Some(reason) => MetadataError::NoSpace(reason.to_owned()),
            None => error,
        })
    }

    async fn run_open(&mut self, tx: &mut Tx, jobs: &mut impl Iterator<Item = Job>) -> MetadataResult<()> {
        tx.begin().await.map_err(refused)?;
        let mut keys = HashSet::new();
        for job in jobs {
            let slot = self.slots.len();
            match job {
                Job::Put(object, reply) => {
                    self.slots.push(Slot::Put(reply, None));
                    self.add(tx, &mut keys, KeyOp::put(*object), slot, 0).await?;
                }
                Job::Delete(bucket, requests, now_ms, reply) => {
                    self.slots.push(Slot::Delete(reply, requests.iter().map(|_| None).collect()));
                    for (place, request) in requests.into_iter().enumerate() {
                        self.add(tx, &mut keys, KeyOp::delete(bucket, request, now_ms), slot, place).await?;
                    }
                }
                Job::Verb(verb) => {
                    self.flush(tx).await?;
                    keys.clear();
                    let pending = verb.run(tx).await;
                    let ok = pending.ok;
                    self.slots.push(Slot::Verb(pending));
                    if ok { tx.next_verb().await } else { tx.undo_verb().await }.map_err(refused)?;
                }
            }
        }
        self.flush(tx).await
    }

    /// Puts an operation into the group; a full group, or one that has the key, runs first.
    async fn add(
        &mut self,
        tx: &mut Tx,
        keys: &mut HashSet<(BucketId, String)>,
        op: KeyOp,
        slot: usize,
        place: usize,
    ) -> MetadataResult<()> {
        if self.group.len() == ROWS_MAX || !keys.insert((op.bucket(), op.key().to_owned())) {
            self.flush(tx).await?;
            keys.clear();
            keys.insert((op.bucket(), op.key().to_owned()));
        }
        self.group.push((op, slot, place));
        Ok(())
    }

    /// Runs the group: as a whole, and should that fail, one operation after the other.
    async fn flush(&mut self, tx: &mut Tx) -> MetadataResult<()> {
        let group = std::mem::take(&mut self.group);
        if group.is_empty() {
            return Ok(());
        }
        let (ops, places): (Vec<_>, Vec<_>) = group.into_iter().map(|(op, slot, place)| (op, (slot, place))).unzip();
        match run_group(tx, &ops).await {
            Ok(results) => {
                tx.next_verb().await.map_err(refused)?;
                for (result, at) in results.into_iter().zip(places) {
                    self.set(at, result);
                }
            }
            Err(error) => {
                tx.undo_verb().await.map_err(|_| error)?;
                for (op, at) in ops.iter().zip(places) {
                    let result = match run_group(tx, std::slice::from_ref(op)).await {
                        Ok(mut results) => {
                            tx.next_verb().await.map_err(refused)?;
                            results.pop().expect("one operation has one result")
                        }
                        Err(error) => {
                            tx.undo_verb().await.map_err(refused)?;
                            Err(error)
                        }
                    };
                    self.set(at, result);
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, (slot, place): (usize, usize), result: MetadataResult<KeyDone>) {
        match (&mut self.slots[slot], result) {
            (Slot::Put(_, answer), Ok(KeyDone::Put(committed))) => *answer = Some(Ok(committed)),
            (Slot::Put(_, answer), Err(error)) => *answer = Some(Err(error)),
            (Slot::Delete(_, answers), Ok(KeyDone::Deleted(deleted))) => answers[place] = Some(Ok(deleted)),
            (Slot::Delete(_, answers), Err(error)) => answers[place] = Some(Err(error)),
            _ => unreachable!("an operation answers in its own kind"),
        }
    }

    /// Gives slots to jobs that will not run.
    fn refuse(&mut self, jobs: impl IntoIterator<Item = Job>) {
        for job in jobs {
            self.slots.push(match job {
                Job::Put(_, reply) => Slot::Put(reply, None),
                Job::Delete(_, _, _, reply) => Slot::Delete(reply, Vec::new()),
                Job::Verb(verb) => Slot::Verb(verb.refuse()),
            });
        }
    }

    /// Answers everybody. A caller that is gone does not matter.
    fn answer(self, outcome: Outcome<'_>) {
        for slot in self.slots {
            match slot {
                Slot::Put(reply, result) => {
                    let result = result.unwrap_or_else(|| Err(not_run()));
                    reply.send(outcome.of(result)).ok();
                }
                Slot::Delete(reply, results) => {
                    let results = results.into_iter().map(|result| result.unwrap_or_else(|| Err(not_run()))).collect();
                    reply.send(outcome.of(Ok(results))).ok();
                }
                Slot::Verb(pending) => (pending.answer)(outcome),
            }
        }
    }
}

fn not_run() -> MetadataError {
    MetadataError::Unavailable("the batch was rolled back".to_owned())
}
