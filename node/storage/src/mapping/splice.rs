//! Sending ranges of a mapped segment to a socket without copying them: file → pipe → socket by `splice(2)`.
//!
//! Pipes are leased from a pool of the process while a slice is being sent. What the socket did not take stays in the
//! pipe and belongs to the slice at hand: the connection keeps the [`Splicer`] between its turns and goes on at the
//! same place. A pipe that is given up with bytes in it is closed, so that no connection ever finds bytes of another.
//!
//! When all pipes are leased (each slow reader may hold one), [`Splicer::prepare`] says so and the caller writes from
//! the mapping instead: slower, never wrong, never waiting.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::pipe::{PipeFlags, SpliceFlags};

use crate::mapping::Located;

/// Bytes that a pipe is asked to hold: measured to be the best on loopback, and what an ordinary user may ask for.
pub const PIPE_BYTES: usize = 1 << 20;

/// Pipes of a process. Each takes two descriptors; 64 MiB of such pipes is what the kernel grants a user without
/// privileges before it makes them smaller, which [`Pipe::open`] accepts.
const PIPES_MAX: usize = 256;

/// Idle pipes that are kept.
const PIPES_IDLE_MAX: usize = 64;

/// The request for what a socket has not got rid of: the same number on x86-64, ARM64 and RISC-V.
const TIOCOUTQ: rustix::ioctl::Opcode = 0x5411;

static IDLE: Mutex<Vec<Pipe>> = Mutex::new(Vec::new());
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// How many bytes that were written to a TCP socket its peer has not acknowledged.
///
/// # Errors
/// When the socket is gone, or none.
pub fn untaken_bytes(socket: impl AsFd) -> io::Result<u64> {
    // SAFETY: the request takes nothing but the place of its answer, which is an `int`.
    let bytes = unsafe { rustix::ioctl::ioctl(socket, rustix::ioctl::Getter::<TIOCOUTQ, std::ffi::c_int>::new()) }?;
    Ok(u64::try_from(bytes).unwrap_or_default())
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
}

impl Pipe {
    /// Takes an idle pipe or opens one. `None` at the limit, or when the process has no descriptors left.
    fn lease() -> Option<Pipe> {
        if let Some(pipe) = IDLE.lock().pop() {
            return Some(pipe);
        }
        if OPEN.fetch_add(1, Ordering::Relaxed) < PIPES_MAX {
            match Pipe::open() {
                Ok(pipe) => return Some(pipe),
                Err(error) => tracing::debug!(%error, "open a pipe for sending"),
            }
        }
        OPEN.fetch_sub(1, Ordering::Relaxed);
        None
    }

