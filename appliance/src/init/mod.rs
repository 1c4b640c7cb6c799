//! PID 1 and the other names this program goes by.
//!
//! | started as | does |
//! |---|---|
//! | process 1 | prepares the machine, runs the worker, powers off ([`supervisor`]) |
//! | `abd-worker` | the job ([`worker_process`]) |
//! | `poweroff`, `reboot`, `halt` | asks process 1 to shut down; the kernel runs these when the pool asks |
//!
//! Promises: whatever happens to any process, the machine powers off, and a reason stands in XenStore and on the
//! console. The appliance never restarts: a `reboot` is a power-off too.

pub mod lifeline;
mod mounts;
mod power;
mod supervisor;
mod worker_process;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

/// This program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Name under which process 1 starts this program as the worker.
const WORKER_NAME: &str = "abd-worker";
/// Exit status for a wrong call (sysexits' EX_USAGE).
const EXIT_USAGE: u8 = 64;

/// What this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Init,
    Worker,
    Shutdown,
    Unknown,
}

fn role(pid: Pid, name: Option<OsString>) -> Role {
    if pid == Pid::from_raw(1) {
        return Role::Init;
    }
    let name = name.unwrap_or_default();
    match Path::new(&name).file_name().and_then(|n| n.to_str()) {
        Some(WORKER_NAME) => Role::Worker,
        Some("poweroff" | "reboot" | "halt") => Role::Shutdown,
        _ => Role::Unknown,
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    match role(getpid(), std::env::args_os().next()) {
        Role::Init => supervisor::run(),
        Role::Worker => worker_process::run(),
        Role::Shutdown => ask_init_to_shut_down(),
        Role::Unknown => {
            eprintln!("abd-init {VERSION}: process 1 of the backup appliance; it does nothing elsewhere");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn ask_init_to_shut_down() -> ExitCode {
    match kill(Pid::from_raw(1), Signal::SIGTERM) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot signal process 1: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_follows_from_process_number_and_name() {
        let cases = [
            (1, "/init", Role::Init),
            (1, "/sbin/poweroff", Role::Init),
            (7, "abd-worker", Role::Worker),
            (7, "/sbin/poweroff", Role::Shutdown),
            (7, "reboot", Role::Shutdown),
            (7, "/usr/bin/abd-init", Role::Unknown),
            (7, "", Role::Unknown),
        ];
        for (pid, name, expected) in cases {
            assert_eq!(role(Pid::from_raw(pid), Some(name.into())), expected, "{pid} {name}");
        }
        assert_eq!(role(Pid::from_raw(7), None), Role::Unknown);
    }
}
