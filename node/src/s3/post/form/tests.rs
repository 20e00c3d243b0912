use futures::StreamExt;
use holdfast_protocol::fuzz::{Target, damage};
use http_body::Frame;
use http_body_util::StreamBody;

use super::*;

/// A body that arrives in pieces of `step` bytes.
fn body(text: &[u8], step: usize) -> Body {
    let pieces: Vec<_> = text
        .chunks(step.max(1))
        .map(|piece| Ok::<_, std::io::Error>(Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    Body::http_body_unsync(StreamBody::new(futures::stream::iter(pieces).boxed()))
}

async fn read(text: &[u8], step: usize) -> Result<(Form, Vec<u8>), FormError> {
    let (form, mut reader) = FormReader::new(body(text, step), "XX".into()).read_fields().await?;
    let mut file = Vec::new();
    while let Some(piece) = reader.next_piece().await? {
        file.extend_from_slice(&piece);
    }
    Ok((form, file))
}

const FORM: &[u8] = b"--XX\r\nContent-Disposition: form-data; name=\"Key\"\r\n\r\nup/${filename}\r\n\
    --XX\r\nContent-Disposition: form-data; name=acl\r\nContent-Type: text/plain\r\n\r\nprivate\r\n\
    --XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"C:\\dir\\a \\\"b\\\".txt\"\r\n\r\n\
    one\r\n--X\r\ntwo\r\n\r\n--XX--\r\n";

#[tokio::test]
async fn a_form_is_read_the_same_however_it_arrives() {
    for step in 1..FORM.len() {
        let (form, file) = read(FORM, step).await.unwrap();
        assert_eq!(form.get("key"), Some("up/${filename}"));
        assert_eq!(form.key().unwrap(), "up/a \"b\".txt");
        assert_eq!(form.get("acl"), Some("private"));
        assert_eq!(file, b"one\r\n--X\r\ntwo\r\n");
    }
}

#[tokio::test]
async fn the_length_is_known_for_small_files_and_computed_for_large_ones() {
    for ahead in [0, 1 << 20] {
        let (_, mut reader) = FormReader::new(body(FORM, 7), "XX".into()).read_fields().await.unwrap();
        assert_eq!(reader.file_length(ahead, Some(FORM.len() as u64)).await.unwrap(), 15, "{ahead}");
    }
    let (_, mut reader) = FormReader::new(body(FORM, 7), "XX".into()).read_fields().await.unwrap();
    assert!(matches!(reader.file_length(0, None).await, Err(FormError::UnknownLength)));
}

/// Were everything searched anew with each piece, this would take minutes.
#[tokio::test]
async fn a_file_that_comes_byte_by_byte_is_searched_once() {
    let head = b"--XX\r\nContent-Disposition: form-data; name=file\r\n\r\n";
    let form = [&head[..], &b"\r\n--X".repeat(100_000), b"\r\n--XX--"].concat();
    let (_, mut reader) = FormReader::new(body(&form, 1), "XX".into()).read_fields().await.unwrap();
    assert_eq!(reader.file_length(1 << 20, None).await.unwrap(), 500_000);
}

#[tokio::test]
async fn a_form_cut_anywhere_is_an_error_and_never_a_shorter_file() {
    let end = FORM.len() - b"--\r\n".len();
    for cut in 0..end {
        assert!(read(&FORM[..cut], 64).await.is_err(), "cut at {cut}");
    }
}

#[tokio::test]
async fn bad_forms_are_refused() {
    let part =
        |name: &str, value: &str| format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    let no_file = format!("{}--XX--\r\n", part("key", "k"));
    assert!(matches!(read(no_file.as_bytes(), 64).await, Err(FormError::NoFile)));
    let twice = format!("{}{}{}--XX--\r\n", part("key", "a"), part("KEY", "b"), part("file", "x"));
    assert!(matches!(read(twice.as_bytes(), 64).await, Err(FormError::Malformed(_))));
    let large = format!("{}{}--XX--\r\n", part("key", &"k".repeat(FIELDS_BYTES_MAX)), part("file", "x"));
    assert!(matches!(read(large.as_bytes(), 1000).await, Err(FormError::FieldsTooLarge)));
    let many: String = (0..300).map(|n| part(&format!("f{n}"), "")).collect();
    assert!(matches!(read(many.as_bytes(), 1000).await, Err(FormError::FieldsTooLarge)));
    assert!(matches!(read(b"--XX\r\nX: y\r\n\r\nz\r\n--XX--", 64).await, Err(FormError::Malformed(_))));
    assert!(matches!(read(b"--XXY\r\n", 64).await, Err(FormError::Malformed(_))));
    assert!(matches!(read(b"", 64).await, Err(FormError::Incomplete)));
}

#[test]
fn a_key_does_not_grow_beyond_what_keys_can_be() {
    let form = |key: String, filename: &str| {
        let fields = vec![("key".to_owned(), key)];
        Form { fields, filename: filename.into() }.key().map_err(|error| error.code().as_str().to_owned())
    };
    assert_eq!(form("${filename}-${filename}".into(), "a/b").as_deref(), Ok("b-b"));
    assert_eq!(form("${filename}".into(), &"n".repeat(1024)).map(|key| key.len()), Ok(1024));
    let long = Err("KeyTooLongError".to_owned());
    assert_eq!(form("${filename}".into(), &"n".repeat(1025)), long);
    assert_eq!(form("${filename}".repeat(3_000), &"n".repeat(30_000)), long, "a hundred megabytes");
    assert_eq!(form("k".repeat(1025), ""), long);
}

#[test]
fn damaged_forms_are_refused_and_no_harm() {
    fn body(bytes: &[u8]) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        // In one piece and in many it is the same form.
        let whole = runtime.block_on(read(bytes, bytes.len()));
        let pieces = runtime.block_on(read(bytes, 7));
        match (whole, pieces) {
            (Ok((form, file)), Ok((again, same))) => {
                assert_eq!((form.fields(), file), (again.fields(), same));
                let _ = form.key().map(|key| assert!(key.len() <= OBJECT_KEY_BYTES_MAX));
            }
            (Err(_), Err(_)) => {}
            (whole, pieces) => panic!("{:?} in one piece, {:?} in many", whole.err(), pieces.err()),
        }
    }
    fn tagging(bytes: &[u8]) {
        let _ = tagging_header(&String::from_utf8_lossy(bytes));
    }
    fn header(bytes: &[u8]) {
        let mut headers = HeaderMap::new();
        if let Ok(value) = http::HeaderValue::from_bytes(bytes) {
            headers.insert(CONTENT_TYPE, value);
            let _ = boundary(&headers).map(|boundary| assert!((1..=BOUNDARY_BYTES_MAX).contains(&boundary.len())));
        }
    }
    fn documents() -> Vec<Vec<u8>> {
        vec![b"<Tagging><TagSet><Tag><Key>a b</Key><Value>1&amp;&#50;</Value></Tag></TagSet></Tagging>".to_vec()]
    }
    fn headers() -> Vec<Vec<u8>> {
        vec![b"multipart/form-data; charset=utf-8; boundary=\"a \\\" b\"; x=y".to_vec()]
    }
    damage::run(
        &[
            Target { name: "post_form", body, seeds: || vec![FORM.to_vec()] },
            Target { name: "post_tagging", body: tagging, seeds: documents },
            Target { name: "post_content_type", body: header, seeds: headers },
        ],
        3_000,
    );
}

#[test]
fn the_boundary_is_found_quoted_or_not() {
    let of = |value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, value.parse().unwrap());
        boundary(&headers)
    };
    assert_eq!(of("multipart/form-data; boundary=abc").as_deref(), Some("abc"));
    assert_eq!(of("multipart/form-data; charset=utf-8; boundary=\"a b\"").as_deref(), Some("a b"));
    assert_eq!(of("multipart/form-data"), None);
    assert_eq!(of("multipart/form-data; boundary="), None);
    assert_eq!(of(&format!("multipart/form-data; boundary={}", "x".repeat(71))), None);
    assert_eq!(of("multipart/form-data; boundary=\"open"), None);
}

#[test]
fn the_tagging_document_becomes_a_header() {
    let xml = "<Tagging><TagSet><Tag><Key>a b</Key><Value>1&amp;2</Value></Tag><Tag><Key>c</Key><Value></Value></Tag>\
               </TagSet></Tagging>";
    assert_eq!(tagging_header(xml).unwrap(), "a+b=1%262&c=");
    for bad in ["", "<Tagging>", "<Tagging><TagSet><Tag><Key>a</Key></Tag></TagSet></Tagging>", "<Other/>x<", "<A></A>"]
    {
        let result = tagging_header(bad);
        assert!(bad.is_empty() || bad.starts_with("<Other/>") || result.is_err(), "{bad} {result:?}");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), step in 1usize..50) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _ = runtime.block_on(read(&bytes, step));
        let mut framed = FORM.to_vec();
        framed.splice(60..60, bytes.iter().copied());
        let _ = runtime.block_on(read(&framed, step));
        let _ = tagging_header(&String::from_utf8_lossy(&bytes));
    }
}
