//! What answers of brokers and name servers mean to who asked.

use holdfast_actors::ports::events::EventError;

use super::wire::{Command, response};

/// The error that an answer other than success is. `what`: the topic or group that was asked for.
pub(super) fn refused(what: &str, answer: &Command) -> EventError {
    let remark = first_line(&answer.remark);
    match answer.code {
        response::NO_PERMISSION => EventError::Denied(format!(
            "{remark} (check events.access_key, events.secret_key_file, and that the user may use {what})"
        )),
        response::TOPIC_NOT_EXIST => EventError::NoTopic(format!("RocketMQ has no topic {what}")),
        response::GROUP_NOT_EXIST => EventError::NoTopic(format!("RocketMQ has no consumer group {what}")),
        response::MESSAGE_ILLEGAL => EventError::Invalid(format!("refused by RocketMQ: {remark}")),
        // The broker has the message, but does not promise to keep it.
        response::FLUSH_DISK_TIMEOUT => EventError::TimedOut("the broker could not flush the message in time".into()),
        response::FLUSH_SLAVE_TIMEOUT => EventError::TimedOut("the broker's replica did not take it in time".into()),
        response::SLAVE_NOT_AVAILABLE => EventError::Unavailable("the broker's replica is not there".into()),
        response::SERVICE_NOT_AVAILABLE if remark.contains("disk") => EventError::Full(remark.to_owned()),
        response::SYSTEM_BUSY => EventError::Unavailable(format!("the broker is busy: {remark}")),
        code => EventError::Unavailable(format!("RocketMQ answered {code}: {remark}")),
    }
}

/// An answer that cannot be understood.
pub(super) fn unexpected(what: &str, error: &dyn std::fmt::Display) -> EventError {
    EventError::Unavailable(format!("RocketMQ answered {what} that cannot be read: {error}"))
}

/// Brokers send whole stack traces.
fn first_line(remark: &str) -> &str {
    let line = remark.lines().next().unwrap_or_default();
    let end = line.char_indices().nth(300).map_or(line.len(), |(at, _)| at);
    &line[..end]
}
