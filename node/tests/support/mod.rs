//! A node in this process, and a client that signs by presigned URLs.

use std::time::Duration;

use bytes::Bytes;
#[allow(unused_imports, reason = "not every test waits")]
pub use holdfast_actors::wait::eventually;
use holdfast_node::admin::Pair;
use holdfast_node::assemble::{self, Root, RunningNode};
use holdfast_node::config::Config;
use holdfast_node::presign::Presign;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// Longest time for any request: beyond it the test calls it hung.
pub const REQUEST_MAX: Duration = Duration::from_secs(60);

/// A configuration for a node in `dir`: free ports, small buffers.
pub fn config(dir: &std::path::Path) -> Config {
    let mut config = Config::default();
    config.node.data_dir = dir.join("data");
    config.s3.addr = "127.0.0.1:0".parse().expect("an address");
    config.admin.addr = "127.0.0.1:0".parse().expect("an address");
    config.storage.segment_size = "64 MiB".parse().expect("a size");
    config.storage.reserve = "16 MiB".parse().expect("a size");
    config.storage.large_buffers = 16;
    config.storage.small_buffers = 32;
    config.data_plane.threads = 2;
    config.node.shutdown_timeout = "10 s".parse().expect("a duration");
    config
}

pub async fn start(config: &Config) -> RunningNode {
    assemble::start(config.clone(), Root::Generate).await.expect("the node starts")
}

/// Signs, sends and collects.
#[derive(Clone)]
pub struct S3 {
    host: String,
    pair: Pair,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl S3 {
    pub fn of(node: &RunningNode) -> Self {
        Self::with(node, node.root().expect("a root credential"))
    }

    /// With a credential that another node told.
    pub fn with(node: &RunningNode, pair: &Pair) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { host: node.s3_addr().to_string(), pair: pair.clone(), client }
    }

    /// The answer, or the transport's error. Panics when the request hangs.
    pub async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), String> {
        let url = Presign {
            method: method.as_str(),
            scheme: "http",
            host: &self.host,
            path,
            region: "us-east-1",
            access_key: &self.pair.access_key,
            secret_key: &self.pair.secret_key,
            expires_seconds: 600,
        }
        .url(time::OffsetDateTime::now_utc());
        let request = Request::builder().method(method.clone()).uri(url).body(Full::new(body)).expect("a request");
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| format!("{error:?}"))?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
            Ok((status, body.to_bytes()))
        };
        let answer = tokio::time::timeout(REQUEST_MAX, exchange).await;
        answer.unwrap_or_else(|_| panic!("{method} {path} hangs"))
    }

    pub async fn put(&self, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), String> {
        self.send(Method::PUT, path, body).await
    }

    pub async fn get(&self, path: &str) -> Result<(StatusCode, Bytes), String> {
        self.send(Method::GET, path, Bytes::new()).await
    }
}
