//! Documents of buckets, parsed: they are asked about with each request, and parsing them takes longer than what is
//! asked.
//!
//! Whoever may make buckets may make a thousand of them, each with documents as large as there may be, and has them
//! parsed by one request for each. So what is kept is bounded by the memory that it takes, not by its number.
//!
//! What is kept is found by the document itself, not by the revision of its bucket: a database that lost commits gives
//! the same revision out again, and a policy that was lost must not be in force beside the one that took its place.

use std::sync::Arc;

use holdfast_actors::ports::metadata::BucketId;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

/// About the memory that the documents of a kind take at most.
const BYTES_MAX: u64 = 32 << 20;
/// What an entry takes beside its document.
const ENTRY_BYTES: u64 = 256;
/// What the cache is laid out for. Into so few parts does it fall that the largest document fits into one.
const ITEMS: usize = 64;

/// A document as text, and parsed.
struct Kept<V> {
    text: Box<str>,
    value: V,
}

/// An entry weighs what its document takes, which has so many bytes for each byte of its text.
#[derive(Clone)]
struct ByText(u64);

impl<V> Weighter<BucketId, Arc<Kept<V>>> for ByText {
    fn weight(&self, _: &BucketId, kept: &Arc<Kept<V>>) -> u64 {
        ENTRY_BYTES + kept.text.len() as u64 * self.0
    }
}

/// The documents of one kind. `V` is cheap to clone.
pub(super) struct Parsed<V> {
    kept: Cache<BucketId, Arc<Kept<V>>, ByText>,
}

impl<V: Clone> Parsed<V> {
    /// Of documents that take so many bytes for each byte of their text at most, the text itself included.
    pub(super) fn new(bytes_per_byte: u64) -> Self {
        Self { kept: Cache::with_weighter(ITEMS, BYTES_MAX, ByText(bytes_per_byte)) }
    }

    /// What `parse` makes of a bucket's document.
    ///
    /// # Errors
    /// Those of `parse`, which are not kept.
    pub(super) fn of<E>(&self, bucket: BucketId, text: &str, parse: impl FnOnce(&str) -> Result<V, E>) -> Result<V, E> {
        if let Some(kept) = self.kept.get(&bucket)
            && *kept.text == *text
        {
            return Ok(kept.value.clone());
        }
        let value = parse(text)?;
        self.kept.insert(bucket, Arc::new(Kept { text: text.into(), value: value.clone() }));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;

    const BUCKET: BucketId = BucketId(7);

    #[test]
    fn a_document_is_parsed_once_and_another_one_of_its_bucket_anew() {
        let (parsed, count) = (Parsed::<String>::new(10), Cell::new(0));
        let parse = |text: &str| {
            count.set(count.get() + 1);
            Ok::<_, Infallible>(text.to_uppercase())
        };
        for (text, expected, parses) in [("a", "A", 1), ("a", "A", 1), ("b", "B", 2), ("a", "A", 3)] {
            assert_eq!(parsed.of(BUCKET, text, parse), Ok(expected.to_owned()));
            assert_eq!(count.get(), parses, "{text}");
        }
        assert_eq!(parsed.of(BUCKET, "wrong", |_| Err("why")), Err("why"));
        assert_eq!(parsed.of(BUCKET, "wrong", parse), Ok("WRONG".to_owned()), "errors are not kept");
    }

    #[test]
    fn the_largest_documents_are_kept_and_hundreds_of_them_are_bounded() {
        // Policies, CORS rules, lifecycle rules.
        for (text_bytes, bytes_per_byte) in [
            (holdfast_actors::domain::access::policy::POLICY_BYTES_MAX, super::super::access::POLICY_BYTES_PER_BYTE),
            (256 << 10, super::super::cors::RULES_BYTES_PER_BYTE),
            (super::super::lifecycle::DOCUMENT_BYTES_MAX, super::super::lifecycle::RULES_BYTES_PER_BYTE),
        ] {
            let parsed = Parsed::<()>::new(bytes_per_byte);
            let text = "x".repeat(text_bytes);
            for number in 0..200 {
                assert_eq!(parsed.of(BucketId(number), &text, |_| Ok::<_, &str>(())), Ok(()));
                assert!(parsed.kept.weight() <= BYTES_MAX, "{number} of {text_bytes}");
            }
            let fresh = Parsed::<()>::new(bytes_per_byte);
            for attempt in [Ok(()), Err("it is parsed once more")] {
                assert_eq!(fresh.of(BUCKET, &text, |_| attempt), Ok(()), "{text_bytes}");
            }
        }
    }
}
