//! What is counted for each read and write: looked up in the registry once, since what is small takes hardly longer
//! than the lookup.

/// Bytes read, by where they were.
pub(crate) struct ReadMeters {
    pub(crate) from_memory: metrics::Counter,
    pub(crate) from_disk: metrics::Counter,
}

impl Default for ReadMeters {
    fn default() -> Self {
        let bytes_from = |from| metrics::counter!("holdfast_storage_read_bytes_total", "from" => from);
        Self { from_memory: bytes_from("memory"), from_disk: bytes_from("disk") }
    }
}

/// What is written, counted for each chunk.
pub(crate) struct WriteMeters {
    pub(crate) written_bytes: metrics::Counter,
    pub(crate) chunks: metrics::Counter,
    pub(crate) payload_bytes: metrics::Counter,
    pub(super) sync_waiters: metrics::Counter,
    pub(super) syncs: metrics::Counter,
}

impl Default for WriteMeters {
    fn default() -> Self {
        Self {
            written_bytes: metrics::counter!("holdfast_storage_written_bytes_total"),
            chunks: metrics::counter!("holdfast_storage_chunks_written_total"),
            payload_bytes: metrics::counter!("holdfast_storage_payload_written_bytes_total"),
            sync_waiters: metrics::counter!("holdfast_storage_sync_waiters_total"),
            syncs: metrics::counter!("holdfast_storage_syncs_total"),
        }
    }
}
