//! The S3 event notification.

use serde::{Deserialize, Serialize};

use super::{EventId, EventName};

/// The body of a message: one record, in the list that S3's consumers expect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventNotification {
    /// The records.
    #[serde(rename = "Records")]
    pub records: Vec<EventRecord>,
}

/// One change of one object. Fields may be added; consumers must ignore what they do not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventRecord {
    /// Version of the form: `2.2`.
    pub event_version: String,
    /// `holdfast:s3`.
    pub event_source: String,
    /// The region that requests are signed for.
    pub aws_region: String,
    /// When the change was committed, by the clock of the node that did it.
    pub event_time: EventTime,
    /// What happened.
    pub event_name: EventName,
    /// Who did it: the name of a user, `anonymous`, or `holdfast` for what the cluster does by itself.
    pub user_identity: Identity,
    /// Where the request came from.
    pub request_parameters: RequestParameters,
    /// What the client was told.
    pub response_elements: ResponseElements,
    /// The object.
    pub s3: S3Elements,
    /// What is Holdfast's own.
    pub holdfast: HoldfastElements,
}

/// Somebody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The name of a user.
    pub principal_id: String,
}

/// Where a request came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestParameters {
    /// The client's address; empty for what the cluster does by itself.
    #[serde(rename = "sourceIPAddress")]
    pub source_ip_address: String,
}

/// What the client was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseElements {
    /// The request's id; empty for what the cluster does by itself.
    #[serde(rename = "x-amz-request-id")]
    pub request_id: String,
    /// The node that did it.
    #[serde(rename = "x-amz-id-2")]
    pub node: String,
}

/// The object and its bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct S3Elements {
    /// Version of this part: `1.0`.
    #[serde(rename = "s3SchemaVersion")]
    pub s3_schema_version: String,
    /// Id of the rule of the bucket notification configuration that chose the event; empty without one.
    pub configuration_id: String,
    /// The bucket.
    pub bucket: EventBucket,
    /// The object.
    pub object: EventObject,
}

/// A bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventBucket {
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub owner_identity: Identity,
    /// `arn:aws:s3:::` and the name.
    pub arn: String,
}

/// An object. Size and ETag are there when there is content, as after a creation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventObject {
    /// Its key, encoded as in a form: `+` is a space, `%41` is `A`.
    pub key: String,
    /// Size in bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub size: Option<u64>,
    /// ETag without quotes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub e_tag: Option<String>,
    /// Version id; absent in a bucket that never had versioning on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub version_id: Option<String>,
    /// Rises with the changes of this object: sixteen digits that compare as text.
    pub sequencer: String,
}

/// What is Holdfast's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HoldfastElements {
    /// The id of the event; repetitions have the same.
    pub event_id: EventId,
}

impl EventRecord {
    /// The version of the form that [`EventRecord`] has.
    pub const VERSION: &'static str = "2.2";
    /// Who tells.
    pub const SOURCE: &'static str = "holdfast:s3";

    /// As the body of a message.
    pub fn into_body(self) -> Vec<u8> {
        let notification = EventNotification { records: vec![self] };
        serde_json::to_vec(&notification).expect("text and numbers are JSON")
    }
}

/// A time, written as `2026-01-31T23:59:59.123Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventTime {
    /// Milliseconds since 1970.
    pub unix_ms: u64,
}

impl EventTime {
    fn text(self) -> String {
        let (days, ms) = ((self.unix_ms / 86_400_000) as i64, self.unix_ms % 86_400_000);
        // Days to a date of the Gregorian calendar, by eras of 400 years that begin on 1 March.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", ms % 1_000)
    }

    fn parse(text: &str) -> Option<Self> {
        let part = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
        let (year, month, day) = (part(0..4)?, part(5..7)?, part(8..10)?);
        let (hour, minute, second, ms) = (part(11..13)?, part(14..16)?, part(17..19)?, part(20..23)?);
        let month_from_march = if month > 2 { month - 3 } else { month + 9 };
        let year = year - i64::from(month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        let unix_ms = ((days * 24 + hour) * 60 + minute) * 60_000 + second * 1_000 + ms;
        let time = Self { unix_ms: u64::try_from(unix_ms).ok()? };
        // Whatever was not read must be as it is written.
        (time.text() == text).then_some(time)
    }
}

impl Serialize for EventTime {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for EventTime {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no time of an event")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        let text = |unix_ms| EventTime { unix_ms }.text();
        assert_eq!(text(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(text(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(text(1_709_251_199_999), "2024-02-29T23:59:59.999Z");
        assert_eq!(text(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }

    proptest! {
        #[test]
        fn times_are_read_as_they_are_written(unix_ms in 0_u64..253_402_300_800_000) {
            let time = EventTime { unix_ms };
            prop_assert_eq!(EventTime::parse(&time.text()), Some(time));
        }

        #[test]
        fn other_text_is_no_time(text in ".{0,30}") {
            if let Some(time) = EventTime::parse(&text) {
                prop_assert_eq!(time.text(), text);
            }
        }
    }

    fn record(event_name: EventName, object: EventObject) -> EventRecord {
        EventRecord {
            event_version: EventRecord::VERSION.into(),
            event_source: EventRecord::SOURCE.into(),
            aws_region: "us-east-1".into(),
            event_time: EventTime { unix_ms: 1_790_000_000_123 },
            event_name,
            user_identity: Identity { principal_id: "alice".into() },
            request_parameters: RequestParameters { source_ip_address: "10.1.2.3".into() },
            response_elements: ResponseElements { request_id: "4F2A9C".into(), node: "0123456789abcdef".into() },
            s3: S3Elements {
                s3_schema_version: "1.0".into(),
                configuration_id: String::new(),
                bucket: EventBucket {
                    name: "photos".into(),
                    owner_identity: Identity { principal_id: "bob".into() },
                    arn: "arn:aws:s3:::photos".into(),
                },
                object,
            },
            holdfast: HoldfastElements { event_id: EventId { sequence: 0x51_2003, nonce: 0xdead_beef } },
        }
    }

    /// What consumers were promised. A change of one of these files breaks them.
    #[test]
    fn records_have_their_golden_form() {
        let created = EventObject {
            key: "2026/caf%C3%A9+noir.jpg".into(),
            size: Some(1_048_576),
            e_tag: Some("d41d8cd98f00b204e9800998ecf8427e".into()),
            version_id: Some("3sL4kqtJlcpXroDTDmJ.rmSpXd3dIbrHY".into()),
            sequencer: "0000000000512003".into(),
        };
        let removed = EventObject {
            key: "2026/cat.jpg".into(),
            size: None,
            e_tag: None,
            version_id: None,
            sequencer: "0000000000512003".into(),
        };
        let golden = [
            (record(EventName::CreatedPut, created), include_str!("../../golden/events/object-created-put.json")),
            (record(EventName::RemovedDelete, removed), include_str!("../../golden/events/object-removed-delete.json")),
        ];
        for (record, text) in golden {
            let notification = EventNotification { records: vec![record.clone()] };
            let pretty = serde_json::to_string_pretty(&notification).expect("JSON");
            assert_eq!(pretty.trim(), text.trim(), "the form on the wire changed");
            let read: EventNotification = serde_json::from_str(text).expect("golden");
            assert_eq!(read, notification);
            let read: EventNotification = serde_json::from_slice(&record.into_body()).expect("a body");
            assert_eq!(read, notification);
        }
    }
}
