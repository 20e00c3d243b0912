//! What a chunk's header says about the object it belongs to (promise D10): enough to rebuild the metadata from the
//! disks alone.
//!
//! A label is written as JSON with short names, at most [`LABEL_SIZE_MAX`] bytes. JSON, because a label is read when
//! everything else is lost: `strings` on a disk must be enough to see whose bytes these are. Unknown fields are ignored
//! and new fields are optional, so old and new binaries read each other's labels.

use serde::{Deserialize, Serialize};

use crate::ids::{UploadId, VersionId};
use crate::manifest::CONTENT_SIZE_MAX;

/// The longest encoded label: a 1,024-byte key of control characters escapes to 6 KiB; 2 KiB of user metadata, system
/// headers and tags fit beside it.
pub const LABEL_SIZE_MAX: usize = 24 << 10;

/// Whose bytes a chunk holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkLabel {
    /// Bucket name at the time of writing.
    #[serde(rename = "b")]
    pub bucket: String,
    /// Object key.
    #[serde(rename = "k")]
    pub key: String,
    /// Object version; `null` in an unversioned bucket. Meaningless while `upload` is set.
    #[serde(rename = "ver", with = "text")]
    pub version: VersionId,
    /// The multipart upload and part number that the bytes came in by; such a chunk belongs to an object only if a
    /// completion says so.
    #[serde(rename = "up", default, skip_serializing_if = "Option::is_none")]
    pub part: Option<PartLabel>,
    /// Size in bytes of the whole content (all chunks of this [`crate::ContentId`]).
    #[serde(rename = "size")]
    pub content_size_bytes: u64,
    /// When the content was begun, in milliseconds since 1970.
    #[serde(rename = "ms")]
    pub created_ms: u64,
    /// Headers and user metadata as JSON, on the first chunk only, and on stubs.
    #[serde(rename = "attr", default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<String>,
    /// The chunk holds no bytes of the content but a [`crate::ColdStub`], which says where in a cold tier they are.
    #[serde(rename = "stub", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_stub: bool,
}

/// Which part of which upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartLabel {
    /// The upload.
    #[serde(rename = "id", with = "text")]
    pub upload: UploadId,
    /// From 1 to 10,000.
    #[serde(rename = "n")]
    pub number: u16,
}

/// A label that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// Longer than [`LABEL_SIZE_MAX`].
    #[error("chunk label of {0} bytes is longer than {LABEL_SIZE_MAX}")]
    TooLong(usize),
    /// Not the JSON that a label is.
    #[error("malformed chunk label")]
    Malformed(#[from] serde_json::Error),
    /// Of a content larger than any.
    #[error("chunk label of a content of {0} bytes; there are at most {CONTENT_SIZE_MAX}")]
    Size(u64),
}

impl ChunkLabel {
    /// The stored form.
    ///
    /// # Errors
    /// [`LabelError::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, LabelError> {
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() > LABEL_SIZE_MAX {
            return Err(LabelError::TooLong(bytes.len()));
        }
        Ok(bytes)
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// All variants of [`LabelError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, LabelError> {
        if bytes.len() > LABEL_SIZE_MAX {
            return Err(LabelError::TooLong(bytes.len()));
        }
        let label: Self = serde_json::from_slice(bytes)?;
        if label.content_size_bytes > CONTENT_SIZE_MAX {
            return Err(LabelError::Size(label.content_size_bytes));
        }
        Ok(label)
    }
}

/// Serde by `Display` and `FromStr`.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let s = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label() -> ChunkLabel {
        ChunkLabel {
            bucket: "photos".into(),
            key: "2026/ä\u{1}.jpg".into(),
            version: VersionId::NULL,
            part: Some(PartLabel { upload: UploadId([7; 16]), number: 3 }),
            content_size_bytes: 10,
            created_ms: 1,
            attributes: None,
            is_stub: false,
        }
    }

    #[test]
    fn label_round_trips() {
        let bytes = label().encode().unwrap();
        assert_eq!(ChunkLabel::decode(&bytes).unwrap(), label());
    }

    #[test]
    fn golden_label() {
        let text = String::from_utf8(label().encode().unwrap()).unwrap();
        assert_eq!(
            text,
            r#"{"b":"photos","k":"2026/ä\u0001.jpg","ver":"null","up":{"id":"07070707070707070707070707070707","n":3},"size":10,"ms":1}"#
        );
    }

    #[test]
    fn golden_label_of_a_stub() {
        let stub = ChunkLabel { part: None, is_stub: true, ..label() };
        let text = String::from_utf8(stub.encode().unwrap()).unwrap();
        assert_eq!(text, r#"{"b":"photos","k":"2026/ä\u0001.jpg","ver":"null","size":10,"ms":1,"stub":true}"#);
        assert_eq!(ChunkLabel::decode(text.as_bytes()).unwrap(), stub);
    }

    #[test]
    fn sizes_that_no_content_has_are_refused() {
        let of = |content_size_bytes| ChunkLabel { content_size_bytes, ..label() }.encode().unwrap();
        assert!(ChunkLabel::decode(&of(CONTENT_SIZE_MAX)).is_ok());
        assert!(matches!(ChunkLabel::decode(&of(u64::MAX)), Err(LabelError::Size(u64::MAX))));
    }

    #[test]
    fn the_worst_key_fits() {
        let mut label = label();
        label.key = "\u{1}".repeat(1024);
        label.attributes = Some("\u{1}".repeat(2048));
        assert!(label.encode().unwrap().len() <= LABEL_SIZE_MAX);
    }
}
