//! Bodies that go on with the next replica at the byte that was reached.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use holdfast_protocol::{ChunkId, NodeId};
use tokio::time::{Instant, Sleep};

use super::Shared;
use crate::ports::chunks::ReplicaStore;
use crate::ports::{ChunkBody, ChunkError};

/// Nodes asked at once of those that the shard map does not name. All live ones are, before a chunk is said to be
/// nowhere: the map may be late, and a node that left may keep the last replica of something.
const OTHERS_AT_ONCE: usize = 4;
/// How long the nodes that the shard map names may give nothing until the others are asked too.
const LAST_RESORT_AFTER: Duration = Duration::from_secs(3);
/// How long this node's disks may give nothing until the next replica is asked: a disk that dies may hang for minutes
/// before it says so. Peers have a deadline of their own. When nobody else can give it either, this node's disks are
/// waited for after all: they may be slow, and nothing worse.
const LOCAL_PATIENCE: Duration = Duration::from_secs(10);
/// Failures that an error tells of; the rest is counted.
const FAILURES_SHOWN: usize = 8;

/// A replica that could not go on.
struct Failure {
    node: NodeId,
    error: ChunkError,
}

/// The first bytes of a replica, with what it took to get them.
struct Opened {
    failures: Vec<Failure>,
    result: Result<(NodeId, ChunkBody, Bytes), ChunkError>,
}

/// See the module's page.
struct Body {
    shared: Arc<Shared>,
    id: ChunkId,
    /// What is still to be handed out.
    range: Range<u32>,
    /// Who is being read.
    node: NodeId,
    current: Option<ChunkBody>,
    /// Until when this node's disks are waited for, while they are.
    patience: Option<Pin<Box<Sleep>>>,
    /// This node's disks, when others are asked because these gave nothing for long.
    slow: Option<ChunkBody>,
    /// Nobody else can give the rest.
    no_others: bool,
    opening: Option<BoxFuture<'static, Opened>>,
    failures: Vec<Failure>,
    /// Failures that were looked at for repairs.
    noted: usize,
}

/// Opens a chunk here, by `local`, or wherever it can be had.
pub(super) fn read(
    shared: &Arc<Shared>,
    id: ChunkId,
    range: Range<u32>,
    local: impl FnOnce(&dyn ReplicaStore, Range<u32>) -> Result<ChunkBody, ChunkError>,
) -> Result<ChunkBody, ChunkError> {
    let me = shared.view.me();
    let (mut current, mut failures) = (None, Vec::new());
    match local(&*shared.local, range.clone()) {
        Ok(body) => {
            shared.local_reads.increment(1);
            current = Some(body);
        }
        Err(error @ ChunkError::Invalid(_)) => return Err(error),
        Err(error) => failures.push(Failure { node: me, error }),
    }
    if range.start > range.end {
        return Err(ChunkError::Invalid(format!("range {range:?}")));
    }
    let shared = Arc::clone(shared);
    Ok(Box::pin(Body {
        shared,
        id,
        range,
        node: me,
        current,
        patience: None,
        slow: None,
        no_others: false,
        opening: None,
        failures,
        noted: 0,
    }))
}

