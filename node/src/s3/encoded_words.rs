//! Metadata that looks like a word encoded by RFC 2047, and is none.
//!
//! s3s decodes what begins with `=?` and ends with `?=`. Of `=?=`, in which both are the same three bytes, it takes the
//! piece between them, and panics: the connection breaks without an answer, and whoever sent it tries again.

use http::HeaderMap;
use s3s::S3Result;

use super::errors::invalid_argument;
use super::repeated::METADATA;

const BEGIN: &str = "=?";
const END: &str = "?=";
const BOTH: &str = "=?=";

/// Refuses what s3s cannot decode. What it can, or leaves as it is, passes.
///
/// # Errors
/// `InvalidArgument`.
pub(super) fn refuse_broken(headers: &HeaderMap) -> S3Result<()> {
    for (name, value) in headers {
        if name.as_str().starts_with(METADATA) && is_broken(value.as_bytes()) {
            return Err(invalid_argument(format!("The value of {name} is not a word encoded as RFC 2047 has it.")));
        }
    }
    Ok(())
}

fn is_broken(value: &[u8]) -> bool {
    // What is not UTF-8 is refused before it is decoded.
    let Ok(text) = std::str::from_utf8(value) else { return false };
    let text = text.trim();
    text.starts_with(BEGIN) && text.ends_with(END) && text.split_whitespace().any(|word| word == BOTH)
}
