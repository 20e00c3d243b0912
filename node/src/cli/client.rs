//! The client of the admin API behind all commands that talk to a running node.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use holdfast_protocol::admin::{ErrorBody, ErrorCode, Page};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::{ADMIN_ADDR, CliResult, ConfigArgs, Exit, Failure};
use crate::admin::{Token, TokenError};

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Time for an answer; commands that work longer say so.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The token itself, instead of a file with it.
pub(super) const ADMIN_TOKEN: &str = "HOLDFAST_ADMIN_TOKEN";

/// Everything but what needs no escape in a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// How a command finds the node and proves that it may.
#[derive(Args, Debug, Clone)]
pub(crate) struct ClientArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where the node's admin API is: HOST:PORT, or a URL [default: the configuration's, else 127.0.0.1:9001].
    #[arg(long, value_name = "ADDR", env = ADMIN_ADDR)]
    admin_addr: Option<AdminUrl>,
    /// File with the admin token [default: admin.token in the data directory].
    #[arg(long, value_name = "FILE", env = "HOLDFAST_ADMIN_TOKEN_FILE")]
    admin_token_file: Option<PathBuf>,
}

/// Where the admin API of a node is: a URL without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AdminUrl(String);

impl FromStr for AdminUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is no address of an admin API: write host:port, such as node1.example.com:9001, or its URL"
            )
        };
        let (scheme, rest) = text.trim().split_once("://").unwrap_or(("", text.trim()));
        if scheme.eq_ignore_ascii_case("https") {
            return Err("the admin API is served in plain HTTP: write http:// and keep the way to it private".into());
        }
        if !scheme.is_empty() && !scheme.eq_ignore_ascii_case("http") {
            return Err(wrong());
        }
        let uri: Uri = format!("http://{rest}").parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        let (host, port) = (authority.host(), authority.port_u16());
        // A URL may leave its port out, which is 80 then; what stands after a colon must be one.
        let has_port = port.is_some() || (!scheme.is_empty() && authority.as_str() == host);
        if host.is_empty() || !has_port || uri.query().is_some() {
            return Err(wrong());
        }
        Ok(Self(format!("http://{authority}{}", uri.path().trim_end_matches('/'))))
    }
}

impl fmt::Display for AdminUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A client of one node.
pub(super) struct ApiClient {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
    token: Zeroizing<String>,
    timeout: Duration,
}

impl ClientArgs {
    pub(super) fn connect(&self) -> CliResult<ApiClient> {
        let loaded = self.config.load_for_client()?;
        let node = match &self.admin_addr {
            Some(url) => url.clone(),
            None => AdminUrl(format!("http://{}", loaded.config.admin.addr)),
        };
        let token = match given_token(std::env::var_os(ADMIN_TOKEN))? {
            Some(token) => token,
            None => {
                let file = self.admin_token_file.clone().unwrap_or_else(|| loaded.config.admin_token_file());
                // The error tells its cause itself.
                let token = Token::read(&file)
                    .map_err(|error| Failure::usage(anyhow::anyhow!("{error}{}", where_a_token_is(&error))));
                Zeroizing::new(token?.reveal().to_owned())
            }
        };
        Ok(ApiClient {
            client: Client::builder(TokioExecutor::new()).build(connector()),
            base: format!("{node}/v1"),
            token,
            timeout: ANSWER_TIMEOUT,
        })
    }
}

/// What to do about a token file that cannot be used, beside what the error says itself.
fn where_a_token_is(error: &TokenError) -> &'static str {
    match error {
        TokenError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            ": run this as root or as the user of the node, or give the token with --admin-token-file or in \
             HOLDFAST_ADMIN_TOKEN"
        }
        TokenError::Io { .. } | TokenError::Malformed(_) => {
            ": name the node's configuration with --config or its data directory with --data-dir, or its token with \
             --admin-token-file or in HOLDFAST_ADMIN_TOKEN"
        }
        TokenError::Exposed(_) => "",
    }
}

