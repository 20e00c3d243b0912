//! What a service shows of itself to clients that look at its certificate.

/// All PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Its certificate, for 127.0.0.1.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Whom its clients are to trust.
    pub ca: String,
}
