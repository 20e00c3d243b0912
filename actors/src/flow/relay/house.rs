//! What is done for a partition now and then: its backlog is counted, and what was published long ago is forgotten.

use super::Context;
use crate::ports::outbox::OutboxBacklog;

/// Counts of what waits for each count of what was published: that is far more, and reads as much of the database.
const ROUNDS: u64 = 4;
/// Rows that are forgotten at once.
const FORGET_BATCH: u32 = 1_000;

/// Keeps house for as long as it is polled.
pub(super) async fn keep_house(context: &Context, partition: u16) {
    let mut interval = tokio::time::interval(context.parts.settings.housekeeping);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for round in 0_u64.. {
        interval.tick().await;
        let now_ms = context.parts.clock.now_ms();
        let published = round % ROUNDS == 0;
        let counted = {
            let _one_at_a_time = context.counting.lock().await;
            match published {
                true => context.parts.outbox.backlog(partition).await,
                false => context.parts.outbox.waiting(partition).await,
            }
        };
        let kept = match counted {
            Ok(backlog) => {
                context.status.change(partition, |status| {
                    let kept = if published { backlog.published } else { status.backlog.published };
                    status.backlog = OutboxBacklog { published: kept, ..backlog };
                });
                backlog.published
            }
            // What was published is forgotten all the same: it must not grow because it cannot be counted.
            Err(error) => {
                tracing::warn!(%error, partition, "the backlog of events cannot be counted");
                u64::MAX
            }
        };
        // Also of what cannot be counted: it grows older.
        context.status.tell(now_ms);
        let keeps = context.parts.settings.keep.is_some();
        let holds = keeps && context.leaps.holds(&*context.parts.clock, "events that are kept to be told again");
        // Where nothing is kept that costs no transaction.
        if published && kept > 0 && !holds {
            forget(context, partition, now_ms).await;
        }
    }
}

async fn forget(context: &Context, partition: u16, now_ms: u64) {
    let settings = &context.parts.settings;
    let before_ms = now_ms.saturating_sub(settings.keep.map_or(0, |keep| keep.as_millis() as u64));
    let rows_max = if settings.keep.is_some() { settings.keep_rows_max } else { 0 };
    loop {
        match context.parts.outbox.forget_published(partition, before_ms, rows_max, FORGET_BATCH).await {
            Ok(gone) if gone >= u64::from(FORGET_BATCH) => {}
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(%error, partition, "forget published events");
                return;
            }
        }
    }
}
