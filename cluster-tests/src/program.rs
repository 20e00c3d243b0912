//! Other people's programs: found, run with a clean configuration, and their output shown when they fail.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::node::{ACCESS_KEY, Node, SECRET_KEY};

/// No program takes longer than this in a healthy test.
const TIMEOUT: Duration = Duration::from_secs(240);

/// What a program said.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit code; -1 after a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A program with its arguments, in an empty home directory.
#[derive(Debug)]
pub struct Program {
    command: Command,
    shown: String,
}

impl Program {
    /// `name` from the PATH, in `home`. Nothing of the caller's environment but the PATH is passed on.
    pub fn new(name: &str, home: &Path) -> Self {
        let mut command = Command::new(name);
        // Debian's programs first: a version manager's shims may hide them.
        let path = format!("/usr/bin:{}", std::env::var("PATH").unwrap_or_default());
        command.env_clear().env("PATH", path).env("HOME", home).env("LC_ALL", "C.UTF-8").current_dir(home);
        Self { command, shown: name.to_owned() }
    }

    /// The same with the variables that the AWS SDKs read, for `node`.
    pub fn aws(name: &str, node: &Node) -> Self {
        Self::new(name, node.scratch())
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_EC2_METADATA_DISABLED", "true")
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<str>>(mut self, arguments: &[S]) -> Self {
        for argument in arguments {
            self.command.arg(argument.as_ref());
            self.shown.push(' ');
            self.shown.push_str(argument.as_ref());
        }
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it, whatever its exit code.
    ///
    /// # Panics
    /// When it is not installed or does not end in time.
    pub fn run(mut self) -> Output {
        let child = self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{}: {error}: is it installed?", self.shown));
        let reader = |mut from: Box<dyn Read + Send>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                // A pipe that breaks ends the output; the exit code tells the rest.
                let _ = from.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let stdout = reader(Box::new(child.stdout.take().unwrap()));
        let stderr = reader(Box::new(child.stderr.take().unwrap()));
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if begin.elapsed() > TIMEOUT {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{}: no end after {TIMEOUT:?}\n{}", self.shown, stderr.join().unwrap());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Output { code: status.code().unwrap_or(-1), stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
    }

    /// Runs it and gives back its standard output.
    ///
    /// # Panics
    /// When it does not succeed.
    pub fn ok(self) -> String {
        let shown = self.shown.clone();
        let output = self.run();
        assert_eq!(output.code, 0, "{shown}\n--- stdout\n{}\n--- stderr\n{}", output.stdout, output.stderr);
        output.stdout
    }
}
