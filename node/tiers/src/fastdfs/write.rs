//! Names, uploads and deletions: always at the server that took the first file of a piece, so that one server's log has
//! the order of all changes to it, and replicas repeat them in that order.

use std::mem;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::StreamExt;
use holdfast_actors::flow::key_locks::KeyLock;
use holdfast_actors::ports::tiers::{ColdBody, PieceName, PieceSpec, TierError, TierResult};
use tokio::time::timeout;

use super::Cluster;
use super::crc32::Crc32;
use super::failure::{Failure, Outcome};
use super::locate::{Place, Usage};
use super::names::{Piece, SUFFIX};
use super::pool::Lease;
use super::read::{file_info, storage_name};
use super::trackers::Answer;
use super::wire::{
    self, FileId, INFO_SILENT, INFO_WITHOUT_CRC, PATH_BYTES_MAX, StoreTarget, WireError, command, status,
};

/// The longest reply to an upload or about a file.
const REPLY_BYTES_MAX: usize = wire::GROUP_BYTES + PATH_BYTES_MAX;

/// How many servers are asked for a name beside the one that the tracker chose: the caller may try again.
const OTHERS_MAX: usize = 3;

/// What is left of an upload when everything but its end was sent.
struct Unfinished {
    lease: Lease,
    address: String,
    /// The request's beginning, if the piece is so small that not even that was sent.
    head: Bytes,
    /// Without these bytes the server has no file.
    rest: Bytes,
    size_bytes: u64,
    crc32: u32,
}

impl Cluster {
    /// See [`ColdTier::reserve`](holdfast_actors::ports::ColdTier::reserve).
    pub(super) async fn reserve(&self, spec: &PieceSpec) -> TierResult<PieceName> {
        self.expect_size(spec)?;
        let first = match self.trackers.store(self.group.as_ref()).await? {
            Answer::Known(target) => target,
            Answer::Unknown => {
                if let Some(group) = &self.group {
                    self.expect_group(group).await?;
                }
                return Err(TierError::Unavailable("no storage of FastDFS takes files".into()));
            }
        };
        let mut errors = match self.create(&first).await {
            Ok(name) => return Ok(name),
            Err(error) => vec![error],
        };
        // The trackers take minutes to notice that a server is dead.
        if let Ok(Answer::Known(targets)) = self.trackers.store_all(&first.group).await {
            let others = targets.into_iter().filter(|target| target.address != first.address);
            for target in others.take(OTHERS_MAX) {
                match self.create(&target).await {
                    Ok(name) => return Ok(name),
                    Err(error) => errors.push(error),
                }
            }
        }
        let text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        match errors.into_iter().find(|error| matches!(error, TierError::Full(_) | TierError::Denied(_))) {
            Some(error) => Err(error),
            None => Err(TierError::Unavailable(text)),
        }
    }

    /// Stores an empty file, whose id becomes the name of a piece.
    async fn create(&self, target: &StoreTarget) -> TierResult<PieceName> {
        let address = self.dial(target.address);
        let created = async {
            let reply = self.pool.exchange(&address, &wire::upload_empty(target.path_index), REPLY_BYTES_MAX).await?;
            let stored = wire::stored(&reply)?;
            if stored.group != target.group {
                return Err(WireError::new(format!("it stores in group {}", stored.group.as_str())).into());
            }
            Ok::<_, Failure>(Piece::of_master(FileId::new(stored.group, &stored.path)?)?)
        };
        created.await.map_err(|failure| failure.at(&storage_name(&address)))?.name()
    }

    /// See [`ColdTier::put`](holdfast_actors::ports::ColdTier::put).
    pub(super) async fn put(
        self: &Arc<Self>,
        name: &PieceName,
        spec: &PieceSpec,
        mut body: ColdBody,
    ) -> TierResult<()> {
        self.expect_size(spec)?;
        let piece = Piece::of_name(name)?;
        let lock = self.lock(name).await?;
        let (lease, address) = self.ready_source(name, &piece).await?;
        let sent = self.send_most(lease, address.clone(), &piece, spec.size_bytes, &mut body).await;
        let unfinished = sent.map_err(|failure| failure.of(name, &storage_name(&address)))?;
        // From here on the server may get everything: whether or not anybody still waits, the end is awaited and the
        // lock held.
        let (this, name) = (self.clone(), name.clone());
        let ending = tokio::spawn(async move {
            let ended = this.finish(unfinished, &name, &piece).await;
            drop(lock);
            ended
        });
        ending.await.map_err(|error| TierError::Unavailable(format!("the upload ended: {error}")))?
    }

    /// A connection to the server that took the piece's name, on which there is no data yet, or no more.
    async fn ready_source(&self, name: &PieceName, piece: &Piece) -> TierResult<(Lease, String)> {
        let id = &piece.data;
        let info = wire::file_request(command::FILE_INFO, INFO_SILENT | INFO_WITHOUT_CRC, &id.group, &id.path);
        let mut fresh = false;
        loop {
            let (address, from_memory) = match self.locate(piece, Usage::Change, fresh).await? {
                (Place::Source(address), from_memory) => (address, from_memory),
                (Place::Down { why, .. } | Place::Gone { why, .. }, _) => return Err(TierError::Unavailable(why)),
            };
            let failure = match self.pool.exchange_on(&address, &info, REPLY_BYTES_MAX).await {
                Ok((lease, Err(status::MISSING))) => return Ok((lease, address)),
                Ok((mut lease, Ok(_))) => {
                    // A repeated attempt. Uploading over a file is refused.
                    match lease.exchange(&wire::file_request(command::DELETE, 0, &id.group, &id.path), 0).await {
                        Ok(_) | Err(Failure::Status(status::MISSING)) => return Ok((lease, address)),
                        Err(failure) => failure,
                    }
                }
                Ok((_, Err(status))) => Failure::Status(status),
                Err(failure) => failure,
            };
            self.sources.forget(id);
            if !from_memory {
                return Err(failure.of(name, &storage_name(&address)));
            }
            fresh = true;
        }
    }

