//! The names of pieces: the id of a slave file, from which its master's follows.

use holdfast_actors::ports::tiers::{PieceName, TierError, TierResult};

use super::wire::{FileId, GROUP_BYTES, PATH_BYTES_MAX, PREFIX_BYTES, WireResult};

/// What a slave's name has after its master's. Not `-m`, which is where FastDFS keeps a file's metadata.
pub(super) const SUFFIX: &str = "-cold";
const _: () = assert!(SUFFIX.len() <= PREFIX_BYTES);
// A name of the port holds every id.
const _: () = assert!(GROUP_BYTES + 1 + PATH_BYTES_MAX <= PieceName::BYTES_MAX);

/// How long the end of a plain file's path is, and of a file's in a trunk file.
const PLAIN_BYTES: usize = 7;
const TRUNK_BYTES: usize = 16 + PLAIN_BYTES;

/// The two files of a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// The empty file that gives the piece its name.
    pub(super) master: FileId,
    /// The file with the bytes.
    pub(super) data: FileId,
}

impl Piece {
    /// The piece of an empty file that was just stored.
    pub(super) fn of_master(master: FileId) -> WireResult<Self> {
        let expected = if master.size.is_trunk() { TRUNK_BYTES } else { PLAIN_BYTES };
        if master.suffix().len() != expected || master.size.bytes() != Some(0) {
            return Err(super::wire::WireError::new(format!("{master} is not the id of an empty file")));
        }
        let data = FileId::new(master.group.clone(), &format!("{}{SUFFIX}", master.path))?;
        Ok(Self { master, data })
    }

    /// The piece of a name that [`Piece::name`] gave.
    pub(super) fn of_name(name: &PieceName) -> TierResult<Self> {
        let master = name.as_str().strip_suffix(SUFFIX).and_then(|master| FileId::parse(master).ok());
        let piece = master.and_then(|master| Self::of_master(master).ok());
        piece.ok_or_else(|| TierError::Invalid(format!("{name} is no name of a piece in FastDFS")))
    }

    /// What metadata keeps.
    pub(super) fn name(&self) -> TierResult<PieceName> {
        PieceName::new(self.data.to_string())
    }
}
