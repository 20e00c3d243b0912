//! Names of events, as S3 has them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A name or pattern that no event has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no event of S3 that Holdfast knows")]
pub struct UnknownEvent(pub String);

macro_rules! event_names {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// What happened to an object.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum EventName {
            $($(#[$doc])* $variant,)*
        }

        impl EventName {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// As in a record: `ObjectCreated:Put`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

event_names! {
    /// PutObject.
    CreatedPut = "ObjectCreated:Put",
    /// A form that was posted.
    CreatedPost = "ObjectCreated:Post",
    /// CopyObject.
    CreatedCopy = "ObjectCreated:Copy",
    /// CompleteMultipartUpload.
    CreatedCompleteMultipartUpload = "ObjectCreated:CompleteMultipartUpload",
    /// A version is gone for good.
    RemovedDelete = "ObjectRemoved:Delete",
    /// A delete marker hides the object.
    RemovedDeleteMarkerCreated = "ObjectRemoved:DeleteMarkerCreated",
    /// Tags were set.
    TaggingPut = "ObjectTagging:Put",
    /// Tags were removed.
    TaggingDelete = "ObjectTagging:Delete",
    /// The ACL was set.
    AclPut = "ObjectAcl:Put",
    /// A restore from a cold tier began.
    RestorePost = "ObjectRestore:Post",
    /// A restore from a cold tier ended.
    RestoreCompleted = "ObjectRestore:Completed",
    /// The restored copy was given up again.
    RestoreDelete = "ObjectRestore:Delete",
    /// A lifecycle rule moved the object to another storage class.
    LifecycleTransition = "LifecycleTransition",
    /// A lifecycle rule removed a version.
    LifecycleExpirationDelete = "LifecycleExpiration:Delete",
    /// A lifecycle rule put a delete marker.
    LifecycleExpirationDeleteMarkerCreated = "LifecycleExpiration:DeleteMarkerCreated",
}

impl fmt::Display for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EventName {
    type Err = UnknownEvent;

    fn from_str(text: &str) -> Result<Self, UnknownEvent> {
        Self::ALL.iter().copied().find(|name| name.as_str() == text).ok_or_else(|| UnknownEvent(text.to_owned()))
    }
}

impl Serialize for EventName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for EventName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Events as a bucket notification configuration names them: `s3:ObjectCreated:*` or `s3:ObjectCreated:Put`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPattern(String);

impl EventPattern {
    /// Whether the pattern stands for `name`.
    pub fn matches(&self, name: EventName) -> bool {
        let pattern = self.0.strip_prefix("s3:").unwrap_or(&self.0);
        match pattern.strip_suffix(":*") {
            Some(family) => name.as_str().split(':').next() == Some(family),
            None => pattern == name.as_str(),
        }
    }

    /// As configured.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EventPattern {
    type Err = UnknownEvent;

    fn from_str(text: &str) -> Result<Self, UnknownEvent> {
        let pattern = Self(text.to_owned());
        if text.starts_with("s3:") && EventName::ALL.iter().any(|name| pattern.matches(*name)) {
            return Ok(pattern);
        }
        Err(UnknownEvent(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in EventName::ALL {
            assert_eq!(name.as_str().parse(), Ok(*name));
        }
        assert!("ObjectCreated:*".parse::<EventName>().is_err());
    }

    #[test]
    fn patterns_stand_for_a_family_or_one_event() {
        let pattern = |text: &str| text.parse::<EventPattern>();
        let created = pattern("s3:ObjectCreated:*").expect("a family");
        assert!(created.matches(EventName::CreatedPut) && created.matches(EventName::CreatedCopy));
        assert!(!created.matches(EventName::RemovedDelete));
        let one = pattern("s3:ObjectRemoved:Delete").expect("one event");
        assert!(one.matches(EventName::RemovedDelete) && !one.matches(EventName::RemovedDeleteMarkerCreated));
        assert!(pattern("s3:LifecycleTransition").expect("one event").matches(EventName::LifecycleTransition));
        for wrong in ["ObjectCreated:*", "s3:*", "s3:ObjectCreated:Puts", "s3:Nothing:*", ""] {
            assert!(pattern(wrong).is_err(), "{wrong}");
        }
    }
}
