//! What a tombstone record holds.

use holdfast_protocol::ChunkId;

use crate::format::{CHECKSUM_BLOCK_BYTES, FormatError, SEQUENCE_MAX, array_at, u64_at};

/// One deleted chunk in the payload of a tombstone record: all records of `id` with a sequence number of at most
/// `sequence` are dead. 24 bytes: id (16), sequence (8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kill {
    /// The chunk.
    pub id: ChunkId,
    /// The youngest record that is dead.
    pub sequence: u64,
}

impl Kill {
    /// Bytes of the stored form.
    pub const BYTES: usize = 24;

    /// The most that go into one record: what fits one checksum block.
    pub const PER_RECORD_MAX: usize = CHECKSUM_BLOCK_BYTES / 2 / Self::BYTES;

    /// Appends the stored form.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
    }

    /// Reads a list.
    ///
    /// # Errors
    /// [`FormatError::Invalid`] when the length is no multiple of an entry's, and for impossible sequence numbers: one
    /// would kill all that its chunk ever had and will have.
    pub fn decode_list(bytes: &[u8]) -> Result<Vec<Self>, FormatError> {
        if !bytes.len().is_multiple_of(Self::BYTES) {
            return Err(FormatError::Invalid { what: "tombstones", detail: "odd length" });
        }
        let read = |entry| {
            let kill = Self { id: ChunkId(array_at(entry, 0)), sequence: u64_at(entry, 16) };
            let detail = "impossible sequence number";
            if kill.sequence > SEQUENCE_MAX {
                Err(FormatError::Invalid { what: "tombstones", detail })
            } else {
                Ok(kill)
            }
        };
        bytes.chunks_exact(Self::BYTES).map(read).collect()
    }
}
