//! Chunk ids in frames: hexadecimal text, as people see them everywhere else.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::ChunkId;

/// A chunk id that is text in JSON.
#[derive(Clone, Copy)]
struct Hex(ChunkId);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// For a field that is one id.
pub(super) mod one {
    use super::*;

    pub(in crate::peer) fn serialize<S: Serializer>(id: &ChunkId, serializer: S) -> Result<S::Ok, S::Error> {
        Hex(*id).serialize(serializer)
    }

    pub(in crate::peer) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ChunkId, D::Error> {
        Hex::deserialize(deserializer).map(|hex| hex.0)
    }
}

/// For a field that is an id or nothing.
pub(super) mod optional {
    use super::*;

    pub(in crate::peer) fn serialize<S: Serializer>(id: &Option<ChunkId>, serializer: S) -> Result<S::Ok, S::Error> {
        id.map(Hex).serialize(serializer)
    }

    pub(in crate::peer) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<ChunkId>, D::Error> {
        Option::<Hex>::deserialize(deserializer).map(|hex| hex.map(|hex| hex.0))
    }
}

/// For a field that is a list of ids.
pub(super) mod many {
    use super::*;

    pub(in crate::peer) fn serialize<S: Serializer>(ids: &[ChunkId], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ids.iter().copied().map(Hex))
    }

    pub(in crate::peer) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ChunkId>, D::Error> {
        let ids = Vec::<Hex>::deserialize(deserializer)?;
        Ok(ids.into_iter().map(|hex| hex.0).collect())
    }
}
