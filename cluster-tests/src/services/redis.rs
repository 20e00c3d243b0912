//! A real Redis server on a free port in a temporary directory.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use super::directory::Directory;
use super::process::{Process, free_port, wait_until};
use rustix::process::Signal;

const INSTALL: &str = "these tests need Redis: apt-get install --no-install-recommends redis-server";
const START_PATIENCE: Duration = Duration::from_secs(120);
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// One server, running or not. It writes nothing to its disk unless it is told to ([`Server::save`]).
#[derive(Debug)]
pub struct Server {
    port: u16,
    password: Option<String>,
    running: Option<Process>,
    // After the process: it writes into it.
    dir: Directory,
}

impl Server {
    /// Starts a server and waits until it serves. Blocks.
    ///
    /// # Panics
    /// When it does not.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// The same, for clients that know a password.
    ///
    /// # Panics
    /// When it does not serve.
    pub fn start_with(password: Option<&str>) -> Self {
        let dir = Directory::new();
        let mut server = Self { port: free_port(), password: password.map(str::to_owned), running: None, dir };
        server.run();
        server
    }

    /// Where clients find it.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// For clients.
    pub fn url(&self) -> String {
        format!("redis://{}/0", self.address())
    }

    /// Starts it, again with what it saved last.
    ///
    /// # Panics
    /// When it runs, or cannot be started.
    pub fn run(&mut self) {
        assert!(self.running.is_none(), "it runs");
        let mut command = Command::new("redis-server");
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.args(["--dir", &self.dir.path().display().to_string()]);
        if let Some(password) = &self.password {
            command.args(["--requirepass", password]);
        }
        let process = Process::start_logged(&mut command, &self.dir.path().join("log"));
        self.running = Some(process.unwrap_or_else(|e| panic!("cannot start redis-server ({e}); {INSTALL}")));
        wait_until("Redis serves", START_PATIENCE, &self.dir.path().join("log"), || self.serves());
    }

    fn serves(&self) -> bool {
        // While it loads what it saved it answers LOADING.
        self.try_command(&["PING"]).is_some_and(|answer| answer.contains("PONG"))
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, signal: Signal) {
        self.running.as_ref().expect("it runs").signal(signal);
    }

    /// Writes what it holds to its disk: the next start begins with it, however much happened since.
    ///
    /// # Panics
    /// When it cannot.
    pub fn save(&self) {
        assert_eq!(self.command(&["SAVE"]), "+OK");
    }

    /// Forgets what was saved: the next start begins with nothing.
    ///
    /// # Panics
    /// When the file cannot be removed.
    pub fn forget_saved(&self) {
        match std::fs::remove_file(self.dir.path().join("dump.rdb")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }

    /// Sends a command and returns the answer as the protocol writes it: of text the text, of the rest the first line.
    ///
    /// # Panics
    /// When there is none.
    pub fn command(&self, words: &[&str]) -> String {
        self.try_command(words).unwrap_or_else(|| panic!("no answer to {words:?}"))
    }

    fn try_command(&self, words: &[&str]) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.address(), Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(ANSWER_PATIENCE)).ok()?;
        let mut answers = BufReader::new(stream.try_clone().ok()?);
        if let Some(password) = &self.password {
            send(&mut stream, &["AUTH", password])?;
            answer(&mut answers)?;
        }
        send(&mut stream, words)?;
        answer(&mut answers)
    }
}

fn send(stream: &mut TcpStream, words: &[&str]) -> Option<()> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.write_all(request.as_bytes()).ok()
}

fn answer(answers: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    answers.read_line(&mut line).ok()?;
    let line = line.trim_end().to_owned();
    match line.strip_prefix('$').and_then(|length| length.parse::<usize>().ok()) {
        Some(length) => {
            let mut text = vec![0; length + 2];
            answers.read_exact(&mut text).ok()?;
            text.truncate(length);
            String::from_utf8(text).ok()
        }
        None => (!line.is_empty()).then_some(line),
    }
}
