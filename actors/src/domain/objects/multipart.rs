//! The rules by which uploaded parts become an object.

use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::{ChecksumAlgorithm, ChecksumType, ContentId, Extent, Manifest};

use super::{OBJECT_SIZE_MAX, checksums};
use crate::ports::metadata::{Content, ContentPlace, ETag, ObjectPart, Part};

/// Highest part number, and most parts of an object.
pub const PART_NUMBER_MAX: u16 = 10_000;

/// Least size of every part but the last: 5 MiB.
pub const PART_SIZE_MIN: u64 = 5 << 20;

/// Why parts do not make an object. The comments name S3's codes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompletionError {
    /// `MalformedXML`
    #[error("you must specify at least one part and at most {PART_NUMBER_MAX}")]
    PartCount,
    /// `InvalidPartOrder`
    #[error("the list of parts was not in ascending order")]
    Order,
    /// `InvalidPart`
    #[error("part {0} could not be found, or its entity tag or checksum does not match")]
    InvalidPart(u16),
    /// `EntityTooSmall`
    #[error("part {number} has {size_bytes} bytes, less than the minimum allowed size {PART_SIZE_MIN}")]
    TooSmall {
        /// The part.
        number: u16,
        /// Its size.
        size_bytes: u64,
    },
    /// `EntityTooLarge`
    #[error("the object would have {0} bytes, more than {OBJECT_SIZE_MAX}")]
    TooLarge(u64),
    /// `InvalidRequest`
    #[error("the object has {actual} bytes, not the {announced} announced by x-amz-mp-object-size")]
    SizeMismatch {
        /// What the client said.
        announced: u64,
        /// What the parts add up to.
        actual: u64,
    },
    /// `InvalidRequest`
    #[error("the checksum type of the completion is not that of the upload")]
    ChecksumType,
    /// `BadDigest`
    #[error("the {0} you specified did not match the calculated checksum")]
    BadDigest(ChecksumAlgorithm),
}

/// A part as the client names it in a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPart {
    /// Part number.
    pub number: u16,
    /// The ETag that the upload of the part was answered with; `None` if the text is no ETag of a part.
    pub etag: Option<ETag>,
    /// Checksums that the client gives for the part.
    pub checksums: Vec<(ChecksumAlgorithm, Vec<u8>)>,
}

/// What the client says about the object to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExpectedObject {
    /// `x-amz-mp-object-size`
    pub size_bytes: Option<u64>,
    /// A checksum of the object: value, and number of parts if given as composite.
    pub checksum: Option<(ChecksumAlgorithm, Vec<u8>, Option<u32>)>,
    /// `x-amz-checksum-type`
    pub checksum_type: Option<ChecksumType>,
}

/// Parts ready to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembled {
    /// Number and content of each part.
    pub parts: Vec<(u16, ContentId)>,
    /// The object's content.
    pub content: Content,
}

/// Checks a completion's part list by itself, before the stored parts are read.
///
/// # Errors
/// [`CompletionError::PartCount`], [`CompletionError::Order`].
pub fn check_order(named: &[NamedPart]) -> Result<(), CompletionError> {
    if named.is_empty() || named.len() > usize::from(PART_NUMBER_MAX) {
        return Err(CompletionError::PartCount);
    }
    if named.windows(2).any(|pair| pair[0].number >= pair[1].number) {
        return Err(CompletionError::Order);
    }
    Ok(())
}

