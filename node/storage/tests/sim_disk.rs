//! The simulated disk fails as real ones do, and the same way for the same seed. Seeds are in the messages of failures.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_storage::buf::{BufferPool, BufferPoolConfig, SMALL_BYTES};
use holdfast_storage::io::sim::{Fault, SimIo};
use holdfast_storage::io::{BlockFile, BlockIo, OpenMode};

const SEEDS: u64 = 200;
const BLOCK: usize = 4096;

struct World {
    disk: SimIo,
    pool: Arc<BufferPool>,
}

impl World {
    fn new(seed: u64) -> World {
        let disk = SimIo::new(seed);
        disk.create_dir(Path::new("/d")).unwrap();
        World { disk, pool: BufferPool::new(BufferPoolConfig { large_count: 1, small_count: 16 }).unwrap() }
    }

    fn create(&self, name: &str) -> Arc<dyn BlockFile> {
        self.disk.create(&path(name), OpenMode::Direct).unwrap()
    }

    /// A file whose name is durable.
    fn create_durably(&self, name: &str) -> Arc<dyn BlockFile> {
        let file = self.create(name);
        self.disk.sync_dir(Path::new("/d")).unwrap();
        file
    }

    async fn write(&self, file: &Arc<dyn BlockFile>, offset: u64, fill: u8, len: usize) -> std::io::Result<()> {
        let mut buf = self.pool.acquire(len).await;
        buf[..len].fill(fill);
        file.write_at(offset, buf.freeze(), 0..len).await
    }

    async fn read(&self, file: &Arc<dyn BlockFile>, offset: u64, len: usize) -> Vec<u8> {
        let (read, buf) = file.read_at(offset, self.pool.acquire(len).await, len).await;
        buf[..read.unwrap()].to_vec()
    }

    fn crash_and_open(&self, name: &str) -> std::io::Result<Arc<dyn BlockFile>> {
        self.disk.crash();
        self.disk.recover();
        self.disk.open(&path(name), OpenMode::Direct)
    }
}

fn path(name: &str) -> PathBuf {
    Path::new("/d").join(name)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn synced_writes_survive_every_crash() {
    for seed in 0..SEEDS {
        run(async {
            let world = World::new(seed);
            let file = world.create_durably("a");
            world.write(&file, 0, 7, 2 * BLOCK).await.unwrap();
            file.sync_data().await.unwrap();
            world.write(&file, 4 * BLOCK as u64, 8, BLOCK).await.unwrap();
            let file = world.crash_and_open("a").unwrap();
            assert_eq!(world.read(&file, 0, 2 * BLOCK).await, vec![7; 2 * BLOCK], "seed {seed}");
        });
    }
}

#[test]
fn unsynced_writes_are_kept_lost_or_torn() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..SEEDS {
        run(async {
            let world = World::new(seed);
            let file = world.create_durably("a");
            world.write(&file, 0, 1, SMALL_BYTES).await.unwrap();
            file.sync_data().await.unwrap();
            world.write(&file, 0, 2, SMALL_BYTES).await.unwrap();
            let file = world.crash_and_open("a").unwrap();
            let contents = world.read(&file, 0, SMALL_BYTES).await;
            for sector in contents.chunks(512) {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "seed {seed}: a sector is torn");
            }
            match (contents.contains(&1), contents.contains(&2)) {
                (false, true) => kept += 1,
                (true, false) => lost += 1,
                (true, true) => torn += 1,
                (false, false) => panic!("seed {seed}: bytes that nobody wrote"),
            }
        });
    }
    assert!(kept > 0 && lost > 0 && torn > 0, "kept {kept}, lost {lost}, torn {torn}");
}

