//! The header `x-amz-copy-source`, as S3 reads it: `+` in the path is a space there, as it is in a form.
//!
//! s3s takes it for itself. Programs that encode a key as a form does, s5cmd for one, were then told that keys with
//! spaces do not exist, or copied another object; a `+` that is meant comes as `%2B` from every SDK, since S3 takes no
//! other.

use http::HeaderMap;
use s3s::S3Result;
use s3s::dto::{CopySource, ParseCopySourceError};

use super::errors::invalid_argument;

/// Where the version begins in the header.
pub(super) const VERSION: &str = "?versionId=";

/// What a header says.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(text: &str) -> Result<CopySource, ParseCopySourceError> {
    let (path, version) = text.split_at(text.find(VERSION).unwrap_or(text.len()));
    CopySource::parse(&format!("{}{version}", path.replace('+', "%20")))
}

/// Puts right what s3s made of the header of a request.
///
/// # Errors
/// `InvalidArgument`.
pub(super) fn reread(headers: &HeaderMap, source: &mut CopySource) -> S3Result<()> {
    let header = headers.get("x-amz-copy-source").and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    if let Some(text) = header.filter(|text| text.contains('+')) {
        *source = parse(text).map_err(|_| invalid_argument("The header x-amz-copy-source names no object."))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plus_is_a_space_in_the_path_and_itself_in_the_version() {
        for (text, key, version) in [
            ("bucket/a+b", "a b", None),
            ("/bucket/a%2Bb+c", "a+b c", None),
            ("bucket%2Fa+b", "a b", None),
            ("bucket/a+b?versionId=v+w", "a b", Some("v+w")),
            ("bucket/plain", "plain", None),
        ] {
            let CopySource::Bucket { bucket, key: found, version_id } = parse(text).unwrap() else { panic!("{text}") };
            assert_eq!((&*bucket, &*found, version_id.as_deref()), ("bucket", key, version), "{text}");
        }
        assert!(parse("no+slash").is_err());
    }
}
