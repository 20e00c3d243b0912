//! Identifiers of a cluster and its nodes.

use std::fmt;
use std::str::FromStr;

use rand::RngCore;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::hex_bytes;

/// Text that is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {kind} {text:?}: expected {digits} hexadecimal digits")]
pub struct ParseClusterIdError {
    kind: &'static str,
    text: String,
    digits: usize,
}

/// An identifier that is text wherever people or JSON see it.
macro_rules! text_id {
    ($name:ident, $len:literal, $kind:literal) => {
        hex_bytes!($name, $len);

        impl $name {
            /// A fresh identifier.
            pub fn generate() -> Self {
                let mut bytes = [0; $len];
                rand::rng().fill_bytes(&mut bytes);
                Self(bytes)
            }
        }

        impl FromStr for $name {
            type Err = ParseClusterIdError;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; $len];
                hex::decode_to_slice(s, &mut bytes).map_err(|_| ParseClusterIdError {
                    kind: $kind,
                    text: s.chars().take(40).collect(),
                    digits: 2 * $len,
                })?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// Names one node for its whole life. It is drawn once, when the data directory is made, and lives there: a node that
/// moves to another address keeps it, a node whose data directory is lost gets another. Two live nodes with the same
/// one are refused at registration.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub [u8; 8]);

text_id!(NodeId, 8, "node id");

impl From<u64> for NodeId {
    fn from(value: u64) -> Self {
        Self(value.to_be_bytes())
    }
}

/// Names one cluster. Every node writes it into its data directory when it joins, so that a node pointed at another
/// cluster's coordination service is refused instead of mixing their data.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub [u8; 16]);

text_id!(ClusterId, 16, "cluster id");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_id_text_round_trips_and_rejects_other_lengths() {
        let id = NodeId::generate();
        assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
        assert!("".parse::<NodeId>().is_err());
        assert!("0123".parse::<NodeId>().is_err());
        assert!("zz23456789abcdef".parse::<NodeId>().is_err());
        assert_eq!(NodeId::from(0x0123_4567_89ab_cdef).to_string(), "0123456789abcdef");
    }
}
