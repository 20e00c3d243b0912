//! One connection to a name server or broker: requests go out as they come, answers are matched by number.
//!
//! A connection that fails once is over: everything under way on it ends with [`EventError::Unavailable`], and
//! [`Connections`] makes another one for who asks next. A request that is given up (its deadline passed, its future
//! dropped) leaves the connection as it is, and its answer is thrown away, if anything came since the request was made.
//! A connection that has been silent since then is given up with it: the other end may be gone without a word. What it
//! has not taken yet is thrown away, here and in the kernel, which would otherwise go on sending it for minutes: it
//! would arrive behind its repetition, and behind what followed that.
//!
//! **Bounds.** [`REQUESTS_MAX`] requests wait to be written; more wait for their turn, within their deadlines.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use holdfast_actors::ports::events::{EventError, EventResult};
use parking_lot::Mutex;
use ring::hmac;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout_at};

use super::options::{Credentials, RocketMqOptions};
use super::wire::Command;

/// Requests that wait to be written.
const REQUESTS_MAX: usize = 256;
/// How long a server that could not be connected to is not tried again: many messages wait for one broker.
const FAILED_FOR: Duration = Duration::from_millis(500);
/// Bytes that are asked for at once.
const READ_BYTES: usize = 64 << 10;

type Waiting = Arc<Mutex<Option<HashMap<i32, oneshot::Sender<Command>>>>>;

/// An open connection.
struct Connection {
    /// Frames, by the numbers of their requests.
    out: mpsc::Sender<(i32, Bytes)>,
    next: AtomicI32,
    /// `None` once the connection is over.
    waiting: Waiting,
    over: Arc<AtomicBool>,
    /// When bytes came last, if any did.
    heard: Arc<Mutex<Option<Instant>>>,
    opened: Instant,
    is_plain: bool,
    /// End the two tasks, and with them the socket.
    ends: [AbortHandle; 2],
    _tasks: JoinSet<()>,
}

impl Connection {
    async fn open(addr: &str, options: &RocketMqOptions) -> EventResult<Self> {
        let unreachable =
            |error: &dyn std::fmt::Display| EventError::Unavailable(format!("connect to {addr}: {error}"));
        let stream = TcpStream::connect(addr).await.map_err(|error| unreachable(&error))?;
        stream.set_nodelay(true).map_err(|error| unreachable(&error))?;
        // Closing throws away what the other end has not taken yet. Whoever waits for an answer is not closed upon.
        stream.set_zero_linger().map_err(|error| unreachable(&error))?;
        let Some(tls) = &options.tls else { return Ok(Self { is_plain: true, ..Self::over(stream) }) };
        let stream = tls.connect(addr, stream).await.map_err(|fault| unreachable(&fault))?;
        Ok(Self::over(stream))
    }

    fn over(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (mut reads, mut writes) = tokio::io::split(stream);
        let (out, mut queue) = mpsc::channel::<(i32, Bytes)>(REQUESTS_MAX);
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let over = Arc::new(AtomicBool::new(false));
        let end = |waiting: &Waiting, over: &AtomicBool| {
            over.store(true, Ordering::Release);
            // Dropping the senders tells who waits.
            waiting.lock().take();
        };
        let mut tasks = JoinSet::new();
        let (ended, flag) = (waiting.clone(), over.clone());
        let writer = tasks.spawn(async move {
            while let Some((opaque, frame)) = queue.recv().await {
                // Who gave it up may have asked once more, behind it.
                let is_wanted = ended.lock().as_ref().is_some_and(|waiting| waiting.contains_key(&opaque));
                if !is_wanted {
                    continue;
                }
                if writes.write_all(&frame).await.is_err() || writes.flush().await.is_err() {
                    break;
                }
            }
            end(&ended, &flag);
        });
        let (answers, flag) = (waiting.clone(), over.clone());
        let heard = Arc::new(Mutex::new(None));
        let hear = heard.clone();
        let reader = tasks.spawn(async move {
            let mut buffer = BytesMut::with_capacity(READ_BYTES);
            while let Ok(1..) = reads.read_buf(&mut buffer).await {
                *hear.lock() = Some(Instant::now());
                loop {
                    match Command::decode(&mut buffer) {
                        Ok(Some(answer)) if answer.is_answer => {
                            let taker = answers.lock().as_mut().and_then(|waiting| waiting.remove(&answer.opaque));
                            // Nobody: it was given up.
                            if let Some(taker) = taker {
                                taker.send(answer).ok();
                            }
                        }
                        // Brokers tell clients of changes in groups, which this one is not concerned with.
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(error) => {
                            tracing::warn!(%error, "a connection to RocketMQ is given up");
                            end(&answers, &flag);
                            return;
                        }
                    }
                }
                buffer.reserve(READ_BYTES);
            }
            end(&answers, &flag);
        });
        Self {
            out,
            next: AtomicI32::new(1),
            waiting,
            over,
            heard,
            opened: Instant::now(),
            is_plain: false,
            ends: [writer, reader],
            _tasks: tasks,
        }
    }

