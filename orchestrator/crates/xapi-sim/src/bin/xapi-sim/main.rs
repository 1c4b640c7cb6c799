//! `xapi-sim`: the simulator as a program, and a thin client of its control port.
#![forbid(unsafe_code)]

mod ctl;
mod serve;

use clap::{Parser, Subcommand};
use std::error::Error as _;
use std::process::ExitCode;

/// A simulated XenServer / XCP-ng pool on this machine, with real guests.
#[derive(Debug, Parser)]
#[command(version, about, after_long_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  Start a pool; its ports and certificate are written to a file:
    xapi-sim serve --dir /tmp/pool --port-file /tmp/pool/ports.json
  An old release without change tracking, reached only by XML-RPC:
    xapi-sim serve --dir /tmp/old --flavour xs-7.2 --no-json
  Two hosts, thick shared storage, chains that wait to be shortened, a user with less than root's rights:
    xapi-sim serve --dir /tmp/pool --hosts 2 --sr name=san,type=lvmoiscsi,capacity=2T,default=true \\
      --coalesce manual --extra-user backup:secret:vm-power-admin
  Make a VM from a disk image, write into it, look at it:
    xapi-sim ctl --port-file /tmp/pool/ports.json vm create web01 --disk root=/tmp/root.img --cbt
    xapi-sim ctl --port-file /tmp/pool/ports.json vdi write VDI-UUID --offset 65536 < new-bytes
    xapi-sim ctl --port-file /tmp/pool/ports.json vdi digest VDI-UUID
    xapi-sim ctl --port-file /tmp/pool/ports.json inventory";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a simulated pool until it is told to stop.
    Serve(serve::ServeArgs),
    /// Talk to the control port of a running pool.
    Ctl(ctl::CtlArgs),
    /// Be the delegate of a pool that runs them as processes; `serve` starts it.
    #[command(hide = true, name = xapi_sim::guest::DELEGATE_SUBCOMMAND)]
    Delegate {
        /// Disks and memory, as JSON.
        machine: String,
    },
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Ctl(args) => ctl::run(args),
        Command::Delegate { machine } => return xapi_sim::guest::run_delegate(&machine),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xapi-sim: {error}");
            let mut source = error.source();
            while let Some(inner) = source {
                eprintln!("  because: {inner}");
                source = inner.source();
            }
            ExitCode::FAILURE
        }
    }
}
