//! Documents that decide what is deleted or moved, read more strictly than s3s reads them.
//!
//! s3s passes over what it does not expect: CDATA sections, text between elements, what follows the digits of a number.
//! A prefix in a CDATA section is then no prefix, and the rule is about the whole bucket; `1,000` days are one. So
//! these documents, a lifecycle configuration, a list of keys to delete and a request to restore, are looked at before
//! s3s reads them ([`watch()`]), and what would be passed over is refused. What is let through is changed only where
//! s3s could not read it: see [`idle`] and [`numbers`]. Of other documents only CDATA sections and elements with a
//! namespace prefix are refused.

use quick_xml::Reader;
use quick_xml::events::Event;

mod bucket_tags;
mod idle;
mod numbers;
mod proofs;
mod watch;

pub(super) use idle::shown as with_idle_days;
use idle::{Idle, IdleDays};
pub(super) use watch::watch;

/// How deep elements may stand in each other: more than any of the documents has.
const DEPTH_MAX: usize = 16;
/// How much of an element's name is told.
const NAME_CHARS_MAX: usize = 64;
/// White space of XML.
const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// What a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Document {
    /// Of PutBucketLifecycleConfiguration.
    Lifecycle,
    /// Of DeleteObjects.
    Delete,
    /// Of RestoreObject.
    Restore,
}

/// Whether a document of an operation may be given to s3s in another form.
pub(super) fn may_rewrite(operation: &str) -> bool {
    // Those with keys and tags in them, which are written in all languages: see `numbers`.
    matches!(
        operation,
        "DeleteObjects"
            | "PutBucketLifecycleConfiguration"
            | "PutBucketNotificationConfiguration"
            | "PutBucketTagging"
            | "PutObjectTagging"
    )
}

/// What belongs into an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Elements,
    Text,
    /// A whole number, up to this one.
    Number(i64),
    /// s3s passes over such an element, with all that is in it.
    Unknown,
    /// Whatever it is, the operation refuses it.
    Whatever,
}

impl Document {
    /// What belongs into an element; `None`: it is not known there. The element around the outermost one has no name.
    fn content(self, around: &str, name: &str) -> Option<Content> {
        use Content::{Elements, Number, Text, Whatever};
        const COUNT: Content = Number(i32::MAX as i64);
        const BYTES: Content = Number(i64::MAX);
        Some(match (self, around, name) {
            (Self::Lifecycle, "", "LifecycleConfiguration") => Elements,
            (Self::Lifecycle, "LifecycleConfiguration", "Rule") => Elements,
            (Self::Lifecycle, "Rule", "ID" | "Prefix" | "Status") => Text,
            (Self::Lifecycle, "Rule", "Filter" | "Expiration" | "Transition") => Elements,
            (Self::Lifecycle, "Rule", "NoncurrentVersionExpiration" | "NoncurrentVersionTransition") => Elements,
            (Self::Lifecycle, "Rule", "AbortIncompleteMultipartUpload") => Elements,
            (Self::Lifecycle, "Filter", "And") => Elements,
            (Self::Lifecycle, "Filter" | "And", "Prefix") => Text,
            (Self::Lifecycle, "Filter" | "And", "Tag") => Elements,
            (Self::Lifecycle, "Filter" | "And", "ObjectSizeGreaterThan" | "ObjectSizeLessThan") => BYTES,
            (Self::Lifecycle, "Tag", "Key" | "Value") => Text,
            (Self::Lifecycle, "Expiration" | "Transition", "Date") => Text,
            (Self::Lifecycle, "Expiration" | "Transition", "Days") => COUNT,
            // An extension: see `idle`.
            (Self::Lifecycle, "Transition", idle::ELEMENT) => COUNT,
            (Self::Lifecycle, "Expiration", "ExpiredObjectDeleteMarker") => Text,
            (Self::Lifecycle, "Transition" | "NoncurrentVersionTransition", "StorageClass") => Text,
            (
                Self::Lifecycle,
                "NoncurrentVersionExpiration" | "NoncurrentVersionTransition",
                "NoncurrentDays" | "NewerNoncurrentVersions",
            ) => COUNT,
            (Self::Lifecycle, "AbortIncompleteMultipartUpload", "DaysAfterInitiation") => COUNT,
            (Self::Delete, "", "Delete") => Elements,
            (Self::Delete, "Delete", "Object") => Elements,
            (Self::Delete, "Delete", "Quiet") => Text,
            (Self::Delete, "Object", "Key" | "VersionId" | "ETag" | "LastModifiedTime") => Text,
            (Self::Delete, "Object", "Size") => BYTES,
            (Self::Restore, "", "RestoreRequest") => Elements,
            (Self::Restore, "RestoreRequest", "Days") => COUNT,
            (Self::Restore, "RestoreRequest", "Description" | "Tier" | "Type") => Text,
            (Self::Restore, "RestoreRequest", "GlacierJobParameters") => Elements,
            (Self::Restore, "GlacierJobParameters", "Tier") => Text,
            (Self::Restore, "RestoreRequest", "OutputLocation" | "SelectParameters") => Whatever,
            _ => return None,
        })
    }
}