    /// Gives it up if nothing came since `asked`.
    fn doubt(&self, asked: Instant) {
        if self.heard.lock().unwrap_or(self.opened) < asked {
            self.over.store(true, Ordering::Release);
            self.waiting.lock().take();
            self.ends.iter().for_each(AbortHandle::abort);
        }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    async fn call(&self, mut command: Command) -> EventResult<Command> {
        // RocketMQ ends connections that are not encrypted without a word, where it takes no others.
        let broken = || {
            let hint =
                if self.is_plain && self.heard.lock().is_none() { "; does it want TLS (events.tls)?" } else { "" };
            EventError::Unavailable(format!("the connection broke{hint}"))
        };
        command.opaque = self.next.fetch_add(1, Ordering::Relaxed) & i32::MAX;
        let opaque = command.opaque;
        let (taker, answer) = oneshot::channel();
        self.waiting.lock().as_mut().ok_or_else(broken)?.insert(opaque, taker);
        let _given_up = GiveUp(&self.waiting, opaque);
        self.out.send((opaque, command.encode())).await.map_err(|_| broken())?;
        answer.await.map_err(|_| broken())
    }
}

/// Takes a request off the list when its caller goes.
struct GiveUp<'a>(&'a Waiting, i32);

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.0.lock().as_mut() {
            waiting.remove(&self.1);
        }
    }
}

/// What is known of the way to a server; held while a connection is made.
#[derive(Default)]
struct Way {
    open: Option<Arc<Connection>>,
    /// Until when nobody tries again, and why.
    failed: Option<(Instant, String)>,
}

type Slot = Arc<tokio::sync::Mutex<Way>>;

/// One connection to each server that was asked for.
pub(super) struct Connections {
    options: RocketMqOptions,
    open: Mutex<HashMap<String, Slot>>,
}

impl Connections {
    pub(super) fn new(options: RocketMqOptions) -> Self {
        Self { options, open: Mutex::default() }
    }

    pub(super) fn options(&self) -> &RocketMqOptions {
        &self.options
    }

    /// Sends a request to the server at `addr` and waits for the answer, whatever it says.
    ///
    /// # Errors
    /// [`EventError::Unavailable`], [`EventError::TimedOut`].
    pub(super) async fn call(&self, addr: &str, mut command: Command, deadline: Instant) -> EventResult<Command> {
        if let Some(credentials) = &self.options.credentials {
            sign(&mut command, credentials);
        }
        let slot = self.slot(addr);
        let (asked, mut used) = (Instant::now(), None);
        let call = async {
            let connection = self.connection(addr, &slot).await?;
            used.insert(connection).call(command).await
        };
        match timeout_at(deadline, call).await {
            Ok(answer) => answer,
            Err(_) => {
                if let Some(connection) = used {
                    connection.doubt(asked);
                }
                Err(EventError::TimedOut(format!("no answer from {addr}")))
            }
        }
    }

    /// The way to a server. With a new one those go that lead nowhere any more: brokers may come back elsewhere.
    fn slot(&self, addr: &str) -> Slot {
        let mut open = self.open.lock();
        if let Some(slot) = open.get(addr) {
            return slot.clone();
        }
        let leads_nowhere = |way: &Way| {
            way.open.as_ref().is_none_or(|connection| connection.is_over())
                && way.failed.as_ref().is_none_or(|(until, _)| *until <= Instant::now())
        };
        // Whoever is about to use one has it already.
        let is_in_use = |slot: &Slot| Arc::strong_count(slot) > 1;
        open.retain(|_, slot| is_in_use(slot) || !slot.try_lock().is_ok_and(|way| leads_nowhere(&way)));
        open.entry(addr.to_owned()).or_default().clone()
    }

    /// The connection to a server. Who comes while one is being made waits for that one, and shares its failure for a
    /// moment.
    async fn connection(&self, addr: &str, slot: &Slot) -> EventResult<Arc<Connection>> {
        let mut way = slot.lock().await;
        if let Some(open) = way.open.as_ref().filter(|open| !open.is_over()) {
            return Ok(open.clone());
        }
        if let Some((_, why)) = way.failed.as_ref().filter(|(until, _)| Instant::now() < *until) {
            return Err(EventError::Unavailable(why.clone()));
        }
        way.failed = None;
        let made = tokio::time::timeout(self.options.connect_timeout, Connection::open(addr, &self.options)).await;
        match made.unwrap_or_else(|_| Err(EventError::Unavailable(format!("connect to {addr}: no answer in time")))) {
            Ok(made) => Ok(way.open.insert(Arc::new(made)).clone()),
            Err(error) => {
                let why = match &error {
                    EventError::Unavailable(why) => why.clone(),
                    other => other.to_string(),
                };
                way.failed = Some((Instant::now() + FAILED_FOR, why));
                Err(error)
            }
        }
    }

