//! What a signed request must look like, before s3s computes its signature.
//!
//! s3s checks Signature Version 4, the clock's skew (15 minutes) and the expiry of presigned URLs. This gate adds what
//! it leaves open:
//! * Signature Version 2 is refused: its header form carries no protected time, so that a captured request could be
//!   replayed for ever.
//! * `host` and every `x-amz-*` header must be signed, else whoever can change a request on its way could add, say, a
//!   copy source or an ACL to it.
//! * A presigned URL is valid for at most seven days.
//! * A request is signed in one way, by one header; a second one is refused instead of being taken for no signature.
//! * `x-amz-content-sha256` is a hash or one of the words that stand for none.
//! * The time is that of `x-amz-date`, or of `Date` where that is not there ([`take_date`]).
//! * No session token comes along ([`has_session_token`]).
//! * The credential's scope names the service `s3`, and a region of lower-case letters, digits and hyphens; which one
//!   does not matter. s3cmd begins with `US` and waits to be told the right one.

use http::header::{AUTHORIZATION, DATE};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::{S3Error, S3Result, s3_error};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use url::form_urlencoded;

use super::answers::BUCKET_REGION;
use super::errors::with_headers;

/// Longest validity of a presigned URL.
pub const PRESIGNED_SECONDS_MAX: u64 = 7 * 24 * 60 * 60;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The header, or parameter, with the time of a signed request.
pub(super) const X_AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");

/// The header, parameter or form field with a session token.
pub(super) const SECURITY_TOKEN: &str = "x-amz-security-token";

/// How `x-amz-date` writes a time.
const AMZ_DATE: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");

/// Headers that need not be signed: the payload's hash and the date are part of what is signed anyway, the others say
/// nothing about the operation and are added by proxies and SDKs after signing.
const UNSIGNED_HEADERS: [&str; 5] =
    ["x-amz-content-sha256", "x-amz-date", "x-amz-user-agent", "x-amz-cf-id", "x-amz-request-id"];

/// Checks the form of a request's signature; requests without one pass. `region` is the one that a client is told who
/// named none that could be.
///
/// # Errors
/// S3's error for what is wrong.
pub fn check_form(headers: &HeaderMap, uri: &Uri, region: &str) -> S3Result<()> {
    let mut authorizations = headers.get_all(AUTHORIZATION).iter();
    let authorization = authorizations.next();
    if authorizations.next().is_some() {
        return Err(s3_error!(InvalidRequest, "Only one Authorization header is allowed."));
    }
    let query = uri.query().unwrap_or_default();
    let presigned = presigned_parameters(query)?;
    match (authorization, presigned) {
        (None, None) => Ok(()),
        (Some(_), Some(_)) => Err(s3_error!(
            InvalidArgument,
            "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string parameter or \
             the Authorization header should be specified"
        )),
        (Some(value), None) => {
            let value = value.to_str().map_err(|_| malformed("is not ASCII"))?;
            check_authorization(value, headers, region)
        }
        (None, Some(presigned)) => presigned.check(headers, region),
    }
}

fn check_authorization(value: &str, headers: &HeaderMap, region: &str) -> S3Result<()> {
    let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
    if scheme == "AWS" {
        return Err(version_2());
    }
    if scheme != ALGORITHM {
        return Err(s3_error!(InvalidArgument, "Unsupported Authorization Type"));
    }
    let field = |name: &str| {
        rest.split(',').find_map(|part| part.trim().strip_prefix(name).and_then(|part| part.strip_prefix('=')))
    };
    let credential = field("Credential").ok_or_else(|| malformed("has no Credential"))?;
    check_service(credential).map_err(malformed)?;
    if let Some(wrong) = wrong_region(credential) {
        return Err(other_region(wrong, region));
    }
    let signed = field("SignedHeaders").ok_or_else(|| malformed("has no SignedHeaders"))?;
    if field("Signature").is_none() {
        return Err(malformed("has no Signature"));
    }
    let date = headers.get(X_AMZ_DATE).and_then(|date| date.to_str().ok());
    check_day(credential, date).map_err(|problem| malformed(&problem))?;
    check_signed_headers(signed, headers)?;
    check_payload_hash(headers)
}

