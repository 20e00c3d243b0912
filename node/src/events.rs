//! Events: adapters of the `EventBus` port, and what is told about a request.

pub mod rocketmq;
