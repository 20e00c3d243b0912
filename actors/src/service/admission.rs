//! The handle that stands before all work: permits for jobs and bytes, without a mailbox.
//!
//! The data plane calls [`Admission::admit`] on its own thread; in the common case that is one short lock. State: the
//! budgets, the queues and the limits, all in the handle, so a permit in flight survives the restart of the ingest
//! actor, which only publishes new [`Limits`].
//!
//! **Bound.** At most `queue_max` requests of a class wait, in the order of arrival, each at most `queue_wait_ms`;
//! beyond that a request is refused with a time to try again. **Failure.** A permit gives its share back when it is
//! dropped, wherever that happens; a request that stops waiting leaves the queue and lets those behind it pass, and a
//! permit granted to it at the same moment is given back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::domain::admission::{Budget, ClassLimits, JobKind, Limits, Refusal, Verdict};

/// A request that was not admitted: answer 503 SlowDown with Retry-After.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not admitted ({reason}), try again in {retry_after_seconds} s")]
pub struct Rejected {
    /// When the client should try again.
    pub retry_after_seconds: u32,
    /// Why, for the message and the metric.
    pub reason: &'static str,
}

/// A request that waits. Once it is dropped it stands in nobody's way: whoever needs much room may be gone long before
/// anything ends, or its time does.
struct Waiting<'a> {
    inner: &'a Arc<Inner>,
    kind: JobKind,
    answer: oneshot::Receiver<Result<Permit, Rejected>>,
    is_answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.answer.close();
            self.inner.pass_over(self.kind);
        }
    }
}

/// Admits work within the budgets of a node. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    meters: [Meters; 2],
}

struct State {
    limits: Limits,
    classes: [Class; 2],
}

#[derive(Default)]
struct Class {
    budget: Budget,
    queue: VecDeque<Waiter>,
    /// Bytes and waiters as the gauges show them.
    shown: (u64, usize),
}

struct Waiter {
    bytes: u64,
    answer: oneshot::Sender<Result<Permit, Rejected>>,
}

struct Meters {
    jobs: Gauge,
    bytes: Gauge,
    queued: Gauge,
    admitted: Counter,
}

/// The right to work on one request; gives its share back when dropped.
#[must_use = "a dropped permit is no permit"]
pub struct Permit {
    admission: Arc<Inner>,
    kind: JobKind,
    bytes: u64,
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit").field("kind", &self.kind).field("bytes", &self.bytes).finish()
    }
}

impl Admission {
    /// A handle that refuses everything until the first [`Admission::publish`] opens it.
    pub fn starting(configured: &Limits) -> Self {
        let mut limits = *configured;
        limits.read.refused = Some(Refusal::Starting);
        limits.write.refused = Some(Refusal::Starting);
        Self::new(limits)
    }

    /// A handle with these limits.
    pub fn new(limits: Limits) -> Self {
        let meters = JobKind::ALL.map(|kind| Meters {
            jobs: metrics::gauge!("holdfast_admission_jobs", "class" => kind.as_str()),
            bytes: metrics::gauge!("holdfast_admission_bytes", "class" => kind.as_str()),
            queued: metrics::gauge!("holdfast_admission_queue_depth", "class" => kind.as_str()),
            admitted: metrics::counter!("holdfast_admission_admitted_total", "class" => kind.as_str()),
        });
        Self { inner: Arc::new(Inner { state: Mutex::new(State { limits, classes: Default::default() }), meters }) }
    }

    /// Puts new limits in force. What is admitted stays admitted; waiters that the new limits refuse are answered.
    pub fn publish(&self, limits: Limits) {
        let mut answers = Vec::new();
        {
            let mut state = self.inner.state.lock();
            state.limits = limits;
            for kind in JobKind::ALL {
                self.inner.grant(&mut state, kind, &mut answers);
            }
        }
        deliver(answers);
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.inner.state.lock().limits
    }

    /// Jobs and bytes in work, and requests waiting.
    pub fn usage(&self, kind: JobKind) -> (u32, u64, usize) {
        let state = self.inner.state.lock();
        let class = &state.classes[kind.index()];
        (class.budget.jobs(), class.budget.bytes(), class.queue.len())
    }

    /// Admits at once or not at all.
    #[cfg(test)]
    fn try_admit(&self, kind: JobKind, bytes: u64) -> Result<Permit, Rejected> {
        let mut state = self.inner.state.lock();
        match self.inner.try_locked(&mut state, kind, bytes) {
            Attempt::Admitted(permit) => Ok(permit),
            Attempt::Refused(rejected) => Err(rejected),
            Attempt::MustWait => Err(Self::overloaded(kind)),
        }
    }

