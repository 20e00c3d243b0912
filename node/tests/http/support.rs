//! A mapped segment, a server of its ranges, and a client that checks every byte.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
pub use holdfast_actors::wait::eventually;
use holdfast_node::http::{ConnInfo, DataPlane, HttpServer, Limits, RequestBody, ServerConfig};
use holdfast_storage::buf::{BufferPool, BufferPoolConfig};
use holdfast_storage::io::uring;
use holdfast_storage::mapping::Mapping;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Length of the segment that the tests serve.
pub const SEGMENT_BYTES: u64 = 80 << 20;

/// The tests of this program share pipes and counters, so that they run one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a test, alone, on a runtime of two threads.
pub fn run(test: impl Future<Output = ()>) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    sent_bytes();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test);
}

/// The byte of the segment at an offset: no two pages are alike.
pub fn byte_at(offset: u64) -> u8 {
    (offset ^ (offset >> 8).wrapping_mul(31) ^ (offset >> 16).wrapping_mul(17)) as u8
}

/// A segment file with its mapping.
pub struct Segment {
    pub file: std::fs::File,
    pub mapping: Arc<Mapping>,
    /// Held by every slice that is lent.
    pub pin: Arc<()>,
}

impl Segment {
    pub fn new() -> Segment {
        // On a disk: in memory nothing can be evicted.
        let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut contents = vec![0; SEGMENT_BYTES as usize];
        contents.iter_mut().enumerate().for_each(|(offset, byte)| *byte = byte_at(offset as u64));
        file.write_all_at(&contents, 0).unwrap();
        file.sync_all().unwrap();
        let mapping = Mapping::new(file.as_fd(), SEGMENT_BYTES).unwrap();
        Segment { file, mapping, pin: Arc::new(()) }
    }

    pub fn lend(&self, start: u64, len: u64) -> Bytes {
        self.mapping.bytes(start..start + len, self.pin.clone())
    }

    pub fn evict(&self) {
        rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }

    /// Slices that are lent and not given back.
    pub fn lent(&self) -> usize {
        Arc::strong_count(&self.pin) - 1
    }
}

/// A body of given slices with a known length.
pub struct Slices(pub VecDeque<Bytes>);

impl Slices {
    pub fn one(bytes: Bytes) -> Slices {
        Slices(VecDeque::from([bytes]))
    }
}

impl Body for Slices {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|bytes| bytes.len() as u64).sum())
    }
}

pub type Answer = BoxFuture<'static, Result<Response<Slices>, Infallible>>;

/// A service from a function.
#[derive(Clone)]
pub struct Handler<F>(pub F);

impl<F: Fn(Request<RequestBody>) -> Answer> hyper::service::Service<Request<RequestBody>> for Handler<F> {
    type Response = Response<Slices>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<RequestBody>) -> Answer {
        (self.0)(request)
    }
}

/// `/START/LEN` answers that range of the segment in one slice.
pub fn ranges(segment: &Arc<Segment>) -> Handler<impl Fn(Request<RequestBody>) -> Answer + Clone + Send + 'static> {
    let segment = segment.clone();
    Handler(move |request: Request<RequestBody>| {
        let (start, len) = range_of(request.uri().path());
        let body = Slices::one(segment.lend(start, len));
        Box::pin(async move { Ok(Response::new(body)) }) as Answer
    })
}

pub fn range_of(path: &str) -> (u64, u64) {
    let mut parts = path.trim_start_matches('/').split('/').map(|part| part.parse().unwrap());
    (parts.next().unwrap(), parts.next().unwrap())
}

/// Every way to serve, by name.
pub fn planes() -> Vec<(&'static str, DataPlane)> {
    let mut planes =
        vec![("per core", DataPlane::PerCore { threads: 2, rings: None }), ("multi thread", DataPlane::MultiThread)];
    if uring::probe().is_ok() {
        planes.push(("per core with rings", DataPlane::PerCore { threads: 2, rings: Some(pool()) }));
    }
    planes
}

pub fn pool() -> Arc<BufferPool> {
    BufferPool::new(BufferPoolConfig { large_count: 8, small_count: 8 }).unwrap()
}

/// The best way to serve.
pub fn best_plane() -> DataPlane {
    planes().pop().unwrap().1
}

pub fn config(data_plane: DataPlane, limits: Limits) -> ServerConfig {
    ServerConfig { addr: ([127, 0, 0, 1], 0).into(), data_plane, limits, tls: None }
}

pub fn start<F>(config: ServerConfig, handler: Handler<F>) -> HttpServer
where
    F: Fn(Request<RequestBody>) -> Answer + Clone + Send + 'static,
{
    HttpServer::start(config, move |_: ConnInfo| handler.clone()).unwrap()
}

/// Sends the head of a GET.
pub async fn ask(stream: &mut (impl AsyncWriteExt + Unpin), path: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await.unwrap();
}

/// Reads the head of an answer: status and content length.
pub async fn head(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(u16, u64)> {
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |len| len.parse().unwrap());
    Ok((status, length))
}

/// Reads `len` bytes and compares them with the segment from `start` on.
pub async fn expect_range(stream: &mut (impl AsyncRead + Unpin), start: u64, len: u64) {
    let mut buf = vec![0; 256 << 10];
    let mut at = start;
    while at < start + len {
        let part = buf.len().min((start + len - at) as usize);
        let read = stream.read(&mut buf[..part]).await.unwrap();
        assert!(read > 0, "the body ended at {at} of {start}+{len}");
        let wrong = buf[..read].iter().enumerate().find(|(index, byte)| **byte != byte_at(at + *index as u64));
        assert!(wrong.is_none(), "wrong byte at {}", at + wrong.unwrap().0 as u64);
        at += read as u64;
    }
}

/// GETs a range and checks it.
pub async fn get(stream: &mut TcpStream, start: u64, len: u64) {
    ask(stream, &format!("/{start}/{len}")).await;
    assert_eq!(head(stream).await.unwrap(), (200, len));
    expect_range(stream, start, len).await;
}

pub async fn connect(server: &HttpServer) -> TcpStream {
    TcpStream::connect(server.local_addr()).await.unwrap()
}

/// Connections that had an answer, and stay.
pub async fn served(server: &HttpServer, count: usize) -> Vec<TcpStream> {
    let mut places = vec![];
    for _ in 0..count {
        let mut stream = connect(server).await;
        ask(&mut stream, "/").await;
        assert_eq!(head(&mut stream).await.unwrap().0, 200);
        places.push(stream);
    }
    places
}

/// Bytes counted by the connections' writers since the last call, as (copied, spliced).
pub fn sent_bytes() -> (u64, u64) {
    static SNAPSHOTTER: OnceLock<Snapshotter> = OnceLock::new();
    let snapshotter = SNAPSHOTTER.get_or_init(|| {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        recorder.install().unwrap();
        snapshotter
    });
    // A snapshot sets the counters to zero.
    let counts = snapshotter.snapshot().into_vec();
    let count = |name| {
        let found = counts.iter().find(|(key, ..)| key.key().name() == name);
        found.map_or(0, |(.., value)| if let DebugValue::Counter(count) = value { *count } else { 0 })
    };
    (count("holdfast_http_copied_bytes_total"), count("holdfast_http_spliced_bytes_total"))
}
