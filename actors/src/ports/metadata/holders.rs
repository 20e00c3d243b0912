//! What metadata knows a run of bytes by.

use holdfast_protocol::{ContentId, TierName, UploadId};

/// What knows the chunks of one [`ContentId`]; see
/// [`MetadataDirect::content_holder`](super::MetadataDirect::content_holder).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentHolder {
    /// A content of objects: these bytes are all of it, or the extent that one part brought.
    Content {
        /// Which.
        content: ContentId,
        /// How many versions refer to it. Without any it waits to be reclaimed, and a copy may still take it.
        references: u64,
        /// The tier that it lies in; `None`: on the cluster's disks.
        tier: Option<TierName>,
        /// Since when it waits to be reclaimed, in milliseconds since 1970; `None` while versions refer to it.
        queued_ms: Option<u64>,
    },
    /// A part of an upload that is not finished.
    Part {
        /// Name of the upload's bucket.
        bucket: String,
        /// The upload's key.
        key: String,
        /// The upload.
        upload: UploadId,
        /// The part's number.
        number: u16,
    },
    /// Nothing any more: it was claimed, or is a part that no object took, and its chunks are deleted.
    Reclaim {
        /// Since when nothing refers to it, in milliseconds since 1970.
        queued_ms: u64,
    },
    /// Nothing: it was given up as an orphan, and its chunks are deleted.
    Condemned {
        /// Since when, in milliseconds since 1970.
        condemned_ms: u64,
    },
}
