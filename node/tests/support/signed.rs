//! Requests signed in their headers (Signature Version 4), for what presigned URLs cannot carry.

use bytes::Bytes;
use holdfast_node::admin::Pair;
use holdfast_node::assemble::RunningNode;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use ring::hmac;
use sha2::{Digest, Sha256};

/// Asks one node as its root user.
pub struct Signed {
    host: String,
    pair: Pair,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// A header; empty if there is none.
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).map_or_else(String::new, |value| value.to_str().expect("text").to_owned())
    }
}

impl Signed {
    pub fn of(node: &RunningNode) -> Self {
        let pair = node.root().expect("a root credential").clone();
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { host: node.s3_addr().to_string(), pair, client }
    }

    /// `target` needs no escapes, and its query is sorted, with a `=` in each pair. Panics when the request hangs.
    pub async fn send(&self, method: Method, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let now = time::OffsetDateTime::now_utc();
        let day = format!("{:04}{:02}{:02}", now.year(), u8::from(now.month()), now.day());
        let stamp = format!("{day}T{:02}{:02}{:02}Z", now.hour(), now.minute(), now.second());
        let hash = hex::encode(Sha256::digest(body));
        let mut all = vec![("host", self.host.as_str()), ("x-amz-content-sha256", &hash), ("x-amz-date", &stamp)];
        all.extend(headers);
        all.sort_unstable();
        let names = all.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let lines: String = all.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{hash}");
        let scope = format!("{day}/us-east-1/s3/aws4_request");
        let to_sign = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", hex::encode(Sha256::digest(canonical)));
        let mut key = format!("AWS4{}", *self.pair.secret_key).into_bytes();
        for part in [day.as_str(), "us-east-1", "s3", "aws4_request", &to_sign] {
            key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
        }
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={}",
            self.pair.access_key,
            hex::encode(key)
        );
        let mut request = Request::builder()
            .method(&method)
            .uri(format!("http://{}{target}", self.host))
            .header("authorization", authorization);
        for (name, value) in all {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).expect("a request");
        let exchange = async {
            let (head, body) = self.client.request(request).await.expect("an answer").into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            Answer { status: head.status, headers: head.headers, body }
        };
        let answer = tokio::time::timeout(super::support::REQUEST_MAX, exchange).await;
        answer.unwrap_or_else(|_| panic!("{method} {target} hangs"))
    }
}
