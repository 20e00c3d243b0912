//! [`BlockIo`] by io_uring, through tokio-uring.
//!
//! **Threads.** A ring belongs to one thread. [`block_on`] runs a runtime with a ring on the calling thread; the data
//! plane does so once a core. An operation polled on such a thread goes to that thread's ring and comes back without a
//! switch; polled anywhere else (the multi-threaded runtime, tests) it is handed to a background ring. Each ring has
//! one task, the dispatcher, that owns the operations with their buffers and files; results travel through oneshots.
//! This makes the caller's future `Send` and cancel safe, though what the ring needs is neither.
//!
//! **Registered buffers.** Each ring registers the whole arena of the [`BufferPool`] as one fixed buffer, so that the
//! kernel does not pin and unpin pages for each operation. Where that is refused (`RLIMIT_MEMLOCK`; the default of 8
//! MiB is below the arena) the same operations run unregistered, which is logged once a ring.
//!
//! **Submission.** tokio-uring submits when its thread parks, which a busy thread may never do; so the dispatcher
//! submits what it has started itself ([`submit`](mod@submit)). Where the ring's descriptor cannot be found, parking
//! must do.
//!
//! **Disks that may hang.** What the kernel cannot do asynchronously it does on a few workers that belong to the thread
//! of the ring: all of NFS and its like, and `fsync`. A mount that hangs would keep them all, and no other disk of the
//! ring would be read or written. So a disk on such a file system has a ring, with a thread, of its own.
//!
//! **Ending.** An operation must not outlive its ring: [`block_on`] waits for all of them before it lets go of the
//! ring.

use ::std::cell::{Cell, RefCell};
use ::std::collections::VecDeque;
use ::std::fs::File;
use ::std::future::poll_fn;
use ::std::io;
use ::std::marker::PhantomData;
use ::std::ops::Range;
use ::std::path::Path;
use ::std::pin::Pin;
use ::std::rc::Rc;
use ::std::sync::Arc;
use ::std::task::{Context, Poll, Waker};
use ::std::thread;
use ::std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use io_uring::{IoUring, Probe, opcode};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Sleep;
use tokio_uring::UnsubmittedOneshot;
use tokio_uring::buf::fixed::FixedBufRegistry;

use self::operations::{Completion, Done, Held, Request};
use self::submit::Submitter;
use super::files::{self, real_directory_operations, real_file_operations};
use super::flights::Flights;
use super::{BlockFile, BlockIo, IoFuture, OpenMode};
use crate::buf::{ArenaView, BufferPool, IoBuf, SharedBuf};

mod operations;
mod submit;

/// Entries of a submission queue; more operations than this in one turn wait for the next.
const ENTRIES: u32 = 256;

/// How long the operations of a ring may take to finish when its runtime ends. After that the ring is abandoned, not
/// freed.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// Pause before entries that the kernel did not take are submitted again.
const SUBMIT_RETRY: Duration = Duration::from_millis(2);

