//! Metadata of an object that a request names more than once.
//!
//! S3 takes it for one header whose values stand behind each other, as HTTP does, and signs it so. s3s refuses it.

use http::{HeaderMap, HeaderName, HeaderValue};

/// What the headers of an object's metadata begin with.
pub(super) const METADATA: &str = "x-amz-meta-";

/// Makes one header of all those with the same name. The signature stays as it is: it is made over values with commas
/// between them.
pub(super) fn join_metadata(headers: &mut HeaderMap) {
    let is_repeated = |name: &&HeaderName| {
        name.as_str().starts_with(METADATA) && headers.get_all(name.as_str()).iter().nth(1).is_some()
    };
    let repeated: Vec<HeaderName> = headers.keys().filter(is_repeated).cloned().collect();
    for name in repeated {
        let values: Vec<&[u8]> = headers.get_all(&name).iter().map(|value| value.as_bytes().trim_ascii()).collect();
        let joined = HeaderValue::from_bytes(&values.join(&b","[..]));
        // Of what can stand in a header, what is put together can, too.
        if let Ok(joined) = joined {
            headers.insert(name, joined);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_metadata_are_joined_in_their_order_and_other_headers_stay() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-amz-meta-k", "b"),
            ("x-amz-acl", "private"),
            ("x-amz-meta-k", " a "),
            ("x-amz-meta-one", "1, 2"),
            ("x-amz-meta-k", ""),
            ("x-amz-acl", "public-read"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        join_metadata(&mut headers);
        let values = |name: &str| -> Vec<HeaderValue> { headers.get_all(name).iter().cloned().collect() };
        assert_eq!(values("x-amz-meta-k"), ["b,a,"]);
        assert_eq!(values("x-amz-meta-one"), ["1, 2"]);
        assert_eq!(values("x-amz-acl"), ["private", "public-read"]);
    }
}
