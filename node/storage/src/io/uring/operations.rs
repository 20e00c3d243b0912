//! One operation on a ring: entries, short reads and writes, and what the kernel uses meanwhile.

use ::std::fs::File;
use ::std::io;
use ::std::marker::PhantomData;
use ::std::ops::Range;
use ::std::os::fd::AsRawFd;
use ::std::sync::Arc;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{cqueue, opcode, squeue};
use tokio::sync::oneshot;
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

use super::Ring;
use crate::buf::{IoBuf, SharedBuf};
use crate::io::files;
use crate::io::flights::Flight;

/// An operation on its way to a ring.
pub(super) enum Request {
    Write { file: Arc<File>, offset: u64, buf: SharedBuf, range: Range<usize>, done: Done<io::Result<()>> },
    Read { file: Arc<File>, offset: u64, buf: IoBuf, len: usize, done: Done<(io::Result<usize>, IoBuf)> },
    Sync { file: Arc<File>, done: Done<io::Result<()>> },
}

/// Where a result goes. It lives until the kernel is done, whether or not somebody waits, and so does what it counts.
pub(super) struct Done<T> {
    pub(super) result: oneshot::Sender<T>,
    pub(super) flight: Option<Flight>,
}

impl<T> Done<T> {
    /// A result that nobody waits for any more is dropped; the operation happened all the same.
    fn send(self, result: T) {
        // First: who sees the result must not find the operation in flight.
        drop(self.flight);
        let _ = self.result.send(result);
    }
}

impl Ring {
    /// Runs an operation to its end.
    pub(super) async fn perform(&self, request: Request) {
        match request {
            Request::Write { file, offset, buf, range, done } => {
                done.send(self.write(file, offset, buf, range).await);
            }
            Request::Read { file, offset, buf, len, done } => {
                done.send(self.read(file, offset, buf, len).await);
            }
            Request::Sync { file, done } => {
                let entry = opcode::Fsync::new(Fd(file.as_raw_fd())).flags(FsyncFlags::DATASYNC).build();
                let (result, ()) = self.submit(file, (), entry).await;
                done.send(result.map(drop));
            }
        }
    }

    async fn write(&self, file: Arc<File>, offset: u64, mut buf: SharedBuf, range: Range<usize>) -> io::Result<()> {
        let fixed = self.registered.as_ref().is_some_and(|pool| buf.is_of(pool));
        let mut at = range.start;
        while at < range.end {
            let (data, fd) = (&buf[at..range.end], Fd(file.as_raw_fd()));
            let data_len = u32::try_from(data.len()).expect("a buffer is at most 1 MiB");
            let position = offset + (at - range.start) as u64;
            let entry = if fixed {
                opcode::WriteFixed::new(fd, data.as_ptr(), data_len, 0).offset(position).build()
            } else {
                opcode::Write::new(fd, data.as_ptr(), data_len).offset(position).build()
            };
            let result;
            (result, buf) = self.submit(Arc::clone(&file), buf, entry).await;
            match result {
                Ok(written) => at += files::progress_of_short_write(written as usize, range.end - at)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn read(&self, file: Arc<File>, offset: u64, mut buf: IoBuf, len: usize) -> (io::Result<usize>, IoBuf) {
        let fixed = self.registered.as_ref().is_some_and(|pool| buf.is_of(pool));
        let mut done = 0;
        while done < len {
            let (space, fd) = (&mut buf[done..len], Fd(file.as_raw_fd()));
            let space_len = u32::try_from(space.len()).expect("a buffer is at most 1 MiB");
            let position = offset + done as u64;
            let entry = if fixed {
                opcode::ReadFixed::new(fd, space.as_mut_ptr(), space_len, 0).offset(position).build()
            } else {
                opcode::Read::new(fd, space.as_mut_ptr(), space_len).offset(position).build()
            };
            let result;
            (result, buf) = self.submit(Arc::clone(&file), buf, entry).await;
            match result {
                Ok(0) => break,
                Ok(read) => done += read as usize,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if files::is_end_after_short_read(&error, done) => break,
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(done), buf)
    }

    /// Runs one entry, made of a descriptor of `file` and of memory in `buf` that does not move when `buf` does.
    async fn submit<T: Unpin + 'static>(&self, file: Arc<File>, buf: T, entry: squeue::Entry) -> (io::Result<u32>, T) {
        // Where the queue is full tokio-uring submits, and panics if the kernel takes nothing, for want of memory: the
        // operations of this ring would all be lost, and those after them never start.
        while self.is_full() {
            self.room.notified().await;
        }
        let held = Held { _file: file, buf };
        let operation = UnsubmittedOneshot::new(held, Completion(PhantomData), entry).submit();
        self.unsubmitted.set(self.unsubmitted.get() + 1);
        operation.await
    }
}

/// What the kernel uses during an operation; tokio-uring keeps it until the completion, even if the future is dropped.
pub(super) struct Held<F, T> {
    pub(super) _file: F,
    pub(super) buf: T,
}

/// Takes a completion apart.
pub(super) struct Completion<F, T>(pub(super) PhantomData<(F, T)>);

impl<F, T> OneshotOutputTransform for Completion<F, T> {
    type Output = (io::Result<u32>, T);
    type StoredData = Held<F, T>;

    fn transform_oneshot_output(self, held: Held<F, T>, cqe: cqueue::Entry) -> Self::Output {
        let result = u32::try_from(cqe.result()).map_err(|_| io::Error::from_raw_os_error(-cqe.result()));
        (result, held.buf)
    }
}
