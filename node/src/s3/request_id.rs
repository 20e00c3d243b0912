//! Request ids, and what becomes known of a request while it is handled.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use holdfast_actors::ports::metadata::Bucket;
use parking_lot::Mutex;
use s3s::dto;

use super::auth::Caller;
use super::judged::Judged;

/// A request's id: 16 upper-case hex digits, as in S3. It goes into the log, the header `x-amz-request-id` and the body
/// of an error, so that a user's report leads to the log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestId(u64);

impl RequestId {
    /// A random id.
    pub fn generate() -> Self {
        Self(rand::random())
    }

    /// Its digits in ASCII. By hand: each request shows its id twice, and `format!` takes ten times as long.
    pub(crate) fn digits(self) -> [u8; 16] {
        std::array::from_fn(|place| b"0123456789ABCDEF"[(self.0 >> (60 - 4 * place)) as usize & 15])
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.digits()).map_err(|_| fmt::Error)?)
    }
}

/// That access control had nothing against a request. In the extensions of one that is given to s3s once more it takes
/// the place of a signature; clients cannot set it.
#[derive(Debug, Clone)]
pub(crate) struct Granted {
    pub(crate) operation: &'static str,
    pub(crate) caller: Caller,
    pub(crate) bucket: Arc<Bucket>,
    pub(crate) judged: Judged,
}

/// Shared between the HTTP service around s3s, which logs and counts a request, and access control inside, which learns
/// what it is.
#[derive(Debug)]
pub struct RequestContext {
    id: RequestId,
    operation: OnceLock<&'static str>,
    user: OnceLock<Option<String>>,
    granted: Mutex<Option<Granted>>,
    /// Whether a grant is kept, whatever the operation.
    keeps_grant: AtomicBool,
    /// What a bucket is to be made with.
    bucket_tags: Mutex<Vec<dto::Tag>>,
}

impl RequestContext {
    /// A request of which only the id is known.
    pub fn new(id: RequestId) -> Self {
        Self {
            id,
            operation: OnceLock::new(),
            user: OnceLock::new(),
            granted: Mutex::new(None),
            keeps_grant: AtomicBool::new(false),
            bucket_tags: Mutex::default(),
        }
    }

    /// The id.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// The operation's name; `Unknown` for a request that failed before it was recognised.
    pub fn operation(&self) -> &'static str {
        self.operation.get().copied().unwrap_or("Unknown")
    }

    /// The caller's name; `None` for anonymous requests and those that failed before.
    pub fn user(&self) -> Option<&str> {
        self.user.get().and_then(Option::as_deref)
    }

    /// Called once the operation is known; the first call counts.
    pub(crate) fn set_operation(&self, name: &'static str) {
        let _ = self.operation.set(name);
    }

    /// Called once the caller is known; the first call counts.
    pub(crate) fn set_caller(&self, caller: &Caller) {
        let _ = self.user.set(caller.user_name().map(str::to_owned));
    }

    /// Called for a request that may be given to s3s once more, whatever the operation.
    pub(crate) fn keep_grant(&self) {
        self.keeps_grant.store(true, Ordering::Relaxed);
    }

    /// Whether that was called.
    pub(crate) fn keeps_grant(&self) -> bool {
        self.keeps_grant.load(Ordering::Relaxed)
    }

    /// Called once access control had nothing against a request that may be given to s3s once more.
    pub(crate) fn set_granted(&self, granted: Granted) {
        *self.granted.lock() = Some(granted);
    }

    /// Called with the tags in the document of a CreateBucket.
    pub(crate) fn set_bucket_tags(&self, tags: Vec<dto::Tag>) {
        *self.bucket_tags.lock() = tags;
    }

    /// Those tags, once.
    pub(crate) fn take_bucket_tags(&self) -> Vec<dto::Tag> {
        std::mem::take(&mut *self.bucket_tags.lock())
    }

    /// What was granted, once.
    pub(crate) fn take_granted(&self) -> Option<Granted> {
        self.granted.lock().take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_sixteen_hex_digits_and_differ() {
        let (a, b) = (RequestId::generate().to_string(), RequestId::generate().to_string());
        assert!(a.len() == 16 && a.bytes().all(|c| c.is_ascii_digit() || (b'A'..=b'F').contains(&c)), "{a}");
        assert_ne!(a, b);
        assert_eq!(RequestId(7).to_string(), "0000000000000007");
        assert_eq!(RequestId(0xFEDC_BA98_7654_3210).to_string(), "FEDCBA9876543210");
    }
}