/// The token in a variable. One that is empty is as good as none; one that cannot be sent is told of by its name only.
fn given_token(value: Option<OsString>) -> CliResult<Option<Zeroizing<String>>> {
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
    let value = value.into_string().ok().map(Zeroizing::new);
    let token = value.as_deref().map(|value| value.trim()).filter(|token| token.bytes().all(|b| b.is_ascii_graphic()));
    match token {
        Some("") => Ok(None),
        Some(token) => Ok(Some(Zeroizing::new(token.to_owned()))),
        None => {
            let error = anyhow::anyhow!(
                "{ADMIN_TOKEN} holds no token: it is one word, as in admin.token of the data directory"
            );
            Err(Failure::usage(error))
        }
    }
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_nodelay(true);
    connector
}

/// A path segment, escaped.
pub(super) fn segment(name: &str) -> String {
    // `.` and `..` would be taken for navigation.
    if matches!(name, "." | "..") { name.replace('.', "%2E") } else { utf8_percent_encode(name, SEGMENT).to_string() }
}

impl ApiClient {
    /// Waits longer for answers, for commands that work.
    pub(super) fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// A connection for each request: the node ends one that is used for long, whatever happens on it.
    pub(super) fn without_reuse(mut self) -> Self {
        self.client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector());
        self
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> CliResult<T> {
        self.call(Method::GET, path, Bytes::new()).await
    }

    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> CliResult<T> {
        self.call(Method::POST, path, serde_json::to_vec(body)?.into()).await
    }

    pub(super) async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> CliResult<T> {
        self.call(Method::PUT, path, serde_json::to_vec(body)?.into()).await
    }

    pub(super) async fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> CliResult<T> {
        self.call(Method::PATCH, path, serde_json::to_vec(body)?.into()).await
    }

    pub(super) async fn delete(&self, path: &str) -> CliResult {
        self.send(Method::DELETE, path, Bytes::new()).await.map(drop)
    }

    /// All pages of a list.
    pub(super) async fn list<T: DeserializeOwned>(&self, path: &str, user: Option<&str>) -> CliResult<Vec<T>> {
        let mut items = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            if let Some(user) = user {
                query.append_pair("user", user);
            }
            if let Some(after) = &after {
                query.append_pair("after", after);
            }
            let page: Page<T> = self.get(&format!("{path}?{}", query.finish())).await?;
            items.extend(page.items);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(items),
            }
        }
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> CliResult<T> {
        let answer = self.send(method, path, body).await?;
        Ok(serde_json::from_slice(&answer).context("understand the node's answer: is it another version?")?)
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> CliResult<Bytes> {
        let unreachable = |error: anyhow::Error| Failure {
            exit: Exit::Unreachable,
            error: error
                .context(format!("reach the node at {} (is it running there? --admin-addr says where)", self.base)),
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("authorization", format!("Bearer {}", *self.token))
            .header("content-type", "application/json")
            .header("x-holdfast-operator", operator())
            .body(Full::new(body))?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| unreachable(error.into()))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| unreachable(anyhow::anyhow!(error)))?;
            Ok::<_, Failure>((status, body.to_bytes()))
        };
        let (status, body) = tokio::time::timeout(self.timeout, exchange)
            .await
            .map_err(|_| unreachable(anyhow::anyhow!("no answer within {} s", self.timeout.as_secs())))??;
        if status.is_success() { Ok(body) } else { Err(failure_of(status, &body, &self.base)) }
    }
}

#[cfg(test)]
impl ApiClient {
    /// A client of whatever listens there.
    pub(super) fn of(addr: std::net::SocketAddr) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector()),
            base: format!("http://{addr}/v1"),
            token: Zeroizing::new("token".to_owned()),
            timeout: ANSWER_TIMEOUT,
        }
    }
}

/// Who runs the command, for the audit log.
fn operator() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_default();
    if user.chars().all(|c| c.is_ascii_graphic()) { user } else { String::new() }
}

