//! Delegates with several cards: each on its network, in the order in which an admin names them, and the store reached
//! over any of them. Delegates are processes here; what a real guest does with two cards is in `doctor_delegate`.

use e2e::{Inventory, Lab, Output, noise};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const MANAGEMENT: &str = "Pool-wide network associated with eth0";
/// By which a delegate reaches this machine over card 1, and over no other.
const OVER_CARD_1: &str = "10.0.3.2";

/// A pool with a second network on all of its hosts.
fn lab_with_storage(sim: &[&str]) -> Option<Lab> {
    let lab = Lab::quick(sim)?;
    lab.post("/lab/network", Some(&json!({"name": "storage", "mtu": 9000, "vlan": 20})));
    Some(lab)
}

fn calls<'a>(log: &'a [Value], method: &str) -> Vec<&'a Value> {
    log.iter().filter(|entry| entry["method"] == method).collect()
}

/// The findings of `abd doctor` about networks: level and message.
fn findings(output: &Output) -> Vec<(String, String)> {
    let all = output.events.iter().find(|event| event["findings"].is_array()).expect("findings");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = all["findings"].as_array().expect("a list").iter();
    all.filter(|one| one["code"].as_str().is_some_and(|code| code.starts_with("network")))
        .map(|one| (text(&one["level"]), text(&one["message"])))
        .collect()
}

#[test]
fn a_delegate_with_two_cards_reaches_the_store_over_the_second() {
    let Some(lab) = lab_with_storage(&[]) else { return };
    let vm = lab.vm("web01", &[2 * MIB]);
    lab.write(&vm.vdis[0], 0, &noise(1, 1 << 20));
    let storage = "storage,address=10.0.3.40/24,ipv6=off";
    let set = ["pool", "set", "lab", "--network", MANAGEMENT, "--network", storage];
    let set = lab.abd(&[&set[..], &["--advertise", OVER_CARD_1]].concat()).ok();
    assert_eq!(set.answer()["networks"], json!([MANAGEMENT, storage]));

    let plan = lab.abd(&["plan", "web01"]).ok();
    let steps = plan.answer()["plans"][0]["steps"].as_array().expect("a list").clone();
    let planned: Vec<_> = steps.iter().filter(|step| step["call"] == "VIF.create").collect();
    assert_eq!(planned.len(), 2, "{planned:#?}");
    assert!(planned[1].to_string().contains("network 'storage'"), "{planned:#?}");

    let since = lab.log().len().try_into().expect("a number");
    lab.backup(&[&vm]).ok();
    lab.assert_restores(&vm);
    let log = lab.log_since(since);
    let made: Vec<_> = calls(&log, "VIF.create").iter().map(|call| call.to_string()).collect();
    // One backup and one restore.
    assert_eq!(made.len(), 4, "{made:#?}");

    let checked = lab.abd(&["doctor", "--delegate"]).ok();
    let check = &checked.events.iter().find_map(|event| event["delegates"].as_array()).expect("delegates")[0];
    assert_eq!(
        check["cards"],
        json!([
            {"number": 0, "network": MANAGEMENT, "addresses": "10.0.2.15"},
            {"number": 1, "network": "storage", "addresses": "10.0.3.40"},
        ])
    );
    assert!(check["error"].is_null() && check["send"]["bytes"].as_u64() > Some(MIB), "{check:#}");
    let text = lab.plain_command(&["doctor", "--delegate"]).output().expect("it runs");
    let text = String::from_utf8(text.stdout).expect("text");
    assert!(text.contains("\n  card 1      10.0.3.40 on network 'storage'\n"), "{text}");
    let found = findings(&checked);
    assert!(found.iter().all(|(level, _)| level == "ok"), "{found:#?}");
    assert!(found[0].1.ends_with("with card 0, which has the default route"), "{found:#?}");
    assert!(found[1].1.ends_with("'storage' with card 1"), "{found:#?}");

    let back = lab.abd(&["pool", "set", "lab", "--management-network", "--advertise", "10.0.2.2"]).ok();
    assert_eq!(back.answer()["networks"], json!([]));
    lab.backup(&[&vm]).ok();
}

