use super::*;
use crate::buf::BufferPoolConfig;

#[test]
fn a_disk_with_a_ring_of_its_own_leaves_that_of_the_thread_to_others() {
    if probe().is_err() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let pool = BufferPool::new(BufferPoolConfig { large_count: 1, small_count: 4 }).expect("a pool");
    let shared = UringIo::new(&pool).expect("a background ring");
    let own = shared.on_own_ring(&Flights::new(Duration::from_secs(60))).expect("a ring of its own");
    block_on(&pool, async {
        let here = RING.with_borrow(Clone::clone).expect("block_on attached it");
        for (io, on_this_ring, name) in [(&shared, 1, "a"), (&own, 0, "b")] {
            let file = io.create(&dir.path().join(name), OpenMode::Buffered).expect("a file");
            let buf = pool.acquire(4096).await.freeze();
            let mut write = file.write_at(0, buf, 0..4096);
            let begun = futures::poll!(write.as_mut());
            assert_eq!(here.in_flight.get(), on_this_ring, "{name}");
            match begun {
                Poll::Ready(done) => done.expect("it is written"),
                Poll::Pending => write.await.expect("it is written"),
            }
            assert_eq!(file.len().expect("a length"), 4096);
        }
    })
    .expect("a ring");
    assert!(pool.is_idle());
}

#[test]
fn a_directory_that_is_not_there_yet_is_where_its_parent_is() {
    let dir = tempfile::tempdir().expect("a directory");
    assert_eq!(files::is_remote(&dir.path().join("not/there")), files::is_remote(dir.path()));
    assert!(!files::is_remote(Path::new("/proc/self")));
}
