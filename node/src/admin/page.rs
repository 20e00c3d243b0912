//! Lists by pages: how they are asked for, and how they are answered. A page says with `next` where the one behind it
//! begins, and is asked for it with `after`.

use std::fmt::Display;
use std::str::FromStr;

use axum::extract::{FromRequestParts, Query};
use holdfast_protocol::admin::Page;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::ApiError;

/// Most items of a page.
const LIMIT_MAX: u32 = 1_000;

/// The parameters behind the `?` of a request, with errors as ours.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut http::request::Parts, state: &S) -> Result<Self, ApiError> {
        let Query(params) = Query::<T>::from_request_parts(parts, state).await?;
        Ok(Self(params))
    }
}

/// Parameters of a list of things that are known by name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    after: Option<String>,
    limit: Option<u32>,
    pub(super) user: Option<String>,
}

impl List {
    /// The page: of all that there are, if nothing else is said.
    pub(super) fn asked(&self) -> Result<Asked<String>, ApiError> {
        Asked::new(self.after.as_deref(), limit(self.limit, LIMIT_MAX))
    }
}

/// How many items are asked for, in bounds.
pub(super) fn limit(asked: Option<u32>, default: u32) -> u32 {
    asked.unwrap_or(default).clamp(1, LIMIT_MAX)
}

/// A page that is asked for, of things that each have a place.
#[derive(Debug)]
pub(super) struct Asked<P> {
    /// The place of the last item before the page.
    pub(super) after: Option<P>,
    limit: u32,
}

impl<P: FromStr + Display> Asked<P> {
    /// The page behind `after`, which was the `next` of another one, of `limit` items.
    pub(super) fn new(after: Option<&str>, limit: u32) -> Result<Self, ApiError> {
        let after = after.map(str::parse).transpose();
        let after = after.map_err(|_| ApiError::invalid("`after` is the `next` of the page before"))?;
        Ok(Self { after, limit })
    }

    /// How many items to look for: one more than the page takes shows that there is another page.
    pub(super) fn fetch(&self) -> u32 {
        self.limit + 1
    }

    /// The page, of what was found.
    pub(super) fn page<T>(&self, mut found: Vec<T>, place: impl Fn(&T) -> P) -> Page<T> {
        let has_more = found.len() > self.limit as usize;
        found.truncate(self.limit as usize);
        let next = found.last().filter(|_| has_more).map(|last| place(last).to_string());
        Page { items: found, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_and_the_last_one_says_so() {
        let all: Vec<u64> = (1..=5).collect();
        let (mut after, mut seen, mut pages) = (None::<String>, Vec::new(), 0);
        loop {
            let asked = Asked::<u64>::new(after.as_deref(), limit(Some(2), 100)).unwrap();
            let from = asked.after.unwrap_or(0);
            let found = all.iter().copied().filter(|n| *n > from).take(asked.fetch() as usize).collect();
            let page = asked.page(found, |n| *n);
            seen.extend(page.items);
            pages += 1;
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!((seen, pages), (all, 3));
    }

    #[test]
    fn a_full_page_that_is_the_last_has_no_next() {
        let asked = Asked::<String>::new(None, limit(Some(2), 100)).unwrap();
        let page = asked.page(vec!["a", "b"], |name| (*name).to_owned());
        assert_eq!((page.items, page.next), (vec!["a", "b"], None));
    }

    #[test]
    fn limits_are_kept_in_bounds_and_places_must_be_places() {
        assert_eq!([None, Some(0), Some(7), Some(5_000)].map(|asked| limit(asked, 100)), [100, 1, 7, 1_000]);
        assert!(Asked::<u64>::new(Some("x"), 1).is_err());
    }
}
