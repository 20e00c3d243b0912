//! What is kept of an object: its versions, and the contents that they share.

use std::fmt;
use std::sync::Arc;

use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::{ColdPlace, ContentId, Manifest, TierName, VersionId};
use serde::{Deserialize, Serialize};

use super::{BucketId, CannedAcl, Tag};

/// An ETag: MD5 of the bytes, or for multipart objects MD5 of the parts' MD5s and their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ETag {
    /// The digest.
    pub md5: [u8; 16],
    /// Number of parts; `None` for an object uploaded in one piece.
    pub parts: Option<u32>,
}

impl fmt::Display for ETag {
    /// Without quotes: `d41d8cd98f00b204e9800998ecf8427e` or `…-3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 32];
        hex::encode_to_slice(self.md5, &mut digits).map_err(|_| fmt::Error)?;
        f.write_str(str::from_utf8(&digits).map_err(|_| fmt::Error)?)?;
        match self.parts {
            Some(parts) => write!(f, "-{parts}"),
            None => Ok(()),
        }
    }
}

/// Headers that S3 keeps with an object and gives back, and what it is told apart by.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectAttributes {
    /// Content-Type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Cache-Control.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_control: Option<String>,
    /// Content-Disposition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_disposition: Option<String>,
    /// Content-Encoding, without `aws-chunked`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    /// Content-Language.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_language: Option<String>,
    /// Expires, as sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// x-amz-website-redirect-location.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub website_redirect_location: Option<String>,
    /// x-amz-meta-*, names in lower case without the prefix, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_metadata: Vec<(String, String)>,
    /// Which multipart upload the object became by, as the front end marks it; no header, and not given back. It stays
    /// when a move makes a new content, and tells a completion that is repeated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion: Option<String>,
}

/// One part of a multipart object, for GET by part number and GetObjectAttributes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectPart {
    /// Part number.
    pub number: u16,
    /// Size.
    pub size_bytes: u64,
    /// The part's checksum, when the upload had an algorithm.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub checksum: Option<Vec<u8>>,
}

/// Where the bytes of a content are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ContentPlace {
    /// On the disks of the cluster: the manifest's chunks.
    #[default]
    Cluster,
    /// In a cold tier. The manifest says only how many bytes there are.
    Tier(Arc<ColdPlace>),
    /// Listings do not say.
    NotLoaded,
}

/// Bytes with all that follows from them; shared by the copies of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Its name. The id of a plain PUT's one extent; a fresh one for a multipart object.
    pub id: ContentId,
    /// The chunks that hold the bytes, if they are on the cluster's disks. Of a content in a tier: one extent of its
    /// own id and size, which no chunks stand behind.
    pub manifest: Manifest,
    /// Where the bytes are.
    pub place: ContentPlace,
    /// ETag.
    pub etag: ETag,
    /// The checksum the client asked for or S3 adds by default.
    pub checksum: Option<Checksum>,
    /// Parts of a multipart object, in order; empty otherwise.
    pub parts: Vec<ObjectPart>,
}

impl Content {
    /// The object's size.
    pub fn size_bytes(&self) -> u64 {
        self.manifest.size_bytes()
    }

    /// Where in a tier the bytes are; `None`: on the cluster's disks.
    pub fn cold(&self) -> Option<&Arc<ColdPlace>> {
        match &self.place {
            ContentPlace::Tier(place) => Some(place),
            ContentPlace::Cluster | ContentPlace::NotLoaded => None,
        }
    }
}

/// Whether somebody asked for a cold object to lie on the cluster's disks for a while (RestoreObject).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restore {
    /// It was asked for, and is not there yet.
    Ongoing,
    /// It lies there until then, in milliseconds since 1970. A time that is over counts as no restore at all.
    Until(u64),
}

/// One version of an object, or a delete marker (`content` is `None`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectVersion {
    /// Bucket.
    pub bucket: BucketId,
    /// Key.
    pub key: String,
    /// Version; null in buckets without versioning.
    pub version: VersionId,
    /// Rises with every commit on the key, of whatever version; also the row's version for caches.
    pub sequence: u64,
    /// Whether it is the key's latest version.
    pub is_latest: bool,
    /// When it was committed.
    pub last_modified_ms: u64,
    /// User name of the owner.
    pub owner: String,
    /// The bytes; `None` for a delete marker.
    pub content: Option<Arc<Content>>,
    /// Headers.
    pub attributes: ObjectAttributes,
    /// Tags.
    pub tags: Vec<Tag>,
    /// ACL.
    pub acl: CannedAcl,
    /// Storage class: the tier where the bytes are to lie; `None`: `STANDARD`, on the cluster's disks. Where they are
    /// now says [`Content::place`]; a move is under way as long as the two differ.
    pub class: Option<TierName>,
    /// State of a restore.
    pub restore: Option<Restore>,
}

impl ObjectVersion {
    /// Whether this is a delete marker.
    pub fn is_delete_marker(&self) -> bool {
        self.content.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form of the database, of labels, of backups and of the shared cache: nodes of two versions read each
    /// other's, and what an older one wrote stays for years.
    #[test]
    fn headers_that_another_version_wrote_are_read_and_what_is_not_known_is_passed_over() {
        let older = concat!(
            r#"{"content_type":"text/plain","cache_control":"no-cache","content_disposition":"inline","#,
            r#""content_encoding":"gzip","content_language":"de","expires":"Thu, 01 Dec 2033 16:00:00 GMT","#,
            r#""website_redirect_location":"/x","user_metadata":[["a","b"]]}"#
        );
        let read: ObjectAttributes = serde_json::from_str(older).unwrap();
        assert_eq!((read.content_language.as_deref(), read.completion.as_deref()), (Some("de"), None));
        assert_eq!(read.user_metadata, [("a".to_owned(), "b".to_owned())]);
        assert_eq!(serde_json::to_string(&read).unwrap(), older, "an older version reads it as its own");
        assert_eq!(serde_json::to_string(&ObjectAttributes::default()).unwrap(), "{}");

        let newer = r#"{"content_type":"text/plain","completion":"00ff","of_a_newer_version":{"x":[1]}}"#;
        let read: ObjectAttributes = serde_json::from_str(newer).unwrap();
        assert_eq!(
            serde_json::to_string(&read).unwrap(),
            r#"{"content_type":"text/plain","completion":"00ff"}"#,
            "what is not known is no damage"
        );
    }
}
