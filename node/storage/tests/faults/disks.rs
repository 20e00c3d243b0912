//! Several disks of one node, of which one fails.

use holdfast_storage::io::sim::{Fault, SimIo};
use holdfast_storage::{DiskSet, ReadError, WriteError};

use super::common::{id, payload, put};
use super::sim_engine;

#[tokio::test]
async fn disks_share_the_load_and_a_fenced_one_is_passed_over() {
    let ios = [SimIo::new(6), SimIo::new(7)];
    let disks = DiskSet::new(vec![sim_engine(&ios[0]).await, sim_engine(&ios[1]).await]);
    for n in 0..40 {
        let mut writer = disks.create(id(n), 10, b"").await.unwrap();
        assert!(matches!(disks.create(id(n), 10, b"").await, Err(WriteError::Exists(_))));
        writer.write(&payload(u64::from(n), 10)).await.unwrap();
        writer.finish_input().unwrap();
        writer.finish().await.unwrap();
    }
    let stats = disks.stats();
    assert!(stats.iter().all(|disk| disk.chunks > 5), "{stats:?}");
    let page = disks.list(None, 25);
    let rest = disks.list(page.last().map(|stat| &stat.id), 100);
    assert_eq!((page.len(), rest.len()), (25, 15));
    ios[0].inject(ios[0].ops() + 1, Fault::Eio);
    let _ = put(&disks.disks()[0], id(1000), b"x").await;
    for n in 2000..2010 {
        let mut writer = disks.create(id(n), 1, b"").await.unwrap();
        writer.write(b"x").await.unwrap();
        writer.finish_input().unwrap();
        writer.finish().await.unwrap();
        assert!(disks.disks()[1].stat(&id(n)).is_some());
    }
    let mut reader = disks.read(id(0), 0..10).unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap(), payload(0, 10));
}

#[tokio::test]
async fn what_lies_on_a_fenced_disk_only_is_stranded_and_may_be_written_anew() {
    let ios = [SimIo::new(8), SimIo::new(9)];
    let disks = DiskSet::new(vec![sim_engine(&ios[0]).await, sim_engine(&ios[1]).await]);
    put(&disks.disks()[0], id(1), b"first").await.unwrap();
    put(&disks.disks()[1], id(2), b"second").await.unwrap();
    assert_eq!((disks.count(), disks.list_stranded(None, 10)), ((2, 0), vec![]));
    ios[0].inject(ios[0].ops() + 1, Fault::FailedSync);
    assert!(put(&disks.disks()[0], id(3), b"lost").await.is_err());
    assert_eq!(disks.count(), (1, 1));
    let stranded = || disks.list_stranded(None, 10).iter().map(|stat| stat.id).collect::<Vec<_>>();
    assert_eq!(stranded(), [id(1)]);
    assert!(disks.is_stranded(&id(1)) && !disks.is_stranded(&id(2)));
    assert_eq!(disks.stat(&id(1)).map(|stat| stat.size_bytes), Some(5), "it can be read");
    assert!(matches!(disks.verify(id(1)).await, Err(ReadError::NotFound(_))), "and is not to be counted on");
    assert_eq!(disks.list(None, 10).iter().map(|stat| stat.id).collect::<Vec<_>>(), [id(2)]);
    disks.delete(&[id(1)]).await.unwrap();
    assert!(disks.is_stranded(&id(1)), "a fenced disk is passed over");
    let mut writer = disks.create(id(1), 5, b"").await.unwrap();
    writer.write(b"first").await.unwrap();
    writer.finish_input().unwrap();
    writer.finish().await.unwrap();
    assert!(stranded().is_empty() && disks.disks()[1].stat(&id(1)).is_some());
    assert!(matches!(disks.create(id(1), 5, b"").await, Err(WriteError::Exists(_))));
}
