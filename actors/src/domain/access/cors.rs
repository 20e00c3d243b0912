//! CORS rules of a bucket: what pages of other origins may do in a browser.
//!
//! Rules are tried in order and the first that fits decides, as in S3. They say nothing about authorisation: a browser
//! that may send a request still needs a signature or a public bucket.

use serde::{Deserialize, Serialize};

/// Most rules of a bucket.
pub const CORS_RULES_MAX: usize = 100;
/// Most entries of one list of a rule.
const ENTRIES_MAX: usize = 100;
/// Longest entry, in bytes.
const ENTRY_BYTES_MAX: usize = 1024;
/// Most bytes of all ids and entries of a bucket's rules together, as S3 bounds the document. They are read with the
/// bucket, and preflight requests, which anybody may send, are held against each of them.
const RULES_BYTES_MAX: usize = 64 * 1024;
/// Longest id of a rule, in characters.
const ID_CHARS_MAX: usize = 255;
/// Most headers that one preflight request may ask for; a browser sends a handful.
const REQUESTED_HEADERS_MAX: usize = 100;

/// Methods that rules can allow.
const METHODS: [&str; 5] = ["GET", "PUT", "POST", "DELETE", "HEAD"];

/// Why rules are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CorsError {
    /// A value that is not allowed.
    #[error("{0}")]
    Invalid(String),
    /// A required element is missing, or there are too many.
    #[error("{0}")]
    Malformed(String),
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CorsRule {
    /// Its name.
    pub id: Option<String>,
    /// Origins, each with at most one `*`.
    pub allowed_origins: Vec<String>,
    /// Methods.
    pub allowed_methods: Vec<String>,
    /// Headers that a request may carry, each with at most one `*`.
    pub allowed_headers: Vec<String>,
    /// Headers that the page may read.
    pub expose_headers: Vec<String>,
    /// How long a browser may remember a preflight's answer.
    pub max_age_seconds: Option<u32>,
}

/// The rules of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CorsRules {
    /// In the order in which they are tried.
    pub rules: Vec<CorsRule>,
}

/// What a browser is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorsGrant<'a> {
    /// `Access-Control-Allow-Origin`: `*` or the origin itself.
    pub allow_origin: &'a str,
    /// `Access-Control-Allow-Methods`.
    pub allow_methods: &'a [String],
    /// `Access-Control-Allow-Headers`: those that were asked for, in lower case.
    pub allow_headers: Vec<String>,
    /// `Access-Control-Expose-Headers`.
    pub expose_headers: &'a [String],
    /// `Access-Control-Max-Age`, in seconds.
    pub max_age_seconds: Option<u32>,
}

impl CorsGrant<'_> {
    /// Whether credentials may be sent: for named origins, never for `*`.
    pub fn allow_credentials(&self) -> bool {
        self.allow_origin != "*"
    }
}

impl CorsRules {
    /// Checks rules that are to be stored.
    ///
    /// # Errors
    /// The first thing that S3 would refuse.
    pub fn validate(&self) -> Result<(), CorsError> {
        if self.rules.is_empty() {
            return Err(CorsError::Malformed("a CORS configuration has at least one rule".into()));
        }
        if self.rules.len() > CORS_RULES_MAX {
            return Err(CorsError::Malformed(format!("a CORS configuration has at most {CORS_RULES_MAX} rules")));
        }
        if self.rules.iter().map(CorsRule::bytes).sum::<usize>() > RULES_BYTES_MAX {
            return Err(CorsError::Malformed(format!("a CORS configuration has at most {RULES_BYTES_MAX} bytes")));
        }
        self.rules.iter().try_for_each(CorsRule::validate)
    }

    /// The answer to an actual request, if a rule fits.
    pub fn actual<'a>(&'a self, origin: &'a str, method: &str) -> Option<CorsGrant<'a>> {
        self.rules.iter().find_map(|rule| rule.grant(origin, method, &[]))
    }

    /// The answer to a preflight request for `method` with the headers of `Access-Control-Request-Headers`, if a rule
    /// fits.
    pub fn preflight<'a>(&'a self, origin: &'a str, method: &str, requested_headers: &str) -> Option<CorsGrant<'a>> {
        let headers: Vec<String> = requested_headers
            .split(',')
            .map(|h| h.trim().to_ascii_lowercase())
            .filter(|h| !h.is_empty())
            .take(REQUESTED_HEADERS_MAX + 1)
            .collect();
        if headers.len() > REQUESTED_HEADERS_MAX {
            return None;
        }
        self.rules.iter().find_map(|rule| rule.grant(origin, method, &headers))
    }
}

