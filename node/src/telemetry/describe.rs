//! What each metric means, shown as HELP by Prometheus.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram};

pub(super) fn describe() {
    crate::s3::meters::describe_metrics();
    requests();
    events();
    node();
    lifecycle_and_tiers();
    housekeeping();
    peers_and_shards();
    replicas();
    http();
    metadata();
    coordination();
    storage();
    process();
}

fn requests() {
    describe_histogram!(
        "holdfast_s3_transfer_seconds",
        Unit::Seconds,
        "Time from a request's head to the last byte of its answer, by class."
    );
    describe_counter!("holdfast_s3_received_bytes_total", Unit::Bytes, "Body bytes received from S3 clients.");
    describe_counter!("holdfast_s3_sent_bytes_total", Unit::Bytes, "Body bytes sent to S3 clients.");
    describe_gauge!("holdfast_s3_requests_in_flight", "S3 requests being answered.");

    describe_gauge!("holdfast_admission_jobs", "Requests in work, by class.");
    describe_gauge!("holdfast_admission_bytes", Unit::Bytes, "Bytes that requests in work announced, by class.");
    describe_gauge!("holdfast_admission_queue_depth", "Requests that wait for a place, by class.");
    describe_counter!("holdfast_admission_admitted_total", "Requests admitted, by class.");
    describe_counter!("holdfast_admission_rejected_total", "Requests answered SlowDown, by class and reason.");
}

fn events() {
    describe_gauge!("holdfast_events_outbox_rows", "Events that wait in this node's partitions of the outbox.");
    describe_gauge!(
        "holdfast_events_outbox_oldest_seconds",
        Unit::Seconds,
        "Age of the oldest event that waits in this node's partitions of the outbox."
    );
    describe_gauge!("holdfast_events_published_kept_rows", "Published events that can be published again.");
    describe_gauge!("holdfast_events_partitions", "Partitions of the outbox that this node publishes from.");
    describe_counter!(
        "holdfast_events_requests_total",
        "What publishing events costs: looks at the outbox, removals from it, and requests to the bus."
    );
    describe_counter!("holdfast_events_published_total", "Messages that the bus acknowledged, by topic.");
    describe_counter!(
        "holdfast_events_publish_failures_total",
        "Messages that the bus did not take, by kind of failure."
    );
    describe_counter!("holdfast_events_replayed_total", "Published events that an operator made wait again.");
    describe_histogram!(
        "holdfast_events_publish_seconds",
        Unit::Seconds,
        "Time for the bus to acknowledge a request, of one message or many."
    );
    describe_histogram!(
        "holdfast_events_delay_seconds",
        Unit::Seconds,
        "Time from a change's commit to the bus's acknowledgement of its event, by topic."
    );
}

fn node() {
    describe_gauge!("holdfast_node_ready", "1 when requests of all kinds are served.");
    describe_gauge!("holdfast_uptime_seconds", Unit::Seconds, "Time since the start.");
    describe_gauge!(
        "holdfast_time_seconds",
        Unit::Seconds,
        "This node's time of day when it was asked, since 1970: to be compared with the time of the sample."
    );
    describe_counter!(
        "holdfast_clock_leaps_total",
        "Leaps of the time of day, each counted by all who hold still for it."
    );
    describe_gauge!(
        "holdfast_certificate_expiry_timestamp_seconds",
        Unit::Seconds,
        "Until when a certificate is valid, since 1970: s3 is that of s3.tls_cert, peer this node's, authority the cluster's."
    );
    describe_gauge!("holdfast_build_info", "Always 1; the version is a label.");
    describe_counter!("holdfast_actor_restarts_total", "Actors that ended and were started again, by kind.");
    describe_counter!("holdfast_actor_task_panics_total", "Tasks and pieces of work that panicked, which is a bug.");

    describe_gauge!("holdfast_disk_total_bytes", Unit::Bytes, "Size of the disk's file system.");
    describe_gauge!("holdfast_disk_free_bytes", Unit::Bytes, "Room left on the disk's file system.");
    describe_gauge!("holdfast_disk_live_bytes", Unit::Bytes, "Bytes of live chunks on the disk.");
    describe_gauge!("holdfast_disk_chunks", "Live chunks on the disk.");
    describe_gauge!("holdfast_disk_segments", "Segment files on the disk.");
    describe_gauge!("holdfast_disk_health", "1 for the state that the disk is in.");
    describe_counter!("holdfast_disk_task_failures_total", "Housekeeping that failed, by disk and task.");
    describe_counter!("holdfast_disk_compacted_bytes_total", Unit::Bytes, "Bytes that compaction moved.");
}

