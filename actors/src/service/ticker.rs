//! Ticks that never pile up: the next one is sent only after the actor has taken the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::{ActorRef, Message};
use tokio::task::JoinSet;

/// Proof that a tick is outstanding; the handler drops it when it is done, which lets the next one come.
#[derive(Debug)]
pub struct Tick(Arc<AtomicBool>);

impl Drop for Tick {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Sends `make(tick)` to `actor` every `period` from a task in `tasks`, the first at once.
pub fn spawn_ticker<M: Message>(
    tasks: &mut JoinSet<()>,
    actor: ActorRef<M>,
    period: Duration,
    make: impl Fn(Tick) -> M + Send + 'static,
) {
    tasks.spawn(async move {
        let outstanding = Arc::new(AtomicBool::new(false));
        let mut interval = tokio::time::interval(period);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            if outstanding.swap(true, Ordering::AcqRel) {
                continue;
            }
            if actor.send_message(make(Tick(outstanding.clone()))).is_err() {
                return;
            }
        }
    });
}