impl CorsRule {
    /// `headers` are in lower case.
    fn grant<'a>(&'a self, origin: &'a str, method: &str, headers: &[String]) -> Option<CorsGrant<'a>> {
        if !self.allowed_methods.iter().any(|m| m == method) {
            return None;
        }
        let allowed = self.allowed_origins.iter().find(|allowed| matches(allowed, origin))?;
        if !headers.iter().all(|header| self.allowed_headers.iter().any(|allowed| matches_header(allowed, header))) {
            return None;
        }
        Some(CorsGrant {
            allow_origin: if allowed == "*" { "*" } else { origin },
            allow_methods: &self.allowed_methods,
            allow_headers: headers.to_vec(),
            expose_headers: &self.expose_headers,
            max_age_seconds: self.max_age_seconds,
        })
    }

    /// How much there is of it.
    fn bytes(&self) -> usize {
        let lists = [&self.allowed_origins, &self.allowed_methods, &self.allowed_headers, &self.expose_headers];
        let entries = lists.into_iter().flatten().chain(&self.id);
        entries.map(String::len).sum()
    }

    fn validate(&self) -> Result<(), CorsError> {
        if self.id.as_ref().is_some_and(|id| id.chars().count() > ID_CHARS_MAX) {
            return Err(CorsError::Invalid(format!("the id of a CORS rule has at most {ID_CHARS_MAX} characters")));
        }
        for (name, list) in [("AllowedOrigin", &self.allowed_origins), ("AllowedMethod", &self.allowed_methods)] {
            if list.is_empty() {
                return Err(CorsError::Malformed(format!("each CORS rule has at least one {name}")));
            }
        }
        for (name, list) in [
            ("AllowedOrigin", &self.allowed_origins),
            ("AllowedMethod", &self.allowed_methods),
            ("AllowedHeader", &self.allowed_headers),
            ("ExposeHeader", &self.expose_headers),
        ] {
            if list.len() > ENTRIES_MAX || list.iter().any(|entry| entry.is_empty() || entry.len() > ENTRY_BYTES_MAX) {
                return Err(CorsError::Invalid(format!(
                    "a CORS rule has at most {ENTRIES_MAX} elements {name}, each of 1 to {ENTRY_BYTES_MAX} bytes"
                )));
            }
        }
        if let Some(method) = self.allowed_methods.iter().find(|m| !METHODS.contains(&m.as_str())) {
            return Err(CorsError::Invalid(format!(
                "Found unsupported HTTP method in CORS config. Unsupported method is {method}"
            )));
        }
        for origin in &self.allowed_origins {
            if origin.matches('*').count() > 1 {
                return Err(CorsError::Invalid(format!("AllowedOrigin {origin:?} has more than one wildcard")));
            }
            if origin.bytes().any(|b| !b.is_ascii_graphic()) {
                return Err(CorsError::Invalid(format!("AllowedOrigin {origin:?} is not an origin")));
            }
        }
        for header in &self.allowed_headers {
            if header.matches('*').count() > 1 {
                return Err(CorsError::Invalid(format!("AllowedHeader {header:?} has more than one wildcard")));
            }
            if !is_header_name(header) {
                return Err(CorsError::Invalid(format!("AllowedHeader {header:?} is not a header name")));
            }
        }
        // `*` is a character of header names, but there it would be a wildcard, which S3 does not have.
        if let Some(header) = self.expose_headers.iter().find(|h| h.contains('*') || !is_header_name(h)) {
            return Err(CorsError::Invalid(format!("ExposeHeader {header:?} is not a header name")));
        }
        Ok(())
    }
}

/// Characters of HTTP tokens.
fn is_header_name(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Matches a pattern with at most one `*`.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => {
            text.len() >= before.len() + after.len() && text.starts_with(before) && text.ends_with(after)
        }
    }
}

