//! Which restore points stay: rules of job files, `abd prune`, `abd remove`, pins. Delegates are processes.

use ads::StoredPoint;
use e2e::{Lab, Vm, text};
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

fn ids(points: &[StoredPoint]) -> Vec<String> {
    points.iter().map(|stored| stored.id.to_string()).collect()
}

fn run(lab: &Lab, vm: &Vm, file: &str, seed: u64) -> e2e::Output {
    lab.write(&vm.vdis[0], 0, &text(seed, 100_000));
    lab.abd(&["run", file]).ok()
}

#[test]
fn a_job_s_rules_are_for_its_own_points_and_the_newest_is_still_incremental() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm("web01", &[2 * MIB]);
    let by_hand = lab.backup(&[&vm]).job("web01")["point"].as_str().expect("an id").to_owned();
    let file = lab.path("nightly.toml").display().to_string();
    fs::write(&file, "[select]\nnames = \"web01\"\n[options]\nkeep_last = 2\n").expect("written");

    for seed in 1..=2 {
        let output = run(&lab, &vm, &file, seed);
        assert_eq!(output.all("points-removed")[0]["removed"], Value::from(Vec::<String>::new()));
    }
    let before = ids(&lab.points(&vm.uuid));
    assert_eq!((before.len(), &before[0]), (3, &by_hand));
    let output = run(&lab, &vm, &file, 3);
    let removed = &output.all("points-removed")[0];
    assert_eq!(removed["removed"], Value::from(vec![before[1].clone()]), "the job's own oldest");
    assert_eq!(removed["kept"], 2);
    assert_eq!(output.job("web01")["disks"][0]["mode"], "cbt", "the base was not taken away");
    let after = ids(&lab.points(&vm.uuid));
    assert_eq!(after[..2], [by_hand, before[2].clone()]);
    lab.assert_store_whole();
    lab.assert_restores(&vm);
}

#[test]
fn prune_shows_asks_and_removes_what_no_rule_keeps_and_leaves_what_is_pinned() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let (web, db) = (lab.vm("web01", &[MIB]), lab.vm("db01", &[MIB]));
    for seed in 1..=4 {
        lab.write(&web.vdis[0], 0, &text(seed, 100_000));
        lab.backup(&[&web, &db]);
    }
    let all = ids(&lab.points(&web.uuid));
    lab.abd(&["pin", &all[0][..12], "--note", "before the migration"]).ok();
    let listed = lab.abd(&["list", "web01"]).ok();
    assert_eq!(listed.answer()["points"][0]["pin"]["note"], "before the migration");

    let dry = lab.abd(&["prune", "web01", "--keep-last", "2", "--dry-run"]).ok();
    let points = dry.answer()["groups"][0]["points"].as_array().expect("a list").clone();
    let keeps: Vec<_> = points.iter().map(|point| point["keep"].as_bool().expect("a yes or no")).collect();
    assert_eq!(keeps, [true, false, true, true]);
    assert_eq!(points[0]["reasons"], Value::from(vec!["pinned"]));
    // Nobody is there to be asked.
    lab.abd(&["prune", "web01", "--keep-last", "2"]).fails_with(12);
    assert_eq!(ids(&lab.points(&web.uuid)), all);

    let pruned = lab.abd(&["prune", "web01", "--keep-last", "2", "--yes"]).ok();
    assert_eq!(pruned.answer()["removed"], Value::from(vec![all[1].clone()]));
    assert_eq!(ids(&lab.points(&web.uuid)), [&all[0], &all[2], &all[3]].map(String::clone));
    assert_eq!(lab.points(&db.uuid).len(), 4, "another VM's points are not touched");

    let refusal = lab.abd(&["remove", &all[0], "--yes"]).fails_with(2);
    assert!(refusal.contains("pinned") && refusal.contains("unpin"), "{refusal}");
    lab.abd(&["unpin", &all[0]]).ok();
    lab.abd(&["remove", &all[0], &all[2], "--yes"]).ok();
    assert_eq!(ids(&lab.points(&web.uuid)), all[3..]);
    lab.abd(&["remove", &all[0], "--yes"]).fails_with(3);
    let counted = lab.abd(&["stats", "web01", "--points"]).ok();
    let (vm, store) = (&counted.answer()["vms"][0], &counted.answer()["store"]);
    assert_eq!((&vm["points"], &vm["full"]), (&Value::from(1), &Value::from(2 * 65536)));
    assert!(store["unreached"].as_u64() > Some(0), "what the removed points had is still there: {store}");
    lab.abd(&["stats", "web02"]).fails_with(3);
    lab.assert_store_whole();
    lab.assert_restores(&web);
}

