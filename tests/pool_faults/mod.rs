//! What goes wrong in a pool while a job runs, each named for what its user sees: how the job ends, what it says, that
//! the pool is as it was, and that the next run works.
//!
//! Delegates are processes, so that each of them takes a second. What a test injects is in `xapi-sim`'s `lab` module.

mod busy;
mod connection;
mod disks;
mod options;
mod tracking;

use e2e::{Inventory, Lab, Output, Vm, noise, text};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Most that a call takes to come up in a job.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// Time in which a test acts while a call waits.
const HOLD_MS: u64 = 1500;

/// A pool with a VM that was never backed up.
struct Bench {
    lab: Lab,
    vm: Vm,
    before: Inventory,
    turn: u64,
    /// Whether a journal may stay because what it announced may still appear in the pool.
    unsettled: bool,
}

impl Bench {
    /// `None` where this machine has not what it takes.
    fn new(sim: &[&str]) -> Option<Self> {
        Self::with_disks(sim, &[4 * MIB, 2 * MIB + 512])
    }

    fn with_disks(sim: &[&str], sizes: &[u64]) -> Option<Self> {
        let lab = Lab::quick(sim)?;
        let vm = lab.vm_with("web01", sizes, true);
        for (at, vdi) in (1..).zip(&vm.vdis) {
            lab.write(vdi, 0, &text(at, 200_000));
        }
        Some(Self::of(lab, vm))
    }

    /// With a VM that the control port makes of these members.
    fn of_made(lab: Lab, wanted: &Value) -> Self {
        let vm = lab.vm_of(wanted);
        for (at, vdi) in (1..).zip(&vm.vdis) {
            lab.write(vdi, 0, &noise(at, 100_000));
        }
        Self::of(lab, vm)
    }

    fn of(lab: Lab, vm: Vm) -> Self {
        let before = Inventory::take(&lab);
        Self { lab, vm, before, turn: 0, unsettled: false }
    }

    /// A pool whose VM was backed up once, so that the next run lists changes, and has written since.
    fn tracked(sim: &[&str]) -> Option<Self> {
        let mut bench = Self::new(sim)?;
        bench.backup().ok();
        bench.write();
        Some(bench)
    }

    /// The VM writes to each of its disks, each time somewhere else.
    fn write(&mut self) {
        self.turn += 1;
        for (at, vdi) in (0..).zip(&self.vm.vdis) {
            let offset = self.turn.wrapping_mul(333_331 + at) % MIB;
            self.lab.write(vdi, offset, &noise(100 * self.turn + at, 5000));
        }
    }

    fn fault(&self, fault: Value) {
        self.lab.post("/lab/faults", Some(&fault));
    }

    fn backup(&self) -> Output {
        self.lab.abd(&["backup", &self.vm.uuid])
    }

    /// Backs up, and acts while the first call of a method waits. The call is carried out after that.
    fn backup_while(&self, method: &str, act: impl FnOnce()) -> Output {
        self.fault(json!({"method": method, "delay_ms": HOLD_MS}));
        let seen = self.lab.log().last().map_or(0, |entry| entry["seq"].as_u64().expect("a number"));
        let run = self.lab.spawn(&["backup", &self.vm.uuid]);
        let by = Instant::now() + CALL_LIMIT;
        let is_it = |entry: &Value| {
            let name = entry["method"].as_str().unwrap_or_default();
            entry["seq"].as_u64() > Some(seen) && name.trim_start_matches("Async.") == method
        };
        while !self.lab.log_since(seen).iter().any(is_it) {
            assert!(Instant::now() < by, "{method} is never called");
            std::thread::sleep(Duration::from_millis(5));
        }
        act();
        run.finish()
    }

    /// Waits until a host is up.
    fn await_host(&self, uuid: &str) {
        let by = Instant::now() + CALL_LIMIT;
        let api = e2e::Api::new(&self.lab);
        let host = api.find("host", uuid);
        while api.call("host.get_enabled", json!([host])) != true {
            assert!(Instant::now() < by, "the host does not come back");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Fails unless the newest restore point is what the disks hold.
    #[track_caller]
    fn assert_stored(&self) {
        let points = self.lab.points(&self.vm.uuid);
        let disks = &points.last().expect("a restore point").point.disks;
        let stored: Vec<_> =
            disks.iter().map(|disk| (disk.vdi.clone(), self.lab.stored_digest(disk))).collect();
        let there: Vec<_> = self.vm.vdis.iter().map(|vdi| (vdi.clone(), self.lab.digest(vdi))).collect();
        assert_eq!(stored, there);
    }

    /// Fails unless the pool is as it was, but for references, and no job needs to be cleaned up.
    #[track_caller]
    fn assert_clean(&self) {
        let left = Inventory::take(&self.lab).leftovers(&self.before, &self.vm);
        assert!(left.is_empty(), "{}", left.join("\n"));
        let reconciled = self.lab.abd(&["reconcile"]).ok();
        assert_eq!(reconciled.answer()["removed"], json!([]));
        assert!(self.unsettled || reconciled.answer()["jobs"] == json!([]), "a journal stays");
    }

    /// Fails unless the run succeeded, without a warning about its job, stored what the disks hold and left nothing.
    #[track_caller]
    fn assert_good(&self, run: Output) -> Output {
        let run = run.ok();
        // What there is to say about the pool itself, its release for instance, is said in every run.
        let warnings: Vec<_> =
            run.warnings().into_iter().filter(|warning| !warning.starts_with("pool 'lab'")).collect();
        assert_eq!(warnings, [""; 0]);
        self.assert_stored();
        self.assert_clean();
        run
    }

    /// Fails unless another run reads all disks in this way and is good.
    #[track_caller]
    fn assert_next_run_is(&mut self, mode: &str) -> Output {
        self.write();
        let run = self.assert_good(self.backup());
        assert_eq!(modes(&run), vec![mode; self.vm.vdis.len()], "{:#?}", run.all("disk-plan"));
        run
    }
}

/// How each disk was read.
fn modes(run: &Output) -> Vec<&str> {
    members(run, "mode")
}

/// Why each disk was read in this way, as a code.
fn causes(run: &Output) -> Vec<&str> {
    members(run, "cause")
}

fn members<'a>(run: &'a Output, member: &str) -> Vec<&'a str> {
    let jobs = run.all("job-done").into_iter();
    let disks = jobs.flat_map(|job| job["disks"].as_array().expect("a list"));
    disks.map(|disk| disk[member].as_str().expect("a text")).collect()
}

/// The uuid of the only object of a class with this name.
#[track_caller]
fn uuid_of(lab: &Lab, class: &str, name: &str) -> String {
    let api = e2e::Api::new(lab);
    let found = api.call(&format!("{class}.get_by_name_label"), json!([name]));
    api.uuid(class, &found[0])
}