/// Makes an object of the named parts. `stored` holds the upload's parts by ascending number; `chosen` is the checksum
/// of the upload, if its creator chose one (S3's default is used otherwise); `id` names the new content.
///
/// # Errors
/// [`CompletionError`].
pub fn assemble(
    id: ContentId,
    named: &[NamedPart],
    stored: &[Part],
    chosen: Option<(ChecksumAlgorithm, ChecksumType)>,
    expected: &ExpectedObject,
) -> Result<Assembled, CompletionError> {
    check_order(named)?;
    let (algorithm, checksum_type) =
        chosen.unwrap_or((checksums::DEFAULT_ALGORITHM, checksums::DEFAULT_ALGORITHM.default_type()));
    if chosen.is_some() && expected.checksum_type.is_some_and(|t| t != checksum_type) {
        return Err(CompletionError::ChecksumType);
    }

    let parts = named_parts(named, stored, chosen.is_some())?;
    check_sizes(&parts, expected.size_bytes)?;
    let checksum = object_checksum(algorithm, checksum_type, &parts);
    if let Some((given, value, part_count)) = &expected.checksum {
        let same = checksum.as_ref().is_some_and(|have| {
            have.algorithm == *given && have.value == *value && (part_count.is_none() || have.parts == *part_count)
        });
        if !same {
            return Err(CompletionError::BadDigest(*given));
        }
    }
    let extents = parts
        .iter()
        .filter(|part| part.size_bytes > 0)
        .map(|part| Extent { content: part.content, size_bytes: part.size_bytes })
        .collect();
    let show_checksums = chosen.is_some();
    Ok(Assembled {
        parts: parts.iter().map(|part| (part.number, part.content)).collect(),
        content: Content {
            id,
            manifest: Manifest { extents },
            etag: checksums::multipart_etag(parts.iter().map(|part| &part.md5)),
            checksum,
            parts: parts
                .iter()
                .map(|part| ObjectPart {
                    number: part.number,
                    size_bytes: part.size_bytes,
                    checksum: part.checksum.as_ref().filter(|_| show_checksums).map(|(_, value)| value.clone()),
                })
                .collect(),
            place: ContentPlace::Cluster,
        },
    })
}

/// The parts that a completion names, if they are what it says. `is_chosen`: the upload's creator chose the checksum.
fn named_parts<'a>(named: &[NamedPart], stored: &'a [Part], is_chosen: bool) -> Result<Vec<&'a Part>, CompletionError> {
    let mut parts: Vec<&Part> = Vec::with_capacity(named.len());
    for wanted in named {
        let invalid = CompletionError::InvalidPart(wanted.number);
        let index = stored.binary_search_by_key(&wanted.number, |part| part.number).map_err(|_| invalid.clone())?;
        let part = &stored[index];
        if wanted.etag != Some(ETag { md5: part.md5, parts: None }) {
            return Err(invalid);
        }
        for (given, value) in &wanted.checksums {
            // An upload without a chosen algorithm keeps only the default's values; others were checked when the part
            // came.
            let matches = match &part.checksum {
                Some((have, stored)) if have == given => stored == value,
                _ => !is_chosen,
            };
            if !matches {
                return Err(invalid);
            }
        }
        parts.push(part);
    }
    Ok(parts)
}

/// Whether an object may be made of parts of these sizes, and is as large as announced.
fn check_sizes(parts: &[&Part], announced: Option<u64>) -> Result<(), CompletionError> {
    for part in &parts[..parts.len() - 1] {
        if part.size_bytes < PART_SIZE_MIN {
            return Err(CompletionError::TooSmall { number: part.number, size_bytes: part.size_bytes });
        }
    }
    // However large they are said to be: a damaged row must not make an object of their sum without its carry.
    let size_bytes = parts.iter().fold(0_u64, |sum, part| sum.saturating_add(part.size_bytes));
    if size_bytes > OBJECT_SIZE_MAX {
        return Err(CompletionError::TooLarge(size_bytes));
    }
    if let Some(announced) = announced
        && announced != size_bytes
    {
        return Err(CompletionError::SizeMismatch { announced, actual: size_bytes });
    }
    Ok(())
}

/// The object's checksum, or `None` when a part lacks the algorithm's value.
fn object_checksum(algorithm: ChecksumAlgorithm, checksum_type: ChecksumType, parts: &[&Part]) -> Option<Checksum> {
    let values = parts
        .iter()
        .map(|part| match &part.checksum {
            Some((have, value)) if *have == algorithm => Some((value.as_slice(), part.size_bytes)),
            _ => None,
        })
        .collect::<Option<Vec<_>>>()?;
    checksums::combine(algorithm, checksum_type, &values)
}

#[cfg(test)]
mod tests {
    use super::super::digests::Digester;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn part(number: u16, size_bytes: u64) -> Part {
        let mut digester = Digester::new(&[ChecksumAlgorithm::Crc64Nvme]);
        digester.update(&vec![number as u8; size_bytes as usize]);
        let digests = digester.finish();
        Part {
            number,
            content: ContentId([number as u8; 12]),
            size_bytes,
            md5: digests.md5,
            checksum: digests.checksums.into_iter().next(),
            last_modified_ms: 0,
        }
    }

