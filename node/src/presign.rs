//! Presigned URLs, AWS Signature Version 4 in the query: for the commands that `holdfast dev` prints, and for tests.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::hmac;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

/// What S3 leaves unescaped.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What is to be signed.
pub struct Presign<'a> {
    /// `GET`, `PUT`, …
    pub method: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// With the port, if it is not the scheme's.
    pub host: &'a str,
    /// Without escapes, from the first slash.
    pub path: &'a str,
    /// Region of the credential's scope.
    pub region: &'a str,
    /// The public half of the credential.
    pub access_key: &'a str,
    /// Its secret half.
    pub secret_key: &'a str,
    /// How long the URL is valid.
    pub expires_seconds: u32,
}

impl Presign<'_> {
    /// The URL, valid from `now` on.
    pub fn url(&self, now: OffsetDateTime) -> String {
        let day = format!("{:04}{:02}{:02}", now.year(), u8::from(now.month()), now.day());
        let stamp = format!("{day}T{:02}{:02}{:02}Z", now.hour(), now.minute(), now.second());
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let escape = |text: &str| utf8_percent_encode(text, UNRESERVED).to_string();
        let path: Vec<String> = self.path.split('/').map(escape).collect();
        let path = path.join("/");
        // In the order that the canonical form asks for.
        let query = format!(
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}&X-Amz-Date={stamp}&X-Amz-Expires={}&X-Amz-SignedHeaders=host",
            escape(&format!("{}/{scope}", self.access_key)),
            self.expires_seconds,
        );
        let canonical = format!("{}\n{path}\n{query}\nhost:{}\n\nhost\nUNSIGNED-PAYLOAD", self.method, self.host);
        let to_sign =
            format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", hex::encode(Sha256::digest(canonical.as_bytes())));
        let mut key = format!("AWS4{}", self.secret_key).into_bytes();
        for part in [day.as_str(), self.region, "s3", "aws4_request", &to_sign] {
            key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
        }
        format!("{}://{}{path}?{query}&X-Amz-Signature={}", self.scheme, self.host, hex::encode(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example in AWS' documentation of query authentication.
    #[test]
    fn signs_as_the_documentation_of_aws_does() {
        let url = Presign {
            method: "GET",
            scheme: "https",
            host: "examplebucket.s3.amazonaws.com",
            path: "/test.txt",
            region: "us-east-1",
            access_key: "AKIAIOSFODNN7EXAMPLE",
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            expires_seconds: 86_400,
        }
        .url(OffsetDateTime::from_unix_timestamp(1_369_353_600).unwrap());
        assert!(
            url.ends_with("X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"),
            "{url}"
        );
    }
}
