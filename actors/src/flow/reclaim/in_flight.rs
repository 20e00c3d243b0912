//! Writes that are not over: what they store is no orphan.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_protocol::ContentId;
use parking_lot::Mutex;

use super::condemned;
use crate::domain::cleanup::WriteWindow;
use crate::flow::held::{HeldContent, HeldContents};
use crate::ports::metadata::Condemned;

/// Remembers writes in flight, shared by the chunk adapter (which tells it) and the walk for orphans (which asks it).
#[derive(Debug)]
pub struct InFlightWrites {
    started: Instant,
    window: Mutex<WriteWindow>,
    /// Those that somebody says are not over.
    held: Arc<HeldContents>,
    condemned: Mutex<condemned::Seen>,
}

impl InFlightWrites {
    /// A window longer than any write takes from its last new chunk to its commit.
    pub fn new(window: Duration) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            window: Mutex::new(WriteWindow::new(window.as_millis() as u64)),
            held: Arc::default(),
            condemned: Mutex::new(condemned::Seen::new(window)),
        })
    }

    /// Keeps `content` in flight until what is returned is dropped: what a move brought back may be read for hours
    /// before its commit.
    pub fn hold(&self, content: ContentId) -> HeldContent {
        self.held.hold(content)
    }

    /// To be called before a chunk of `content` is created.
    pub fn on_create(&self, content: ContentId) {
        self.window.lock().on_create(content, self.now_ms());
    }

    /// Whether `content` can belong to a write that is not over.
    pub fn may_be_in_flight(&self, content: ContentId) -> bool {
        self.held.contains(content) || self.window.lock().may_be_in_flight(content, self.now_ms())
    }

    /// Which of these condemnations, old by the clock, no write needs any more.
    pub(super) fn needless(&self, old: &[Condemned]) -> Vec<Condemned> {
        self.condemned.lock().ripe(old, self.now_ms())
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}
