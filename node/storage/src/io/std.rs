//! [`BlockIo`] by `pread` and `pwrite` on a small pool of threads.
//!
//! Used where io_uring is refused (old kernels, most container runtimes' seccomp profiles). Each disk has a pool of its
//! own, so that one that hangs uses up its own threads. Their number is fixed, so that a slow disk delays operations
//! and does not grow the process; operations queue in the order in which they were asked for. The queue is bounded by
//! what is behind it: an operation holds a buffer of the pool, or is the one sync that its disk has in flight.

use ::std::fs::File;
use ::std::io;
use ::std::ops::Range;
use ::std::os::unix::fs::FileExt;
use ::std::path::Path;
use ::std::sync::Arc;
use ::std::thread;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::files::{self, real_directory_operations, real_file_operations};
use super::flights::Flights;
use super::{BlockFile, BlockIo, IoFuture, OpenMode};
use crate::buf::{IoBuf, SharedBuf};

/// Threads of a pool: enough to keep a disk busy at depth four with a few syncs beside, few enough to cost nothing.
const THREADS: usize = 8;

/// `BlockIo` on blocking system calls.
pub struct StdIo {
    pool: Arc<Pool>,
    flights: Option<Arc<Flights>>,
}

impl StdIo {
    /// Starts the threads; they end when the last file and this value are gone.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new() -> io::Result<StdIo> {
        Ok(StdIo { pool: Pool::start(THREADS)?, flights: None })
    }

    fn file(&self, path: &Path, mode: OpenMode, create: bool) -> io::Result<Arc<dyn BlockFile>> {
        let _flight = self.flights.as_ref().map(Flights::begin);
        let file = Arc::new(files::open(path, mode, create)?);
        Ok(Arc::new(StdFile { file, pool: Arc::clone(&self.pool), flights: self.flights.clone() }))
    }
}

impl BlockIo for StdIo {
    fn name(&self) -> &'static str {
        "std"
    }

    fn for_disk(&self, _dir: &Path, flights: &Arc<Flights>) -> io::Result<Arc<dyn BlockIo>> {
        Ok(Arc::new(StdIo { pool: Pool::start(THREADS)?, flights: Some(Arc::clone(flights)) }))
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>> {
        self.file(path, mode, false)
    }

    fn create(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>> {
        self.file(path, mode, true)
    }

    real_directory_operations!();
}

struct StdFile {
    file: Arc<File>,
    pool: Arc<Pool>,
    flights: Option<Arc<Flights>>,
}

impl StdFile {
    /// Runs `job` on a thread of the pool. It is in flight from when a thread has it: who waits for a thread waits for
    /// others.
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> IoFuture<T> {
        let flights = self.flights.clone();
        self.pool.run(move || {
            let _flight = flights.as_ref().map(Flights::begin);
            job()
        })
    }
}

impl BlockFile for StdFile {
    fn write_at(&self, offset: u64, buf: SharedBuf, range: Range<usize>) -> IoFuture<io::Result<()>> {
        assert!(range.start <= range.end && range.end <= buf.len(), "write of {range:?} out of {} bytes", buf.len());
        let file = Arc::clone(&self.file);
        self.run(move || write_full(&file, offset, &buf[range]))
    }

    fn read_at(&self, offset: u64, mut buf: IoBuf, len: usize) -> IoFuture<(io::Result<usize>, IoBuf)> {
        assert!(len <= buf.len(), "read of {len} into {} bytes", buf.len());
        let file = Arc::clone(&self.file);
        self.run(move || (read_full(&file, offset, &mut buf[..len]), buf))
    }

    fn sync_data(&self) -> IoFuture<io::Result<()>> {
        let file = Arc::clone(&self.file);
        self.run(move || file.sync_data())
    }

    real_file_operations!();
}

fn write_full(file: &File, offset: u64, buf: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        match file.write_at(&buf[done..], offset + done as u64) {
            Ok(written) => done += files::progress_of_short_write(written, buf.len() - done)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn read_full(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if files::is_end_after_short_read(&error, done) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads and a queue of jobs.
struct Pool {
    queue: Arc<Queue>,
}

struct Queue {
    state: Mutex<QueueState>,
    ready: Condvar,
}

struct QueueState {
    jobs: ::std::collections::VecDeque<Job>,
    closed: bool,
}

impl Pool {
    fn start(threads: usize) -> io::Result<Arc<Pool>> {
        let state = QueueState { jobs: ::std::collections::VecDeque::new(), closed: false };
        let queue = Arc::new(Queue { state: Mutex::new(state), ready: Condvar::new() });
        // Made first: if a thread cannot be started, its drop ends those that were.
        let pool = Arc::new(Pool { queue: Arc::clone(&queue) });
        for number in 0..threads {
            let queue = Arc::clone(&queue);
            thread::Builder::new().name(format!("disk-{number}")).spawn(move || work(&queue))?;
        }
        Ok(pool)
    }

    /// Runs `job` on a thread of the pool, from the first poll of the future on, to its end.
    fn run<T: Send + 'static>(self: &Arc<Self>, job: impl FnOnce() -> T + Send + 'static) -> IoFuture<T> {
        let pool = Arc::clone(self);
        Box::pin(async move {
            let (done, result) = oneshot::channel();
            let job: Job = Box::new(move || {
                // Nobody waits if the future was dropped: the operation ran all the same.
                let _ = done.send(job());
            });
            pool.queue.state.lock().jobs.push_back(job);
            pool.queue.ready.notify_one();
            result.await.expect("the pool runs its jobs to the end before its threads leave")
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.state.lock().closed = true;
        self.queue.ready.notify_all();
    }
}

fn work(queue: &Queue) {
    loop {
        let mut state = queue.state.lock();
        let job = loop {
            if let Some(job) = state.jobs.pop_front() {
                break job;
            }
            if state.closed {
                return;
            }
            queue.ready.wait(&mut state);
        };
        drop(state);
        job();
    }
}