/// What a request says its body's hash is. To s3s what cannot be one is a wrong signature, which sends who looks for
/// the fault to the key.
fn check_payload_hash(headers: &HeaderMap) -> S3Result<()> {
    let Some(hash) = headers.get("x-amz-content-sha256") else { return Ok(()) };
    let hash = hash.as_bytes();
    let is_sha256 = hash.len() == 64 && hash.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_sha256 || hash == b"UNSIGNED-PAYLOAD" || hash.starts_with(b"STREAMING-") {
        return Ok(());
    }
    Err(s3_error!(
        InvalidArgument,
        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, one of the values that begin with STREAMING-, or a valid sha256 value."
    ))
}

/// What of a presigned URL is checked here.
#[derive(Default)]
struct Presigned {
    is_signed: bool,
    algorithm: Option<String>,
    date: Option<String>,
    expires: Option<String>,
    signed_headers: Option<String>,
    credential: Option<String>,
}

fn presigned_parameters(query: &str) -> S3Result<Option<Presigned>> {
    let mut presigned = Presigned::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "Signature" => return Err(version_2()),
            "X-Amz-Signature" => presigned.is_signed = true,
            "X-Amz-Algorithm" => presigned.algorithm = Some(value.into_owned()),
            "X-Amz-Date" => presigned.date = Some(value.into_owned()),
            "X-Amz-Expires" => presigned.expires = Some(value.into_owned()),
            "X-Amz-SignedHeaders" => presigned.signed_headers = Some(value.into_owned()),
            "X-Amz-Credential" => presigned.credential = Some(value.into_owned()),
            _ => {}
        }
    }
    // Whoever names an algorithm means to sign: without a signature that is a mistake, and no anonymous request.
    Ok((presigned.is_signed || presigned.algorithm.is_some()).then_some(presigned))
}

impl Presigned {
    fn check(&self, headers: &HeaderMap, region: &str) -> S3Result<()> {
        let (true, Some(algorithm), Some(date), Some(expires), Some(signed), Some(credential)) =
            (self.is_signed, &self.algorithm, &self.date, &self.expires, &self.signed_headers, &self.credential)
        else {
            return Err(s3_error!(
                AuthorizationQueryParametersError,
                "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, \
                 X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters."
            ));
        };
        if algorithm != ALGORITHM {
            return Err(s3_error!(
                AuthorizationQueryParametersError,
                "X-Amz-Algorithm only supports \"AWS4-HMAC-SHA256\""
            ));
        }
        if parse_amz_date_ms(date).is_none() {
            return Err(s3_error!(
                AuthorizationQueryParametersError,
                "X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\""
            ));
        }
        match expires.parse::<u64>() {
            Err(_) => {
                return Err(s3_error!(AuthorizationQueryParametersError, "X-Amz-Expires should be a number"));
            }
            Ok(seconds) if seconds > PRESIGNED_SECONDS_MAX => {
                return Err(s3_error!(
                    AuthorizationQueryParametersError,
                    "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less \
                     than 604800 seconds"
                ));
            }
            Ok(_) => {}
        }
        check_service(credential)
            .map_err(|problem| s3_error!(AuthorizationQueryParametersError, "X-Amz-Credential {problem}"))?;
        if let Some(wrong) = wrong_region(credential) {
            let error = s3_error!(
                AuthorizationQueryParametersError,
                "Error parsing the X-Amz-Credential parameter; the region '{wrong}' is wrong; expecting '{region}'"
            );
            return Err(with_region(error, region));
        }
        check_day(credential, Some(date))
            .map_err(|problem| s3_error!(AuthorizationQueryParametersError, "X-Amz-Credential {problem}"))?;
        check_signed_headers(signed, headers)
    }
}

