//! One connection to a tracker or a storage.
//!
//! Strictly one request after the other: a storage that gets a second request before it answered the first may never
//! answer again. A connection is [`Connection::clean`] only between a reply that was read to its end and the next
//! request; whoever holds it when it is not clean, an abandoned future included, throws it away.
//!
//! Every wait has two limits: the idle timeout for one wait, and the overall timeout for all waits of an exchange
//! together, so that neither a silent nor a trickling server holds anybody up. Time that the caller spends between two
//! reads does not count.

use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use holdfast_protocol::tiers::BLOCK_BYTES_MIN;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::config::FastdfsConfig;
use super::failure::{Failure, Outcome};
use super::wire::{HEADER_BYTES, Header, status};

/// What a body is given out in: enough to keep a fast network busy, little enough to have many. Readers who begin at a
/// block get whole blocks by it, each in a buffer of its own, and have nothing to put together.
const PART_BYTES: usize = BLOCK_BYTES_MIN as usize;

/// How long to wait for a server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    connect: Duration,
    idle: Duration,
    overall: Duration,
}

impl Limits {
    pub(super) fn of(config: &FastdfsConfig) -> Self {
        Self { connect: config.connect_timeout, idle: config.idle_timeout, overall: config.overall_timeout }
    }

    /// How long a wait that moves no byte may take.
    pub(super) fn idle(&self) -> Duration {
        self.idle
    }

    /// How long all waits for one thing may take.
    pub(super) fn overall(&self) -> Duration {
        self.overall
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    limits: Limits,
    /// How much of the overall timeout is left for this exchange.
    left: Duration,
    /// Whether the next byte that comes will be the first of the reply to the next request.
    clean: bool,
    /// Whether nothing of the present reply has come.
    unanswered: bool,
    /// Bytes of a reply that came while the request was still being sent.
    early: BytesMut,
    /// What has come of the part of a body that is being read.
    part: BytesMut,
}

impl Connection {
    /// Connects to `host:port`.
    pub(super) async fn connect(address: &str, limits: Limits) -> Outcome<Self> {
        let unreachable = |error: String| Failure::Unreachable(format!("cannot connect: {error}"));
        let connecting = timeout(limits.connect, TcpStream::connect(address)).await;
        let stream = connecting
            .map_err(|_| unreachable(format!("no answer for {:?}", limits.connect)))?
            .map_err(|error| unreachable(error.to_string()))?;
        stream.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
        Ok(Self {
            stream,
            limits,
            left: limits.overall,
            clean: true,
            unanswered: true,
            early: BytesMut::new(),
            part: BytesMut::new(),
        })
    }

    /// The same for whoever uses it next. What arrives wakes the reactor that a socket is registered with: that of the
    /// thread that used it before would wake again and again, and have nothing to do.
    pub(super) fn here(self) -> io::Result<Self> {
        let stream = TcpStream::from_std(self.stream.into_std()?)?;
        Ok(Self { stream, ..self })
    }

    /// Whether another request may be sent.
    pub(super) fn clean(&self) -> bool {
        self.clean
    }

