//! One client connection: HTTP/1.1, kept alive, signed.
//!
//! hyper's connection type is used directly, without a pool: a worker owns its connection, sends one request at a time
//! and connects again after a failure. Reading checks the body as it arrives and keeps none of it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue};
use http::response::Parts;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::args::{LoadArgs, Payload};
use super::content::{BenchBody, Check};
use super::sign::{EMPTY_SHA256, Signer, UNSIGNED_PAYLOAD};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The most of an error's body that is read for its code.
const ERROR_BODY_BYTES_MAX: usize = 64 << 10;
/// The most of a control answer that is read: a page of 1,000 keys of 1,024 bytes, each escaped, fits.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// What S3 leaves as it is in a path; everything else is percent-encoded.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');
/// The same for a query's values.
const QUERY: &AsciiSet = &PATH.add(b'/');

/// Encodes a key for the path of a URL.
pub(super) fn encode_path(key: &str) -> String {
    utf8_percent_encode(key, PATH).to_string()
}

/// Encodes a value for the query of a URL.
pub(super) fn encode_query(value: &str) -> String {
    utf8_percent_encode(value, QUERY).to_string()
}

/// Why a request failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// What errors are counted by: `503 SlowDown`, `timeout`, `connect`, …
    pub(super) kind: String,
    /// What the server sent was not the object.
    pub(super) wrong_content: bool,
}

impl Failure {
    fn new(kind: impl Into<String>) -> Self {
        Self { kind: kind.into(), wrong_content: false }
    }

    fn wrong(kind: &str) -> Self {
        Self { kind: kind.into(), wrong_content: true }
    }
}

/// Where the server is and how it is spoken to. Shared by all connections.
pub(super) struct Target {
    /// `host:port`, to connect to.
    address: String,
    /// The `Host` header.
    host: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    signer: Option<Signer>,
    payload: Payload,
    timeout: Duration,
}

impl Target {
    /// # Errors
    /// When the endpoint is no http or https URL of a host alone, or the CA file cannot be used.
    pub(super) fn new(args: &LoadArgs) -> Result<Self> {
        let url = url::Url::parse(&args.endpoint).with_context(|| format!("endpoint `{}`", args.endpoint))?;
        let name = url.host_str().context("the endpoint has no host")?;
        let port = url.port_or_known_default().context("the endpoint has no port")?;
        if url.path() != "/" || url.query().is_some() {
            bail!("the endpoint `{}` has a path: buckets are addressed as /bucket/key below its root", args.endpoint);
        }
        let tls = match url.scheme() {
            "http" => None,
            "https" => {
                let bare = name.trim_start_matches('[').trim_end_matches(']').to_owned();
                let server = ServerName::try_from(bare).context("the endpoint's host is no name for TLS")?;
                Some((connector(args)?, server))
            }
            other => bail!("the endpoint's scheme is `{other}`: use http or https"),
        };
        let host = url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
        let signer = match (&args.access_key, &args.secret_key) {
            (Some(access), Some(secret)) if !args.unsigned => Some(Signer::new(access, secret, &args.region)),
            _ => None,
        };
        Ok(Self { address: format!("{name}:{port}"), host, tls, signer, payload: args.payload, timeout: args.timeout })
    }

    /// Whether requests are signed, so that the server is taken for an S3 server.
    pub(super) fn is_s3(&self) -> bool {
        self.signer.is_some()
    }
}

