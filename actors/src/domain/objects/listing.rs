//! Walks keys in byte order and groups them by a delimiter, whatever is listed (objects, versions, uploads) and
//! whatever the store: the walk says where to seek, the adapter fetches rows from there and offers their keys.
//!
//! After a common prefix the walk seeks past every key under it, so a listing costs by what it returns.

use crate::ports::metadata::ListAfter;

/// The first byte string that is greater than every one that starts with `prefix`; `None` when there is none (an empty
/// prefix, or nothing but 0xFF).
pub fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|byte| *byte != u8::MAX)? + 1;
    let mut out = prefix[..kept].to_vec();
    out[kept - 1] += 1;
    Some(out)
}

/// What an offered key is to the listing.
#[derive(Debug, PartialEq, Eq)]
pub enum Offer {
    /// An entry of the page: keep the row.
    Entry,
    /// It went into a common prefix; the walk seeks past that prefix now.
    Prefix,
    /// It lies before the seek position: not looked at again.
    Behind,
    /// The page is full and this key would be one more: stop.
    Full,
}

/// The state of one page of a listing.
#[derive(Debug)]
pub struct Walk {
    prefix: Vec<u8>,
    delimiter: Option<String>,
    limit: usize,
    /// Inclusive lower bound of the keys still wanted; `None` when none can follow.
    from: Option<Vec<u8>>,
    /// Exclusive upper bound; `None` is unbounded.
    until: Option<Vec<u8>>,
    entries: usize,
    common_prefixes: Vec<String>,
    last: Option<ListAfter>,
    full: bool,
}

impl Walk {
    /// Starts a page. An empty delimiter counts as none. `resume_within` keeps the key of `ListAfter::Key` itself in
    /// the walk, for listings that go on inside a key.
    pub fn new(prefix: &str, delimiter: Option<&str>, after: &ListAfter, resume_within: bool, limit: u32) -> Self {
        let start = match after {
            ListAfter::Start => Some(Vec::new()),
            ListAfter::Key(key) => {
                let mut from = key.as_bytes().to_vec();
                if !resume_within {
                    // The smallest byte string above the key.
                    from.push(0);
                }
                Some(from)
            }
            ListAfter::Prefix(prefix) => successor(prefix.as_bytes()),
        };
        Self {
            from: start.map(|start| start.max(prefix.as_bytes().to_vec())),
            until: successor(prefix.as_bytes()),
            prefix: prefix.as_bytes().to_vec(),
            delimiter: delimiter.filter(|delimiter| !delimiter.is_empty()).map(str::to_owned),
            limit: limit as usize,
            entries: 0,
            common_prefixes: Vec::new(),
            last: None,
            full: limit == 0,
        }
    }

    /// The range of keys to fetch next: from the first inclusive to the second exclusive (`None` = unbounded). `None`
    /// when the page is done.
    pub fn seek(&self) -> Option<(&[u8], Option<&[u8]>)> {
        if self.full {
            return None;
        }
        let from = self.from.as_deref()?;
        let until = self.until.as_deref();
        until.is_none_or(|until| from < until).then_some((from, until))
    }

    /// Entries and common prefixes that the page can still take, and one more to see whether another page follows.
    pub fn wanted(&self) -> usize {
        self.limit - self.entries - self.common_prefixes.len() + 1
    }

    /// Whether keys are grouped, so that a fetch of many rows may be in vain.
    pub fn groups(&self) -> bool {
        self.delimiter.is_some()
    }

    /// Takes the next key in order. A key may be offered several times in a row (its versions).
    pub fn offer(&mut self, key: &str) -> Offer {
        let bytes = key.as_bytes();
        let in_range = self.from.as_deref().is_some_and(|from| from <= bytes)
            && self.until.as_deref().is_none_or(|until| bytes < until);
        if !in_range {
            return Offer::Behind;
        }
        if self.full || self.entries + self.common_prefixes.len() >= self.limit {
            self.full = true;
            return Offer::Full;
        }
        let group = self.delimiter.as_deref().and_then(|delimiter| {
            // The prefix of the query is a prefix of the key, so the cut lies on a character boundary.
            let found = key[self.prefix.len()..].find(delimiter)?;
            Some(&key[..self.prefix.len() + found + delimiter.len()])
        });
        match group {
            Some(group) => {
                self.from = successor(group.as_bytes());
                self.common_prefixes.push(group.to_owned());
                self.last = Some(ListAfter::Prefix(group.to_owned()));
                Offer::Prefix
            }
            None => {
                self.from = Some(bytes.to_vec());
                self.entries += 1;
                self.last = Some(ListAfter::Key(key.to_owned()));
                Offer::Entry
            }
        }
    }