    fn named(part: &Part) -> NamedPart {
        NamedPart { number: part.number, etag: Some(ETag { md5: part.md5, parts: None }), checksums: vec![] }
    }

    fn run(named: &[NamedPart], stored: &[Part], expected: &ExpectedObject) -> Result<Assembled, CompletionError> {
        assemble(ContentId([0xff; 12]), named, stored, None, expected)
    }

    #[test]
    fn parts_become_an_object_with_a_full_object_checksum() {
        let stored = [part(1, 5 * MIB), part(2, 5 * MIB), part(9, 3)];
        let list = [named(&stored[0]), named(&stored[2])];
        let whole = [vec![1; 5 << 20], vec![9; 3]].concat();
        let mut digester = Digester::new(&[ChecksumAlgorithm::Crc64Nvme]);
        digester.update(&whole);
        let expected = ExpectedObject {
            size_bytes: Some(whole.len() as u64),
            checksum: Some((ChecksumAlgorithm::Crc64Nvme, digester.finish().checksums[0].1.clone(), None)),
            checksum_type: Some(ChecksumType::FullObject),
        };
        let assembled = run(&list, &stored, &expected).unwrap();
        assert_eq!(assembled.parts, vec![(1, stored[0].content), (9, stored[2].content)]);
        assert_eq!(assembled.content.size_bytes(), 5 * MIB + 3);
        assert_eq!(assembled.content.etag.parts, Some(2));
        let wrong = ExpectedObject {
            checksum: Some((ChecksumAlgorithm::Crc64Nvme, vec![0; 8], None)),
            ..ExpectedObject::default()
        };
        assert_eq!(run(&list, &stored, &wrong), Err(CompletionError::BadDigest(ChecksumAlgorithm::Crc64Nvme)));
    }

    #[test]
    fn damaged_rows_make_no_object_of_the_rest_of_their_sum() {
        let stored = [1, 2].map(|number| Part { size_bytes: u64::MAX, ..part(number, 1) });
        let list = [named(&stored[0]), named(&stored[1])];
        let refused = run(&list, &stored, &ExpectedObject::default());
        assert_eq!(refused, Err(CompletionError::TooLarge(u64::MAX)));
    }

    #[test]
    fn refusals() {
        let stored = [part(1, 5 * MIB), part(2, 5 * MIB - 1), part(3, 0)];
        let [one, two, three] = [named(&stored[0]), named(&stored[1]), named(&stored[2])];
        let nothing = ExpectedObject::default();
        assert_eq!(run(&[], &stored, &nothing), Err(CompletionError::PartCount));
        assert_eq!(run(&[two.clone(), one.clone()], &stored, &nothing), Err(CompletionError::Order));
        assert_eq!(run(&[one.clone(), one.clone()], &stored, &nothing), Err(CompletionError::Order));
        assert_eq!(
            run(&[one.clone(), two.clone(), three.clone()], &stored, &nothing),
            Err(CompletionError::TooSmall { number: 2, size_bytes: 5 * MIB - 1 })
        );
        assert!(run(&[one.clone(), two.clone()], &stored, &nothing).is_ok(), "the last part may be small");
        let missing = NamedPart { number: 4, ..one.clone() };
        assert_eq!(run(&[missing], &stored, &nothing), Err(CompletionError::InvalidPart(4)));
        let wrong_tag = NamedPart { etag: two.etag, ..one.clone() };
        assert_eq!(run(&[wrong_tag], &stored, &nothing), Err(CompletionError::InvalidPart(1)));
        let wrong_sum = NamedPart { checksums: vec![(ChecksumAlgorithm::Crc64Nvme, vec![1; 8])], ..one.clone() };
        assert_eq!(run(&[wrong_sum], &stored, &nothing), Err(CompletionError::InvalidPart(1)));
        let size = ExpectedObject { size_bytes: Some(1), ..ExpectedObject::default() };
        assert_eq!(run(&[one], &stored, &size), Err(CompletionError::SizeMismatch { announced: 1, actual: 5 * MIB }));
        assert!(run(&[three], &stored, &nothing).unwrap().content.manifest.extents.is_empty());
    }
}
