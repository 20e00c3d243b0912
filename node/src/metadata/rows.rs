//! The stored form of values that are neither numbers nor bytes; the same for every SQL adapter.
//!
//! Reading is strict: what does not decode is [`MetadataError::Corrupt`], never a default.

use std::collections::HashMap;

use holdfast_actors::ports::metadata::{
    BucketConfigKind, CannedAcl, ETag, MetadataError, MetadataResult, MoveReason, ObjectAttributes, ObjectPart,
    ReplicaEvidence, Restore, Tag, Versioning,
};
use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::{
    ChecksumAlgorithm, ChecksumType, ChunkId, ClusterId, ColdPlace, ContentId, Epoch, Manifest, NodeId, ShardId,
    TierName, UploadId, VersionId,
};
use serde::de::DeserializeOwned;

fn corrupt(what: &str) -> MetadataError {
    MetadataError::Corrupt(what.to_owned())
}

pub(super) fn versioning_code(versioning: Versioning) -> i64 {
    match versioning {
        Versioning::Unversioned => 0,
        Versioning::Enabled => 1,
        Versioning::Suspended => 2,
    }
}

pub(super) fn versioning(code: i64) -> MetadataResult<Versioning> {
    match code {
        0 => Ok(Versioning::Unversioned),
        1 => Ok(Versioning::Enabled),
        2 => Ok(Versioning::Suspended),
        other => Err(MetadataError::Corrupt(format!("versioning state {other}"))),
    }
}

pub(super) fn acl_code(acl: CannedAcl) -> i64 {
    match acl {
        CannedAcl::Private => 0,
        CannedAcl::PublicRead => 1,
    }
}

pub(super) fn acl(code: i64) -> MetadataResult<CannedAcl> {
    match code {
        0 => Ok(CannedAcl::Private),
        1 => Ok(CannedAcl::PublicRead),
        other => Err(MetadataError::Corrupt(format!("canned acl {other}"))),
    }
}

pub(super) fn tier(name: &str) -> MetadataResult<TierName> {
    name.parse().map_err(|_| MetadataError::Corrupt(format!("name {name:?} of a tier")))
}

/// A storage class; `None` is `STANDARD`.
pub(super) fn class(name: Option<&str>) -> MetadataResult<Option<TierName>> {
    name.map(tier).transpose()
}

/// Where in `tier` a content is.
pub(super) fn cold_place(tier: &str, bytes: &[u8]) -> MetadataResult<ColdPlace> {
    let place = ColdPlace::decode(bytes).map_err(|error| MetadataError::Corrupt(error.to_string()))?;
    if place.tier.as_str() == tier { Ok(place) } else { Err(corrupt("place in another tier")) }
}

pub(super) fn restore_code(restore: Option<Restore>) -> Option<i64> {
    restore.map(|restore| match restore {
        Restore::Ongoing => 0,
        Restore::Until(until_ms) => signed(until_ms),
    })
}

pub(super) fn restore(code: Option<i64>) -> MetadataResult<Option<Restore>> {
    Ok(match code {
        None => None,
        Some(0) => Some(Restore::Ongoing),
        Some(until_ms) => Some(Restore::Until(unsigned(until_ms)?)),
    })
}

/// A reason, and how long a restore is kept.
pub(super) fn reason_code(reason: MoveReason) -> (i64, Option<i64>) {
    match reason {
        MoveReason::Stored => (0, None),
        MoveReason::Lifecycle => (1, None),
        MoveReason::Command => (2, None),
        MoveReason::Restore { keep_ms } => (3, Some(signed(keep_ms))),
        MoveReason::Return => (4, None),
    }
}

pub(super) fn reason(code: i64, keep_ms: Option<i64>) -> MetadataResult<MoveReason> {
    match (code, keep_ms) {
        (0, _) => Ok(MoveReason::Stored),
        (1, _) => Ok(MoveReason::Lifecycle),
        (2, _) => Ok(MoveReason::Command),
        (3, Some(keep_ms)) => Ok(MoveReason::Restore { keep_ms: unsigned(keep_ms)? }),
        (4, _) => Ok(MoveReason::Return),
        (other, _) => Err(MetadataError::Corrupt(format!("reason {other} of a move"))),
    }
}

