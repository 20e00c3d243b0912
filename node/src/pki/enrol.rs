//! Enrolment: how a machine becomes a node of a cluster, with no secret on a command line and none sent to a stranger.
//!
//! 1. An operator asks a running node for a **join token** ([`Issuer::issue_token`]). It is a text that holds the
//!    cluster's id, the CA's certificate, the addresses of the node that issued it, and a certificate with its key, of
//!    role `enrol`, short-lived and good for one use.
//! 2. On the new machine, [`join`] dials the issuer with that certificate. Both sides are authenticated by TLS before a
//!    byte of the enrolment is read: the new node knows the CA, the issuer knows the token.
//! 3. The new node makes its key, which never leaves it, and sends its id and a signing request. It is answered with
//!    its certificate, the CA's key, and the cluster's secret, and becomes a member in one durable step.
//!
//! Whoever has a token can become a node while it lasts, and a node has everything: treat it as a key. The issuer
//! remembers its tokens in memory only; one that it issued before a restart is refused, and so is one that was used,
//! whether the join was completed or not.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_protocol::peer::enrol::{EnrolAnswer, EnrolRequest, Enrolled};
use holdfast_protocol::peer::{ALPN_ENROL, FrameError, VERSION, cut};
use holdfast_protocol::{ClusterId, NodeId};
use parking_lot::Mutex;
use quinn::Connection;
use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair, PublicKeyData as _};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::PkiError;
use super::ca::{ClusterCa, Role, Subject, Validity, facts};
use super::files::{self, NewFile, SECRET_FILE};
use super::identity::{self, NodeIdentity};
use super::verify::{self, PeerVerifier, server_name};
use crate::peers::stream::{Call, StreamError, read_frame, write_frame};
use crate::peers::{AddressBook, PeerOptions, quic, tls};

/// Tokens that an issuer remembers at a time.
const TOKENS_MAX: usize = 1_000;
/// What a token begins with; the digit is its version.
const TOKEN_PREFIX: &str = "hfjoin1.";
/// The longest text that is read as a token.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Length of the cluster's secret.
const SECRET_BYTES: usize = 32;
/// Time for the issuer's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Why an enrolment failed.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The text is no token.
    #[error("this is no join token: {0}")]
    BadToken(String),
    /// The issuer has too many tokens outstanding.
    #[error("{TOKENS_MAX} join tokens are outstanding: wait until some have expired")]
    TooManyTokens,
    /// No address in the token leads to the issuer.
    #[error("node {issuer}, which issued the token, cannot be reached: {detail}")]
    Unreachable {
        /// The node.
        issuer: NodeId,
        /// What happened, per address.
        detail: String,
    },
    /// The issuer does not want this node.
    #[error("the cluster refused: {0}")]
    Refused(String),
    /// By this machine's clock the token's day has not come.
    #[error(
        "this machine's clock is more than a day behind that of node {issuer}, which issued the token: set it right \
         and try again, the token was not used"
    )]
    ClockBehind {
        /// The node.
        issuer: NodeId,
    },
    /// The issuer's answer does not fit the token.
    #[error("the issuer's answer is wrong: {0}")]
    WrongAnswer(String),
    /// Keys, certificates or files.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// A join token. Its text is a secret: [`Token::to_text`] is the only way to it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Token {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node that issued it, the only one that honours it.
    pub issuer: NodeId,
    /// Where that node can be reached, `host:port`.
    pub addresses: Vec<String>,
    ca_pem: String,
    certificate_pem: String,
    key_pem: String,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("cluster", &self.cluster).field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

impl Token {
    /// The text to be carried to the new node.
    pub fn to_text(&self) -> Zeroizing<String> {
        let json = Zeroizing::new(serde_json::to_vec(self).expect("a token is plain data"));
        Zeroizing::new(format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(&*json)))
    }
}

impl FromStr for Token {
    type Err = EnrolError;

    fn from_str(text: &str) -> Result<Self, EnrolError> {
        let bad = |why: &str| EnrolError::BadToken(why.to_owned());
        let text = text.trim();
        if text.len() > TOKEN_BYTES_MAX {
            return Err(bad("it is too long"));
        }
        let encoded = text.strip_prefix(TOKEN_PREFIX).ok_or_else(|| bad("it does not begin with hfjoin1."))?;
        let json = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_| bad("it is damaged"))?);
        serde_json::from_slice(&json).map_err(|_| bad("it is damaged"))
    }
}