fn lifecycle_and_tiers() {
    describe_counter!(
        "holdfast_lifecycle_actions_total",
        "What lifecycle rules did, by action and outcome; changed: the version was another one by then, and was spared."
    );
    describe_counter!(
        "holdfast_reads_not_noted_total",
        "Reads that were not noted for lifecycle rules, as too many waited to be."
    );
    describe_counter!("holdfast_lifecycle_examined_total", "Versions and uploads that lifecycle rules looked at.");
    describe_counter!("holdfast_lifecycle_passes_total", "Passes over the lifecycle rules of all buckets, by outcome.");
    describe_gauge!(
        "holdfast_lifecycle_lag_seconds",
        Unit::Seconds,
        "For how long the longest due of what lifecycle rules do now has been due; 0 when nothing is left."
    );
    describe_gauge!(
        "holdfast_tier_up",
        "1 when the cold tier can be worked with from this node, 0 when not; NaN after it was removed."
    );
    describe_gauge!(
        "holdfast_tier_size_bytes",
        Unit::Bytes,
        "Bytes of objects in the cold tier; told by the controller, as all that is counted of a tier."
    );
    describe_gauge!("holdfast_tier_objects", "Contents in the cold tier; copies of an object share one.");
    describe_gauge!("holdfast_tier_pieces_to_delete", "Pieces in the cold tier on the list of what is to be deleted.");
    describe_gauge!("holdfast_tier_moves_due", "Moves to or from the cold tier that are due or in work.");
    describe_gauge!("holdfast_tier_moves_failing", "Moves to or from the cold tier whose last try failed.");
    describe_gauge!("holdfast_tier_moves_waiting", "All moves of the cold tier, those included that are not due yet.");
    describe_gauge!(
        "holdfast_tier_move_lag_seconds",
        Unit::Seconds,
        "For how long the longest due move of the cold tier has been due; 0 when none is."
    );
    describe_counter!("holdfast_tier_verify_damaged_total", "Contents that `tier verify` found damaged or missing.");
    describe_counter!(
        "holdfast_tier_moves_total",
        "Moves to (out) and from (in) a cold tier, by outcome; overtaken: the object was changed meanwhile."
    );
    describe_counter!(
        "holdfast_tier_moved_bytes_total",
        Unit::Bytes,
        "Bytes moved to (out) and from (in) a cold tier."
    );
    describe_counter!("holdfast_tier_pieces_deleted_total", "Deletions in a cold tier of what nothing refers to.");
    describe_counter!("holdfast_tier_read_bytes_total", Unit::Bytes, "Bytes that came from a cold tier for readers.");
    describe_counter!(
        "holdfast_tier_reads_total",
        "Requests to a cold tier for readers, by tier and how they ended; dropped: the readers went."
    );
    describe_counter!("holdfast_tier_corrupt_total", "Times that a cold tier gave damaged or short data.");
    describe_counter!("holdfast_tier_cache_hits_total", "Blocks of cold objects that were read from memory.");
    describe_counter!("holdfast_tier_cache_misses_total", "Blocks of cold objects that were not in memory.");
}

