//! Memory for bytes that are copied on their way out: taken, filled, handed out as [`Bytes`], and taken again when the
//! last handle has dropped.
//!
//! The allocator gives blocks of this size back to the kernel, which hands them out as new pages, zeroed one fault at a
//! time: for a node that sends a chunk to a peer that cost three times what the copy itself does. Buffers of the
//! [`BufferPool`](crate::buf::BufferPool) are not for this: they are few, disks wait for them, and a slow receiver
//! would hold them.

use std::ops::{Deref, DerefMut};

use bytes::Bytes;
use parking_lot::Mutex;

/// The most that one piece of memory which is kept for the next user holds.
pub(crate) const SCRATCH_BYTES: usize = 256 << 10;

/// Below this the allocator is as good, which gives no such blocks back to the kernel. And whoever keeps what he was
/// given holds no more than twice of what he counts.
const KEPT_FROM_BYTES: usize = SCRATCH_BYTES / 2;

/// How many nobody uses are kept: 8 MiB.
const KEPT_MAX: usize = 32;

static KEPT: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// Memory of its user alone. It holds whatever its last user left there.
pub struct Scratch {
    memory: Box<[u8]>,
    len: usize,
}

impl Scratch {
    /// Memory of `len` bytes; what is larger than [`SCRATCH_BYTES`] is not kept afterwards.
    pub fn new(len: usize) -> Self {
        let memory = if (KEPT_FROM_BYTES..=SCRATCH_BYTES).contains(&len) {
            let kept = KEPT.lock().pop();
            kept.unwrap_or_else(|| vec![0; SCRATCH_BYTES].into())
        } else {
            vec![0; len].into()
        };
        Self { memory, len }
    }

    /// Shares it as it is filled now. Without a copy.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl std::fmt::Debug for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scratch").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Deref for Scratch {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }
}

impl AsRef<[u8]> for Scratch {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.memory.len() != SCRATCH_BYTES {
            return;
        }
        let mut kept = KEPT.lock();
        if kept.len() < KEPT_MAX {
            kept.push(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_the_length_asked_for_whoever_had_it_before() {
        for len in [0, 1, KEPT_FROM_BYTES - 1, KEPT_FROM_BYTES, SCRATCH_BYTES, SCRATCH_BYTES + 1, KEPT_FROM_BYTES + 5] {
            let mut scratch = Scratch::new(len);
            assert_eq!(scratch.len(), len);
            scratch.fill(7);
            let shared = scratch.freeze();
            assert!(shared.len() == len && shared.iter().all(|byte| *byte == 7), "{len}");
        }
    }

    #[test]
    fn memory_is_no_more_than_twice_of_what_its_user_counts() {
        for len in [1, 33 << 10, KEPT_FROM_BYTES - 1, KEPT_FROM_BYTES, SCRATCH_BYTES, SCRATCH_BYTES + 1] {
            let held = Scratch::new(len).memory.len();
            assert!(held <= 2 * len, "{held} bytes for {len}");
        }
    }

    #[test]
    fn what_is_shared_stays_while_somebody_holds_it() {
        let mut first = Scratch::new(SCRATCH_BYTES);
        first.fill(1);
        let shared = first.freeze();
        let part = shared.slice(10..20);
        drop(shared);
        for _ in 0..2 * KEPT_MAX {
            Scratch::new(SCRATCH_BYTES).fill(2);
        }
        assert!(part.iter().all(|byte| *byte == 1));
    }

    #[test]
    fn no_more_is_kept_than_the_bound() {
        let many: Vec<Scratch> = (0..3 * KEPT_MAX).map(|_| Scratch::new(SCRATCH_BYTES)).collect();
        drop(many);
        assert!(KEPT.lock().len() <= KEPT_MAX);
    }
}
