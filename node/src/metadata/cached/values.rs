//! What the cache has to know of its values: their order, and what they weigh.

use holdfast_actors::ports::metadata::{AccessKey, Bucket, ObjectVersion};

use super::coherent::Cacheable;
use crate::metadata::weights::head_bytes;

impl Cacheable for ObjectVersion {
    fn version(&self) -> (u64, u64) {
        (self.sequence, 0)
    }

    fn weight_bytes(&self) -> usize {
        let head = head_bytes(&self.attributes, &self.tags);
        let content = self.content.as_ref().map_or(0, |content| {
            let place = content.cold().map_or(0, |place| {
                let names: usize = place.names.iter().map(|name| size_of::<String>() + name.len()).sum();
                size_of_val(&**place) + place.tier.as_str().len() + names + place.sums.len() * 4
            });
            size_of_val(&**content) + content.manifest.extents.len() * 24 + content.parts.len() * 72 + place
        });
        size_of::<Self>() + self.key.len() + self.owner.len() + head + content
    }
}

impl Cacheable for Bucket {
    fn version(&self) -> (u64, u64) {
        (self.id.0, self.revision)
    }

    fn weight_bytes(&self) -> usize {
        let configs: usize = self.configs.iter().map(|(_, value)| 32 + value.len()).sum();
        size_of::<Self>() + self.name.len() + self.owner.len() + configs
    }
}

impl Cacheable for AccessKey {
    /// Keys have no version of their own; marks alone keep them coherent.
    fn version(&self) -> (u64, u64) {
        (0, 0)
    }

    fn weight_bytes(&self) -> usize {
        size_of::<Self>()
            + self.access_key.len()
            + self.sealed_secret.len()
            + self.user.name.len()
            + self.description.len()
    }
}
