//! AWS Signature Version 4 in headers, as cheap as a load generator needs it.
//!
//! The signing key changes once a day and the time stamp once a second, so both are kept; what is left for a request is
//! two SHA-256 and one HMAC over a few hundred bytes. Only `host`, `x-amz-content-sha256` and `x-amz-date` are signed.

use std::fmt::Write as _;

use ring::{digest, hmac};
use time::OffsetDateTime;

/// SHA-256 of nothing, in hex.
pub(super) const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// What stands for a hash when the payload is not signed.
pub(super) const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// One key pair's signer. One a worker: it caches, so it is not shared.
#[derive(Clone)]
pub(super) struct Signer {
    access_key: String,
    secret_key: String,
    region: String,
    /// Unix day of `key` and `day`.
    unix_day: i64,
    day: String,
    key: hmac::Key,
    /// Unix second of `stamp`.
    unix_second: i64,
    stamp: String,
    canonical: String,
}

/// The two headers that a signature adds besides `x-amz-content-sha256`.
#[derive(Debug)]
pub(super) struct Signed {
    /// `authorization`.
    pub(super) authorization: String,
    /// `x-amz-date`.
    pub(super) date: String,
}

impl Signer {
    pub(super) fn new(access_key: &str, secret_key: &str, region: &str) -> Self {
        Self {
            access_key: access_key.to_owned(),
            secret_key: secret_key.to_owned(),
            region: region.to_owned(),
            unix_day: i64::MIN,
            day: String::new(),
            key: hmac::Key::new(hmac::HMAC_SHA256, b""),
            unix_second: i64::MIN,
            stamp: String::new(),
            canonical: String::new(),
        }
    }

    fn refresh(&mut self, now: OffsetDateTime) {
        let second = now.unix_timestamp();
        if second == self.unix_second {
            return;
        }
        self.unix_second = second;
        let (year, month, date) = (now.year(), u8::from(now.month()), now.day());
        self.stamp = format!("{year:04}{month:02}{date:02}T{:02}{:02}{:02}Z", now.hour(), now.minute(), now.second());
        if second.div_euclid(86_400) != self.unix_day {
            self.unix_day = second.div_euclid(86_400);
            self.day = self.stamp[..8].to_owned();
            let mut key = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{}", self.secret_key).as_bytes());
            for scope in [self.day.as_str(), self.region.as_str(), "s3", "aws4_request"] {
                let tag = hmac::sign(&key, scope.as_bytes());
                key = hmac::Key::new(hmac::HMAC_SHA256, tag.as_ref());
            }
            self.key = key;
        }
    }

    /// Signs a request. `path` and `query` are as they go over the wire, the query's parameters encoded and sorted.
    pub(super) fn sign(
        &mut self,
        now: OffsetDateTime,
        method: &str,
        host: &str,
        path: &str,
        query: &str,
        payload_hash: &str,
    ) -> Signed {
        self.refresh(now);
        self.canonical.clear();
        let _ = write!(
            self.canonical,
            "{method}\n{path}\n{query}\nhost:{host}\nx-amz-content-sha256:{payload_hash}\nx-amz-date:{}\n\n\
             host;x-amz-content-sha256;x-amz-date\n{payload_hash}",
            self.stamp
        );
        let request_hash = hex::encode(digest::digest(&digest::SHA256, self.canonical.as_bytes()));
        self.canonical.clear();
        let _ = write!(
            self.canonical,
            "AWS4-HMAC-SHA256\n{}\n{}/{}/s3/aws4_request\n{request_hash}",
            self.stamp, self.day, self.region
        );
        let signature = hex::encode(hmac::sign(&self.key, self.canonical.as_bytes()));
        Signed {
            authorization: format!(
                "AWS4-HMAC-SHA256 Credential={}/{}/{}/s3/aws4_request, \
                 SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={signature}",
                self.access_key, self.day, self.region
            ),
            date: self.stamp.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    /// The examples of Amazon's documentation, "Signature Calculations for the Authorization Header".
    #[test]
    fn signatures_match_the_published_examples() {
        let mut signer = Signer::new("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "us-east-1");
        let now = datetime!(2013-05-24 00:00:00 UTC);
        let host = "examplebucket.s3.amazonaws.com";
        let lifecycle = signer.sign(now, "GET", host, "/", "lifecycle=", EMPTY_SHA256);
        assert_eq!(lifecycle.date, "20130524T000000Z");
        assert!(
            lifecycle
                .authorization
                .ends_with("Signature=fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543")
        );
        let list = signer.sign(now, "GET", host, "/", "max-keys=2&prefix=J", EMPTY_SHA256);
        assert!(
            list.authorization.ends_with("Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7")
        );
    }

    #[test]
    fn a_new_day_makes_a_new_signing_key() {
        let mut signer = Signer::new("a", "s", "r");
        let one = signer.sign(datetime!(2026-01-01 23:59:59 UTC), "GET", "h", "/", "", EMPTY_SHA256);
        let two = signer.sign(datetime!(2026-01-02 00:00:00 UTC), "GET", "h", "/", "", EMPTY_SHA256);
        let fresh =
            Signer::new("a", "s", "r").sign(datetime!(2026-01-02 00:00:00 UTC), "GET", "h", "/", "", EMPTY_SHA256);
        assert_ne!(one.authorization, two.authorization);
        assert_eq!(two.authorization, fresh.authorization);
    }
}
