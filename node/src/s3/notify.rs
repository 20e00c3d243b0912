//! Bucket notification configuration, and what is known of an event when a request begins.
//!
//! Whatever target a client names, there is one: the topic of events. So the ARN is only kept, to be read back. What a
//! bucket tells:
//!
//! | configuration | told |
//! |---|---|
//! | never put | everything |
//! | with `EventBridgeConfiguration` | everything |
//! | with topics or queues | what their events and filters choose |
//! | put empty | nothing |

use std::sync::Arc;

use holdfast_actors::domain::events::{
    EventContext, EventDraft, NotificationRule, NotificationRules, NotificationTarget, RuleError,
};
use holdfast_actors::ports::metadata::{Bucket, BucketConfigKind};
use holdfast_protocol::EventName;
use http::Extensions;
use s3s::dto::*;
use s3s::{S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::S3Front;
use super::auth::Caller;
use super::bucket_config::{stored, to_bounded_json};
use super::errors::not_implemented;
use super::facts::ClientConnection;
use super::request_id::RequestContext;

/// The rules of a bucket, in bytes as they are stored. Every change of an object goes through them.
const DOCUMENT_BYTES_MAX: usize = 64 * 1024;

/// The principal of requests that nobody signed.
const ANONYMOUS: &str = "anonymous";

impl S3Front {
    /// The event that a request will be, if it does what it asks for; `None` when nobody is told of changes.
    pub(crate) fn event(&self, extensions: &Extensions, bucket: &Bucket, name: EventName) -> Option<EventDraft> {
        let node = self.events_from.clone()?;
        // A document that cannot be read was logged; telling too much is better than telling nothing.
        let rules = stored::<NotificationRules>(bucket, BucketConfigKind::Notification).ok().flatten();
        let address = extensions.get::<ClientConnection>().map(|client| client.address.to_string());
        let request = extensions.get::<Arc<RequestContext>>().map(|context| context.id().to_string());
        let context = EventContext {
            bucket: bucket.name.clone(),
            bucket_owner: bucket.owner.clone(),
            rules: rules.map(Arc::new),
            region: self.region.clone(),
            principal: Caller::of(extensions).user_name().unwrap_or(ANONYMOUS).to_owned(),
            source_ip: address.unwrap_or_default(),
            request_id: request.unwrap_or_default(),
            node,
        };
        Some(EventDraft { context: Arc::new(context), name })
    }

    pub(crate) async fn get_bucket_notification_configuration(
        &self,
        req: S3Request<GetBucketNotificationConfigurationInput>,
    ) -> S3Result<S3Response<GetBucketNotificationConfigurationOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        let rules = stored::<NotificationRules>(&bucket, BucketConfigKind::Notification)?.unwrap_or_default();
        let mut output = GetBucketNotificationConfigurationOutput {
            event_bridge_configuration: rules.everything.then(EventBridgeConfiguration::default),
            ..Default::default()
        };
        for rule in rules.rules {
            let filter = filter_of(&rule);
            let events = rule.events.into_iter().map(Event::from).collect();
            match rule.target {
                NotificationTarget::Topic => {
                    let topic = TopicConfiguration { events, filter, id: Some(rule.id), topic_arn: rule.arn };
                    output.topic_configurations.get_or_insert_default().push(topic);
                }
                NotificationTarget::Queue => {
                    let queue = QueueConfiguration { events, filter, id: Some(rule.id), queue_arn: rule.arn };
                    output.queue_configurations.get_or_insert_default().push(queue);
                }
            }
        }
        Ok(S3Response::new(output))
    }

    pub(crate) async fn put_bucket_notification_configuration(
        &self,
        req: S3Request<PutBucketNotificationConfigurationInput>,
    ) -> S3Result<S3Response<PutBucketNotificationConfigurationOutput>> {
        let bucket = self.config_bucket(&req, &req.input.bucket).await?;
        let configuration = req.input.notification_configuration;
        if configuration.lambda_function_configurations.is_some_and(|functions| !functions.is_empty()) {
            return Err(not_implemented("calling functions; name a topic or a queue"));
        }
        let topics = configuration
            .topic_configurations
            .unwrap_or_default()
            .into_iter()
            .map(|topic| rule(NotificationTarget::Topic, topic.id, topic.topic_arn, topic.events, topic.filter));
        let queues = configuration
            .queue_configurations
            .unwrap_or_default()
            .into_iter()
            .map(|queue| rule(NotificationTarget::Queue, queue.id, queue.queue_arn, queue.events, queue.filter));
        let rules = NotificationRules {
            everything: configuration.event_bridge_configuration.is_some(),
            rules: topics.chain(queues).collect::<S3Result<_>>()?,
        };
        rules.check().map_err(refused)?;
        let tells = rules.everything || !rules.rules.is_empty();
        if tells && self.events_from.is_none() && req.input.skip_destination_validation != Some(true) {
            return Err(s3_error!(
                InvalidArgument,
                "Unable to validate the following destination configurations: this node publishes no events (set \
                 events.rocketmq in its configuration)"
            ));
        }
        let document = to_bounded_json(&rules, DOCUMENT_BYTES_MAX)?;
        self.set_config(&bucket, BucketConfigKind::Notification, Some(document)).await?;
        Ok(S3Response::new(PutBucketNotificationConfigurationOutput::default()))
    }
}

fn refused(error: RuleError) -> S3Error {
    S3Error::with_message(S3ErrorCode::InvalidArgument, error.to_string())
}

fn rule(
    target: NotificationTarget,
    id: Option<String>,
    arn: String,
    events: EventList,
    filter: Option<NotificationConfigurationFilter>,
) -> S3Result<NotificationRule> {
    if !arn.starts_with("arn:") {
        return Err(s3_error!(InvalidArgument, "The ARN is not well formed"));
    }
    let (mut prefix, mut suffix) = (None, None);
    for part in filter.and_then(|filter| filter.key).and_then(|key| key.filter_rules).unwrap_or_default() {
        let name = part.name.as_ref().map(|name| name.as_str().to_ascii_lowercase());
        let slot = match name.as_deref() {
            Some("prefix") => &mut prefix,
            Some("suffix") => &mut suffix,
            _ => return Err(s3_error!(InvalidArgument, "filter rule name must be either prefix or suffix")),
        };
        if slot.replace(part.value.unwrap_or_default()).is_some() {
            return Err(s3_error!(InvalidArgument, "Cannot specify more than one prefix or suffix rule in a filter."));
        }
    }
    Ok(NotificationRule {
        id: id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("{:016x}", rand::random::<u64>())),
        target,
        arn,
        events: events.into_iter().map(|event| event.as_ref().to_owned()).collect(),
        prefix,
        suffix,
    })
}

fn filter_of(rule: &NotificationRule) -> Option<NotificationConfigurationFilter> {
    let part = |name: &'static str, value: &Option<String>| {
        value.clone().map(|value| FilterRule { name: Some(FilterRuleName::from_static(name)), value: Some(value) })
    };
    let parts = [part(FilterRuleName::PREFIX, &rule.prefix), part(FilterRuleName::SUFFIX, &rule.suffix)];
    let rules: Vec<FilterRule> = parts.into_iter().flatten().collect();
    (!rules.is_empty())
        .then_some(NotificationConfigurationFilter { key: Some(S3KeyFilter { filter_rules: Some(rules) }) })
}