    fn open() -> io::Result<Pipe> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let capacity = match rustix::pipe::fcntl_setpipe_size(&write, PIPE_BYTES) {
            Ok(capacity) => capacity,
            Err(_) => rustix::pipe::fcntl_getpipe_size(&write)?,
        };
        Ok(Pipe { read, write, capacity })
    }

    /// For an empty pipe.
    fn give_back(self) {
        let mut idle = IDLE.lock();
        if idle.len() < PIPES_IDLE_MAX {
            idle.push(self);
        } else {
            drop(idle);
            self.close();
        }
    }

    fn close(self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Pipes open now, leased or idle.
pub fn open_pipes() -> usize {
    OPEN.load(Ordering::Relaxed)
}

/// Pipes open and idle now.
pub fn idle_pipes() -> usize {
    IDLE.lock().len()
}

/// A leased pipe and what is in it.
struct Leased {
    pipe: Pipe,
    /// Bytes in the pipe.
    held: usize,
    /// Where those bytes continue: mapping (by address) and offset in the file.
    mapping: usize,
    next: u64,
}

/// What must happen before [`Splicer::send`].
#[derive(Debug, PartialEq, Eq)]
pub enum Prepared {
    /// Nothing: bytes of this very place are in the pipe already.
    Filled,
    /// The pipe is empty; `send` will read this many bytes from the file, which should be resident.
    Empty(usize),
    /// No pipe is to be had: write from the mapping.
    NoPipe,
}

/// The sending side of one connection.
#[derive(Default)]
pub struct Splicer {
    leased: Option<Leased>,
    /// Where the last `send` came to: mapping (by address) and offset in the file.
    reached: Option<(usize, u64)>,
}

impl Splicer {
    /// Whether `located` begins where the last [`Splicer::send`] ended: the rest of the same slice, of which a part may
    /// be in the pipe.
    pub fn continues(&self, located: &Located) -> bool {
        self.reached == Some((address(located), located.range.start))
    }

    /// Leases a pipe for sending `located`. Bytes of another place that are left in a pipe are thrown away.
    pub fn prepare(&mut self, located: &Located) -> Prepared {
        let mapping = address(located);
        if let Some(leased) = &self.leased
            && leased.held > 0
        {
            let len = located.range.end - located.range.start;
            if leased.mapping == mapping && leased.next == located.range.start && leased.held as u64 <= len {
                return Prepared::Filled;
            }
            self.reset();
        }
        if self.leased.is_none() {
            let Some(pipe) = Pipe::lease() else { return Prepared::NoPipe };
            self.leased = Some(Leased { pipe, held: 0, mapping, next: located.range.start });
        }
        let capacity = self.leased.as_ref().map_or(0, |leased| leased.pipe.capacity);
        Prepared::Empty(capacity.min((located.range.end - located.range.start) as usize))
    }

    /// Fills the pipe from the file if it is empty, and moves on to the socket what that takes. Returns how many bytes
    /// the socket took, at least one. Does not wait for the socket; may wait for the disk if the bytes are not
    /// resident.
    ///
    /// A short count does not mean that the socket is full: call again until `WouldBlock`.
    ///
    /// # Errors
    /// `WouldBlock` when the socket takes nothing now; `UnexpectedEof` when the file ends before the range does; those
    /// of `splice`. After an error other than `WouldBlock` the connection must be closed.
    ///
    /// # Panics
    /// When [`Splicer::prepare`] did not lease a pipe for `located`.
    pub fn send(&mut self, socket: BorrowedFd<'_>, located: &Located) -> io::Result<usize> {
        let leased = self.leased.as_mut().expect("prepare leased a pipe");
        let len = (located.range.end - located.range.start) as usize;
        if leased.held == 0 {
            let mut offset = located.range.start;
            let wanted = len.min(leased.pipe.capacity);
            let filled = rustix::pipe::splice(
                located.mapping.file(),
                Some(&mut offset),
                &leased.pipe.write,
                None,
                wanted,
                SpliceFlags::MOVE | SpliceFlags::NONBLOCK,
            )?;
            if filled == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a segment is shorter than its mapping"));
            }
            leased.mapping = address(located);
            leased.next = located.range.start;
            leased.held = filled;
        }
        // Behind the pipe more of the slice follows at once: the kernel need not send a short packet between the two.
        let more = if leased.held < len { SpliceFlags::MORE } else { SpliceFlags::empty() };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK | more;
        let sent = rustix::pipe::splice(&leased.pipe.read, None, socket, None, leased.held, flags)?;
        if sent == 0 {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "a pipe lost bytes"));
        }
        leased.held -= sent;
        leased.next += sent as u64;
        self.reached = Some((leased.mapping, leased.next));
        Ok(sent)
    }

    /// Gives the pipe back if it is empty: at the end of each turn, so that pipes are leased only while bytes are in
    /// them.
    pub fn rest(&mut self) {
        if let Some(leased) = self.leased.take_if(|leased| leased.held == 0) {
            leased.pipe.give_back();
        }
    }

    /// Gives up what is in the pipe.
    fn reset(&mut self) {
        if let Some(leased) = self.leased.take() {
            if leased.held == 0 { leased.pipe.give_back() } else { leased.pipe.close() }
        }
    }
}

impl Drop for Splicer {
    fn drop(&mut self) {
        self.reset();
    }
}

fn address(located: &Located) -> usize {
    std::sync::Arc::as_ptr(&located.mapping) as usize
}