/// `KEY/20260102/region/s3/aws4_request`; access keys may contain slashes, so it is read from the end.
fn check_service(credential: &str) -> Result<(), &'static str> {
    let mut parts = credential.rsplit('/');
    match (parts.next(), parts.next()) {
        (Some("aws4_request"), Some("s3")) => Ok(()),
        (Some("aws4_request"), Some(_)) => Err("is for another service; it must be for \"s3\""),
        _ => Err("is malformed; expecting \"<YOUR-AKID>/YYYYMMDD/REGION/s3/aws4_request\""),
    }
}

/// Whether a credential has a day, and that of the request's date. A date that is none is told by [`take_date`].
fn check_day(credential: &str, date: Option<&str>) -> Result<(), String> {
    let day = credential.rsplit('/').nth(3).unwrap_or_default();
    if day.len() != 8 || !day.bytes().all(|c| c.is_ascii_digit()) {
        return Err("has no date of the form YYYYMMDD in its credential".to_owned());
    }
    match date {
        Some(date) if parse_amz_date_ms(date).is_some() && !date.starts_with(day) => {
            Err(format!("is of another date ({day}) than X-Amz-Date ({date})"))
        }
        _ => Ok(()),
    }
}

/// The region of a credential, if it cannot be one.
fn wrong_region(credential: &str) -> Option<&str> {
    let region = credential.rsplit('/').nth(2).unwrap_or_default();
    let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (region.is_empty() || !region.bytes().all(fits)).then_some(region)
}

/// Clients sign again for the region that this error tells.
fn other_region(wrong: &str, region: &str) -> S3Error {
    let error = s3_error!(
        AuthorizationHeaderMalformed,
        "The authorization header is malformed; the region '{wrong}' is wrong; expecting '{region}'"
    );
    with_region(error, region)
}

fn with_region(error: S3Error, region: &str) -> S3Error {
    match HeaderValue::from_str(region) {
        Ok(region) => with_headers(error, [(BUCKET_REGION, region)]),
        Err(_) => error,
    }
}

fn check_signed_headers(signed: &str, headers: &HeaderMap) -> S3Result<()> {
    let is_signed = |name: &str| signed.split(';').any(|s| s == name);
    if !is_signed("host") {
        return Err(s3_error!(AccessDenied, "The host header must be signed."));
    }
    let unsigned = headers
        .keys()
        .map(http::HeaderName::as_str)
        .find(|name| name.starts_with("x-amz-") && !UNSIGNED_HEADERS.contains(name) && !is_signed(name));
    match unsigned {
        Some(name) => {
            Err(s3_error!(AccessDenied, "There were headers present in the request which were not signed: {name}"))
        }
        None => Ok(()),
    }
}

fn version_2() -> S3Error {
    s3_error!(
        InvalidRequest,
        "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256 (Signature Version 4). \
         Version 1 of the AWS CLI and boto3 sign URLs so when they are told to: signature_version = s3v4."
    )
}

fn malformed(problem: &str) -> S3Error {
    s3_error!(AuthorizationHeaderMalformed, "The authorization header {problem}.")
}

/// Whether a signed request names a session token, in its headers or its URL. An empty one is none: programs send it
/// for an empty variable.
pub(super) fn has_session_token(headers: &HeaderMap, query: &str) -> bool {
    headers.get_all(SECURITY_TOKEN).iter().any(|token| !token.is_empty())
        || form_urlencoded::parse(query.as_bytes())
            .any(|(name, token)| name.eq_ignore_ascii_case(SECURITY_TOKEN) && !token.is_empty())
}

/// Of a session token. Holdfast gives none out: it is of another service, most often left over in the environment, and
/// may stand for less rights than the key has.
pub(super) fn invalid_token() -> S3Error {
    s3_error!(
        InvalidToken,
        "The provided token is malformed or otherwise invalid. Keys of Holdfast have no session tokens: leave it out \
         (AWS_SESSION_TOKEN, aws_session_token)."
    )
}

