//! Consumers over the bus within the process, with a journal in memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use holdfast_protocol::EventId;
use holdfast_protocol::journal::{AuditRecord, DeadLetter, Entry, ErrorRecord};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::*;
use crate::ports::SystemClock;
use crate::ports::events::{InProcessEventBus, InProcessLimits};
use crate::ports::journal::{AuditFilter, ErrorFilter, Retention};
use crate::ports::metadata::MetadataResult;

/// Keeps burials and errors; refuses them while it is away.
#[derive(Default)]
pub(in crate::flow) struct Memory {
    dead_letters: Mutex<Vec<NewDeadLetter>>,
    pub(in crate::flow) errors: Mutex<Vec<ErrorRecord>>,
    pub(in crate::flow) away: AtomicBool,
}

#[async_trait]
impl Journal for Memory {
    async fn add_errors(&self, errors: &[ErrorRecord]) -> MetadataResult<()> {
        if self.away.load(Ordering::Relaxed) {
            return Err(MetadataError::Unavailable("away".into()));
        }
        self.errors.lock().extend_from_slice(errors);
        Ok(())
    }
    async fn errors(&self, _: &ErrorFilter, _: Option<u64>, _: u32) -> MetadataResult<Vec<Entry<ErrorRecord>>> {
        unreachable!()
    }
    async fn add_audit(&self, _: &AuditRecord) -> MetadataResult<()> {
        unreachable!()
    }
    async fn audit(&self, _: &AuditFilter, _: Option<u64>, _: u32) -> MetadataResult<Vec<Entry<AuditRecord>>> {
        unreachable!()
    }
    async fn trim(&self, _: Retention, _: Retention, _: u32) -> MetadataResult<u64> {
        unreachable!()
    }
    async fn add_dead_letter(&self, letter: NewDeadLetter) -> MetadataResult<()> {
        if self.away.load(Ordering::Relaxed) {
            return Err(MetadataError::Unavailable("away".into()));
        }
        self.dead_letters.lock().push(letter);
        Ok(())
    }
    async fn dead_letters(&self, _: u64, _: u32) -> MetadataResult<Vec<DeadLetter>> {
        unreachable!()
    }
    async fn dead_letter(&self, _: u64) -> MetadataResult<DeadLetter> {
        unreachable!()
    }
    async fn dead_message(&self, _: u64) -> MetadataResult<(Topic, Message)> {
        unreachable!()
    }
    async fn discard(&self, _: u64) -> MetadataResult<()> {
        unreachable!()
    }
}

/// Does as the body of a message says, and remembers how often it was asked.
#[derive(Default)]
struct Obedient {
    tries: Mutex<BTreeMap<u64, u32>>,
    done: Mutex<Vec<u64>>,
}

#[async_trait]
impl Consumer for Obedient {
    fn topic(&self) -> Topic {
        Topic::Tasks
    }

    fn group(&self) -> &'static str {
        "obedient"
    }

    async fn handle(&self, message: &Message) -> Handled {
        let id = message.id.sequence;
        let tries = {
            let mut tries = self.tries.lock();
            let tries = tries.entry(id).or_default();
            *tries += 1;
            *tries
        };
        match &message.body[..] {
            b"fail" => Handled::Failed("it always fails".into()),
            b"fail twice" if tries <= 2 => Handled::Failed("not yet".into()),
            b"later" if tries == 1 => Handled::Later(Duration::from_secs(30)),
            b"hopeless" => Handled::Hopeless("nobody can read this".into()),
            b"panic" => panic!("try {tries}"),
            b"hang" if tries == 1 => std::future::pending().await,
            _ => {
                self.done.lock().push(id);
                Handled::Done
            }
        }
    }
}

struct World {
    bus: InProcessEventBus,
    journal: Arc<Memory>,
    consumer: Arc<Obedient>,
    reporter: Reporter,
    running: tokio::task::JoinHandle<String>,
}

fn settings() -> ConsumeSettings {
    ConsumeSettings { attempts_max: 4, ..ConsumeSettings::default() }
}

impl World {
    async fn new() -> Self {
        let bus = InProcessEventBus::new(InProcessLimits::default());
        let (journal, consumer) = (Arc::new(Memory::default()), Arc::new(Obedient::default()));
        let reporter = Reporter::new("node", Arc::new(SystemClock));
        let parts = ConsumeParts {
            bus: Arc::new(bus.clone()),
            journal: journal.clone(),
            clock: Arc::new(SystemClock),
            reporter: Some(reporter.clone()),
            settings: settings(),
        };
        let running = tokio::spawn(run(parts, consumer.clone()));
        // Of virtual time, which passes only when every group has subscribed and waits.
        tokio::time::sleep(Duration::from_millis(10)).await;
        Self { bus, journal, consumer, reporter, running }
    }