    /// Ends everything.
    pub(super) fn close(&self) {
        self.open.lock().clear();
    }
}

/// Signs as RocketMQ's ACL wants it: all fields' values in the order of their names, then the body.
fn sign(command: &mut Command, credentials: &Credentials) {
    command.fields.insert("AccessKey".into(), credentials.access_key.clone());
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, credentials.secret_key.expose().as_bytes());
    let mut signed = hmac::Context::with_key(&key);
    for value in command.fields.values() {
        signed.update(value.as_bytes());
    }
    signed.update(&command.body);
    command.fields.insert("Signature".into(), BASE64_STANDARD.encode(signed.sign()));
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use holdfast_actors::wait::eventually;

    use super::super::options::Secret;
    use super::*;

    #[test]
    fn signatures_are_those_of_the_java_client() {
        // printf 'RocketMQvaluebody' | openssl dgst -sha1 -hmac 12345678 -binary | base64
        let credentials = Credentials { access_key: "RocketMQ".into(), secret_key: Secret::new("12345678".into()) };
        let mut command = Command::new(1).field("b", "value").body(&b"body"[..]);
        sign(&mut command, &credentials);
        assert_eq!(command.fields["Signature"], SIGNATURE);
    }

    /// Answers the next request, and gives its code.
    async fn serve_one(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> i32 {
        let mut buffer = BytesMut::new();
        let request = loop {
            if let Some(request) = Command::decode(&mut buffer).expect("a frame") {
                break request;
            }
            assert_ne!(stream.read_buf(&mut buffer).await.expect("a request"), 0, "it ended");
        };
        let answer = Command { opaque: request.opaque, is_answer: true, ..Command::new(0) };
        stream.write_all(&answer.encode()).await.expect("it is read");
        request.code
    }

    #[tokio::test]
    async fn request_that_was_given_up_before_it_was_begun_is_not_sent() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let connection = Connection::over(ours);
        // Nothing else runs between the two.
        assert!(connection.call(Command::new(310)).now_or_never().is_none());
        let both = async { tokio::join!(connection.call(Command::new(105)), serve_one(&mut theirs)) };
        let both = tokio::time::timeout(Duration::from_secs(60), both).await;
        let (answer, served) = both.expect("the second one is answered");
        answer.expect("an answer");
        assert_eq!(served, 105);
    }

    #[tokio::test]
    async fn brokers_that_come_back_elsewhere_each_time_leave_nothing_behind() {
        let connections = Connections::new(RocketMqOptions::new(Vec::new()));
        for _ in 0..5 {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
            let addr = listener.local_addr().expect("an address").to_string();
            let server = async {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                serve_one(&mut stream).await;
            };
            let soon = Instant::now() + Duration::from_secs(60);
            let (answer, ()) = tokio::join!(connections.call(&addr, Command::new(105), soon), server);
            answer.expect("an answer");
            let slot = connections.slot(&addr);
            let open = slot.lock().await.open.clone().expect("a connection");
            eventually("the server is gone", || open.is_over()).await;
        }
        assert_eq!(connections.open.lock().len(), 1);
    }

    /// Or it would be published behind its repetition, and behind what followed that.
    #[tokio::test]
    async fn request_that_was_given_up_does_not_arrive_later() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let addr = listener.local_addr().expect("an address").to_string();
        let connections = Connections::new(RocketMqOptions::new(Vec::new()));
        let server = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            serve_one(&mut stream).await;
            stream
        };
        let soon = Instant::now() + Duration::from_secs(60);
        let (answer, mut stream) = tokio::join!(connections.call(&addr, Command::new(105), soon), server);
        answer.expect("an answer");
        // More than both kernels take, so that a part of it is here when it is given up.
        let body = vec![0_u8; 32 << 20];
        let length = body.len();
        let deadline = Instant::now() + Duration::from_millis(500);
        let given_up = connections.call(&addr, Command::new(310).body(body), deadline).await;
        assert!(matches!(given_up, Err(EventError::TimedOut(_))), "{given_up:?}");
        let mut arrived = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut arrived)).await;
        // A reset is as good an end as any.
        drop(read.expect("the connection ends"));
        assert!(arrived.len() < length, "all of it arrived");
    }

    const SIGNATURE: &str = "myEEG8JbjNClR5GvhCh3dT9/Zx4=";
}
