//! What the first chunk of an object tells beside its key, so that metadata can be rebuilt from the disks (promise D10).

use holdfast_protocol::ChunkLabel;
use serde::Serialize;

use crate::ports::metadata::{CannedAcl, ObjectAttributes, ObjectVersion, Tag};

/// What an object has beside its bytes, as [`ChunkLabel::attributes`] has it in JSON.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LabelAttributes<'a> {
    /// User name of the owner.
    pub owner: &'a str,
    /// Headers.
    #[serde(flatten)]
    pub attributes: &'a ObjectAttributes,
    /// Tags.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub tags: &'a [Tag],
    /// ACL.
    pub acl: CannedAcl,
}

/// The label of chunks that are written for a version that is there already. It was begun when it was committed, so that a
/// rebuild takes these chunks for younger than those that its bytes had first, and for older than those of an overwrite.
///
/// # Errors
/// When the attributes cannot be written as JSON.
pub fn label_of_version(
    bucket_name: &str,
    version: &ObjectVersion,
    size_bytes: u64,
) -> Result<ChunkLabel, serde_json::Error> {
    let attributes = LabelAttributes {
        owner: &version.owner,
        attributes: &version.attributes,
        tags: &version.tags,
        acl: version.acl,
    };
    Ok(ChunkLabel {
        bucket: bucket_name.to_owned(),
        key: version.key.clone(),
        version: version.version,
        part: None,
        content_size_bytes: size_bytes,
        created_ms: version.last_modified_ms,
        attributes: Some(serde_json::to_string(&attributes)?),
    })
}
