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
    /// What the object has and the label has no room for, so that its absence is told from there being none:
    /// [`WITHOUT_TAGS`] or [`WITHOUT_HEADERS`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<&'a str>,
}

/// [`LabelAttributes::left_out`]: the tags.
pub const WITHOUT_TAGS: &str = "tags";
/// [`LabelAttributes::left_out`]: tags and headers.
pub const WITHOUT_HEADERS: &str = "tags and headers";

/// The label of what a move writes for a version: the chunks of a content that comes back to the cluster's disks, or
/// the stub of one in a tier. `bucket` is the name of its bucket, `class` the storage class that the version has when
/// the move is done.
///
/// Its time is that of the version, not of the move: a rebuild then finds that the content is no newer than the
/// version, and between it and the content that it was moved from the younger content decides. An upload that the bytes
/// once came in by is not named: they belong to the object now.
///
/// Tags that were set later, and headers that a copy was given, were never held against the length of a label. A move
/// must be possible all the same, else it is tried for ever, and stores its bytes in the tier each time. So what a label
/// has no room for is left out, first tags, then headers, and is told in the label and beside it.
///
/// # Errors
/// When the headers cannot be written as JSON.
pub fn label_of_moved(
    bucket: &str,
    object: &ObjectVersion,
    class: Option<&TierName>,
) -> serde_json::Result<(ChunkLabel, Option<&'static str>)> {
    let whole = LabelAttributes {
        owner: &object.owner,
        attributes: &object.attributes,
        tags: &object.tags,
        acl: object.acl,
        class,
        left_out: None,
    };
    let without_tags = LabelAttributes { tags: &[], left_out: Some(WITHOUT_TAGS), ..whole };
    let no_headers = ObjectAttributes { completion: object.attributes.completion.clone(), ..Default::default() };
    let bare = LabelAttributes { attributes: &no_headers, left_out: Some(WITHOUT_HEADERS), ..without_tags };
    let mut label = ChunkLabel {
        bucket: bucket.to_owned(),
        key: object.key.clone(),
        version: object.version,
        part: None,
        content_size_bytes: object.content.as_ref().map_or(0, |content| content.size_bytes()),
        created_ms: object.last_modified_ms,
        attributes: None,
        is_stub: false,
    };
    let mut left_out = None;
    for (attributes, lacks) in [(whole, None), (without_tags, Some(WITHOUT_TAGS)), (bare, Some(WITHOUT_HEADERS))] {
        label.attributes = Some(serde_json::to_string(&attributes)?);
        left_out = lacks;
        if fits(&label) {
            break;
        }
    }
    Ok((label, left_out))
}

/// Whether a label can be written, also as that of a stub, which is longer.
fn fits(label: &ChunkLabel) -> bool {
    ChunkLabel { is_stub: true, ..label.clone() }.encode().is_ok()
}
