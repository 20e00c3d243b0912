//! Golden bytes are those of a V6.16.1 cluster, addresses included.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;

/// The id of an empty file.
const MASTER: &str = "group1/M00/00/00/wAACAmsMcxqABzyPAAAAAAAAAAA7990991";

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits.chunks_exact(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn field(text: &str, bytes: usize) -> Vec<u8> {
    let mut field = text.as_bytes().to_vec();
    field.resize(bytes, 0);
    field
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_header_is_a_length_a_command_and_a_status() {
    let header = Header { body_bytes: 0x0102, command: 100, status: 2 };
    assert_eq!(header.encode().to_vec(), hex("0000000000000102 64 02"));
    assert_eq!(Header::decode(header.encode()), Ok(header));
}

#[test]
fn a_reply_is_refused_when_it_is_none_or_has_a_body_beside_an_error_or_a_negative_length() {
    let decode = |bytes: &str| Header::decode_reply(hex(bytes).try_into().unwrap());
    assert!(decode("0000000000000000 64 00").is_ok());
    assert!(decode("0000000000000000 64 02").is_ok());
    assert!(decode("0000000000000000 0b 00").is_err(), "a request");
    assert!(decode("0000000000000001 64 02").is_err(), "an error with a body");
    assert!(decode("ffffffffffffffff 64 00").is_err(), "a negative length");
}

#[test]
fn requests_are_as_the_server_wants_them() {
    let group = GroupName::new("group1").unwrap();
    assert_eq!(upload_empty(3), hex("000000000000000f 0b 00 03 0000000000000000 000000000000"));
    let mut expected = hex("0000000000000015 16 02");
    expected.extend(field("group1", 16));
    expected.extend(b"M00/x");
    assert_eq!(file_request(command::FILE_INFO, INFO_SILENT, &group, "M00/x"), expected);
    let mut expected = hex("0000000000000025 0e 00 0000000000000007 0000000000000009");
    expected.extend(field("group1", 16));
    expected.extend(b"M00/x");
    assert_eq!(download(&group, "M00/x", 7, 9), expected);
    let mut expected = hex("000000000000012f 15 00 0000000000000005 0000000000000104");
    expected.extend(field("-cold", 16));
    expected.extend(field("", 6));
    expected.extend(b"M00/x");
    assert_eq!(upload_slave_head("M00/x", "-cold", 0x104), expected);
}

#[test]
fn an_id_tells_who_took_the_file_when_and_what_it_was() {
    let id = FileId::parse(MASTER).unwrap();
    assert_eq!(id.group.as_str(), "group1");
    assert_eq!(id.source, Source::Ip(Ipv4Addr::new(192, 0, 2, 2)));
    assert_eq!(id.created_s, 0x6b0c_731a);
    assert_eq!(id.size, FileSize(0x8007_3c8f_0000_0000));
    assert_eq!(id.size.bytes(), Some(0));
    assert_eq!(id.crc32, 0);
    assert_eq!(id.suffix(), "7990991");
    assert_eq!(id.to_string(), MASTER);
    let facts = FileId::facts(id.source, id.created_s, id.size, id.crc32);
    assert_eq!(facts, "wAACAmsMcxqABzyPAAAAAAAAAAA");
}

#[test]
fn marks_in_the_size_are_no_size() {
    assert_eq!(FileSize(5 << 30).bytes(), Some(5 << 30));
    assert_eq!(FileSize(1 << 63 | 77 << 32 | 9).bytes(), Some(9));
    assert_eq!(FileSize(1 << 59 | 1 << 63 | 9).bytes(), Some(9));
    assert!(FileSize(1 << 59 | 9).is_trunk());
    assert_eq!(FileSize(1 << 58 | 9).bytes(), None);
    assert!(FileSize(1 << 58).is_appender());
}

#[test]
fn what_is_no_id_is_refused() {
    let path = MASTER.split_once('/').unwrap().1;
    for id in [
        "",
        "group1",
        "group1/",
        "group-1/M00/00/00/wAACAmsMcxqABzyPAAAAAAAAAAA7990991",
        "/M00/00/00/wAACAmsMcxqABzyPAAAAAAAAAAA7990991",
        "group1/X00/00/00/wAACAmsMcxqABzyPAAAAAAAAAAA7990991",
        "group1/M0g/00/00/wAACAmsMcxqABzyPAAAAAAAAAAA7990991",
        "group1/M00/00/00/wAACAmsMcxqABzyPAAAAAAAAA",
        "group1/M00/00/00/wAACAmsMcxqABzyPAAAAAAAAA+A7990991",
        "group1/M00/00/00/wAACAmsMcxqABzyPAAAAAAAAAAA79/../1",
        "group1/M00/00/00/wAACAmsMcxqABzyPAAAAAAAAAAAé",
        &format!("{MASTER}{}", "x".repeat(PATH_BYTES_MAX + 1 - path.len())),
    ] {
        assert!(FileId::parse(id).is_err(), "{id:?}");
    }
    assert!(FileId::parse(&format!("{MASTER}{}", "x".repeat(PATH_BYTES_MAX - path.len()))).is_ok());
}

#[test]
fn where_to_store_has_addresses_of_both_lengths() {
    let short = hex("67726f757031000000000000000000003139322e302e322e32000000000000 0000000000005b04 00");
    let expected = StoreTarget {
        group: GroupName::new("group1").unwrap(),
        address: Address { ip: ip("192.0.2.2"), port: 23300 },
        path_index: 0,
    };
    assert_eq!(short.len(), 40);
    assert_eq!(store_target(&short), Ok(expected.clone()));
    assert_eq!(store_targets(&short), Ok(vec![expected]));
    let mut long = field("group1", 16);
    long.extend(field("2001:db8::1", 45));
    long.extend(23300_u64.to_be_bytes());
    long.push(2);
    assert_eq!(long.len(), 70);
    assert_eq!(store_target(&long).unwrap().address.ip, ip("2001:db8::1"));
    assert_eq!(store_target(&long).unwrap().path_index, 2);
}

#[test]
fn where_to_fetch_has_a_port_each_or_in_old_versions_only_the_first() {
    let server = |ip: &str, ip_bytes: usize, port: u64| [field(ip, ip_bytes), port.to_be_bytes().to_vec()].concat();
    for ip_bytes in [15, 45] {
        for count in 1..=SERVERS_MAX {
            let name = |n: usize| format!("192.0.2.{n}");
            let new: Vec<u8> = (1..=count).flat_map(|n| server(&name(n), ip_bytes, 23_000 + n as u64)).collect();
            let new = fetch_targets(&[field("group1", 16), new].concat()).unwrap();
            let expected = |n: usize, port| Address { ip: ip(&name(n)), port };
            assert_eq!(new, (1..=count).map(|n| expected(n, 23_000 + n as u16)).collect::<Vec<_>>());
            let mut old = server(&name(1), ip_bytes, 23_000);
            (2..=count).for_each(|n| old.extend(field(&name(n), ip_bytes)));
            let old = fetch_targets(&[field("group1", 16), old].concat()).unwrap();
            assert_eq!(old, (1..=count).map(|n| expected(n, 23_000)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_checksum_that_came_with_its_sign_is_cut_to_32_bits() {
    let mut body = hex("0000000000001388 000000006b0c731a ffffffff92c5aad6");
    body.extend(field("192.0.2.2", 16));
    let expected = FileInfo { size_bytes: 5000, created_s: 0x6b0c_731a, crc32: 0x92c5_aad6 };
    assert_eq!(file_info(&body), Ok(expected));
    body.resize(70, 0);
    assert_eq!(file_info(&body), Ok(expected), "with a long address");
    body.push(0);
    assert!(file_info(&body).is_err());
}

#[test]
fn a_group_tells_what_can_be_stored_in_it() {
    let body =
        hex("67726f7570310000000000000000000000 000000000003efe3 0000000000012772 0000000000000400 0000000000000000
         0000000000000001 0000000000005b04 0000000000000001 0000000000000001 0000000000000000 0000000000000001
         0000000000000004 ffffffffffffffff");
    let expected = GroupStat {
        name: GroupName::new("group1").unwrap(),
        total_mib: 0x3efe3,
        free_mib: 0x12772,
        reserved_mib: 1024,
        servers: 1,
        port: Some(23300),
    };
    assert_eq!(expected.usable_bytes(), (0x12772 - 1024) << 20);
    assert_eq!(groups(&body), Ok(vec![expected.clone()]));
    // Of servers on different ports.
    let mut body = body;
    body[57..65].fill(0xff);
    assert_eq!(groups(&body), Ok(vec![GroupStat { port: None, ..expected }]));
    assert_eq!(groups(&[]), Ok(Vec::new()));
}

#[test]
fn a_storage_is_read_from_records_of_all_versions() {
    let mut new = hex("07 06");
    new.extend(field("100001", 16));
    new.extend(field("192.0.2.2", 16));
    new.extend(field("", 16));
    new.extend(field("6.16.1", 8));
    new.extend([0; 72]);
    new.extend(23300_u64.to_be_bytes());
    new.resize(487, 0);
    let expected = StorageStat {
        status: StorageStatus::ACTIVE,
        id: "100001".into(),
        ip: Some(ip("192.0.2.2")),
        port: Some(23300),
    };
    assert_eq!(storage(&new), Ok(expected.clone()));
    assert_eq!(storages(&new.repeat(3), 3), Ok(vec![expected; 3]));
    assert!(storages(&new.repeat(3), 2).is_err());
    assert!(storages(&[], 2).is_err());
    assert_eq!(storages(&[], 0), Ok(Vec::new()));
    let mut old = hex("05");
    old.extend(field("192.0.2.3", 16));
    old.extend(field("192.0.2.3", 16));
    old.resize(600, 0);
    let expected =
        StorageStat { status: StorageStatus(5), id: "192.0.2.3".into(), ip: Some(ip("192.0.2.3")), port: None };
    assert_eq!(storage(&old), Ok(expected));
    assert_eq!(StorageStatus(5).caption(), "OFFLINE");
}

#[test]
fn an_upload_gives_a_path() {
    let (group, path) = MASTER.split_once('/').unwrap();
    let body = [field(group, 16), path.as_bytes().to_vec()].concat();
    assert_eq!(stored(&body), Ok(Stored { group: GroupName::new(group).unwrap(), path: path.into() }));
    assert!(stored(&body[..16]).is_err(), "no path");
    assert!(stored(&body[..30]).is_err(), "half a path");
    assert!(stored(&[body.clone(), vec![b'x'; 200]].concat()).is_err(), "too long");
}

fn parse_everything(body: &[u8]) {
    let _ = (store_target(body), store_targets(body), fetch_target(body), fetch_targets(body), stored(body));
    let _ = (file_info(body), groups(body), storage(body));
    for count in [0, 1, 2, 7, 32, 33, usize::MAX] {
        let _ = storages(body, count);
    }
}

proptest! {
    #[test]
    fn any_header_is_read_or_refused(bytes in any::<[u8; HEADER_BYTES]>()) {
        if let Ok(header) = Header::decode(bytes) {
            prop_assert_eq!(header.encode(), bytes);
        }
        let _ = Header::decode_reply(bytes);
    }

    #[test]
    fn any_body_is_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..2000)) {
        parse_everything(&body);
    }

    /// With lengths that are right, so that the fields are looked at.
    #[test]
    fn any_fields_are_read_or_refused(
        length in prop::sample::select(vec![39_usize, 40, 69, 70, 105, 113, 226, 487, 517, 54, 62, 85]),
        seed in proptest::collection::vec(any::<u8>(), 517),
        text in "[0-9.:a-z]{0,20}",
        at in 0_usize..60,
    ) {
        let mut body = seed;
        body[..16].copy_from_slice(&field("group1", 16));
        let end = (at + text.len()).min(body.len());
        body[at..end].copy_from_slice(&text.as_bytes()[..end - at]);
        parse_everything(&body[..length]);
    }

    #[test]
    fn any_id_is_read_or_refused(id in "\\PC{0,150}") {
        let _ = FileId::parse(&id);
    }

    #[test]
    fn an_id_is_read_as_it_was_written(
        source in any::<[u8; 4]>(),
        created_s in any::<u32>(),
        size in any::<u64>(),
        crc32 in any::<u32>(),
        suffix in "[A-Za-z0-9._-]{0,60}",
    ) {
        let number = u32::from_le_bytes(source);
        let source = if (1..1 << 24).contains(&number) { Source::Server(number) } else { Source::Ip(source.into()) };
        let facts = FileId::facts(source, created_s, FileSize(size), crc32);
        prop_assert_eq!(facts.len(), 27);
        let text = format!("g/M0A/FF/00/{facts}{suffix}");
        let id = FileId::parse(&text).unwrap();
        prop_assert_eq!((id.source, id.created_s, id.size, id.crc32), (source, created_s, FileSize(size), crc32));
        prop_assert_eq!(id.suffix(), suffix);
        prop_assert_eq!(id.to_string(), text);
    }

    #[test]
    fn an_id_with_a_changed_byte_does_no_harm(at in 0..MASTER.len(), byte in any::<u8>()) {
        let mut bytes = MASTER.as_bytes().to_vec();
        bytes[at] = byte;
        if let Ok(text) = String::from_utf8(bytes) {
            let _ = FileId::parse(&text);
        }
    }
}
