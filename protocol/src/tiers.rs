//! Where the bytes of an object are that turned cold: which tier, under which names, and the checksums that every byte
//! is held against when it comes back.
//!
//! A content in a tier is cut into **pieces**, each stored under a name that the tier gave, and, across pieces, into
//! **blocks**, each with a CRC32C of its own: a reader of a range fetches whole blocks and hands out nothing that was
//! not compared. Pieces but the last hold a whole number of blocks, so a block lies in one piece.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The smallest block: 128 KiB.
pub const BLOCK_BYTES_MIN: u32 = 128 << 10;
/// The largest block: 16 MiB. Memory of a reader.
pub const BLOCK_BYTES_MAX: u32 = 16 << 20;
/// Blocks grow with the content while there are more than this; 256 KiB of checksums.
const BLOCKS_WANTED_MAX: u64 = 65_536;

/// The storage class of data that lies on the cluster's own disks.
pub const STANDARD: &str = "STANDARD";

/// The name of a cold tier, which is also the storage class of what lies in it: 1 to 32 characters `A-Z`, `0-9` and
/// `_`, the first a letter, other than `STANDARD`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TierName(Arc<str>);

/// What is no [`TierName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name of a tier: 1 to 32 characters A-Z, 0-9 and _, beginning with a letter, and not STANDARD, which is the \
     cluster itself"
)]
pub struct TierNameError(String);

impl TierName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TierName {
    type Err = TierNameError;

