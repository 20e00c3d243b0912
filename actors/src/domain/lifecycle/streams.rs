//! Which versions and uploads have to be looked at: those that have come of an age that a rule names.
//!
//! A stream is a walk over everything of one kind in a bucket, in order of age, up to what is old enough now. Whatever it has
//! passed was judged by all rules when its time had come, so it need not be looked at again: until the rules change, or
//! something else of it does (its tags, or what its key's latest version is), which the metadata store remembers by itself.
//! Rules that name the same age share a stream, so the cost of a thousand rules with one age is that of one walk.

use super::{Day, LifecycleRules};

/// What a stream goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// Latest versions that are objects, by their last modification.
    Current,
    /// Older versions, by when they became that.
    Noncurrent,
    /// Delete markers that are the latest version, by when they were made.
    Markers,
    /// Unfinished uploads, by their begin.
    Uploads,
}

impl StreamKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Noncurrent => "noncurrent",
            Self::Markers => "markers",
            Self::Uploads => "uploads",
        }
    }
}

/// A walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Over what.
    pub kind: StreamKind,
    /// Names it among those of one configuration, at all times.
    pub name: String,
    /// The last time that it may look at now.
    pub until_ms: u64,
}

impl LifecycleRules {
    /// The walks that may find something due now, each once.
    pub fn streams(&self, now_ms: u64, day: Day) -> Vec<Stream> {
        let mut streams: Vec<Stream> = Vec::new();
        let mut add = |kind: StreamKind, name: String, until_ms: Option<u64>| {
            let Some(until_ms) = until_ms else { return };
            let name = format!("{}.{name}", kind.as_str());
            if !streams.iter().any(|stream| stream.name == name) {
                streams.push(Stream { kind, name, until_ms });
            }
        };
        let aged = |days: u32| (format!("{days}d"), day.last_due_ms(now_ms, days));
        let settled = Some(day.settled_ms(now_ms));
        for rule in self.enabled() {
            if let Some(expiration) = &rule.expiration {
                for kind in [StreamKind::Current, StreamKind::Markers] {
                    if let Some(days) = expiration.days {
                        let (name, until_ms) = aged(days);
                        add(kind, name, until_ms);
                    }
                    if let Some(date_ms) = expiration.date_ms {
                        // What is made after the date expires too.
                        add(kind, format!("from{date_ms}"), settled.filter(|_| date_ms <= now_ms));
                    }
                }
                if expiration.lone_markers == Some(true) {
                    add(StreamKind::Markers, "all".into(), settled);
                }
            }
            if let Some(noncurrent) = &rule.noncurrent {
                let (name, until_ms) = aged(noncurrent.days);
                add(StreamKind::Noncurrent, name, until_ms);
                if noncurrent.keep.is_some() {
                    // Each that becomes noncurrent may be one too many for an older one.
                    add(StreamKind::Noncurrent, "all".into(), settled);
                }
            }
            if let Some(days) = rule.abort_uploads_days {
                let (name, until_ms) = aged(days);
                add(StreamKind::Uploads, name, until_ms);
            }
        }
        streams
    }
}
