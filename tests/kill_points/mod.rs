//! Kill -9 after each call that a job makes, one after the other until there is none left: what remains in the pool is
//! removed by one `abd reconcile`, or by the next run; twice is the same as once; nothing that is not ours is touched;
//! the store is whole, and the next run stores what the disks hold.
//!
//! A point is a call that the pool carries out and never answers. While it waits, `abd` is killed. Every call is a point
//! where `abd reconcile` cleans up, every call that may change something where the next run does: between two such
//! calls the pool is the same. A VM's memory and a second delegate add calls to a backup; half of the points show those.
//! The number of points of each kind of job is printed.
//!
//! What a job asked for may also come about after its death; see the tests of what appears late.
//!
//! `POINT=37 cargo test -p e2e NAME` does one point again; `SEED=` chooses what the disks hold.

mod late;
mod users;

use ads::DiskKind;
use e2e::{Api, Inventory, Lab, Vm, noise, text};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};
use users::Users;

const MIB: u64 = 1 << 20;
/// Two disks, one with a short last block: every loop over disks is cut in its middle too.
const DISK_SIZES: [u64; 2] = [2 * MIB, MIB + 512];
/// A job that makes more calls does not end.
const MOST_POINTS: u64 = 1000;
/// How long a call may take to be frozen: a delegate may have to end first.
const FREEZE_LIMIT: Duration = Duration::from_secs(60);
/// Name of the VM.
const NAME: &str = "victim";

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    /// The first backup of a VM.
    Full,
    /// A backup with listed changes.
    Cbt,
    /// A backup of a pool before XenServer 7.3, from its reserved snapshot.
    Reserved,
    /// A backup with the VM's memory, which is in no drive of the snapshot.
    Checkpoint,
    /// A backup by two delegates, one after the other, on two hosts.
    Rounds,
    Restore,
    /// `abd reconcile` itself, after a backup that died with its delegate running.
    Reconcile,
}

/// What cleans up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rescue {
    Reconcile,
    NextRun,
}

/// Tells which point failed.
struct Point {
    job: Job,
    rescue: Rescue,
    number: u64,
    method: String,
}

impl Drop for Point {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { job, rescue, number, method } = self;
            println!("at point {number} ({method}) of {job:?}, then {rescue:?}; again with POINT={number}");
        }
    }
}

/// A run that was killed.
struct Killed {
    /// The call that was never answered.
    method: String,
    /// Whether it may have changed something.
    wrote: bool,
    /// The job, where it had begun.
    job: Option<String>,
}

/// One pool in which one kind of job dies again and again.
struct Lane {
    lab: Lab,
    job: Job,
    rescue: Rescue,
    seed: u64,
    /// Whether it is one point alone.
    once: bool,
    /// The VM of all jobs but first backups, which need a new one each time.
    vm: Vm,
    /// Users who are there all the time.
    residents: Users,
    /// The first entry of the simulator's log that was not seen.
    seen: u64,
    /// Jobs whose journals stay for hours, rightly; they are there at every later point.
    waiting: BTreeSet<String>,
}

/// Goes through all points, or does the one that is asked for.
fn enumerate(job: Job, rescue: Rescue) {
    let sim: &[&str] = match job {
        Job::Reserved => &["--flavour", "xs-7.2"],
        Job::Rounds => &["--hosts", "2"],
        _ => &[],
    };
    let Some(lab) = Lab::quick(sim) else { return };
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let mut lane = Lane::new(lab, job, rescue, e2e::seed(1));
    if let Some(point) = number("POINT") {
        lane.once = true;
        assert!(lane.strike(point), "the job has fewer calls");
        return;
    }
    let started = Instant::now();
    // Kinds that differ little from others go through every second point, beginning as the seed says.
    let (first, step) = match job {
        Job::Checkpoint | Job::Rounds => (1 + lane.seed % 2, 2),
        _ => (1, 1),
    };
    let points = (first..=MOST_POINTS).step_by(step).take_while(|point| lane.strike(*point)).count();
    assert!(points > 5 && u64::try_from(points).is_ok_and(|points| points < MOST_POINTS), "{points} points");
    lane.lab.assert_store_whole();
    println!("kill points: {job:?}, then {rescue:?}: {points} in {} s", started.elapsed().as_secs());
}

