//! What a connection sends: mapped slices by splice, the rest by copying.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use holdfast_storage::io::IoFuture;
use holdfast_storage::mapping::splice::{Prepared, Splicer};
use holdfast_storage::mapping::{self, Located, Mapping};
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::{ConnMetrics, TURN_BYTES_MAX};
use crate::http::pace::{Pace, PaceGuard};

/// Mapped slices up to this are copied by the socket: measured to cost less than a detour through a pipe.
pub const COPY_MAX: usize = 64 << 10;

/// What is written from the mapping at a time when no pipe is to be had, or under TLS.
const COPY_TURN_BYTES: usize = 256 << 10;

/// Slices of one `sendmsg`; hyper hands over at most 64.
const SLICES_MAX: usize = 64;

/// How often one range may be evicted between its return to memory and its sending.
const REFRESHES_MAX: u32 = 16;

/// How long a range may take to come back into memory: a disk may hang without a word, and nobody else looks after a
/// client who waits for bytes.
const REFRESH_MAX: Duration = Duration::from_secs(120);

/// The state of sending.
pub(super) struct Out {
    splicer: Splicer,
    /// A range on its way back into memory.
    pub(super) refresh: Option<(IoFuture<io::Result<()>>, Located)>,
    /// The range that just came back, verified: it need only be resident still. Else connections that verify the same
    /// range would put it in question for each other again and again. Only until the peer has us wait: who knows what
    /// becomes of the range meanwhile.
    pub(super) fresh: Option<Located>,
    /// Refreshes since something was last sent, or the peer had us wait.
    pub(super) refreshes: u32,
    pub(super) turn_bytes: usize,
    pub(super) guard: PaceGuard,
    pub(super) metrics: Arc<ConnMetrics>,
}

/// What became of a write.
pub(super) enum Wrote {
    Bytes(usize),
    /// The peer does not take any more.
    Full,
    /// A range has to come back into memory first.
    Evicted,
}

impl Out {
    pub(super) fn new(pace: Pace, metrics: Arc<ConnMetrics>) -> Out {
        Out {
            splicer: Splicer::default(),
            refresh: None,
            fresh: None,
            refreshes: 0,
            turn_bytes: 0,
            guard: PaceGuard::new(pace),
            metrics,
        }
    }

