//! The checksums of requests and answers: what a client announces in headers and trailers, and the fields that carry
//! values back.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use holdfast_actors::domain::objects::checksums::{Announced, DEFAULT_ALGORITHM, DigestMismatch};
use holdfast_actors::domain::objects::digests::Digests;
use holdfast_protocol::checksum::Checksum;
use holdfast_protocol::{ChecksumAlgorithm, ChecksumType};
use http::HeaderMap;
use s3s::{S3Result, TrailingHeaders, dto, s3_error};

/// Sets the field of an output that carries a checksum of `$algorithm`.
macro_rules! set_checksum {
    ($output:expr, $algorithm:expr, $value:expr) => {{
        use holdfast_protocol::ChecksumAlgorithm as Algorithm;
        let value = Some($value);
        match $algorithm {
            Algorithm::Crc32 => $output.checksum_crc32 = value,
            Algorithm::Crc32c => $output.checksum_crc32c = value,
            Algorithm::Crc64Nvme => $output.checksum_crc64nvme = value,
            Algorithm::Sha1 => $output.checksum_sha1 = value,
            Algorithm::Sha256 => $output.checksum_sha256 = value,
        }
    }};
}
pub(crate) use set_checksum;

/// The checksums that an input carries, with their algorithms.
macro_rules! given_checksums {
    ($input:expr) => {{
        use holdfast_protocol::ChecksumAlgorithm as Algorithm;
        [
            (Algorithm::Crc32, $input.checksum_crc32.as_deref()),
            (Algorithm::Crc32c, $input.checksum_crc32c.as_deref()),
            (Algorithm::Crc64Nvme, $input.checksum_crc64nvme.as_deref()),
            (Algorithm::Sha1, $input.checksum_sha1.as_deref()),
            (Algorithm::Sha256, $input.checksum_sha256.as_deref()),
        ]
        .into_iter()
        .filter_map(|(algorithm, value)| Some((algorithm, value?)))
    }};
}
pub(crate) use given_checksums;

/// A value with its algorithm, written for an answer.
pub(crate) type Field = (ChecksumAlgorithm, String);

/// A raw value in base64.
pub(crate) fn encode(value: &[u8]) -> String {
    BASE64.encode(value)
}

/// Reads a checksum value.
pub(crate) fn decode(algorithm: ChecksumAlgorithm, text: &str) -> S3Result<Vec<u8>> {
    match BASE64.decode(text) {
        Ok(value) if value.len() == algorithm.len_bytes() => Ok(value),
        _ => Err(s3_error!(InvalidRequest, "Value for {} header is invalid.", algorithm.header())),
    }
}

/// The type of a checksum, for headers and XML.
pub(crate) fn dto_type(checksum_type: ChecksumType) -> dto::ChecksumType {
    dto::ChecksumType::from_static(match checksum_type {
        ChecksumType::FullObject => dto::ChecksumType::FULL_OBJECT,
        ChecksumType::Composite => dto::ChecksumType::COMPOSITE,
    })
}

/// An algorithm, for headers and XML.
pub(crate) fn dto_algorithm(algorithm: ChecksumAlgorithm) -> dto::ChecksumAlgorithm {
    dto::ChecksumAlgorithm::from_static(algorithm.as_str())
}

/// Reads an algorithm by name.
pub(crate) fn parse_algorithm(name: &str) -> S3Result<ChecksumAlgorithm> {
    name.parse().map_err(|_| {
        s3_error!(
            InvalidRequest,
            "Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, \
             CRC64NVME, SHA1, SHA256]"
        )
    })
}

/// Reads a checksum type.
pub(crate) fn parse_type(name: &str) -> S3Result<ChecksumType> {
    match name {
        "FULL_OBJECT" => Ok(ChecksumType::FullObject),
        "COMPOSITE" => Ok(ChecksumType::Composite),
        _ => Err(s3_error!(InvalidRequest, "Value for x-amz-checksum-type header is invalid.")),
    }
}

/// What a body will be checked against, and what is computed of it.
#[derive(Debug)]
pub(crate) struct BodyChecks {
    announced: Announced,
    /// A checksum that comes as a trailer.
    trailer: Option<(ChecksumAlgorithm, Option<TrailingHeaders>)>,
    /// What is computed beside MD5.
    pub(crate) algorithms: Vec<ChecksumAlgorithm>,
    /// What the client chose, if anything.
    pub(crate) chosen: Option<ChecksumAlgorithm>,
}

