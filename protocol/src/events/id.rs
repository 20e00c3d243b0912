//! Ids of events.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Tells an event from all others; its repetitions have the same.
///
/// The sequence rises with the changes of one object. The nonce keeps ids apart should sequences be given out again,
/// after metadata was restored from a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// Given by the database in the transaction of the change.
    pub sequence: u64,
    /// Random.
    pub nonce: u32,
}

/// Text that is no id of an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no event id: sixteen hexadecimal digits, a dash and eight more are expected")]
pub struct EventIdError(String);

impl EventId {
    /// A new id.
    pub fn generate(sequence: u64) -> Self {
        Self { sequence, nonce: rand::random() }
    }

    /// The sequence as S3's `sequencer`: sixteen digits, so that they compare as text.
    pub fn sequencer(&self) -> String {
        format!("{:016X}", self.sequence)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:08x}", self.sequence, self.nonce)
    }
}

impl FromStr for EventId {
    type Err = EventIdError;

    fn from_str(text: &str) -> Result<Self, EventIdError> {
        let refused = || EventIdError(text.to_owned());
        let (sequence, nonce) = text.split_once('-').ok_or_else(refused)?;
        let digits = |part: &str, count| part.len() == count && part.bytes().all(|b| b.is_ascii_hexdigit());
        if !digits(sequence, 16) || !digits(nonce, 8) {
            return Err(refused());
        }
        Ok(Self {
            sequence: u64::from_str_radix(sequence, 16).map_err(|_| refused())?,
            nonce: u32::from_str_radix(nonce, 16).map_err(|_| refused())?,
        })
    }
}

impl Serialize for EventId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        let id = EventId { sequence: 0x1_2345, nonce: 0xff };
        assert_eq!(id.to_string(), "0000000000012345-000000ff");
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "12345-ff", "0000000000012345000000ff", "+000000000012345-000000ff"] {
            assert!(wrong.parse::<EventId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sequencers_compare_as_text() {
        let of = |sequence| EventId { sequence, nonce: 0 }.sequencer();
        assert!(of(9) < of(10) && of(255) < of(256) && of(u64::MAX - 1) < of(u64::MAX));
    }
}