impl Body {
    /// The next piece of whoever is being read.
    fn poll_current(&mut self, context: &mut Context<'_>) -> Option<Poll<Option<Result<Bytes, ChunkError>>>> {
        let next = self.current.as_mut()?.as_mut().poll_next(context);
        if next.is_ready() {
            self.patience = None;
        } else if self.node == self.shared.view.me() && !self.no_others {
            let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOCAL_PATIENCE)));
            if patience.as_mut().poll(context).is_ready() {
                self.patience = None;
                self.slow = self.current.take();
                let detail = format!("this node's disk gave nothing for {} s", LOCAL_PATIENCE.as_secs());
                return Some(Poll::Ready(Some(Err(ChunkError::Unavailable(detail)))));
            }
        }
        Some(next)
    }

    fn fail(&mut self, error: ChunkError) {
        self.current = None;
        if matches!(error, ChunkError::Corrupt { .. }) {
            metrics::counter!("holdfast_replica_corrupt_total").increment(1);
        }
        tracing::debug!(chunk = %self.id, node = %self.node, %error, "a replica cannot go on");
        self.failures.push(Failure { node: self.node, error });
    }

    /// Takes a piece, unless it is longer than what was asked for.
    fn take(&mut self, piece: Bytes) -> Option<Bytes> {
        let left = (self.range.end - self.range.start) as usize;
        if piece.len() > left {
            self.fail(ChunkError::Invalid("the replica gave more bytes than asked for".into()));
            return None;
        }
        self.range.start += piece.len() as u32;
        Some(piece)
    }

    /// Somebody has the chunk: who should have it too and does not is to be repaired.
    fn note_failures(&mut self) {
        let placement = self.shared.view.placement(&self.id);
        for failure in &self.failures[self.noted..] {
            let member = placement.as_ref().is_some_and(|placement| placement.state.is_member(failure.node));
            let to_repair = match failure.error {
                ChunkError::Corrupt { .. } => true,
                ChunkError::NotFound(_) => member,
                _ => false,
            };
            if to_repair {
                self.shared.heal.note(self.id, failure.node);
            }
        }
        self.noted = self.failures.len();
    }
}

impl Stream for Body {
    type Item = Result<Bytes, ChunkError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let body = &mut *self;
        loop {
            if body.range.is_empty() {
                return Poll::Ready(None);
            }
            let next = if let Some(next) = body.poll_current(context) {
                ready!(next)
            } else if let Some(opening) = &mut body.opening {
                let Opened { failures, result } = ready!(opening.as_mut().poll(context));
                body.opening = None;
                body.failures = failures;
                match result {
                    Ok((node, opened, first)) => {
                        body.note_failures();
                        body.slow = None;
                        body.node = node;
                        body.current = Some(opened);
                        Some(Ok(first))
                    }
                    Err(error) => {
                        let Some(slow) = body.slow.take() else {
                            body.range.start = body.range.end;
                            return Poll::Ready(Some(Err(error)));
                        };
                        body.node = body.shared.view.me();
                        body.current = Some(slow);
                        body.no_others = true;
                        continue;
                    }
                }
            } else {
                let failures = std::mem::take(&mut body.failures);
                let (shared, id, range) = (Arc::clone(&body.shared), body.id, body.range.clone());
                body.opening = Some(Box::pin(open(shared, id, range, failures)));
                continue;
            };
            match next {
                Some(Ok(piece)) if piece.is_empty() => {}
                Some(Ok(piece)) => {
                    if let Some(piece) = body.take(piece) {
                        return Poll::Ready(Some(Ok(piece)));
                    }
                }
                Some(Err(error)) => body.fail(error),
                None => body.fail(ChunkError::Unavailable("the replica ended early".into())),
            }
        }
    }
}

