//! The lists of a shard's members, side by side.

use std::collections::BTreeMap;

use holdfast_protocol::{ChunkId, NodeId};

use crate::ports::chunks::ChunkInfo;

/// A chunk that a member seems to lack, or to have in another size than most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Suspect {
    /// Which chunk.
    pub(super) chunk: ChunkId,
    /// The size that it is to have, where that is the question.
    size_bytes: Option<u32>,
}

impl Suspect {
    /// Whether it still is so, by what the member has of it now.
    pub(super) fn is_wrong(&self, found: Option<ChunkInfo>) -> bool {
        found.is_none_or(|found| self.size_bytes.is_some_and(|size| size != found.size_bytes))
    }
}

/// Who has what.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// The members whose lists are in it. Each has a bit, by its place.
    pub(super) members: Vec<NodeId>,
    /// Who has each chunk, and the size in which it was seen first.
    chunks: BTreeMap<ChunkId, (u32, u64)>,
    /// Who has a chunk in another size than that one. As a rule nobody has.
    odd: BTreeMap<ChunkId, BTreeMap<u32, u64>>,
}

impl Lists {
    /// The next member, which is not one of [`Self::members`] yet, has a chunk.
    pub(super) fn add(&mut self, info: ChunkInfo) {
        let bit = 1_u64 << self.members.len();
        let (size_bytes, holders) = self.chunks.entry(info.id).or_insert((info.size_bytes, 0));
        *holders |= bit;
        if *size_bytes != info.size_bytes {
            *self.odd.entry(info.id).or_default().entry(info.size_bytes).or_default() |= bit;
        }
    }

    /// The next member could not be asked to the end.
    pub(super) fn forget_last(&mut self) {
        let bit = 1_u64 << self.members.len();
        self.chunks.values_mut().for_each(|(_, holders)| *holders &= !bit);
        self.chunks.retain(|_, (_, holders)| *holders != 0);
        for sizes in self.odd.values_mut() {
            sizes.values_mut().for_each(|holders| *holders &= !bit);
        }
    }

    /// The sizes that a chunk has, each with who has it.
    fn sizes(&self, chunk: &ChunkId) -> Vec<(u32, u64)> {
        let Some((first, holders)) = self.chunks.get(chunk) else { return Vec::new() };
        let odd = self.odd.get(chunk).into_iter().flatten().map(|(size, holders)| (*size, *holders));
        let odd: Vec<(u32, u64)> = odd.collect();
        let others = odd.iter().fold(0_u64, |all, (_, holders)| all | holders);
        let sizes = std::iter::once((*first, holders & !others)).chain(odd);
        sizes.filter(|(_, holders)| *holders != 0).collect()
    }

    /// The chunks that have several sizes, each with the one that most of its holders have, if there is one.
    fn unequal(&self) -> impl Iterator<Item = (ChunkId, Option<u32>, Vec<(u32, u64)>)> + '_ {
        self.odd.keys().filter_map(|chunk| {
            let sizes = self.sizes(chunk);
            let all: u32 = sizes.iter().map(|(_, holders)| holders.count_ones()).sum();
            let most = sizes.iter().find(|(_, holders)| holders.count_ones() * 2 > all).map(|(size, _)| *size);
            (sizes.len() > 1).then_some((*chunk, most, sizes))
        })
    }

    /// What is to be looked at again, by member.
    pub(super) fn suspects(&self) -> BTreeMap<NodeId, Vec<Suspect>> {
        let all = (1_u64 << self.members.len()) - 1;
        let mut suspects: BTreeMap<NodeId, Vec<Suspect>> = BTreeMap::new();
        let mut suspect = |members: u64, chunk: ChunkId, size_bytes: Option<u32>| {
            for (_, member) in self.members.iter().enumerate().filter(|(at, _)| members & (1_u64 << *at) != 0) {
                suspects.entry(*member).or_default().push(Suspect { chunk, size_bytes });
            }
        };
        for (chunk, (_, holders)) in self.chunks.iter().filter(|(_, (_, holders))| *holders != all) {
            suspect(all & !holders, *chunk, None);
        }
        for (chunk, most, sizes) in self.unequal() {
            for (_, holders) in sizes.iter().filter(|(size, _)| most.is_some_and(|most| most != *size)) {
                suspect(*holders, chunk, most);
            }
        }
        suspects
    }

    /// The chunks that have several sizes, none of which most of their holders have.
    pub(super) fn undecided(&self) -> Vec<ChunkId> {
        self.unequal().filter(|(_, most, _)| most.is_none()).map(|(chunk, ..)| chunk).collect()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::ContentId;

    use super::*;

    fn info(n: u32, size_bytes: u32) -> ChunkInfo {
        ChunkInfo { id: ContentId([1; 12]).chunk(n), size_bytes }
    }

    fn lists(members: &[&[ChunkInfo]]) -> Lists {
        let mut lists = Lists::default();
        for (at, infos) in members.iter().enumerate() {
            infos.iter().for_each(|info| lists.add(*info));
            lists.members.push(NodeId::from(at as u64 + 1));
        }
        lists
    }

    #[test]
    fn who_lacks_a_chunk_and_who_has_it_in_another_size_than_most_is_suspected() {
        let lists = lists(&[&[info(1, 9), info(2, 5)], &[info(1, 9), info(2, 7)], &[info(2, 7), info(3, 1)]]);
        let suspect = |n, size_bytes| Suspect { chunk: info(n, 0).id, size_bytes };
        let suspects = lists.suspects();
        assert_eq!(suspects[&NodeId::from(1)], [suspect(3, None), suspect(2, Some(7))]);
        assert_eq!(suspects[&NodeId::from(2)], [suspect(3, None)]);
        assert_eq!(suspects[&NodeId::from(3)], [suspect(1, None)]);
        assert!(lists.undecided().is_empty());
    }

    #[test]
    fn of_two_sizes_on_two_members_none_is_the_right_one() {
        let lists = lists(&[&[info(1, 9)], &[info(1, 8)]]);
        assert!(lists.suspects().is_empty());
        assert_eq!(lists.undecided(), [info(1, 0).id]);
    }

    #[test]
    fn half_a_list_says_nothing() {
        let mut lists = lists(&[&[info(1, 9)], &[info(1, 9)]]);
        lists.add(info(1, 8));
        lists.add(info(2, 8));
        lists.forget_last();
        assert!(lists.suspects().is_empty() && lists.undecided().is_empty());
    }

    #[test]
    fn what_arrived_meanwhile_or_has_the_right_size_by_now_is_not_wrong() {
        let chunk = info(1, 0).id;
        let missing = Suspect { chunk, size_bytes: None };
        assert!(missing.is_wrong(None) && !missing.is_wrong(Some(info(1, 4))));
        let odd = Suspect { chunk, size_bytes: Some(4) };
        assert!(odd.is_wrong(None) && odd.is_wrong(Some(info(1, 5))) && !odd.is_wrong(Some(info(1, 4))));
    }
}
