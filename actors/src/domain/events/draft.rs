//! What is known of an event before the transaction, and the message that it becomes within it.

use std::fmt::Write as _;
use std::sync::Arc;

use holdfast_protocol::events::{
    EventBucket, EventId, EventName, EventObject, EventRecord, EventTime, HoldfastElements, Identity,
    RequestParameters, ResponseElements, S3Elements,
};

use super::NotificationRules;
use crate::ports::events::Message;

/// Who does what the cluster does by itself.
pub const HOLDFAST_PRINCIPAL: &str = "holdfast";

/// Who asks for a change, of which bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventContext {
    /// Name of the bucket.
    pub bucket: String,
    /// Name of the user who owns it.
    pub bucket_owner: String,
    /// The rules of the bucket; `None`: it has none, and everything is told.
    pub rules: Option<Arc<NotificationRules>>,
    /// Region of the front end.
    pub region: Arc<str>,
    /// Who asks: a user's name, `anonymous`, or [`HOLDFAST_PRINCIPAL`].
    pub principal: String,
    /// From where; empty if from within.
    pub source_ip: String,
    /// Id of the request; empty if there is none.
    pub request_id: String,
    /// The node that does it.
    pub node: Arc<str>,
}

/// An event to be, if the transaction makes it one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventDraft {
    /// Who and where.
    pub context: Arc<EventContext>,
    /// What it will be. A deletion that makes a delete marker is told as such instead.
    pub name: EventName,
}

/// What the transaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventOutcome<'a> {
    /// Key of the object.
    pub key: &'a str,
    /// Its version, if the bucket has or had versioning on.
    pub version: Option<&'a str>,
    /// Size, and ETag without quotes, of what is there now.
    pub content: Option<(u64, &'a str)>,
    /// Whether it made a delete marker.
    pub made_marker: bool,
    /// Time of the commit, in milliseconds since 1970.
    pub now_ms: u64,
}

impl EventDraft {
    /// The message for the outbox; `None` when the bucket's rules do not choose it. `id` rises with the changes of one
    /// object.
    pub fn message(&self, id: EventId, outcome: &EventOutcome<'_>) -> Option<Message> {
        let name = if outcome.made_marker { marker_name(self.name) } else { self.name };
        let context = &*self.context;
        let configuration_id = match &context.rules {
            None => String::new(),
            Some(rules) => rules.choose(name, outcome.key)?.to_owned(),
        };
        let key = event_key(outcome.key);
        let record = EventRecord {
            event_version: EventRecord::VERSION.into(),
            event_source: EventRecord::SOURCE.into(),
            aws_region: context.region.to_string(),
            event_time: EventTime { unix_ms: outcome.now_ms },
            event_name: name,
            user_identity: Identity { principal_id: context.principal.clone() },
            request_parameters: RequestParameters { source_ip_address: context.source_ip.clone() },
            response_elements: ResponseElements {
                request_id: context.request_id.clone(),
                node: context.node.to_string(),
            },
            s3: S3Elements {
                s3_schema_version: "1.0".into(),
                configuration_id,
                bucket: EventBucket {
                    name: context.bucket.clone(),
                    owner_identity: Identity { principal_id: context.bucket_owner.clone() },
                    arn: format!("arn:aws:s3:::{}", context.bucket),
                },
                object: EventObject {
                    key: key.clone(),
                    size: outcome.content.map(|(size, _)| size),
                    e_tag: outcome.content.map(|(_, etag)| etag.to_owned()),
                    version_id: outcome.version.map(str::to_owned),
                    sequencer: id.sequencer(),
                },
            },
            holdfast: HoldfastElements { event_id: id },
        };
        Some(Message {
            id,
            order_key: format!("{}/{key}", context.bucket),
            tag: name.as_str().to_owned(),
            keys: vec![key, id.to_string()],
            body: record.into_body().into(),
        })
    }
}

/// The event of a deletion that made a delete marker.
fn marker_name(name: EventName) -> EventName {
    match name {
        EventName::LifecycleExpirationDelete => EventName::LifecycleExpirationDeleteMarkerCreated,
        EventName::RemovedDelete => EventName::RemovedDeleteMarkerCreated,
        other => other,
    }
}

/// A key as S3's events have it: encoded as in a form, but for slashes. Never has spaces in it.
pub fn event_key(key: &str) -> String {
    let mut encoded = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*' | b'/' => {
                encoded.push(char::from(byte))
            }
            b' ' => encoded.push('+'),
            other => write!(encoded, "%{other:02X}").expect("text takes all"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::events::EventNotification;

    use super::super::{NotificationRule, NotificationTarget};
    use super::*;

    fn draft(name: EventName, rules: Option<NotificationRules>) -> EventDraft {
        let context = EventContext {
            bucket: "photos".into(),
            bucket_owner: "bob".into(),
            rules: rules.map(Arc::new),
            region: "us-east-1".into(),
            principal: "alice".into(),
            source_ip: "10.0.0.1".into(),
            request_id: "REQUEST".into(),
            node: "node".into(),
        };
        EventDraft { context: Arc::new(context), name }
    }

    const ID: EventId = EventId { sequence: 0xabc, nonce: 1 };

    fn outcome(made_marker: bool) -> EventOutcome<'static> {
        EventOutcome { key: "a b/\u{e9}.jpg", version: Some("v"), content: Some((3, "etag")), made_marker, now_ms: 1 }
    }

    #[test]
    fn message_carries_the_record_and_what_consumers_filter_by() {
        let message = draft(EventName::CreatedPut, None).message(ID, &outcome(false)).expect("told");
        message.check().expect("a message that every bus carries");
        assert_eq!(message.order_key, "photos/a+b/%C3%A9.jpg");
        assert_eq!(message.tag, "ObjectCreated:Put");
        assert_eq!(message.keys, ["a+b/%C3%A9.jpg", "0000000000000abc-00000001"]);
        let body: EventNotification = serde_json::from_slice(&message.body).expect("a notification");
        let record = &body.records[0];
        assert_eq!(record.s3.object.key, "a+b/%C3%A9.jpg");
        assert_eq!(record.s3.object.sequencer, "0000000000000ABC");
        assert_eq!(record.holdfast.event_id, message.id);
        assert_eq!((record.s3.object.size, record.s3.object.e_tag.as_deref()), (Some(3), Some("etag")));
    }

    #[test]
    fn deletion_that_makes_a_marker_is_told_as_such() {
        let told = |name| draft(name, None).message(ID, &outcome(true)).expect("told").tag;
        assert_eq!(told(EventName::RemovedDelete), "ObjectRemoved:DeleteMarkerCreated");
        assert_eq!(told(EventName::LifecycleExpirationDelete), "LifecycleExpiration:DeleteMarkerCreated");
    }

    #[test]
    fn rules_choose_by_what_really_happened() {
        let rules = NotificationRules {
            everything: false,
            rules: vec![NotificationRule {
                id: "markers".into(),
                target: NotificationTarget::Topic,
                arn: String::new(),
                events: vec!["s3:ObjectRemoved:DeleteMarkerCreated".into()],
                prefix: Some("a b/".into()),
                suffix: None,
            }],
        };
        let draft = draft(EventName::RemovedDelete, Some(rules));
        assert_eq!(draft.message(ID, &outcome(false)), None);
        let message = draft.message(ID, &outcome(true)).expect("told");
        let body: EventNotification = serde_json::from_slice(&message.body).expect("a notification");
        assert_eq!(body.records[0].s3.configuration_id, "markers");
    }
}