/// Asks the replicas that have not failed yet, one after another and beside each other when the first is slow. Whoever
/// else is alive is asked only when all of them have failed, or have given nothing for long: a slow moment must not
/// become a question to the whole cluster.
async fn open(shared: Arc<Shared>, id: ChunkId, range: Range<u32>, mut failures: Vec<Failure>) -> Opened {
    let from = if failures.iter().all(|failure| failure.node == shared.view.me()) { "remote" } else { "failover" };
    metrics::counter!("holdfast_replica_reads_total", "from" => from).increment(1);
    let all_named = shared.named(&id);
    let mut named = all_named.clone();
    named.retain(|node| failures.iter().all(|failure| failure.node != *node));
    let mut named = named.into_iter().peekable();
    // Known only once they are needed: there may be hundreds, and nearly every read ends without them.
    let mut others: Option<std::vec::IntoIter<NodeId>> = None;
    let mut last_resort = false;
    let ask = |node| {
        let mut body = shared.peers.read(node, id, range.clone());
        let begun = Instant::now();
        async move {
            // Empty pieces tell nothing.
            let first = loop {
                match body.next().await {
                    Some(Ok(piece)) if piece.is_empty() => {}
                    first => break first,
                }
            };
            (node, begun, body, first)
        }
    };
    let mut asked = FuturesUnordered::new();
    let patience = tokio::time::sleep(LAST_RESORT_AFTER);
    tokio::pin!(patience);
    loop {
        if asked.is_empty() {
            match named.next() {
                Some(node) => asked.push(ask(node)),
                None => last_resort = true,
            }
        }
        while last_resort && asked.len() < OTHERS_AT_ONCE {
            let others = others.get_or_insert_with(|| shared.others(&all_named, &failures).into_iter());
            let Some(node) = others.next() else { break };
            metrics::counter!("holdfast_replica_reads_total", "from" => "last_resort").increment(1);
            asked.push(ask(node));
        }
        if asked.is_empty() {
            let error = exhausted(id, &failures);
            return Opened { failures, result: Err(error) };
        }
        let hedge = tokio::time::sleep(shared.book.hedge_delay());
        tokio::select! {
            biased;
            Some((node, begun, body, first)) = asked.next() => {
                let error = match first {
                    Some(Ok(piece)) => {
                        shared.book.first_byte(node, begun.elapsed());
                        return Opened { failures, result: Ok((node, body, piece)) };
                    }
                    Some(Err(error)) => error,
                    None => ChunkError::Unavailable("the replica gave nothing".into()),
                };
                match &error {
                    ChunkError::Unavailable(_) => shared.book.stalled(node),
                    ChunkError::Corrupt { .. } => metrics::counter!("holdfast_replica_corrupt_total").increment(1),
                    _ => {}
                }
                failures.push(Failure { node, error });
            }
            () = hedge, if !last_resort && named.peek().is_some() => {
                metrics::counter!("holdfast_replica_reads_total", "from" => "hedged").increment(1);
                asked.extend(named.next().map(&ask));
            }
            () = &mut patience, if !last_resort && named.peek().is_none() => last_resort = true,
        }
    }
}

/// What nobody could give.
fn exhausted(id: ChunkId, failures: &[Failure]) -> ChunkError {
    // Those that the map names failed first.
    let shown = failures.iter().take(FAILURES_SHOWN).map(|failure| format!("{}: {}", failure.node, failure.error));
    let more = failures.len().saturating_sub(FAILURES_SHOWN);
    let more = (more > 0).then(|| format!("and {more} more nodes"));
    let detail = shown.chain(more).collect::<Vec<_>>().join("; ");
    let unreached = |error: &ChunkError| !matches!(error, ChunkError::NotFound(_) | ChunkError::Corrupt { .. });
    if failures.iter().any(|failure| unreached(&failure.error)) {
        return ChunkError::Unavailable(format!("chunk {id} cannot be read from any replica: {detail}"));
    }
    if failures.iter().any(|failure| matches!(failure.error, ChunkError::Corrupt { .. })) {
        return ChunkError::Corrupt { chunk: id, detail };
    }
    ChunkError::NotFound(id)
}

impl Shared {
    /// The other nodes that the shard map names for a chunk, in the order in which they are asked: members that are
    /// alive, the nearest first; leavers; joiners; members that seem dead.
    fn named(&self, id: &ChunkId) -> Vec<NodeId> {
        let mut order = Vec::new();
        if let Some(placement) = self.view.placement(id) {
            let state = placement.state;
            let mut members: Vec<_> = state.members.iter().copied().filter(|node| self.view.is_alive(*node)).collect();
            self.book.sort(&mut members);
            order.extend(members);
            order.extend(state.leaving.iter().map(|leaver| leaver.node));
            order.extend(state.joining.iter().map(|joiner| joiner.node));
            order.extend(state.members);
        }
        let mut unique = Vec::with_capacity(order.len());
        for node in order {
            if node != self.view.me() && !unique.contains(&node) {
                unique.push(node);
            }
        }
        unique
    }

    /// Whoever else is alive and has not failed, the nearest first.
    fn others(&self, named: &[NodeId], failures: &[Failure]) -> Vec<NodeId> {
        let mut others: Vec<NodeId> = self.view.membership().borrow().nodes.keys().copied().collect();
        others.retain(|node| {
            let has_failed = failures.iter().any(|failure| failure.node == *node);
            *node != self.view.me() && !named.contains(node) && !has_failed
        });
        self.book.sort(&mut others);
        others
    }
}
