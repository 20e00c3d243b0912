//! Limits on tags, and the form that `x-amz-tagging` has.

use std::collections::HashSet;

use crate::ports::metadata::Tag;

/// Most tags of an object.
pub const OBJECT_TAGS_MAX: usize = 10;

/// Longest tag key, in characters.
pub const TAG_KEY_CHARS_MAX: usize = 128;

/// Longest tag value, in characters.
pub const TAG_VALUE_CHARS_MAX: usize = 256;

/// How keys of tags begin that are S3's own, in any case. Clients may not set them.
const SYSTEM_PREFIX: &str = "aws:";

/// Why tags are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// S3: `BadRequest`.
    #[error("object tags cannot be greater than {OBJECT_TAGS_MAX}")]
    TooMany,
    /// S3: `InvalidTag`.
    #[error("the tag key must have 1 to {TAG_KEY_CHARS_MAX} characters, none of them a control character")]
    Key,
    /// S3: `InvalidTag`.
    #[error("the tag value must have at most {TAG_VALUE_CHARS_MAX} characters, none of them a control character")]
    Value,
    /// S3: `InvalidTag`, in these words.
    #[error("System tags cannot be added/updated by requester")]
    System,
    /// S3: `InvalidTag`.
    #[error("cannot provide multiple tags with the same key")]
    Duplicate,
    /// The header is no URL query. S3: `InvalidArgument`.
    #[error(
        "the header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag name duplicates"
    )]
    Malformed,
}

/// Whether a tag's key is one that clients may not set.
pub fn is_system_key(key: &str) -> bool {
    key.get(..SYSTEM_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(SYSTEM_PREFIX))
}

/// Whether a key or a value of a tag can be told in XML, in which clients read them back. S3 takes fewer: letters,
/// numbers, spaces and a few marks.
pub fn is_readable(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}'))
}

/// Checks the tags of an object.
///
/// # Errors
/// [`TagError`].
pub fn check_object_tags(tags: &[Tag]) -> Result<(), TagError> {
    if tags.len() > OBJECT_TAGS_MAX {
        return Err(TagError::TooMany);
    }
    let mut seen = HashSet::with_capacity(tags.len());
    for tag in tags {
        let key_chars = tag.key.chars().count();
        if key_chars == 0 || key_chars > TAG_KEY_CHARS_MAX || !is_readable(&tag.key) {
            return Err(TagError::Key);
        }
        if tag.value.chars().count() > TAG_VALUE_CHARS_MAX || !is_readable(&tag.value) {
            return Err(TagError::Value);
        }
        if is_system_key(&tag.key) {
            return Err(TagError::System);
        }
        if !seen.insert(tag.key.as_str()) {
            return Err(TagError::Duplicate);
        }
    }
    Ok(())
}

/// Reads `key=value&key=value` with URL encoding, and checks it.
///
/// # Errors
/// [`TagError`].
pub fn parse_tagging_header(header: &str) -> Result<Vec<Tag>, TagError> {
    let mut tags = Vec::new();
    for pair in header.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        tags.push(Tag { key: decode_form(key)?, value: decode_form(value)? });
        if tags.len() > OBJECT_TAGS_MAX {
            return Err(TagError::TooMany);
        }
    }
    check_object_tags(&tags)?;
    Ok(tags)
}

/// Undoes form encoding: `+` is a space, `%XX` a byte.
fn decode_form(text: &str) -> Result<String, TagError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let high = rest.next().and_then(hex_digit).ok_or(TagError::Malformed)?;
                let low = rest.next().and_then(hex_digit).ok_or(TagError::Malformed)?;
                high << 4 | low
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| TagError::Malformed)
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(key: &str, value: &str) -> Tag {
        Tag { key: key.into(), value: value.into() }
    }

    #[test]
    fn header_is_decoded() {
        let tags = parse_tagging_header("a=1&b+c=%C3%A4%26&empty=&bare").unwrap();
        assert_eq!(tags, vec![tag("a", "1"), tag("b c", "ä&"), tag("empty", ""), tag("bare", "")]);
        assert_eq!(parse_tagging_header("").unwrap(), vec![]);
        for bad in ["a=%", "a=%4", "a=%zz", "a=%ff"] {
            assert_eq!(parse_tagging_header(bad), Err(TagError::Malformed), "{bad}");
        }
        assert_eq!(parse_tagging_header("a=1&a=2"), Err(TagError::Duplicate));
        assert_eq!(parse_tagging_header("=1"), Err(TagError::Key));
    }

    #[test]
    fn limits_of_the_documentation() {
        let many: Vec<Tag> = (0..11).map(|i| tag(&i.to_string(), "")).collect();
        assert_eq!(check_object_tags(&many[..10]), Ok(()));
        assert_eq!(check_object_tags(&many), Err(TagError::TooMany));
        assert_eq!(check_object_tags(&[tag(&"ä".repeat(128), &"ä".repeat(256))]), Ok(()));
        assert_eq!(check_object_tags(&[tag(&"k".repeat(129), "")]), Err(TagError::Key));
        assert_eq!(check_object_tags(&[tag("k", &"v".repeat(257))]), Err(TagError::Value));
    }

    #[test]
    fn what_xml_cannot_hold_is_refused() {
        for bad in ["a\u{1}", "a\nb", "\u{7f}", "\u{fffe}", "\u{ffff}"] {
            assert_eq!(check_object_tags(&[tag(bad, "")]), Err(TagError::Key), "{bad:?}");
            assert_eq!(check_object_tags(&[tag("k", bad)]), Err(TagError::Value), "{bad:?}");
        }
        assert_eq!(parse_tagging_header("a=%01"), Err(TagError::Value));
        assert_eq!(check_object_tags(&[tag("a b+-=._:/@", "<&>\u{1f600}")]), Ok(()));
    }

    #[test]
    fn keys_that_are_the_systems_own_are_refused_in_any_case() {
        for key in ["aws:", "aws:x", "AWS:x", "aWs:cloudformation:stack-name"] {
            assert_eq!(check_object_tags(&[tag("a", ""), tag(key, "1")]), Err(TagError::System), "{key}");
        }
        assert_eq!(parse_tagging_header("a=1&Aws%3Ax=2"), Err(TagError::System));
        for key in ["aws", "awsx", "aw", "x-aws:", " aws:x", "äaws:", "awä:"] {
            assert_eq!(check_object_tags(&[tag(key, "1")]), Ok(()), "{key}");
        }
    }
}
