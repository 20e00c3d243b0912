//! Contents that somebody is at work on, each for as long as its guard lives.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_protocol::ContentId;
use parking_lot::Mutex;

/// Which contents are held, and by how many. An entry for each that is: who holds bounds them.
#[derive(Debug, Default)]
pub struct HeldContents(Mutex<BTreeMap<ContentId, usize>>);

/// A content that is held for as long as this lives.
#[derive(Debug)]
pub struct HeldContent {
    held: Arc<HeldContents>,
    content: ContentId,
}

impl HeldContents {
    /// Holds a content, beside whoever else does.
    pub fn hold(self: &Arc<Self>, content: ContentId) -> HeldContent {
        *self.0.lock().entry(content).or_default() += 1;
        HeldContent { held: Arc::clone(self), content }
    }

    /// Whether anybody holds it.
    pub fn contains(&self, content: ContentId) -> bool {
        self.0.lock().contains_key(&content)
    }

    /// The one of them that was begun first.
    pub fn oldest(&self) -> Option<ContentId> {
        // Contents sort by their time.
        self.0.lock().first_key_value().map(|(content, _)| *content)
    }
}

impl Drop for HeldContent {
    fn drop(&mut self) {
        let mut held = self.held.0.lock();
        if let Some(count) = held.get_mut(&self.content) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.content);
            }
        }
    }
}
