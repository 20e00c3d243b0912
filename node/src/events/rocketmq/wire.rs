//! Frames of RocketMQ's remoting protocol.
//!
//! ```text
//! length        4 bytes, of all that follows
//! header        1 byte: how it is serialized (0: JSON), 3 bytes: its length
//!               JSON: code, flag, opaque, remark, extFields
//! body
//! ```
//!
//! An answer has bit 0 of `flag` set, and the `opaque` of its request. Numbers are big endian; all fields are text.

use std::collections::BTreeMap;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// The largest frame that is read: a batch of pulled messages and their properties.
pub(super) const FRAME_BYTES_MAX: usize = 32 << 20;
/// Bit of `flag` that makes an answer.
const ANSWER: i32 = 1;

/// What is asked.
pub(super) mod request {
    pub(in super::super) const PULL_MESSAGE: i32 = 11;
    pub(in super::super) const UPDATE_AND_CREATE_TOPIC: i32 = 17;
    pub(in super::super) const GET_MAX_OFFSET: i32 = 30;
    pub(in super::super) const GET_MIN_OFFSET: i32 = 31;
    pub(in super::super) const GET_ROUTE_OF_TOPIC: i32 = 105;
    pub(in super::super) const GET_CLUSTER: i32 = 106;
    pub(in super::super) const UPDATE_AND_CREATE_GROUP: i32 = 200;
    pub(in super::super) const SEND_MESSAGE_V2: i32 = 310;
    pub(in super::super) const SEND_BATCH_MESSAGE: i32 = 320;
    pub(in super::super) const POP_MESSAGE: i32 = 200_050;
    pub(in super::super) const ACK_MESSAGE: i32 = 200_051;
    pub(in super::super) const CHANGE_INVISIBLE_TIME: i32 = 200_053;
}

/// What is answered.
pub(super) mod response {
    pub(in super::super) const SUCCESS: i32 = 0;
    pub(in super::super) const SYSTEM_BUSY: i32 = 2;
    pub(in super::super) const FLUSH_DISK_TIMEOUT: i32 = 10;
    pub(in super::super) const SLAVE_NOT_AVAILABLE: i32 = 11;
    pub(in super::super) const FLUSH_SLAVE_TIMEOUT: i32 = 12;
    pub(in super::super) const MESSAGE_ILLEGAL: i32 = 13;
    pub(in super::super) const SERVICE_NOT_AVAILABLE: i32 = 14;
    pub(in super::super) const NO_PERMISSION: i32 = 16;
    pub(in super::super) const TOPIC_NOT_EXIST: i32 = 17;
    pub(in super::super) const PULL_NOT_FOUND: i32 = 19;
    pub(in super::super) const PULL_RETRY_IMMEDIATELY: i32 = 20;
    pub(in super::super) const PULL_OFFSET_MOVED: i32 = 21;
    pub(in super::super) const GROUP_NOT_EXIST: i32 = 26;
    pub(in super::super) const POLLING_FULL: i32 = 209;
    pub(in super::super) const POLLING_TIMEOUT: i32 = 210;
}

/// A request or an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) code: i32,
    pub(super) opaque: i32,
    pub(super) is_answer: bool,
    pub(super) remark: String,
    pub(super) fields: BTreeMap<String, String>,
    pub(super) body: Bytes,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    code: i32,
    #[serde(default)]
    language: serde_json::Value,
    #[serde(default)]
    version: i32,
    opaque: i32,
    flag: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    remark: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ext_fields: Option<BTreeMap<String, String>>,
}

/// What is not a frame.
#[derive(Debug, thiserror::Error)]
#[error("not a frame of RocketMQ: {0}")]
pub(super) struct NotAFrame(String);

impl Command {
    pub(super) fn new(code: i32) -> Self {
        Self { code, ..Self::default() }
    }

    pub(super) fn field(mut self, name: &str, value: impl ToString) -> Self {
        self.fields.insert(name.to_owned(), value.to_string());
        self
    }

    pub(super) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// A field of an answer that must be there.
    pub(super) fn number(&self, name: &str) -> Option<i64> {
        self.fields.get(name)?.parse().ok()
    }

