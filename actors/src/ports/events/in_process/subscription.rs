//! One group's view of a topic of the bus within the process.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep_until};

use super::{InProcessEventBus, Leased, Shared, State};
use crate::ports::events::{
    Delivery, EventError, EventResult, Message, Receipt, SubscribeOptions, Subscription, Topic,
};

pub(super) struct InProcessSubscription {
    pub(super) bus: InProcessEventBus,
    pub(super) topic: Topic,
    pub(super) options: SubscribeOptions,
}

impl InProcessSubscription {
    fn shared(&self) -> &Shared {
        self.bus.topic(self.topic)
    }

    /// Takes a delivery out of its lease, if that is not over.
    fn with_leased<T>(&self, delivery: &Delivery, then: impl FnOnce(&mut State, Leased) -> T) -> EventResult<T> {
        let shared = self.shared();
        let mut state = shared.state.lock();
        if state.closed {
            return Err(EventError::Closed);
        }
        let number: u64 = delivery.receipt.0.parse().map_err(|_| EventError::Expired)?;
        let now = Instant::now();
        let group = state.groups.get_mut(&self.options.group).ok_or(EventError::Expired)?;
        group.settle(now);
        let leased = group.leased.remove(&number).ok_or(EventError::Expired)?;
        let done = then(&mut state, leased);
        drop(state);
        shared.tell();
        Ok(done)
    }

    fn lease(&self, state: &mut State, leased: Leased) -> Receipt {
        state.receipts += 1;
        let number = state.receipts;
        if let Some(group) = state.groups.get_mut(&self.options.group) {
            group.leased.insert(number, leased);
        }
        Receipt(number.to_string())
    }

    /// What is ready, and when there may be more.
    fn take(&self, limit: usize) -> EventResult<(Vec<Delivery>, Option<Instant>)> {
        let now = Instant::now();
        let mut state = self.shared().state.lock();
        if state.closed {
            return Err(EventError::Closed);
        }
        let Some(group) = state.groups.get_mut(&self.options.group) else { return Err(EventError::Closed) };
        group.settle(now);
        let taken: Vec<_> = (0..limit).map_while(|_| group.ready.pop_front()).collect();
        let next_due = group.next_due();
        let until = now + self.options.lease;
        let deliver = |(message, attempt): (Arc<Message>, u32)| {
            let receipt = self.lease(&mut state, Leased { message: message.clone(), attempt, until });
            Delivery { message: (*message).clone(), attempt, receipt }
        };
        Ok((taken.into_iter().map(deliver).collect(), next_due))
    }
}

#[async_trait]
impl Subscription for InProcessSubscription {
    async fn receive(&mut self, limit: usize, wait: Duration) -> EventResult<Vec<Delivery>> {
        let deadline = Instant::now() + wait;
        let mut changed = self.shared().changed.subscribe();
        loop {
            changed.borrow_and_update();
            let (taken, next_due) = self.take(limit)?;
            if !taken.is_empty() || limit == 0 || Instant::now() >= deadline {
                return Ok(taken);
            }
            tokio::select! {
                _ = changed.changed() => {}
                () = sleep_until(next_due.map_or(deadline, |due| due.min(deadline))) => {}
            }
        }
    }

    async fn ack(&self, delivery: &Delivery) -> EventResult<()> {
        self.with_leased(delivery, |state, leased| {
            let id = leased.message.id;
            let left = state.open.get_mut(&id).map(|left| {
                *left -= 1;
                *left
            });
            if left == Some(0) {
                state.open.remove(&id);
            }
        })
    }

    async fn retry(&self, delivery: &Delivery, pause: Duration) -> EventResult<()> {
        self.with_leased(delivery, |state, leased| {
            state.receipts += 1;
            let place = (Instant::now() + pause, state.receipts);
            if let Some(group) = state.groups.get_mut(&self.options.group) {
                group.paused.insert(place, (leased.message, leased.attempt + 1));
            }
        })
    }

    async fn extend(&self, delivery: &mut Delivery, lease: Duration) -> EventResult<()> {
        let receipt = self.with_leased(delivery, |state, leased| {
            self.lease(state, Leased { until: Instant::now() + lease, ..leased })
        })?;
        delivery.receipt = receipt;
        Ok(())
    }
}