    /// Whether the server has not closed it, as far as is known without asking.
    pub(super) fn alive(&self) -> bool {
        // Anything but "nothing there" is an end, or bytes that nobody asked for.
        self.stream.try_read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends a request and reads its whole reply, of at most `body_bytes_max`.
    pub(super) async fn exchange(&mut self, frame: &[u8], body_bytes_max: usize) -> Outcome<Bytes> {
        self.begin();
        self.send(&mut &frame[..]).await?;
        self.reply(body_bytes_max).await
    }

    /// Sends a request whose reply may be large, and reads the reply's header: the length of the body, which is to be
    /// taken by [`Connection::read`].
    pub(super) async fn ask(&mut self, frame: &[u8]) -> Outcome<u64> {
        self.begin();
        self.send(&mut &frame[..]).await?;
        let bytes = self.reply_header().await?;
        self.clean = bytes == 0;
        Ok(bytes)
    }

    /// The next part of a body of which `left` bytes have not been given out: whole, and alone in its buffer. The last
    /// one makes the connection clean. Dropped, it has lost nothing.
    pub(super) async fn read(&mut self, left: u64) -> Outcome<Bytes> {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(PART_BYTES);
        if self.part.capacity() < count {
            debug_assert!(self.part.is_empty(), "parts of a body get no longer");
            self.part = BytesMut::with_capacity(count);
        }
        while self.part.len() < count {
            let wanted = count - self.part.len();
            let mut target = (&mut self.part).limit(wanted);
            let reading = self.stream.read_buf(&mut target);
            let got = wait(self.limits.idle, &mut self.left, "the rest of a file", reading).await?;
            if got == 0 {
                let missing = left - self.part.len() as u64;
                return Err(Failure::Broken(format!("it closed the connection {missing} bytes before the end")));
            }
        }
        self.clean = count as u64 == left;
        Ok(std::mem::take(&mut self.part).freeze())
    }

    /// Starts a request whose body is sent by [`Connection::send`]; [`Connection::reply`] ends it.
    pub(super) fn begin(&mut self) {
        debug_assert!(self.clean, "a request is sent after the reply to the one before");
        self.clean = false;
        self.unanswered = true;
        self.left = self.limits.overall;
    }

    /// Sends a part of a request. A server that refuses does so before it has everything, so the reply is watched for.
    pub(super) async fn send(&mut self, data: &mut impl Buf) -> Outcome<()> {
        while data.has_remaining() {
            let (reader, mut writer) = self.stream.split();
            let mut first = [0; HEADER_BYTES];
            let step = async {
                tokio::select! {
                    biased;
                    ready = reader.readable() => ready.map(|()| None),
                    written = writer.write_buf(data) => written.map(Some),
                }
            };
            let error = match wait(self.limits.idle, &mut self.left, "room for more", step).await {
                Ok(Some(0)) => Failure::Closed("it takes no more bytes".into()),
                Ok(Some(_)) => continue,
                // Something is there to be read, or was: the reply, or the end.
                Ok(None) => match reader.try_read(&mut first) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(error) => Failure::Closed(error.to_string()),
                    Ok(0) => Failure::Closed("in the middle of a request".into()),
                    Ok(count) => {
                        self.early.extend_from_slice(&first[..count]);
                        self.unanswered = false;
                        return Err(self.refusal().await);
                    }
                },
                Err(Failure::Broken(text)) => return Err(Failure::Broken(text)),
                Err(error) => error,
            };
            // The reason may still be readable behind the end.
            return Err(match self.refusal().await {
                refusal @ Failure::Status(_) => refusal,
                _ => error,
            });
        }
        Ok(())
    }

    /// The reply that came before the request was sent.
    async fn refusal(&mut self) -> Failure {
        match self.reply_header().await {
            Ok(_) => Failure::Broken("it answers before it has everything".into()),
            // Its idea of what comes next on this connection is not ours.
            Err(failure) => {
                self.clean = false;
                failure
            }
        }
    }

    /// Reads the whole reply to what was sent, of at most `body_bytes_max`.
    pub(super) async fn reply(&mut self, body_bytes_max: usize) -> Outcome<Bytes> {
        let bytes = self.reply_header().await?;
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= body_bytes_max).ok_or_else(|| {
            super::wire::WireError::new(format!("a reply of {bytes} bytes where {body_bytes_max} are the most"))
        })?;
        let mut body = BytesMut::with_capacity(bytes);
        while body.len() < bytes {
            let part = self.read((bytes - body.len()) as u64).await?;
            body.extend_from_slice(&part);
        }
        self.clean = true;
        Ok(body.freeze())
    }

    async fn reply_header(&mut self) -> Outcome<u64> {
        let mut header = [0; HEADER_BYTES];
        let mut filled = self.early.len().min(HEADER_BYTES);
        header[..filled].copy_from_slice(&self.early[..filled]);
        self.early.clear();
        while filled < HEADER_BYTES {
            let reading = self.stream.read(&mut header[filled..]);
            match wait(self.limits.idle, &mut self.left, "an answer", reading).await {
                Ok(0) if self.unanswered => return Err(Failure::Closed("without an answer".into())),
                Ok(0) => return Err(Failure::Broken("it closed the connection within an answer".into())),
                Ok(count) => filled += count,
                Err(Failure::Closed(text)) if !self.unanswered => return Err(Failure::Broken(text)),
                Err(failure) => return Err(failure),
            }
            self.unanswered = false;
        }
        let header = Header::decode_reply(header)?;
        match header.status {
            status::OK => Ok(header.body_bytes),
            refused => {
                // It closes the connection after this one.
                self.clean = refused != status::INVALID;
                Err(Failure::Status(refused))
            }
        }
    }
}

/// Waits for a server, for at most `idle` and what is `left` of the exchange's time. An end of the connection is
/// [`Failure::Closed`], patience at its end [`Failure::Broken`].
async fn wait<T>(
    idle: Duration,
    left: &mut Duration,
    what: &str,
    work: impl Future<Output = io::Result<T>>,
) -> Outcome<T> {
    let limit = idle.min(*left);
    let began = Instant::now();
    let done = timeout(limit, work).await;
    *left = left.saturating_sub(began.elapsed());
    match done {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Failure::Closed(error.to_string())),
        Err(_) => Err(Failure::Broken(format!("{what} did not come for {limit:?}"))),
    }
}