#[test]
fn without_rules_or_with_a_vm_that_has_no_points_nothing_is_removed() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm("web01", &[MIB]);
    lab.backup(&[&vm]);
    let error = lab.abd(&["prune", "--all", "--yes"]).fails_with(2);
    assert!(error.contains("--keep-daily"), "{error}");
    let error = lab.abd(&["prune", "web02", "--keep-last", "1", "--yes"]).fails_with(3);
    assert!(error.contains("web02"), "{error}");
    lab.abd(&["prune", "--all", "--keep-last", "0"]).fails_with(2);
    assert_eq!(lab.points(&vm.uuid).len(), 1);
    let line = ["prune", "--every", "1d", "--for", "1y", "--keep-daily", "7", "--keep-monthly", "12"];
    let drawn = lab.plain_command(&line).output().expect("it runs");
    let text = String::from_utf8_lossy(&drawn.stdout);
    assert!(drawn.status.success() && text.contains("366 backups"), "{text}");
}

#[test]
fn what_removed_points_had_is_freed_while_a_job_runs_and_nothing_that_it_may_refer_to() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm("web01", &[2 * MIB]);
    for seed in 1..=3 {
        lab.write(&vm.vdis[0], 0, &text(seed, 500_000));
        lab.backup(&[&vm]);
    }
    lab.abd(&["prune", "web01", "--keep-last", "1", "--yes"]).ok();
    // A job that has looked at the store and waits in its hook. What it will read was in a point that is gone.
    lab.write(&vm.vdis[0], 0, &text(1, 500_000));
    let (here, go, file) = (lab.path("here"), lab.path("go"), lab.path("held.toml"));
    let hook = format!("touch '{}'; while ! [ -e '{}' ]; do sleep 0.05; done", here.display(), go.display());
    fs::write(&file, format!("[select]\nnames = \"web01\"\n[options]\nbefore_job = \"\"\"{hook}\"\"\"\n"))
        .expect("written");
    let running = lab.spawn(&["run", &file.display().to_string()]);
    let by = Instant::now() + Duration::from_secs(60);
    while !here.exists() {
        assert!(Instant::now() < by, "the job does not come to its hook");
        std::thread::sleep(Duration::from_millis(20));
    }
    let held = lab.abd(&["store", "gc"]).ok();
    let held = held.answer();
    assert_eq!(
        (&held["removed"], held["waits_for"].as_array().map(Vec::len)),
        (&Value::from(0), Some(1)),
        "{held}"
    );
    assert!(held["waiting"].as_u64() > Some(0), "{held}");
    fs::write(&go, "").expect("written");
    running.finish().ok();
    lab.assert_store_whole();

    let freed = lab.abd(&["store", "gc"]).ok();
    let freed = freed.answer();
    assert!(freed["removed"].as_u64() > Some(0) && freed["freed"].as_u64() > Some(0), "{freed}");
    assert_eq!(freed["waiting"], 0, "{freed}");
    let again = lab.abd(&["store", "gc", "--repack-below", "0"]).ok();
    assert_eq!(again.answer()["removed"], 0);
    let counted = lab.abd(&["stats"]).ok();
    assert_eq!(counted.answer()["store"]["unreached"], 0, "{}", counted.answer());
    lab.assert_store_whole();
    lab.assert_restores(&vm);
    lab.write(&vm.vdis[0], 0, &text(2, 500_000));
    assert_eq!(lab.backup(&[&vm]).job("web01")["disks"][0]["mode"], "cbt");
    lab.assert_restores(&vm);
}
