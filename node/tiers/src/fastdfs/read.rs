//! Reading: from the server that took a piece, and from the others of its group when it gives no answer, or when what
//! it gave was damaged.
//!
//! Replicas lag: only the source can say that a piece is missing or short. What another server says about that only
//! means that it is not the one to ask.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use futures::stream;
use holdfast_actors::ports::tiers::{ColdBody, PieceName, TierError, TierResult};

use super::Cluster;
use super::failure::{Failure, Outcome};
use super::locate::{Place, Usage};
use super::names::Piece;
use super::pool::{Lease, Pool};
use super::trackers::Answer;
use super::wire::{self, FileId, FileInfo, INFO_SILENT, INFO_WITHOUT_CRC, WireError, command, status};

/// The longest answer with facts of a file.
const INFO_BYTES_MAX: usize = 128;

/// A storage, in messages.
pub(super) fn storage_name(address: &str) -> String {
    format!("storage {address}")
}

/// Size, time and, if `with_crc`, checksum of a file, which the storage then reads from its disk.
pub(super) async fn file_info(pool: &Pool, address: &str, id: &FileId, with_crc: bool) -> Outcome<FileInfo> {
    let flags = INFO_SILENT | if with_crc { 0 } else { INFO_WITHOUT_CRC };
    let frame = wire::file_request(command::FILE_INFO, flags, &id.group, &id.path);
    Ok(wire::file_info(&pool.exchange(address, &frame, INFO_BYTES_MAX).await?)?)
}

/// Asks a storage for a range of a file, and checks that it is going to send all of it.
async fn open(pool: Arc<Pool>, address: String, id: FileId, range: Range<u64>) -> Outcome<ColdBody> {
    let asked = range.end - range.start;
    match pool.ask(&address, &wire::download(&id.group, &id.path, range.start, asked)).await {
        Ok((lease, got)) if got == asked => Ok(body(lease, asked, storage_name(&address))),
        // It clips a range at the end of the file.
        Ok((_, got)) if got < asked => Err(Failure::Short { got, asked }),
        Ok((_, got)) => Err(WireError::new(format!("{got} bytes where {asked} were asked for")).into()),
        // An empty file, a range behind its end, and before V6.15.4 one that only ends there.
        Err(Failure::Status(status::INVALID)) => {
            let size_bytes = file_info(&pool, &address, &id, false).await?.size_bytes;
            if size_bytes < range.end {
                return Err(Failure::Short { got: size_bytes.saturating_sub(range.start), asked });
            }
            Err(Failure::Status(status::INVALID))
        }
        Err(failure) => Err(failure),
    }
}

/// What a storage is sending. Its connection goes back to the pool behind the last byte.
fn body(lease: Lease, bytes: u64, server: String) -> ColdBody {
    Box::pin(stream::try_unfold((lease, bytes), move |(mut lease, left)| {
        let server = server.clone();
        async move {
            if left == 0 {
                return Ok(None);
            }
            let part = match lease.read(left).await {
                Ok(part) => part,
                Err(failure) => {
                    // Whoever asks again gets another copy, where there is one: the next header may come as readily.
                    lease.broke_off();
                    return Err(failure.at(&server));
                }
            };
            let left = left - part.len() as u64;
            Ok(Some((part, (lease, left))))
        }
    }))
}

impl Cluster {
    /// See [`ColdTier::get`](holdfast_actors::ports::ColdTier::get).
    pub(super) async fn get(&self, name: &PieceName, range: Range<u64>) -> TierResult<ColdBody> {
        let piece = Piece::of_name(name)?;
        if range.is_empty() || i64::try_from(range.end).is_err() {
            return Err(TierError::Invalid(format!("the range {range:?} of {name}")));
        }
        let id = piece.data.clone();
        self.ask_any(name, &piece, |address| open(self.pool.clone(), address, id.clone(), range.clone())).await
    }

    /// See [`ColdTier::size_bytes`](holdfast_actors::ports::ColdTier::size_bytes).
    pub(super) async fn size_bytes(&self, name: &PieceName) -> TierResult<u64> {
        let piece = Piece::of_name(name)?;
        let id = piece.data.clone();
        let info = |address: String| {
            let (pool, id) = (self.pool.clone(), id.clone());
            async move { file_info(&pool, &address, &id, false).await }
        };
        Ok(self.ask_any(name, &piece, info).await?.size_bytes)
    }

