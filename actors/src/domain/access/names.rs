//! Names of buckets and limits of keys.
//!
//! The rules are those that S3 sets for general purpose buckets, so that every name works path style and virtual-hosted
//! style, as a DNS label under a wildcard certificate or not.

use std::net::Ipv4Addr;

/// Shortest bucket name.
pub const BUCKET_NAME_BYTES_MIN: usize = 3;
/// Longest bucket name: a DNS label.
pub const BUCKET_NAME_BYTES_MAX: usize = 63;
/// Longest object key, in bytes of UTF-8.
pub const OBJECT_KEY_BYTES_MAX: usize = 1024;

/// Beginnings that S3 keeps for itself; clients treat such names specially.
const RESERVED_PREFIXES: [&str; 2] = ["xn--", "sthree-"];
/// Endings that S3 keeps for access points and directory buckets; clients send them to other endpoints.
const RESERVED_SUFFIXES: [&str; 5] = ["-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"];

/// Why a name cannot be a bucket's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBucketName {
    /// Too short or too long.
    #[error("a bucket name has from 3 to 63 characters")]
    Length,
    /// A character that is not allowed.
    #[error("a bucket name consists of lower-case letters, digits, dots and hyphens")]
    Character,
    /// A dot or hyphen at an end.
    #[error("a bucket name begins and ends with a letter or digit")]
    Ends,
    /// An empty DNS label.
    #[error("a bucket name has no two dots in a row")]
    EmptyLabel,
    /// It would be taken for an address.
    #[error("a bucket name is not formatted as an IP address")]
    IpAddress,
    /// Kept for AWS's own uses, which clients treat specially.
    #[error("this beginning or ending of a bucket name is reserved")]
    Reserved,
}

/// Checks a name for a bucket to be made.
///
/// # Errors
/// The first rule that the name breaks.
pub fn validate_bucket_name(name: &str) -> Result<(), InvalidBucketName> {
    if !(BUCKET_NAME_BYTES_MIN..=BUCKET_NAME_BYTES_MAX).contains(&name.len()) {
        return Err(InvalidBucketName::Length);
    }
    let is_alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    if !bytes.iter().all(|&b| is_alphanumeric(b) || b == b'.' || b == b'-') {
        return Err(InvalidBucketName::Character);
    }
    if !is_alphanumeric(bytes[0]) || !is_alphanumeric(bytes[bytes.len() - 1]) {
        return Err(InvalidBucketName::Ends);
    }
    if name.contains("..") {
        return Err(InvalidBucketName::EmptyLabel);
    }
    if name.parse::<Ipv4Addr>().is_ok() || looks_like_an_address(name) {
        return Err(InvalidBucketName::IpAddress);
    }
    if RESERVED_PREFIXES.iter().any(|p| name.starts_with(p)) || RESERVED_SUFFIXES.iter().any(|s| name.ends_with(s)) {
        return Err(InvalidBucketName::Reserved);
    }
    Ok(())
}

/// Four groups of digits, whatever their values: `999.1.1.1` is no address but is formatted as one.
fn looks_like_an_address(name: &str) -> bool {
    name.split('.').count() == 4 && name.split('.').all(|label| label.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_within_the_rules_are_accepted() {
        for name in ["abc", "my-bucket", "my.bucket.name", "0a9", "a".repeat(63).as_str(), "1.2.3.4.5", "a-.b"] {
            assert_eq!(validate_bucket_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn each_rule_is_named_when_it_is_broken() {
        use InvalidBucketName::*;
        let long = "a".repeat(64);
        for (name, why) in [
            ("", Length),
            ("ab", Length),
            (long.as_str(), Length),
            ("Bucket", Character),
            ("under_score", Character),
            ("with space", Character),
            ("ümlaut", Character),
            ("nul\0byte", Character),
            ("../etc", Character),
            ("-abc", Ends),
            ("abc.", Ends),
            ("...", Ends),
            ("a..b", EmptyLabel),
            ("192.168.0.1", IpAddress),
            ("999.1.1.1", IpAddress),
            ("xn--bucket", Reserved),
            ("bucket-s3alias", Reserved),
        ] {
            assert_eq!(validate_bucket_name(name), Err(why), "{name:?}");
        }
    }
}
