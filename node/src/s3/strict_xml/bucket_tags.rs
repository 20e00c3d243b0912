//! The tags that a bucket is to be made with (CreateBucket).
//!
//! s3s does not know them yet, and passes over them: the bucket would be there without the tags, and the client would
//! be told that all is well.

use quick_xml::Reader;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::Event;
use s3s::dto::Tag;

/// The elements around the key and the value of a tag.
const TAG: [&[u8]; 3] = [b"CreateBucketConfiguration", b"Tags", b"Tag"];

/// The tags in a document.
///
/// # Errors
/// What of it cannot be read.
pub(super) fn read(text: &[u8]) -> Result<Vec<Tag>, String> {
    let mut reader = Reader::from_reader(text);
    let mut open: Vec<Vec<u8>> = Vec::new();
    let mut tags: Vec<Tag> = Vec::new();
    loop {
        match reader.read_event().map_err(|error| error.to_string())? {
            Event::Start(start) => {
                open.push(start.name().as_ref().to_vec());
                begin(&open, &mut tags);
            }
            Event::Empty(start) => {
                open.push(start.name().as_ref().to_vec());
                begin(&open, &mut tags);
                open.pop();
            }
            Event::End(_) => {
                open.pop();
            }
            Event::Text(piece) => take(&open, &mut tags, &piece.decode().map_err(|error| error.to_string())?),
            Event::GeneralRef(reference) => {
                let piece = match reference.resolve_char_ref().map_err(|error| error.to_string())? {
                    Some(character) => character.to_string(),
                    None => {
                        let name = reference.decode().map_err(|error| error.to_string())?;
                        let known = resolve_predefined_entity(&name);
                        known.ok_or_else(|| format!("&{name}; stands for nothing"))?.to_owned()
                    }
                };
                take(&open, &mut tags, &piece);
            }
            Event::Eof => return Ok(tags),
            _ => {}
        }
    }
}

fn is_tag(open: &[Vec<u8>]) -> bool {
    open.iter().map(Vec::as_slice).eq(TAG)
}

/// An element begins.
fn begin(open: &[Vec<u8>], tags: &mut Vec<Tag>) {
    if is_tag(open) {
        tags.push(Tag::default());
    } else if let Some(text) = field(open, tags) {
        *text = Some(String::new());
    }
}

/// The next piece of text in the innermost element.
fn take(open: &[Vec<u8>], tags: &mut [Tag], piece: &str) {
    if let Some(text) = field(open, tags) {
        text.get_or_insert_default().push_str(piece);
    }
}

/// What the innermost element says of the last tag.
fn field<'t>(open: &[Vec<u8>], tags: &'t mut [Tag]) -> Option<&'t mut Option<String>> {
    let (name, around) = open.split_last()?;
    if !is_tag(around) {
        return None;
    }
    let tag = tags.last_mut()?;
    match name.as_slice() {
        b"Key" => Some(&mut tag.key),
        b"Value" => Some(&mut tag.value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(document: &str) -> Vec<(String, String)> {
        let tags = read(document.as_bytes()).unwrap();
        tags.into_iter().map(|tag| (tag.key.unwrap_or_default(), tag.value.unwrap_or_default())).collect()
    }

    #[test]
    fn tags_are_read_where_they_belong() {
        let document = concat!(
            "<?xml version=\"1.0\"?><CreateBucketConfiguration xmlns=\"x\">\n",
            "<LocationConstraint>eu</LocationConstraint><Tags>\n",
            "<Tag><Key>a &amp; b</Key>\n<Value>&#x1F600;</Value></Tag><Tag><Value/><Key>c</Key></Tag>",
            "</Tags></CreateBucketConfiguration>",
        );
        let expected = [("a & b", "\u{1F600}"), ("c", "")];
        assert_eq!(tags(document), expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert!(tags("").is_empty());
        assert!(tags("<CreateBucketConfiguration/>").is_empty());
        let elsewhere = "<CreateBucketConfiguration><Tag><Key>a</Key></Tag></CreateBucketConfiguration>";
        assert!(tags(elsewhere).is_empty());
        assert!(read(b"<CreateBucketConfiguration><Tags></CreateBucketConfiguration>").is_err());
    }
}