    /// Admits, waiting in a bounded queue for a bounded time if there is no room.
    ///
    /// Cancel safe: a dropped future leaves the queue and holds nothing.
    ///
    /// # Errors
    /// [`Rejected`] when the class takes nothing new, the queue is full, or no room came in time.
    pub async fn admit(&self, kind: JobKind, bytes: u64) -> Result<Permit, Rejected> {
        let (answer, time) = {
            let mut state = self.inner.state.lock();
            match self.inner.try_locked(&mut state, kind, bytes) {
                Attempt::Admitted(permit) => return Ok(permit),
                Attempt::Refused(rejected) => return Err(rejected),
                Attempt::MustWait => {}
            }
            let time = Duration::from_millis(state.limits.queue_wait_ms);
            let queue_max = state.limits.of(kind).queue_max as usize;
            let queue = &mut state.classes[kind.index()].queue;
            // Those that gave up count no longer.
            queue.retain(|waiter| !waiter.answer.is_closed());
            if queue.len() >= queue_max {
                return Err(Self::overloaded(kind));
            }
            let (sender, receiver) = oneshot::channel();
            queue.push_back(Waiter { bytes, answer: sender });
            self.inner.measure(kind, &mut state.classes[kind.index()]);
            (receiver, time)
        };
        let mut waiting = Waiting { inner: &self.inner, kind, answer, is_answered: false };
        match tokio::time::timeout(time, &mut waiting.answer).await {
            Ok(Ok(result)) => {
                waiting.is_answered = true;
                result
            }
            _ => Err(Self::overloaded(kind)),
        }
    }

    fn overloaded(kind: JobKind) -> Rejected {
        let rejected = Rejected { retry_after_seconds: 1, reason: "overloaded" };
        metrics::counter!("holdfast_admission_rejected_total", "class" => kind.as_str(), "reason" => rejected.reason)
            .increment(1);
        rejected
    }
}

enum Attempt {
    Admitted(Permit),
    Refused(Rejected),
    MustWait,
}

/// Answers to waiters, sent after the lock is released: dropping a permit that nobody takes locks again.
type Answers = Vec<(oneshot::Sender<Result<Permit, Rejected>>, Result<Permit, Rejected>)>;

fn deliver(answers: Answers) {
    for (sender, answer) in answers {
        // A waiter that just gave up: its permit comes back in the error and is dropped here.
        drop(sender.send(answer));
    }
}

impl Inner {
    fn try_locked(self: &Arc<Self>, state: &mut State, kind: JobKind, bytes: u64) -> Attempt {
        let State { limits, classes } = state;
        let class = &mut classes[kind.index()];
        let limits: &ClassLimits = limits.of(kind);
        let others_wait = class.queue.iter().any(|waiter| !waiter.answer.is_closed());
        if others_wait && limits.refused.is_none() {
            return Attempt::MustWait;
        }
        match class.budget.decide(limits, bytes) {
            Verdict::Admit => {
                self.meters[kind.index()].admitted.increment(1);
                self.measure(kind, class);
                Attempt::Admitted(Permit { admission: self.clone(), kind, bytes })
            }
            Verdict::Wait => Attempt::MustWait,
            Verdict::Refuse(refusal) => Attempt::Refused(refused(kind, refusal)),
        }
    }

    /// Leaves out those that gave up: one that needed much room may have stood before others that need little.
    fn pass_over(self: &Arc<Self>, kind: JobKind) {
        let mut answers = Vec::new();
        {
            let mut state = self.state.lock();
            state.classes[kind.index()].queue.retain(|waiter| !waiter.answer.is_closed());
            self.grant(&mut state, kind, &mut answers);
        }
        deliver(answers);
    }

    /// Gives free room to those that wait, in order.
    fn grant(self: &Arc<Self>, state: &mut State, kind: JobKind, answers: &mut Answers) {
        let State { limits, classes } = state;
        let class = &mut classes[kind.index()];
        while let Some(waiter) = class.queue.pop_front() {
            if waiter.answer.is_closed() {
                continue;
            }
            match class.budget.decide(limits.of(kind), waiter.bytes) {
                Verdict::Admit => {
                    self.meters[kind.index()].admitted.increment(1);
                    answers.push((waiter.answer, Ok(Permit { admission: self.clone(), kind, bytes: waiter.bytes })));
                }
                Verdict::Refuse(refusal) => answers.push((waiter.answer, Err(refused(kind, refusal)))),
                Verdict::Wait => {
                    class.queue.push_front(waiter);
                    break;
                }
            }
        }
        self.measure(kind, class);
    }

    /// Shows a class. What did not change is left alone: reads have no bytes and seldom wait, all cores write to these
    /// gauges, and each holds the lock meanwhile.
    fn measure(&self, kind: JobKind, class: &mut Class) {
        let meters = &self.meters[kind.index()];
        meters.jobs.set(f64::from(class.budget.jobs()));
        let now = (class.budget.bytes(), class.queue.len());
        let shown = std::mem::replace(&mut class.shown, now);
        if shown.0 != now.0 {
            meters.bytes.set(now.0 as f64);
        }
        if shown.1 != now.1 {
            meters.queued.set(now.1 as f64);
        }
    }
}