    pub(super) fn encode(&self) -> Bytes {
        let header = Header {
            code: self.code,
            // Of those that all versions of brokers know.
            language: "OTHER".into(),
            version: 0,
            opaque: self.opaque,
            flag: if self.is_answer { ANSWER } else { 0 },
            remark: (!self.remark.is_empty()).then(|| self.remark.clone()),
            ext_fields: Some(self.fields.clone()),
        };
        let header = serde_json::to_vec(&header).expect("text and numbers are JSON");
        let mut frame = BytesMut::with_capacity(8 + header.len() + self.body.len());
        frame.put_u32((4 + header.len() + self.body.len()) as u32);
        // The high byte stays 0, for JSON: headers are far below 16 MiB.
        frame.put_u32(header.len() as u32);
        frame.put_slice(&header);
        frame.put_slice(&self.body);
        frame.freeze()
    }

    /// Takes one frame from the front of `buffer`, once all of it is there.
    pub(super) fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, NotAFrame> {
        let Some(length) = buffer.get(..4) else { return Ok(None) };
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        if !(4..=FRAME_BYTES_MAX).contains(&length) {
            return Err(NotAFrame(format!("a length of {length}")));
        }
        if buffer.len() < 4 + length {
            buffer.reserve(4 + length - buffer.len());
            return Ok(None);
        }
        buffer.advance(4);
        let mut frame = buffer.split_to(length).freeze();
        let (kind, header_length) = (frame[0], (frame.get_u32() & 0x00ff_ffff) as usize);
        if kind != 0 {
            return Err(NotAFrame(format!("a header of kind {kind}, JSON was asked for")));
        }
        if header_length > frame.len() {
            return Err(NotAFrame("a header longer than the frame".into()));
        }
        let header = frame.split_to(header_length);
        let header: Header = serde_json::from_slice(&header).map_err(|error| NotAFrame(error.to_string()))?;
        Ok(Some(Self {
            code: header.code,
            opaque: header.opaque,
            is_answer: header.flag & ANSWER != 0,
            remark: header.remark.unwrap_or_default(),
            fields: header.ext_fields.unwrap_or_default(),
            body: frame,
        }))
    }
}

/// JSON as name servers write it: names that are numbers stand without quotes.
pub(super) fn quote_numeric_names(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() + 16);
    let (mut at, mut in_text) = (0, false);
    while at < json.len() {
        let byte = json[at];
        out.push(byte);
        at += 1;
        match byte {
            b'\\' if in_text && at < json.len() => {
                out.push(json[at]);
                at += 1;
            }
            b'"' => in_text = !in_text,
            b'{' | b',' if !in_text => {
                let digits = json[at..].iter().take_while(|b| b.is_ascii_digit()).count();
                if digits > 0 && json.get(at + digits) == Some(&b':') {
                    out.push(b'"');
                    out.extend_from_slice(&json[at..at + digits]);
                    out.push(b'"');
                    at += digits;
                }
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_are_read_as_they_are_written_in_whatever_pieces() {
        let command = Command { opaque: 7, ..Command::new(310).field("a", "group").body(&b"body"[..]) };
        let frame = command.encode();
        let mut buffer = BytesMut::new();
        for (at, byte) in frame.iter().enumerate() {
            assert!(Command::decode(&mut buffer).expect("a frame").is_none(), "after {at} bytes");
            buffer.put_u8(*byte);
        }
        assert_eq!(Command::decode(&mut buffer).expect("a frame"), Some(command));
        assert!(buffer.is_empty());
    }

    #[test]
    fn answers_of_brokers_are_read() {
        let header = br#"{"code":0,"extFields":{"queueId":"1"},"flag":1,"language":"JAVA","opaque":3,"serializeTypeCurrentRPC":"JSON","version":475}"#;
        let mut buffer = BytesMut::new();
        buffer.put_u32(4 + header.len() as u32);
        buffer.put_u32(header.len() as u32);
        buffer.put_slice(header);
        let answer = Command::decode(&mut buffer).expect("a frame").expect("all of it");
        assert!(answer.is_answer && answer.opaque == 3 && answer.number("queueId") == Some(1));
    }

    #[test]
    fn numeric_names_are_quoted_and_nothing_else() {
        let quoted = |json: &str| String::from_utf8(quote_numeric_names(json.as_bytes())).expect("text");
        assert_eq!(quoted(r#"{0:"a:1",12:"b"}"#), r#"{"0":"a:1","12":"b"}"#);
        for unchanged in [r#"{"0":"{1:2}"}"#, r#"{"a":[1,2,3]}"#, r#"{"a":"\",1:"}"#, "", "{", ",1"] {
            assert_eq!(quoted(unchanged), unchanged);
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused_or_waited_for(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            let _ = Command::decode(&mut buffer);
            quote_numeric_names(&bytes);
        }
    }
}
