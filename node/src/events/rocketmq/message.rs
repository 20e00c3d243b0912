//! Messages as brokers store them, and as [`Message`]s.
//!
//! A message has properties beside its body: pairs of text, separated by control characters. Those that this adapter
//! sets:
//!
//! | property | what |
//! |---|---|
//! | `TAGS` | [`Message::tag`] |
//! | `KEYS` | [`Message::keys`], separated by spaces |
//! | `UNIQ_KEY` | [`Message::id`]; what other clients call the id of the message |
//! | `__SHARDINGKEY` | [`Message::order_key`] |

use bytes::{Buf as _, Bytes};
use holdfast_actors::ports::events::Message;

const NAME_END: char = '\u{1}';
const PROPERTY_END: char = '\u{2}';
/// Marks a stored message; the second has longer names of topics.
const MAGIC: [i32; 2] = [-626_843_481, -626_843_477];
/// Bits of a message's flags.
const COMPRESSED: i32 = 1;
const BORN_AT_IPV6: i32 = 1 << 4;
const STORED_AT_IPV6: i32 = 1 << 5;

/// A message that a broker delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) topic: String,
    pub(super) queue: i32,
    pub(super) offset: i64,
    pub(super) reconsumed: i32,
    pub(super) properties: Vec<(String, String)>,
    pub(super) body: Bytes,
    pub(super) compressed: bool,
}

pub(super) fn properties_of(message: &Message) -> String {
    let id = message.id.to_string();
    let keys = message.keys.join(" ");
    let pairs = [
        ("TAGS", message.tag.as_str()),
        ("KEYS", &keys),
        ("UNIQ_KEY", &id),
        ("__SHARDINGKEY", &message.order_key),
        ("WAIT", "true"),
    ];
    let mut text = String::new();
    for (name, value) in pairs {
        text.push_str(name);
        text.push(NAME_END);
        text.push_str(value);
        text.push(PROPERTY_END);
    }
    text
}

impl Stored {
    pub(super) fn property(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// `None`: it is none of Holdfast's.
    pub(super) fn to_message(&self) -> Option<Message> {
        if self.compressed {
            return None;
        }
        let words = |text: &str| text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        Some(Message {
            id: self.property("UNIQ_KEY")?.parse().ok()?,
            order_key: self.property("__SHARDINGKEY")?.to_owned(),
            tag: self.property("TAGS")?.to_owned(),
            keys: self.property("KEYS").map(words).unwrap_or_default(),
            body: self.body.clone(),
        })
    }

    /// Reads all messages of an answer that are of a known form; others are passed by, as they are none of Holdfast's.
    /// `None`: sizes that do not fit, so that nothing behind them can be found.
    pub(super) fn all(mut bytes: Bytes) -> Option<Vec<Self>> {
        let mut all = Vec::new();
        while bytes.has_remaining() {
            let size = usize::try_from(bytes.try_get_i32().ok()?).ok()?;
            let rest = size.checked_sub(4)?;
            if rest > bytes.len() {
                return None;
            }
            all.extend(Self::one(bytes.split_to(rest)));
        }
        Some(all)
    }

    /// Reads a message, after its size.
    fn one(mut bytes: Bytes) -> Option<Self> {
        let magic = bytes.try_get_i32().ok()?;
        if !MAGIC.contains(&magic) {
            return None;
        }
        skip(&mut bytes, 4)?;
        let queue = bytes.try_get_i32().ok()?;
        skip(&mut bytes, 4)?;
        let offset = bytes.try_get_i64().ok()?;
        skip(&mut bytes, 8)?;
        let flags = bytes.try_get_i32().ok()?;
        skip(&mut bytes, 8)?;
        skip(&mut bytes, if flags & BORN_AT_IPV6 != 0 { 20 } else { 8 })?;
        skip(&mut bytes, 8)?;
        skip(&mut bytes, if flags & STORED_AT_IPV6 != 0 { 20 } else { 8 })?;
        let reconsumed = bytes.try_get_i32().ok()?;
        skip(&mut bytes, 8)?;
        let length = bytes.try_get_i32().ok()?;
        let body = take(&mut bytes, length)?;
        let length =
            if magic == MAGIC[0] { i32::from(bytes.try_get_u8().ok()?) } else { i32::from(bytes.try_get_i16().ok()?) };
        let topic = text(take(&mut bytes, length)?)?;
        let length = i32::from(bytes.try_get_i16().ok()?);
        let properties = text(take(&mut bytes, length)?)?;
        let properties = properties.split(PROPERTY_END).filter_map(|pair| pair.split_once(NAME_END));
        let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Some(Self { topic, queue, offset, reconsumed, properties, body, compressed: flags & COMPRESSED != 0 })
    }
}

fn skip(bytes: &mut Bytes, count: usize) -> Option<()> {
    if bytes.len() < count {
        return None;
    }
    bytes.advance(count);
    Some(())
}

fn take(bytes: &mut Bytes, length: i32) -> Option<Bytes> {
    let length = usize::try_from(length).ok()?;
    (length <= bytes.len()).then(|| bytes.split_to(length))
}

fn text(bytes: Bytes) -> Option<String> {
    String::from_utf8(bytes.into()).ok()
}

#[cfg(test)]
pub(super) use tests::stored_samples;

#[cfg(test)]
mod tests {
    use bytes::{BufMut as _, BytesMut};
    use holdfast_protocol::EventId;
    use proptest::prelude::*;