fn housekeeping() {
    describe_counter!("holdfast_cleanup_passes_total", "Cleanup passes, by kind and outcome.");
    describe_counter!("holdfast_cleanup_items_total", "Uploads aborted, contents reclaimed, orphans deleted.");
    describe_counter!("holdfast_cleanup_reclaimed_bytes_total", Unit::Bytes, "Payload bytes given back by cleanup.");

    describe_counter!("holdfast_lock_requests_total", "Requests for locks, by backend and outcome.");
    describe_histogram!(
        "holdfast_lock_wait_seconds",
        Unit::Seconds,
        "Time from a request for a lock to its answer, by backend."
    );
    describe_counter!("holdfast_locks_lost_total", "Locks lost while this node held them, by backend.");
    describe_counter!(
        "holdfast_lock_fenced_writes_total",
        "Writes refused since their lock was granted again with a higher token."
    );

    describe_counter!("holdfast_tasks_dispatched_total", "Tasks given to the bus, by kind and whether it took them.");
    describe_gauge!("holdfast_tasks_in_flight", "Tasks that consumers have, as the node that gives them out knows.");
    describe_counter!("holdfast_task_items_total", "Things done, by kind of task, and by the bus or by hand.");
    describe_counter!("holdfast_consumer_messages_total", "Messages handled by consumers, by group and outcome.");
    describe_counter!(
        "holdfast_error_reports_total",
        "Reports for the error log: queued, dropped since the queue was full, or repeated within a minute."
    );
    describe_counter!("holdfast_audit_failures_total", "Entries of the audit log that could not be written.");

    describe_counter!("holdfast_chunk_timeouts_total", "Chunks that took longer than limits.chunk_timeout.");
}

fn peers_and_shards() {
    describe_counter!("holdfast_peer_requests_total", "Operations on peers, by operation and outcome.");
    describe_counter!("holdfast_peer_served_total", "Operations done for peers, by operation and outcome.");
    describe_counter!("holdfast_peer_sent_bytes_total", Unit::Bytes, "Payload sent to peers, by operation.");
    describe_counter!("holdfast_peer_received_bytes_total", Unit::Bytes, "Payload received from peers, by operation.");
    describe_gauge!("holdfast_peer_in_flight", "Operations on peers that have not ended.");
    describe_gauge!("holdfast_peer_connections", "Connections with peers, by who dialled.");
    describe_counter!(
        "holdfast_peer_handshake_failures_total",
        "Connections with peers that were refused or did not come about, by side and reason."
    );
    describe_counter!("holdfast_peer_corrupt_blocks_total", "Blocks from peers that did not match their checksum.");
    describe_counter!("holdfast_peer_certificate_renewals_total", "Renewals of this node's certificate.");
    describe_gauge!("holdfast_controller", "1 on the node that is the controller.");
    describe_gauge!("holdfast_shards", "Shards by health, on the controller.");
    describe_gauge!("holdfast_shards_unplaced", "Shards that no node holds yet, on the controller.");
    describe_gauge!("holdfast_shards_joining", "Joins under way, on the controller.");
    describe_gauge!("holdfast_shards_waiting", "Shards whose turn to move has not come, on the controller.");
    describe_counter!("holdfast_shard_changes_total", "Changes of shards that this node stored as the controller.");
    describe_counter!("holdfast_rebuild_bytes_total", Unit::Bytes, "Bytes fetched for shards that this node joins.");
    describe_counter!("holdfast_leftovers_deleted_total", "Chunks deleted since other nodes hold them now.");
    describe_gauge!(
        "holdfast_leftovers_kept",
        "Chunks of shards in which this node has no part, kept since their members do not have them all, at the last look."
    );
    describe_gauge!("holdfast_repairs_waiting", "Repairs that wait for this node.");
    describe_gauge!("holdfast_repairs_paused", "1 while repairs are paused, as this node sees it.");
    describe_counter!("holdfast_repairs_total", "Repairs tried, by outcome.");
    describe_counter!(
        "holdfast_disk_steps_late_total",
        "Steps of this node's disks, in repairs and joins, that were waited for no more: a disk hangs."
    );
    describe_counter!("holdfast_repair_bytes_total", Unit::Bytes, "Bytes fetched for repairs.");
    describe_counter!("holdfast_comparisons_total", "Comparisons of a shard's replicas.");
    describe_counter!("holdfast_comparison_differences_total", "Chunks that a comparison found missing on a replica.");
    describe_counter!("holdfast_findings_dropped_total", "Damaged chunks found while too many waited for repair.");
}

