//! `abd`, the orchestrator's command.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    abd_orchestrator::cli::main()
}