/// An element that is not closed yet.
struct Open {
    name: String,
    content: Content,
    /// Of a number only.
    text: String,
}

impl Open {
    /// What is wrong with it, now that it is closed.
    fn close(self) -> Result<(), String> {
        let Content::Number(max) = self.content else { return Ok(()) };
        let text = self.text.trim_matches(SPACE);
        // A negative number is one: that it is too small is for the rules to say.
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if is_whole && text.parse::<i64>().is_ok_and(|number| number <= max && number >= -max) {
            return Ok(());
        }
        Err(format!("{} is a whole number of at most {max}, in digits only", self.name))
    }
}

/// U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Whether s3s reads all that a document says. Gives what has to be written otherwise before that.
///
/// # Errors
/// What it would pass over, and in which element.
fn read(text: &[u8], document: Document) -> Result<Vec<Idle>, String> {
    // The reader passes over a mark of the byte order, and does not count it.
    let mark = if text.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() as u64 } else { 0 };
    let mut reader = Reader::from_reader(text);
    let mut open: Vec<Open> = Vec::new();
    let mut idle = IdleDays::default();
    // Elsewhere an element of this name is one that nobody knows, and may stand in another one of its name.
    let has_idle = document == Document::Lifecycle;
    loop {
        let before = mark + reader.buffer_position();
        let event = reader.read_event().map_err(|error| format!("{}: {error}", place(&open)))?;
        match event {
            Event::Start(start) => {
                let entered = enter(document, &open, start.name().as_ref())?;
                if has_idle {
                    idle.enter(&entered.name, before);
                }
                open.push(entered);
            }
            Event::Empty(start) => enter(document, &open, start.name().as_ref())?.close()?,
            Event::End(_) => {
                let Some(closed) = open.pop() else { continue };
                if has_idle {
                    let (text, end) = (closed.text.trim_matches(SPACE), mark + reader.buffer_position());
                    idle.leave(place(&open), &closed.name, text, end)?;
                }
                closed.close()?;
            }
            Event::Text(text) => {
                let text = text.decode().map_err(|error| format!("{}: {error}", place(&open)))?;
                take(&mut open, &text)?;
            }
            Event::GeneralRef(reference) => {
                if let Ok(Some(character)) = reference.resolve_char_ref()
                    && !numbers::is_read(character)
                {
                    let number = u32::from(character);
                    return Err(format!("{} has U+{number:04X} by its number; write it as it is", place(&open)));
                }
                // In a text it is what it stands for; elsewhere it is a text by itself.
                take(&mut open, "&")?;
            }
            Event::CData(_) => return Err(format!("{} has a CDATA section, which is not taken", place(&open))),
            Event::DocType(_) => return Err(format!("{} has a DOCTYPE, which is not taken", place(&open))),
            Event::PI(_) => return Err(format!("{} has a processing instruction, which is not taken", place(&open))),
            Event::Comment(_) | Event::Decl(_) => {}
            Event::Eof => break,
        }
    }
    match open.last() {
        Some(element) => Err(format!("{} is not closed", element.name)),
        None => Ok(idle.found),
    }
}

/// Where the reader stands.
fn place(open: &[Open]) -> &str {
    open.last().map_or("the document", |element| element.name.as_str())
}

fn enter(document: Document, open: &[Open], name: &[u8]) -> Result<Open, String> {
    let shown: String =
        String::from_utf8_lossy(name).chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect();
    if open.len() >= DEPTH_MAX {
        return Err(format!("{shown} stands too deep in other elements"));
    }
    let known = match open.last() {
        None => document.content("", std::str::from_utf8(name).unwrap_or_default()),
        Some(around) => match around.content {
            Content::Elements => document.content(&around.name, std::str::from_utf8(name).unwrap_or_default()),
            Content::Unknown => None,
            Content::Whatever => Some(Content::Whatever),
            Content::Text | Content::Number(_) => {
                return Err(format!("{} is a text, and has {shown} in it", around.name));
            }
        },
    };
    let content = match (known, document) {
        (Some(content), _) => content,
        // What narrows a rule or a request must not be passed over.
        (None, Document::Lifecycle | Document::Restore) => {
            return Err(format!("{} has no element {shown}", place(open)));
        }
        (None, Document::Delete) => Content::Unknown,
    };
    Ok(Open { name: shown, content, text: String::new() })
}

/// Takes the next piece of text in the innermost element.
fn take(open: &mut [Open], text: &str) -> Result<(), String> {
    match open.last_mut() {
        Some(Open { content: Content::Text | Content::Whatever, .. }) => Ok(()),
        Some(Open { content: Content::Number(_), text: number, .. }) => {
            number.push_str(text);
            Ok(())
        }
        Some(Open { content: Content::Elements | Content::Unknown, .. }) | None => {
            if text.trim_matches(SPACE).is_empty() {
                return Ok(());
            }
            Err(format!("{} has text where no text belongs", place(open)))
        }
    }
}

#[cfg(test)]
mod tests;
