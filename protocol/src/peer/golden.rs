//! The frames byte for byte: a change that breaks one of these breaks the talk between nodes of two versions, and needs
//! a new version of the protocol.

use std::fmt::Debug;

use super::answer::{WireDigest, WireHealth, WireInfo};
use super::block::{BLOCK_BYTES_MAX, BlockHead};
use super::enrol::{EnrolAnswer, EnrolRequest, Enrolled};
use super::*;
use crate::cluster::{ClusterId, Epoch, NodeId, ShardId};
use crate::ids::{ChunkId, ContentId};

const ID: &str = "0102030405060708090a0b0c00000007";

fn id() -> ChunkId {
    ContentId([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]).chunk(7)
}

#[track_caller]
fn golden<M: Message + PartialEq + Debug>(message: M, body: &str) {
    let body = body.replace("ID", ID);
    let mut expected = vec![b'H', b'F', 1, M::KIND];
    expected.extend_from_slice(&(body.len() as u32).to_be_bytes());
    expected.extend_from_slice(body.as_bytes());
    let frame = encode(&message).unwrap();
    assert_eq!(String::from_utf8_lossy(&frame), String::from_utf8_lossy(&expected));
    assert_eq!(frame, expected);
    assert_eq!(decode::<M>(&frame).unwrap(), message);
}