    /// Says that no row of `key` is left, so that the next seek goes past it.
    pub fn key_done(&mut self, key: &str) {
        let mut from = key.as_bytes().to_vec();
        from.push(0);
        if self.from.as_ref().is_some_and(|at| *at < from) {
            self.from = Some(from);
        }
    }

    /// Ends the page early, though more may follow: the caller's budget is spent.
    pub fn stop(&mut self) {
        self.full = true;
    }

    /// Says that no row is left at all.
    pub fn exhausted(&mut self) {
        self.from = None;
    }

    /// The common prefixes, and where the next page starts if one follows.
    pub fn finish(self) -> (Vec<String>, Option<ListAfter>) {
        let next = if self.full { self.last } else { None };
        (self.common_prefixes, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(
        keys: &[&str],
        prefix: &str,
        delimiter: Option<&str>,
        after: &ListAfter,
        limit: u32,
    ) -> (Vec<String>, Vec<String>, Option<ListAfter>) {
        let mut sorted: Vec<&str> = keys.to_vec();
        sorted.sort_unstable();
        let mut walk = Walk::new(prefix, delimiter, after, false, limit);
        let mut entries = Vec::new();
        while let Some((from, until)) = walk.seek() {
            let found =
                sorted.iter().find(|key| key.as_bytes() >= from && until.is_none_or(|until| key.as_bytes() < until));
            let Some(key) = found else {
                walk.exhausted();
                break;
            };
            if walk.offer(key) == Offer::Entry {
                entries.push((*key).to_owned());
                walk.key_done(key);
            }
        }
        let (prefixes, next) = walk.finish();
        (entries, prefixes, next)
    }

    #[test]
    fn successor_carries_over_the_highest_byte() {
        assert_eq!(successor(b"a"), Some(b"b".to_vec()));
        assert_eq!(successor(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(successor(b"\xff"), None);
        assert_eq!(successor(b""), None);
    }

    #[test]
    fn groups_by_a_delimiter_of_several_characters() {
        let (entries, prefixes, next) = page(&["a::b", "a::c", "a:b", "b"], "", Some("::"), &ListAfter::Start, 10);
        assert_eq!(entries, ["a:b", "b"]);
        assert_eq!(prefixes, ["a::"]);
        assert_eq!(next, None);
    }

    #[test]
    fn pages_go_on_after_a_common_prefix() {
        let keys = ["a/1", "a/2", "b", "c/1"];
        let (entries, prefixes, next) = page(&keys, "", Some("/"), &ListAfter::Start, 1);
        assert_eq!((entries.len(), prefixes.as_slice()), (0, ["a/".to_owned()].as_slice()));
        assert_eq!(next, Some(ListAfter::Prefix("a/".into())));
        let (entries, prefixes, next) = page(&keys, "", Some("/"), &next.unwrap(), 2);
        assert_eq!((entries, prefixes), (vec!["b".to_owned()], vec!["c/".to_owned()]));
        assert_eq!(next, None);
    }

    #[test]
    fn a_full_page_with_nothing_behind_it_has_no_next() {
        let (entries, _, next) = page(&["a", "b"], "", None, &ListAfter::Start, 2);
        assert_eq!((entries.len(), next), (2, None));
    }

    #[test]
    fn limit_zero_is_empty_and_complete() {
        let (entries, prefixes, next) = page(&["a", "b"], "", None, &ListAfter::Start, 0);
        assert_eq!((entries.len(), prefixes.len(), next), (0, 0, None));
    }

    #[test]
    fn a_key_that_prefixes_others_is_an_entry_of_its_own() {
        let (entries, prefixes, _) = page(&["a", "a/", "a/b", "ab"], "a/", Some("/"), &ListAfter::Start, 10);
        assert_eq!((entries, prefixes.len()), (vec!["a/".to_owned(), "a/b".to_owned()], 0));
    }
}