fn connector(args: &LoadArgs) -> Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    let file = args.ca_file.display();
    for certificate in CertificateDer::pem_file_iter(&args.ca_file).with_context(|| format!("read {file}"))? {
        roots.add(certificate.with_context(|| format!("parse {file}"))?).with_context(|| format!("use {file}"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("choose TLS versions")?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A request as the workloads see it.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    /// Encoded, with its leading slash.
    pub(super) path: &'a str,
    /// Encoded and sorted by name, without the question mark.
    pub(super) query: &'a str,
    pub(super) body: BenchBody,
    /// A header besides those of the signature.
    pub(super) header: Option<(HeaderName, HeaderValue)>,
}

impl<'a> Call<'a> {
    pub(super) fn new(method: Method, path: &'a str) -> Self {
        Self { method, path, query: "", body: BenchBody::empty(), header: None }
    }
}

/// One connection at a time to the target.
pub(super) struct Connection {
    target: Arc<Target>,
    signer: Option<Signer>,
    sender: Option<SendRequest<BenchBody>>,
}

impl Connection {
    pub(super) fn new(target: Arc<Target>) -> Self {
        let signer = target.signer.clone();
        Self { target, signer, sender: None }
    }

    /// Sends an object; the answer's body is discarded.
    pub(super) async fn put(&mut self, path: &str, body: BenchBody) -> Result<(), Failure> {
        self.send(Call { body, ..Call::new(Method::PUT, path) }, |_, response| async {
            drain(response, 0).await?;
            Ok(())
        })
        .await
    }

    /// Reads an object and checks it.
    pub(super) async fn get(&mut self, path: &str, mut check: Check) -> Result<(), Failure> {
        self.send(Call::new(Method::GET, path), |_, mut response| async move {
            while let Some(frame) = response.frame().await {
                let frame = frame.map_err(|error| broken(&error))?;
                if let Some(data) = frame.data_ref()
                    && !check.matches(data)
                {
                    return Err(Failure::wrong("wrong content"));
                }
            }
            if check.is_complete() { Ok(()) } else { Err(Failure::wrong("short content")) }
        })
        .await
    }

    /// Sends a request and gives back the body of its answer.
    pub(super) async fn ask(&mut self, call: Call<'_>) -> Result<Bytes, Failure> {
        self.send(call, |_, body| drain(body, ANSWER_BYTES_MAX)).await
    }

    /// Asks for an object's head, and compares the size that it tells.
    pub(super) async fn head(&mut self, path: &str, size: u64) -> Result<(), Failure> {
        self.send(Call::new(Method::HEAD, path), |head, _| async move {
            let told = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
            if told == Some(size) { Ok(()) } else { Err(Failure::wrong("wrong length")) }
        })
        .await
    }

    /// One request with its time limit. After a failure the connection is not used again, unless the server answered
    /// the request in full.
    async fn send<T, F>(&mut self, call: Call<'_>, read: impl FnOnce(Parts, Incoming) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let timeout = self.target.timeout;
        let mut answered = false;
        let result = tokio::time::timeout(timeout, self.exchange(call, read, &mut answered))
            .await
            .unwrap_or_else(|_| Err(Failure::new("timeout")));
        if result.is_err() && !answered {
            self.sender = None;
        }
        result
    }

    async fn exchange<T, F>(
        &mut self,
        call: Call<'_>,
        read: impl FnOnce(Parts, Incoming) -> F,
        answered: &mut bool,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let request = self.request(call);
        let sender = self.connected().await?;
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let (head, body) = response.into_parts();
        if head.status.is_success() {
            return read(head, body).await;
        }
        let text = drain(body, ERROR_BODY_BYTES_MAX).await?;
        *answered = true;
        Err(Failure::new(error_kind(head.status, &text)))
    }

    fn request(&mut self, call: Call<'_>) -> Request<BenchBody> {
        let mut uri = String::with_capacity(call.path.len() + call.query.len() + 1);
        uri.push_str(call.path);
        if !call.query.is_empty() {
            let _ = write!(uri, "?{}", call.query);
        }
        let mut builder = Request::builder().method(call.method.clone()).uri(uri).header(HOST, &self.target.host);
        if let Some(signer) = &mut self.signer {
            let hash = match (call.body.left(), self.target.payload) {
                (0, _) => EMPTY_SHA256.to_owned(),
                (_, Payload::Signed) => call.body.sha256_hex(),
                (_, Payload::Unsigned) => UNSIGNED_PAYLOAD.to_owned(),
            };
            let now = OffsetDateTime::now_utc();
            let signed = signer.sign(now, call.method.as_str(), &self.target.host, call.path, call.query, &hash);
            builder = builder
                .header("x-amz-content-sha256", hash)
                .header("x-amz-date", signed.date)
                .header(AUTHORIZATION, signed.authorization);
        }
        if call.method == Method::PUT || call.method == Method::POST {
            builder = builder.header(CONTENT_LENGTH, call.body.left());
        }
        if let Some((name, value)) = call.header {
            builder = builder.header(name, value);
        }
        builder.body(call.body).expect("paths are encoded and headers are ASCII")
    }

    async fn connected(&mut self) -> Result<&mut SendRequest<BenchBody>, Failure> {
        // A connection that the server closed between two requests shows here rather than as a failed request.
        let usable = match &mut self.sender {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            let sender = tokio::time::timeout(CONNECT_TIMEOUT, connect(&self.target))
                .await
                .map_err(|_| Failure::new("connect: timeout"))?
                .map_err(|error| Failure::new(format!("connect: {error:#}")))?;
            self.sender = Some(sender);
        }
        Ok(self.sender.as_mut().expect("connected above"))
    }
}

async fn connect(target: &Target) -> Result<SendRequest<BenchBody>> {
    let stream = TcpStream::connect(&target.address).await?;
    stream.set_nodelay(true)?;
    match &target.tls {
        None => handshake(stream).await,
        Some((connector, name)) => handshake(connector.connect(name.clone(), stream).await?).await,
    }
}

async fn handshake<I>(stream: I) -> Result<SendRequest<BenchBody>>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // The driver ends with its connection; what went wrong shows in the request.
    tokio::spawn(connection);
    Ok(sender)
}

/// Reads a body to its end and keeps at most `max` bytes of it.
async fn drain(mut body: Incoming, max: usize) -> Result<Bytes, Failure> {
    let mut kept = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        if let Some(data) = frame.data_ref() {
            let room = max.saturating_sub(kept.len());
            kept.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    Ok(kept.into())
}

fn broken(error: &hyper::Error) -> Failure {
    Failure::new(if error.is_incomplete_message() || error.is_body_write_aborted() {
        "connection closed".to_owned()
    } else {
        format!("http: {error}")
    })
}

fn error_kind(status: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    match element(&text, "Code") {
        Some(code) => format!("{} {code}", status.as_u16()),
        None => status.to_string(),
    }
}

/// The text of the first `<name>` in `xml`.
pub(super) fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let start = xml.find(&format!("<{name}>"))? + name.len() + 2;
    let len = xml[start..].find("</")?;
    Some(&xml[start..start + len])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_named_by_status_and_code() {
        let body = b"<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>m</Message></Error>";
        assert_eq!(error_kind(StatusCode::SERVICE_UNAVAILABLE, body), "503 SlowDown");
        assert_eq!(error_kind(StatusCode::NOT_FOUND, b""), "404 Not Found");
    }

    #[test]
    fn keys_are_encoded_as_s3_wants_them() {
        assert_eq!(encode_path("a b/ü+~"), "a%20b/%C3%BC%2B~");
        assert_eq!(encode_query("a/b"), "a%2Fb");
    }
}