pub(super) fn config_kind(name: &str) -> MetadataResult<BucketConfigKind> {
    BucketConfigKind::ALL
        .into_iter()
        .find(|kind| kind.as_str() == name)
        .ok_or_else(|| MetadataError::Corrupt(format!("bucket configuration of kind {name:?}")))
}

/// A key as text. Keys come in as `String`, so that anything else was not written by us.
pub(super) fn key(bytes: Vec<u8>) -> MetadataResult<String> {
    String::from_utf8(bytes).map_err(|_| corrupt("object key that is not UTF-8"))
}

pub(super) fn content_id(bytes: &[u8]) -> MetadataResult<ContentId> {
    ContentId::from_slice(bytes).ok_or_else(|| corrupt("content id"))
}

pub(super) fn chunk_id(bytes: &[u8]) -> MetadataResult<ChunkId> {
    ChunkId::from_slice(bytes).ok_or_else(|| corrupt("chunk id"))
}

pub(super) fn cluster_id(bytes: &[u8]) -> MetadataResult<ClusterId> {
    ClusterId::from_slice(bytes).ok_or_else(|| corrupt("cluster id"))
}

pub(super) fn node_id(bytes: &[u8]) -> MetadataResult<NodeId> {
    NodeId::from_slice(bytes).ok_or_else(|| corrupt("node id"))
}

/// A shard and its epoch.
pub(super) fn epoch(shard: i64, epoch: i64) -> MetadataResult<(ShardId, Epoch)> {
    let shard = u32::try_from(shard).map_err(|_| corrupt("shard number"))?;
    Ok((ShardId(shard), Epoch(unsigned(epoch)?)))
}

/// Refuses chunks that were written under an epoch older than the stored one.
pub(super) fn check_epochs(evidence: &ReplicaEvidence, stored: &HashMap<ShardId, Epoch>) -> MetadataResult<()> {
    for (shard, epoch) in &evidence.epochs {
        if let Some(current) = stored.get(shard).filter(|current| *current > epoch) {
            return Err(MetadataError::StaleEpoch { shard: *shard, current: *current });
        }
    }
    Ok(())
}

pub(super) fn version_id(bytes: &[u8]) -> MetadataResult<VersionId> {
    VersionId::from_slice(bytes).ok_or_else(|| corrupt("version id"))
}

pub(super) fn upload_id(bytes: &[u8]) -> MetadataResult<UploadId> {
    UploadId::from_slice(bytes).ok_or_else(|| corrupt("upload id"))
}

pub(super) fn md5(bytes: &[u8]) -> MetadataResult<[u8; 16]> {
    bytes.try_into().map_err(|_| corrupt("md5"))
}

pub(super) fn etag(digest: &[u8], parts: Option<i64>) -> MetadataResult<ETag> {
    let parts = parts.map(u32::try_from).transpose().map_err(|_| corrupt("etag part count"))?;
    Ok(ETag { md5: md5(digest)?, parts })
}

pub(super) fn manifest(bytes: &[u8]) -> MetadataResult<Manifest> {
    Manifest::decode(bytes).map_err(|error| MetadataError::Corrupt(error.to_string()))
}

/// A number that is stored signed and is never negative.
pub(super) fn unsigned(value: i64) -> MetadataResult<u64> {
    u64::try_from(value).map_err(|_| MetadataError::Corrupt(format!("negative number {value}")))
}

/// A number as databases store it. Holdfast's stay below 2⁶³ (sizes end at 5 TiB, times in the year 292 million).
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("strings and lists always serialise")
}

fn from_json<T: DeserializeOwned + Default>(text: Option<&str>, what: &str) -> MetadataResult<T> {
    match text {
        None => Ok(T::default()),
        Some(text) => serde_json::from_str(text).map_err(|error| MetadataError::Corrupt(format!("{what}: {error}"))),
    }
}

