//! A client of the admin API.

use bytes::Bytes;
use holdfast_node::admin::Token;
use holdfast_node::assemble::RunningNode;
use holdfast_node::config::Config;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;

/// Asks one node.
#[derive(Clone)]
pub struct Admin {
    base: String,
    token: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Admin {
    pub fn of(node: &RunningNode, config: &Config) -> Self {
        let token = Token::read(&config.admin_token_file()).expect("a token").reveal().to_owned();
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { base: format!("http://{}", node.admin_addr()), token, client }
    }

    /// Status and body, whatever they are.
    pub async fn call(&self, method: Method, path: &str, body: &serde_json::Value) -> (StatusCode, Bytes) {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .body(Full::new(body))
            .expect("a request");
        let exchange = async {
            let response = self.client.request(request).await.expect("an answer");
            let status = response.status();
            (status, response.into_body().collect().await.expect("a body").to_bytes())
        };
        tokio::time::timeout(crate::support::REQUEST_MAX, exchange).await.expect("an answer in time")
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        self.ok(Method::GET, path, &serde_json::Value::Null).await
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: serde_json::Value) -> T {
        self.ok(Method::POST, path, &body).await
    }

    async fn ok<T: DeserializeOwned>(&self, method: Method, path: &str, body: &serde_json::Value) -> T {
        let (status, answer) = self.call(method.clone(), path, body).await;
        assert!(status.is_success(), "{method} {path}: {status} {answer:?}");
        serde_json::from_slice(&answer).unwrap_or_else(|error| panic!("{method} {path}: {error} {answer:?}"))
    }
}
