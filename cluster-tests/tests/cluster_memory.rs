//! A peer that stands still costs its cluster no memory (promise D7).

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use holdfast_cluster_tests::client::Request;
use holdfast_cluster_tests::cluster::{Cluster, Options};
use holdfast_cluster_tests::content;
use rustix::process::Signal;

const UPLOADS: u64 = 64;
const SIZE: usize = 24 << 20;
/// For how long an upload is tried again.
const PATIENCE: Duration = Duration::from_secs(300);
/// What issue 3 allows a node; resident, with everything.
const MEMORY_MAX: u64 = 384 << 20;

#[test]
fn memory_stays_bounded_with_64_uploads_while_a_peer_is_paused() {
    // The buffers that a node has by default.
    let environment = vec![("HOLDFAST_STORAGE_LARGE_BUFFERS", "80"), ("HOLDFAST_STORAGE_SMALL_BUFFERS", "256")];
    let cluster = Cluster::start_with(3, Options { environment, direct: true, ..Options::default() });
    cluster.client(0).create_bucket("memory");
    let body = content::bytes(3, SIZE);
    cluster.members[2].node.signal(Signal::STOP);
    let (done, stored) = (AtomicBool::new(false), AtomicU64::new(0));
    let peak = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = [0; 2];
            while !done.load(Ordering::Relaxed) {
                for (at, peak) in peak.iter_mut().enumerate() {
                    *peak = cluster.members[at].node.memory().1.max(*peak);
                }
                // A sample now and then.
                std::thread::sleep(Duration::from_millis(20));
            }
            peak
        });
        let uploads: Vec<_> = (0..UPLOADS)
            .map(|n| {
                let (body, client, stored) = (&body, cluster.client(0), &stored);
                scope.spawn(move || {
                    let path = format!("/memory/k{n}");
                    // 503 SlowDown is an answer too; what matters is that it holds no memory.
                    let begin = Instant::now();
                    while begin.elapsed() < PATIENCE {
                        let put = Request { method: "PUT", path: &path, body, ..Request::default() };
                        if client.send(&put).is_ok_and(|response| response.status == 200) {
                            stored.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                        // A client that was told to slow down does.
                        std::thread::sleep(Duration::from_millis(500));
                    }
                })
            })
            .collect();
        let failed = uploads.into_iter().filter_map(|upload| upload.join().err()).count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(failed, 0);
        watch.join().unwrap()
    });
    let stored = stored.into_inner();
    println!("{stored} of {UPLOADS} uploads stored, anonymous memory at most {:?} MiB", peak.map(|peak| peak >> 20));
    assert!(stored >= UPLOADS / 2, "only {stored} uploads of {UPLOADS} got through with one peer of three paused");
    for peak in peak {
        assert!(peak <= MEMORY_MAX, "{} MiB of anonymous memory", peak >> 20);
    }
    cluster.members[2].node.signal(Signal::CONT);
}
