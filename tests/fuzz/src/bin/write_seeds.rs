//! Writes what a search starts from, as files that libFuzzer reads: `write_seeds DIR`, a directory for each target.

use abd_fuzz::TARGETS;
use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, fs, io};

fn main() -> ExitCode {
    let Some(dir) = env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("write_seeds: say where: write_seeds DIR");
        return ExitCode::from(2);
    };
    for target in TARGETS {
        let dir = dir.join(target.name);
        let write = || -> io::Result<()> {
            fs::create_dir_all(&dir)?;
            (target.seeds)()
                .iter()
                .enumerate()
                .try_for_each(|(index, seed)| fs::write(dir.join(format!("seed-{index:02}")), seed))
        };
        if let Err(error) = write() {
            eprintln!("write_seeds: {}: {error}", dir.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