/// Why io_uring cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The kernel has no io_uring, or a seccomp profile or `kernel.io_uring_disabled` forbids it.
    #[error("the kernel refuses to set up a ring: {0}")]
    Setup(#[source] io::Error),
    /// The kernel is too old to say what it supports.
    #[error("the kernel does not list the operations it supports: {0}")]
    Probe(#[source] io::Error),
    /// The kernel lacks an operation that the engine needs.
    #[error("the kernel has no io_uring operation {0}")]
    Operation(&'static str),
}

/// Tries whether io_uring works for this process.
///
/// # Errors
/// The reason why not.
pub fn probe() -> Result<(), Unavailable> {
    let ring = Submitter::exclusively(|| IoUring::new(2)).map_err(Unavailable::Setup)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(Unavailable::Probe)?;
    let needed = [
        ("READ", opcode::Read::CODE),
        ("WRITE", opcode::Write::CODE),
        ("READ_FIXED", opcode::ReadFixed::CODE),
        ("WRITE_FIXED", opcode::WriteFixed::CODE),
        ("FSYNC", opcode::Fsync::CODE),
    ];
    match needed.into_iter().find(|(_, code)| !probe.is_supported(*code)) {
        Some((name, _)) => Err(Unavailable::Operation(name)),
        None => Ok(()),
    }
}

/// Runs `future` on this thread with a ring that has the arena of `pool` registered; `tokio_uring::spawn` and
/// `tokio::task::spawn_local` work inside. Returns when the future is done and the ring has no operation left.
///
/// # Errors
/// When the ring or the runtime cannot be made.
///
/// # Panics
/// When the thread already runs a runtime.
pub fn block_on<F: Future>(pool: &Arc<BufferPool>, future: F) -> io::Result<F::Output> {
    let (runtime, candidates) = Submitter::watch(runtime)?;
    let (output, drained) = runtime.block_on(async {
        let guard = RingGuard::attach(pool, identify(candidates).await);
        let output = future.await;
        (output, guard.drain().await)
    });
    if !drained {
        tracing::error!(
            wait_s = DRAIN_MAX.as_secs(),
            "disk operations are still in flight at the end of a ring, abandoning it"
        );
        // The kernel may yet write into buffers that these operations hold.
        ::std::mem::forget(runtime);
    }
    Ok(output)
}

fn runtime() -> io::Result<tokio_uring::Runtime> {
    let mut flags = tokio_uring::uring_builder();
    // Not DEFER_TASKRUN: tokio-uring waits by epoll and would never run the deferred work.
    flags.setup_coop_taskrun().setup_single_issuer();
    let mut builder = tokio_uring::builder();
    match tokio_uring::Runtime::new(builder.entries(ENTRIES).uring_builder(&flags)) {
        // Before Linux 6.0.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            tokio_uring::Runtime::new(builder.uring_builder(&tokio_uring::uring_builder()))
        }
        other => other,
    }
}

/// Finds out which candidate enters the ring of this thread: the one through which an entry of this ring goes.
async fn identify(candidates: Vec<Submitter>) -> Option<Submitter> {
    let probe =
        UnsubmittedOneshot::new(Held { _file: (), buf: () }, Completion(PhantomData), opcode::Nop::new().build());
    let probe = probe.submit();
    let found = candidates.into_iter().find(|candidate| candidate.submit(1).is_ok_and(|submitted| submitted == 1));
    let _ = probe.await;
    if found.is_none() {
        tracing::warn!(
            "the descriptor of a ring was not found in /proc/self/fd, operations start when its thread is idle"
        );
    }
    found
}

thread_local! {
    /// The ring of this thread, while [`block_on`] runs on it.
    static RING: RefCell<Option<Rc<Ring>>> = const { RefCell::new(None) };
}

/// What operations on a thread need to know of its ring.
struct Ring {
    /// The pool whose arena is registered as fixed buffer 0.
    registered: Option<Arc<BufferPool>>,
    submitter: Option<Submitter>,
    /// Entries that were pushed since the dispatcher last submitted.
    unsubmitted: Cell<u32>,
    /// Told when the queue takes entries again.
    room: Notify,
    /// Operations that the dispatcher has yet to start.
    queue: RefCell<VecDeque<Request>>,
    dispatcher: RefCell<Option<Waker>>,
    /// Operations queued or started.
    in_flight: Cell<usize>,
    idle: Notify,
}

/// Stands for the thread's ring being usable.
struct RingGuard {
    ring: Rc<Ring>,
    registry: FixedBufRegistry<ArenaView>,
}

impl RingGuard {
    fn attach(pool: &Arc<BufferPool>, submitter: Option<Submitter>) -> RingGuard {
        let registry = FixedBufRegistry::new([ArenaView::new(pool)]);
        let registered = match registry.register() {
            Ok(()) => Some(Arc::clone(pool)),
            Err(error) => {
                tracing::warn!(
                    %error,
                    arena_bytes = pool.arena().1,
                    "the ring cannot register the buffers (raise RLIMIT_MEMLOCK, in systemd LimitMEMLOCK=), \
                     using unregistered ones, which costs more CPU"
                );
                None
            }
        };
        let ring = Rc::new(Ring {
            registered,
            submitter,
            unsubmitted: Cell::new(0),
            room: Notify::new(),
            queue: RefCell::default(),
            dispatcher: RefCell::default(),
            in_flight: Cell::new(0),
            idle: Notify::new(),
        });
        tokio_uring::spawn(Rc::clone(&ring).dispatch());
        RING.set(Some(Rc::clone(&ring)));
        RingGuard { ring, registry }
    }

    /// Sends new operations to the background ring and waits for those in flight. False if they do not end in time.
    async fn drain(self) -> bool {
        RING.set(None);
        let idle = async {
            while self.ring.in_flight.get() > 0 {
                self.ring.idle.notified().await;
            }
        };
        let drained = tokio::time::timeout(DRAIN_MAX, idle).await.is_ok();
        if drained && self.ring.registered.is_some() {
            // Closing the ring would do it too.
            let _ = self.registry.unregister();
        }
        drained
    }
}

impl Drop for RingGuard {
    fn drop(&mut self) {
        RING.set(None);
    }
}

impl Ring {
    /// Queues an operation. Works from any task of this thread, also from one outside the `LocalSet`.
    fn push(&self, request: Request) {
        self.in_flight.set(self.in_flight.get() + 1);
        self.queue.borrow_mut().push_back(request);
        if let Some(dispatcher) = self.dispatcher.borrow().as_ref() {
            dispatcher.wake_by_ref();
        }
    }

    /// The dispatcher: starts what is queued and runs all of it until the runtime ends.
    async fn dispatch(self: Rc<Self>) {
        let mut operations = FuturesUnordered::new();
        let mut retry = None;
        poll_fn(|context| {
            loop {
                for request in self.queue.take() {
                    operations.push(self.perform(request));
                }
                let Poll::Ready(Some(())) = operations.poll_next_unpin(context) else { break };
                self.in_flight.set(self.in_flight.get() - 1);
                if self.in_flight.get() == 0 {
                    self.idle.notify_one();
                }
            }
            self.enter(&mut retry, context);
            self.dispatcher.replace(Some(context.waker().clone()));
            Poll::<()>::Pending
        })
        .await;
    }

    /// Whether the submission queue takes no more entries. Only what this module submits is counted: parking may have
    /// made room already.
    fn is_full(&self) -> bool {
        self.submitter.is_some() && self.unsubmitted.get() >= ENTRIES
    }

    /// Submits what was pushed. What the kernel does not take (it is out of memory, or has completions to hand over
    /// first) is tried again soon: a thread that never parks would leave it behind for ever, and one that parks would
    /// not be woken.
    fn enter(&self, retry: &mut Option<Pin<Box<Sleep>>>, context: &mut Context<'_>) {
        let Some(submitter) = self.submitter else {
            self.unsubmitted.set(0);
            return;
        };
        loop {
            let was_full = self.is_full();
            let (left, result) = submit::submit_all(self.unsubmitted.get(), |count| submitter.submit(count));
            self.unsubmitted.set(left);
            if was_full && !self.is_full() {
                // Wakes this task, too.
                self.room.notify_waiters();
            }
            let Err(error) = result else {
                *retry = None;
                return;
            };
            if retry.is_none() {
                tracing::warn!(%error, entries = left, "the kernel takes no disk operations, trying again");
            }
            metrics::counter!("holdfast_storage_ring_retries_total").increment(1);
            let pause = retry.insert(Box::pin(tokio::time::sleep(SUBMIT_RETRY)));
            if pause.as_mut().poll(context).is_pending() {
                return;
            }
        }
    }
}

/// `BlockIo` on io_uring.
pub struct UringIo {
    pool: Arc<BufferPool>,
    background: mpsc::UnboundedSender<Request>,
    /// The background ring is this disk's own, and takes all of its operations.
    has_own_ring: bool,
    flights: Option<Arc<Flights>>,
}

impl UringIo {
    /// Starts the background ring; its thread ends when this value and its last file are gone.
    ///
    /// # Errors
    /// When the thread or the ring cannot be made.
    pub fn new(pool: &Arc<BufferPool>) -> io::Result<UringIo> {
        // Unbounded, since what is behind it is not: an operation holds a leased buffer, or is its disk's one sync.
        let (background, mut requests) = mpsc::unbounded_channel::<Request>();
        let (started, start) = ::std::sync::mpsc::channel();
        let registered = Arc::clone(pool);
        thread::Builder::new().name("ring-background".to_owned()).spawn(move || {
            let ended = block_on(&registered, async {
                let _ = started.send(Ok(()));
                let ring = RING.with_borrow(Clone::clone).expect("block_on attached it");
                while let Some(request) = requests.recv().await {
                    ring.push(request);
                }
            });
            if let Err(error) = ended {
                let _ = started.send(Err(error));
            }
        })?;
        start.recv().map_err(|_| io::Error::other("the thread of the background ring ended"))??;
        Ok(UringIo { pool: Arc::clone(pool), background, has_own_ring: false, flights: None })
    }

    /// For one disk on a ring of its own.
    fn on_own_ring(&self, flights: &Arc<Flights>) -> io::Result<UringIo> {
        Ok(UringIo { has_own_ring: true, flights: Some(Arc::clone(flights)), ..UringIo::new(&self.pool)? })
    }

    fn file(&self, path: &Path, mode: OpenMode, create: bool) -> io::Result<Arc<dyn BlockFile>> {
        let _flight = self.flights.as_ref().map(Flights::begin);
        let file = Arc::new(files::open(path, mode, create)?);
        let (background, flights) = (self.background.clone(), self.flights.clone());
        Ok(Arc::new(UringFile { file, background, has_own_ring: self.has_own_ring, flights }))
    }
}

impl BlockIo for UringIo {
    fn name(&self) -> &'static str {
        "uring"
    }

    fn for_disk(&self, dir: &Path, flights: &Arc<Flights>) -> io::Result<Arc<dyn BlockIo>> {
        if files::is_remote(dir) {
            tracing::info!(disk = %dir.display(), "a server answers for this disk: it has a ring of its own");
            return Ok(Arc::new(self.on_own_ring(flights)?));
        }
        let (pool, background) = (Arc::clone(&self.pool), self.background.clone());
        Ok(Arc::new(UringIo { pool, background, has_own_ring: false, flights: Some(Arc::clone(flights)) }))
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>> {
        self.file(path, mode, false)
    }

    fn create(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>> {
        self.file(path, mode, true)
    }

    real_directory_operations!();
}

struct UringFile {
    file: Arc<File>,
    background: mpsc::UnboundedSender<Request>,
    has_own_ring: bool,
    flights: Option<Arc<Flights>>,
}

impl UringFile {
    /// At the first poll, sends the request to the ring of the polling thread, or to the background, or to the disk's
    /// own.
    fn run<T: Send + 'static>(
        &self,
        request: impl FnOnce(Arc<File>, Done<T>) -> Request + Send + 'static,
    ) -> IoFuture<T> {
        let (file, background, flights) = (Arc::clone(&self.file), self.background.clone(), self.flights.clone());
        let has_own_ring = self.has_own_ring;
        Box::pin(async move {
            let (done, result) = oneshot::channel();
            let request = request(file, Done { result: done, flight: flights.as_ref().map(Flights::begin) });
            // A block of its own: the `Rc` must not be held across the wait.
            {
                match RING.with_borrow(Clone::clone).filter(|_| !has_own_ring) {
                    Some(ring) => ring.push(request),
                    None => {
                        let sent = background.send(request);
                        assert!(sent.is_ok(), "the background ring lives as long as a sender");
                    }
                }
            }
            result.await.expect("a ring finishes its operations before it ends")
        })
    }
}

impl BlockFile for UringFile {
    fn write_at(&self, offset: u64, buf: SharedBuf, range: Range<usize>) -> IoFuture<io::Result<()>> {
        assert!(range.start <= range.end && range.end <= buf.len(), "write of {range:?} out of {} bytes", buf.len());
        self.run(move |file, done| Request::Write { file, offset, buf, range, done })
    }

    fn read_at(&self, offset: u64, buf: IoBuf, len: usize) -> IoFuture<(io::Result<usize>, IoBuf)> {
        assert!(len <= buf.len(), "read of {len} into {} bytes", buf.len());
        self.run(move |file, done| Request::Read { file, offset, buf, len, done })
    }

    fn sync_data(&self) -> IoFuture<io::Result<()>> {
        self.run(|file, done| Request::Sync { file, done })
    }

    real_file_operations!();
}

#[cfg(test)]
mod tests;