impl BodyChecks {
    /// Reads what a request announces. `given` are its checksum headers; `kept`, if set, is computed in any case (the
    /// algorithm of an upload). Without any choice S3's default is computed.
    pub(crate) fn of<'a>(
        headers: &HeaderMap,
        content_md5: Option<&str>,
        given: impl Iterator<Item = (ChecksumAlgorithm, &'a str)>,
        trailing: Option<TrailingHeaders>,
        kept: Option<ChecksumAlgorithm>,
    ) -> S3Result<Self> {
        refuse_unknown(headers)?;
        // s3s takes an empty header for none; S3 refuses it.
        let content_md5 = content_md5.or_else(|| headers.contains_key("content-md5").then_some(""));
        let md5 = content_md5.map(decode_md5).transpose()?;
        let mut checksum = None;
        for (algorithm, value) in given {
            if checksum.is_some() {
                return Err(s3_error!(
                    InvalidRequest,
                    "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
                ));
            }
            checksum = Some((algorithm, decode(algorithm, value)?));
        }
        let trailer = trailer_algorithm(headers)?;
        let named = match headers.get("x-amz-sdk-checksum-algorithm") {
            None => None,
            Some(value) => Some(parse_algorithm(value.to_str().unwrap_or_default())?),
        };
        let chosen = match (checksum.as_ref().map(|(algorithm, _)| *algorithm), trailer) {
            (Some(_), Some(_)) => {
                return Err(s3_error!(
                    InvalidRequest,
                    "Expecting a checksum as a header or as a trailer, not as both."
                ));
            }
            (header, trailer) => header.or(trailer),
        };
        if let Some(named) = named {
            match chosen {
                None => {
                    return Err(s3_error!(
                        InvalidRequest,
                        "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer \
                         headers were found."
                    ));
                }
                Some(chosen) if chosen != named => {
                    return Err(s3_error!(InvalidRequest, "Value for x-amz-sdk-checksum-algorithm header is invalid."));
                }
                Some(_) => {}
            }
        }
        let mut algorithms = Vec::with_capacity(2);
        algorithms.extend(chosen);
        algorithms.extend(kept.filter(|kept| chosen != Some(*kept)));
        if algorithms.is_empty() {
            algorithms.push(DEFAULT_ALGORITHM);
        }
        let trailer = trailer.map(|algorithm| (algorithm, trailing));
        Ok(Self { announced: Announced { md5, checksum }, trailer, algorithms, chosen })
    }

    /// Compares to what was computed. Called after the body has ended, so that trailers are there.
    pub(crate) fn verify(&self, digests: &Digests) -> Result<(), DigestMismatch> {
        self.announced.verify(digests)?;
        if let Some((algorithm, trailing)) = &self.trailer {
            let value = trailing
                .as_ref()
                .and_then(|trailing| trailing.read(|map| map.get(algorithm.header()).cloned()).flatten())
                .ok_or(DigestMismatch::MissingTrailer(*algorithm))?;
            let value = BASE64.decode(value.as_bytes()).map_err(|_| DigestMismatch::Checksum(*algorithm))?;
            Announced { md5: None, checksum: Some((*algorithm, value)) }.verify(digests)?;
        }
        Ok(())
    }
}

fn decode_md5(text: &str) -> S3Result<[u8; 16]> {
    BASE64
        .decode(text)
        .ok()
        .and_then(|value| value.try_into().ok())
        .ok_or_else(|| s3_error!(InvalidDigest, "The Content-MD5 you specified was invalid."))
}

