//! The order of a listing of versions.
//!
//! S3 writes versions and delete markers in one order, that of the listing; s3s writes all markers, and then all
//! versions. Programs that read the elements as they come (minio-go) take the first of a key for its newest one, and
//! `mc ls --rewind` shows what was deleted then.

/// Of each entry of a page, in the order of the listing, whether it is a delete marker. In the extensions of an answer.
#[derive(Debug, Clone)]
pub(super) struct VersionOrder(pub(super) Vec<bool>);

const MARKER: &str = "DeleteMarker";
const VERSION: &str = "Version";
const END: &str = "</ListVersionsResult>";

impl VersionOrder {
    /// The body with its entries in this order; `None` if it has others than these.
    pub(super) fn apply(&self, body: &[u8]) -> Option<Vec<u8>> {
        let text = std::str::from_utf8(body).ok()?;
        let (markers, rest) = taken(text, MARKER)?;
        let (versions, rest) = taken(&rest, VERSION)?;
        let mut text = String::with_capacity(body.len());
        text.push_str(rest.strip_suffix(END)?);
        let (mut markers, mut versions) = (markers.into_iter(), versions.into_iter());
        for is_marker in &self.0 {
            let (name, entry) = if *is_marker { (MARKER, markers.next()?) } else { (VERSION, versions.next()?) };
            for piece in ["<", name, ">", entry, "</", name, ">"] {
                text.push_str(piece);
            }
        }
        text.push_str(END);
        (markers.len() + versions.len() == 0).then(|| text.into_bytes())
    }
}

/// What is in the elements of a name, and the text without them. Names and keys cannot look like one: their `<` is
/// escaped.
fn taken<'a>(mut text: &'a str, name: &str) -> Option<(Vec<&'a str>, String)> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let (mut entries, mut rest) = (Vec::new(), String::new());
    while let Some((before, after)) = text.split_once(&open) {
        let (entry, behind) = after.split_once(&close)?;
        rest.push_str(before);
        entries.push(entry);
        text = behind;
    }
    rest.push_str(text);
    Some((entries, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(order: &[bool], body: &str) -> Option<String> {
        VersionOrder(order.to_vec()).apply(body.as_bytes()).map(|body| String::from_utf8(body).unwrap())
    }

    #[test]
    fn entries_come_in_the_order_of_the_listing() {
        let body = "<ListVersionsResult><DeleteMarker><Key>b</Key></DeleteMarker><VersionIdMarker></VersionIdMarker>\
             <Version><Key>a</Key><VersionId>2</VersionId></Version><Version><Key>c</Key></Version></ListVersionsResult>";
        let expected = "<ListVersionsResult><VersionIdMarker></VersionIdMarker>\
             <Version><Key>a</Key><VersionId>2</VersionId></Version><DeleteMarker><Key>b</Key></DeleteMarker>\
             <Version><Key>c</Key></Version></ListVersionsResult>";
        assert_eq!(ordered(&[false, true, false], body).as_deref(), Some(expected));
        for other in [&[false, true][..], &[false, true, false, false], &[true, true, false], &[]] {
            assert_eq!(ordered(other, body), None, "{other:?}");
        }
        assert_eq!(ordered(&[], "<ListVersionsResult><Version></ListVersionsResult>"), None);
        assert_eq!(ordered(&[], "<Error></Error>"), None);
    }
}