fn replicas() {
    describe_histogram!(
        "holdfast_replica_quorum_seconds",
        Unit::Seconds,
        "Time from the end of a chunk's bytes until enough replicas had it durable."
    );
    describe_histogram!(
        "holdfast_replica_write_seconds",
        Unit::Seconds,
        "The same until the write ended, with the wait for stragglers."
    );
    describe_counter!(
        "holdfast_orphan_sweeps_deferred_total",
        "Walks for orphans put off because a live node could not be asked what it is writing."
    );
    describe_counter!("holdfast_replica_reads_total", "Chunks opened for reading, by where they are.");
    describe_counter!("holdfast_replica_missed_total", "Replicas that did not acknowledge a chunk in time.");
    describe_counter!(
        "holdfast_replica_stalls_total",
        "Replicas given up in the middle of a chunk for making no progress."
    );
    describe_counter!("holdfast_replica_abandoned_total", "Chunks given up before enough replicas had them.");
    describe_counter!("holdfast_replica_replans_total", "Writes planned again since their shard had moved.");
    describe_counter!("holdfast_replica_refused_total", "Requests of peers refused, by reason.");
    describe_counter!("holdfast_replica_corrupt_total", "Replicas that a read found damaged.");
    describe_counter!(
        "holdfast_replica_repairs_queued_total",
        "Replicas that reads found damaged or missing, queued for repair."
    );
    describe_counter!("holdfast_replica_findings_dropped_total", "The same, dropped since too many waited.");
    describe_counter!(
        "holdfast_replica_deletes_left_total",
        "Chunks left for the sweep of a node that could not be reached."
    );
}

fn http() {
    describe_gauge!("holdfast_http_connections", "Connections of S3 clients that are open.");
    describe_counter!(
        "holdfast_http_connections_refused_total",
        "Connections closed at once, since their address had its share of them."
    );
    describe_counter!("holdfast_http_accept_errors_total", "Connections that could not be accepted.");
    describe_counter!("holdfast_http_copied_bytes_total", Unit::Bytes, "Bytes sent by copying them to the socket.");
    describe_counter!(
        "holdfast_http_spliced_bytes_total",
        Unit::Bytes,
        "Bytes sent from the page cache without a copy."
    );
    describe_counter!(
        "holdfast_http_evicted_before_send_total",
        "Ranges that left the page cache before they were sent, and were read again."
    );
    describe_counter!("holdfast_http_too_slow_total", "Connections cut for being too slow, by direction.");
    describe_counter!("holdfast_get_aborted_total", "Answers that ended early since a read failed.");
    describe_counter!("holdfast_put_abandoned_total", "Uploads that ended before they were whole.");
}

fn metadata() {
    describe_counter!("holdfast_metadata_commits_total", "Transactions of metadata that were flushed to the disk.");
    describe_counter!(
        "holdfast_metadata_commits_failed_total",
        "Transactions of metadata that could not be committed."
    );
    describe_counter!(
        "holdfast_metadata_commits_lost_total",
        "Times that the metadata server was found to have lost a commit that this node was told of."
    );
    describe_counter!(
        "holdfast_metadata_rollbacks_total",
        "Batches of metadata that were taken back and tried one by one."
    );
    describe_histogram!("holdfast_metadata_commit_seconds", Unit::Seconds, "Time of a commit of metadata.");
    describe_histogram!("holdfast_metadata_batch_jobs", "Changes of metadata that shared one commit.");
    describe_counter!(
        "holdfast_metadata_retries_total",
        "Transactions of metadata run again after a deadlock or a broken connection."
    );
    describe_gauge!("holdfast_metadata_queue_jobs", "Changes of metadata that wait for the writer.");
    describe_counter!("holdfast_metadata_refused_total", "Requests to metadata refused since too many waited.");
    describe_gauge!("holdfast_metadata_connections_in_use", "Connections to the metadata server that are lent.");
    describe_gauge!("holdfast_metadata_connections_max", "Connections to the metadata server that there may be.");
    describe_counter!("holdfast_metadata_queries_total", "Reads that asked the metadata server.");
    describe_counter!("holdfast_metadata_cache_hits_total", "Reads of metadata answered by the cache, by kind.");
    describe_counter!("holdfast_metadata_cache_misses_total", "Reads of metadata that asked the store, by kind.");
    describe_counter!(
        "holdfast_metadata_cache_bypasses_total",
        "Reads that went to the metadata server without the cache, by reason."
    );
    describe_counter!(
        "holdfast_metadata_cache_fills_total",
        "Values read that were brought to the cache, by outcome: landed, stale (a write came in between), too_large, an error."
    );
    describe_counter!(
        "holdfast_metadata_cache_writes_total",
        "Keys written, by what the cache held then: written, emptied, mark_lost (evicted or flushed during the write)."
    );
    describe_counter!("holdfast_metadata_cache_turned_off_total", "Times that this node had the cache switched off.");
    describe_gauge!("holdfast_metadata_cache_state", "The cache in Redis: 0 off, 1 warming, 2 on.");
    describe_gauge!("holdfast_metadata_cache_generation", "Changes of that state since the cluster was made.");
    describe_gauge!("holdfast_metadata_cache_waiting_nodes", "Nodes that keep the cache from being on, on one node.");
    describe_gauge!("holdfast_metadata_cache_writes_in_progress", "Writes that the cache has to know of.");
    describe_histogram!("holdfast_metadata_cache_seconds", Unit::Seconds, "Round trip to Redis, by step.");
    describe_counter!("holdfast_metadata_list_fetches_total", "Pages of rows that listings read.");
}

