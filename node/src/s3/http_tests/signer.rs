//! Signature Version 4, from its specification and without a line of s3s: what both agree on is likely right.

use http::{HeaderMap, Request};
use ring::{digest, hmac};
use s3s::Body;

/// Who signs, and when.
#[derive(Clone)]
pub struct Signer {
    pub access_key: String,
    pub secret: String,
    pub at_ms: u64,
}

/// `20260102T030405Z`.
pub fn amz_date(at_ms: u64) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp((at_ms / 1000) as i64).unwrap();
    at.format(time::macros::format_description!("[year][month][day]T[hour][minute][second]Z")).unwrap()
}

pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

fn hmac_sha256(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

/// Encodes all but unreserved characters.
pub fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(byte as char);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

impl Signer {
    pub fn scope(&self) -> String {
        format!("{}/us-east-1/s3/aws4_request", &amz_date(self.at_ms)[..8])
    }

    /// Signs a text under this day's key.
    pub fn sign_text(&self, text: &str) -> String {
        let key = self.scope().split('/').fold(format!("AWS4{}", self.secret).into_bytes(), |k, t| hmac_sha256(&k, t));
        hex::encode(hmac_sha256(&key, text))
    }

    fn signature(
        &self,
        method: &str,
        path: &str,
        query: &[(String, String)],
        headers: &[(String, String)],
        hash: &str,
    ) -> String {
        let mut query: Vec<_> = query.iter().map(|(n, v)| (encode(n), encode(v))).collect();
        // By name first: as text, `select-type=` would come before `select=`.
        query.sort();
        let query: Vec<_> = query.iter().map(|(n, v)| format!("{n}={v}")).collect();
        let canonical_headers: String = headers.iter().map(|(n, v)| format!("{n}:{}\n", v.trim())).collect();
        let names: Vec<_> = headers.iter().map(|(n, _)| n.as_str()).collect();
        let request =
            format!("{method}\n{path}\n{}\n{canonical_headers}\n{}\n{hash}", query.join("&"), names.join(";"));
        let text =
            format!("AWS4-HMAC-SHA256\n{}\n{}\n{}", amz_date(self.at_ms), self.scope(), sha256_hex(request.as_bytes()));
        self.sign_text(&text)
    }

    /// A request signed in its Authorization header. `path` is encoded; `headers` are all signed. One with a `date`
    /// among them has no `x-amz-date`.
    pub fn request(
        &self,
        method: &str,
        host: &str,
        path: &str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Request<Body> {
        let hash = sha256_hex(body);
        let mut signed: Vec<(String, String)> = headers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        signed.push(("host".into(), host.into()));
        if !signed.iter().any(|(name, _)| name == "date") {
            signed.push(("x-amz-date".into(), amz_date(self.at_ms)));
        }
        signed.push(("x-amz-content-sha256".into(), hash.clone()));
        signed.sort();
        let query: Vec<(String, String)> = query.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        let signature = self.signature(method, path, &query, &signed, &hash);
        let names: Vec<_> = signed.iter().map(|(n, _)| n.as_str()).collect();
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={}, Signature={signature}",
            self.access_key,
            self.scope(),
            names.join(";")
        );
        let mut request = unsigned(method, host, path, &query, body);
        for (name, value) in signed {
            request.headers_mut().insert(http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        }
        request.headers_mut().insert("authorization", authorization.parse().unwrap());
        request
    }

    /// A presigned URL's path and query.
    pub fn presign(&self, method: &str, host: &str, path: &str, query: &[(&str, &str)], expires: &str) -> String {
        let mut query: Vec<(String, String)> = query.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        for (name, value) in [
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256".to_owned()),
            ("X-Amz-Credential", format!("{}/{}", self.access_key, self.scope())),
            ("X-Amz-Date", amz_date(self.at_ms)),
            ("X-Amz-Expires", expires.to_owned()),
            ("X-Amz-SignedHeaders", "host".to_owned()),
        ] {
            query.push((name.to_owned(), value));
        }
        let signature = self.signature(method, path, &query, &[("host".into(), host.into())], "UNSIGNED-PAYLOAD");
        query.push(("X-Amz-Signature".into(), signature));
        format!("{path}?{}", query_string(&query))
    }
}

fn query_string(query: &[(String, String)]) -> String {
    query.iter().map(|(n, v)| format!("{}={}", encode(n), encode(v))).collect::<Vec<_>>().join("&")
}

/// A request without signature.
pub fn unsigned(method: &str, host: &str, path: &str, query: &[(String, String)], body: &[u8]) -> Request<Body> {
    let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query_string(query)) };
    let mut request = Request::new(Body::from(body.to_vec()));
    *request.method_mut() = method.parse().unwrap();
    *request.uri_mut() = uri.parse().unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("host", host.parse().unwrap());
    if !body.is_empty() || method == "PUT" || method == "POST" {
        headers.insert("content-length", body.len().into());
    }
    *request.headers_mut() = headers;
    request
}

#[test]
fn the_signer_agrees_with_the_documented_example() {
    let signer = Signer {
        access_key: "AKIAIOSFODNN7EXAMPLE".into(),
        secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
        at_ms: 1_369_353_600_000,
    };
    let request =
        signer.request("GET", "examplebucket.s3.amazonaws.com", "/test.txt", &[], &[("range", "bytes=0-9")], b"");
    let authorization = request.headers()["authorization"].to_str().unwrap();
    assert!(
        authorization.ends_with("Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
        "{authorization}"
    );
    let url = signer.presign("GET", "examplebucket.s3.amazonaws.com", "/test.txt", &[], "86400");
    assert!(url.ends_with("X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"), "{url}");
}
