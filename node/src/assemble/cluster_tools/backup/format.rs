//! The lines of a backup.

use holdfast_actors::ports::metadata::{
    BucketConfigKind, CannedAcl, ETag, ObjectAttributes, ObjectPart, Restore, Tag, Versioning,
};
use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::{ChecksumAlgorithm, ChecksumType, TierName};
use serde::{Deserialize, Serialize};

use super::Counts;

/// The format that this program writes, and the newest that it reads. From 2 on contents may lie in tiers: a program
/// that knows only 1 would take them for contents on the cluster's disks, and must refuse.
pub(super) const FORMAT: u32 = 2;

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Line {
    HoldfastMetadata {
        format: u32,
        made_ms: u64,
    },
    User {
        name: String,
        admin: bool,
        enabled: bool,
        created_ms: u64,
    },
    Key {
        access_key: String,
        sealed_secret: String,
        user: String,
        enabled: bool,
        description: String,
        created_ms: u64,
    },
    Tier {
        name: TierName,
        /// As stored: secrets in it are sealed.
        settings: String,
        created_ms: u64,
    },
    Bucket {
        name: String,
        owner: String,
        created_ms: u64,
        versioning: Versioning,
        configs: Vec<(BucketConfigKind, String)>,
    },
    Version(Box<VersionLine>),
    Upload(Box<UploadLine>),
    Part(Box<PartLine>),
    End(Counts),
}

#[derive(Serialize, Deserialize)]
pub(super) struct VersionLine {
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) version: String,
    pub(super) last_modified_ms: u64,
    pub(super) owner: String,
    /// Absent: a delete marker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<ContentLine>,
    pub(super) attributes: ObjectAttributes,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) tags: Vec<Tag>,
    pub(super) acl: CannedAcl,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) class: Option<TierName>,
    /// Not put back: there is no move that would end it. It tells what was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) restore: Option<Restore>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct ContentLine {
    pub(super) id: String,
    /// The encoded manifest.
    pub(super) manifest: String,
    pub(super) etag: ETag,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) checksum: Option<Checksum>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) parts: Vec<ObjectPart>,
    /// The encoded place in a tier. Absent: on the cluster's disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cold: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct UploadLine {
    pub(super) bucket: String,
    pub(super) id: String,
    pub(super) key: String,
    pub(super) owner: String,
    pub(super) begun_ms: u64,
    pub(super) attributes: ObjectAttributes,
    pub(super) tags: Vec<Tag>,
    pub(super) acl: CannedAcl,
    pub(super) checksum: Option<(ChecksumAlgorithm, ChecksumType)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) class: Option<TierName>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct PartLine {
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) upload: String,
    pub(super) number: u16,
    pub(super) content: String,
    pub(super) size_bytes: u64,
    pub(super) md5: String,
    pub(super) checksum: Option<(ChecksumAlgorithm, Vec<u8>)>,
    pub(super) last_modified_ms: u64,
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::fuzz::{Target, damage};

    use super::*;

    const LINES: [&str; 8] = [
        r#"{"kind":"holdfast_metadata","format":2,"made_ms":5}"#,
        r#"{"kind":"user","name":"alice","admin":true,"enabled":true,"created_ms":1}"#,
        r#"{"kind":"key","access_key":"A","sealed_secret":"0102","user":"alice","enabled":true,"description":"d","created_ms":1}"#,
        r#"{"kind":"tier","name":"OSS","settings":"{}","created_ms":1}"#,
        r#"{"kind":"bucket","name":"b","owner":"alice","created_ms":1,"versioning":"Enabled","configs":[]}"#,
        r#"{"kind":"version","bucket":"b","key":"k","version":"null","last_modified_ms":5,"owner":"alice","content":{"id":"090909090909090909090909","manifest":"0909090909090909090909090000000000000005","etag":{"md5":[7,7,7,7,7,7,7,7,7,7,7,7,7,7,7,7],"parts":null}},"attributes":{},"acl":"private"}"#,
        r#"{"kind":"upload","bucket":"b","id":"07070707070707070707070707070707","key":"k","owner":"alice","begun_ms":1,"attributes":{},"tags":[],"acl":"private","checksum":null}"#,
        r#"{"kind":"part","bucket":"b","key":"k","upload":"07070707070707070707070707070707","number":1,"content":"090909090909090909090909","size_bytes":5,"md5":"07","checksum":null,"last_modified_ms":5}"#,
    ];

    #[test]
    fn damaged_lines_are_refused_and_no_harm() {
        fn body(bytes: &[u8]) {
            if let Ok(line) = serde_json::from_slice::<Line>(bytes) {
                let form = serde_json::to_vec(&line).unwrap();
                let again: Line = serde_json::from_slice(&form).unwrap();
                assert_eq!(serde_json::to_vec(&again).unwrap(), form);
            }
        }
        damage::run(&[Target { name: "backup_line", body, seeds: || LINES.map(Vec::from).to_vec() }], 5_000);
    }

    #[test]
    fn the_lines_are_those_of_a_backup() {
        for line in LINES {
            serde_json::from_str::<Line>(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}
