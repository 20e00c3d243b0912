//! FastDFS as a cold tier.
//!
//! # How a piece lies in FastDFS
//! FastDFS names a file when it has all of it, and cannot be listed; the port wants a name before the bytes. So a piece
//! is two files:
//!
//! * the **master**, an empty file, uploaded by `reserve`. Its id is new, unique, and tells which server took it;
//! * the **data**, a *slave file* of the master, uploaded by `put`. The name of a slave follows from its master's: it
//!   is known before its first byte is sent, can be deleted by anybody who knows it, and is the name of the piece.
//!
//! The data appears by a rename when the server has all of it: an upload that breaks off leaves nothing, and one that
//! is repeated while the server still has bytes of the first ends with a whole file, whichever comes last.
//!
//! An *appender file*, which also has its id before its bytes, was not chosen: a storage that notices after a minute
//! that the sender of an append is gone cuts the file back to what it was before that append, though another has
//! written it anew since. That would destroy a piece after it was verified.
//!
//! What this costs: an empty file a piece (an inode on each replica), two more short exchanges, and pieces never lie in
//! trunk files, FastDFS's way to pack small files.
//!
//! # What is checked
//! A slave's id tells neither its size nor its checksum, but a storage asked for facts of it reads it and computes its
//! CRC32. `put` compares both with what was sent. That reads what the server's file system has, not what it received:
//! more than the id of a plain file tells, for one more read, mostly from the server's page cache. `get` compares the
//! length that the server announces with what was asked for, and a body that ends early is an error. FastDFS itself
//! checks nothing when it reads.
//!
//! # Who is asked
//! Everything goes to the **source**, the server that took the master: it has the data at once, the others only later.
//! Its log has all changes in their order. When it gives no answer, or what it gave was damaged, reads go to the other
//! servers of its group. That such a server does not have the piece, or has less of it, says nothing. A deletion goes
//! to another server only when the trackers say that the source does not work; FastDFS carries it to the source later.
//!
//! # What is left open
//! When a process dies after the last byte of a `put` went to its kernel, and a `delete` of that piece reaches the
//! server before it has dealt with that byte, the data appears behind the deletion and stays. Within a process that
//! cannot happen: a name is held until the server has answered. `reserve` may leave an empty file.
//!
//! # Modules
//! `wire` has the protocol, `connection` and `pool` the connections, `trackers` what trackers are asked, `locate` who
//! has a piece; `read`, `write` and `check` are the port's operations.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use holdfast_actors::flow::key_locks::KeyLocks;
use holdfast_actors::ports::tiers::{ColdBody, ColdTier, PieceName, PieceSpec, TierError, TierHealth, TierResult};

mod check;
mod config;
mod connection;
pub mod crc32;
#[cfg(any(test, feature = "test-doubles"))]
pub mod double;
mod doubts;
mod failure;
mod locate;
mod names;
mod pool;
mod read;
mod trackers;
pub mod wire;
mod write;

#[cfg(test)]
mod tests;

pub use config::FastdfsConfig;

/// A FastDFS cluster as a cold tier. See the module's documentation.
#[derive(Debug)]
pub struct FastdfsColdTier(Arc<Cluster>);

/// What all operations share.
#[derive(Debug)]
struct Cluster {
    config: FastdfsConfig,
    group: Option<wire::GroupName>,
    /// Of an address, or of one port of it.
    address_map: HashMap<(IpAddr, Option<u16>), String>,
    pool: Arc<pool::Pool>,
    trackers: trackers::Trackers,
    sources: locate::Sources,
    /// Pieces that are being changed.
    locks: Arc<KeyLocks<PieceName>>,
    doubts: doubts::Doubts,
}

impl FastdfsColdTier {
    /// Of this cluster. Nothing is connected before it is needed.
    ///
    /// # Errors
    /// [`TierError::Invalid`], with what is wrong with the configuration.
    pub fn new(config: FastdfsConfig) -> TierResult<Self> {
        config.validate()?;
        let group = config.group.as_deref().map(wire::GroupName::new).transpose();
        let group = group.map_err(|error| TierError::Invalid(error.to_string()))?;
        let mapped = |(from, to): (&String, &String)| {
            let whole = from.parse().map(|at: SocketAddr| (at.ip(), Some(at.port())));
            let key = whole.or_else(|_| from.parse().map(|ip: IpAddr| (ip, None)));
            key.map(|key| (key, to.clone())).map_err(|error| TierError::Invalid(format!("{from}: {error}")))
        };
        let address_map = config.address_map.iter().map(mapped).collect::<TierResult<_>>()?;
        let pool = Arc::new(pool::Pool::new(connection::Limits::of(&config), config.connections_max));
        let trackers = trackers::Trackers::new(pool.clone(), config.trackers.clone());
        let (locks, (sources, doubts)) = (KeyLocks::new(), Default::default());
        Ok(Self(Arc::new(Cluster { config, group, address_map, pool, trackers, sources, locks, doubts })))
    }
}

#[async_trait]
impl ColdTier for FastdfsColdTier {
    fn kind(&self) -> &'static str {
        "fastdfs"
    }

    fn piece_bytes_max(&self) -> u64 {
        self.0.config.piece_bytes_max
    }

    async fn reserve(&self, piece: &PieceSpec) -> TierResult<PieceName> {
        self.0.reserve(piece).await
    }

    async fn put(&self, name: &PieceName, piece: &PieceSpec, body: ColdBody) -> TierResult<()> {
        self.0.put(name, piece, body).await
    }

    fn parts_own_their_buffers(&self) -> bool {
        true
    }

    async fn get(&self, name: &PieceName, range: Range<u64>) -> TierResult<ColdBody> {
        self.0.get(name, range).await
    }

    fn keeps_copies(&self) -> bool {
        true
    }

    fn doubt(&self, name: &PieceName) {
        self.0.doubts.add(name);
    }

    async fn size_bytes(&self, name: &PieceName) -> TierResult<u64> {
        self.0.size_bytes(name).await
    }

    async fn delete(&self, name: &PieceName) -> TierResult<()> {
        self.0.delete(name).await
    }

    async fn check(&self) -> TierResult<TierHealth> {
        self.0.check().await
    }
}
