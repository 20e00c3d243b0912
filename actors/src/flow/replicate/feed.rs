//! One remote replica of a write: a queue, bounded in bytes, and the task that passes it on.
//!
//! The task settles its replica in the tally itself, and gives it up by itself when it does not get on: the sink may be
//! waiting elsewhere, perhaps for the very buffers that this queue holds. Once the task has ended, nobody waits for
//! room in its queue.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_protocol::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::tally::Tally;
use crate::ports::peers::{PeerError, ReplicaWrite};

/// What waiting bytes are counted in.
pub(super) const UNIT_BYTES: usize = 1024;

/// A peer that stalled lately is given this part of patience and queue.
const STALLED_PART: u32 = 8;

/// How many units so many bytes are.
pub(super) fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT_BYTES)
}

enum Item {
    /// The permits are given back once the piece is passed on.
    Piece(Bytes, [OwnedSemaphorePermit; 3]),
    /// All pieces were there. A queue that ends without it is given up.
    Finish,
}

/// The sink's end.
pub(super) struct Feed {
    queue: mpsc::UnboundedSender<Item>,
    /// Of this chunk and this peer, of this peer, of the node; each with what it holds in all.
    budgets: [(Arc<Semaphore>, usize); 3],
    gone: CancellationToken,
    /// The last piece, when there was no room for it at once.
    last: Option<Bytes>,
}

impl Feed {
    /// Starts to write to `node`, which is replica `index` of the tally.
    pub(super) fn start(
        shared: &Arc<Shared>,
        tally: &Arc<Tally>,
        index: usize,
        node: NodeId,
        write: ReplicaWrite,
    ) -> (Self, JoinHandle<()>) {
        let options = &shared.options;
        let part = if shared.book.is_stalled(node) { STALLED_PART } else { 1 };
        let room = units(options.replica_queue_bytes / part as usize).max(1);
        let budgets = [
            (Arc::new(Semaphore::new(room)), room),
            shared.book.budget(node),
            (Arc::clone(&shared.queued), units(options.queued_bytes_max)),
        ];
        let (queue, items) = mpsc::unbounded_channel();
        let gone = CancellationToken::new();
        let task = Task {
            shared: Arc::clone(shared),
            tally: Arc::clone(tally),
            index,
            node,
            patience: options.patience / part,
        };
        let guard = gone.clone().drop_guard();
        let task = tokio::spawn(async move {
            let _gone = guard;
            task.run(write, items).await;
        });
        (Self { queue, budgets, gone, last: None }, task)
    }

    /// Queues a piece; waits for room as long as the replica gets on.
    pub(super) async fn push(&self, piece: Bytes) {
        let permits = async {
            let [a, b, c] = &self.budgets;
            Some([acquire(a, piece.len()).await?, acquire(b, piece.len()).await?, acquire(c, piece.len()).await?])
        };
        let permits = tokio::select! {
            biased;
            () = self.gone.cancelled() => None,
            permits = permits => permits,
        };
        if let Some(permits) = permits {
            // An end that is gone needs no piece.
            let _ = self.queue.send(Item::Piece(piece, permits));
        }
    }

    /// Queues the last piece if there is room for it, or keeps it for [`Feed::finish`].
    pub(super) fn push_last(&mut self, piece: Bytes) {
        let [a, b, c] = &self.budgets;
        let len = piece.len();
        let permits = try_acquire(a, len).zip(try_acquire(b, len)).zip(try_acquire(c, len));
        match permits {
            Some(((a, b), c)) => {
                let _ = self.queue.send(Item::Piece(piece, [a, b, c]));
            }
            None => self.last = Some(piece),
        }
    }

    /// Lets the replica finish, once it has the last piece.
    pub(super) async fn finish(&mut self) {
        if let Some(last) = self.last.take() {
            self.push(last).await;
        }
        let _ = self.queue.send(Item::Finish);
    }
}

/// A piece larger than a whole budget takes all of it.
fn wanted(len: usize, of: usize) -> u32 {
    units(len).min(of) as u32
}

async fn acquire((budget, of): &(Arc<Semaphore>, usize), len: usize) -> Option<OwnedSemaphorePermit> {
    Arc::clone(budget).acquire_many_owned(wanted(len, *of)).await.ok()
}

fn try_acquire((budget, of): &(Arc<Semaphore>, usize), len: usize) -> Option<OwnedSemaphorePermit> {
    Arc::clone(budget).try_acquire_many_owned(wanted(len, *of)).ok()
}

/// The peer's end.
struct Task {
    shared: Arc<Shared>,
    tally: Arc<Tally>,
    index: usize,
    node: NodeId,
    patience: Duration,
}

impl Task {
    async fn run(self, write: ReplicaWrite, items: mpsc::UnboundedReceiver<Item>) {
        match self.pass_on(write, items).await {
            Ok(true) => {
                self.shared.book.answered(self.node);
                self.tally.acknowledged(self.index);
            }
            // The sink is gone.
            Ok(false) => {}
            Err(error) => {
                if matches!(error, PeerError::Unreachable { .. } | PeerError::Timeout { .. }) {
                    self.shared.book.stalled(self.node);
                }
                tracing::debug!(node = %self.node, %error, "a replica was not written");
                self.tally.missed(self.index, error);
            }
        }
    }

    /// `true` once the replica has acknowledged.
    async fn pass_on(&self, write: ReplicaWrite, mut items: mpsc::UnboundedReceiver<Item>) -> Result<bool, PeerError> {
        let mut sink = self.patiently(self.shared.peers.create(self.node, write)).await?;
        self.tally.begun(self.index);
        loop {
            match items.recv().await {
                Some(Item::Piece(piece, permits)) => {
                    self.patiently(sink.send(piece)).await?;
                    drop(permits);
                }
                Some(Item::Finish) => break,
                None => return Ok(false),
            }
        }
        let finish = tokio::time::timeout(self.shared.options.ack_timeout, sink.finish());
        finish.await.unwrap_or(Err(PeerError::Timeout { node: self.node })).map(|()| true)
    }

    /// One step of the replica, which is given up when it takes longer than patience and the write can do without it.
    async fn patiently<T>(&self, step: impl Future<Output = Result<T, PeerError>>) -> Result<T, PeerError> {
        let mut step = std::pin::pin!(step);
        let deadline = Instant::now() + self.shared.options.ack_timeout;
        loop {
            match tokio::time::timeout(self.patience, step.as_mut()).await {
                Ok(done) => return done,
                Err(_) if self.tally.spare(self.index) || Instant::now() >= deadline => {
                    metrics::counter!("holdfast_replica_stalls_total").increment(1);
                    return Err(PeerError::Timeout { node: self.node });
                }
                Err(_) => {}
            }
        }
    }
}
