//! Conditional requests on reads and on the source of copies.
//!
//! The order is that of RFC 9110 §13.2.2 as S3 documents it: `If-Match` wins over `If-Unmodified-Since`, and
//! `If-None-Match` wins over `If-Modified-Since`. Times have the resolution of HTTP dates, whole seconds, so an
//! object's milliseconds are cut before they are compared: a client that sends back the `Last-Modified` it was given
//! must see it as unchanged.

use crate::ports::metadata::ETag;

/// What `If-Match` and `If-None-Match` may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ETagMatch {
    /// `*`
    Any,
    /// One entity tag, without quotes and without the mark of weakness.
    Tag(String),
}

impl ETagMatch {
    /// Whether an existing object with this tag is meant.
    pub fn matches(&self, etag: &ETag) -> bool {
        match self {
            Self::Any => true,
            Self::Tag(tag) => parse_etag(tag).is_some_and(|parsed| parsed == *etag),
        }
    }
}

/// Reads an entity tag as this server writes them: 32 hexadecimal digits and, for multipart objects, `-` and the number
/// of parts. `None` for everything else, which then matches no object.
pub fn parse_etag(text: &str) -> Option<ETag> {
    let (digest, parts) = match text.split_once('-') {
        Some((digest, parts)) => (digest, Some(parts.parse().ok()?)),
        None => (text, None),
    };
    // What reads numbers takes a sign, too.
    if digest.len() != 32 || text.contains('+') {
        return None;
    }
    let mut md5 = [0; 16];
    for (byte, pair) in md5.iter_mut().zip(digest.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(ETag { md5, parts })
}

/// The conditions of a read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReadConditions {
    /// `If-Match`
    pub if_match: Option<ETagMatch>,
    /// `If-None-Match`
    pub if_none_match: Option<ETagMatch>,
    /// `If-Modified-Since`, in seconds since 1970.
    pub if_modified_since: Option<i64>,
    /// `If-Unmodified-Since`, in seconds since 1970.
    pub if_unmodified_since: Option<i64>,
}

/// What the conditions say about an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadDecision {
    /// Go on.
    Proceed,
    /// 304 for reads; 412 for the source of a copy.
    NotModified,
    /// 412.
    PreconditionFailed,
}

impl ReadConditions {
    /// Whether no condition is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Compares the conditions to an object.
    pub fn evaluate(&self, etag: &ETag, last_modified_ms: u64) -> ReadDecision {
        let modified_s = i64::try_from(last_modified_ms / 1000).unwrap_or(i64::MAX);
        match (&self.if_match, self.if_unmodified_since) {
            (Some(wanted), _) => {
                if !wanted.matches(etag) {
                    return ReadDecision::PreconditionFailed;
                }
            }
            (None, Some(since)) => {
                if modified_s > since {
                    return ReadDecision::PreconditionFailed;
                }
            }
            (None, None) => {}
        }
        match (&self.if_none_match, self.if_modified_since) {
            (Some(unwanted), _) => {
                if unwanted.matches(etag) {
                    return ReadDecision::NotModified;
                }
            }
            (None, Some(since)) => {
                if modified_s <= since {
                    return ReadDecision::NotModified;
                }
            }
            (None, None) => {}
        }
        ReadDecision::Proceed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: ETag = ETag { md5: [0xab; 16], parts: None };
    const MODIFIED_MS: u64 = 1_700_000_000_700;
    const MODIFIED_S: i64 = 1_700_000_000;

    fn same() -> Option<ETagMatch> {
        Some(ETagMatch::Tag(TAG.to_string()))
    }

    fn other() -> Option<ETagMatch> {
        Some(ETagMatch::Tag("0".repeat(32)))
    }

    #[test]
    fn etags_round_trip_and_junk_matches_nothing() {
        let multipart = ETag { md5: [1; 16], parts: Some(17) };
        assert_eq!(parse_etag(&multipart.to_string()), Some(multipart));
        assert_eq!(parse_etag(&TAG.to_string().to_uppercase()), Some(TAG));
        let signed = [format!("+b{}", "ab".repeat(15)), format!("{TAG}-+1")];
        let parts = [format!("{TAG}-"), format!("{TAG}-x")];
        for junk in
            ["", "ab", "-", "x-1", &"g".repeat(32), &parts[0], &parts[1], &signed[0], &signed[1], &"é".repeat(16)]
        {
            assert_eq!(parse_etag(junk), None, "{junk:?}");
            assert!(!ETagMatch::Tag(junk.into()).matches(&TAG));
        }
    }

    #[test]
    fn precedence_table_of_the_s3_documentation() {
        use ReadDecision::{NotModified, PreconditionFailed, Proceed};
        let later = Some(MODIFIED_S + 10);
        let earlier = Some(MODIFIED_S - 10);
        let equal = Some(MODIFIED_S);
        // if_match, if_none_match, if_modified_since, if_unmodified_since
        let table = [
            (None, None, None, None, Proceed),
            (same(), None, None, None, Proceed),
            (other(), None, None, None, PreconditionFailed),
            (Some(ETagMatch::Any), None, None, None, Proceed),
            (None, same(), None, None, NotModified),
            (None, other(), None, None, Proceed),
            (None, Some(ETagMatch::Any), None, None, NotModified),
            (None, None, equal, None, NotModified),
            (None, None, later, None, NotModified),
            (None, None, earlier, None, Proceed),
            (None, None, None, equal, Proceed),
            (None, None, None, later, Proceed),
            (None, None, None, earlier, PreconditionFailed),
            // "If-Match true and If-Unmodified-Since false: 200".
            (same(), None, None, earlier, Proceed),
            // "If-None-Match false and If-Modified-Since true: 304".
            (None, same(), earlier, None, NotModified),
            // A tag that differs wins over a date that says unchanged.
            (None, other(), later, None, Proceed),
            // Failing If-Match is decided before If-None-Match.
            (other(), same(), None, None, PreconditionFailed),
        ];
        for (if_match, if_none_match, if_modified_since, if_unmodified_since, expected) in table {
            let conditions = ReadConditions { if_match, if_none_match, if_modified_since, if_unmodified_since };
            assert_eq!(conditions.evaluate(&TAG, MODIFIED_MS), expected, "{conditions:?}");
        }
    }
}