/// A checksum that cannot be compared is not passed over: its sender relies on it. s3s passes over an empty one.
fn refuse_unknown(headers: &HeaderMap) -> S3Result<()> {
    let known = |name: &str| ChecksumAlgorithm::ALL.into_iter().any(|algorithm| algorithm.header() == name);
    for (name, value) in headers {
        match name.as_str().strip_prefix("x-amz-checksum-") {
            Some("algorithm" | "type" | "mode") | None => {}
            Some(_) if !known(name.as_str()) => {
                return Err(s3_error!(
                    InvalidRequest,
                    "The algorithm type you specified in x-amz-checksum- header is invalid."
                ));
            }
            Some(_) if value.is_empty() => {
                return Err(s3_error!(InvalidRequest, "Value for {name} header is invalid."));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The algorithm that `x-amz-trailer` announces.
fn trailer_algorithm(headers: &HeaderMap) -> S3Result<Option<ChecksumAlgorithm>> {
    let Some(value) = headers.get("x-amz-trailer") else { return Ok(None) };
    let name = value.to_str().unwrap_or_default().trim();
    ChecksumAlgorithm::ALL
        .into_iter()
        .find(|algorithm| algorithm.header().eq_ignore_ascii_case(name))
        .map(Some)
        .ok_or_else(|| s3_error!(InvalidRequest, "The value specified in the x-amz-trailer header is not supported"))
}

/// The checksum that a PUT keeps: the chosen one, else the default.
pub(crate) fn kept_checksum(digests: &Digests) -> Option<Checksum> {
    digests.checksums.first().map(|(algorithm, value)| Checksum {
        algorithm: *algorithm,
        checksum_type: ChecksumType::FullObject,
        value: value.clone(),
        parts: None,
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    fn checks(
        pairs: &[(&'static str, &'static str)],
        given: &[(ChecksumAlgorithm, &str)],
    ) -> Result<BodyChecks, String> {
        BodyChecks::of(&headers(pairs), None, given.iter().copied(), None, None)
            .map_err(|error| error.code().as_str().to_owned())
    }

    #[test]
    fn nothing_announced_computes_the_default() {
        let checks = checks(&[], &[]).unwrap();
        assert_eq!((checks.algorithms, checks.chosen), (vec![ChecksumAlgorithm::Crc64Nvme], None));
    }

    #[test]
    fn header_and_trailer_choose_the_algorithm() {
        let header = checks(&[("x-amz-sdk-checksum-algorithm", "CRC32")], &[(ChecksumAlgorithm::Crc32, "AAAAAA==")]);
        assert_eq!(header.unwrap().algorithms, vec![ChecksumAlgorithm::Crc32]);
        let trailer = checks(&[("x-amz-trailer", "x-amz-checksum-sha256")], &[]).unwrap();
        assert_eq!(trailer.chosen, Some(ChecksumAlgorithm::Sha256));
    }

    #[test]
    fn contradictions_are_refused() {
        let crc = (ChecksumAlgorithm::Crc32, "AAAAAA==");
        for (pairs, given) in [
            (&[("x-amz-sdk-checksum-algorithm", "CRC32")][..], &[][..]),
            (&[("x-amz-sdk-checksum-algorithm", "SHA1")], &[crc]),
            (&[("x-amz-sdk-checksum-algorithm", "MD4")], &[crc]),
            (&[], &[crc, (ChecksumAlgorithm::Crc32c, "AAAAAA==")]),
            (&[("x-amz-trailer", "x-amz-checksum-crc32")], &[crc]),
            (&[("x-amz-trailer", "x-amz-meta-x")], &[]),
            (&[], &[(ChecksumAlgorithm::Crc32, "AAAA")]),
            (&[], &[(ChecksumAlgorithm::Crc32, "?")]),
            (&[("x-amz-checksum-crc99", "AAAA")], &[]),
            (&[("x-amz-checksum-crc32", "")], &[]),
        ] {
            assert_eq!(checks(pairs, given).unwrap_err(), "InvalidRequest", "{pairs:?} {given:?}");
        }
        let md5 = BodyChecks::of(&HeaderMap::new(), Some("short"), std::iter::empty(), None, None);
        assert_eq!(md5.unwrap_err().code().as_str(), "InvalidDigest");
        assert_eq!(checks(&[("content-md5", "")], &[]).unwrap_err(), "InvalidDigest");
    }

    #[test]
    fn announced_trailer_must_come() {
        let checks = checks(&[("x-amz-trailer", "x-amz-checksum-crc32")], &[]).unwrap();
        let digests = Digests { md5: [0; 16], checksums: vec![(ChecksumAlgorithm::Crc32, vec![0; 4])], size_bytes: 0 };
        assert_eq!(checks.verify(&digests), Err(DigestMismatch::MissingTrailer(ChecksumAlgorithm::Crc32)));
    }
}
