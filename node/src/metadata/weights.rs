//! About how much memory what clients write with an object takes: bounds are of bytes, and a head has 32 KiB.

use holdfast_actors::ports::metadata::{ObjectAttributes, Tag};

/// What a pair of texts takes beside them.
const PAIR_BYTES: usize = 64;

/// Of headers and tags.
pub(super) fn head_bytes(attributes: &ObjectAttributes, tags: &[Tag]) -> usize {
    let headers = [
        &attributes.content_type,
        &attributes.cache_control,
        &attributes.content_disposition,
        &attributes.content_encoding,
        &attributes.content_language,
        &attributes.expires,
        &attributes.website_redirect_location,
        &attributes.completion,
    ];
    let headers: usize = headers.into_iter().flatten().map(String::len).sum();
    let user: usize = attributes.user_metadata.iter().map(|(k, v)| PAIR_BYTES + k.len() + v.len()).sum();
    let tags: usize = tags.iter().map(|tag| PAIR_BYTES + tag.key.len() + tag.value.len()).sum();
    headers + user + tags
}