/// Whether the kernel can encrypt TLS records on a socket (kTLS), which splice would need under HTTPS.
pub fn ktls_is_available() -> bool {
    let Ok(socket) = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)
    else {
        return false;
    };
    let name = b"tls";
    // SAFETY: the option's value is the three bytes of `name`, which live across the call.
    let result = unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&socket.as_fd()),
            libc::IPPROTO_TCP,
            libc::TCP_ULP,
            name.as_ptr().cast(),
            3,
        )
    };
    // A kernel that has it objects only to the socket not being connected.
    result == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::ENOTCONN)
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::mapping::{self, Mapping};

    const LEN: u64 = 5 << 20;

    fn contents() -> Vec<u8> {
        (0..LEN).map(|index| (index / 13) as u8).collect()
    }

    fn mapping() -> Arc<Mapping> {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all_at(&contents(), 0).unwrap();
        Mapping::new(file.as_fd(), LEN).unwrap()
    }

    fn located(mapping: &Arc<Mapping>, range: std::ops::Range<u64>) -> Located {
        mapping::find(&mapping.bytes(range, Arc::new(()))).unwrap()
    }

    #[test]
    fn slice_arrives_whole_through_a_socket_that_fills_up() {
        let mapping = mapping();
        let (mut reader, writer) = UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        let (start, end) = (4096 + 17, LEN - 5);
        let mut splicer = Splicer::default();
        let (mut at, mut received) = (start, vec![]);
        let mut full = 0;
        while at < end {
            let rest = located(&mapping, at..end);
            assert_ne!(splicer.prepare(&rest), Prepared::NoPipe);
            match splicer.send(writer.as_fd(), &rest) {
                Ok(sent) => at += sent as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    full += 1;
                    let mut buf = vec![0; 100_000];
                    let read = reader.read(&mut buf).unwrap();
                    received.extend_from_slice(&buf[..read]);
                }
                Err(error) => panic!("{error}"),
            }
        }
        splicer.rest();
        assert!(splicer.leased.is_none());
        drop(writer);
        reader.read_to_end(&mut received).unwrap();
        assert!(full > 0, "the socket never filled up");
        assert!(received == contents()[start as usize..end as usize]);
    }

    #[test]
    fn what_a_peer_has_not_taken_is_counted_until_it_reads() {
        const SENT: usize = 64 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut reader = listener.accept().unwrap().0;
        assert_eq!(untaken_bytes(&writer).unwrap(), 0);
        writer.set_nonblocking(true).unwrap();
        let mut written = 0;
        while written < SENT {
            match writer.write(&[1; 1 << 16]) {
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(written < SENT, "the socket never filled up");
        let untaken = untaken_bytes(&writer).unwrap();
        assert!(untaken > 0 && untaken <= written as u64, "{untaken} of {written}");
        reader.read_exact(&mut vec![0; written]).unwrap();
        // The last acknowledgement may be on its way.
        let deadline = Instant::now() + Duration::from_secs(30);
        while untaken_bytes(&writer).unwrap() > 0 {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }

    #[test]
    fn bytes_left_in_a_pipe_never_reach_another_slice() {
        let mapping = mapping();
        let (mut reader, writer) = UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        let mut splicer = Splicer::default();
        let first = located(&mapping, 0..LEN);
        splicer.prepare(&first);
        let sent = splicer.send(writer.as_fd(), &first).unwrap();
        assert!(splicer.leased.as_ref().unwrap().held > 0, "the socket took a whole pipe");
        let other = located(&mapping, LEN - 10..LEN);
        assert!(splicer.continues(&located(&mapping, sent as u64..LEN)));
        assert!(!splicer.continues(&other));
        assert_eq!(splicer.prepare(&other), Prepared::Empty(10));
        let mut buf = vec![0; sent];
        reader.read_exact(&mut buf).unwrap();
        assert_eq!(splicer.send(writer.as_fd(), &other).unwrap(), 10);
        let mut buf = [0; 10];
        reader.read_exact(&mut buf).unwrap();
        assert_eq!(buf, contents()[LEN as usize - 10..]);
    }

    #[test]
    fn reader_that_leaves_is_an_error() {
        let mapping = mapping();
        let (reader, writer) = UnixStream::pair().unwrap();
        drop(reader);
        let all = located(&mapping, 0..LEN);
        let mut splicer = Splicer::default();
        splicer.prepare(&all);
        assert_eq!(splicer.send(writer.as_fd(), &all).unwrap_err().kind(), ErrorKind::BrokenPipe);
    }
}
