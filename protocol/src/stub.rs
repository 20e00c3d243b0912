//! The stub of a content that lies in a cold tier (promise D10): one small chunk on the cluster's own disks, so that
//! metadata can be rebuilt from them alone.
//!
//! It is the chunk [`STUB_INDEX`] of the content, which no chunk of bytes can be: a content has far fewer. Its label
//! has the usual fields and [`crate::ChunkLabel::is_stub`]; its payload is a [`ColdStub`]: what the content's row says
//! that the label does not. It is written before the content is committed and deleted with it.

use crate::checksum::{Checksum, ChecksumAlgorithm, ChecksumType};
use crate::manifest::CHUNK_SIZE_MAX;
use crate::tiers::{ColdPlace, ColdPlaceError};

/// The index of the chunk that is a content's stub.
pub const STUB_INDEX: u32 = u32::MAX;

/// What is needed to make the row of a cold content again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColdStub {
    /// Where the bytes are.
    pub place: ColdPlace,
    /// The digest of the ETag.
    pub etag_md5: [u8; 16],
    /// Its number of parts.
    pub etag_parts: Option<u32>,
    /// The checksum of the object.
    pub checksum: Option<Checksum>,
    /// Parts of a multipart object, in order; empty otherwise.
    pub parts: Vec<StubPart>,
}

/// One part of a multipart object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StubPart {
    /// Part number.
    pub number: u16,
    /// Size.
    pub size_bytes: u64,
    /// The part's checksum, by the algorithm of the object's.
    pub checksum: Option<Vec<u8>>,
}

