//! Entry points for fuzzing: whatever the bytes are, decoding ends with a value or an error, and a value that was
//! decoded encodes again to one that is equal.
//!
//! Each crate with parsers of foreign bytes has such a module, with the same list of [`Target`]s. The crate `fuzz` runs
//! them under libFuzzer; in CI the same bodies run on damaged copies of their seeds ([`damage`]).

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::checksum::{Checksum, ChecksumAlgorithm, ChecksumType};
use crate::cluster::{
    ClusterId, Epoch, Joiner, LayoutChange, LayoutDocument, LayoutNode, Leaver, NodeId, ShardId, ShardState,
};
use crate::events::{EventId, EventNotification, EventPattern};
use crate::ids::{ChunkId, UploadId, VersionId};
use crate::journal::{AuditRecord, DeadLetter, ErrorRecord};
use crate::label::{ChunkLabel, PartLabel};
use crate::manifest::{CHUNK_SIZE_MAX, Extent, Manifest};
use crate::peer::answer::{WireDigest, WireError, WireHealth, WireInfo};
use crate::peer::block::BlockHead;
use crate::peer::enrol::{EnrolAnswer, EnrolRequest, Enrolled};
use crate::peer::{Answer, DIGEST_PARTS, Message, Request, WireReport, decode, encode};
use crate::stub::{ColdStub, StubPart};
use crate::tiers::{BLOCK_BYTES_MIN, ColdPlace};
use crate::{ContentId, TierName};

pub mod damage;

/// What is fuzzed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, also of its corpus.
    pub name: &'static str,
    /// Takes any bytes, and panics when the code under it does something wrong.
    pub body: fn(&[u8]),
    /// Good bytes to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Those of this crate.
pub const TARGETS: &[Target] = &[
    Target { name: "request", body: request, seeds: requests },
    Target { name: "answer", body: answer, seeds: answers },
    Target { name: "enrol", body: enrol, seeds: enrolments },
    Target { name: "block", body: block, seeds: blocks },
    Target { name: "label", body: label, seeds: labels },
    Target { name: "manifest", body: manifest, seeds: manifests },
    Target { name: "cold_place", body: cold_place, seeds: cold_places },
    Target { name: "stub", body: stub, seeds: stubs },
    Target { name: "cluster", body: cluster, seeds: cluster_values },
    Target { name: "event", body: event, seeds: events },
];

/// A value of which the only form is JSON.
pub fn json<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(bytes).ok()?;
    let again = serde_json::to_vec(&value).expect("what was JSON is JSON");
    assert_eq!(serde_json::from_slice::<T>(&again).ok().as_ref(), Some(&value), "a value does not survive its form");
    Some(value)
}

fn frame<M: Message + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(message) = decode::<M>(bytes) {
        // Escapes can make the text longer than what was decoded, beyond the limit.
        if let Ok(frame) = encode(&message) {
            assert_eq!(decode::<M>(&frame), Ok(message), "a message does not survive its own encoding");
        }
    }
}

/// Frames of a kind: as they are, and as the body of a frame that says so of itself.
fn frames<M: Message + PartialEq + Debug>(bytes: &[u8]) {
    frame::<M>(bytes);
    let body = bytes.get(crate::peer::PREFIX_BYTES..).unwrap_or_default();
    let mut framed = [b'H', b'F', crate::peer::VERSION, M::KIND].to_vec();
    framed.extend((body.len() as u32).to_be_bytes());
    framed.extend(body);
    frame::<M>(&framed);
}

/// Request frames.
pub fn request(bytes: &[u8]) {
    frames::<Request>(bytes);
}

/// Answer frames.
pub fn answer(bytes: &[u8]) {
    frames::<Answer>(bytes);
}

/// Frames of an enrolment.
pub fn enrol(bytes: &[u8]) {
    frames::<EnrolRequest>(bytes);
    frames::<EnrolAnswer>(bytes);
}

/// Heads of blocks.
pub fn block(bytes: &[u8]) {
    if let Some(bytes) = bytes.first_chunk()
        && let Ok(head) = BlockHead::decode(*bytes)
    {
        assert_eq!(head.encode().as_ref(), Ok(bytes));
    }
}

