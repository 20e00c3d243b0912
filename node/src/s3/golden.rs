//! The front end as its clients meet it: signed HTTP requests against the whole service, over SQLite in a temporary
//! directory and chunks in memory. What is expected is what the documentation of S3 says.

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use futures::future::BoxFuture;
use holdfast_actors::flow::cold::read::{ColdReadSettings, ColdReads};
use holdfast_actors::ports::SystemClock;
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::metadata::{AccessKey, User};
use holdfast_actors::ports::tiers::{ColdTier, TierError, TierResult, Tiers};
use holdfast_actors::ports::{ChunkStore, MetadataStore, Outbox, TierLedger};
use holdfast_actors::wait::until;
use holdfast_protocol::TierName;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use ring::hmac;
use s3s::Body;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;
use zeroize::Zeroizing;

use super::S3Front;
use super::auth::OpenSecretError;
use super::http_service::{S3HttpOptions, S3HttpService};
use crate::locks::InProcessLocks;
use crate::metadata::sqlite::{SqliteMetadataStore, SqliteOptions};

mod classes;
mod copies;
mod documents;
mod lifecycle;
mod listings;
mod objects;
mod restores;
mod unconfigured;
mod uploads;
mod versions;

const REGION: &str = "us-east-1";

/// Tiers of which nothing but the names is there: the front end never asks for more.
struct NamedTiers;

impl Tiers for NamedTiers {
    fn tier(&self, name: &TierName) -> TierResult<Arc<dyn ColdTier>> {
        Err(TierError::Denied(format!("{name} is but a name")))
    }

    fn names(&self) -> Vec<TierName> {
        ["FASTDFS", "OSS"].iter().map(|name| name.parse().unwrap()).collect()
    }
}

/// A front end with the buckets and users of a test.
struct World {
    service: S3HttpService,
    metadata: Arc<dyn MetadataStore>,
    ledger: Arc<dyn TierLedger>,
    outbox: Arc<dyn Outbox>,
    chunks: Arc<MemoryChunkStore>,
    _directory: tempfile::TempDir,
}

impl World {
    /// With users `alice` (who owns `bucket`) and `bob`, whose access keys and secrets are their names.
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metadata.sqlite");
        let store = Arc::new(SqliteMetadataStore::open(&path, SqliteOptions::default()).await.unwrap());
        let metadata: Arc<dyn MetadataStore> = store.clone();
        for name in ["alice", "bob"] {
            let user = User { name: name.into(), admin: false, enabled: true, created_ms: 0 };
            metadata.create_user(user.clone()).await.unwrap();
            let key = AccessKey {
                access_key: name.into(),
                sealed_secret: name.into(),
                user,
                enabled: true,
                description: String::new(),
                created_ms: 0,
            };
            metadata.create_key(key).await.unwrap();
        }
        let chunks = Arc::new(MemoryChunkStore::new());
        let front = S3Front {
            metadata: Arc::clone(&metadata),
            chunks: Arc::clone(&chunks) as Arc<dyn ChunkStore>,
            cold: Arc::new(ColdReads::new(Arc::new(NamedTiers), ColdReadSettings::default())),
            locks: Arc::new(InProcessLocks::new()),
            clock: Arc::new(SystemClock),
            region: REGION.into(),
            events_from: Some("node".into()),
            tiers: Arc::new(NamedTiers),
            lifecycle: Arc::default(),
        };
        let opener = |sealed: &[u8], _: &str| -> Result<Zeroizing<String>, OpenSecretError> {
            Ok(Zeroizing::new(String::from_utf8_lossy(sealed).into_owned()))
        };
        let (kept, clock) = (Arc::clone(&metadata), Arc::new(SystemClock));
        let service = S3HttpService::new(front, metadata, Arc::new(opener), clock, S3HttpOptions::default());
        let (ledger, outbox) = (store.clone(), store);
        let world = Self { service, metadata: kept, ledger, outbox, chunks, _directory: directory };
        world.put("/bucket").send().await.expect(200);
        world
    }

    fn request(&self, method: &'static str, target: &str) -> Call<'_> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Call {
            world: self,
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            user: Some("alice"),
            headers: vec![],
            unsigned: vec![],
            body: vec![],
            payload: Payload::Signed,
            meanwhile: None,
        }
    }

    fn get(&self, target: &str) -> Call<'_> {
        self.request("GET", target)
    }

    fn head(&self, target: &str) -> Call<'_> {
        self.request("HEAD", target)
    }

    fn put(&self, target: &str) -> Call<'_> {
        self.request("PUT", target)
    }

    fn post(&self, target: &str) -> Call<'_> {
        self.request("POST", target)
    }

    fn delete(&self, target: &str) -> Call<'_> {
        self.request("DELETE", target)
    }

    /// Waits until background deletions have left exactly `expected` chunks.
    async fn assert_chunks(&self, expected: usize) {
        let chunks = async || self.chunks.list(None, 1000).len();
        until(&format!("there are {expected} chunks"), chunks, |found| *found == expected).await;
    }

    async fn version_of(&self, body: &str) -> String {
        self.put("/bucket/k").body(body).send().await.expect(200).header("x-amz-version-id")
    }

    async fn enable_versioning(&self) {
        let xml = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        self.put("/bucket?versioning").body(xml).send().await.expect(200);
    }
}

