//! The steps of the protocol on one entry, as the script in `entry.lua` carries them out on the server.

use std::time::Duration;

use redis::{Cmd, FromRedisValue as _, RedisError, Value};

/// The script.
pub(super) const SCRIPT: &str = include_str!("entry.lua");

/// Names a reader's try to fill, or a writer's mark: 16 random bytes in hexadecimal digits.
pub(super) type Nonce = String;

/// A fresh one.
pub(super) fn nonce() -> Nonce {
    hex::encode(rand::random::<[u8; 16]>())
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The value, or the right to fill.
    Get {
        /// Used if there is no other.
        nonce: Nonce,
        /// How long the right lasts.
        ttl: Duration,
    },
    /// Puts in what was read.
    Fill {
        /// As it was given.
        nonce: Nonce,
        /// What was read.
        value: Vec<u8>,
        /// How long it lasts.
        ttl: Duration,
    },
    /// A write begins, or goes on.
    Mark {
        /// Whose.
        token: Nonce,
        /// How long the mark counts.
        ttl: Duration,
    },
    /// A write is over.
    Finish {
        /// Whose.
        token: Nonce,
        /// What was written, and how long it lasts.
        value: Option<(Vec<u8>, Duration)>,
    },
}

/// What the server says to a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// To `Get`: the value.
    Value(Vec<u8>),
    /// To `Get`: a write is in progress.
    Marked,
    /// To `Get`: nothing is there; whoever holds the nonce may fill.
    Nothing(Nonce),
    /// To `Fill`: whether it landed.
    Filled(bool),
    /// To `Mark`.
    Begun,
    /// To `Finish`.
    Finished(Finish),
}

/// How a write's entry was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finish {
    /// The mark was not there any more. Nothing older than the write is there now.
    Lost,
    /// Empty, or marked by others.
    Empty,
    /// With the value that was written.
    Written,
}

impl Step {
    /// For metrics.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Get { .. } => "get",
            Self::Fill { .. } => "fill",
            Self::Mark { .. } => "mark",
            Self::Finish { .. } => "finish",
        }
    }

    /// Adds the step's arguments to a call of the script.
    pub(super) fn write_to(&self, command: &mut Cmd) {
        let ms = |ttl: &Duration| (ttl.as_millis() as u64).max(1);
        command.arg(self.name());
        match self {
            Self::Get { nonce, ttl } => command.arg(nonce).arg(ms(ttl)),
            Self::Fill { nonce, value, ttl } => command.arg(nonce).arg(value).arg(ms(ttl)),
            Self::Mark { token, ttl } => command.arg(token).arg(ms(ttl)),
            Self::Finish { token, value: None } => command.arg(token),
            Self::Finish { token, value: Some((value, ttl)) } => command.arg(token).arg(value).arg(ms(ttl)),
        };
    }

    /// Understands what the script answered.
    pub(super) fn answer(&self, value: Value) -> Result<Answer, RedisError> {
        let strange = || RedisError::from((redis::ErrorKind::UnexpectedReturnType, "the script of the cache"));
        let Value::Array(parts) = value else { return Err(strange()) };
        let mut parts = parts.into_iter();
        let code = i64::from_redis_value(parts.next().ok_or_else(strange)?)?;
        let rest = parts.next();
        Ok(match (self, code, rest) {
            (Self::Get { .. }, 1, Some(value)) => Answer::Value(Vec::from_redis_value(value)?),
            (Self::Get { .. }, 2, None) => Answer::Marked,
            (Self::Get { .. }, 0, Some(nonce)) => Answer::Nothing(String::from_redis_value(nonce)?),
            (Self::Fill { .. }, 0 | 1, None) => Answer::Filled(code == 1),
            (Self::Mark { .. }, 1, None) => Answer::Begun,
            (Self::Finish { .. }, 0, None) => Answer::Finished(Finish::Lost),
            (Self::Finish { .. }, 1, None) => Answer::Finished(Finish::Empty),
            (Self::Finish { .. }, 2, None) => Answer::Finished(Finish::Written),
            _ => return Err(strange()),
        })
    }
}

#[cfg(test)]
pub(super) mod model;
