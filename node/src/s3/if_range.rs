//! `If-Range`: a range, if the object is still the one of which the client has the rest; else all of it.
//!
//! Browsers resume downloads so. s3s does not know the header, and a range of another object would be put behind the
//! bytes of the first one.

use holdfast_actors::ports::metadata::{Content, ObjectVersion};
use http::HeaderMap;
use http::header::IF_RANGE;
use s3s::dto::{Timestamp, TimestampFormat};

use super::convert::seconds;

/// Whether the range of a request is one of this object. What is no condition, or more than one, does not hold.
pub(super) fn holds(headers: &HeaderMap, object: &ObjectVersion, content: &Content) -> bool {
    let mut values = headers.get_all(IF_RANGE).iter();
    let Some(value) = values.next() else { return true };
    let (Ok(text), None) = (value.to_str(), values.next()) else { return false };
    // A weak tag does not say that the bytes are the same.
    if let Some(tag) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        return tag == content.etag.to_string();
    }
    let modified = i64::try_from(object.last_modified_ms / 1000);
    Timestamp::parse(TimestampFormat::HttpDate, text).is_ok_and(|date| modified == Ok(seconds(date)))
}