/// A VM whose disks no single host sees, with a template for a delegate on each.
fn vm_in_two_places(lab: &Lab) -> Vm {
    let storage = lab.local_storage();
    for sr in &storage {
        lab.abd(&["template", "import", &lab.template(), "--sr", sr]).ok();
    }
    let disks: Vec<_> = DISK_SIZES
        .iter()
        .zip(&storage)
        .map(|(size, sr)| json!({"name": format!("on {sr}"), "size": size, "sr": sr}))
        .collect();
    lab.vm_of(&json!({"name": NAME, "disks": disks, "running": false}))
}

impl Lane {
    fn new(lab: Lab, job: Job, rescue: Rescue, seed: u64) -> Self {
        let vm = match job {
            Job::Rounds => vm_in_two_places(&lab),
            _ => lab.vm_with(NAME, &DISK_SIZES, true),
        };
        for (at, vdi) in (0..).zip(&vm.vdis) {
            lab.write(vdi, 0, &text(seed + at, 300_000));
        }
        let residents = Users::nobody(&lab);
        let waiting = BTreeSet::new();
        let mut lane = Self { lab, job, rescue, seed, once: false, vm, residents, seen: 0, waiting };
        lane.lab.backup(&[&lane.vm]).ok();
        let killed = lane.die_with_delegate();
        lane.residents = Users::come(&lane.lab, &lane.vm, &killed);
        lane.lab.abd(&["reconcile"]).ok();
        lane
    }

    /// A backup that is killed when its delegate has just started. Gives the job.
    fn die_with_delegate(&mut self) -> String {
        let vm = self.vm.name.clone();
        let fault = json!({"method": "VM.start_on", "freeze": true, "when": "after"});
        let killed = self.kill(&["backup", &vm], &fault).expect("a delegate is started");
        killed.job.expect("a job has begun")
    }

    /// Kills a job after its n-th call and looks at everything that follows. `false` where it has no such call.
    fn strike(&mut self, number: u64) -> bool {
        let mut point = Point { job: self.job, rescue: self.rescue, number, method: "not reached".into() };
        let vm = if self.job == Job::Full { self.lab.vm(NAME, &DISK_SIZES) } else { self.vm.clone() };
        self.write(&vm, 2 * number);
        let at_death = self.digests(&vm);
        let before = Inventory::take(&self.lab);
        let known: BTreeSet<_> = self.lab.points(&vm.uuid).into_iter().map(|point| point.id).collect();
        if self.job == Job::Reconcile {
            self.die_with_delegate();
        }
        // After a question the pool is as before it: what differs between these jobs, and between the two ways to clean up,
        // is shown by the calls that may change something.
        let writes = self.rescue == Rescue::NextRun || matches!(self.job, Job::Checkpoint | Job::Rounds);
        let fault = json!({
            "method": "*", "except": ["event.from"], "writes": writes,
            "nth": number, "freeze": true, "when": "after",
        });
        let arguments = self.arguments(&vm);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let Some(killed) = self.kill(&arguments, &fault) else { return false };
        point.method.clone_from(&killed.method);
        let visitors = match &killed.job {
            Some(job) => Users::come(&self.lab, &vm, job),
            None => Users::nobody(&self.lab),
        };

        if self.rescue == Rescue::Reconcile {
            let first = self.lab.abd(&["reconcile"]).ok();
            assert_eq!(first.answer()["leftovers"], json!([]));
            self.check_pool("after reconcile", &vm, &before, &visitors);
            self.check_nothing_is_left(&killed);
        }
        // What was asked left the pool as it was: the next point at which something changed shows that runs go on.
        if killed.wrote || self.once {
            self.write(&vm, 2 * number + 1);
            let at_next_run = self.digests(&vm);
            self.next_run(&vm);
            self.check_pool("after the next run", &vm, &before, &visitors);
            self.check_nothing_is_left(&killed);
            self.check_points(&vm, &known, &killed, (&at_death, &at_next_run));
        }
        assert_eq!(self.lab.abd(&["verify"]).ok().answer()["clean"], true);
        visitors.leave(&self.lab);
        self.remove_restored();
        if self.job == Job::Full {
            self.remove_vm(&vm);
        }
        true
    }

