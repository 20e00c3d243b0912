//! The frames of an enrolment: how a new node becomes a node of a cluster.
//!
//! The connection is authenticated on both sides before the first frame: the joining node shows the certificate that
//! its join token carries, the issuer its own. One request, one answer, on one stream.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{FrameError, Message, check_text, malformed};
use crate::cluster::{ClusterId, NodeId};

/// The longest PEM text in a frame.
pub const PEM_BYTES_MAX: usize = 8 << 10;

/// What a joining node asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// Who it is.
    pub node: NodeId,
    /// PEM: its certificate signing request. Its private key stays where it was made.
    pub csr_pem: String,
}

/// What it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum EnrolAnswer {
    /// It is a node of the cluster.
    Enrolled(Enrolled),
    /// It is not.
    Refused {
        /// For the operator.
        reason: String,
    },
    /// It speaks another version.
    Version {
        /// The version of its frame.
        found: u8,
        /// The version that the issuer speaks.
        known: u8,
    },
}

/// All that a node needs to be one of its cluster. Holds secrets; its debug form does not show them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// The cluster.
    pub cluster: ClusterId,
    /// PEM: the node's certificate.
    pub certificate_pem: String,
    /// PEM: the cluster CA's certificate.
    pub ca_certificate_pem: String,
    /// PEM: the cluster CA's key, so that the node renews its certificate itself.
    pub ca_key_pem: String,
    /// The cluster's secret, 64 hexadecimal digits.
    pub secret_hex: String,
}

impl fmt::Debug for Enrolled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enrolled").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

fn check_pem(text: &str) -> Result<(), FrameError> {
    if text.len() > PEM_BYTES_MAX {
        return Err(malformed(format!("a PEM text of {} bytes", text.len())));
    }
    Ok(())
}

impl Message for EnrolRequest {
    const KIND: u8 = 3;
    const BODY_BYTES_MAX: usize = 16 << 10;

    fn check(&self) -> Result<(), FrameError> {
        check_pem(&self.csr_pem)
    }
}

impl Message for EnrolAnswer {
    const KIND: u8 = 4;
    const BODY_BYTES_MAX: usize = 48 << 10;

    fn check(&self) -> Result<(), FrameError> {
        match self {
            Self::Enrolled(enrolled) => {
                check_pem(&enrolled.certificate_pem)?;
                check_pem(&enrolled.ca_certificate_pem)?;
                check_pem(&enrolled.ca_key_pem)?;
                if enrolled.secret_hex.len() != 64 {
                    return Err(malformed("a secret that is not 64 digits"));
                }
                Ok(())
            }
            Self::Refused { reason } => check_text(reason),
            Self::Version { .. } => Ok(()),
        }
    }
}
