//! Entry points for fuzzing what FastDFS's trackers and storages answer. See [`holdfast_protocol::fuzz`].

use holdfast_protocol::fuzz::Target;

use crate::fastdfs::wire::{
    self, FileId, GroupName, HEADER_BYTES, Header, SERVERS_MAX, fetch_target, fetch_targets, file_info, groups,
    storage, storages, store_target, store_targets, stored,
};

/// Those of this crate.
pub const TARGETS: &[Target] = &[
    Target { name: "fastdfs_reply", body: fastdfs_reply, seeds: fastdfs_replies },
    Target { name: "fastdfs_id", body: fastdfs_id, seeds: fastdfs_ids },
];

/// The body of a reply, read as each of them, and its beginning as a header.
pub fn fastdfs_reply(bytes: &[u8]) {
    if let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() {
        if let Ok(header) = Header::decode(*bytes) {
            assert_eq!(header.encode(), *bytes);
        }
        let _ = Header::decode_reply(*bytes);
    }
    let _ = (store_target(bytes), fetch_target(bytes), file_info(bytes), storage(bytes));
    for targets in [store_targets(bytes).map(|all| all.len()), fetch_targets(bytes).map(|all| all.len())] {
        assert!(targets.is_err() || targets.is_ok_and(|count| (1..=SERVERS_MAX).contains(&count)));
    }
    for group in groups(bytes).unwrap_or_default() {
        let _ = group.usable_bytes();
    }
    for count in [0, 1, 2, 7, SERVERS_MAX, SERVERS_MAX + 1, usize::MAX] {
        let _ = storages(bytes, count).map(|all| assert_eq!(all.len(), count));
    }
    if let Ok(stored) = stored(bytes) {
        FileId::new(stored.group, &stored.path).expect("it was looked at when it was read");
    }
}

/// The id of a file.
pub fn fastdfs_id(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(id) = FileId::parse(text) else { return };
    assert_eq!(id.to_string(), text);
    let _ = (id.suffix(), id.size.bytes());
    let facts = FileId::facts(id.source, id.created_s, id.size, id.crc32);
    let again = FileId::new(id.group.clone(), &format!("M00/00/00/{facts}")).expect("facts that were read");
    assert_eq!((again.source, again.created_s, again.size, again.crc32), (id.source, id.created_s, id.size, id.crc32));
}

const ID: &str = "group1/M00/00/00/wAACAmsMcxqABzyPAAAAAAAAAAA7990991";

fn padded(text: &str, bytes: usize) -> Vec<u8> {
    let mut field = text.as_bytes().to_vec();
    field.resize(bytes, 0);
    field
}

fn fastdfs_replies() -> Vec<Vec<u8>> {
    let group = padded("group1", wire::GROUP_BYTES);
    let port = 23_300_u64.to_be_bytes().to_vec();
    let address = |ip: &str, bytes| [padded(ip, bytes), port.clone()].concat();
    let (short, long) = (address("192.0.2.2", 15), address("2001:db8::1", 45));
    let path = ID.split_once('/').map_or("", |(_, path)| path);
    let stat = |each: usize| {
        let numbers: [u64; 12] = [0x3efe3, 0x12772, 1024, 0, 1, 23_300, 1, 1, 0, 1, 4, u64::MAX];
        let mut stat = padded("group1", wire::GROUP_BYTES + 1);
        numbers.iter().for_each(|number| stat.extend(number.to_be_bytes()));
        stat.resize(each, 0);
        stat
    };
    let mut storage = [vec![7, 6], padded("100001", 16), padded("192.0.2.2", 16), padded("", 16)].concat();
    storage.extend(padded("6.16.1", 80));
    storage.extend(&port);
    let mut storage_long = storage.clone();
    storage.resize(487, 0);
    storage_long.resize(517, 0);
    let old_storage = [vec![5], padded("192.0.2.3", 16), padded("192.0.2.3", 583)].concat();
    let info =
        [5_000_u64.to_be_bytes(), 0x6b0c_731a_u64.to_be_bytes(), 0xffff_ffff_92c5_aad6_u64.to_be_bytes()].concat();
    vec![
        Header { body_bytes: 40, command: wire::command::REPLY, status: 0 }.encode().to_vec(),
        [&group[..], &short, &[0]].concat(),
        [&group[..], &long, &[2]].concat(),
        [&group[..], &short, &short, &short, &[0]].concat(),
        [&group[..], &short].concat(),
        [&group[..], &long].concat(),
        [&group[..], &long, &long].concat(),
        [&group[..], &short, &padded("192.0.2.3", 15), &padded("192.0.2.4", 15)].concat(),
        [&group[..], path.as_bytes()].concat(),
        [&info[..], &padded("192.0.2.2", 16)].concat(),
        [&info[..], &padded("2001:db8::1", 46)].concat(),
        stat(105),
        stat(113).repeat(2),
        storage.repeat(2),
        storage_long,
        old_storage,
    ]
}

fn fastdfs_ids() -> Vec<Vec<u8>> {
    let (group, path) = ID.split_once('/').unwrap_or_default();
    let trunk = GroupName::new(group).map(|group| format!("{}/{path}0123456789abcdef-cold.jpg", group.as_str()));
    [ID.to_owned(), format!("{ID}-cold"), trunk.unwrap_or_default()].into_iter().map(String::into_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_bytes_are_errors_and_never_panics() {
        holdfast_protocol::fuzz::damage::run(TARGETS, 5_000);
    }

    #[test]
    fn seeds_are_good() {
        let seeds = fastdfs_replies();
        let read = |body: &[u8]| {
            let targets = store_target(body).is_ok() || fetch_target(body).is_ok() || fetch_targets(body).is_ok();
            let facts = stored(body).is_ok() || file_info(body).is_ok() || groups(body).is_ok();
            targets || facts || store_targets(body).is_ok() || storage(body).is_ok()
        };
        for (at, seed) in seeds.iter().enumerate().skip(1) {
            assert!(read(seed), "seed {at}");
        }
        for seed in fastdfs_ids() {
            FileId::parse(std::str::from_utf8(&seed).unwrap()).unwrap();
        }
    }
}
