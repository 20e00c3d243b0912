//! `DaysSinceLastAccess` of a Transition, an extension that s3s does not know.
//!
//! s3s is given `<Days>-30</Days>` in its place, and writes that where it is to stand in an answer. Nothing else is
//! written so: negative Days of a Transition are refused, and days that are shown are not negative otherwise. In texts
//! of answers `<` is escaped.

use bytes::Bytes;
use http::Response;
use http::header::CONTENT_LENGTH;
use s3s::Body;

/// The element.
pub(super) const ELEMENT: &str = "DaysSinceLastAccess";

/// What negative days begin with in a document.
const OPEN: &[u8] = b"<Days>-";
/// And end with.
const CLOSE: &[u8] = b"</Days>";

/// One such element.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Idle {
    /// Where it begins and ends in the document, in bytes.
    place: std::ops::Range<usize>,
    days: u32,
}

/// Those of a document that is being read.
#[derive(Default)]
pub(super) struct IdleDays {
    begin: usize,
    pub(super) found: Vec<Idle>,
}

impl IdleDays {
    /// An element is opened, at this byte.
    pub(super) fn enter(&mut self, name: &str, at: u64) {
        if name == ELEMENT {
            self.begin = at as usize;
        }
    }

    /// An element is closed that stands in `around`; `end` is the byte behind it.
    ///
    /// # Errors
    /// When its number is not one that can be.
    pub(super) fn leave(&mut self, around: &str, name: &str, text: &str, end: u64) -> Result<(), String> {
        if around != "Transition" {
            return Ok(());
        }
        if name == "Days" && text.starts_with('-') {
            return Err("Days of a Transition is not negative".to_owned());
        }
        if name == ELEMENT {
            // What is no number at all is said elsewhere.
            let days = text.parse::<i64>().map_or(1, |days| days.clamp(0, i64::from(i32::MAX))) as u32;
            if days == 0 {
                return Err(format!("{ELEMENT} is a positive number"));
            }
            self.found.push(Idle { place: self.begin..end as usize, days });
        }
        Ok(())
    }
}

/// A document as s3s reads it.
pub(super) fn rewritten(text: &[u8], idle: &[Idle]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::with_capacity(text.len()), 0);
    for Idle { place, days } in idle {
        out.extend_from_slice(&text[at..place.start]);
        out.extend_from_slice(format!("<Days>-{days}</Days>").as_bytes());
        at = place.end;
    }
    out.extend_from_slice(&text[at..]);
    out
}

/// The answer of an operation with the element as clients know it.
pub(in crate::s3) fn shown(operation: &str, mut response: Response<Body>) -> Response<Body> {
    if operation != "GetBucketLifecycleConfiguration" {
        return response;
    }
    if let Some(text) = response.body().bytes().and_then(|body| restored(&body)) {
        response.headers_mut().remove(CONTENT_LENGTH);
        *response.body_mut() = Body::from(text);
    }
    response
}

/// A document of s3s with the element; `None`: it is not in there.
fn restored(body: &Bytes) -> Option<Vec<u8>> {
    let (mut out, mut rest) = (Vec::new(), &body[..]);
    while let Some(at) = find(rest, OPEN) {
        let (before, number) = (&rest[..at], &rest[at + OPEN.len()..]);
        let end = find(number, CLOSE)?;
        out.extend_from_slice(before);
        out.extend_from_slice(format!("<{ELEMENT}>").as_bytes());
        out.extend_from_slice(&number[..end]);
        out.extend_from_slice(format!("</{ELEMENT}>").as_bytes());
        rest = &number[end + CLOSE.len()..];
    }
    if out.is_empty() {
        return None;
    }
    out.extend_from_slice(rest);
    Some(out)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::super::{Document, read};
    use super::*;

    fn rule(rest: &str) -> String {
        format!("<LifecycleConfiguration><Rule><Transition>{rest}</Transition></Rule></LifecycleConfiguration>")
    }

    #[test]
    fn the_element_is_replaced_wherever_it_stands_and_nothing_else_is() {
        let other = "<StorageClass>OSS</StorageClass>";
        for (begin, given) in [
            ("", "<DaysSinceLastAccess>30</DaysSinceLastAccess>"),
            ("\u{feff}", "<DaysSinceLastAccess>30</DaysSinceLastAccess>"),
            ("<?xml version=\"1.0\"?>\n<!-- \u{e9} -->", "<DaysSinceLastAccess > 30<!-- x --></DaysSinceLastAccess >"),
        ] {
            let text = format!("{begin}{}", rule(&format!("\n{given} {other}")));
            let idle = read(text.as_bytes(), Document::Lifecycle).unwrap();
            let expected = format!("{begin}{}", rule(&format!("\n<Days>-30</Days> {other}")));
            assert_eq!(String::from_utf8(rewritten(text.as_bytes(), &idle)).unwrap(), expected);
            let shown = restored(&Bytes::from(expected)).unwrap();
            assert!(
                String::from_utf8(shown)
                    .unwrap()
                    .ends_with(&rule(&format!("\n<DaysSinceLastAccess>30</DaysSinceLastAccess> {other}")))
            );
        }
        assert_eq!(restored(&Bytes::from(rule("<Days>30</Days>"))), None);
        assert_eq!(read(rule("<Days>30</Days>").as_bytes(), Document::Lifecycle), Ok(vec![]));
    }

    #[test]
    fn only_numbers_that_can_be_are_taken_and_only_in_transitions() {
        for rest in [
            "<DaysSinceLastAccess>0</DaysSinceLastAccess>",
            "<DaysSinceLastAccess>-3</DaysSinceLastAccess>",
            "<DaysSinceLastAccess>x</DaysSinceLastAccess>",
            "<DaysSinceLastAccess/>",
            "<DaysSinceLastAccess>2147483648</DaysSinceLastAccess>",
            "<DaysSinceLastAccess>3<b/></DaysSinceLastAccess>",
            "<Days>-3</Days>",
        ] {
            let refused = read(rule(rest).as_bytes(), Document::Lifecycle).expect_err(rest);
            assert!(refused.contains("Days"), "{rest}: {refused}");
        }
        let expiration = rule("<DaysSinceLastAccess>3</DaysSinceLastAccess>").replace("Transition", "Expiration");
        assert!(read(expiration.as_bytes(), Document::Lifecycle).is_err());
    }
}
