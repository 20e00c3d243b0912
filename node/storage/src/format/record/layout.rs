//! Where the parts of a record lie.

use super::HEADER_BYTES;
use crate::format::{BLOCK_BYTES, CHECKSUM_BLOCK_BYTES, LABEL_BYTES_MAX, PAYLOAD_BYTES_MAX};

/// Where the parts of a record lie; follows from the lengths of payload and label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordLayout {
    /// Payload length in bytes.
    pub payload_len: u32,
    /// Label length in bytes.
    pub label_len: u32,
    /// Offset of the label.
    pub label_offset: u32,
    /// Offset of the payload.
    pub payload_offset: u32,
    /// Length of the record, whole blocks.
    pub record_len: u32,
}

impl RecordLayout {
    /// Lays a record out; `None` when a length is out of bounds (payload 1 byte to 16 MiB, label up to 24 KiB).
    pub fn new(payload_len: usize, label_len: usize) -> Option<Self> {
        if payload_len == 0 || payload_len > PAYLOAD_BYTES_MAX || label_len > LABEL_BYTES_MAX {
            return None;
        }
        let table_len = 4 * payload_len.div_ceil(CHECKSUM_BLOCK_BYTES);
        let label_offset = (HEADER_BYTES + table_len).next_multiple_of(16);
        let head_len = (label_offset + label_len).next_multiple_of(16);
        let shares_block = head_len + payload_len <= BLOCK_BYTES;
        let payload_offset = if shares_block { head_len } else { head_len.next_multiple_of(BLOCK_BYTES) };
        let record_len = (payload_offset + payload_len).next_multiple_of(BLOCK_BYTES);
        Some(Self {
            payload_len: payload_len as u32,
            label_len: label_len as u32,
            label_offset: label_offset as u32,
            payload_offset: payload_offset as u32,
            record_len: record_len as u32,
        })
    }

    /// Checksummed blocks of the payload.
    pub fn block_count(&self) -> usize {
        (self.payload_len as usize).div_ceil(CHECKSUM_BLOCK_BYTES)
    }

    /// Where the table lies in the record. It is always in the record's first block.
    pub fn table_range(&self) -> std::ops::Range<usize> {
        HEADER_BYTES..HEADER_BYTES + 4 * self.block_count()
    }

    /// Where the label lies in the record.
    pub fn label_range(&self) -> std::ops::Range<usize> {
        self.label_offset as usize..(self.label_offset + self.label_len) as usize
    }

    /// The payload's place in one byte, for the index: 1 to 7 count the blocks before it, more is its offset in the
    /// first block in units of 16 bytes.
    pub fn place_code(&self) -> u8 {
        let offset = self.payload_offset as usize;
        if offset >= BLOCK_BYTES { (offset / BLOCK_BYTES) as u8 } else { (offset / 16) as u8 }
    }

    /// The payload offset that [`RecordLayout::place_code`] stands for; `None` for codes that it never gives.
    pub fn payload_offset_of(code: u8) -> Option<u32> {
        match code {
            0 | 8 => None,
            1..=7 => Some(u32::from(code) * BLOCK_BYTES as u32),
            9.. => Some(u32::from(code) * 16),
        }
    }
}