/// A stub that cannot be written or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StubError {
    /// It would be longer than a chunk. A tier whose pieces are small and whose names are long cannot take the largest
    /// objects.
    #[error("the stub of a cold content of {0} bytes is longer than a chunk")]
    TooLong(usize),
    /// The stored form is of another version, cut off, or does not add up.
    #[error("malformed stub of a cold content: {0}")]
    Malformed(&'static str),
    /// So is the place in it.
    #[error("stub of a cold content: {0}")]
    Place(#[from] ColdPlaceError),
}

impl ColdStub {
    /// The stored form, all numbers big-endian: version (1), MD5 of the ETag (16), its number of parts (4; 0 for none),
    /// checksum: algorithm (1; 0 for none, and then nothing else), type (1), length (1) and value, number of parts (4;
    /// 0 for none); number of parts (2), each with its number (2), size (8), length of its checksum (1) and it; the
    /// rest is the place.
    ///
    /// # Errors
    /// [`StubError::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, StubError> {
        let mut out = vec![1];
        out.extend_from_slice(&self.etag_md5);
        out.extend_from_slice(&self.etag_parts.unwrap_or(0).to_be_bytes());
        match &self.checksum {
            None => out.push(0),
            Some(checksum) => {
                out.push(checksum.algorithm.code());
                out.push(checksum.checksum_type.code());
                short(&mut out, &checksum.value);
                out.extend_from_slice(&checksum.parts.unwrap_or(0).to_be_bytes());
            }
        }
        out.extend_from_slice(&(self.parts.len() as u16).to_be_bytes());
        for part in &self.parts {
            out.extend_from_slice(&part.number.to_be_bytes());
            out.extend_from_slice(&part.size_bytes.to_be_bytes());
            short(&mut out, part.checksum.as_deref().unwrap_or_default());
        }
        out.extend_from_slice(&self.place.encode());
        if out.len() as u64 > CHUNK_SIZE_MAX {
            return Err(StubError::TooLong(out.len()));
        }
        Ok(out)
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When it is of another version, cut off, or does not add up.
    pub fn decode(bytes: &[u8]) -> Result<Self, StubError> {
        let mut rest = bytes;
        if take::<1>(&mut rest)? != [1] {
            return Err(StubError::Malformed("unknown version"));
        }
        let etag_md5 = take(&mut rest)?;
        let etag_parts = count(&mut rest)?;
        let checksum = match take(&mut rest)? {
            [0] => None,
            [code] => {
                let algorithm = ChecksumAlgorithm::of_code(code);
                let algorithm = algorithm.ok_or(StubError::Malformed("algorithm of the checksum"))?;
                let [code] = take(&mut rest)?;
                let checksum_type = ChecksumType::of_code(code);
                let checksum_type = checksum_type.ok_or(StubError::Malformed("type of the checksum"))?;
                let value = take_short(&mut rest)?;
                if value.len() != algorithm.len_bytes() {
                    return Err(StubError::Malformed("length of the checksum"));
                }
                Some(Checksum { algorithm, checksum_type, value, parts: count(&mut rest)? })
            }
        };
        let mut parts = Vec::new();
        for _ in 0..u16::from_be_bytes(take(&mut rest)?) {
            let number = u16::from_be_bytes(take(&mut rest)?);
            let size_bytes = u64::from_be_bytes(take(&mut rest)?);
            let checksum = Some(take_short(&mut rest)?).filter(|value| !value.is_empty());
            parts.push(StubPart { number, size_bytes, checksum });
        }
        Ok(Self { place: ColdPlace::decode(rest)?, etag_md5, etag_parts, checksum, parts })
    }
}

/// A checksum's value: 32 bytes at most.
fn short(out: &mut Vec<u8>, value: &[u8]) {
    out.push(value.len() as u8);
    out.extend_from_slice(value);
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], StubError> {
    let (taken, after) = rest.split_first_chunk::<N>().ok_or(StubError::Malformed("cut off"))?;
    *rest = after;
    Ok(*taken)
}

fn take_short(rest: &mut &[u8]) -> Result<Vec<u8>, StubError> {
    let [len] = take(rest)?;
    let (taken, after) = rest.split_at_checked(usize::from(len)).ok_or(StubError::Malformed("cut off"))?;
    *rest = after;
    Ok(taken.to_vec())
}

fn count(rest: &mut &[u8]) -> Result<Option<u32>, StubError> {
    Ok(Some(u32::from_be_bytes(take(rest)?)).filter(|count| *count > 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tiers::BLOCK_BYTES_MIN;

    fn place(size_bytes: u64, piece_bytes: u64, name_len: usize) -> ColdPlace {
        let block_bytes = ColdPlace::block_bytes_for(size_bytes);
        ColdPlace {
            tier: "OSS".parse().unwrap(),
            size_bytes,
            piece_bytes,
            block_bytes,
            names: (0..size_bytes.div_ceil(piece_bytes)).map(|at| format!("{at:0name_len$}")).collect(),
            sums: (0..size_bytes.div_ceil(u64::from(block_bytes))).map(|at| at as u32).collect(),
        }
    }

    fn stub(multipart: bool) -> ColdStub {
        ColdStub {
            place: place(5, u64::from(BLOCK_BYTES_MIN), 2),
            etag_md5: [7; 16],
            etag_parts: multipart.then_some(2),
            checksum: Some(Checksum {
                algorithm: ChecksumAlgorithm::Crc32c,
                checksum_type: if multipart { ChecksumType::Composite } else { ChecksumType::FullObject },
                value: vec![1, 2, 3, 4],
                parts: multipart.then_some(2),
            }),
            parts: if multipart {
                vec![
                    StubPart { number: 1, size_bytes: 3, checksum: Some(vec![9; 4]) },
                    StubPart { number: 7, size_bytes: 2, checksum: None },
                ]
            } else {
                vec![]
            },
        }
    }

    #[test]
    fn stored_form_is_as_written_down() {
        let expected = concat!(
            "01",
            "07070707070707070707070707070707",
            "00000002",
            "02020401020304",
            "00000002",
            "0002",
            "000100000000000000030409090909",
            "0007000000000000000200",
            "01034f535300000000000000050000000000020000000200000000000100023030",
            "00000000"
        );
        assert_eq!(hex::encode(stub(true).encode().unwrap()), expected);
    }

    #[test]
    fn stubs_come_back_and_cut_off_ones_are_refused() {
        let bare = ColdStub { checksum: None, ..stub(false) };
        for whole in [stub(true), stub(false), bare] {
            let bytes = whole.encode().unwrap();
            assert_eq!(ColdStub::decode(&bytes).unwrap(), whole);
            for len in 0..bytes.len() {
                assert!(ColdStub::decode(&bytes[..len]).is_err(), "{len}");
            }
            assert!(ColdStub::decode(&[&bytes[..], &[0; 4]].concat()).is_err());
            assert!(ColdStub::decode(&[&[2], &bytes[1..]].concat()).is_err());
        }
    }

    #[test]
    fn the_largest_object_fits_into_one_chunk_and_what_does_not_is_refused() {
        let largest = 5 << 40;
        let part = |number| StubPart { number, size_bytes: largest / 10_000, checksum: Some(vec![1; 32]) };
        let mut stub = ColdStub { parts: (1..=10_000).map(part).collect(), ..stub(true) };
        for (piece_bytes, name_len) in [(256 << 20, 512), (64 << 20, 128)] {
            stub.place = place(largest, piece_bytes, name_len);
            let bytes = stub.encode().unwrap();
            assert!(ColdStub::decode(&bytes).unwrap() == stub);
        }
        stub.place = place(largest, 16 << 20, 512);
        assert!(matches!(stub.encode(), Err(StubError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = ColdStub::decode(&bytes);
            let _ = ColdStub::decode(&[&[1], &bytes[..]].concat());
        }

        #[test]
        fn changed_bytes_do_not_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = stub(true).encode().unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = ColdStub::decode(&bytes);
        }
    }
}