fn refused(kind: JobKind, refusal: Refusal) -> Rejected {
    let reason = refusal.as_str();
    metrics::counter!("holdfast_admission_rejected_total", "class" => kind.as_str(), "reason" => reason).increment(1);
    Rejected { retry_after_seconds: refusal.retry_after_seconds(), reason }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut answers = Vec::new();
        {
            let mut state = self.admission.state.lock();
            state.classes[self.kind.index()].budget.release(self.bytes);
            self.admission.grant(&mut state, self.kind, &mut answers);
        }
        deliver(answers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(jobs_max: u32, queue_max: u32) -> Limits {
        let class = ClassLimits { jobs_max, bytes_max: 100, queue_max, refused: None };
        Limits { read: class, write: class, queue_wait_ms: 1_000 }
    }

    #[tokio::test(start_paused = true)]
    async fn waiter_gets_the_permit_that_is_dropped() {
        let admission = Admission::new(limits(1, 1));
        let first = admission.admit(JobKind::Write, 10).await.unwrap();
        let waiting = tokio::spawn({
            let admission = admission.clone();
            async move { admission.admit(JobKind::Write, 10).await }
        });
        while admission.usage(JobKind::Write).2 == 0 {
            tokio::task::yield_now().await;
        }
        drop(first);
        let second = waiting.await.unwrap().unwrap();
        assert_eq!(admission.usage(JobKind::Write), (1, 10, 0));
        drop(second);
        assert_eq!(admission.usage(JobKind::Write), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_bounded_in_length_and_time() {
        let admission = Admission::new(limits(1, 1));
        let held = admission.admit(JobKind::Write, 10).await.unwrap();
        let (a, b) = tokio::join!(admission.admit(JobKind::Write, 1), admission.admit(JobKind::Write, 1));
        assert!(a.is_err() && b.is_err());
        assert_eq!(admission.usage(JobKind::Write), (1, 10, 0), "nobody waits any more");
        drop(held);
        assert_eq!(admission.usage(JobKind::Write).0, 0, "waiters that gave up hold nothing");
        assert!(admission.try_admit(JobKind::Write, 1).is_ok(), "waiters that gave up block nobody");
    }

    #[tokio::test(start_paused = true)]
    async fn who_needs_little_does_not_wait_for_one_that_gave_up() {
        let admission = Admission::new(limits(3, 2));
        let _held = admission.admit(JobKind::Write, 60).await.unwrap();
        let later = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            admission.admit(JobKind::Write, 10).await
        };
        let (large, small) = tokio::join!(admission.admit(JobKind::Write, 60), later);
        assert!(large.is_err());
        assert!(small.is_ok());
        assert_eq!(admission.usage(JobKind::Write), (2, 70, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_needs_little_does_not_wait_for_one_that_went_away() {
        let admission = Admission::new(limits(3, 2));
        let _held = admission.admit(JobKind::Write, 60).await.unwrap();
        let mut large = Box::pin(admission.admit(JobKind::Write, 60));
        assert!(futures::poll!(large.as_mut()).is_pending());
        let mut small = Box::pin(admission.admit(JobKind::Write, 10));
        assert!(futures::poll!(small.as_mut()).is_pending(), "in the order of arrival");
        drop(large);
        let permit = small.await.expect("there was room all the time");
        assert_eq!(admission.usage(JobKind::Write), (2, 70, 0));
        // Who goes away at the moment at which it is admitted holds nothing.
        let mut late = Box::pin(admission.admit(JobKind::Write, 40));
        assert!(futures::poll!(late.as_mut()).is_pending());
        drop(permit);
        assert_eq!(admission.usage(JobKind::Write), (2, 100, 0));
        drop(late);
        assert_eq!(admission.usage(JobKind::Write), (1, 60, 0));
    }

    #[tokio::test]
    async fn writes_do_not_starve_reads() {
        let admission = Admission::new(limits(1, 0));
        let _write = admission.admit(JobKind::Write, 100).await.unwrap();
        assert!(admission.try_admit(JobKind::Write, 1).is_err());
        assert!(admission.try_admit(JobKind::Read, 100).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn draining_answers_those_that_wait_and_lets_the_admitted_end() {
        let admission = Admission::new(limits(1, 4));
        let held = admission.admit(JobKind::Read, 0).await.unwrap();
        let waiting = tokio::spawn({
            let admission = admission.clone();
            async move { admission.admit(JobKind::Read, 0).await }
        });
        while admission.usage(JobKind::Read).2 == 0 {
            tokio::task::yield_now().await;
        }
        let mut draining = limits(1, 4);
        draining.read.refused = Some(Refusal::Draining);
        admission.publish(draining);
        assert_eq!(waiting.await.unwrap().unwrap_err().reason, "draining");
        assert_eq!(admission.usage(JobKind::Read).0, 1);
        drop(held);
        assert_eq!(admission.usage(JobKind::Read).0, 0);
    }
}
