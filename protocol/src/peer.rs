//! The frames that nodes of a cluster send each other over QUIC.
//!
//! An operation is one bidirectional stream. The caller sends a [`Request`] frame, then the raw bytes that the request
//! announces; the peer sends [`Answer`] frames, some of which announce raw bytes too. A connection is used only after
//! both sides proved by certificate that they are nodes of the same cluster, so none of this is read from strangers.
//!
//! | operation | caller | peer |
//! |---|---|---|
//! | write | `write`, label | `ready` once it will take the payload |
//! | | payload, end of stream | `done` once it is durable and was acknowledged under its fence |
//! | read | `read`, end of stream | `data`, then [`block`]s, each with its CRC32C |
//! | label | `label`, end of stream | `label`, the label |
//! | all others | the request, end of stream | one answer |
//!
//! At any time the peer may answer `error` instead; between the blocks of a read an empty block says that one follows.
//!
//! # A frame
//! | bytes | what |
//! |---|---|
//! | 2 | `HF` |
//! | 1 | version of the protocol, now [`VERSION`] |
//! | 1 | kind: 1 request, 2 answer, 3 request of an enrolment, 4 answer to it |
//! | 4 | length of the body, big-endian |
//! | … | the body: JSON |
//!
//! JSON, because heads are small beside what they announce, and because a frame that somebody has to read at night
//! should be readable. A field may be added with a default; whatever else changes raises the version. Frames of an
//! unknown version are refused, and the refusal names both.
//!
//! Sizes are limited when encoding as well as when decoding: a node never sends what its peer must refuse.

use serde::Serialize;
use serde::de::DeserializeOwned;

pub mod answer;
pub mod block;
pub mod enrol;
mod hex_form;
pub mod request;

#[cfg(test)]
mod golden;

pub use answer::{Answer, WireDigest, WireError, WireHealth, WireInfo};
pub use request::{Request, WireReport};

/// The version of the protocol that this binary speaks.
pub const VERSION: u8 = 1;
/// What the peers agree on during the TLS handshake for operations on chunks.
pub const ALPN_PEER: &[u8] = b"holdfast-peer/1";
/// What the peers agree on during the TLS handshake for an enrolment.
pub const ALPN_ENROL: &[u8] = b"holdfast-enrol/1";

/// Bytes before a frame's body.
pub const PREFIX_BYTES: usize = 8;
/// The most chunk ids in one request.
pub const IDS_MAX: usize = 1_000;
/// The most chunks in one page of a list.
pub const LIST_MAX: usize = 4_096;
/// The most shards that a node says to have proven in one answer: as many as a cluster has at most.
pub const PROVEN_MAX: usize = crate::cluster::SHARD_COUNT_MAX as usize;
/// Parts of a shard's digest.
pub const DIGEST_PARTS: usize = 256;
/// The longest text in a frame (a reason, a context). Longer ones are cut when encoding.
pub const TEXT_BYTES_MAX: usize = 512;

const MAGIC: [u8; 2] = *b"HF";

/// Why a frame cannot be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Something else than a frame.
    #[error("not a frame of the peer protocol")]
    NotAFrame,
    /// A version that this binary does not speak.
    #[error("a frame of version {found} of the peer protocol; this node speaks version {VERSION}")]
    Version {
        /// The frame's version.
        found: u8,
    },
    /// A frame that does not belong here.
    #[error("a frame of kind {found} where kind {expected} was expected")]
    Kind {
        /// The frame's kind.
        found: u8,
        /// The kind that has its turn.
        expected: u8,
    },
    /// Larger than its kind may be.
    #[error("a frame of {found} bytes; the limit is {max}")]
    TooLarge {
        /// Its body's length in bytes.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// The body is no valid message.
    #[error("a malformed frame: {0}")]
    Malformed(String),
}

/// A message that has a frame.
pub trait Message: Serialize + DeserializeOwned {
    /// The kind in the prefix.
    const KIND: u8;
    /// The largest body.
    const BODY_BYTES_MAX: usize;

    /// Checks what the types do not: counts, ranges, lengths. Run when encoding and when decoding.
    ///
    /// # Errors
    /// [`FrameError::Malformed`].
    fn check(&self) -> Result<(), FrameError>;
}

/// The frame of a message, prefix included.
///
/// # Errors
/// When the message breaks a limit.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, FrameError> {
    message.check()?;
    let mut frame = vec![0; PREFIX_BYTES];
    serde_json::to_writer(&mut frame, message).map_err(|error| FrameError::Malformed(error.to_string()))?;
    let body_bytes = frame.len() - PREFIX_BYTES;
    let length = u32::try_from(body_bytes).ok().filter(|_| body_bytes <= M::BODY_BYTES_MAX);
    let Some(length) = length else {
        return Err(FrameError::TooLarge { found: body_bytes, max: M::BODY_BYTES_MAX });
    };
    frame[..2].copy_from_slice(&MAGIC);
    frame[2] = VERSION;
    frame[3] = M::KIND;
    frame[4..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// The length of the body that follows a prefix, so that nothing is reserved for what is refused.
///
/// # Errors
/// When it is no prefix of a frame of this kind, of this version, or of a size within the limit.
pub fn body_bytes<M: Message>(prefix: [u8; PREFIX_BYTES]) -> Result<usize, FrameError> {
    let [h, f, version, kind, length @ ..] = prefix;
    if [h, f] != MAGIC {
        return Err(FrameError::NotAFrame);
    }
    // The version first: what follows it may mean something else in another one.
    if version != VERSION {
        return Err(FrameError::Version { found: version });
    }
    if kind != M::KIND {
        return Err(FrameError::Kind { found: kind, expected: M::KIND });
    }
    let found = u32::from_be_bytes(length) as usize;
    if found > M::BODY_BYTES_MAX {
        return Err(FrameError::TooLarge { found, max: M::BODY_BYTES_MAX });
    }
    Ok(found)
}

/// Takes a body apart.
///
/// # Errors
/// When it is too large or no valid message.
pub fn decode_body<M: Message>(body: &[u8]) -> Result<M, FrameError> {
    if body.len() > M::BODY_BYTES_MAX {
        return Err(FrameError::TooLarge { found: body.len(), max: M::BODY_BYTES_MAX });
    }
    let message: M = serde_json::from_slice(body).map_err(|error| FrameError::Malformed(error.to_string()))?;
    message.check()?;
    Ok(message)
}

/// Takes a whole frame apart; nothing may follow it.
///
/// # Errors
/// As [`body_bytes`] and [`decode_body`].
pub fn decode<M: Message>(frame: &[u8]) -> Result<M, FrameError> {
    let (prefix, body) = frame.split_first_chunk::<PREFIX_BYTES>().ok_or(FrameError::NotAFrame)?;
    if body_bytes::<M>(*prefix)? != body.len() {
        return Err(FrameError::NotAFrame);
    }
    decode_body(body)
}

/// Cuts a text so that it fits a frame.
pub fn cut(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

fn malformed(what: impl Into<String>) -> FrameError {
    FrameError::Malformed(what.into())
}

fn check_text(text: &str) -> Result<(), FrameError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(malformed(format!("a text of {} bytes", text.len())));
    }
    Ok(())
}