fn failure_of(status: StatusCode, body: &[u8], base: &str) -> Failure {
    let Ok(ErrorBody { error }) = serde_json::from_slice(body) else {
        let error = anyhow::anyhow!("the answer was {status}: is this the admin API of a Holdfast node?");
        return Failure { exit: Exit::Failed, error };
    };
    let exit = match error.code {
        ErrorCode::InvalidRequest => Exit::Usage,
        ErrorCode::NotFound => Exit::NotFound,
        ErrorCode::Exists | ErrorCode::InUse | ErrorCode::Conflict => Exit::Conflict,
        ErrorCode::Unavailable => Exit::Unreachable,
        ErrorCode::Unauthorized | ErrorCode::NotPossible | ErrorCode::Internal | ErrorCode::Other => Exit::Failed,
    };
    let message = match error.code {
        ErrorCode::Internal | ErrorCode::Other => format!("{} (request {})", error.message, error.request_id),
        ErrorCode::Unauthorized => format!(
            "{}: each node has one of its own; give that of the node at {base} with --config, --data-dir or \
             --admin-token-file, or in {ADMIN_TOKEN}",
            error.message
        ),
        _ => error.message,
    };
    Failure { exit, error: anyhow::anyhow!(message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_by_host_and_port_or_by_a_url() {
        for (text, url) in [
            ("127.0.0.1:9001", "http://127.0.0.1:9001"),
            ("[::1]:9001", "http://[::1]:9001"),
            ("localhost:9001", "http://localhost:9001"),
            ("node_1.example.com:80", "http://node_1.example.com:80"),
            ("http://node1:9001", "http://node1:9001"),
            ("HTTP://node1:9001/", "http://node1:9001"),
            ("http://proxy/holdfast/", "http://proxy/holdfast"),
            (" node1:9001\n", "http://node1:9001"),
        ] {
            assert_eq!(text.parse::<AdminUrl>().unwrap().to_string(), url, "{text}");
        }
        for text in [
            "",
            "node1",
            "node1:",
            "node1:port",
            "node1:99999",
            ":9001",
            "::1",
            "http://",
            "http://node1:",
            "ftp://a:1",
        ] {
            let error = text.parse::<AdminUrl>().unwrap_err();
            assert!(error.contains("host:port"), "{text}: {error}");
        }
        for text in ["a b:1", "user@node1:9001", "node1:9001?x=y"] {
            assert!(text.parse::<AdminUrl>().is_err(), "{text}");
        }
        assert!("https://node1:9001".parse::<AdminUrl>().unwrap_err().contains("plain HTTP"));
    }

    #[test]
    fn who_comes_with_the_token_of_another_node_is_told_what_to_give() {
        let told = |code: &str| {
            let body = format!(r#"{{"error":{{"code":"{code}","message":"it is wrong","request_id":"7"}}}}"#);
            let failure = failure_of(StatusCode::UNAUTHORIZED, body.as_bytes(), "http://node2:9001/v1");
            (failure.exit, failure.error.to_string())
        };
        let (exit, text) = told("unauthorized");
        assert!(exit == Exit::Failed && text.starts_with("it is wrong: "), "{text}");
        assert!(text.contains("http://node2:9001") && text.contains("--admin-token-file"), "{text}");
        assert_eq!(told("internal"), (Exit::Failed, "it is wrong (request 7)".to_owned()));
        assert_eq!(told("not_found"), (Exit::NotFound, "it is wrong".to_owned()));
    }

    #[test]
    fn who_may_not_read_the_token_is_not_told_to_look_elsewhere() {
        let of =
            |kind: io::ErrorKind| TokenError::Io { action: "read", path: "admin.token".into(), source: kind.into() };
        let (denied, absent) = (of(io::ErrorKind::PermissionDenied), of(io::ErrorKind::NotFound));
        assert!(where_a_token_is(&denied).contains("the user of the node"));
        assert!(where_a_token_is(&absent).contains("--data-dir"));
    }

    #[test]
    fn a_token_in_the_environment_is_one_word_or_none() {
        let given = |text: &str| given_token(Some(text.into()));
        assert!(given_token(None).unwrap().is_none());
        for none in ["", " \n"] {
            assert!(given(none).unwrap().is_none(), "{none:?}");
        }
        assert_eq!(given("0123456789abcdef\n").unwrap().unwrap().as_str(), "0123456789abcdef");
        for wrong in ["two words", "two\nlines", "t\u{f6}ken"] {
            let failure = given(wrong).unwrap_err();
            let text = failure.error.to_string();
            assert!(failure.exit == Exit::Usage && text.contains(ADMIN_TOKEN) && !text.contains(wrong), "{text}");
        }
    }
}
