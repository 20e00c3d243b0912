//! Which bytes of an object a request means.

use std::ops::Range;

use crate::ports::metadata::{Content, ObjectPart};

/// One range of a `Range` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    /// `bytes=first-` or `bytes=first-last`, both inclusive.
    From {
        /// First byte.
        first: u64,
        /// Last byte, if named.
        last: Option<u64>,
    },
    /// `bytes=-length`: the last bytes.
    Suffix {
        /// How many.
        length: u64,
    },
}

/// The range lies beyond the object's end: 416 with `Content-Range: bytes */size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the range cannot be satisfied: the object has {size_bytes} bytes")]
pub struct RangeNotSatisfiable {
    /// The object's size.
    pub size_bytes: u64,
}

/// The upload has no part of this number: 416 `InvalidPartNumber`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the object has no part {0}")]
pub struct NoSuchPart(pub u32);

impl ByteRange {
    /// The bytes meant, of an object of `size_bytes`. A range that reaches beyond the end is cut.
    ///
    /// # Errors
    /// When no byte is left. Every range of an empty object is unsatisfiable, as in S3.
    pub fn resolve(self, size_bytes: u64) -> Result<Range<u64>, RangeNotSatisfiable> {
        let unsatisfiable = RangeNotSatisfiable { size_bytes };
        match self {
            Self::From { first, last } => {
                let end = last.map_or(size_bytes, |last| last.saturating_add(1).min(size_bytes));
                if first < end { Ok(first..end) } else { Err(unsatisfiable) }
            }
            Self::Suffix { length } => {
                let start = size_bytes - length.min(size_bytes);
                if start < size_bytes { Ok(start..size_bytes) } else { Err(unsatisfiable) }
            }
        }
    }

    /// Reads `bytes=first-last`, the only form that `x-amz-copy-source-range` may have.
    pub fn parse_copy_source_range(text: &str) -> Option<Self> {
        let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
        let (first, last) = (parse_digits(first)?, parse_digits(last)?);
        (first <= last).then_some(Self::From { first, last: Some(last) })
    }
}

/// Unsigned decimal without sign or spaces.
fn parse_digits(text: &str) -> Option<u64> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// The bytes of part `number`, and the part when the object came by a multipart upload. An object that was put in one
/// piece is its own part 1.
///
/// # Errors
/// [`NoSuchPart`].
pub fn part_range(content: &Content, number: u32) -> Result<(Range<u64>, Option<&ObjectPart>), NoSuchPart> {
    if content.parts.is_empty() {
        return if number == 1 { Ok((0..content.size_bytes(), None)) } else { Err(NoSuchPart(number)) };
    }
    // Parts are told by their place among the parts completed, not by the number they were uploaded under.
    let index = (number as usize).checked_sub(1).ok_or(NoSuchPart(number))?;
    let part = content.parts.get(index).ok_or(NoSuchPart(number))?;
    let start = content.parts[..index].iter().map(|p| p.size_bytes).sum::<u64>();
    Ok((start..start + part.size_bytes, Some(part)))
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::{ContentId, Manifest};

    use super::*;
    use crate::ports::metadata::{ContentPlace, ETag};

    fn from(first: u64, last: Option<u64>) -> ByteRange {
        ByteRange::From { first, last }
    }

    #[test]
    fn ranges_are_cut_at_the_end() {
        let table = [
            (from(0, Some(0)), 10, Some(0..1)),
            (from(0, None), 10, Some(0..10)),
            (from(9, Some(100)), 10, Some(9..10)),
            (from(9, Some(u64::MAX)), 10, Some(9..10)),
            (from(10, None), 10, None),
            (from(10, Some(20)), 10, None),
            (ByteRange::Suffix { length: 3 }, 10, Some(7..10)),
            (ByteRange::Suffix { length: 30 }, 10, Some(0..10)),
            (ByteRange::Suffix { length: 0 }, 10, None),
            (from(0, None), 0, None),
            (ByteRange::Suffix { length: 1 }, 0, None),
        ];
        for (range, size_bytes, expected) in table {
            assert_eq!(range.resolve(size_bytes).ok(), expected, "{range:?} of {size_bytes}");
        }
    }

    #[test]
    fn copy_source_range_has_one_form() {
        assert_eq!(ByteRange::parse_copy_source_range("bytes=5-9"), Some(from(5, Some(9))));
        for bad in ["bytes=5-", "bytes=-5", "5-9", "bytes=9-5", "bytes=+1-2", "bytes=1-2,3-4", "bytes= 1-2", ""] {
            assert_eq!(ByteRange::parse_copy_source_range(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn part_numbers_count_completed_parts() {
        let id = ContentId([1; 12]);
        let part = |number, size_bytes| ObjectPart { number, size_bytes, checksum: None };
        let mut content = Content {
            id,
            manifest: Manifest::single(id, 30),
            etag: ETag { md5: [0; 16], parts: None },
            checksum: None,
            parts: vec![],
            place: ContentPlace::Cluster,
        };
        assert_eq!(part_range(&content, 1).unwrap().0, 0..30);
        assert_eq!(part_range(&content, 2), Err(NoSuchPart(2)));
        content.parts = vec![part(3, 10), part(7, 20)];
        assert_eq!(part_range(&content, 2).unwrap().0, 10..30);
        assert_eq!(part_range(&content, 3), Err(NoSuchPart(3)));
        assert_eq!(part_range(&content, 0), Err(NoSuchPart(0)));
    }
}