/// Gives a request that tells its time by `Date` alone the header `x-amz-date`, the only one that s3s knows. The time
/// is signed in any case: with another one the signature does not match.
///
/// # Errors
/// `AccessDenied` for a signed request without a time, or with one that is none.
pub(super) fn take_date(headers: &mut HeaderMap) -> S3Result<()> {
    let is_version_4 =
        headers.get(AUTHORIZATION).is_some_and(|value| value.as_bytes().starts_with(ALGORITHM.as_bytes()));
    if !is_version_4 {
        return Ok(());
    }
    let invalid = || s3_error!(AccessDenied, "AWS authentication requires a valid Date or x-amz-date header");
    if let Some(date) = headers.get(X_AMZ_DATE) {
        let is_date = date.to_str().is_ok_and(|date| parse_amz_date_ms(date).is_some());
        return if is_date { Ok(()) } else { Err(invalid()) };
    }
    let date = headers.get(DATE).and_then(|date| date.to_str().ok()).and_then(amz_date).ok_or_else(invalid)?;
    headers.insert(X_AMZ_DATE, date);
    Ok(())
}

/// An HTTP date, or one as `x-amz-date` writes it, as the latter.
fn amz_date(text: &str) -> Option<HeaderValue> {
    if parse_amz_date_ms(text).is_some() {
        return HeaderValue::from_str(text).ok();
    }
    let date = OffsetDateTime::from(Timestamp::parse(TimestampFormat::HttpDate, text).ok()?);
    HeaderValue::try_from(date.format(AMZ_DATE).ok()?).ok()
}