    /// Publishes and waits until every group is through with it.
    fn send(&self, id: u64, body: &'static str) -> tokio::task::JoinHandle<Result<(), EventError>> {
        let bus = self.bus.clone();
        let message = Message {
            id: EventId { sequence: id, nonce: 0 },
            order_key: format!("key {id}"),
            tag: "test".into(),
            keys: vec![],
            body: Bytes::from_static(body.as_bytes()),
        };
        tokio::spawn(async move {
            bus.publish(Topic::Tasks, &message, Instant::now() + Duration::from_secs(24 * 3600)).await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn message_that_always_fails_becomes_a_dead_letter_and_others_pass() {
    let world = World::new().await;
    let dead = world.send(1, "fail");
    for id in 2..50 {
        world.send(id, "fine").await.unwrap().unwrap();
    }
    assert_eq!(world.consumer.done.lock().len(), 48, "they pass while the first is tried again");
    dead.await.unwrap().unwrap();
    assert_eq!(world.consumer.tries.lock()[&1], 4);
    let dead_letters = world.journal.dead_letters.lock().clone();
    assert_eq!(dead_letters.len(), 1);
    assert_eq!(
        (dead_letters[0].message.id.sequence, dead_letters[0].attempts, &*dead_letters[0].error),
        (1, 4, "it always fails")
    );
    assert_eq!((dead_letters[0].topic, &*dead_letters[0].group), (Topic::Tasks, "obedient"));
    // Once more after that time: it is gone from the bus, and operators are told.
    drop(tokio::time::timeout(Duration::from_secs(3600), world.reporter.publish(&world.bus, &*world.journal)).await);
    assert_eq!(world.consumer.tries.lock()[&1], 4);
    let errors = world.journal.errors.lock().clone();
    assert_eq!(errors.iter().map(|error| error.kind).collect::<Vec<_>>(), [ErrorKind::TaskFailed]);
    assert!(errors[0].subject.contains("(test) of tasks"), "{:?}", errors[0]);
}

#[tokio::test(start_paused = true)]
async fn failures_that_pass_and_messages_whose_time_has_not_come_are_tried_again_with_pauses() {
    let world = World::new().await;
    let begun = Instant::now();
    world.send(1, "fail twice").await.unwrap().unwrap();
    // One second after the first failure, two after the next.
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(world.consumer.tries.lock()[&1], 3);
    let begun = Instant::now();
    world.send(2, "later").await.unwrap().unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(30), "{:?}", begun.elapsed());
    assert_eq!(*world.consumer.done.lock(), [1, 2]);
    assert!(world.journal.dead_letters.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn hopeless_message_is_kept_at_once_and_one_that_hangs_is_cut_off() {
    let world = World::new().await;
    world.send(1, "hopeless").await.unwrap().unwrap();
    assert_eq!(world.consumer.tries.lock()[&1], 1);
    assert_eq!(world.journal.dead_letters.lock()[0].attempts, 1);
    world.send(2, "hang").await.unwrap().unwrap();
    assert_eq!(world.consumer.tries.lock()[&2], 2);
    assert_eq!(*world.consumer.done.lock(), [2]);
}

#[tokio::test(start_paused = true)]
async fn message_that_makes_its_consumer_panic_is_given_up_and_the_consumer_goes_on() {
    let world = World::new().await;
    let poison = world.send(1, "panic");
    world.send(2, "fine").await.unwrap().unwrap();
    poison.await.unwrap().unwrap();
    assert_eq!(world.consumer.tries.lock()[&1], 4);
    let dead_letters = world.journal.dead_letters.lock().clone();
    assert_eq!(dead_letters.iter().map(|letter| &*letter.error).collect::<Vec<_>>(), ["it panicked: try 4"]);
    assert!(!world.running.is_finished());
}

#[tokio::test(start_paused = true)]
async fn message_is_never_dropped_while_it_cannot_be_kept() {
    let world = World::new().await;
    world.journal.away.store(true, Ordering::Relaxed);
    let dead = world.send(1, "hopeless");
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    assert!(!dead.is_finished(), "the bus still has it");
    world.journal.away.store(false, Ordering::Relaxed);
    dead.await.unwrap().unwrap();
    assert_eq!(world.journal.dead_letters.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn consumer_ends_with_the_bus() {
    let world = World::new().await;
    world.bus.close().await;
    assert_eq!(world.running.await.unwrap(), "the bus is closed");
}

#[test]
fn pauses_double_up_to_their_longest() {
    let settings = ConsumeSettings::default();
    let pauses: Vec<u64> = (1..=12).map(|attempt| settings.pause_after(attempt).as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
    assert_eq!(settings.pause_after(u32::MAX), settings.pause_max);
}
