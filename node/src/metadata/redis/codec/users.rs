//! Users and access keys, which are kept apart.

use holdfast_actors::ports::metadata::{AccessKey, MetadataError, User};

use super::{Entry, Reader, Writer};

/// A user, and the name of this reading of it: what was derived from another one counts no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::metadata::redis) struct Profile {
    pub(in crate::metadata::redis) user: User,
    pub(in crate::metadata::redis) reading: [u8; 16],
}

impl Entry for Profile {
    const CACHE: &'static str = "users";
    const KIND: char = 'u';

    fn absent() -> MetadataError {
        MetadataError::NotFound("user")
    }

    fn write(&self, out: &mut Writer) {
        out.0.extend_from_slice(&self.reading);
        out.bytes(self.user.name.as_bytes());
        out.byte(u8::from(self.user.admin));
        out.byte(u8::from(self.user.enabled));
        out.number(self.user.created_ms);
    }

    fn read(fields: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            reading: fields.array()?,
            user: User {
                name: fields.text()?,
                admin: fields.flag()?,
                enabled: fields.flag()?,
                created_ms: fields.number()?,
            },
        })
    }
}

/// An access key without what changes with its user: that is in the [`Profile`] of which it was read together.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::metadata::redis) struct Credential {
    /// Of the profile.
    pub(in crate::metadata::redis) reading: [u8; 16],
    pub(in crate::metadata::redis) user: String,
    pub(in crate::metadata::redis) access_key: String,
    pub(in crate::metadata::redis) sealed_secret: Vec<u8>,
    pub(in crate::metadata::redis) enabled: bool,
    pub(in crate::metadata::redis) description: String,
    pub(in crate::metadata::redis) created_ms: u64,
}

impl Credential {
    pub(in crate::metadata::redis) fn of(key: &AccessKey, profile: &Profile) -> Self {
        Self {
            reading: profile.reading,
            user: key.user.name.clone(),
            access_key: key.access_key.clone(),
            sealed_secret: key.sealed_secret.clone(),
            enabled: key.enabled,
            description: key.description.clone(),
            created_ms: key.created_ms,
        }
    }

    /// The key, if the profile is the one that it was read with.
    pub(in crate::metadata::redis) fn with(&self, profile: &Profile) -> Option<AccessKey> {
        (self.reading == profile.reading && self.user == profile.user.name).then(|| AccessKey {
            access_key: self.access_key.clone(),
            sealed_secret: self.sealed_secret.clone(),
            user: profile.user.clone(),
            enabled: self.enabled,
            description: self.description.clone(),
            created_ms: self.created_ms,
        })
    }
}

impl Entry for Credential {
    const CACHE: &'static str = "keys";
    const KIND: char = 'k';

    fn absent() -> MetadataError {
        MetadataError::NotFound("access key")
    }

    fn write(&self, out: &mut Writer) {
        out.0.extend_from_slice(&self.reading);
        out.bytes(self.user.as_bytes());
        out.bytes(self.access_key.as_bytes());
        out.bytes(&self.sealed_secret);
        out.byte(u8::from(self.enabled));
        out.bytes(self.description.as_bytes());
        out.number(self.created_ms);
    }

    fn read(fields: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            reading: fields.array()?,
            user: fields.text()?,
            access_key: fields.text()?,
            sealed_secret: fields.bytes()?.to_vec(),
            enabled: fields.flag()?,
            description: fields.text()?,
            created_ms: fields.number()?,
        })
    }
}