/// How the body is signed.
#[derive(Clone, Copy)]
enum Payload {
    /// Its SHA-256 is in the signature.
    Signed,
    /// The SHA-256 of something else is.
    WronglySigned,
    /// `aws-chunked` with an unsigned trailer, as SDKs send by default.
    Trailer(&'static str, &'static str),
    /// `aws-chunked` as the test framed it; its kind.
    Framed(&'static str),
}

/// A request being put together.
struct Call<'a> {
    world: &'a World,
    method: &'static str,
    path: String,
    query: String,
    user: Option<&'static str>,
    headers: Vec<(&'static str, String)>,
    unsigned: Vec<(&'static str, String)>,
    body: Vec<u8>,
    payload: Payload,
    meanwhile: Option<BoxFuture<'static, ()>>,
}

impl Call<'_> {
    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// A header that the signature does not cover.
    fn unsigned(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.unsigned.push((name, value.into()));
        self
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    fn payload(mut self, payload: Payload) -> Self {
        self.payload = payload;
        self
    }

    fn user(mut self, user: Option<&'static str>) -> Self {
        self.user = user;
        self
    }

    /// What happens before the body comes: when it is asked for, the request was decided about.
    fn meanwhile(mut self, happens: impl Future<Output = ()> + Send + 'static) -> Self {
        self.meanwhile = Some(Box::pin(happens));
        self
    }

    async fn send(self) -> Answer {
        let (body, sha256, mut extra) = match self.payload {
            Payload::Signed => {
                let sha256 = hex::encode(Sha256::digest(&self.body));
                (self.body, sha256, vec![])
            }
            Payload::WronglySigned => (self.body, hex::encode(Sha256::digest(b"something else")), vec![]),
            Payload::Framed(kind) => (self.body, kind.to_owned(), vec![("content-encoding", "aws-chunked".to_owned())]),
            Payload::Trailer(name, value) => {
                let mut framed = Vec::new();
                for chunk in self.body.chunks(65_536) {
                    framed.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                    framed.extend(chunk);
                    framed.extend(b"\r\n");
                }
                framed.extend(format!("0\r\n{name}:{value}\r\n\r\n").into_bytes());
                let extra = vec![
                    ("content-encoding", "aws-chunked".to_owned()),
                    ("x-amz-decoded-content-length", self.body.len().to_string()),
                    ("x-amz-trailer", name.to_owned()),
                ];
                (framed, "STREAMING-UNSIGNED-PAYLOAD-TRAILER".to_owned(), extra)
            }
        };
        extra.extend(self.headers);
        extra.push(("host", "127.0.0.1:9000".to_owned()));
        if !body.is_empty() || self.method == "PUT" {
            extra.push(("content-length", body.len().to_string()));
        }
        if let Some(user) = self.user {
            let now = OffsetDateTime::now_utc()
                .format(format_description!("[year][month][day]T[hour][minute][second]Z"))
                .unwrap();
            extra.push(("x-amz-date", now));
            extra.push(("x-amz-content-sha256", sha256));
            let authorization = sign(user, self.method, &self.path, &self.query, &extra);
            extra.push(("authorization", authorization));
        }
        let target = if self.query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, self.query) };
        let body = match self.meanwhile {
            None => Body::from(Bytes::from(body)),
            Some(meanwhile) => {
                let piece = async move {
                    meanwhile.await;
                    Ok::<_, std::io::Error>(Frame::data(Bytes::from(body)))
                };
                Body::http_body_unsync(StreamBody::new(Box::pin(futures::stream::once(piece))))
            }
        };
        let mut request = Request::builder().method(self.method).uri(target).body(body).unwrap();
        for (name, value) in extra.into_iter().chain(self.unsigned) {
            request.headers_mut().insert(HeaderName::from_static(name), HeaderValue::try_from(value).unwrap());
        }
        let (head, body) = self.world.service.handle(request).await.into_parts();
        let body = body.collect().await.map(|collected| collected.to_bytes());
        Answer { status: head.status, headers: head.headers, body }
    }
}

