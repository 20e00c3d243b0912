//! Closing a connection whose request was answered before all of it had come.
//!
//! A socket that is closed with unread bytes, or that gets some afterwards, sends a reset, and a reset takes back what
//! the peer has not read yet: the client would see a broken connection where there was an answer. So the sending side
//! is closed first, and what still comes is thrown away until the client closes too, within limits of time and bytes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Sleep;

/// How long a closing connection waits for its client; a round trip is what it needs.
const LINGER_TIME: Duration = Duration::from_secs(2);

/// Bytes that are thrown away at most: a client that sends more has not looked for an answer.
const LINGER_BYTES_MAX: usize = 16 << 20;

/// Whether a body of a connection was given up before its end. Shared by the connection and its bodies.
#[derive(Debug, Clone, Default)]
pub(super) struct Unread(Arc<AtomicBool>);

impl Unread {
    pub(super) fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn noted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The end of one connection.
#[derive(Default)]
pub(super) struct Linger {
    unread: Unread,
    deadline: Option<Pin<Box<Sleep>>>,
    discarded_bytes: usize,
}

impl Linger {
    pub(super) fn new(unread: Unread) -> Linger {
        Linger { unread, ..Linger::default() }
    }

    /// Ready when the connection may be closed, its sending side being closed already.
    pub(super) fn poll_done(&mut self, cx: &mut Context<'_>, mut io: Pin<&mut impl AsyncRead>) -> Poll<()> {
        if !self.unread.noted() {
            return Poll::Ready(());
        }
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER_TIME)));
        if deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut scrap = [0; 16 << 10];
        while self.discarded_bytes < LINGER_BYTES_MAX {
            let mut buf = ReadBuf::new(&mut scrap);
            match ready!(io.as_mut().poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => self.discarded_bytes += buf.filled().len(),
                // The client has closed too, or broken the connection.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}
