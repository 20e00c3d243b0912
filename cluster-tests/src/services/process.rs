//! A process that ends with the test that started it, whatever way that ends.
//!
//! A keeper beside it reads from a pipe that this process holds. When the pipe closes without a word, this process is
//! gone (perhaps by kill -9), and the keeper kills what it keeps.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const KEEPER: &str = r#"read -r _ || kill -9 "$1""#;

/// Ports that the system gives to nobody who asks for any: so a port stays free while its owner is stopped.
const PORTS: std::ops::Range<u32> = 10_000..30_000;

/// A port, of TCP and UDP, that nobody has at the moment and that this process gives out once.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Test programs that run at the same time begin far from each other.
    let begin = std::process::id().wrapping_mul(97);
    let count = PORTS.end - PORTS.start;
    for _ in 0..count {
        let turn = begin.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let port = (PORTS.start + turn % count) as u16;
        let at = (Ipv4Addr::LOCALHOST, port);
        if TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok() {
            return port;
        }
    }
    panic!("no port of {PORTS:?} is free");
}

/// The first of `count` such ports in a row.
///
/// # Panics
/// When there are none.
pub fn free_ports(count: u16) -> u16 {
    // Whoever asks at the same time may have got one in between.
    for _ in PORTS {
        let first = free_port();
        if (1..count).all(|further| free_port() == first + further) {
            return first;
        }
    }
    panic!("no {count} ports in a row of {PORTS:?} are free");
}

/// Waits until a service that was started is as `what` says. Blocks.
///
/// # Panics
/// When it is not within `patience`; what it wrote to `log` is shown.
#[track_caller]
pub fn wait_until(what: &str, patience: Duration, log: &Path, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !holds() {
        if Instant::now() > deadline {
            panic!("not within {patience:?}: {what}\n{}", std::fs::read_to_string(log).unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A child process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    keeper: Child,
}

impl Process {
    /// Starts `command` with the streams that it asks for.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let mut child = command.spawn()?;
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper", &child.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match keeper {
            Ok(keeper) => Ok(Self { child, keeper }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// Starts `command`, with all that it says appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_logged(command: &mut Command, log: &Path) -> io::Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        Self::start(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, once, if it was piped.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// How it ended, if it did.
    ///
    /// # Panics
    /// When the system does not say.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the process has ended and was waited for.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.id() as i32).unwrap(), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself: then there is nothing to kill, and `wait` takes what is left.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // Only now, and it is told: the id may soon be somebody else's.
        if let Some(mut told) = self.keeper.stdin.take() {
            let _ = told.write_all(b"gone\n");
        }
        let _ = self.keeper.wait();
    }
}