#[test]
fn unsynced_names_are_kept_or_lost_each_on_its_own() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..SEEDS {
        let world = World::new(seed);
        world.create_durably("old");
        world.create("new");
        world.disk.rename(&path("old"), &path("renamed")).unwrap();
        world.disk.crash();
        world.disk.recover();
        let names = world.disk.list(Path::new("/d")).unwrap();
        seen.insert((names.contains(&path("new")), names.contains(&path("renamed")), names.contains(&path("old"))));
    }
    for new in [false, true] {
        for renamed in [false, true] {
            assert!(seen.contains(&(new, renamed, !renamed)), "new {new}, renamed {renamed}: never seen");
        }
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn removed_file_may_come_back_until_the_directory_is_synced() {
    let mut back = 0;
    for seed in 0..SEEDS {
        run(async {
            let world = World::new(seed);
            let file = world.create_durably("a");
            world.write(&file, 0, 7, BLOCK).await.unwrap();
            file.sync_data().await.unwrap();
            world.disk.unlink(&path("a")).unwrap();
            if let Ok(file) = world.crash_and_open("a") {
                assert_eq!(world.read(&file, 0, BLOCK).await, vec![7; BLOCK], "seed {seed}");
                back += 1;
            }
        });
    }
    assert!(back > 0 && back < SEEDS);
    let world = World::new(0);
    world.create_durably("a");
    world.disk.unlink(&path("a")).unwrap();
    world.disk.sync_dir(Path::new("/d")).unwrap();
    assert!(world.crash_and_open("a").is_err());
}

#[test]
fn files_opened_before_a_crash_are_dead_and_operations_fail_until_recovery() {
    run(async {
        let world = World::new(3);
        let file = world.create_durably("a");
        world.disk.inject(world.disk.ops() + 2, Fault::Crash);
        world.write(&file, 0, 1, BLOCK).await.unwrap();
        assert!(world.write(&file, 0, 2, BLOCK).await.is_err(), "the crash was planned for the second operation");
        assert!(world.disk.is_down());
        assert!(world.disk.list(Path::new("/d")).is_err());
        world.disk.recover();
        assert!(world.write(&file, 0, 3, BLOCK).await.is_err(), "the file is of the time before the crash");
        assert!(file.sync_data().await.is_err());
        assert!(world.pool.is_idle());
    });
}

#[test]
fn failed_sync_leaves_chance_and_later_syncs_do_not_repair_it() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        run(async {
            let world = World::new(seed);
            let file = world.create_durably("a");
            world.write(&file, 0, 1, BLOCK).await.unwrap();
            world.disk.inject(0, Fault::FailedSync);
            assert!(file.sync_data().await.is_err(), "seed {seed}");
            assert_eq!(world.read(&file, 0, BLOCK).await, vec![1; BLOCK], "seed {seed}: the cache has it");
            file.sync_data().await.unwrap();
            let file = world.crash_and_open("a").unwrap();
            lost += u64::from(world.read(&file, 0, BLOCK).await != vec![1; BLOCK]);
        });
    }
    assert!(lost > 0 && lost < SEEDS, "lost {lost}");
}

#[test]
fn lost_flushes_look_like_syncs_until_the_crash() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        run(async {
            let world = World::new(seed);
            let file = world.create_durably("a");
            world.disk.set_lose_flushes(true);
            world.write(&file, 0, 1, BLOCK).await.unwrap();
            file.sync_data().await.unwrap();
            let file = world.crash_and_open("a").unwrap();
            lost += u64::from(world.read(&file, 0, BLOCK).await != vec![1; BLOCK]);
        });
    }
    assert!(lost > 0);
}

#[test]
fn planned_faults_strike_once_and_where_they_can() {
    run(async {
        let world = World::new(5);
        let file = world.create_durably("a");
        world.write(&file, 0, 1, 8 * BLOCK).await.unwrap();

        world.disk.inject(0, Fault::LostWrite);
        world.write(&file, 0, 2, BLOCK).await.unwrap();
        assert_eq!(world.read(&file, 0, BLOCK).await, vec![1; BLOCK]);
        world.write(&file, 0, 2, BLOCK).await.unwrap();
        assert_eq!(world.read(&file, 0, BLOCK).await, vec![2; BLOCK]);

        world.disk.inject(0, Fault::MisdirectedWrite);
        assert_eq!(world.read(&file, 0, BLOCK).await, vec![2; BLOCK], "a read is not struck");
        world.write(&file, 0, 3, 512).await.unwrap();
        assert_ne!(world.read(&file, 0, 512).await, vec![3; 512]);
        assert!(world.read(&file, 0, SMALL_BYTES).await.contains(&3), "it landed elsewhere in the file");

        world.disk.inject(0, Fault::Eio);
        assert!(world.write(&file, 0, 4, BLOCK).await.is_err());
        world.write(&file, 0, 4, BLOCK).await.unwrap();

        world.disk.rot(&path("a"), 10, 3).unwrap();
        let mut expected = vec![4; BLOCK];
        expected[10] ^= 8;
        assert_eq!(world.read(&file, 0, BLOCK).await, expected);
    });
}

