use std::io::Write;

use super::*;

fn file_of(len: usize) -> File {
    let mut file = tempfile::tempfile_in(std::env::temp_dir()).unwrap();
    let contents: Vec<u8> = (0..len).map(|index| (index / 7) as u8).collect();
    file.write_all(&contents).unwrap();
    file
}

#[test]
fn slices_of_a_mapping_are_found_and_others_are_not() {
    let mapping = Mapping::new(file_of(1 << 20).as_fd(), 1 << 20).unwrap();
    let bytes = mapping.bytes(4096..1 << 19, Arc::new(()));
    assert_eq!(bytes[3], ((4096 + 3) / 7) as u8);
    let part = bytes.slice(10..20);
    let located = find(&part).unwrap();
    assert!(Arc::ptr_eq(&located.mapping, &mapping));
    assert_eq!(located.range, 4106..4116);
    assert!(find(&vec![0; 1 << 20]).is_none());
    assert!(find(&[]).is_none());
}

#[test]
fn mapping_lives_as_long_as_its_bytes_and_is_forgotten_after() {
    let mapping = Mapping::new(file_of(8192).as_fd(), 8192).unwrap();
    let pin = Arc::new(());
    let bytes = mapping.bytes(0..8192, pin.clone());
    let base = mapping.base.as_ptr() as usize;
    drop(mapping);
    let part = bytes.slice(1..2);
    drop(bytes);
    assert_eq!(part[0], 0);
    assert!(REGISTRY.read().contains_key(&base));
    assert_eq!(Arc::strong_count(&pin), 2);
    drop(part);
    assert_eq!(Arc::strong_count(&pin), 1);
    assert!(REGISTRY.read().get(&base).is_none_or(|entry| entry.mapping.strong_count() > 0));
}

#[test]
fn mapping_past_the_end_of_the_file_is_refused() {
    let refused = Mapping::new(file_of(100).as_fd(), 4096).map(drop).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    assert!(Mapping::new(file_of(100).as_fd(), 0).is_err());
}

#[tokio::test]
async fn evicted_range_is_not_resident_until_refreshed() {
    // Not in a temporary directory: in memory nothing is ever evicted.
    let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    file.write_all_at(&vec![7; 1 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let mapping = Mapping::new(file.as_fd(), 1 << 20).unwrap();
    assert!(mapping.is_resident(0..1 << 20));
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    assert!(!mapping.is_resident(0..1 << 20));
    mapping.refresh(8192..16384).await.unwrap();
    assert!(mapping.is_resident(8192..16384));
    assert!(mapping.is_resident(8193..16383));
    assert!(!mapping.is_resident(8192..1 << 20));
    assert!(mapping.is_resident(5..5));
}

#[test]
fn a_send_waits_for_a_copy_and_then_goes_by_the_marks() {
    let mapping = Mapping::new(file_of(1 << 20).as_fd(), 1 << 20).unwrap();
    mapping.set_refresh(Box::new(|_| Box::pin(async { Ok(()) })));
    for brought_in_unverified in [false, true] {
        mapping.set_verified(0..1 << 20);
        let turn = mapping.copying.begin(&(5000..5010)).unwrap();
        assert!(mapping.is_sendable(512 << 10..516 << 10), "nobody copies there");
        std::thread::scope(|scope| {
            let (begun, begin) = std::sync::mpsc::channel();
            let asked = &mapping;
            let asking = scope.spawn(move || {
                begun.send(()).unwrap();
                asked.is_sendable(0..10)
            });
            begin.recv().unwrap();
            // So that who does not wait is seen; who does may come at any time.
            (0..1000).for_each(|_| std::thread::yield_now());
            if brought_in_unverified {
                mapping.clear_verified(0..10);
            }
            drop(turn);
            // A copy by itself is no reason to read the range again.
            assert_eq!(asking.join().unwrap(), !brought_in_unverified);
        });
    }
}

#[test]
fn bytes_survive_the_unmapping_of_touched_pages() {
    let mapping = Mapping::new(file_of(1 << 20).as_fd(), 1 << 20).unwrap();
    let bytes = mapping.bytes(0..1 << 20, Arc::new(()));
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    let before = sum(&bytes);
    for _ in 0..2 * TOUCHED_BYTES_MAX / mapping.len() {
        mapping.touched(0..mapping.len());
        mapping.touched.clear();
    }
    assert_eq!(sum(&bytes), before);
}
