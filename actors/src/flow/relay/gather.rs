//! What the partitions ask of the outbox, asked together: one query and one transaction for all partitions of this
//! node.
//!
//! Partitions are woken at the same time, so their looks come at the same time too; each has one under way at most.
//! What they published is taken out by one transaction after
//! [`RelaySettings::remove_after`](super::RelaySettings::remove_after), as each is a commit, which whoever writes
//! objects waits for as well.

use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::events::PARTITIONS;
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::RelayParts;
use crate::ports::outbox::{Look, OutboxRow};

/// How long a look waits for others to share its query.
const GATHER: Duration = Duration::from_millis(3);
/// Rows that are taken out at once, about.
const REMOVED_MAX: usize = 1_000;

/// Why something failed, for an operator.
type Answer<T> = oneshot::Sender<Result<T, String>>;

struct AskedLook {
    look: Look,
    answer: Answer<Vec<OutboxRow>>,
}

struct AskedRemoval {
    partition: u16,
    sequences: Vec<u64>,
    answer: Answer<()>,
}

/// Where partitions ask.
pub(super) struct Gather {
    looks: mpsc::Sender<AskedLook>,
    removals: mpsc::Sender<AskedRemoval>,
    /// Ends the wait for more removals.
    hurry: Notify,
    asked: Mutex<(mpsc::Receiver<AskedLook>, mpsc::Receiver<AskedRemoval>)>,
}

fn gone<E>(_: E) -> String {
    "the relay ends".to_owned()
}

impl Gather {
    pub(super) fn new() -> Self {
        // A partition asks once at a time.
        let (looks, asked_looks) = mpsc::channel(usize::from(PARTITIONS));
        let (removals, asked_removals) = mpsc::channel(usize::from(PARTITIONS));
        Self { looks, removals, hurry: Notify::new(), asked: Mutex::new((asked_looks, asked_removals)) }
    }

    /// The rows that a partition looks for.
    pub(super) async fn look(self: Arc<Self>, look: Look) -> Result<Vec<OutboxRow>, String> {
        let (answer, answered) = oneshot::channel();
        self.looks.send(AskedLook { look, answer }).await.map_err(gone)?;
        answered.await.unwrap_or_else(|error| Err(gone(error)))
    }

    /// Takes rows out of a partition, within a while.
    pub(super) async fn remove(self: Arc<Self>, partition: u16, sequences: Vec<u64>) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        self.removals.send(AskedRemoval { partition, sequences, answer }).await.map_err(gone)?;
        answered.await.unwrap_or_else(|error| Err(gone(error)))
    }

    /// Does now what was asked for.
    pub(super) fn hurry(&self) {
        self.hurry.notify_one();
    }

    /// Carries everything out, for as long as it is polled.
    pub(super) async fn run(&self, parts: &RelayParts) {
        let mut asked = self.asked.lock().await;
        let (looks, removals) = &mut *asked;
        tokio::join!(run_looks(parts, looks), self.run_removals(parts, removals));
    }

    async fn run_removals(&self, parts: &RelayParts, asked: &mut mpsc::Receiver<AskedRemoval>) {
        while let Some(first) = asked.recv().await {
            let until = Instant::now() + parts.settings.remove_after;
            let (mut rows, mut all) = (first.sequences.len(), vec![first]);
            while rows < REMOVED_MAX {
                tokio::select! {
                    biased;
                    Some(more) = asked.recv() => {
                        rows += more.sequences.len();
                        all.push(more);
                    }
                    () = self.hurry.notified() => break,
                    () = tokio::time::sleep_until(until) => break,
                }
            }
            let rows_of = |asked: &AskedRemoval| {
                let partition = asked.partition;
                asked.sequences.iter().map(move |sequence| (partition, *sequence)).collect::<Vec<_>>()
            };
            let rows: Vec<(u16, u64)> = all.iter().flat_map(rows_of).collect();
            let keep_at = parts.settings.keep.map(|_| parts.clock.now_ms());
            metrics::counter!("holdfast_events_requests_total", "to" => "remove").increment(1);
            let removed = parts.outbox.finish(&rows, keep_at).await.map_err(|error| error.to_string());
            for asked in all {
                // Whoever asked may have lost its partition meanwhile.
                asked.answer.send(removed.clone()).ok();
            }
        }
    }
}

async fn run_looks(parts: &RelayParts, asked: &mut mpsc::Receiver<AskedLook>) {
    while let Some(first) = asked.recv().await {
        tokio::time::sleep(GATHER).await;
        let mut all = vec![first];
        while let Ok(more) = asked.try_recv() {
            all.push(more);
        }
        let (looks, answers): (Vec<_>, Vec<_>) = all.into_iter().map(|asked| (asked.look, asked.answer)).unzip();
        metrics::counter!("holdfast_events_requests_total", "to" => "look").increment(1);
        match parts.outbox.look(&looks).await {
            Ok(found) => {
                for (answer, rows) in answers.into_iter().zip(found) {
                    answer.send(Ok(rows)).ok();
                }
            }
            Err(error) => {
                for answer in answers {
                    answer.send(Err(error.to_string())).ok();
                }
            }
        }
    }
}
