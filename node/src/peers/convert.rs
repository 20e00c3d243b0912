//! Between the port's types and the wire's.

use holdfast_actors::ports::ChunkError;
use holdfast_actors::ports::chunks::ChunkInfo;
use holdfast_actors::ports::peers::{DIGEST_PARTS, IDS_MAX, LIST_MAX, PeerError, PeerHealth, ShardDigest, ShardReport};
use holdfast_protocol::NodeId;
use holdfast_protocol::peer::{self, WireDigest, WireError, WireHealth, WireInfo, WireReport, cut};
use quinn::{ReadError, WriteError};

use super::quic::describe;
use super::stream::StreamError;

// The port's limits are the wire's.
const _: () = assert!(IDS_MAX == peer::IDS_MAX && LIST_MAX == peer::LIST_MAX && DIGEST_PARTS == peer::DIGEST_PARTS);

/// An error on its way to the caller.
pub(super) fn error_to_wire(error: &PeerError) -> WireError {
    match error {
        PeerError::Stale { shard, current } => WireError::Stale { shard: *shard, current: *current },
        PeerError::Fenced => WireError::Fenced,
        PeerError::Busy => WireError::Busy,
        PeerError::Timeout { .. } => WireError::Timeout,
        PeerError::Unreachable { .. } => WireError::Unavailable { detail: cut(&error.to_string()) },
        PeerError::Protocol(detail) => WireError::Protocol { detail: cut(detail) },
        PeerError::Chunk(error) => chunk_error_to_wire(error),
    }
}

/// An error of the chunk store on its way to the caller.
pub(super) fn chunk_error_to_wire(error: &ChunkError) -> WireError {
    match error {
        ChunkError::NotFound(chunk) => WireError::NotFound { chunk: *chunk },
        ChunkError::Corrupt { chunk, detail } => WireError::Corrupt { chunk: *chunk, detail: cut(detail) },
        ChunkError::Exists(chunk) => WireError::Exists { chunk: *chunk },
        ChunkError::NoSpace => WireError::NoSpace,
        ChunkError::Unavailable(detail) => WireError::Unavailable { detail: cut(detail) },
        ChunkError::Stale { shard, current } => WireError::Stale { shard: *shard, current: *current },
        ChunkError::Fenced => WireError::Fenced,
        ChunkError::Invalid(detail) => WireError::Invalid { detail: cut(detail) },
        ChunkError::Io { context, source } => WireError::Io { detail: cut(&format!("{context}: {source}")) },
    }
}

/// An error that `node` answered.
pub(super) fn error_from_wire(node: NodeId, error: WireError) -> PeerError {
    match error {
        WireError::Stale { shard, current } => PeerError::Stale { shard, current },
        WireError::Fenced => PeerError::Fenced,
        WireError::Busy => PeerError::Busy,
        WireError::Timeout => PeerError::Timeout { node },
        WireError::NotFound { chunk } => ChunkError::NotFound(chunk).into(),
        WireError::Corrupt { chunk, detail } => ChunkError::Corrupt { chunk, detail }.into(),
        WireError::Exists { chunk } => ChunkError::Exists(chunk).into(),
        WireError::NoSpace => ChunkError::NoSpace.into(),
        WireError::Unavailable { detail } => ChunkError::Unavailable(detail).into(),
        WireError::Invalid { detail } => ChunkError::Invalid(detail).into(),
        WireError::Io { detail } => {
            ChunkError::Io { context: format!("on node {node}"), source: std::io::Error::other(detail) }.into()
        }
        WireError::Protocol { detail } => PeerError::Protocol(format!("node {node} says: {detail}")),
        WireError::Version { found, known } => PeerError::Protocol(format!(
            "node {node} speaks version {known} of the peer protocol, this node version {found}"
        )),
    }
}

/// A stream to `node` that broke.
pub(super) fn stream_error(node: NodeId, error: StreamError) -> PeerError {
    match error {
        StreamError::Frame(error) => PeerError::Protocol(format!("node {node}: {error}")),
        StreamError::Read(ReadError::ConnectionLost(error)) | StreamError::Write(WriteError::ConnectionLost(error)) => {
            PeerError::Unreachable { node, detail: describe(&error) }
        }
        // The peer gave the operation up without an answer: it stops, or it lost the caller.
        error => PeerError::Unreachable { node, detail: error.to_string() },
    }
}

pub(super) fn report_to_wire(report: ShardReport) -> WireReport {
    match report {
        ShardReport::Verified { shard, since } => WireReport::Verified { shard, since },
        ShardReport::JoinFailed { shard, since, reason } => {
            WireReport::JoinFailed { shard, since, reason: cut(&reason) }
        }
        ShardReport::DataLost { shard } => WireReport::DataLost { shard },
    }
}

pub(super) fn report_from_wire(report: WireReport) -> ShardReport {
    match report {
        WireReport::Verified { shard, since } => ShardReport::Verified { shard, since },
        WireReport::JoinFailed { shard, since, reason } => ShardReport::JoinFailed { shard, since, reason },
        WireReport::DataLost { shard } => ShardReport::DataLost { shard },
    }
}

pub(super) fn info_to_wire(info: &ChunkInfo) -> WireInfo {
    WireInfo(info.id, info.size_bytes)
}

pub(super) fn info_from_wire(info: &WireInfo) -> ChunkInfo {
    ChunkInfo { id: info.0, size_bytes: info.1 }
}

pub(super) fn digest_to_wire(digest: ShardDigest) -> WireDigest {
    WireDigest { chunks: digest.chunks, bytes: digest.bytes, parts: digest.parts }
}

pub(super) fn digest_from_wire(digest: WireDigest) -> ShardDigest {
    ShardDigest { chunks: digest.chunks, bytes: digest.bytes, parts: digest.parts }
}

pub(super) fn health_to_wire(health: PeerHealth) -> WireHealth {
    let PeerHealth { node, owner, writable, oldest_write_seconds, mut proven, lives } = health;
    proven.truncate(peer::PROVEN_MAX);
    WireHealth { node, owner, writable, oldest_write_seconds, proven, lives }
}

pub(super) fn health_from_wire(health: WireHealth) -> PeerHealth {
    let WireHealth { node, owner, writable, oldest_write_seconds, proven, lives } = health;
    PeerHealth { node, owner, writable, oldest_write_seconds, proven, lives }
}