/// Signature version 4, as its documentation describes it.
fn sign(user: &str, method: &str, path: &str, query: &str, headers: &[(&str, String)]) -> String {
    let mut headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.trim())).collect();
    headers.sort_unstable();
    let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let find = |wanted: &str| headers.iter().find(|(name, _)| *name == wanted).unwrap().1;
    let mut pairs: Vec<String> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| if pair.contains('=') { pair.to_owned() } else { format!("{pair}=") })
        .collect();
    pairs.sort_unstable();
    let canonical =
        format!("{method}\n{path}\n{}\n{lines}\n{names}\n{}", pairs.join("&"), find("x-amz-content-sha256"));
    let date = find("x-amz-date");
    let scope = format!("{}/{REGION}/s3/aws4_request", &date[..8]);
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex::encode(Sha256::digest(canonical)));
    let step =
        |key: &[u8], data: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data.as_bytes()).as_ref().to_vec();
    let key = ["s3", "aws4_request"]
        .iter()
        .fold(step(&step(format!("AWS4{user}").as_bytes(), &date[..8]), REGION), |key, data| step(&key, data));
    let signature = hex::encode(step(&key, &to_sign));
    format!("AWS4-HMAC-SHA256 Credential={user}/{scope}, SignedHeaders={names}, Signature={signature}")
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Result<Bytes, s3s::StdError>,
}

impl Answer {
    #[track_caller]
    fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }

    /// An error of this status and code.
    #[track_caller]
    fn expect_error(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status.as_u16(), self.tag("Code").as_str()), (status, code), "{self:?}");
        self
    }

    #[track_caller]
    fn body(&self) -> &[u8] {
        self.body.as_ref().unwrap()
    }

    #[track_caller]
    fn text(&self) -> &str {
        std::str::from_utf8(self.body()).unwrap()
    }

    #[track_caller]
    fn header(&self, name: &str) -> String {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}"));
        value.to_str().unwrap().to_owned()
    }

    /// The text of the first element of this name; empty if there is none.
    fn tag(&self, name: &str) -> String {
        self.tags(name).into_iter().next().unwrap_or_default()
    }

    /// The texts of all elements of this name.
    fn tags(&self, name: &str) -> Vec<String> {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        self.text()
            .split(&open)
            .skip(1)
            .map(|rest| rest.split(&close).next().unwrap_or_default().replace("&quot;", "\""))
            .collect()
    }
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn md5_hex(bytes: &[u8]) -> String {
    hex::encode(md5::Md5::digest(bytes))
}

fn crc32(bytes: &[u8]) -> String {
    base64((crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, bytes) as u32).to_be_bytes())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ (i >> 10) as u8).collect()
}

/// Every operation that is mapped is in the table of operations as supported, and the other way round.
#[test]
fn operations_of_the_table_are_those_of_the_service() {
    let mut mapped: Vec<String> = super::service::IMPLEMENTED
        .iter()
        .map(|method| {
            let name: String = method.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
            name
        })
        .collect();
    mapped.sort();
    // A form upload becomes a PutObject before it reaches the trait.
    let supported: Vec<String> = super::operations::OPERATIONS
        .iter()
        .filter(|operation| operation.supported && operation.name != "PostObject")
        .map(|operation| operation.name.to_owned())
        .collect();
    assert_eq!(mapped, supported);
}