fn coordination() {
    describe_gauge!("holdfast_coordination_connected", "1 while the session with ZooKeeper stands.");
    describe_histogram!("holdfast_coordination_heartbeat_seconds", Unit::Seconds, "Round trip of a heartbeat.");
    describe_counter!("holdfast_coordination_sessions_expired_total", "Sessions that ended with all that they held.");
    describe_counter!("holdfast_coordination_resyncs_total", "Times that a mirrored tree was read anew.");
    describe_counter!("holdfast_coordination_corrupt_total", "Entries in ZooKeeper that are not understood.");
}

fn storage() {
    describe_counter!(
        "holdfast_storage_corruption_total",
        "Blocks that did not match their checksum, by who found it."
    );
    describe_counter!("holdfast_storage_syncs_total", "Flushes of data to disks.");
    describe_gauge!("holdfast_buffers_in_use", "Buffers for disk I/O that are lent, by size.");
    describe_gauge!("holdfast_buffers_free", "Buffers for disk I/O that wait to be lent, by size.");
    describe_counter!("holdfast_buffer_waits_total", "Times that somebody had to wait for a buffer, by size.");
    describe_counter!("holdfast_storage_sync_waiters_total", "Writers that waited for a flush; several share one.");
    describe_counter!("holdfast_storage_fences_total", "Disks that take no writes any more, after an error.");
    describe_counter!("holdfast_storage_chunks_written_total", "Chunks written.");
    describe_counter!("holdfast_storage_chunks_deleted_total", "Chunks deleted.");
    describe_counter!("holdfast_storage_payload_written_bytes_total", Unit::Bytes, "Payload bytes written.");
    describe_counter!("holdfast_storage_written_bytes_total", Unit::Bytes, "Bytes written, with heads and padding.");
    describe_counter!("holdfast_storage_read_bytes_total", Unit::Bytes, "Payload bytes read, by where they were.");
    describe_counter!("holdfast_storage_read_errors_total", "Reads that the disk failed.");
    describe_counter!("holdfast_storage_punched_bytes_total", Unit::Bytes, "Bytes of dead records given back.");
    describe_counter!(
        "holdfast_storage_segments_removed_total",
        "Segment files removed since nothing in them was alive."
    );
    describe_counter!("holdfast_storage_compacted_bytes_total", Unit::Bytes, "Bytes of chunks that compaction moved.");
    describe_counter!(
        "holdfast_storage_verified_bytes_total",
        Unit::Bytes,
        "Bytes read past the page cache because a repair or a join asked whether a chunk is whole."
    );
    describe_counter!("holdfast_storage_scrub_bytes_total", Unit::Bytes, "Bytes that scrubbing read.");
    describe_counter!("holdfast_storage_scrub_chunks_total", "Chunks that scrubbing compared.");
    describe_counter!("holdfast_storage_scrub_findings_total", "Damaged chunks that scrubbing found.");
    describe_counter!("holdfast_storage_scrub_rounds_total", "Rounds of scrubbing that ended.");
    describe_gauge!("holdfast_storage_capacity_bytes", Unit::Bytes, "Size of the disk's file system.");
    describe_gauge!("holdfast_storage_free_bytes", Unit::Bytes, "Room left on the disk's file system.");
    describe_gauge!("holdfast_storage_chunks", "Chunks that can be read.");
    describe_gauge!("holdfast_storage_payload_bytes", Unit::Bytes, "Payload bytes of the chunks.");
    describe_gauge!("holdfast_storage_live_bytes", Unit::Bytes, "Bytes of live records, with heads and padding.");
    describe_gauge!("holdfast_storage_dead_bytes", Unit::Bytes, "Bytes of dead records not given back yet.");
    describe_gauge!("holdfast_storage_tombstone_bytes", Unit::Bytes, "Bytes of tombstones.");
    describe_gauge!("holdfast_storage_segments", "Segment files.");
    describe_gauge!("holdfast_storage_index_memory_bytes", Unit::Bytes, "Memory of the index.");
    describe_gauge!("holdfast_storage_jobs_waiting", "Jobs that wait for the disk's background thread.");
    describe_gauge!("holdfast_storage_fenced", "1 when the disk takes no writes.");
    describe_gauge!("holdfast_storage_unresponsive", "1 while the disk does not answer, and gets nothing new.");
    describe_gauge!(
        "holdfast_storage_oldest_operation_seconds",
        Unit::Seconds,
        "For how long the disk's oldest operation has been in flight."
    );
    describe_counter!("holdfast_storage_unresponsive_total", "Times that a disk was found not to answer.");
    describe_gauge!(
        "holdfast_storage_unread_bytes",
        Unit::Bytes,
        "Bytes of segments that could not be read when the disk was opened, and in which anything may be."
    );
    describe_counter!(
        "holdfast_storage_ring_retries_total",
        "Times that the kernel did not take disk operations at once."
    );
    describe_gauge!("holdfast_storage_full", "1 when the last chunk was refused for want of space.");
}

