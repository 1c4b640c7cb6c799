//! The one file of the initramfs. What it does depends on its process number and its name: see [`abd_appliance::init`].

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    abd_appliance::init::main()
}
