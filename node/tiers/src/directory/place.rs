//! Where a piece lies below the root: two levels of 256 directories by the last bytes of the content's id, which are
//! random.

use holdfast_actors::ports::tiers::{PieceName, PieceSpec, TierError, TierResult};
use holdfast_protocol::ContentId;

/// A piece's place. It is made of numbers only, so that no name from metadata leads out of the root.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The name that it has in the metadata.
    pub(super) piece: PieceName,
    /// The directory in the root.
    pub(super) outer: String,
    /// The directory in that one.
    pub(super) inner: String,
    /// The file in that one.
    pub(super) file: String,
}

impl Place {
    pub(super) fn of(spec: &PieceSpec) -> TierResult<Self> {
        let (content, index, attempt) = (spec.content, spec.index, spec.attempt);
        let [.., outer, inner] = content.0;
        let (outer, inner) = (format!("{outer:02x}"), format!("{inner:02x}"));
        let file = format!("{content}-{index}-{attempt:x}");
        let piece = PieceName::new(format!("{outer}/{inner}/{file}"))?;
        Ok(Self { piece, outer, inner, file })
    }

    /// The place of a name that [`Place::of`] gave.
    ///
    /// # Errors
    /// [`TierError::Invalid`] for any other name.
    pub(super) fn parse(name: &PieceName) -> TierResult<Self> {
        let spec = || {
            let mut parts = name.as_str().rsplit('/').next()?.splitn(3, '-');
            let content: ContentId = parts.next()?.parse().ok()?;
            let index = parts.next()?.parse().ok()?;
            let attempt = u64::from_str_radix(parts.next()?, 16).ok()?;
            Some(PieceSpec { content, index, attempt, size_bytes: 1 })
        };
        let place = spec().map(|spec| Self::of(&spec)).transpose()?;
        place
            .filter(|place| place.piece == *name)
            .ok_or_else(|| TierError::Invalid(format!("{name} is no name that a directory gave")))
    }

    /// What the names of temporary files of this piece begin with.
    pub(super) fn temporary_prefix(&self) -> String {
        format!(".{}.", self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_places_and_nothing_else_does() {
        let content = ContentId([0xab, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x0a, 0xff]);
        for (index, attempt) in [(0, 0), (7, 255), (u32::MAX, u64::MAX)] {
            let place = Place::of(&PieceSpec { content, index, attempt, size_bytes: 1 }).unwrap();
            let parsed = Place::parse(&place.piece).unwrap();
            assert_eq!((parsed.outer.as_str(), parsed.inner.as_str(), parsed.file), ("0a", "ff", place.file));
        }
        for bad in [
            "../../etc/passwd",
            "0a/ff/../ab0102030405060708090aff-0-1",
            "/0a/ff/ab010203040506070809",
            "../ab0102030405060708090aff-0-1",
            "0a/fe/ab0102030405060708090aff-0-1",
            "0a/ff/AB0102030405060708090aff-0-1",
            "0a/ff/ab0102030405060708090aff-00-1",
            "0a/ff/ab0102030405060708090aff-0-01",
            "0a/ff/ab0102030405060708090aff-+0-1",
            "0a/ff/ab0102030405060708090aff-0-1/x",
            "ab0102030405060708090aff-0-1",
            ".holdfast-tier",
        ] {
            let parsed = Place::parse(&PieceName::new(bad).unwrap());
            assert!(matches!(parsed, Err(TierError::Invalid(_))), "{bad}");
        }
        assert!(Place::parse(&PieceName::new("0a/ff/ab0102030405060708090aff-0-1").unwrap()).is_ok());
    }
}
