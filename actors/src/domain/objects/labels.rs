//! What the labels of chunks tell of an object beside its key, so that metadata can be rebuilt from the disks (promise
//! D10).

use holdfast_protocol::{ChunkLabel, TierName};
use serde::Serialize;

use crate::ports::metadata::{CannedAcl, ObjectAttributes, ObjectVersion, Tag};

/// The [`ChunkLabel::attributes`] of a content's first chunk, or of its stub, as JSON.
#[derive(Debug, Serialize)]
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
    /// Storage class; `None`: `STANDARD`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<&'a TierName>,
}

/// The label of what a move writes for a version: the chunks of a content that comes back to the cluster's disks, or
/// the stub of one in a tier. `bucket` is the name of its bucket, `class` the storage class that the version has when
/// the move is done.
///
/// Its time is that of the version, not of the move: a rebuild then finds that the content is no newer than the
/// version, and between it and the content that it was moved from the younger content decides. An upload that the bytes
/// once came in by is not named: they belong to the object now.
///
/// # Errors
/// When the headers cannot be written as JSON.
pub fn label_of_moved(
    bucket: &str,
    object: &ObjectVersion,
    class: Option<&TierName>,
) -> serde_json::Result<ChunkLabel> {
    let attributes = LabelAttributes {
        owner: &object.owner,
        attributes: &object.attributes,
        tags: &object.tags,
        acl: object.acl,
        class,
    };
    Ok(ChunkLabel {
        bucket: bucket.to_owned(),
        key: object.key.clone(),
        version: object.version,
        part: None,
        content_size_bytes: object.content.as_ref().map_or(0, |content| content.size_bytes()),
        created_ms: object.last_modified_ms,
        attributes: Some(serde_json::to_string(&attributes)?),
        is_stub: false,
    })
}
