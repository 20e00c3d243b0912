//! What the headers of a request say about its document: the hash that is signed, `Content-MD5`, a checksum.
//!
//! s3s compares the hash only, and answers 500 when it differs. A list of keys to delete that was damaged on its way
//! must not be carried out, so all of them are compared before anything reads the document.

use holdfast_actors::domain::objects::digests::Digester;
use holdfast_protocol::ChecksumAlgorithm;
use http::{HeaderMap, HeaderValue};
use s3s::S3Result;

use super::super::checksums::BodyChecks;
use super::super::errors::{ResultExt as _, wrong_payload_hash};

/// The headers that tell of a body.
pub(super) struct Proofs {
    headers: HeaderMap,
}

impl Proofs {
    /// Those of a request.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let tells = |name: &str| matches!(name, "content-md5" | "x-amz-content-sha256") || name.contains("checksum");
        let headers = headers.iter().filter(|(name, _)| tells(name.as_str()));
        Self { headers: headers.map(|(name, value)| (name.clone(), value.clone())).collect() }
    }

    /// Whether the body is framed as `aws-chunked`, as s3s decides it.
    pub(super) fn is_chunked(&self) -> bool {
        self.hash().is_some_and(|hash| hash.as_bytes().starts_with(b"STREAMING-"))
    }

    /// Compares all that is said to the body of an operation.
    ///
    /// # Errors
    /// S3's error for what does not hold, or cannot be read.
    pub(super) fn check(&self, operation: &str, body: &[u8]) -> S3Result<()> {
        if let Some(hash) = self.hash().filter(|hash| hash.as_bytes() != b"UNSIGNED-PAYLOAD") {
            let digest = hex::encode(ring::digest::digest(&ring::digest::SHA256, body));
            if !hash.as_bytes().eq_ignore_ascii_case(digest.as_bytes()) {
                return Err(wrong_payload_hash());
            }
        }
        let md5 = self.headers.get("content-md5").map(|value| value.to_str().unwrap_or_default());
        // The checksum of a completion is that of the object.
        let of_object = operation == "CompleteMultipartUpload";
        if md5.is_none() && (of_object || self.headers.keys().all(|name| name == "x-amz-content-sha256")) {
            return Ok(());
        }
        let none = HeaderMap::new();
        let headers = if of_object { &none } else { &self.headers };
        let given = ChecksumAlgorithm::ALL.into_iter().filter_map(|algorithm| {
            let value = headers.get(algorithm.header())?;
            Some((algorithm, value.to_str().unwrap_or_default()))
        });
        let checks = BodyChecks::of(headers, md5, given, None, None)?;
        let mut digester = Digester::new(&checks.algorithms);
        digester.update(body);
        checks.verify(&digester.finish()).s3()
    }

    fn hash(&self) -> Option<&HeaderValue> {
        self.headers.get("x-amz-content-sha256")
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn code(operation: &str, headers: &[(&'static str, &str)]) -> Option<String> {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::try_from(*value).unwrap()))
            .collect();
        let checked = Proofs::of(&headers).check(operation, b"hello");
        checked.err().map(|error| error.code().as_str().to_owned())
    }

    #[test]
    fn what_holds_passes_and_what_does_not_is_refused() {
        const HASH: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        for good in [
            &[][..],
            &[("x-amz-content-sha256", "UNSIGNED-PAYLOAD")],
            &[("x-amz-content-sha256", HASH)],
            &[("content-md5", "XUFAKrxLKna5cZ2REBfFkg==")],
            &[("x-amz-checksum-crc32", "NhCmhg=="), ("x-amz-sdk-checksum-algorithm", "CRC32")],
        ] {
            assert_eq!(code("DeleteObjects", good), None, "{good:?}");
        }
        for (bad, expected) in [
            (("x-amz-content-sha256", "e3b0c44298fc1c14"), "XAmzContentSHA256Mismatch"),
            (("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg=="), "BadDigest"),
            (("content-md5", "abc"), "InvalidDigest"),
            (("content-md5", ""), "InvalidDigest"),
            (("x-amz-checksum-crc32", "AAAAAA=="), "BadDigest"),
            (("x-amz-checksum-crc32", "?"), "InvalidRequest"),
            (("x-amz-sdk-checksum-algorithm", "CRC32"), "InvalidRequest"),
        ] {
            assert_eq!(code("DeleteObjects", &[bad]).as_deref(), Some(expected), "{bad:?}");
        }
    }

    #[test]
    fn the_checksum_of_a_completion_is_not_that_of_its_document() {
        assert_eq!(code("CompleteMultipartUpload", &[("x-amz-checksum-crc32", "AAAAAA==")]), None);
        let md5 = code("CompleteMultipartUpload", &[("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==")]);
        assert_eq!(md5.as_deref(), Some("BadDigest"));
    }
}