/// As [`matches()`], letters of either case being equal.
fn matches_header(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern.eq_ignore_ascii_case(text),
        Some((before, after)) => {
            let (text, before, after) = (text.as_bytes(), before.as_bytes(), after.as_bytes());
            text.len() >= before.len() + after.len()
                && text[..before.len()].eq_ignore_ascii_case(before)
                && text[text.len() - after.len()..].eq_ignore_ascii_case(after)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(origins: &[&str], methods: &[&str], headers: &[&str]) -> CorsRule {
        let list = |items: &[&str]| items.iter().map(|s| (*s).to_owned()).collect();
        CorsRule {
            allowed_origins: list(origins),
            allowed_methods: list(methods),
            allowed_headers: list(headers),
            expose_headers: vec!["ETag".into()],
            max_age_seconds: Some(60),
            id: None,
        }
    }

    #[test]
    fn the_first_rule_that_fits_answers() {
        let rules = CorsRules {
            rules: vec![
                rule(&["https://app.example.com"], &["PUT"], &["x-amz-*", "content-type"]),
                rule(&["*"], &["GET"], &[]),
            ],
        };
        rules.validate().unwrap();
        let grant = rules.preflight("https://app.example.com", "PUT", "Content-Type, X-Amz-Date").unwrap();
        assert_eq!(grant.allow_origin, "https://app.example.com");
        assert_eq!(grant.allow_headers, ["content-type", "x-amz-date"]);
        assert!(grant.allow_credentials());
        let grant = rules.actual("https://elsewhere.example", "GET").unwrap();
        assert_eq!(grant.allow_origin, "*");
        assert!(!grant.allow_credentials());
        assert_eq!(rules.preflight("https://app.example.com", "PUT", "authorization"), None);
        assert_eq!(rules.preflight("https://elsewhere.example", "PUT", ""), None);
        assert_eq!(rules.actual("https://app.example.com", "DELETE"), None);
    }

    #[test]
    fn a_wildcard_stands_for_one_run_of_characters() {
        let rules = CorsRules { rules: vec![rule(&["https://*.example.com"], &["GET"], &["*"])] };
        assert!(rules.preflight("https://a.b.example.com", "GET", "anything, x-else").is_some());
        let cased = CorsRules { rules: vec![rule(&["*"], &["GET"], &["X-Amz-*", "Content-TYPE"])] };
        for (headers, fits) in [("x-amz-date, CONTENT-type", true), ("x-amz", false), ("x-am\u{e9}-date", false)] {
            assert_eq!(cased.preflight("https://x", "GET", headers).is_some(), fits, "{headers}");
        }
        assert!(rules.actual("https://example.com", "GET").is_none());
        assert!(rules.actual("https://a.example.com.evil.org", "GET").is_none());
        let overlapping = CorsRules { rules: vec![rule(&["aba*aba"], &["GET"], &[])] };
        assert!(overlapping.actual("aba", "GET").is_none());
        assert!(overlapping.actual("abaaba", "GET").is_some());
    }

    #[test]
    fn rules_that_s3_refuses_are_refused() {
        for bad in [
            rule(&[], &["GET"], &[]),
            rule(&["*"], &[], &[]),
            rule(&["*"], &["PATCH"], &[]),
            rule(&["*"], &["get"], &[]),
            rule(&["http://*.*"], &["GET"], &[]),
            rule(&["http://a\r\nX: y"], &["GET"], &[]),
            rule(&["*"], &["GET"], &["*-*"]),
            rule(&["*"], &["GET"], &["a b"]),
            CorsRule { expose_headers: vec!["*".into()], ..rule(&["*"], &["GET"], &[]) },
            CorsRule { id: Some("x".repeat(256)), ..rule(&["*"], &["GET"], &[]) },
        ] {
            assert!(CorsRules { rules: vec![bad.clone()] }.validate().is_err(), "{bad:?}");
        }
        assert!(CorsRules::default().validate().is_err());
        assert!(CorsRules { rules: vec![rule(&["*"], &["GET"], &[]); 101] }.validate().is_err());
        assert!(CorsRules { rules: vec![rule(&["*"], &["GET"], &[]); 100] }.validate().is_ok());
        let long = "x".repeat(700);
        let rules_of = |count: usize| CorsRules { rules: vec![rule(&["*"], &["GET"], &[&long]); count] };
        assert!(
            rules_of(90).validate().is_ok() && rules_of(100).validate().is_err(),
            "there is a bound for all together"
        );
    }

    #[test]
    fn a_preflight_for_absurdly_many_headers_is_refused() {
        let rules = CorsRules { rules: vec![rule(&["*"], &["GET"], &["*"])] };
        assert!(rules.preflight("https://x", "GET", &"a,".repeat(101)).is_none());
    }
}
