//! Keys: `<prefix>/<xx>/<content>-<index>-<attempt>[-m]`.
//!
//! `xx` is the last byte of the content's id, which is random: a listing of the prefix by `/` gives 256 folders of even
//! size. The `-m` says that the piece goes in parts. So whoever deletes it knows that there may be uploads without an
//! end, and need not ask for them for the many small pieces that go in one request.

use holdfast_actors::ports::tiers::{PieceName, PieceSpec, TierError, TierResult};
use holdfast_protocol::ContentId;

const IN_PARTS: &str = "-m";

/// The name of a piece, which is its key.
pub(super) fn name_of(prefix: &str, piece: &PieceSpec, in_parts: bool) -> TierResult<PieceName> {
    let slash = if prefix.is_empty() { "" } else { "/" };
    let (content, index, attempt) = (piece.content, piece.index, piece.attempt);
    let [.., folder] = content.0;
    let parts = if in_parts { IN_PARTS } else { "" };
    PieceName::new(format!("{prefix}{slash}{folder:02x}/{content}-{index}-{attempt:x}{parts}"))
}

/// Whether the piece goes in parts, by its name. The prefix may be another than today's: pieces stay where they are.
///
/// # Errors
/// [`TierError::Invalid`] for what [`name_of`] never gave.
pub(super) fn is_in_parts(name: &PieceName) -> TierResult<bool> {
    let parse = |text: &str| {
        let (rest, file) = text.rsplit_once('/')?;
        let prefix = rest.rsplit_once('/').map_or("", |(prefix, _)| prefix);
        let (file, in_parts) = file.strip_suffix(IN_PARTS).map_or((file, false), |file| (file, true));
        let mut numbers = file.splitn(3, '-');
        let content: ContentId = numbers.next()?.parse().ok()?;
        let index = numbers.next()?.parse().ok()?;
        let attempt = u64::from_str_radix(numbers.next()?, 16).ok()?;
        let again = name_of(prefix, &PieceSpec { content, index, attempt, size_bytes: 1 }, in_parts).ok()?;
        (again.as_str() == text).then_some(in_parts)
    };
    parse(name.as_str()).ok_or_else(|| TierError::Invalid(format!("{name} is no name that OSS got")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_how_a_piece_goes() {
        let piece = PieceSpec { content: ContentId([0xab; 12]), index: 7, attempt: u64::MAX, size_bytes: 1 };
        for prefix in ["", "cold", "clusters/one"] {
            for in_parts in [false, true] {
                let name = name_of(prefix, &piece, in_parts).unwrap();
                assert_eq!(is_in_parts(&name).unwrap(), in_parts, "{name}");
            }
        }
        assert_eq!(
            name_of("cold", &piece, true).unwrap().as_str(),
            "cold/ab/abababababababababababab-7-ffffffffffffffff-m"
        );
        for bad in ["photo.jpg", "ab/photo.jpg", "ac/abababababababababababab-7-1", "ab/abababababababababababab-7-1-x"]
        {
            assert!(matches!(is_in_parts(&PieceName::new(bad).unwrap()), Err(TierError::Invalid(_))), "{bad}");
        }
    }
}
