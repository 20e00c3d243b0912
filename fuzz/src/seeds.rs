//! Writes the seeds of all targets into a folder, one below it for each target: `seeds FOLDER`.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let folder = env::args_os().nth(1).map(PathBuf::from).ok_or_else(|| io::Error::other("which folder?"))?;
    let crates = [
        holdfast_protocol::fuzz::TARGETS,
        holdfast_storage::format::fuzz::TARGETS,
        holdfast_actors::fuzz::TARGETS,
        #[cfg(feature = "tiers")]
        holdfast_tiers::fuzz::TARGETS,
    ];
    for target in crates.into_iter().flatten() {
        let folder = folder.join(target.name);
        fs::create_dir_all(&folder)?;
        for (number, bytes) in (target.seeds)().into_iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:02}")), bytes)?;
        }
        println!("{}", target.name);
    }
    Ok(())
}
