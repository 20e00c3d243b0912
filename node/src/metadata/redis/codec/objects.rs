//! Latest versions of objects.

use std::sync::Arc;

use holdfast_actors::ports::metadata::{
    BucketId, CannedAcl, Content, ContentPlace, ETag, MetadataError, ObjectPart, ObjectVersion, Restore,
};
use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::{ChecksumAlgorithm, ChecksumType, ColdPlace, ContentId, Manifest, TierName, VersionId};

use super::{Entry, Reader, Writer};

impl Entry for ObjectVersion {
    const CACHE: &'static str = "objects";
    const KIND: char = 'o';
    // 1 had no storage class, no restore and no place in a tier: a reader of it would look for chunks of a cold object.
    const FORM: u8 = 2;

    fn absent() -> MetadataError {
        MetadataError::NoSuchKey
    }

    fn is_whole(&self) -> bool {
        self.content.as_ref().is_none_or(|content| content.place != ContentPlace::NotLoaded)
    }

    fn write(&self, out: &mut Writer) {
        out.number(self.bucket.0);
        out.bytes(self.key.as_bytes());
        out.0.extend_from_slice(&self.version.0);
        out.number(self.sequence);
        out.byte(u8::from(self.is_latest));
        out.number(self.last_modified_ms);
        out.bytes(self.owner.as_bytes());
        out.byte(match self.acl {
            CannedAcl::Private => 0,
            CannedAcl::PublicRead => 1,
        });
        out.json(&self.attributes);
        out.json(&self.tags);
        out.bytes(self.class.as_ref().map_or("", TierName::as_str).as_bytes());
        match self.restore {
            None => out.byte(0),
            Some(Restore::Ongoing) => out.byte(1),
            Some(Restore::Until(until_ms)) => {
                out.byte(2);
                out.number(until_ms);
            }
        }
        out.byte(u8::from(self.content.is_some()));
        if let Some(content) = &self.content {
            write_content(content, out);
        }
    }

    fn read(fields: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            bucket: BucketId(fields.number()?),
            key: fields.text()?,
            version: VersionId(fields.array()?),
            sequence: fields.number()?,
            is_latest: fields.flag()?,
            last_modified_ms: fields.number()?,
            owner: fields.text()?,
            acl: match fields.byte()? {
                0 => CannedAcl::Private,
                1 => CannedAcl::PublicRead,
                _ => return None,
            },
            attributes: fields.json()?,
            tags: fields.json()?,
            class: match fields.text()?.as_str() {
                "" => None,
                name => Some(name.parse().ok()?),
            },
            restore: match fields.byte()? {
                0 => None,
                1 => Some(Restore::Ongoing),
                2 => Some(Restore::Until(fields.number()?)),
                _ => return None,
            },
            content: if fields.flag()? { Some(Arc::new(read_content(fields)?)) } else { None },
        })
    }
}

fn write_content(content: &Content, out: &mut Writer) {
    out.0.extend_from_slice(&content.id.0);
    out.bytes(&content.manifest.encode());
    out.0.extend_from_slice(&content.etag.md5);
    out.number(content.etag.parts.map_or(u64::MAX, u64::from));
    out.byte(u8::from(content.checksum.is_some()));
    if let Some(checksum) = &content.checksum {
        out.byte(algorithm_code(checksum.algorithm));
        out.byte(match checksum.checksum_type {
            ChecksumType::FullObject => 0,
            ChecksumType::Composite => 1,
        });
        out.bytes(&checksum.value);
        out.number(checksum.parts.map_or(u64::MAX, u64::from));
    }
    out.json(&content.parts);
    match &content.place {
        ContentPlace::Cluster => out.byte(0),
        ContentPlace::Tier(place) => {
            out.byte(1);
            out.bytes(&place.encode());
        }
        // No reader takes it; `is_whole` keeps it out.
        ContentPlace::NotLoaded => out.byte(u8::MAX),
    }
}

fn read_content(fields: &mut Reader<'_>) -> Option<Content> {
    let parts = |number: u64| if number == u64::MAX { Some(None) } else { u32::try_from(number).ok().map(Some) };
    Some(Content {
        id: ContentId(fields.array()?),
        manifest: Manifest::decode(fields.bytes()?).ok()?,
        etag: ETag { md5: fields.array()?, parts: parts(fields.number()?)? },
        checksum: if fields.flag()? {
            Some(Checksum {
                algorithm: ChecksumAlgorithm::ALL.into_iter().nth(usize::from(fields.byte()?))?,
                checksum_type: match fields.byte()? {
                    0 => ChecksumType::FullObject,
                    1 => ChecksumType::Composite,
                    _ => return None,
                },
                value: fields.bytes()?.to_vec(),
                parts: parts(fields.number()?)?,
            })
        } else {
            None
        },
        parts: fields.json::<Vec<ObjectPart>>().filter(|parts| can_be_added_up(parts))?,
        place: match fields.byte()? {
            0 => ContentPlace::Cluster,
            1 => ContentPlace::Tier(Arc::new(ColdPlace::decode(fields.bytes()?).ok()?)),
            _ => return None,
        },
    })
}

/// Whether readers can reckon with the sizes of parts.
fn can_be_added_up(parts: &[ObjectPart]) -> bool {
    parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(part.size_bytes)).is_some()
}

fn algorithm_code(algorithm: ChecksumAlgorithm) -> u8 {
    ChecksumAlgorithm::ALL.iter().position(|other| *other == algorithm).map_or(u8::MAX, |at| at as u8)
}