#[test]
fn golden_requests() {
    let (shard, epoch) = (ShardId(9), Epoch(4));
    golden(
        Request::Write { shard, epoch, chunk: id(), size_bytes: 16 << 20, label_bytes: 200 },
        r#"{"op":"write","shard":9,"epoch":4,"chunk":"ID","size_bytes":16777216,"label_bytes":200}"#,
    );
    golden(Request::Read { chunk: id(), start: 10, end: 20 }, r#"{"op":"read","chunk":"ID","start":10,"end":20}"#);
    golden(Request::Probe { chunks: vec![id(), id()] }, r#"{"op":"probe","chunks":["ID","ID"]}"#);
    golden(Request::Label { chunk: id() }, r#"{"op":"label","chunk":"ID"}"#);
    golden(
        Request::List { shard, epoch, after: None, limit: 4096 },
        r#"{"op":"list","shard":9,"epoch":4,"after":null,"limit":4096}"#,
    );
    golden(
        Request::List { shard, epoch, after: Some(id()), limit: 1 },
        r#"{"op":"list","shard":9,"epoch":4,"after":"ID","limit":1}"#,
    );
    golden(Request::Digest { shard, epoch }, r#"{"op":"digest","shard":9,"epoch":4}"#);
    golden(Request::Delete { chunks: vec![] }, r#"{"op":"delete","chunks":[]}"#);
    golden(
        Request::Report { report: WireReport::Verified { shard, since: epoch } },
        r#"{"op":"report","report":"verified","shard":9,"since":4}"#,
    );
    golden(
        Request::Report { report: WireReport::JoinFailed { shard, since: epoch, reason: "full".into() } },
        r#"{"op":"report","report":"join_failed","shard":9,"since":4,"reason":"full"}"#,
    );
    golden(
        Request::Report { report: WireReport::DataLost { shard } },
        r#"{"op":"report","report":"data_lost","shard":9}"#,
    );
    golden(Request::Health, r#"{"op":"health"}"#);
}

#[test]
fn golden_answers() {
    golden(Answer::Ready, r#"{"answer":"ready"}"#);
    golden(Answer::Done, r#"{"answer":"done"}"#);
    golden(Answer::Data { size_bytes: 10 }, r#"{"answer":"data","size_bytes":10}"#);
    golden(Answer::Label { size_bytes: 200 }, r#"{"answer":"label","size_bytes":200}"#);
    golden(Answer::Probed { sizes_bytes: vec![Some(5), None] }, r#"{"answer":"probed","sizes_bytes":[5,null]}"#);
    golden(
        Answer::Listed { chunks: vec![WireInfo(id(), 5), WireInfo(id(), 6)] },
        r#"{"answer":"listed","chunks":[["ID",5],["ID",6]]}"#,
    );
    let zeros = vec!["0"; DIGEST_PARTS - 1].join(",");
    let mut parts = vec![0; DIGEST_PARTS];
    parts[0] = u64::MAX;
    golden(
        Answer::Digest(WireDigest { chunks: 3, bytes: 1 << 40, parts }),
        &format!(r#"{{"answer":"digest","chunks":3,"bytes":1099511627776,"parts":[18446744073709551615,{zeros}]}}"#),
    );
    golden(
        Answer::Health(WireHealth {
            node: NodeId::from(255),
            owner: true,
            writable: false,
            oldest_write_seconds: None,
            proven: vec![],
            lives: None,
        }),
        r#"{"answer":"health","node":"00000000000000ff","owner":true,"writable":false}"#,
    );
    golden(
        Answer::Health(WireHealth {
            node: NodeId::from(255),
            owner: true,
            writable: true,
            oldest_write_seconds: Some(1_700_000_000),
            proven: vec![(ShardId(3), Epoch(7)), (ShardId(4), Epoch(1))],
            lives: Some(u64::MAX),
        }),
        r#"{"answer":"health","node":"00000000000000ff","owner":true,"writable":true,"oldest_write_seconds":1700000000,"proven":[[3,7],[4,1]],"lives":18446744073709551615}"#,
    );
}

#[test]
fn golden_errors() {
    let detail = || "why".to_owned();
    for (error, body) in [
        (WireError::Stale { shard: ShardId(9), current: Epoch(5) }, r#""stale","shard":9,"current":5"#),
        (WireError::Fenced, r#""fenced""#),
        (WireError::Busy, r#""busy""#),
        (WireError::Timeout, r#""timeout""#),
        (WireError::NotFound { chunk: id() }, r#""not_found","chunk":"ID""#),
        (WireError::Corrupt { chunk: id(), detail: detail() }, r#""corrupt","chunk":"ID","detail":"why""#),
        (WireError::Exists { chunk: id() }, r#""exists","chunk":"ID""#),
        (WireError::NoSpace, r#""no_space""#),
        (WireError::Unavailable { detail: detail() }, r#""unavailable","detail":"why""#),
        (WireError::Invalid { detail: detail() }, r#""invalid","detail":"why""#),
        (WireError::Io { detail: detail() }, r#""io","detail":"why""#),
        (WireError::Protocol { detail: detail() }, r#""protocol","detail":"why""#),
        (WireError::version(7), r#""version","found":7,"known":1"#),
    ] {
        golden(Answer::Error(error), &format!(r#"{{"answer":"error","error":{body}}}"#));
    }
}

#[test]
fn golden_enrolment() {
    golden(
        EnrolRequest { node: NodeId::from(1), csr_pem: "CSR".into() },
        r#"{"node":"0000000000000001","csr_pem":"CSR"}"#,
    );
    let secret_hex = "5a".repeat(32);
    let enrolled = Enrolled {
        cluster: ClusterId([7; 16]),
        certificate_pem: "N".into(),
        ca_certificate_pem: "C".into(),
        ca_key_pem: "K".into(),
        secret_hex: secret_hex.clone(),
    };
    assert!(!format!("{enrolled:?}").contains("5a5a"), "a secret in a debug form");
    golden(
        EnrolAnswer::Enrolled(enrolled),
        &format!(
            r#"{{"answer":"enrolled","cluster":"07070707070707070707070707070707","certificate_pem":"N","ca_certificate_pem":"C","ca_key_pem":"K","secret_hex":"{secret_hex}"}}"#
        ),
    );
    golden(EnrolAnswer::Refused { reason: "used".into() }, r#"{"answer":"refused","reason":"used"}"#);
    golden(EnrolAnswer::Version { found: 2, known: 1 }, r#"{"answer":"version","found":2,"known":1}"#);
}

#[test]
fn golden_block_heads() {
    let head = BlockHead { size_bytes: 0x0001_0203, crc32c: 0xa1b2_c3d4 };
    assert_eq!(head.encode().unwrap(), [0, 1, 2, 3, 0xa1, 0xb2, 0xc3, 0xd4]);
    assert_eq!(BlockHead::decode(head.encode().unwrap()).unwrap(), head);
    assert_eq!(BlockHead::FAILED.encode().unwrap(), [0; 8]);
    let large = BlockHead { size_bytes: BLOCK_BYTES_MAX as u32 + 1, crc32c: 0 };
    assert!(large.encode().is_err());
    assert!(BlockHead::decode([1, 0, 0, 0, 0, 0, 0, 0]).is_err());
    assert!(BlockHead::decode([0, 0, 0, 0, 0, 0, 0, 1]).is_err());
}

#[test]
fn unknown_version_is_refused_naming_both() {
    let mut frame = encode(&Request::Health).unwrap();
    frame[2] = 9;
    let error = decode::<Request>(&frame).unwrap_err();
    assert_eq!(error, FrameError::Version { found: 9 });
    let text = error.to_string();
    assert!(text.contains("version 9") && text.contains("version 1"), "{text}");
}

#[test]
fn frames_of_another_kind_are_refused() {
    let frame = encode(&Request::Health).unwrap();
    assert_eq!(decode::<Answer>(&frame), Err(FrameError::Kind { found: 1, expected: 2 }));
    assert_eq!(decode::<Request>(b"GET / HTTP/1.1\r\n"), Err(FrameError::NotAFrame));
    assert_eq!(decode::<Request>(&frame[..frame.len() - 1]), Err(FrameError::NotAFrame));
}

#[test]
fn limits_hold_when_encoding_and_when_decoding() {
    let too_many = Request::Probe { chunks: vec![id(); IDS_MAX + 1] };
    assert!(encode(&too_many).is_err());
    assert!(encode(&Request::Probe { chunks: vec![id(); IDS_MAX] }).is_ok());
    assert!(encode(&Answer::Listed { chunks: vec![WireInfo(id(), u32::MAX); LIST_MAX] }).is_ok());
    assert!(encode(&Answer::Listed { chunks: vec![WireInfo(id(), 1); LIST_MAX + 1] }).is_err());
    assert!(encode(&Answer::Digest(WireDigest { chunks: 0, bytes: 0, parts: vec![u64::MAX; DIGEST_PARTS] })).is_ok());

    // Control characters take six bytes each, escaped.
    let worst = WireError::Io { detail: cut(&"\u{1}".repeat(10_000)) };
    assert!(encode(&Answer::Error(worst)).is_ok());
    let long = WireError::Io { detail: "x".repeat(TEXT_BYTES_MAX + 1) };
    assert!(encode(&Answer::Error(long)).is_err());

    let body = format!(r#"{{"op":"probe","chunks":[{}]}}"#, vec![format!("{ID:?}"); IDS_MAX + 1].join(","));
    assert!(matches!(decode_body::<Request>(body.as_bytes()), Err(FrameError::Malformed(_))));
    let mut prefix = [b'H', b'F', 1, 1, 0, 0, 0, 0];
    prefix[4..].copy_from_slice(&(Request::BODY_BYTES_MAX as u32 + 1).to_be_bytes());
    assert!(matches!(body_bytes::<Request>(prefix), Err(FrameError::TooLarge { .. })));
    for body in [
        r#"{"op":"write","shard":1,"epoch":1,"chunk":"ID","size_bytes":16777217,"label_bytes":1}"#,
        r#"{"op":"write","shard":1,"epoch":1,"chunk":"ID","size_bytes":0,"label_bytes":1}"#,
        r#"{"op":"write","shard":1,"epoch":1,"chunk":"ID","size_bytes":1,"label_bytes":24577}"#,
        r#"{"op":"read","chunk":"ID","start":2,"end":1}"#,
        r#"{"op":"read","chunk":"ID","start":2,"end":16777217}"#,
        r#"{"op":"list","shard":1,"epoch":1,"limit":4097}"#,
        r#"{"op":"label","chunk":"0102"}"#,
        r#"{"op":"no such"}"#,
    ] {
        let body = body.replace("ID", ID);
        assert!(matches!(decode_body::<Request>(body.as_bytes()), Err(FrameError::Malformed(_))), "{body}");
    }
}

#[test]
fn text_is_cut_at_a_character() {
    assert_eq!(cut("short"), "short");
    let cut = cut(&"é".repeat(TEXT_BYTES_MAX));
    assert_eq!(cut.len(), TEXT_BYTES_MAX);
    assert!(super::cut(&format!("a{}", "é".repeat(TEXT_BYTES_MAX))).len() == TEXT_BYTES_MAX - 1);
}