#[test]
fn a_second_network_that_is_missing_or_leads_nowhere_is_told_before_anything_is_made() {
    let Some(lab) = lab_with_storage(&["--hosts", "2"]) else { return };
    lab.vm("web01", &[MIB]);
    lab.post("/lab/network", Some(&json!({"name": "nowhere", "hosts": []})));
    lab.post("/lab/network", Some(&json!({"name": "half", "hosts": [2]})));
    let before = lab.inventory();
    for (name, code, part) in [
        ("backup", 3, "no network of the pool is named 'backup'"),
        (MANAGEMENT, 3, "two cards on one network"),
        ("nowhere", 1, "network 'nowhere' has no adapter on any host"),
    ] {
        // The same name twice is seen at once; one network by two names only in the pool.
        let management =
            if name == MANAGEMENT { network_uuid(&lab, MANAGEMENT) } else { MANAGEMENT.to_owned() };
        lab.abd(&["pool", "set", "lab", "--network", &management, "--network", name]).ok();
        let found = findings(&lab.abd(&["doctor"]));
        assert!(found.iter().any(|(level, text)| level == "error" && text.contains(part)), "{found:#?}");
        let text = lab.abd(&["backup", "web01"]).fails_with(code);
        assert!(text.contains(part) && text.contains("abd pool set"), "{text}");
    }
    lab.assert_clean(&before);
    lab.abd(&["pool", "set", "lab", "--network", "a", "--network", "a"]).fails_with(2);
    lab.abd(&["pool", "set", "lab", "--network", "a,mtu=9000"]).fails_with(2);

    // The disk is on the first host, which the network does not reach.
    lab.abd(&["pool", "set", "lab", "--network", MANAGEMENT, "--network", "half"]).ok();
    let found = findings(&lab.abd(&["doctor"]));
    assert!(
        found.iter().any(|(level, text)| level == "warning"
            && text.starts_with("network 'half' does not reach")
            && text.ends_with("delegates do not run there")),
        "{found:#?}"
    );
    lab.abd(&["backup", "web01"]).fails_with(1);
    lab.assert_clean(&before);
}

fn network_uuid(lab: &Lab, name: &str) -> String {
    let network = lab.api("network.get_by_name_label", json!([name]))[0].clone();
    lab.api("network.get_uuid", json!([network])).as_str().expect("a uuid").to_owned()
}

#[test]
fn a_fixed_address_of_a_network_is_one_delegates_at_a_time() {
    let Some(lab) = lab_with_storage(&[]) else { return };
    let vms = [lab.vm("web01", &[MIB]), lab.vm("web02", &[MIB])];
    lab.abd(&["pool", "set", "lab", "--network", "storage,address=10.0.2.40/24"]).ok();
    let run = lab.backup(&vms.iter().collect::<Vec<_>>()).ok();
    let names = ["job-started", "job-done"];
    let order: Vec<_> = run
        .events
        .iter()
        .filter_map(|event| event["event"].as_str().filter(|name| names.contains(name)))
        .collect();
    assert_eq!(order, ["job-started", "job-done", "job-started", "job-done"]);
}

#[test]
fn a_kept_delegate_is_taken_only_with_the_cards_that_jobs_want() {
    let Some(lab) = lab_with_storage(&[]) else { return };
    let vm = lab.vm("web01", &[MIB]);
    let before = Inventory::take(&lab);
    let delegates = || {
        let now = Inventory::take(&lab);
        let made = now.without(&before);
        made.all("VM")
            .filter(|vm| vm["is_a_snapshot"] == false)
            .map(|vm| vm["uuid"].clone())
            .collect::<Vec<_>>()
    };
    let set = ["pool", "set", "lab", "--keep-idle", "1", "--network", MANAGEMENT, "--network", "storage"];
    lab.abd(&set).ok();
    let reused = || lab.backup(&[&vm]).ok().job("web01")["delegate"]["reused"].as_u64().expect("a number");
    assert_eq!((reused(), reused()), (0, 1));
    let kept = delegates();
    assert_eq!(kept.len(), 1);

    // A card that somebody moved.
    let api = e2e::Api::new(&lab);
    let delegate = api.find("VM", kept[0].as_str().expect("a uuid"));
    let vifs = api.call("VM.get_VIFs", json!([delegate]));
    let other = api.call("VIF.get_network", json!([vifs[0]]));
    api.call("VIF.move", json!([vifs[1], other]));
    assert_eq!(reused(), 0, "it was removed, and another one made");
    assert_ne!(delegates(), kept);
    assert_eq!(reused(), 1);

    // Other networks: those that are kept go at once.
    let set = lab.abd(&["pool", "set", "lab", "--network", "storage"]).ok();
    assert!(!set.answer()["removed"].as_array().expect("a list").is_empty(), "{:#}", set.answer());
    assert_eq!(delegates().len(), 0);
    assert_eq!((reused(), reused()), (0, 1));
    lab.abd(&["pool", "set", "lab", "--keep-idle", "0"]).ok();
    let left = Inventory::take(&lab).leftovers(&before, &vm);
    assert!(left.is_empty(), "{}", left.join("\n"));
}
