//! Pieces whose bytes were found damaged lately: each time, the next read begins with another copy.

use std::collections::HashMap;
use std::time::Duration;

use holdfast_actors::ports::tiers::PieceName;
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a doubt lasts: longer than a reader goes on trying.
const LASTS: Duration = Duration::from_secs(60);
/// More are forgotten, which only makes reads begin with the source again.
const PIECES_MAX: usize = 1024;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Doubts(Mutex<HashMap<PieceName, (usize, Instant)>>);

impl Doubts {
    pub(super) fn add(&self, name: &PieceName) {
        let mut pieces = self.0.lock();
        let before = pieces.get(name).filter(|(_, since)| since.elapsed() < LASTS).map_or(0, |(count, _)| *count);
        if pieces.len() >= PIECES_MAX {
            pieces.clear();
        }
        pieces.insert(name.clone(), (before + 1, Instant::now()));
    }

    /// How often the piece was doubted.
    pub(super) fn of(&self, name: &PieceName) -> usize {
        self.0.lock().get(name).filter(|(_, since)| since.elapsed() < LASTS).map_or(0, |(count, _)| *count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn doubts_are_counted_and_do_not_last() {
        let (doubts, name) = (Doubts::default(), PieceName::new("a").unwrap());
        doubts.add(&name);
        doubts.add(&name);
        assert_eq!((doubts.of(&name), doubts.of(&PieceName::new("b").unwrap())), (2, 0));
        tokio::time::advance(LASTS).await;
        assert_eq!(doubts.of(&name), 0);
        doubts.add(&name);
        assert_eq!(doubts.of(&name), 1);
        for number in 0..3 * PIECES_MAX {
            doubts.add(&PieceName::new(number.to_string()).unwrap());
        }
        assert!(doubts.0.lock().len() <= PIECES_MAX);
    }
}
