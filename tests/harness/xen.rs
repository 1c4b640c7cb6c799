//! The Xen machine that the tests of one process share: booting it takes longer than a test.

use crate::lab::variable;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// A machine that runs. It ends with its standard input, which is to say with this process.
#[derive(Debug)]
struct Machine {
    directory: PathBuf,
    /// Holds the standard input.
    _script: Child,
}

/// A machine, or why there is none.
static MACHINE: OnceLock<Result<Machine, String>> = OnceLock::new();
/// One lab at a time has the machine.
static TURN: Mutex<()> = Mutex::new(());

/// The machine, for as long as this is held.
#[derive(Debug)]
pub(crate) struct XenMachine {
    pub(crate) directory: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl XenMachine {
    /// Waits for the machine; `None` with a reason where this machine cannot have one.
    pub(crate) fn take() -> Option<Self> {
        // A test that failed leaves a machine that the next simulator clears.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        match MACHINE.get_or_init(start) {
            Ok(machine) => Some(Self { directory: machine.directory.clone(), _turn: turn }),
            Err(reason) => {
                println!("skipped: {reason}");
                None
            }
        }
    }

    /// What its hypervisor, its control domain and the guests said last.
    pub(crate) fn console(&self) -> String {
        let bytes = std::fs::read(self.directory.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(16 << 10)..]).into_owned()
    }
}

/// Panics where `scripts/test` found that the lab can run and it does not.
fn start() -> Result<Machine, String> {
    let Some(path) = variable("ABD_XEN_LAB") else {
        let reason = std::env::var("ABD_XEN_WHY_NOT").unwrap_or_default();
        return Err(match reason.as_str() {
            "" => "ABD_XEN_LAB is not set; run scripts/test".to_owned(),
            _ => format!("no Xen lab on this machine: {reason}"),
        });
    };
    let mut script = Command::new(path)
        .arg("--serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("scripts/xen-lab starts");
    let mut line = String::new();
    BufReader::new(script.stdout.take().expect("piped")).read_line(&mut line).expect("its directory");
    assert!(!line.trim().is_empty(), "scripts/xen-lab did not start: {:?}", script.wait());
    Ok(Machine { directory: line.trim().into(), _script: script })
}