/// `None` for no attributes at all, which is common and costs nothing then.
pub(super) fn attributes_text(attributes: &ObjectAttributes) -> Option<String> {
    (*attributes != ObjectAttributes::default()).then(|| json(attributes))
}

pub(super) fn attributes(text: Option<&str>) -> MetadataResult<ObjectAttributes> {
    from_json(text, "object attributes")
}

pub(super) fn tags_text(tags: &[Tag]) -> Option<String> {
    (!tags.is_empty()).then(|| json(&tags))
}

pub(super) fn tags(text: Option<&str>) -> MetadataResult<Vec<Tag>> {
    from_json(text, "object tags")
}

pub(super) fn parts_text(parts: &[ObjectPart]) -> Option<String> {
    (!parts.is_empty()).then(|| json(&parts))
}

/// Parts whose sizes can be reckoned with, as readers of one of them do.
pub(super) fn parts(text: Option<&str>) -> MetadataResult<Vec<ObjectPart>> {
    let parts: Vec<ObjectPart> = from_json(text, "object parts")?;
    let sum = parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(part.size_bytes));
    if sum.is_some() { Ok(parts) } else { Err(corrupt("object parts of more bytes than can be counted")) }
}

fn algorithm(code: u8) -> MetadataResult<ChecksumAlgorithm> {
    ChecksumAlgorithm::of_code(code).ok_or_else(|| MetadataError::Corrupt(format!("checksum algorithm {code}")))
}

fn checksum_type(code: u8) -> MetadataResult<ChecksumType> {
    ChecksumType::of_code(code).ok_or_else(|| MetadataError::Corrupt(format!("checksum type {code}")))
}

/// `algorithm u8, type u8, parts u32 big-endian (0 = none), value`.
pub(super) fn checksum_bytes(checksum: &Checksum) -> Vec<u8> {
    let mut out = Vec::with_capacity(6 + checksum.value.len());
    out.extend([checksum.algorithm.code(), checksum.checksum_type.code()]);
    out.extend(checksum.parts.unwrap_or(0).to_be_bytes());
    out.extend_from_slice(&checksum.value);
    out
}

pub(super) fn checksum(bytes: &[u8]) -> MetadataResult<Checksum> {
    let Some(([algorithm_code, type_code, count @ ..], value)) = bytes.split_first_chunk::<6>() else {
        return Err(corrupt("checksum"));
    };
    let count = u32::from_be_bytes(*count);
    let algorithm = algorithm(*algorithm_code)?;
    if value.len() != algorithm.len_bytes() {
        return Err(corrupt("checksum of a wrong length"));
    }
    Ok(Checksum {
        algorithm,
        checksum_type: checksum_type(*type_code)?,
        value: value.to_vec(),
        parts: (count != 0).then_some(count),
    })
}

/// `algorithm u8, type u8`.
pub(super) fn checksum_kind_bytes((algorithm, checksum_type): (ChecksumAlgorithm, ChecksumType)) -> Vec<u8> {
    vec![algorithm.code(), checksum_type.code()]
}

/// The first two bytes of a stored checksum, or a whole stored kind.
pub(super) fn checksum_kind(bytes: &[u8]) -> MetadataResult<(ChecksumAlgorithm, ChecksumType)> {
    match bytes {
        [algorithm_code, type_code, ..] => Ok((algorithm(*algorithm_code)?, checksum_type(*type_code)?)),
        _ => Err(corrupt("checksum kind")),
    }
}

/// `algorithm u8, value`.
pub(super) fn part_checksum_bytes((algorithm, value): &(ChecksumAlgorithm, Vec<u8>)) -> Vec<u8> {
    let mut out = vec![algorithm.code()];
    out.extend_from_slice(value);
    out
}

