//! Versions and uploads in order of age, for lifecycle rules.

use holdfast_protocol::{TierName, VersionId};

use super::{Tag, Upload};

/// What a version is among those of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The latest one, and an object.
    Current,
    /// An older one, object or delete marker.
    Noncurrent,
    /// The latest one, and a delete marker.
    Marker {
        /// Whether its key has no other version.
        is_alone: bool,
    },
}

/// A version as far as rules about its age ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgedVersion {
    /// Key.
    pub key: String,
    /// Version.
    pub version: VersionId,
    /// As in [`super::ObjectVersion`].
    pub sequence: u64,
    /// What it is.
    pub standing: Standing,
    /// When it was committed.
    pub last_modified_ms: u64,
    /// When it became what it is: for a noncurrent version the commit of the one that took its place, else its own.
    pub since_ms: u64,
    /// Size; `None` for a delete marker.
    pub size_bytes: Option<u64>,
    /// Tags.
    pub tags: Vec<Tag>,
    /// Storage class.
    pub class: Option<TierName>,
}

impl AgedVersion {
    /// Its place in the order of age.
    pub fn position(&self) -> AgePosition {
        let sequence = if self.standing == Standing::Current { 0 } else { self.sequence };
        AgePosition { at_ms: self.since_ms, name: self.key.clone(), sequence }
    }
}

/// A place among versions or uploads in order of age; the default one is before all.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct AgePosition {
    /// The time that counts.
    pub at_ms: u64,
    /// Among those of one time: the key, or the id of the upload.
    pub name: String,
    /// Among noncurrent versions of one time and key.
    pub sequence: u64,
}

impl Upload {
    /// Its place in the order of age.
    pub fn position(&self) -> AgePosition {
        AgePosition { at_ms: self.new.now_ms, name: self.new.id.to_string(), sequence: 0 }
    }
}

/// Which versions, in order of age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgedKind {
    /// Those of [`Standing::Current`].
    Current,
    /// Those of [`Standing::Noncurrent`].
    Noncurrent,
    /// Those of [`Standing::Marker`].
    Markers,
}

/// A key of which something changed that a walk in order of age may have passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recheck {
    /// For [`super::MetadataUpkeep::finish_rechecks`].
    pub id: u64,
    /// The latest version, and the older one that was changed; those that are still there.
    pub versions: Vec<AgedVersion>,
}