/// Labels of chunks, from the disk and from peers.
pub fn label(bytes: &[u8]) {
    let Ok(label) = ChunkLabel::decode(bytes) else { return };
    assert!(Manifest::single(ContentId([0; 12]), label.content_size_bytes).is_sound(), "no content has such a size");
    // As with frames: escapes.
    if let Ok(again) = label.encode() {
        assert_eq!(ChunkLabel::decode(&again).ok(), Some(label));
    }
}

/// Manifests, from the database, the cache and backups.
pub fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::decode(bytes) else { return };
    assert_eq!(manifest.encode(), bytes);
    let size = manifest.size_bytes();
    for extent in &manifest.extents {
        assert!(u64::from(extent.chunk_count()) * CHUNK_SIZE_MAX >= extent.size_bytes, "bytes that no chunk holds");
    }
    for range in [0..1, size.saturating_sub(1)..size, size..u64::MAX, u64::MAX - 1..u64::MAX] {
        let wanted = range.end.min(size).saturating_sub(range.start);
        let found: u64 = manifest.locate(range).map(|piece| u64::from(piece.range.end - piece.range.start)).sum();
        assert_eq!(found, wanted);
    }
}

/// Places in cold tiers, from the database, the cache and backups.
pub fn cold_place(bytes: &[u8]) {
    let Ok(place) = ColdPlace::decode(bytes) else { return };
    assert_eq!(place.encode(), bytes);
    sound(&place);
}

/// What readers do with a place.
fn sound(place: &ColdPlace) {
    let size = place.size_bytes;
    assert_eq!(place.piece_count(), place.names.len() as u64);
    assert_eq!(place.blocks(&(0..size)), 0..place.sums.len());
    assert_eq!(place.piece(place.names.len() as u32 - 1).end, size);
    assert_eq!(place.block(place.sums.len() - 1).end, size);
    for offset in [0, size / 2, size - 1] {
        let run = place.locate(offset, u64::MAX);
        let piece = place.piece(run.index);
        assert!(piece.contains(&offset) && run.start < run.end && piece.start + run.end <= piece.end);
    }
}

/// Stubs of cold contents, from the disk.
pub fn stub(bytes: &[u8]) {
    let Ok(stub) = ColdStub::decode(bytes) else { return };
    sound(&stub.place);
    assert_eq!(ColdStub::decode(&stub.encode().expect("it was not longer than a chunk")), Ok(stub));
}

/// What the coordination service holds: the layout and the states of shards; and ids, in all their forms.
pub fn cluster(bytes: &[u8]) {
    json::<LayoutDocument>(bytes);
    if let Some(state) = json::<ShardState>(bytes) {
        let _ = (state.write_quorum(), state.target_quorum(), state.write_set().count());
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    same_text::<NodeId>(text);
    same_text::<ClusterId>(text);
    same_text::<ContentId>(text);
    same_text::<ChunkId>(text);
    same_text::<UploadId>(text);
    same_text::<VersionId>(text);
    same_text::<TierName>(text);
    same_text::<ChecksumAlgorithm>(text);
}

fn same_text<T: std::str::FromStr + ToString + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse::<T>().ok(), Some(value));
    }
}

