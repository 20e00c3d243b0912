//! What the clients of [`stories`](super::stories) and of [`cold`](super::cold) have in common: nodes that change,
//! answers that are certain or not, rests, and what was found to be wrong.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::client::{Client, Connection, Request, Response};
use crate::content::Random;
use crate::node::{ACCESS_KEY, SECRET_KEY};

/// A node that says nothing for so long is left.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time for a node to give a certain answer when all is well again.
const SETTLE: Duration = Duration::from_secs(60);

/// What became of a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// This, for certain.
    Is(Response),
    /// It may have happened, or may yet.
    Unknown,
    /// It never reached a node.
    NotSent,
}

/// What clients of one kind share.
#[derive(Debug)]
pub(super) struct Crowd {
    nodes: Mutex<Vec<SocketAddr>>,
    numbers: AtomicU64,
    wrong: Mutex<Vec<String>>,
    resting: AtomicBool,
}

impl Crowd {
    /// Of nodes that serve S3 at these addresses.
    pub(super) fn new(nodes: Vec<SocketAddr>) -> Self {
        Self {
            nodes: Mutex::new(nodes),
            numbers: AtomicU64::new(1),
            wrong: Mutex::default(),
            resting: AtomicBool::new(false),
        }
    }

    /// Clients go to these nodes from now on.
    pub(super) fn set_nodes(&self, addresses: Vec<SocketAddr>) {
        *self.nodes.lock().unwrap() = addresses;
    }

    /// The nodes that clients go to.
    pub(super) fn nodes(&self) -> Vec<SocketAddr> {
        self.nodes.lock().unwrap().clone()
    }

    /// Lets clients rest after what each is at, or go on.
    pub(super) fn rest(&self, rest: bool) {
        self.resting.store(rest, Ordering::Relaxed);
    }

    /// Whether clients are to rest.
    pub(super) fn is_resting(&self) -> bool {
        self.resting.load(Ordering::Relaxed)
    }

    /// A number that no client had before.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The number that the next one gets.
    pub(super) fn next_number(&self) -> u64 {
        self.numbers.load(Ordering::Relaxed)
    }

    /// Asks a node that is drawn by lot.
    pub(super) fn ask(&self, random: &mut Random, request: &Request<'_>) -> Answer {
        let nodes = self.nodes();
        send(nodes[random.below(nodes.len() as u64) as usize], request)
    }

    /// Asks a node whether something is there, until the answer is certain: 200 or 404.
    pub(super) fn look(&self, node: SocketAddr, request: &Request<'_>) -> Response {
        let (path, query) = (request.path, request.query);
        let begin = Instant::now();
        loop {
            match send(node, request) {
                Answer::Is(response) if matches!(response.status, 200 | 404) => return response,
                Answer::Is(response) => self.is_wrong(format!("get {path} {query:?} at {node}: {}", response.text())),
                _ => {}
            }
            assert!(begin.elapsed() < SETTLE, "{node} gives no certain answer for {path} within {SETTLE:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Takes down what no fault explains.
    pub(super) fn is_wrong(&self, what: String) {
        println!("wrong: {what}");
        self.wrong.lock().unwrap().push(what);
    }

    /// That all was well with `what`.
    ///
    /// # Panics
    /// When something was not.
    pub(super) fn nothing_is_wrong(&self, what: &str) {
        let wrong = self.wrong.lock().unwrap();
        wrong.iter().take(20).for_each(|what| println!("wrong: {what}"));
        assert!(wrong.is_empty(), "{} answers about {what} are wrong; they are above", wrong.len());
    }
}

/// A client of the node at an address.
pub(super) fn client(node: SocketAddr) -> Client {
    Client { addr: node, access_key: ACCESS_KEY.into(), secret_key: SECRET_KEY.into() }
}

/// Sends a request on a connection of its own.
fn send(node: SocketAddr, request: &Request<'_>) -> Answer {
    let opened = Connection::open(node).and_then(|connection| {
        connection.stream().set_read_timeout(Some(PATIENCE))?;
        connection.stream().set_write_timeout(Some(PATIENCE))?;
        Ok(connection)
    });
    let Ok(mut connection) = opened else { return Answer::NotSent };
    match client(node).send_on(&mut connection, request) {
        Ok(response) if response.status < 500 => Answer::Is(response),
        _ => Answer::Unknown,
    }
}