    /// Does `ask` at the first server that can do it.
    async fn ask_any<T, F, Fut>(&self, name: &PieceName, piece: &Piece, ask: F) -> TierResult<T>
    where
        F: Fn(String) -> Fut,
        Fut: Future<Output = Outcome<T>>,
    {
        let mut notes = Vec::new();
        let (place, _) = self.locate(piece, Usage::Read, false).await?;
        let mut source_later = matches!(&place, Place::Source(address) if self.pool.failed_lately(address));
        let mut others = Vec::new();
        let doubts = self.doubts.of(name);
        if doubts > 0 {
            others = self.others(piece, &place, &mut notes).await;
            let turn = doubts % (others.len() + 1);
            source_later |= turn > 0;
            others.rotate_left(turn.saturating_sub(1));
        }
        if !source_later && let Some(end) = self.ask_source(name, piece, &ask, &mut notes).await {
            return end;
        }
        if doubts == 0 {
            others = self.others(piece, &place, &mut notes).await;
        }
        others.sort_by_key(|address| self.pool.failed_lately(address));
        for address in others {
            match ask(address.clone()).await {
                Ok(answer) => {
                    tracing::debug!(piece = %name, storage = %address, "read from a replica");
                    return Ok(answer);
                }
                Err(failure) => notes.push(format!("{}: {failure}", storage_name(&address))),
            }
        }
        if source_later && let Some(end) = self.ask_source(name, piece, &ask, &mut notes).await {
            return end;
        }
        Err(TierError::Unavailable(format!("{name}: {}", notes.join("; "))))
    }

    /// Does `ask` at the server that took the piece. `None`: it gives no answer.
    async fn ask_source<T, F, Fut>(
        &self,
        name: &PieceName,
        piece: &Piece,
        ask: &F,
        notes: &mut Vec<String>,
    ) -> Option<TierResult<T>>
    where
        F: Fn(String) -> Fut,
        Fut: Future<Output = Outcome<T>>,
    {
        let mut fresh = false;
        loop {
            let (address, from_memory) = match self.locate(piece, Usage::Read, fresh).await {
                Ok((Place::Source(address), from_memory)) => (address, from_memory),
                Ok((Place::Down { why, .. } | Place::Gone { why, .. }, _)) => {
                    notes.push(why);
                    return None;
                }
                Err(error) => return Some(Err(error)),
            };
            match ask(address.clone()).await {
                Ok(answer) => return Some(Ok(answer)),
                // Its word counts when it is the source.
                Err(Failure::Status(status::MISSING | status::INVALID) | Failure::Short { .. }) if from_memory => {
                    fresh = true;
                }
                Err(failure @ Failure::Short { .. }) => return Some(Err(failure.of(name, &storage_name(&address)))),
                Err(failure) if failure.is_missing() => return Some(Err(failure.of(name, &storage_name(&address)))),
                Err(failure) => {
                    self.sources.forget(&piece.data);
                    notes.push(format!("{}: {failure}", storage_name(&address)));
                    return None;
                }
            }
        }
    }

    /// The other servers that may have a piece. Of a slave file the trackers name only the source, so they are asked
    /// for those that have its master, and for all that work.
    async fn others(&self, piece: &Piece, place: &Place, notes: &mut Vec<String>) -> Vec<String> {
        let (source, mut others) = match place {
            Place::Source(address) => (Some(address), Vec::new()),
            Place::Down { other, .. } | Place::Gone { other, .. } => (None, other.iter().cloned().collect()),
        };
        match self.trackers.fetch_all(&piece.master).await {
            Ok(Answer::Known(addresses)) => others.extend(addresses.into_iter().map(|address| self.dial(address))),
            Ok(Answer::Unknown) => {}
            Err(error) => notes.push(error.to_string()),
        }
        match self.trackers.store_all(&piece.data.group).await {
            Ok(Answer::Known(targets)) => others.extend(targets.into_iter().map(|target| self.dial(target.address))),
            Ok(Answer::Unknown) => {}
            Err(error) => notes.push(error.to_string()),
        }
        let mut seen = std::collections::HashSet::new();
        others.retain(|address| Some(address) != source && seen.insert(address.clone()));
        others
    }
}