/// Events, and the records of the journals.
pub fn event(bytes: &[u8]) {
    json::<EventNotification>(bytes);
    json::<ErrorRecord>(bytes);
    json::<AuditRecord>(bytes);
    json::<DeadLetter>(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    same_text::<EventId>(text);
    let _ = text.parse::<EventPattern>().map(|pattern| assert_eq!(pattern.as_str(), text));
}

fn id() -> ChunkId {
    ContentId([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]).chunk(7)
}

fn encoded<M: Message>(messages: &[M]) -> Vec<Vec<u8>> {
    messages.iter().map(|message| encode(message).expect("a good message")).collect()
}

fn requests() -> Vec<Vec<u8>> {
    let (shard, epoch) = (ShardId(9), Epoch(4));
    encoded(&[
        Request::Write { shard, epoch, chunk: id(), size_bytes: 16 << 20, label_bytes: 200 },
        Request::Read { chunk: id(), start: 10, end: 20 },
        Request::Probe { chunks: vec![id(), id()] },
        Request::Label { chunk: id() },
        Request::List { shard, epoch, after: Some(id()), limit: 4096 },
        Request::Digest { shard, epoch },
        Request::Delete { chunks: vec![id()] },
        Request::Report { report: WireReport::Verified { shard, since: epoch } },
        Request::Report { report: WireReport::JoinFailed { shard, since: epoch, reason: "full".into() } },
        Request::Report { report: WireReport::DataLost { shard } },
        Request::Health,
    ])
}

fn answers() -> Vec<Vec<u8>> {
    let health = |proven| WireHealth {
        node: NodeId::from(255),
        owner: true,
        writable: false,
        oldest_write_seconds: Some(1_700_000_000),
        proven,
        lives: Some(u64::MAX),
    };
    let detail = || "why".to_owned();
    encoded(&[
        Answer::Ready,
        Answer::Done,
        Answer::Data { size_bytes: 10 },
        Answer::Label { size_bytes: 200 },
        Answer::Probed { sizes_bytes: vec![Some(5), None] },
        Answer::Listed { chunks: vec![WireInfo(id(), 5), WireInfo(id(), 6)] },
        Answer::Digest(WireDigest { chunks: 3, bytes: 1 << 40, parts: vec![u64::MAX; DIGEST_PARTS] }),
        Answer::Health(health(vec![(ShardId(3), Epoch(7)), (ShardId(4), Epoch(1))])),
        Answer::Error(WireError::Stale { shard: ShardId(9), current: Epoch(5) }),
        Answer::Error(WireError::Busy),
        Answer::Error(WireError::NotFound { chunk: id() }),
        Answer::Error(WireError::Corrupt { chunk: id(), detail: detail() }),
        Answer::Error(WireError::Io { detail: detail() }),
        Answer::Error(WireError::version(7)),
    ])
}

fn enrolments() -> Vec<Vec<u8>> {
    let enrolled = Enrolled {
        cluster: ClusterId([7; 16]),
        certificate_pem: "N".into(),
        ca_certificate_pem: "C".into(),
        ca_key_pem: "K".into(),
        secret_hex: "5a".repeat(32),
    };
    let mut all = encoded(&[EnrolRequest { node: NodeId::from(1), csr_pem: "CSR".into() }]);
    all.extend(encoded(&[
        EnrolAnswer::Enrolled(enrolled),
        EnrolAnswer::Refused { reason: "used".into() },
        EnrolAnswer::Version { found: 2, known: 1 },
    ]));
    all
}

fn blocks() -> Vec<Vec<u8>> {
    let heads = [BlockHead { size_bytes: 0x0001_0203, crc32c: 0xa1b2_c3d4 }, BlockHead::FAILED];
    heads.into_iter().map(|head| head.encode().expect("a good head").to_vec()).collect()
}

fn labels() -> Vec<Vec<u8>> {
    let label = ChunkLabel {
        bucket: "photos".into(),
        key: "2026/\u{e4}\u{1}.jpg".into(),
        version: VersionId::NULL,
        part: None,
        content_size_bytes: 10,
        created_ms: 1,
        attributes: Some(r#"{"owner":"alice","content_type":"text/plain"}"#.into()),
        is_stub: false,
    };
    let part = Some(PartLabel { upload: UploadId([7; 16]), number: 3 });
    let all = [
        label.clone(),
        ChunkLabel { part, version: VersionId([5; 12]), ..label.clone() },
        ChunkLabel { is_stub: true, attributes: None, ..label },
    ];
    all.iter().map(|label| label.encode().expect("a good label")).collect()
}

fn manifests() -> Vec<Vec<u8>> {
    let extent = |size_bytes| Extent { content: ContentId([9; 12]), size_bytes };
    let all = [vec![], vec![extent(5)], vec![extent(CHUNK_SIZE_MAX + 10), extent(5), extent(5 << 40)]];
    all.into_iter().map(|extents| Manifest { extents }.encode()).collect()
}

fn place(size_bytes: u64) -> ColdPlace {
    let (block_bytes, piece_bytes) = (BLOCK_BYTES_MIN, 2 * u64::from(BLOCK_BYTES_MIN));
    ColdPlace {
        tier: "OSS".parse().expect("a name"),
        size_bytes,
        piece_bytes,
        block_bytes,
        names: (0..size_bytes.div_ceil(piece_bytes)).map(|at| format!("p{at}")).collect(),
        sums: (0..size_bytes.div_ceil(u64::from(block_bytes))).map(|at| at as u32).collect(),
    }
}

fn cold_places() -> Vec<Vec<u8>> {
    [1, 5, 1_000_000].into_iter().map(|size_bytes| place(size_bytes).encode()).collect()
}

fn stubs() -> Vec<Vec<u8>> {
    let checksum = Checksum {
        algorithm: ChecksumAlgorithm::Crc32c,
        checksum_type: ChecksumType::Composite,
        value: vec![1, 2, 3, 4],
        parts: Some(2),
    };
    let parts = vec![
        StubPart { number: 1, size_bytes: 3, checksum: Some(vec![9; 4]) },
        StubPart { number: 7, size_bytes: 2, checksum: None },
    ];
    let bare = ColdStub { place: place(5), etag_md5: [7; 16], etag_parts: None, checksum: None, parts: vec![] };
    let whole = ColdStub { etag_parts: Some(2), checksum: Some(checksum), parts, ..bare.clone() };
    [bare, whole].iter().map(|stub| stub.encode().expect("a short stub")).collect()
}

fn cluster_values() -> Vec<Vec<u8>> {
    let node = NodeId::from;
    let mut layout = LayoutDocument::new(3);
    layout.applied.nodes.insert(node(1), LayoutNode { zone: "a".into(), weight: 5, draining: false });
    layout.staged = vec![
        LayoutChange::Assign { node: node(2), zone: "b".into(), weight: 7 },
        LayoutChange::Drain { node: node(1) },
        LayoutChange::Remove { node: node(1) },
        LayoutChange::SetReplicationFactor { replicas: 2 },
    ];
    let mut state = ShardState::founding(vec![node(1), node(2)]);
    state.joining.push(Joiner { node: node(3), since: Epoch(1) });
    state.leaving.push(Leaver { node: node(4), since: Epoch(2) });
    let mut all = vec![
        serde_json::to_vec(&layout).expect("plain data"),
        serde_json::to_vec(&state).expect("plain data"),
        b"null".to_vec(),
        b"GLACIER_IR".to_vec(),
        b"CRC64NVME".to_vec(),
    ];
    all.extend(
        [node(7).to_string(), ClusterId([7; 16]).to_string(), VersionId([3; 12]).to_string()].map(String::into_bytes),
    );
    all
}

fn events() -> Vec<Vec<u8>> {
    let dead = DeadLetter {
        number: 1,
        id: "id".into(),
        topic: "events".into(),
        group: "g".into(),
        tag: "ObjectCreated:Put".into(),
        order_key: "b/k".into(),
        keys: vec!["k".into()],
        attempts: 16,
        error: "why".into(),
        buried_ms: 5,
        body: Some("{}".into()),
    };
    vec![
        include_bytes!("../golden/events/object-created-put.json").to_vec(),
        include_bytes!("../golden/events/object-removed-delete.json").to_vec(),
        serde_json::to_vec(&dead).expect("plain data"),
        b"0000000000012345-000000ff".to_vec(),
        b"s3:ObjectCreated:*".to_vec(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_bytes_are_errors_and_never_panics() {
        damage::run(TARGETS, 5_000);
    }

    #[test]
    fn a_body_that_fails_is_told_by_its_bytes() {
        let target = Target { name: "bad", body: |bytes| assert!(bytes.len() < 4), seeds: || vec![b"abc".to_vec()] };
        std::panic::catch_unwind(|| damage::run(&[target], 1_000)).expect_err("a body that fails on longer bytes");
    }
}
