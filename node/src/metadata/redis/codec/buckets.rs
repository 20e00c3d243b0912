//! Buckets with their configuration.

use holdfast_actors::ports::metadata::{Bucket, BucketConfigKind, BucketId, MetadataError, Versioning};

use super::{Entry, Reader, Writer};

impl Entry for Bucket {
    const CACHE: &'static str = "buckets";
    const KIND: char = 'b';

    fn absent() -> MetadataError {
        MetadataError::NoSuchBucket
    }

    fn write(&self, out: &mut Writer) {
        out.number(self.id.0);
        out.bytes(self.name.as_bytes());
        out.bytes(self.owner.as_bytes());
        out.number(self.created_ms);
        out.byte(match self.versioning {
            Versioning::Unversioned => 0,
            Versioning::Enabled => 1,
            Versioning::Suspended => 2,
        });
        out.number(self.revision);
        out.number(self.configs.len() as u64);
        for (kind, text) in &self.configs {
            out.bytes(kind.as_str().as_bytes());
            out.bytes(text.as_bytes());
        }
    }

    fn read(fields: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            id: BucketId(fields.number()?),
            name: fields.text()?,
            owner: fields.text()?,
            created_ms: fields.number()?,
            versioning: match fields.byte()? {
                0 => Versioning::Unversioned,
                1 => Versioning::Enabled,
                2 => Versioning::Suspended,
                _ => return None,
            },
            revision: fields.number()?,
            configs: {
                let count = fields.number()?;
                let configs = (0..count.min(BucketConfigKind::ALL.len() as u64)).map(|_| {
                    let name = fields.bytes()?;
                    let kind = BucketConfigKind::ALL.into_iter().find(|kind| kind.as_str().as_bytes() == name)?;
                    Some((kind, fields.text()?))
                });
                configs.collect::<Option<Vec<_>>>()?
            },
        })
    }
}