/// Issues join tokens and honours them.
pub struct Issuer {
    identity: Arc<NodeIdentity>,
    secret_path: PathBuf,
    /// Where the nodes are that run.
    running: Option<AddressBook>,
    /// Serials of tokens that were not used, and when they expire.
    outstanding: Mutex<HashMap<Vec<u8>, SystemTime>>,
}

impl Issuer {
    /// An issuer that hands the secret in `data_dir` over.
    pub fn new(identity: Arc<NodeIdentity>, data_dir: &Path) -> Self {
        Self { identity, secret_path: data_dir.join(SECRET_FILE), running: None, outstanding: Mutex::default() }
    }

    /// Gives nobody the id of a node that runs, which `running` knows: a machine that asks for it has a copy of that
    /// node's data directory, and would pass for that node whenever that one is off.
    #[must_use]
    pub fn knowing(self, running: AddressBook) -> Self {
        Self { running: Some(running), ..self }
    }

    /// Makes a token that is good for `lifetime` and one use. `addresses` are this node's, `host:port`.
    ///
    /// # Errors
    /// [`EnrolError::TooManyTokens`], [`EnrolError::Pki`].
    pub fn issue_token(&self, addresses: Vec<String>, lifetime: Duration) -> Result<Token, EnrolError> {
        let ca = self.identity.ca();
        let key = KeyPair::generate().map_err(PkiError::from)?;
        let validity = Validity::from_now(lifetime);
        let certificate = ca.issue(Role::Enrol, &key, validity)?;
        let serial = facts(certificate.der())?.serial;
        let mut outstanding = self.outstanding.lock();
        let now = SystemTime::now();
        outstanding.retain(|_, until| *until > now);
        if outstanding.len() >= TOKENS_MAX {
            return Err(EnrolError::TooManyTokens);
        }
        outstanding.insert(serial, validity.until);
        Ok(Token {
            cluster: self.identity.cluster(),
            issuer: self.identity.node(),
            addresses,
            ca_pem: ca.certificate_pem().to_owned(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Takes a token's one use.
    fn redeem(&self, serial: &[u8]) -> Result<(), &'static str> {
        match self.outstanding.lock().remove(serial) {
            Some(until) if until > SystemTime::now() => Ok(()),
            Some(_) => Err("the join token has expired: make another one with `holdfast cluster join-token`"),
            None => Err(
                "the join token was used already, or the node that made it was restarted since: make another one with \
                 `holdfast cluster join-token`",
            ),
        }
    }

    /// Answers one enrolment. `serial` is that of the certificate which the caller proved to hold.
    pub(crate) async fn serve(&self, connection: &Connection, serial: &[u8]) {
        let Ok(streams) = connection.accept_bi().await else { return };
        let mut call = Call::new(streams);
        let answer = match read_frame::<EnrolRequest>(&mut call.recv).await {
            Ok(request) => match self.enrol(&request, serial).await {
                Ok(enrolled) => {
                    tracing::info!(node = %request.node, "a node was enrolled");
                    EnrolAnswer::Enrolled(enrolled)
                }
                Err(reason) => {
                    tracing::warn!(node = %request.node, reason, "an enrolment was refused");
                    EnrolAnswer::Refused { reason: cut(&reason) }
                }
            },
            Err(StreamError::Frame(FrameError::Version { found })) => EnrolAnswer::Version { found, known: VERSION },
            Err(StreamError::Frame(error)) => EnrolAnswer::Refused { reason: cut(&error.to_string()) },
            Err(_) => return,
        };
        if write_frame(&mut call.send, &answer).await.is_ok() && call.send.finish().is_ok() {
            call.done();
            // The joining node closes once it has everything.
            connection.closed().await;
        }
    }

    async fn enrol(&self, request: &EnrolRequest, serial: &[u8]) -> Result<Enrolled, String> {
        if request.node == self.identity.node() {
            return Err(format!("{} is this node's own id", request.node));
        }
        if self.running.as_ref().is_some_and(|running| running(request.node).is_some()) {
            return Err(format!(
                "node {} is running: is node.id of this data directory a copy of that node's? Use an empty directory",
                request.node
            ));
        }
        let csr = CertificateSigningRequestParams::from_pem(&request.csr_pem).map_err(|error| error.to_string())?;
        let path = self.secret_path.clone();
        let secret = tokio::task::spawn_blocking(move || files::read(&path, true)).await;
        let secret = secret.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let secret = secret.filter(|secret| secret.len() == SECRET_BYTES);
        let secret = secret.ok_or("the issuer has no secret to share")?;
        // Last, so that a request which cannot be honoured costs no token.
        self.redeem(serial)?;
        let ca = self.identity.ca();
        let lifetime = identity::IdentityOptions::default().lifetime;
        // Nothing of the request counts but the key: what the certificate says is for the CA to say.
        let certificate = ca
            .issue(Role::Node(request.node), &csr.public_key, Validity::from_now(lifetime))
            .map_err(|error| error.to_string())?;
        Ok(Enrolled {
            cluster: ca.cluster(),
            certificate_pem: certificate.pem(),
            ca_certificate_pem: ca.certificate_pem().to_owned(),
            ca_key_pem: ca.key_pem().to_string(),
            secret_hex: hex::encode(&*secret),
        })
    }
}

/// Makes the node `node`, whose data directory is `data_dir`, a member of the token's cluster. Durable on return; a
/// crash before leaves a directory that belongs to no cluster. The directory must be the caller's alone meanwhile.
///
/// # Errors
/// [`EnrolError`].
pub async fn join(data_dir: &Path, node: NodeId, token: &Token) -> Result<ClusterId, EnrolError> {
    let cluster = token.cluster;
    identity::refuse_member(data_dir, cluster)?;
    let key = KeyPair::generate().map_err(PkiError::from)?;
    let csr = CertificateParams::default().serialize_request(&key).map_err(PkiError::from)?;
    let request = EnrolRequest { node, csr_pem: csr.pem().map_err(PkiError::from)? };
    let enrolled = ask(token, &request).await?;
    let new_files = check(token, node, &key, &enrolled)?;
    let data_dir = data_dir.to_owned();
    tokio::task::spawn_blocking(move || files::become_member(&data_dir, new_files))
        .await
        .map_err(|error| EnrolError::WrongAnswer(error.to_string()))??;
    Ok(cluster)
}

/// Holds the answer against the token, and makes files of it.
fn check(token: &Token, node: NodeId, key: &KeyPair, enrolled: &Enrolled) -> Result<Vec<NewFile>, EnrolError> {
    let wrong = |what: &str| EnrolError::WrongAnswer(what.to_owned());
    if enrolled.cluster != token.cluster {
        return Err(EnrolError::WrongAnswer(format!(
            "the token is for cluster {}, the answer for cluster {}",
            token.cluster, enrolled.cluster
        )));
    }
    let ca = ClusterCa::from_pem(&enrolled.ca_certificate_pem, &enrolled.ca_key_pem)?;
    if *ca.certificate() != ca_of(token)? || ca.cluster() != token.cluster {
        return Err(wrong("its CA is not the token's"));
    }
    let key_pem = Zeroizing::new(key.serialize_pem());
    let (certified, facts) = identity::certified(&enrolled.certificate_pem, &key_pem)?;
    let expected = Subject { cluster: token.cluster, role: Role::Node(node) };
    if facts.subject != expected || facts.public_key != key.der_bytes() {
        return Err(wrong("the certificate is for somebody else"));
    }
    verify::check_own(&ca, &certified.cert[0]).map_err(EnrolError::WrongAnswer)?;
    let secret = hex::decode(&enrolled.secret_hex).map(Zeroizing::new).map_err(|_| wrong("its secret is damaged"))?;
    if secret.len() != SECRET_BYTES {
        return Err(wrong("its secret is of a wrong length"));
    }
    let mut new_files = identity::member_files(&ca, &enrolled.certificate_pem, &key_pem);
    new_files.push(NewFile { name: SECRET_FILE, content: secret });
    Ok(new_files)
}

fn ca_of(token: &Token) -> Result<CertificateDer<'static>, EnrolError> {
    CertificateDer::from_pem_slice(token.ca_pem.as_bytes())
        .map_err(|_| EnrolError::BadToken("its CA certificate is damaged".to_owned()))
}

async fn ask(token: &Token, request: &EnrolRequest) -> Result<Enrolled, EnrolError> {
    let (certified, facts) = identity::certified(&token.certificate_pem, &token.key_pem)?;
    // The issuer would take the token, and the certificate that it gives for it would be refused here.
    if is_before(facts.not_before_unix_seconds, SystemTime::now()) {
        return Err(EnrolError::ClockBehind { issuer: token.issuer });
    }
    let verifier = PeerVerifier::new(token.cluster, ca_of(token)?, tls::provider())?;
    let tls = tls::client(verifier, Arc::new(certified), ALPN_ENROL)?;
    let options = PeerOptions::default();
    let config = quic::client_config(tls, &options);
    let connection = dial(token, config, &options).await?;
    let answer = timeout(ANSWER_TIMEOUT, exchange(&connection, request)).await;
    let unreachable = |detail: String| EnrolError::Unreachable { issuer: token.issuer, detail };
    let answer = match answer {
        Ok(Ok(answer)) => answer,
        // What TLS on the other side had against the token shows only now.
        Ok(Err(error)) => {
            let reason = connection.close_reason();
            // Of the two certificates it is the token's that ends soon.
            if reason.as_ref().is_some_and(quic::says_expired) {
                let reason = "the join token has expired, or is not valid yet, by the clock of the node that issued \
                              it: make another";
                return Err(EnrolError::Refused(reason.to_owned()));
            }
            return Err(unreachable(reason.map_or_else(|| error.to_string(), |reason| quic::describe(&reason))));
        }
        Err(_) => return Err(unreachable("it does not answer".to_owned())),
    };
    connection.close(quic::CODE_CLOSED, b"thank you");
    match answer {
        EnrolAnswer::Enrolled(enrolled) => Ok(enrolled),
        EnrolAnswer::Refused { reason } => Err(EnrolError::Refused(reason)),
        EnrolAnswer::Version { found, known } => {
            Err(EnrolError::Refused(format!("it speaks version {known} of the enrolment, this node version {found}")))
        }
    }
}

/// Whether it is not yet so late as that.
fn is_before(unix_seconds: i64, now: SystemTime) -> bool {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).is_ok_and(|now| now < unix_seconds)
}

async fn exchange(connection: &Connection, request: &EnrolRequest) -> Result<EnrolAnswer, StreamError> {
    let streams = connection.open_bi().await.map_err(|error| StreamError::Read(error.into()))?;
    let mut call = Call::new(streams);
    write_frame(&mut call.send, request).await?;
    // Fails only when the issuer has answered already.
    call.send.finish().ok();
    let answer = read_frame(&mut call.recv).await?;
    call.done();
    Ok(answer)
}

/// Tries the token's addresses one after another.
async fn dial(token: &Token, config: quinn::ClientConfig, options: &PeerOptions) -> Result<Connection, EnrolError> {
    let mut failures = Vec::new();
    for address in &token.addresses {
        match dial_one(token, address, config.clone(), options).await {
            Ok(connection) => return Ok(connection),
            Err(detail) => failures.push(format!("{address}: {detail}")),
        }
    }
    Err(EnrolError::Unreachable { issuer: token.issuer, detail: failures.join("; ") })
}

async fn dial_one(
    token: &Token,
    address: &str,
    config: quinn::ClientConfig,
    options: &PeerOptions,
) -> Result<Connection, String> {
    let remotes = tokio::net::lookup_host(address).await.map_err(|error| error.to_string())?;
    let mut last = "it has no address".to_owned();
    for remote in remotes {
        let local: SocketAddr = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
        let endpoint = quic::endpoint(&Handle::current(), local, options).map_err(|error| error.to_string())?;
        let connecting = endpoint
            .connect_with(config.clone(), remote, &server_name(token.issuer))
            .map_err(|error| error.to_string())?;
        match timeout(options.dial_timeout, connecting).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => last = quic::describe(&error),
            Err(_) => last = "it does not answer".to_owned(),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests;