    pub(super) fn send_plain(
        &mut self,
        stream: &TcpStream,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> io::Result<Wrote> {
        let (copied, spliced) = self.divide(slices)?;
        let mut done = 0;
        if copied > 0 {
            let slices = &slices[..copied.min(SLICES_MAX)];
            // A head goes into one packet with the beginning of its body.
            let more = spliced.is_some() && slices.len() == copied;
            match send_copied(stream, cx, slices, more)? {
                Wrote::Bytes(bytes) => done = bytes,
                full => return Ok(full),
            }
            self.metrics.copied_bytes.increment(done as u64);
            if !more || done < slices.iter().map(|slice| slice.len()).sum() {
                return Ok(Wrote::Bytes(done));
            }
        }
        let wrote = match spliced {
            Some(located) => self.send_spliced(stream, cx, &slices[copied], located),
            // Nothing that could be sent, or nothing to send.
            None if self.refresh.is_some() => return Ok(Wrote::Evicted),
            None => return Ok(Wrote::Bytes(0)),
        };
        self.splicer.rest();
        match wrote {
            Ok(Wrote::Bytes(bytes)) => Ok(Wrote::Bytes(done + bytes)),
            Ok(_) if done > 0 => Ok(Wrote::Bytes(done)),
            other => other,
        }
    }

    /// How many slices at the front are to be copied, and the slice after them if it is to be spliced. Both absent: the
    /// first slice is not resident, and a refresh of it was begun.
    fn divide(&mut self, slices: &[IoSlice<'_>]) -> io::Result<(usize, Option<Located>)> {
        for (index, slice) in slices.iter().enumerate() {
            let Some(located) = mapping::find(slice) else { continue };
            if slice.len() > COPY_MAX || (index == 0 && self.splicer.continues(&located)) {
                return Ok((index, Some(located)));
            }
            if !self.is_sendable(&located.mapping, &located.range) {
                if index == 0 {
                    self.begin_refresh(&located.mapping, located.range)?;
                }
                return Ok((index, None));
            }
            located.mapping.touched(located.range);
        }
        Ok((slices.len(), None))
    }

    /// Sends of one large mapped slice what the socket takes, up to the end of the turn.
    fn send_spliced(
        &mut self,
        stream: &TcpStream,
        cx: &mut Context<'_>,
        slice: &[u8],
        mut rest: Located,
    ) -> io::Result<Wrote> {
        let start = rest.range.start;
        while !rest.range.is_empty() && self.turn_bytes + ((rest.range.start - start) as usize) < TURN_BYTES_MAX {
            let done = (rest.range.start - start) as usize;
            let prepared = self.splicer.prepare(&rest);
            let needed = match prepared {
                Prepared::Filled => 0,
                Prepared::Empty(bytes) => bytes,
                Prepared::NoPipe => COPY_TURN_BYTES.min(slice.len() - done),
            };
            let needed = rest.range.start..rest.range.start + needed as u64;
            if !self.is_sendable(&rest.mapping, &needed) {
                if done == 0 {
                    self.begin_refresh(&rest.mapping, needed)?;
                    return Ok(Wrote::Evicted);
                }
                break;
            }
            let sent = match stream.poll_write_ready(cx) {
                Poll::Pending => None,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Ready(Ok(())) if prepared == Prepared::NoPipe => {
                    let part = &slice[done..done + (needed.end - needed.start) as usize];
                    let sent = stream.try_io(Interest::WRITABLE, || sendmsg(stream, &[IoSlice::new(part)], false));
                    if let Ok(bytes) = sent {
                        self.metrics.copied_bytes.increment(bytes as u64);
                        rest.mapping.touched(rest.range.start..rest.range.start + bytes as u64);
                    }
                    Some(sent)
                }
                Poll::Ready(Ok(())) => {
                    let sent = stream.try_io(Interest::WRITABLE, || self.splicer.send(stream.as_fd(), &rest));
                    if let Ok(bytes) = sent {
                        self.metrics.spliced_bytes.increment(bytes as u64);
                    }
                    Some(sent)
                }
            };
            match sent {
                Some(Ok(bytes)) => rest.range.start += bytes as u64,
                // Readiness is now cleared: the next `poll_write_ready` registers the task.
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Some(Err(error)) => return Err(error),
                None if done == 0 => return Ok(Wrote::Full),
                None => break,
            }
        }
        Ok(Wrote::Bytes((rest.range.start - start) as usize))
    }

    pub(super) fn send_tls(
        &mut self,
        stream: &mut TlsStream<TcpStream>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> io::Result<Wrote> {
        let Some(slice) = slices.iter().find(|slice| !slice.is_empty()) else {
            return Ok(Wrote::Bytes(0));
        };
        let part = &slice[..slice.len().min(COPY_TURN_BYTES)];
        let located = mapping::find(part);
        if let Some(Located { mapping, range }) = &located
            && !self.is_sendable(mapping, range)
        {
            self.begin_refresh(mapping, range.clone())?;
            return Ok(Wrote::Evicted);
        }
        match Pin::new(stream).poll_write(cx, part) {
            Poll::Pending => Ok(Wrote::Full),
            Poll::Ready(written) => {
                let written = written?;
                self.metrics.copied_bytes.increment(written as u64);
                if let Some(located) = located {
                    located.mapping.touched(located.range.start..located.range.start + written as u64);
                }
                Ok(Wrote::Bytes(written))
            }
        }
    }

    fn is_sendable(&self, mapping: &Arc<Mapping>, range: &Range<u64>) -> bool {
        let is_fresh = self.fresh.as_ref().is_some_and(|fresh| {
            Arc::ptr_eq(&fresh.mapping, mapping) && fresh.range.start <= range.start && range.end <= fresh.range.end
        });
        if is_fresh { mapping.is_resident(range.clone()) } else { mapping.is_sendable(range.clone()) }
    }

    fn begin_refresh(&mut self, mapping: &Arc<Mapping>, range: Range<u64>) -> io::Result<()> {
        self.metrics.refreshes.increment(1);
        self.refreshes += 1;
        if self.refreshes > REFRESHES_MAX {
            return Err(io::Error::other("the system evicts pages faster than they can be sent"));
        }
        let located = Located { mapping: Arc::clone(mapping), range: range.clone() };
        self.refresh = Some((Box::pin(in_time(mapping.refresh(range))), located));
        Ok(())
    }
}

async fn in_time(refresh: IoFuture<io::Result<()>>) -> io::Result<()> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "the disk gives nothing of what is to be sent");
    tokio::time::timeout(REFRESH_MAX, refresh).await.unwrap_or_else(|_| Err(late()))
}

/// Writes by copying, after waiting for the socket.
fn send_copied(stream: &TcpStream, cx: &mut Context<'_>, slices: &[IoSlice<'_>], more: bool) -> io::Result<Wrote> {
    loop {
        match stream.poll_write_ready(cx) {
            Poll::Pending => return Ok(Wrote::Full),
            Poll::Ready(ready) => ready?,
        }
        match stream.try_io(Interest::WRITABLE, || sendmsg(stream, slices, more)) {
            Ok(bytes) => return Ok(Wrote::Bytes(bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn sendmsg(stream: &TcpStream, slices: &[IoSlice<'_>], more: bool) -> io::Result<usize> {
    let more = if more { SendFlags::MORE } else { SendFlags::empty() };
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT | more;
    Ok(rustix::net::sendmsg(stream, slices, &mut SendAncillaryBuffer::default(), flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_range_that_does_not_come_back_cuts_the_connection() {
        assert!(in_time(Box::pin(async { Ok(()) })).await.is_ok());
        let hangs = tokio::time::timeout(REFRESH_MAX * 10, in_time(Box::pin(std::future::pending()))).await;
        let error = hangs.expect("it has an end").expect_err("nothing came back");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
