//! Where an object's bytes are: a list of extents, each a content cut into chunks of [`CHUNK_SIZE_MAX`].
//!
//! A plain PUT has one extent whatever its size; a multipart object has one a part. That keeps the manifest of a 5 TiB
//! object below 200 KiB and makes "which chunk holds offset X" arithmetic.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::ids::{ChunkId, ContentId};

/// The most payload bytes one chunk holds: 16 MiB. All chunks of a content but the last are exactly this long.
pub const CHUNK_SIZE_MAX: u64 = 16 << 20;

/// The most bytes of one content: as many as its chunks hold, whose indices end before [`crate::STUB_INDEX`].
pub const CONTENT_SIZE_MAX: u64 = CHUNK_SIZE_MAX * crate::STUB_INDEX as u64;

/// One run of bytes, stored as the chunks `content.chunk(0..)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Whose chunks hold the bytes.
    pub content: ContentId,
    /// How many bytes they hold.
    pub size_bytes: u64,
}

impl Extent {
    /// Number of chunks; an empty extent has none.
    pub fn chunk_count(&self) -> u32 {
        self.size_bytes.div_ceil(CHUNK_SIZE_MAX) as u32
    }

    /// All chunks of the extent in order.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkId> + use<> {
        let content = self.content;
        (0..self.chunk_count()).map(move |index| content.chunk(index))
    }
}

/// A piece of one chunk: what a reader asks the chunk store for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRange {
    /// The chunk.
    pub chunk: ChunkId,
    /// Bytes within the chunk's payload.
    pub range: Range<u32>,
}

/// The extents of an object, in order. Encoded as `n × (content 12 bytes, size u64 big-endian)`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The object's bytes, in order.
    pub extents: Vec<Extent>,
}

/// A manifest whose stored form is damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not whole extents.
    #[error("malformed manifest of {0} bytes: expected a multiple of 20")]
    Length(usize),
    /// Sizes that no object has.
    #[error(
        "malformed manifest: an extent is larger than {CONTENT_SIZE_MAX} bytes, or all together than can be counted"
    )]
    Size,
}

impl Manifest {
    /// The manifest of a plain PUT.
    pub fn single(content: ContentId, size_bytes: u64) -> Self {
        let extents = if size_bytes == 0 { vec![] } else { vec![Extent { content, size_bytes }] };
        Self { extents }
    }

    /// The object's size.
    pub fn size_bytes(&self) -> u64 {
        self.extents.iter().map(|e| e.size_bytes).sum()
    }

    /// Whether there can be such an object: all its chunks have an index, and its bytes can be counted.
    pub fn is_sound(&self) -> bool {
        let add = |sum: u64, extent: &Extent| {
            if extent.size_bytes > CONTENT_SIZE_MAX { None } else { sum.checked_add(extent.size_bytes) }
        };
        self.extents.iter().try_fold(0, add).is_some()
    }

    /// The pieces of chunks that make up `range` of the object, in order. The part of `range` beyond the end is left
    /// out.
    pub fn locate(&self, range: Range<u64>) -> impl Iterator<Item = ChunkRange> + '_ {
        let mut extent_start = 0u64;
        self.extents
            .iter()
            .map(move |extent| {
                let start = extent_start;
                extent_start += extent.size_bytes;
                (start, extent)
            })
            .filter_map(move |(start, extent)| {
                let from = range.start.max(start);
                let to = range.end.min(start + extent.size_bytes);
                (from < to).then(|| (extent, from - start, to - start))
            })
            .flat_map(|(extent, from, to)| {
                let first = from / CHUNK_SIZE_MAX;
                let last = (to - 1) / CHUNK_SIZE_MAX;
                (first..=last).map(move |index| {
                    let chunk_start = index * CHUNK_SIZE_MAX;
                    let a = from.max(chunk_start) - chunk_start;
                    let b = to.min(chunk_start + CHUNK_SIZE_MAX) - chunk_start;
                    ChunkRange { chunk: extent.content.chunk(index as u32), range: a as u32..b as u32 }
                })
            })
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.extents.len() * 20);
        for extent in &self.extents {
            out.extend_from_slice(extent.content.as_bytes());
            out.extend_from_slice(&extent.size_bytes.to_be_bytes());
        }
        out
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// When the length is not that of whole extents, and when the sizes are those of no object.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let (records, []) = bytes.as_chunks::<20>() else {
            return Err(ManifestError::Length(bytes.len()));
        };
        let extents = records
            .iter()
            .map(|record| {
                let mut content = [0; 12];
                content.copy_from_slice(&record[..12]);
                let mut size = [0; 8];
                size.copy_from_slice(&record[12..]);
                Extent { content: ContentId(content), size_bytes: u64::from_be_bytes(size) }
            })
            .collect();
        let manifest = Self { extents };
        if manifest.is_sound() { Ok(manifest) } else { Err(ManifestError::Size) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn locate_crosses_chunks_and_extents() {
        let a = ContentId([1; 12]);
        let b = ContentId([2; 12]);
        let manifest = Manifest {
            extents: vec![Extent { content: a, size_bytes: CHUNK_SIZE_MAX + 10 }, Extent { content: b, size_bytes: 5 }],
        };
        let got: Vec<_> = manifest.locate(CHUNK_SIZE_MAX - 1..CHUNK_SIZE_MAX + 12).collect();
        let chunk = CHUNK_SIZE_MAX as u32;
        assert_eq!(
            got,
            vec![
                ChunkRange { chunk: a.chunk(0), range: chunk - 1..chunk },
                ChunkRange { chunk: a.chunk(1), range: 0..10 },
                ChunkRange { chunk: b.chunk(0), range: 0..2 },
            ]
        );
    }

    #[test]
    fn empty_object_has_no_extent() {
        let manifest = Manifest::single(ContentId([9; 12]), 0);
        assert_eq!(manifest.locate(0..100).count(), 0);
        assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
    }

    #[test]
    fn sizes_of_no_object_are_refused() {
        let encoded = |sizes: &[u64]| {
            let extents = sizes.iter().map(|size| Extent { content: ContentId([1; 12]), size_bytes: *size }).collect();
            Manifest { extents }.encode()
        };
        assert!(Manifest::decode(&encoded(&[CONTENT_SIZE_MAX])).is_ok());
        assert_eq!(Manifest::decode(&encoded(&[CONTENT_SIZE_MAX + 1])), Err(ManifestError::Size));
        assert_eq!(Manifest::decode(&encoded(&[u64::MAX, 2])), Err(ManifestError::Size));
        assert_eq!(Manifest::decode(&encoded(&[CONTENT_SIZE_MAX; 257])), Err(ManifestError::Size), "the sum overflows");
    }

    proptest! {
        #[test]
        fn located_pieces_add_up(sizes in prop::collection::vec(1u64..40_000_000, 1..6), a in 0u64..100_000_000, len in 0u64..100_000_000) {
            let manifest = Manifest {
                extents: sizes.iter().enumerate().map(|(i, s)| Extent { content: ContentId([i as u8; 12]), size_bytes: *s }).collect(),
            };
            let total = manifest.size_bytes();
            let expected = (a + len).min(total).saturating_sub(a);
            let got: u64 = manifest.locate(a..a + len).map(|p| u64::from(p.range.end - p.range.start)).sum();
            prop_assert_eq!(got, expected);
            prop_assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
        }
    }
}
