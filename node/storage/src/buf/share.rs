//! A disk's share of the buffers.
//!
//! A buffer is leased until the kernel is done with it. The reads of a disk that hangs would so take, one after
//! another, every buffer of the process, and no other disk could be read. So each of several disks reads into half of
//! them at most.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::{BufferPool, IoBuf, SMALL_BYTES};

/// How many buffers one of several users may have at a time.
pub(crate) struct Share {
    large: Arc<Semaphore>,
    small: Arc<Semaphore>,
}

impl Share {
    /// Half of the buffers of each size.
    pub(crate) fn half_of(pool: &BufferPool) -> Self {
        let half = |count: usize| Arc::new(Semaphore::new(count.div_ceil(2)));
        Self { large: half(pool.large.count), small: half(pool.small.count) }
    }

    /// [`BufferPool::acquire`] within the share. Cancel safe.
    ///
    /// # Panics
    /// When `min_len` exceeds [`super::LARGE_BYTES`].
    pub(crate) async fn acquire(&self, pool: &Arc<BufferPool>, min_len: usize) -> IoBuf {
        let places = if min_len <= SMALL_BYTES { &self.small } else { &self.large };
        let place = Arc::clone(places).acquire_owned().await.expect("the semaphore of a share is never closed");
        let mut buf = pool.acquire(min_len).await;
        buf.place = Some(place);
        buf
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::buf::{BufferPoolConfig, LARGE_BYTES};

    #[tokio::test]
    async fn who_has_its_share_leaves_the_rest_to_others_until_one_is_back() {
        let pool = BufferPool::new(BufferPoolConfig { large_count: 4, small_count: 4 }).unwrap();
        let (first, second) = (Share::half_of(&pool), Share::half_of(&pool));
        let held = first.acquire(&pool, LARGE_BYTES).await;
        // Shared and in use elsewhere it is still the disk's.
        let shared = first.acquire(&pool, LARGE_BYTES).await.freeze();
        assert!(first.acquire(&pool, LARGE_BYTES).now_or_never().is_none());
        assert!(first.acquire(&pool, 1).now_or_never().is_some(), "of the other size there are some");
        assert!(second.acquire(&pool, LARGE_BYTES).now_or_never().is_some());
        drop(shared);
        assert!(first.acquire(&pool, LARGE_BYTES).now_or_never().is_some());
        drop(held);
        assert!(pool.is_idle());
    }
}