    /// What is run and killed.
    fn arguments(&self, vm: &Vm) -> Vec<String> {
        match self.job {
            Job::Reconcile => vec!["reconcile".into()],
            _ => self.next_arguments(vm),
        }
    }

    /// What is run after that.
    fn next_arguments(&self, vm: &Vm) -> Vec<String> {
        match self.job {
            Job::Restore => {
                let points = self.lab.points(&vm.uuid);
                vec!["restore".into(), points.last().expect("a restore point").id.to_string()]
            }
            Job::Checkpoint => vec!["backup".into(), vm.uuid.clone(), "--checkpoint".into()],
            _ => vec!["backup".into(), vm.uuid.clone()],
        }
    }

    /// Runs `abd` and kills it when the fault has frozen a call. `None` where it ends before that.
    fn kill(&mut self, arguments: &[&str], fault: &Value) -> Option<Killed> {
        let lab = &self.lab;
        lab.post("/lab/faults", Some(fault));
        let mut run = lab.spawn(arguments);
        let by = Instant::now() + FREEZE_LIMIT;
        let (method, wrote) = loop {
            assert!(Instant::now() < by, "neither frozen nor at its end");
            // The fault is spent when it strikes, and the log tells when the call has had its effect.
            if lab.get("/lab/faults")["planned"] == json!([]) {
                let log = lab.log_since(self.seen);
                if let Some(at) = log.iter().position(|entry| entry["kind"] == "frozen") {
                    self.seen = log.last().expect("an entry")["seq"].as_u64().expect("a number") + 1;
                    let method = log[at]["method"].as_str().expect("a method").to_owned();
                    let call = log[..at].iter().rfind(|entry| entry["method"] == method.as_str());
                    break (method, call.expect("it was called")["write"] == true);
                }
            } else if run.is_over() {
                run.finish().ok();
                lab.post("/lab/faults", Some(&json!({"clear": true})));
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        run.kill();
        // `abd` was killed, the pool was not.
        self.lab.await_tasks();
        let started = run.events().iter().find(|event| event["event"] == "job-started");
        Some(Killed {
            method,
            wrote,
            job: started.map(|event| event["job"].as_str().expect("an id").to_owned()),
        })
    }

    /// The jobs that have a journal.
    fn journals(&self) -> Vec<String> {
        let directory = self.lab.path("state").join("journal");
        let files = fs::read_dir(directory).expect("the journal's directory");
        let names = files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned());
        names.map(|name| name.split('.').next().expect("a name").to_owned()).collect()
    }

    fn next_run(&self, vm: &Vm) {
        let arguments = self.next_arguments(vm);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let run = self.lab.abd(&arguments).ok();
        let jobs = run.all("job-done");
        let modes: Vec<&str> = jobs
            .iter()
            .flat_map(|job| job["disks"].as_array().expect("a list"))
            .map(|disk| disk["mode"].as_str().expect("a mode"))
            .collect();
        // A dead run does not cost the next one its references.
        let good: &[&[&str]] = match self.job {
            Job::Full => &[&["full"; 2], &["cbt"; 2]],
            Job::Cbt | Job::Rounds | Job::Reconcile => &[&["cbt"; 2]],
            Job::Reserved => &[&["vhd-diff"; 2]],
            Job::Checkpoint => &[&["cbt", "cbt", "full"]],
            Job::Restore => &[&["restore"; 2]],
        };
        assert!(good.contains(&modes.as_slice()), "{jobs:#?}");
    }

    /// The pool is what it was: users have what they had, and we have one reference of each disk, no more.
    fn check_pool(&self, when: &str, vm: &Vm, before: &Inventory, visitors: &Users) {
        let now = Inventory::take(&self.lab);
        let (mut wrong, now) = visitors.inspect(&now);
        let (more, now) = self.residents.inspect(&now);
        wrong.extend(more);
        let (_, before) = self.residents.inspect(before);
        let now = now.without(&self.check_restored(&now));
        wrong.extend(now.leftovers(&before, vm));
        assert!(wrong.is_empty(), "{when}:\n{}", wrong.join("\n"));
    }

    /// No journal is left, and another clean-up finds nothing to do.
    ///
    /// A job goes on beside a transfer that hangs. It may have died between its word that it makes something and the
    /// call: nobody can know that nothing appears, and its journal stays for a while.
    fn check_nothing_is_left(&mut self, killed: &Killed) {
        let may_wait = |job: &String| {
            killed.method.starts_with("GET ")
                && killed.job.as_ref() == Some(job)
                && self.ends_with_an_intent(job)
        };
        let journals = self.journals();
        let (waiting, left): (Vec<_>, Vec<_>) =
            journals.into_iter().partition(|job| self.waiting.contains(job) || may_wait(job));
        assert_eq!(left, [""; 0]);
        self.waiting = waiting.into_iter().collect();
        let again = self.lab.abd(&["reconcile"]).ok();
        let jobs = again.answer()["jobs"].as_array().expect("a list").iter();
        let jobs: BTreeSet<String> = jobs.map(|job| job.as_str().expect("an id").to_owned()).collect();
        assert_eq!((&again.answer()["removed"], jobs), (&json!([]), self.waiting.clone()));
    }

    fn ends_with_an_intent(&self, job: &str) -> bool {
        let path = self.lab.path("state").join("journal").join(format!("{job}.journal"));
        let text = fs::read_to_string(path).expect("a journal");
        let last: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("an entry");
        last["entry"].as_str().expect("a kind").ends_with("-intent")
    }

    /// What was restored is whole, all of it, and the user's.
    fn check_restored(&self, now: &Inventory) -> Inventory {
        let is_restored = |vdi: &&Value| !vdi["other_config"]["abd:restored"].is_null();
        let restored: Vec<&Value> = now.all("VDI").filter(is_restored).collect();
        assert_eq!(restored.len() % DISK_SIZES.len(), 0, "a part of a restore stays: {restored:#?}");
        for vdi in &restored {
            assert!(vdi["other_config"]["abd:job"].is_null(), "it still carries our mark: {vdi}");
            let found = self.lab.digest(vdi["uuid"].as_str().expect("a uuid"));
            let points = self.lab.points(&self.vm.uuid);
            let point =
                points.iter().find(|point| vdi["other_config"]["abd:restored"] == point.id.to_string());
            let disks = &point.expect("its restore point").point.disks;
            assert!(disks.iter().any(|disk| self.lab.stored_digest(disk) == found), "half restored: {vdi}");
        }
        let uuids: BTreeSet<&str> =
            restored.iter().map(|vdi| vdi["uuid"].as_str().expect("a uuid")).collect();
        now.select("VDI", |uuid| uuids.contains(uuid))
    }

    fn remove_restored(&self) {
        let now = Inventory::take(&self.lab);
        let api = Api::new(&self.lab);
        for vdi in now.all("VDI").filter(|vdi| !vdi["other_config"]["abd:restored"].is_null()) {
            api.call("VDI.destroy", json!([api.find("VDI", vdi["uuid"].as_str().expect("a uuid"))]));
        }
    }

    /// The store has the disks as they were when each job ran.
    fn check_points(
        &self,
        vm: &Vm,
        known: &BTreeSet<ads::PointId>,
        killed: &Killed,
        disks: (&[Value], &[Value]),
    ) {
        let points = self.lab.points(&vm.uuid);
        let new: Vec<_> = points.iter().filter(|point| !known.contains(&point.id)).collect();
        let (of_dead, of_next): (Vec<_>, Vec<_>) =
            new.into_iter().partition(|point| killed.job.as_ref() == Some(&point.point.job));
        assert_eq!(of_next.len(), usize::from(self.job != Job::Restore), "restore points of the next run");
        for (points, held) in [(of_dead, disks.0), (of_next, disks.1)] {
            for point in points {
                let disks = point.point.disks.iter().filter(|disk| disk.kind == DiskKind::User);
                let stored: Vec<_> = disks.map(|disk| self.lab.stored_digest(disk)).collect();
                assert_eq!(stored, held, "restore point {}", point.id);
            }
        }
    }

    /// The VM writes, each time somewhere else.
    fn write(&self, vm: &Vm, turn: u64) {
        for (at, (vdi, size)) in (0..).zip(vm.vdis.iter().zip(DISK_SIZES)) {
            let seed = self.seed.wrapping_mul(1_000_003) + 2 * turn + at;
            let bytes = noise(seed, 5000);
            self.lab.write(vdi, seed.wrapping_mul(77_777) % (size - 5000), &bytes);
        }
    }

    fn digests(&self, vm: &Vm) -> Vec<Value> {
        vm.vdis.iter().map(|vdi| self.lab.digest(vdi)).collect()
    }

    /// The user removes a VM; its references go with the next clean-up.
    fn remove_vm(&self, vm: &Vm) {
        let api = Api::new(&self.lab);
        api.call("VM.destroy", json!([api.find("VM", &vm.uuid)]));
        for vdi in &vm.vdis {
            api.call("VDI.destroy", json!([api.find("VDI", vdi)]));
        }
        self.lab.abd(&["reconcile"]).ok();
    }
}

#[test]
fn a_first_backup_killed_after_any_call_is_cleaned_up_by_reconcile() {
    enumerate(Job::Full, Rescue::Reconcile);
}

#[test]
fn a_first_backup_killed_after_any_call_is_cleaned_up_by_the_next_run() {
    enumerate(Job::Full, Rescue::NextRun);
}

#[test]
fn a_backup_of_changes_killed_after_any_call_is_cleaned_up_by_reconcile() {
    enumerate(Job::Cbt, Rescue::Reconcile);
}

#[test]
fn a_backup_of_changes_killed_after_any_call_is_cleaned_up_by_the_next_run() {
    enumerate(Job::Cbt, Rescue::NextRun);
}

#[test]
fn a_backup_from_a_reserved_snapshot_killed_after_any_call_is_cleaned_up_by_reconcile() {
    enumerate(Job::Reserved, Rescue::Reconcile);
}

#[test]
fn a_backup_from_a_reserved_snapshot_killed_after_any_call_is_cleaned_up_by_the_next_run() {
    enumerate(Job::Reserved, Rescue::NextRun);
}

#[test]
fn a_backup_with_memory_killed_after_any_call_is_cleaned_up_by_reconcile() {
    enumerate(Job::Checkpoint, Rescue::Reconcile);
}

#[test]
fn a_backup_by_two_delegates_killed_after_any_call_is_cleaned_up_by_reconcile() {
    enumerate(Job::Rounds, Rescue::Reconcile);
}

#[test]
fn a_restore_killed_after_any_call_is_cleaned_up_by_reconcile() {
    enumerate(Job::Restore, Rescue::Reconcile);
}

#[test]
fn a_restore_killed_after_any_call_is_cleaned_up_by_the_next_run() {
    enumerate(Job::Restore, Rescue::NextRun);
}

#[test]
fn a_reconcile_killed_after_any_call_is_finished_by_the_next_one() {
    enumerate(Job::Reconcile, Rescue::Reconcile);
}
