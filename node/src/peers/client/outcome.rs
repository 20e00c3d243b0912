//! What is counted of operations.

use holdfast_actors::ports::peers::PeerError;

/// One more in a gauge while it lives.
pub(in crate::peers) struct InGauge(metrics::Gauge);

impl InGauge {
    pub(in crate::peers) fn new(gauge: metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for InGauge {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Counts how an operation ended. Dropped without a result, it was given up.
pub(in crate::peers) struct Outcome {
    op: &'static str,
    outcome: &'static str,
    _in_flight: InGauge,
}

impl Outcome {
    pub(in crate::peers) fn new(op: &'static str) -> Self {
        Self { op, outcome: "dropped", _in_flight: InGauge::new(metrics::gauge!("holdfast_peer_in_flight")) }
    }

    pub(in crate::peers) fn is<T>(&mut self, result: &Result<T, PeerError>) {
        self.outcome = match result {
            Ok(_) => "ok",
            Err(PeerError::Unreachable { .. }) => "unreachable",
            Err(PeerError::Timeout { .. }) => "timeout",
            Err(PeerError::Stale { .. }) => "stale",
            Err(PeerError::Fenced) => "fenced",
            Err(PeerError::Busy) => "busy",
            Err(PeerError::Chunk(_)) => "chunk_error",
            Err(PeerError::Protocol(_)) => "protocol",
        };
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        metrics::counter!("holdfast_peer_requests_total", "op" => self.op, "outcome" => self.outcome).increment(1);
    }
}