fn process() {
    describe_gauge!("process_resident_memory_bytes", Unit::Bytes, "Resident memory.");
    describe_gauge!("process_virtual_memory_bytes", Unit::Bytes, "Virtual memory.");

    describe_gauge!("process_start_time_seconds", Unit::Seconds, "Start of the process, since 1970.");
    describe_gauge!("process_open_fds", "Open file descriptors.");
    describe_gauge!("process_max_fds", "Limit of open file descriptors.");
    describe_gauge!("process_threads", "Threads.");
}

/// Shows counters of trouble before there is any: an alert on the increase of a counter misses the event that makes it.
pub(super) fn start_at_zero() {
    for source in ["read", "scrub", "recovery", "compaction", "verify"] {
        counter!("holdfast_storage_corruption_total", "source" => source).increment(0);
    }
    counter!("holdfast_storage_syncs_total").increment(0);
    counter!("holdfast_error_reports_total", "outcome" => "dropped").increment(0);
    for name in COUNTS_OF_TROUBLE {
        counter!(name).increment(0);
    }
}

/// Counters without labels that an operator is to be called for.
const COUNTS_OF_TROUBLE: [&str; 19] = [
    "holdfast_actor_task_panics_total",
    "holdfast_audit_failures_total",
    "holdfast_chunk_timeouts_total",
    "holdfast_clock_leaps_total",
    "holdfast_disk_steps_late_total",
    "holdfast_findings_dropped_total",
    "holdfast_get_aborted_total",
    "holdfast_http_accept_errors_total",
    "holdfast_lock_fenced_writes_total",
    "holdfast_metadata_commits_failed_total",
    "holdfast_metadata_commits_lost_total",
    "holdfast_metadata_refused_total",
    "holdfast_peer_corrupt_blocks_total",
    "holdfast_replica_corrupt_total",
    "holdfast_replica_findings_dropped_total",
    "holdfast_replica_missed_total",
    "holdfast_storage_fences_total",
    "holdfast_storage_read_errors_total",
    "holdfast_storage_unresponsive_total",
];

#[cfg(test)]
mod tests;
