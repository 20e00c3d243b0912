//! The `Journal` port: the error log, the audit log, and messages that were given up.
//!
//! # Rules that every adapter keeps
//! * What is added is durable when the verb returns.
//! * An error is kept once for its id, a dead letter once for its message and group: consumers may repeat themselves.
//! * Entries are shown newest first; numbers rise with time.
//! * Nothing grows for ever: [`Journal::trim`] removes what is too old or too much. Dead letters stay until an operator
//!   has decided; [`Journal::add_dead_letter`] refuses to add more than [`DEAD_LETTERS_MAX`].

use async_trait::async_trait;
use holdfast_protocol::journal::{AuditRecord, DeadLetter, Entry, ErrorKind, ErrorRecord};

use super::events::{Message, Topic};
use super::metadata::MetadataResult;

#[cfg(feature = "conformance")]
pub mod conformance;

/// Dead letters that are kept. Beyond it messages stay with the bus, and are tried again.
pub const DEAD_LETTERS_MAX: u64 = 10_000;
/// The longest detail of an error and the longest error of a dead letter, in bytes; the rest is cut off.
pub const DETAIL_BYTES_MAX: usize = 4_096;
/// The longest other text, in bytes; the rest is cut off.
pub const TEXT_BYTES_MAX: usize = 1_024;

/// Which errors are shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorFilter {
    /// Those since then, in milliseconds since 1970.
    pub since_ms: u64,
    /// Of this node.
    pub node: Option<String>,
    /// Of this kind.
    pub kind: Option<ErrorKind>,
}

/// Which entries of the audit log are shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Those since then, in milliseconds since 1970.
    pub since_ms: u64,
    /// Of this node.
    pub node: Option<String>,
    /// Of operations whose name begins so.
    pub action_prefix: Option<String>,
}

/// How much of a log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Entries from before are removed, in milliseconds since 1970.
    pub from_ms: u64,
    /// And the oldest ones beyond so many.
    pub entries_max: u64,
}

/// A message that is given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDeadLetter {
    /// Where it was published.
    pub topic: Topic,
    /// Which consumers give it up.
    pub group: String,
    /// The message.
    pub message: Message,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it failed the last time.
    pub error: String,
    /// When, in milliseconds since 1970.
    pub now_ms: u64,
}

/// What operators look up. Errors are those of [`super::MetadataStore`].
#[async_trait]
pub trait Journal: Send + Sync + 'static {
    /// Adds errors; those whose id is there already are left out. At most 1,000 at a time.
    async fn add_errors(&self, errors: &[ErrorRecord]) -> MetadataResult<()>;

    /// Errors, newest first, those with a number below `before`, at most `limit`.
    async fn errors(
        &self,
        filter: &ErrorFilter,
        before: Option<u64>,
        limit: u32,
    ) -> MetadataResult<Vec<Entry<ErrorRecord>>>;

    /// Adds an entry to the audit log.
    async fn add_audit(&self, record: &AuditRecord) -> MetadataResult<()>;

    /// Entries of the audit log, newest first, those with a number below `before`, at most `limit`.
    async fn audit(
        &self,
        filter: &AuditFilter,
        before: Option<u64>,
        limit: u32,
    ) -> MetadataResult<Vec<Entry<AuditRecord>>>;

    /// Removes what is too old or too much of the error log and of the audit log, at most `limit` of each; returns how
    /// many.
    async fn trim(&self, errors: Retention, audit: Retention, limit: u32) -> MetadataResult<u64>;

    /// Keeps a message that its consumers give up; if it is there already, it takes a new number. Fails with `Busy`
    /// when there are too many.
    async fn add_dead_letter(&self, letter: NewDeadLetter) -> MetadataResult<()>;

    /// Dead letters in the order of their numbers, those above `after`, at most `limit`, without their bodies.
    async fn dead_letters(&self, after: u64, limit: u32) -> MetadataResult<Vec<DeadLetter>>;

    /// One of them with its body, or `NotFound`.
    async fn dead_letter(&self, number: u64) -> MetadataResult<DeadLetter>;

    /// A dead letter as the message that it was, and where it was published, or `NotFound`.
    async fn dead_message(&self, number: u64) -> MetadataResult<(Topic, Message)>;

    /// Forgets a dead letter. Fails with `NotFound`.
    async fn discard(&self, number: u64) -> MetadataResult<()>;
}

/// `text` cut off at a character's end, so that it has at most `bytes_max` bytes.
pub fn cut(text: &str, bytes_max: usize) -> &str {
    let end = text.floor_char_boundary(bytes_max.min(text.len()));
    &text[..end]
}
