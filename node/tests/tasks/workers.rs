//! Workers that come twice, die, are late, or are told what is not due.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use holdfast_actors::domain::cleanup::PassEnd;
use holdfast_actors::flow::consume::{Consumer, Handled};
use holdfast_actors::flow::tasks::{TASKS_GROUP, TaskWorker, consume_settings};
use holdfast_actors::ports::MetadataError;
use holdfast_actors::ports::events::{EventBus as _, SubscribeOptions, Topic};
use holdfast_actors::ports::metadata::{ContentSource, MetadataDirect as _, MetadataUpkeep as _};
use holdfast_protocol::{ContentId, Task};

use super::{GRACE_MS, PATIENCE, UPLOAD_AGE_MS, World, message, patient};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_tasks_and_several_workers_at_once_do_it_once() {
    let world = World::new(patient()).await;
    let contents = world.due(15).await;
    let task = world.lost_task().await;
    let workers: Vec<TaskWorker> = (0..4).map(|_| world.worker()).collect();
    let handled = futures::future::join_all(workers.iter().map(|worker| worker.handle(&task))).await;
    assert!(handled.iter().all(|handled| *handled == Handled::Done), "{handled:?}");
    assert!(contents.iter().all(|content| !world.has(content)));
    assert_eq!(world.waiting().await, 0);

    // Long after, when the rows are gone and there is something new.
    let kept = world.put("kept").await;
    let deleted = world.put("deleted").await;
    world.delete("deleted").await;
    assert_eq!(world.worker().handle(&task).await, Handled::Done);
    assert!(world.has(&kept) && world.has(&deleted));
    assert_eq!(world.waiting().await, 1);
}

/// Polls a future until it has waited `left` times, and drops it then.
struct DropAfter<F> {
    future: Pin<Box<F>>,
    left: usize,
}

impl<F: Future> Future for DropAfter<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if self.left == 0 => Poll::Ready(None),
            Poll::Pending => {
                self.left -= 1;
                Poll::Pending
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_dropped_at_any_await_leaves_work_that_the_next_one_ends() {
    let world = World::new(patient()).await;
    for left in 0.. {
        let contents = world.due(6).await;
        let task = world.lost_task().await;
        let worker = world.worker();
        let handled = DropAfter { future: Box::pin(worker.handle(&task)), left }.await;
        let named: HashSet<ContentId> =
            world.store.waiting_reclaims(u64::MAX >> 1, 100).await.unwrap().iter().map(|item| item.content).collect();
        for content in &contents {
            assert!(named.contains(content) || !world.has(content), "forgotten with its chunk there, after {left}");
        }
        assert_eq!(world.worker().handle(&task).await, Handled::Done);
        assert!(contents.iter().all(|content| !world.has(content)));
        // A transaction of the worker that was dropped may be under way.
        let begun = Instant::now();
        while world.waiting().await > 0 {
            assert!(begun.elapsed() < PATIENCE, "{} are left", world.waiting().await);
            world.worker().handle(&task).await;
        }
        if handled.is_some() {
            assert!(left > 3, "it was dropped in the middle before");
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_up_again_before_the_task_is_handled_stays() {
    let world = World::new(patient()).await;
    let contents = world.due(3).await;
    let task = world.lost_task().await;
    world.commit("copy", ContentSource::Shared(contents[0])).await.unwrap();
    world.commit("short", ContentSource::Shared(contents[1])).await.unwrap();
    world.delete("short").await;
    assert_eq!(world.worker().handle(&task).await, Handled::Done);
    assert!(world.has(&contents[0]), "an object has it");
    assert!(world.has(&contents[1]), "its grace began anew");
    assert!(!world.has(&contents[2]));
    let refused = world.commit("late", ContentSource::Shared(contents[2])).await;
    assert!(matches!(refused, Err(MetadataError::NoSuchContent)), "{refused:?}");
    world.go_on(GRACE_MS + 1);
    assert_eq!(world.worker().handle(&task).await, Handled::Done);
    assert!(world.has(&contents[1]), "this task was of before");
    let again = world.lost_task().await;
    assert_eq!(world.worker().handle(&again).await, Handled::Done);
    assert!(world.has(&contents[0]) && !world.has(&contents[1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_uploads_expire_by_tasks_and_give_their_parts_back() {
    let mut world = World::new(patient()).await;
    world.employ(consume_settings());
    let (stale, part) = world.upload("stale").await;
    world.go_on(UPLOAD_AGE_MS + 1);
    let (young, _) = world.upload("young").await;
    let (stats, _) = world.dispatcher.expire_uploads(Some(UPLOAD_AGE_MS)).await.unwrap();
    assert_eq!(stats.items, 1);
    assert!(matches!(world.store.upload(world.bucket, "stale", stale).await, Err(MetadataError::NoSuchUpload)));
    assert!(world.store.upload(world.bucket, "young", young).await.is_ok());
    assert_eq!(world.bus.published()[0].tag, "expire-uploads");
    world.go_on(GRACE_MS + 1);
    assert_eq!(world.settle().await.items, 1);
    assert!(!world.has(&part));
    // A task that comes late, or was made by a node that is wrong about the age, ends nothing that is young.
    let task = message(&Task::ExpireUploads { before_ms: u64::MAX >> 1, uploads: vec![stale, young] });
    assert_eq!(world.worker().handle(&task).await, Handled::Done);
    assert!(world.store.upload(world.bucket, "young", young).await.is_ok());
    let (stats, end) = world.dispatcher.expire_uploads(None).await.unwrap();
    assert_eq!((stats.items, end), (0, PassEnd::Done));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_bounded_by_the_workers_own_clock_and_grace() {
    let world = World::new(patient()).await;
    let contents = world.due(1).await;
    let task = world.lost_task().await;
    // The worker's clock is behind that of the dispatcher.
    world.clock.0.fetch_sub(20_000, Ordering::Relaxed);
    assert_eq!(world.worker().handle(&task).await, Handled::Later(Duration::from_secs(20)));
    world.clock.0.fetch_sub(3_600_000, Ordering::Relaxed);
    assert_eq!(world.worker().handle(&task).await, Handled::Done, "that is no matter of clocks");
    assert!(world.has(&contents[0]));
    world.go_on(3_620_000);
    let worker = TaskWorker { grace: Duration::from_secs(3600), ..world.worker() };
    assert_eq!(worker.handle(&task).await, Handled::Done);
    assert!(world.has(&contents[0]), "its grace is longer");
    assert_eq!(world.worker().handle(&task).await, Handled::Done);
    assert!(!world.has(&contents[0]));
}

/// Of a worker that dies with a task the bus knows nothing: the task comes to another when its lease is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_worker_had_is_done_by_another_and_is_sent_once() {
    let mut world = World::new(patient()).await;
    let contents = world.due(3).await;
    let options = SubscribeOptions { group: TASKS_GROUP.into(), lease: Duration::from_secs(1) };
    let mut killed = world.bus.subscribe(Topic::Tasks, options).await.unwrap();
    let dispatcher = world.dispatcher.clone();
    let sending = tokio::spawn(async move { dispatcher.reclaim(GRACE_MS).await });
    let had = killed.receive(1, PATIENCE).await.unwrap();
    assert_eq!((had.len(), had[0].attempt), (1, 1));
    drop(killed);

    world.employ(consume_settings());
    tokio::time::timeout(PATIENCE, sending).await.expect("the task is done in time").unwrap().unwrap();
    world.settle().await;
    assert!(contents.iter().all(|content| !world.has(content)));
    assert_eq!(world.bus.published().len(), 1, "the holder of the duty gave nothing out again");
}
