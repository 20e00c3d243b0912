//! Which versions and uploads have to be looked at: those that have come of an age that a rule names.
//!
//! A stream is a walk over everything of one kind in a bucket, in order of age, up to what is old enough now. Whatever
//! it has passed was judged by all rules when its time had come, so it need not be looked at again: until the rules
//! change, or something else of it does (its tags, or what its key's latest version is), which the metadata store
//! remembers by itself. Rules that name the same age share a stream, so the cost of a thousand rules with one age is
//! that of one walk.
//!
//! **Moves** to a tier have walks of their own, one for each age and target: while a tier is not there, the walks that
//! need it stand still, and go on from where they stood when it is back. Those that go by the last read have two each:
//! over latest versions by their modification, once reads have been noted for so long, and over notes of reads in order
//! of their day, since what is not due when the first passes it, because it was read, is due when its last read is old
//! enough. The second also looks at everything that was read at all, once that day is over: what was moved for not
//! being read may belong elsewhere now.
//!
//! Names of streams are kept with how far they have come: they must not change their meaning.

use std::fmt::Display;

use holdfast_protocol::TierName;

use super::{Day, LifecycleRules, class_name};

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
    /// Keys that were read, by the day of the last time.
    Read,
}

impl StreamKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Noncurrent => "noncurrent",
            Self::Markers => "markers",
            Self::Uploads => "uploads",
            Self::Read => "read",
        }
    }
}

/// A walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Over what.
    pub kind: StreamKind,
    /// Names it among those of one configuration, at all times. At most 64 bytes.
    pub name: String,
    /// The tier that must be there for what it is about.
    pub tier: Option<TierName>,
    /// The last time that it may look at now.
    pub until_ms: u64,
}

/// Streams, each once.
struct Streams {
    now_ms: u64,
    day: Day,
    found: Vec<Stream>,
}

impl Streams {
    fn add(&mut self, kind: StreamKind, name: impl Display, until_ms: Option<u64>) {
        self.push(kind, format!("{}.{name}", kind.as_str()), None, until_ms);
    }

    /// Of a move.
    fn add_to(&mut self, to: Option<&TierName>, kind: StreamKind, name: impl Display, until_ms: Option<u64>) {
        self.push(kind, format!("{}.{name}.{}", kind.as_str(), class_name(to)), to.cloned(), until_ms);
    }

    fn push(&mut self, kind: StreamKind, name: String, tier: Option<TierName>, until_ms: Option<u64>) {
        let Some(until_ms) = until_ms else { return };
        if !self.found.iter().any(|stream| stream.name == name) {
            self.found.push(Stream { kind, name, tier, until_ms });
        }
    }

    /// Up to what is so old. What is due at the midnight after it was made is looked at a little later: just after
    /// that midnight something may still commit that is older than what is there.
    fn aged(&self, days: u32) -> Option<u64> {
        let now_ms = if days == 0 { self.day.settled_ms(self.now_ms) } else { self.now_ms };
        self.day.last_due_ms(now_ms, days)
    }

    /// Up to the present, from a date on: what is made after it is concerned too.
    fn from(&self, date_ms: u64) -> Option<u64> {
        self.settled().filter(|_| date_ms <= self.now_ms)
    }

    fn settled(&self) -> Option<u64> {
        Some(self.day.settled_ms(self.now_ms))
    }
}

impl LifecycleRules {
    /// The walks that may find something due now, each once.
    pub fn streams(&self, now_ms: u64, day: Day) -> Vec<Stream> {
        let mut streams = Streams { now_ms, day, found: Vec::new() };
        for rule in self.enabled() {
            if let Some(expiration) = &rule.expiration {
                for kind in [StreamKind::Current, StreamKind::Markers] {
                    if let Some(days) = expiration.days {
                        streams.add(kind, format_args!("{days}d"), streams.aged(days));
                    }
                    if let Some(date_ms) = expiration.date_ms {
                        streams.add(kind, format_args!("from{date_ms}"), streams.from(date_ms));
                    }
                }
                if expiration.lone_markers == Some(true) {
                    streams.add(StreamKind::Markers, "all", streams.settled());
                }
            }
            if let Some(noncurrent) = &rule.noncurrent {
                let days = noncurrent.days;
                streams.add(StreamKind::Noncurrent, format_args!("{days}d"), streams.aged(days));
                if noncurrent.keep.is_some() {
                    // Each that becomes noncurrent may be one too many for an older one.
                    streams.add(StreamKind::Noncurrent, "all", streams.settled());
                }
            }
            if let Some(days) = rule.abort_uploads_days {
                streams.add(StreamKind::Uploads, format_args!("{days}d"), streams.aged(days));
            }
        }
        self.add_transitions(&mut streams);
        streams.found
    }

    fn add_transitions(&self, streams: &mut Streams) {
        // What was read is not due by that any more: something else may be, that was due before.
        let mut others = false;
        for rule in self.enabled() {
            for transition in &rule.transitions {
                let to = transition.to.as_ref();
                if let Some(days) = transition.days {
                    streams.add_to(to, StreamKind::Current, format_args!("{days}d"), streams.aged(days));
                }
                if let Some(date_ms) = transition.date_ms {
                    streams.add_to(to, StreamKind::Current, format_args!("from{date_ms}"), streams.from(date_ms));
                }
                if let Some(days) = transition.idle_days {
                    let noted = streams.day.due_ms(self.reads_since_ms.unwrap_or(0), days) <= streams.now_ms;
                    let until_ms = streams.aged(days);
                    streams.add_to(to, StreamKind::Current, format_args!("idle{days}d"), until_ms.filter(|_| noted));
                    streams.add_to(to, StreamKind::Read, format_args!("{days}d"), until_ms);
                }
                others |= transition.idle_days.is_none();
            }
            for transition in &rule.noncurrent_transitions {
                let (to, days) = (transition.to.as_ref(), transition.days);
                streams.add_to(to, StreamKind::Noncurrent, format_args!("{days}d"), streams.aged(days));
                if transition.keep.is_some() {
                    streams.add_to(to, StreamKind::Noncurrent, "all", streams.settled());
                }
            }
        }
        if others && self.asks_for_reads() {
            // Notes come a little later than the reads.
            let settled_ms = streams.day.settled_ms(streams.now_ms);
            streams.add(StreamKind::Read, "back", streams.day.last_due_ms(settled_ms, 0));
        }
    }
}
