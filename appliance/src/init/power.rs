//! The end: power off, whatever happened.

use std::thread;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};

use crate::platform::console;

/// Time for the last console line to leave the serial port's buffer.
const CONSOLE_DRAIN: Duration = Duration::from_millis(100);

/// Powers the machine off. Only PID 1 calls it.
///
/// There is no `sync()`: the appliance mounts no disk, and a disk that hangs must not hold up the end. Whoever writes
/// to a disk flushes it before it says that it is done.
pub(crate) fn off(reason: &str) -> ! {
    console::line(&format!("powering off: {reason}"));
    thread::sleep(CONSOLE_DRAIN);
    for mode in [RebootMode::RB_POWER_OFF, RebootMode::RB_HALT_SYSTEM, RebootMode::RB_AUTOBOOT] {
        // The call comes back only when it failed.
        let Err(error) = reboot(mode);
        console::line(&format!("the kernel refuses {mode:?}: {error}"));
    }
    // PID 1's end makes the kernel panic, and the panic setting ends the machine.
    std::process::exit(1)
}