#[test]
fn full_disk_refuses_writes_and_punching_gives_space_back() {
    run(async {
        let world = World::new(6);
        let file = world.create_durably("a");
        world.disk.set_capacity(4 * BLOCK as u64);
        file.allocate(3 * BLOCK as u64).unwrap();
        world.write(&file, 0, 1, 3 * BLOCK).await.unwrap();
        world.write(&file, 3 * BLOCK as u64, 1, BLOCK).await.unwrap();
        let refused = world.write(&file, 4 * BLOCK as u64, 1, BLOCK).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(world.create("b").allocate(BLOCK as u64).unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        assert_eq!(world.disk.space(Path::new("/d")).unwrap(), (4 * BLOCK as u64, 0));
        file.punch_hole(0, BLOCK as u64).unwrap();
        assert_eq!(world.read(&file, 0, 2 * BLOCK).await[BLOCK - 1..=BLOCK], [0, 1]);
        world.write(&file, 4 * BLOCK as u64, 1, BLOCK).await.unwrap();
    });
}

#[test]
fn what_is_unreadable_can_be_read_again_once_it_is_written_or_punched() {
    run(async {
        let world = World::new(8);
        let file = world.create_durably("a");
        world.write(&file, 0, 1, 4 * BLOCK).await.unwrap();
        world.disk.set_unreadable(&path("a"), BLOCK as u64..3 * BLOCK as u64).unwrap();
        let fails = async |page: usize| {
            let read = file.read_at((page * BLOCK) as u64, world.pool.acquire(BLOCK).await, BLOCK).await.0;
            read.is_err_and(|error| error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()))
        };
        assert_eq!([fails(0).await, fails(1).await, fails(2).await, fails(3).await], [false, true, true, false]);
        world.write(&file, BLOCK as u64, 2, BLOCK).await.unwrap();
        file.punch_hole(2 * BLOCK as u64, BLOCK as u64).unwrap();
        assert_eq!([fails(1).await, fails(2).await], [false, false]);
        assert_eq!(world.read(&file, BLOCK as u64, 2 * BLOCK).await[BLOCK - 1..=BLOCK], [2, 0]);
    });
}

#[test]
fn direct_operations_must_be_aligned() {
    run(async {
        let world = World::new(7);
        let file = world.create_durably("a");
        assert!(world.write(&file, 100, 1, BLOCK).await.is_err());
        assert!(world.write(&file, 0, 1, 100).await.is_err());
        assert!(world.write(&file, 512, 1, 512).await.is_ok());
    });
}

/// A run of concurrent writers with a crash, told as a list of what happened.
async fn history(seed: u64) -> Vec<String> {
    let world = World::new(seed);
    let files: Vec<_> = (0..4).map(|index| world.create_durably(&index.to_string())).collect();
    world.disk.inject(40, Fault::Crash);
    let order = std::cell::RefCell::new(vec![]);
    let writer = async |index: usize| {
        for round in 0..10u8 {
            let written = world.write(&files[index], u64::from(round) * 512, round + 1, 512).await;
            let synced = files[index].sync_data().await;
            order.borrow_mut().push(format!("{index} {round} {} {}", written.is_ok(), synced.is_ok()));
        }
    };
    futures::future::join_all((0..4).map(writer)).await;
    world.disk.recover();
    let mut order = order.into_inner();
    for (path, len) in world.disk.files() {
        let file = world.disk.open(&path, OpenMode::Direct).unwrap();
        order.push(format!("{path:?} {len} {:?}", world.read(&file, 0, BLOCK).await));
    }
    order
}

#[test]
fn same_seed_gives_the_same_run_and_others_differ() {
    let runs: Vec<_> = (0..10).map(|seed| run(history(seed))).collect();
    for (seed, first) in runs.iter().enumerate() {
        assert!(run(history(seed as u64)) == *first, "seed {seed} is not deterministic");
    }
    let different: std::collections::BTreeSet<_> = runs.iter().collect();
    assert!(different.len() > 5, "the order of completion does not depend on the seed");
}