pub(super) fn part_checksum(bytes: &[u8]) -> MetadataResult<(ChecksumAlgorithm, Vec<u8>)> {
    match bytes {
        [code, value @ ..] => Ok((algorithm(*code)?, value.to_vec())),
        [] => Err(corrupt("part checksum")),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::fuzz::{Target, damage};

    use super::*;

    #[test]
    fn checksums_round_trip_and_damage_is_seen() {
        for algorithm in ChecksumAlgorithm::ALL {
            for parts in [None, Some(7)] {
                let value = Checksum {
                    algorithm,
                    checksum_type: algorithm.default_type(),
                    value: vec![9; algorithm.len_bytes()],
                    parts,
                };
                let bytes = checksum_bytes(&value);
                assert_eq!(checksum(&bytes).unwrap(), value);
                assert_eq!(checksum_kind(&bytes).unwrap(), (algorithm, algorithm.default_type()));
                assert!(matches!(checksum(&bytes[..bytes.len() - 1]), Err(MetadataError::Corrupt(_))));
            }
        }
        assert!(matches!(checksum(&[1, 1]), Err(MetadataError::Corrupt(_))));
        assert!(matches!(checksum_kind(&[9, 1]), Err(MetadataError::Corrupt(_))));
    }

    #[test]
    fn damaged_columns_are_corrupt_and_no_harm() {
        fn body(bytes: &[u8]) {
            let _ = checksum(bytes).map(|value| assert_eq!(checksum_bytes(&value), bytes));
            let _ = part_checksum(bytes).map(|value| assert_eq!(part_checksum_bytes(&value), bytes));
            let _ = (checksum_kind(bytes), md5(bytes), version_id(bytes), upload_id(bytes), manifest(bytes));
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            let _ = attributes(Some(text)).map(|value| {
                assert_eq!(attributes(attributes_text(&value).as_deref()).unwrap(), value);
            });
            let _ = tags(Some(text)).map(|value| assert_eq!(tags(tags_text(&value).as_deref()).unwrap(), value));
            let _ = parts(Some(text)).map(|value| assert_eq!(parts(parts_text(&value).as_deref()).unwrap(), value));
        }
        fn seeds() -> Vec<Vec<u8>> {
            let value = Checksum {
                algorithm: ChecksumAlgorithm::Crc32c,
                checksum_type: ChecksumType::Composite,
                value: vec![1, 2, 3, 4],
                parts: Some(2),
            };
            let part = ObjectPart { number: 1, size_bytes: 5, checksum: Some(vec![7; 4]) };
            let full = ObjectAttributes { content_type: Some("text/plain".into()), ..Default::default() };
            let tag = Tag { key: "a".into(), value: "b".into() };
            let texts = [parts_text(&[part]), attributes_text(&full), tags_text(&[tag])];
            let binary = [checksum_bytes(&value), part_checksum_bytes(&(ChecksumAlgorithm::Crc32, vec![1; 4]))];
            binary.into_iter().chain(texts.into_iter().flatten().map(String::into_bytes)).collect()
        }
        damage::run(&[Target { name: "sql_column", body, seeds }], 5_000);
    }

    #[test]
    fn absent_documents_are_empty_and_broken_ones_are_corrupt() {
        assert_eq!(attributes_text(&ObjectAttributes::default()), None);
        assert_eq!(attributes(None).unwrap(), ObjectAttributes::default());
        assert!(matches!(attributes(Some("{")), Err(MetadataError::Corrupt(_))));
        let part = |number| ObjectPart { number, size_bytes: u64::MAX, checksum: None };
        assert_eq!(parts(parts_text(&[part(1)]).as_deref()).unwrap(), [part(1)]);
        let uncountable = parts(parts_text(&[part(1), part(2)]).as_deref());
        assert!(matches!(uncountable, Err(MetadataError::Corrupt(_))), "{uncountable:?}");
        let full = ObjectAttributes { content_type: Some("text/plain".into()), ..Default::default() };
        assert_eq!(attributes(attributes_text(&full).as_deref()).unwrap(), full);
    }
}