    fn from_str(text: &str) -> Result<Self, TierNameError> {
        let known = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let begins = text.starts_with(|c: char| c.is_ascii_uppercase());
        if !begins || text.len() > 32 || !text.chars().all(known) || text == STANDARD {
            return Err(TierNameError(text.chars().take(64).collect()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TierName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for TierName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TierName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where the bytes of one content are in a tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColdPlace {
    /// Which tier.
    pub tier: TierName,
    /// All bytes: at least 1.
    pub size_bytes: u64,
    /// Bytes of every piece but the last, which has the rest: a multiple of `block_bytes`.
    pub piece_bytes: u64,
    /// Bytes of every block but the last, which has the rest.
    pub block_bytes: u32,
    /// What the tier calls the pieces, in order.
    pub names: Vec<String>,
    /// CRC32C of each block, in order.
    pub sums: Vec<u32>,
}

/// A [`ColdPlace`] whose stored form is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed place in a cold tier: {0}")]
pub struct ColdPlaceError(&'static str);

/// A run of bytes of one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceRange {
    /// Which piece, from 0.
    pub index: u32,
    /// First byte within it.
    pub start: u64,
    /// Byte behind the last.
    pub end: u64,
}

impl ColdPlace {
    /// How large the blocks of a content of `size_bytes` are.
    pub fn block_bytes_for(size_bytes: u64) -> u32 {
        let mut block = BLOCK_BYTES_MIN;
        while block < BLOCK_BYTES_MAX && size_bytes.div_ceil(u64::from(block)) > BLOCKS_WANTED_MAX {
            block *= 2;
        }
        block
    }

    /// How large the pieces are in a tier that takes at most `piece_bytes_max` in one, which must be at least
    /// [`BLOCK_BYTES_MAX`].
    pub fn piece_bytes_for(block_bytes: u32, piece_bytes_max: u64) -> u64 {
        let block = u64::from(block_bytes);
        (piece_bytes_max / block).max(1) * block
    }

    /// How many pieces there are.
    pub fn piece_count(&self) -> u64 {
        self.size_bytes.div_ceil(self.piece_bytes)
    }

    /// The bytes of the content that piece `index` holds.
    pub fn piece(&self, index: u32) -> Range<u64> {
        let start = (u64::from(index) * self.piece_bytes).min(self.size_bytes);
        start..(start + self.piece_bytes).min(self.size_bytes)
    }

    /// The bytes of the content that block `index` holds.
    pub fn block(&self, index: usize) -> Range<u64> {
        let start = (index as u64 * u64::from(self.block_bytes)).min(self.size_bytes);
        start..(start + u64::from(self.block_bytes)).min(self.size_bytes)
    }

    /// The blocks that `range` of the content touches.
    pub fn blocks(&self, range: &Range<u64>) -> Range<usize> {
        let block = u64::from(self.block_bytes);
        let end = range.end.min(self.size_bytes);
        if range.start >= end {
            return 0..0;
        }
        (range.start / block) as usize..end.div_ceil(block) as usize
    }

    /// The run of bytes of the piece that `offset` lies in, from there on, at most up to `end` of the content.
    pub fn locate(&self, offset: u64, end: u64) -> PieceRange {
        let index = offset / self.piece_bytes;
        let piece = index * self.piece_bytes;
        let stop = end.min(self.size_bytes).min(piece + self.piece_bytes);
        PieceRange { index: index as u32, start: offset - piece, end: stop - piece }
    }

    /// The stored form, all numbers big-endian: version (1), length of the tier's name (1) and it, size (8), piece (8),
    /// block (4), number of names (4), each with its length (2), and the checksums (4 each).
    pub fn encode(&self) -> Vec<u8> {
        let names: usize = self.names.iter().map(|name| 2 + name.len()).sum();
        let mut out = Vec::with_capacity(26 + self.tier.as_str().len() + names + self.sums.len() * 4);
        out.push(1);
        out.push(self.tier.as_str().len() as u8);
        out.extend_from_slice(self.tier.as_str().as_bytes());
        out.extend_from_slice(&self.size_bytes.to_be_bytes());
        out.extend_from_slice(&self.piece_bytes.to_be_bytes());
        out.extend_from_slice(&self.block_bytes.to_be_bytes());
        out.extend_from_slice(&(self.names.len() as u32).to_be_bytes());
        for name in &self.names {
            out.extend_from_slice(&(name.len() as u16).to_be_bytes());
            out.extend_from_slice(name.as_bytes());
        }
        for sum in &self.sums {
            out.extend_from_slice(&sum.to_be_bytes());
        }
        out
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When it is of another version, cut off, or does not add up.
    pub fn decode(bytes: &[u8]) -> Result<Self, ColdPlaceError> {
        let mut rest = bytes;
        if take::<1>(&mut rest)? != [1] {
            return Err(ColdPlaceError("unknown version"));
        }
        let [tier_len] = take::<1>(&mut rest)?;
        let tier = text(&mut rest, usize::from(tier_len))?;
        let tier = tier.parse().map_err(|_| ColdPlaceError("name of the tier"))?;
        let size_bytes = u64::from_be_bytes(take(&mut rest)?);
        let piece_bytes = u64::from_be_bytes(take(&mut rest)?);
        let block_bytes = u32::from_be_bytes(take(&mut rest)?);
        let sane = size_bytes > 0
            && (BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&block_bytes)
            && piece_bytes > 0
            && piece_bytes.is_multiple_of(u64::from(block_bytes));
        if !sane {
            return Err(ColdPlaceError("sizes that do not fit each other"));
        }
        let count = u64::from(u32::from_be_bytes(take(&mut rest)?));
        if count != size_bytes.div_ceil(piece_bytes) {
            return Err(ColdPlaceError("number of pieces"));
        }
        // Not reserved by a number that was only read: each name has to be there.
        let mut names = Vec::new();
        for _ in 0..count {
            let len = u16::from_be_bytes(take(&mut rest)?);
            names.push(text(&mut rest, usize::from(len))?.to_owned());
        }
        let (sums, []) = rest.as_chunks::<4>() else { return Err(ColdPlaceError("cut off")) };
        if sums.len() as u64 != size_bytes.div_ceil(u64::from(block_bytes)) {
            return Err(ColdPlaceError("number of checksums"));
        }
        let sums = sums.iter().map(|sum| u32::from_be_bytes(*sum)).collect();
        Ok(Self { tier, size_bytes, piece_bytes, block_bytes, names, sums })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], ColdPlaceError> {
    let (taken, after) = rest.split_first_chunk::<N>().ok_or(ColdPlaceError("cut off"))?;
    *rest = after;
    Ok(*taken)
}

fn text<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a str, ColdPlaceError> {
    let (taken, after) = rest.split_at_checked(len).ok_or(ColdPlaceError("cut off"))?;
    *rest = after;
    std::str::from_utf8(taken).map_err(|_| ColdPlaceError("a name that is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(size_bytes: u64, piece_bytes: u64) -> ColdPlace {
        let block_bytes = ColdPlace::block_bytes_for(size_bytes);
        ColdPlace {
            tier: "OSS".parse().unwrap(),
            size_bytes,
            piece_bytes,
            block_bytes,
            names: (0..size_bytes.div_ceil(piece_bytes)).map(|i| format!("p{i}")).collect(),
            sums: (0..size_bytes.div_ceil(u64::from(block_bytes))).map(|i| i as u32).collect(),
        }
    }

    #[test]
    fn stored_form_is_as_written_down() {
        let place = ColdPlace { sums: vec![0xdead_beef], ..place(5, u64::from(BLOCK_BYTES_MIN)) };
        let expected = "01034f53530000000000000005000000000002000000020000000000010002 7030 deadbeef".replace(' ', "");
        assert_eq!(hex::encode(place.encode()), expected);
    }

    #[test]
    fn names_of_tiers_are_storage_classes() {
        for good in ["OSS", "FASTDFS", "GLACIER_IR", "A"] {
            assert_eq!(good.parse::<TierName>().unwrap().as_str(), good);
        }
        for bad in ["", "oss", "STANDARD", "1A", "_A", "A-B", &"A".repeat(33)] {
            assert!(bad.parse::<TierName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn blocks_grow_only_with_large_contents() {
        let gib = 1u64 << 30;
        assert_eq!(ColdPlace::block_bytes_for(1), BLOCK_BYTES_MIN);
        assert_eq!(ColdPlace::block_bytes_for(8 * gib), BLOCK_BYTES_MIN);
        assert_eq!(ColdPlace::block_bytes_for(8 * gib + 1), 2 * BLOCK_BYTES_MIN);
        assert_eq!(ColdPlace::block_bytes_for(5 * 1024 * gib), BLOCK_BYTES_MAX);
    }

    #[test]
    fn cut_off_and_wrong_forms_are_refused() {
        let whole = place(3 << 20, 1 << 20).encode();
        for len in 0..whole.len() {
            assert!(ColdPlace::decode(&whole[..len]).is_err(), "{len}");
        }
        let mut longer = whole.clone();
        longer.extend([0; 4]);
        assert!(ColdPlace::decode(&longer).is_err());
        let mut other = whole;
        other[0] = 2;
        assert!(ColdPlace::decode(&other).is_err());
    }

    proptest! {
        #[test]
        fn encoding_keeps_everything(size in 1u64..1 << 24, pieces in 1u64..100) {
            let place = place(size, pieces * u64::from(BLOCK_BYTES_MIN));
            prop_assert_eq!(ColdPlace::decode(&place.encode()).unwrap(), place);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ColdPlace::decode(&bytes);
        }

        #[test]
        fn every_byte_lies_in_one_block_of_one_piece(size in 1u64..1 << 24, pieces in 1u64..10, at in any::<prop::sample::Index>()) {
            let place = place(size, pieces * u64::from(BLOCK_BYTES_MIN));
            let offset = at.index(size as usize) as u64;
            let blocks = place.blocks(&(offset..offset + 1));
            prop_assert_eq!(blocks.len(), 1);
            let block = place.block(blocks.start);
            prop_assert!(block.contains(&offset));
            let run = place.locate(block.start, block.end);
            let piece = place.piece(run.index);
            prop_assert_eq!(piece.start + run.start, block.start);
            prop_assert_eq!(piece.start + run.end, block.end);
        }
    }
}
