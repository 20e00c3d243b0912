//! The secret half of a key pair, as commands are given it.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{CliResult, Failure};
use crate::secret_file;

/// Longest secret that is read from standard input.
const SECRET_BYTES_MAX: u64 = 1024;

/// What was given: itself, or where it is; `-` is standard input.
pub(super) fn secret(value: Option<String>, file: Option<PathBuf>) -> CliResult<Option<Zeroizing<String>>> {
    match (value, file) {
        (_, Some(file)) if file == Path::new("-") => Ok(Some(from_stdin()?)),
        (_, Some(file)) => Ok(Some(secret_file::read(&file).map_err(Failure::usage)?)),
        (Some(dash), None) if dash == "-" => Ok(Some(from_stdin()?)),
        (value, None) => Ok(value.map(Zeroizing::new)),
    }
}

fn from_stdin() -> CliResult<Zeroizing<String>> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprintln!("secret key, then end of input (Ctrl-D):");
    }
    let mut secret = Zeroizing::new(String::new());
    stdin.lock().take(SECRET_BYTES_MAX).read_to_string(&mut secret)?;
    Ok(Zeroizing::new(secret.trim_end_matches(['\r', '\n']).to_owned()))
}
