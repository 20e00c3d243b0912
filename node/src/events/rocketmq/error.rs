//! What answers of brokers and name servers mean to who asked.

use holdfast_actors::ports::events::EventError;

use super::wire::{Command, response};

/// The error that an answer other than success is. `what`: the topic or group that was asked for.
pub(super) fn refused(what: &str, answer: &Command) -> EventError {
    let remark = first_line(&answer.remark);
    match answer.code {
        // The same code says that nobody may, whoever asks.
        response::NO_PERMISSION if is_closed_to_all(remark) => EventError::Unavailable(format!(
            "{remark} (to anybody: see brokerPermission of the broker, perm of the topic, consumeEnable of the group)"
        )),
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
        // It could not make the next file of its log.
        _ if remark.contains("create mapped file failed") => {
            EventError::Full(format!("{remark} (is the broker's disk full, or read-only?)"))
        }
        response::SYSTEM_BUSY => EventError::Unavailable(format!("the broker is busy: {}", without_figures(remark))),
        code => EventError::Unavailable(format!("RocketMQ answered {code}: {remark}")),
    }
}

/// An answer that cannot be understood.
pub(super) fn unexpected(what: &str, error: &dyn std::fmt::Display) -> EventError {
    EventError::Unavailable(format!("RocketMQ answered {what} that cannot be read: {error}"))
}

/// What brokers say of a permission that is not the user's.
fn is_closed_to_all(remark: &str) -> bool {
    remark.contains("message is forbidden") || remark.contains("subscription group no permission")
}

/// Brokers add how long the request waited among how many: with that every refusal would be news.
fn without_figures(remark: &str) -> &str {
    remark.split(", period in queue").next().unwrap_or(remark)
}

/// Brokers send whole stack traces.
fn first_line(remark: &str) -> &str {
    let line = remark.lines().next().unwrap_or_default();
    let end = line.char_indices().nth(300).map_or(line.len(), |(at, _)| at);
    &line[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(code: i32, remark: &str) -> EventError {
        refused("topic", &Command { remark: remark.into(), ..Command::new(code) })
    }

    #[test]
    fn broker_that_takes_nothing_is_not_blamed_on_credentials() {
        for remark in [
            "the broker[10.0.0.1] sending message is forbidden",
            "the topic[holdfast-objects] pulling message is forbidden",
            "subscription group no permission, holdfast-tasks",
        ] {
            let error = told(response::NO_PERMISSION, remark);
            assert!(matches!(error, EventError::Unavailable(_)), "{error:?}");
            assert!(error.to_string().contains("brokerPermission") && !error.to_string().contains("access_key"));
        }
        let denied = told(response::NO_PERMISSION, "User:holdfast has no permission to access Topic:holdfast-objects");
        assert!(matches!(denied, EventError::Denied(_)) && denied.to_string().contains("events.access_key"));
        let denied = told(response::NO_PERMISSION, "access of User:holdfast to Topic:holdfast-objects is forbidden");
        assert!(matches!(denied, EventError::Denied(_)), "it is this user's alone: {denied:?}");
    }

    #[test]
    fn full_disk_is_told_as_such_whichever_part_of_the_broker_finds_it() {
        let full = "service not available now. It may be caused by one of the following reasons: the broker's disk is full \
                    [CL:  0.95 CQ:  0.95 INDEX:  0.95], messages are put to the slave, message store has been shut down, etc.";
        assert!(matches!(told(response::SERVICE_NOT_AVAILABLE, full), EventError::Full(_)));
        let broken = told(1, "create mapped file failed, server is busy or broken.");
        assert!(matches!(broken, EventError::Full(_)), "{broken:?}");
        assert!(matches!(told(response::SERVICE_NOT_AVAILABLE, "not yet"), EventError::Unavailable(_)));
    }

    #[test]
    fn busy_broker_says_the_same_again_and_again() {
        let busy = |ms: u32| {
            let remark = format!(
                "[TIMEOUT_CLEAN_QUEUE]broker busy, start flow control for a while, period in queue: {ms}ms, size of queue: 7"
            );
            told(response::SYSTEM_BUSY, &remark)
        };
        assert_eq!(busy(203), busy(518));
    }
}
