//! Addressing: the bucket in the path or in the host name.
//!
//! Under the configured base names (`s3.example.com`; `localhost` for `holdfast dev`) a longer name carries the bucket
//! (`photos.s3.example.com`). Every other name, a base name itself, an IP address, an alias in somebody's hosts file,
//! is path style: both styles work at the same time, and a name that was not configured never hides the buckets behind
//! it.

use s3s::S3Result;
use s3s::host::{S3Host, VirtualHost};

/// The names under which buckets are found as subdomains.
#[derive(Debug, Clone, Default)]
pub struct HostNames {
    /// Lower case, without port, longest first, so that the most specific base decides.
    bases: Vec<String>,
}

/// A base name that is not a host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a host name (without scheme and port)")]
pub struct InvalidHostName(pub String);

impl HostNames {
    /// Base names as configured; none means path style only.
    ///
    /// # Errors
    /// The first one that is not a host name.
    pub fn new<'a>(bases: impl IntoIterator<Item = &'a str>) -> Result<Self, InvalidHostName> {
        let mut checked = Vec::new();
        for base in bases {
            let name = base.trim_end_matches('.').to_ascii_lowercase();
            let is_label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            if !name.split('.').all(is_label) || name.parse::<std::net::IpAddr>().is_ok() {
                return Err(InvalidHostName(base.to_owned()));
            }
            checked.push(name);
        }
        checked.sort_by_key(|name| std::cmp::Reverse(name.len()));
        checked.dedup();
        Ok(Self { bases: checked })
    }

    /// The bucket that a `Host` header carries, in lower case; `None` for path style.
    pub fn bucket_of(&self, host: &str) -> Option<String> {
        if self.bases.is_empty() {
            return None;
        }
        let host = without_port(host).trim_end_matches('.').to_ascii_lowercase();
        for base in &self.bases {
            if host == *base {
                return None;
            }
            if let Some(bucket) = host.strip_suffix(base.as_str()).and_then(|rest| rest.strip_suffix('.')) {
                return Some(bucket.to_owned());
            }
        }
        None
    }
}

/// A host without `:port`; an IPv6 literal keeps its brackets.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

impl S3Host for HostNames {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let path_style = VirtualHost::new(host);
        Ok(match self.bucket_of(host) {
            Some(bucket) => path_style.with_bucket(bucket),
            None => path_style,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_under_a_base_carry_a_bucket() {
        let names = HostNames::new(["s3.example.com", "example.com", "LOCALHOST"]).unwrap();
        for (host, bucket) in [
            ("photos.s3.example.com", Some("photos")),
            ("photos.s3.example.com:9000", Some("photos")),
            ("my.dotted.bucket.s3.example.com", Some("my.dotted.bucket")),
            ("PHOTOS.S3.Example.com", Some("photos")),
            ("photos.s3.example.com.", Some("photos")),
            ("photos.localhost:9000", Some("photos")),
            ("localhost:9000", None),
            ("localhost", None),
            ("s3.example.com", None),
            ("s3.example.com:9000", None),
            ("example.com", None),
            ("photos.example.com", Some("photos")),
            ("photoss3.example.org", None),
            ("storage.internal", None),
            ("127.0.0.1:9000", None),
            ("[::1]:9000", None),
            ("::1", None),
            ("", None),
        ] {
            assert_eq!(names.bucket_of(host).as_deref(), bucket, "{host}");
        }
    }

    #[test]
    fn damaged_names_carry_what_stands_before_the_base() {
        fn body(bytes: &[u8]) {
            let names = HostNames::new(["s3.example.com", "example.com"]).unwrap();
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            if let Some(bucket) = names.bucket_of(text) {
                assert!(text.to_ascii_lowercase().starts_with(&bucket));
            }
            let _ = HostNames::new([text]);
        }
        let seeds = || ["photos.s3.example.com:9000", "a.b.example.com.", "[::1]:9000"].map(Vec::from).to_vec();
        holdfast_protocol::fuzz::damage::run(&[holdfast_protocol::fuzz::Target { name: "host", body, seeds }], 3_000);
    }

    #[test]
    fn without_base_names_everything_is_path_style() {
        assert_eq!(HostNames::default().bucket_of("photos.s3.example.com"), None);
    }

    #[test]
    fn what_is_no_host_name_is_refused_at_start() {
        for bad in ["", "http://s3.example.com", "s3.example.com:9000", "a..b", "10.0.0.1", "a/b"] {
            assert!(HostNames::new([bad]).is_err(), "{bad}");
        }
    }
}