/// `20260102T030405Z` as milliseconds since 1970.
pub(crate) fn parse_amz_date_ms(text: &str) -> Option<u64> {
    let date = time::PrimitiveDateTime::parse(text, AMZ_DATE).ok()?;
    u64::try_from(date.assume_utc().unix_timestamp()).ok()?.checked_mul(1000)
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::fuzz::Target;
    use http::HeaderValue;

    use super::*;

    fn code(headers: &[(&'static str, &str)], uri: &str) -> Option<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        check_form(&map, &uri.parse().unwrap(), "us-east-1").err().map(|e| e.code().as_str().to_owned())
    }

    const SCOPE: &str = "AK/20260102/us-east-1/s3/aws4_request";

    /// Of a presigned URL all but its credential and its validity.
    const PRESIGNED: &str = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date=20260102T030405Z&X-Amz-SignedHeaders=host\
                             &X-Amz-Signature=0";

    #[test]
    fn requests_of_the_right_form_and_unsigned_ones_pass() {
        let auth = format!("AWS4-HMAC-SHA256 Credential={SCOPE}, SignedHeaders=host;x-amz-acl;x-amz-date, Signature=0");
        assert_eq!(code(&[("authorization", &auth), ("x-amz-acl", "private"), ("x-amz-date", "d")], "/b/k"), None);
        assert_eq!(code(&[], "/b/k?prefix=Signature-less"), None);
        let query = "/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2F20260102%2Fc%2Fs3%2Faws4_request\
                     &X-Amz-Date=20260102T030405Z&X-Amz-Expires=604800&X-Amz-SignedHeaders=host&X-Amz-Signature=0";
        assert_eq!(code(&[], query), None);
    }

    #[test]
    fn each_gap_is_closed_with_the_error_of_s3() {
        let auth = |signed: &str, scope: &str| {
            format!("AWS4-HMAC-SHA256 Credential={scope},SignedHeaders={signed},Signature=0")
        };
        let header = |value: &str, more: &[(&'static str, &'static str)]| {
            let mut headers = vec![("authorization", value)];
            headers.extend(more.iter().copied());
            code(&headers, "/b/k")
        };
        assert_eq!(header("AWS AK:c2ln", &[]).as_deref(), Some("InvalidRequest"));
        assert_eq!(header("Bearer x", &[]).as_deref(), Some("InvalidArgument"));
        let signed = auth("host;x-amz-date", SCOPE);
        assert_eq!(header(&signed, &[("x-amz-copy-source", "b/k")]).as_deref(), Some("AccessDenied"));
        assert_eq!(header(&auth("x-amz-date", SCOPE), &[]).as_deref(), Some("AccessDenied"));
        let sts = auth("host", "AK/20260102/us-east-1/sts/aws4_request");
        assert_eq!(header(&sts, &[]).as_deref(), Some("AuthorizationHeaderMalformed"));
        assert_eq!(header(&signed, &[("authorization", "AWS4-HMAC-SHA256 x")]).as_deref(), Some("InvalidRequest"));
        let hash = |hash: &'static str| header(&signed, &[("x-amz-content-sha256", hash)]);
        assert_eq!(hash("e3b0c442").as_deref(), Some("InvalidArgument"));
        assert_eq!(hash("UNSIGNED-PAYLOAD"), None);
        assert_eq!(hash("STREAMING-AWS4-HMAC-SHA256-PAYLOAD"), None);
        assert_eq!(hash("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"), None);
        let query = |expires: &str| format!("/b/k?{PRESIGNED}&X-Amz-Credential={SCOPE}&X-Amz-Expires={expires}");
        assert_eq!(code(&[], &query("604801")).as_deref(), Some("AuthorizationQueryParametersError"));
        assert_eq!(code(&[], &query("-1")).as_deref(), Some("AuthorizationQueryParametersError"));
        assert_eq!(code(&[("authorization", &signed)], &query("60")).as_deref(), Some("InvalidArgument"));
        assert_eq!(code(&[("x-amz-acl", "public-read")], &query("60")).as_deref(), Some("AccessDenied"));
        assert_eq!(code(&[], "/b/k?AWSAccessKeyId=AK&Expires=1&Signature=x").as_deref(), Some("InvalidRequest"));
        assert_eq!(code(&[], "/b/k?%53ignature=x").as_deref(), Some("InvalidRequest"));
    }

    #[test]
    fn what_a_signature_lacks_is_named_by_the_error_of_its_kind() {
        let header = |value: &str, date: &str| code(&[("authorization", value), ("x-amz-date", date)], "/b/k");
        let auth = |scope: &str| format!("AWS4-HMAC-SHA256 Credential={scope},SignedHeaders=host,Signature=0");
        let date = "20260102T030405Z";
        assert_eq!(header(&auth(SCOPE), date), None);
        for (value, date) in [
            (format!("AWS4-HMAC-SHA256 Credential={SCOPE},SignedHeaders=host"), date),
            (auth("AK/3223423234/us-east-1/s3/aws4_request"), date),
            (auth("AK/today/us-east-1/s3/aws4_request"), date),
            (auth(SCOPE), "20260103T030405Z"),
        ] {
            assert_eq!(header(&value, date).as_deref(), Some("AuthorizationHeaderMalformed"), "{value} {date}");
        }
        let whole = format!("{PRESIGNED}&X-Amz-Credential={SCOPE}&X-Amz-Expires=60");
        assert_eq!(code(&[], &format!("/b/k?{whole}")), None);
        for (part, other) in [
            ("&X-Amz-Signature=0", ""),
            ("X-Amz-Algorithm=AWS4-HMAC-SHA256", ""),
            ("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"),
            ("&X-Amz-Date=20260102T030405Z", ""),
            ("20260102T030405Z", "2026-01-02"),
            ("20260102T030405Z", "20260103T030405Z"),
            (SCOPE, "AK/3223423234/us-east-1/s3/aws4_request"),
        ] {
            let query = whole.replace(part, other);
            assert_ne!(query, whole, "{part}");
            let code = code(&[], &format!("/b/k?{query}"));
            assert_eq!(code.as_deref(), Some("AuthorizationQueryParametersError"), "{query}");
        }
    }

    #[test]
    fn damaged_signatures_are_refused_and_no_harm() {
        fn header(bytes: &[u8]) {
            let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
            let mut headers = HeaderMap::new();
            headers.insert("authorization", value);
            headers.insert("x-amz-acl", HeaderValue::from_static("private"));
            if check_form(&headers, &Uri::from_static("/b/k"), "us-east-1").is_ok() {
                let text = headers["authorization"].to_str().unwrap();
                assert!(text.contains("host") && text.contains("x-amz-acl"), "neither may be left out");
            }
        }
        fn query(bytes: &[u8]) {
            let Ok(uri) = Uri::try_from([&b"/b/k?"[..], bytes].concat()) else { return };
            let signed = presigned_parameters(uri.query().unwrap_or_default());
            let passes = check_form(&HeaderMap::new(), &uri, "us-east-1").is_ok();
            if let (Ok(Some(presigned)), true) = (signed, passes) {
                assert!(presigned.expires.unwrap().parse::<u64>().unwrap() <= PRESIGNED_SECONDS_MAX);
            }
        }
        fn date(bytes: &[u8]) {
            let _ = std::str::from_utf8(bytes).map(parse_amz_date_ms);
        }
        fn headers() -> Vec<Vec<u8>> {
            let names = "host;x-amz-acl;x-amz-date";
            vec![format!("AWS4-HMAC-SHA256 Credential={SCOPE}, SignedHeaders={names}, Signature=0").into_bytes()]
        }
        fn queries() -> Vec<Vec<u8>> {
            let text = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2Fb%2Fc%2Fs3%2Faws4_request\
                        &X-Amz-Date=20260102T030405Z&X-Amz-Expires=604800&X-Amz-SignedHeaders=host&X-Amz-Signature=0";
            vec![text.into()]
        }
        holdfast_protocol::fuzz::damage::run(
            &[
                Target { name: "authorization", body: header, seeds: headers },
                Target { name: "presigned_query", body: query, seeds: queries },
                Target { name: "amz_date", body: date, seeds: || vec![b"20260102T030405Z".to_vec()] },
            ],
            5_000,
        );
    }

    #[test]
    fn a_region_that_cannot_be_is_answered_with_the_right_one() {
        let form = |scope: &str| {
            let value = format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0");
            let headers = [(http::header::AUTHORIZATION, HeaderValue::try_from(value).unwrap())].into_iter().collect();
            check_form(&headers, &Uri::from_static("/b"), "eu-1")
        };
        assert!(form("AK/20260102/any-region-7/s3/aws4_request").is_ok());
        for region in ["US", "", "us_east"] {
            let error = form(&format!("AK/20260102/{region}/s3/aws4_request")).unwrap_err();
            assert_eq!(error.code().as_str(), "AuthorizationHeaderMalformed", "{region}");
            assert_eq!(error.headers().unwrap()[BUCKET_REGION], "eu-1");
        }
        let url = format!("/b?{PRESIGNED}&X-Amz-Credential=AK/20260102/US/s3/aws4_request&X-Amz-Expires=9");
        assert_eq!(code(&[], &url).as_deref(), Some("AuthorizationQueryParametersError"));
        let error = check_form(&HeaderMap::new(), &url.parse().unwrap(), "eu-1").unwrap_err();
        assert_eq!(error.headers().unwrap()[BUCKET_REGION], "eu-1");
        assert!(error.message().unwrap().contains("'US' is wrong; expecting 'eu-1'"), "{error}");
    }

    #[test]
    fn session_tokens_are_found_and_empty_ones_are_none() {
        let found = |token: Option<&'static str>, query: &str| {
            let headers = token.map(|token| (HeaderName::from_static(SECURITY_TOKEN), HeaderValue::from_static(token)));
            has_session_token(&headers.into_iter().collect(), query)
        };
        assert!(found(Some("FwoG"), ""));
        assert!(found(None, "X-Amz-Date=d&X-Amz-Security-Token=FwoG"));
        assert!(found(Some(""), "x-amz-security-token=FwoG"));
        for query in ["", "X-Amz-Security-Token=", "X-Amz-Security-Token", "prefix=x-amz-security-token"] {
            assert!(!found(None, query) && !found(Some(""), query), "{query}");
        }
    }

    #[test]
    fn amz_dates_are_read() {
        assert_eq!(parse_amz_date_ms("20231114T221320Z"), Some(1_700_000_000_000));
        assert_eq!(parse_amz_date_ms("2023-11-14"), None);
    }
}