    use super::*;

    fn message() -> Message {
        Message {
            id: EventId { sequence: 1, nonce: 2 },
            order_key: "bucket/caf\u{e9} noir".into(),
            tag: "ObjectCreated:Put".into(),
            keys: vec!["caf%C3%A9+noir".into(), "id".into()],
            body: Bytes::from_static(b"body"),
        }
    }

    fn stored(message: &Message, flags: i32) -> Bytes {
        let properties = properties_of(message);
        let mut m = BytesMut::new();
        m.put_i32(MAGIC[0]);
        m.put_i32(0);
        m.put_i32(3);
        m.put_i32(0);
        m.put_i64(42);
        m.put_i64(0);
        m.put_i32(flags);
        m.put_i64(0);
        m.put_bytes(0, if flags & BORN_AT_IPV6 != 0 { 20 } else { 8 });
        m.put_i64(0);
        m.put_bytes(0, 8);
        m.put_i32(5);
        m.put_i64(0);
        m.put_i32(message.body.len() as i32);
        m.put_slice(&message.body);
        m.put_u8(5);
        m.put_slice(b"topic");
        m.put_i16(properties.len() as i16);
        m.put_slice(properties.as_bytes());
        let mut sized = BytesMut::new();
        sized.put_i32(m.len() as i32 + 4);
        sized.put(m);
        sized.freeze()
    }

    /// Answers with one and with two messages.
    pub(in super::super) fn stored_samples() -> Vec<Vec<u8>> {
        let one = [0, BORN_AT_IPV6, COMPRESSED].map(|flags| stored(&message(), flags).to_vec());
        one.iter().cloned().chain([one.concat()]).collect()
    }

    #[test]
    fn stored_messages_are_read() {
        let mut bytes = BytesMut::from(&stored(&message(), 0)[..]);
        bytes.extend_from_slice(&stored(&message(), BORN_AT_IPV6));
        let all = Stored::all(bytes.freeze()).expect("messages");
        assert_eq!(all.len(), 2);
        for one in all {
            assert_eq!((one.topic.as_str(), one.queue, one.offset, one.reconsumed), ("topic", 3, 42, 5));
            assert_eq!(one.to_message(), Some(message()));
        }
        // One of another form stands between them.
        let mut foreign = stored(&message(), 0).to_vec();
        foreign[4] ^= 1;
        let mixed = [&stored(&message(), 0)[..], &foreign, &stored(&message(), 0)].concat();
        assert_eq!(Stored::all(mixed.into()).expect("messages").len(), 2);
        let compressed = Stored::all(stored(&message(), COMPRESSED)).expect("messages");
        assert_eq!(compressed[0].to_message(), None);
    }

    proptest! {
        #[test]
        fn damage_is_refused(at in 0_usize..150, value in any::<u8>(), cut in 0_usize..150) {
            let mut bytes = stored(&message(), 0).to_vec();
            let place = at.min(bytes.len() - 1);
            bytes[place] = value;
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            let _ = Stored::all(bytes.into());
        }
    }
}