    /// Sends a piece but for its end, which waits until the whole body has been seen: so a body that is too short, too
    /// long or broken leaves nothing at the server.
    async fn send_most(
        &self,
        mut lease: Lease,
        address: String,
        piece: &Piece,
        size_bytes: u64,
        body: &mut ColdBody,
    ) -> Outcome<Unfinished> {
        let invalid = |text: String| Failure::Source(TierError::Invalid(text));
        let mut head = Bytes::from(wire::upload_slave_head(&piece.master.path, SUFFIX, size_bytes));
        let mut rest = Bytes::new();
        let mut crc = Crc32::default();
        let mut seen_bytes = 0_u64;
        let patience = self.pool.limits().idle();
        lease.begin();
        loop {
            // The server closes the connection when it gets nothing for too long.
            let next = timeout(patience, body.next()).await;
            let part = match next.map_err(|_| invalid(format!("the source gave nothing for {patience:?}")))? {
                None => break,
                Some(part) => part.map_err(|error| invalid(format!("the source failed: {error}")))?,
            };
            if part.is_empty() {
                continue;
            }
            seen_bytes += part.len() as u64;
            if seen_bytes > size_bytes {
                return Err(invalid(format!("the source gave more than the {size_bytes} bytes announced")));
            }
            crc.update(&part);
            let before = mem::replace(&mut rest, part);
            if !before.is_empty() {
                lease.send(&mut mem::take(&mut head).chain(before)).await?;
            }
        }
        if seen_bytes != size_bytes {
            return Err(invalid(format!("the source gave {seen_bytes} of the {size_bytes} bytes announced")));
        }
        Ok(Unfinished { lease, address, head, rest, size_bytes, crc32: crc.value() })
    }

    /// Sends the end of a piece, and compares what the server then has with what was sent.
    async fn finish(&self, upload: Unfinished, name: &PieceName, piece: &Piece) -> TierResult<()> {
        let Unfinished { mut lease, address, head, rest, size_bytes, crc32 } = upload;
        let has = async {
            lease.send(&mut head.chain(rest)).await?;
            let stored = wire::stored(&lease.reply(REPLY_BYTES_MAX).await?)?;
            if stored.path != piece.data.path || stored.group != piece.data.group {
                return Err(WireError::new(format!("it stored {} instead", stored.path)).into());
            }
            drop(lease);
            file_info(&self.pool, &address, &piece.data, true).await
        };
        let has = has.await.map_err(|failure| failure.of(name, &storage_name(&address)))?;
        if (has.size_bytes, has.crc32) == (size_bytes, crc32) {
            return Ok(());
        }
        let detail = format!(
            "storage {address} has {} bytes with CRC32 {:08x}, sent were {size_bytes} with {crc32:08x}",
            has.size_bytes, has.crc32
        );
        Err(TierError::Corrupt { piece: name.clone(), detail })
    }

    /// See [`ColdTier::delete`](holdfast_actors::ports::ColdTier::delete).
    pub(super) async fn delete(&self, name: &PieceName) -> TierResult<()> {
        let piece = Piece::of_name(name)?;
        let _lock = self.lock(name).await?;
        // Not from memory: what is missing there might lie elsewhere.
        let (place, _) = self.locate(&piece, Usage::Change, true).await?;
        let (address, doubt) = match place {
            Place::Source(address) | Place::Gone { other: Some(address), .. } => (address, None),
            // The source repeats the deletion when it is back.
            Place::Down { other: Some(address), why } => (address, Some(why)),
            Place::Down { other: None, why } | Place::Gone { other: None, why } => {
                return Err(TierError::Unavailable(why));
            }
        };
        // The data first: while the master is there, so is the way to it.
        for id in [&piece.data, &piece.master] {
            let frame = wire::file_request(command::DELETE, 0, &id.group, &id.path);
            match (self.pool.exchange(&address, &frame, 0).await, &doubt) {
                (Ok(_), _) | (Err(Failure::Status(status::MISSING)), None) => {}
                (Err(Failure::Status(status::MISSING)), Some(why)) => {
                    return Err(TierError::Unavailable(format!("{why}, and storage {address} does not have {id}")));
                }
                (Err(failure), _) => return Err(failure.at(&storage_name(&address))),
            }
        }
        Ok(())
    }

    /// One change of a piece at a time, within this process. A `put` that its caller dropped may still be waiting for
    /// the server's answer, and the server may be about to give the file its name: a `delete` of that piece has to wait
    /// until that is over, or it finds nothing and the file appears behind it.
    async fn lock(&self, name: &PieceName) -> TierResult<KeyLock<PieceName>> {
        let locked = self.locks.lock_within(name.clone(), self.pool.limits().overall()).await;
        locked.ok_or_else(|| TierError::Unavailable(format!("another change of {name} does not end")))
    }

    fn expect_size(&self, spec: &PieceSpec) -> TierResult<()> {
        let max = self.config.piece_bytes_max;
        if (1..=max).contains(&spec.size_bytes) {
            return Ok(());
        }
        Err(TierError::Invalid(format!("a piece of {} bytes where 1 to {max} are allowed", spec.size_bytes)))
    }
}
