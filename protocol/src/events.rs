//! Events: what Holdfast tells the rest of the company about objects.
//!
//! The body of an event is an S3 event notification ([`EventNotification`]) with one record, as consumers of S3 know
//! it. What is Holdfast's own stands under `holdfast`: the id, by which a consumer tells a repetition. The `sequencer`
//! of two events of one object compares, as text, as the changes happened. The files in `protocol/golden/events` are
//! the form on the wire.

mod id;
mod name;
mod record;

pub use id::{EventId, EventIdError};
pub use name::{EventName, EventPattern, UnknownEvent};
pub use record::{
    EventBucket, EventNotification, EventObject, EventRecord, EventTime, HoldfastElements, Identity, RequestParameters,
    ResponseElements, S3Elements,
};

use crate::hash::fnv1a_folded;

/// How many partitions the outbox has. Fixed: rows that are stored were distributed over so many.
pub const PARTITIONS: u16 = 16;

/// The partition of everything that is ordered by `key`. Stable: nodes of all versions must agree.
pub fn partition_of(key: &[u8]) -> u16 {
    (fnv1a_folded(key.iter().copied()) % u32::from(PARTITIONS)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_those_of_all_versions() {
        let found: Vec<u16> =
            ["", "a", "photos/cat.jpg", "photos/dog.jpg"].map(|k| partition_of(k.as_bytes())).to_vec();
        assert_eq!(found, FIXED);
    }

    /// Never to be changed: rows of the outbox were distributed by it.
    const FIXED: [u16; 4] = [1, 0, 8, 14];

    #[test]
    fn keys_spread_over_all_partitions() {
        let mut counts = [0_u32; PARTITIONS as usize];
        for n in 0..16_000 {
            counts[usize::from(partition_of(format!("bucket/key-{n}").as_bytes()))] += 1;
        }
        assert!(counts.iter().all(|count| (700..1_300).contains(count)), "{counts:?}");
    }
}
