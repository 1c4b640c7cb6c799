//! What the pool knows of a delegate from inside, as XenCenter shows it: its address, its drivers, its system; and that it
//! can be shut down like any other VM.

use e2e::{Api, Lab, noise};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// XAPI gives a guest a minute to acknowledge, and then twenty to be gone; ours is gone within seconds, emulated or not.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn the_pool_sees_a_delegates_address_and_shuts_it_down_cleanly() {
    let Some(lab) = Lab::start() else { return };
    let vm = lab.vm("watched", &[32 * MIB]);
    lab.write(&vm.vdis[0], 0, &noise(1, 24 << 20));
    let before = lab.inventory();
    let mut run = lab.spawn(&["backup", "watched", "--rate-limit", "1MiB/s"]);
    run.until_working();
    let api = Api::new(&lab);
    let delegate = api.find("VM", &lab.delegate());
    let metrics = api.call("VM.get_guest_metrics", json!([delegate]));
    let metrics = api.call("VM_guest_metrics.get_record", json!([metrics]));
    let address = metrics["networks"]["0/ip"].as_str().unwrap_or_default();
    assert!(address.parse::<std::net::Ipv4Addr>().is_ok(), "XenCenter shows this one: {metrics:#}");
    assert_eq!(metrics["networks"]["0/ipv4/0"], address);
    assert_eq!(metrics["PV_drivers_detected"], true);
    let version = &metrics["PV_drivers_version"];
    for part in ["major", "minor", "micro", "build"] {
        assert!(version[part].as_str().is_some_and(|text| text.parse::<u32>().is_ok()), "{part}: {version}");
    }
    assert!(metrics["os_version"]["name"].as_str().is_some_and(|name| name.contains("Backup delegate")));
    assert!(metrics["os_version"]["uname"].as_str().is_some_and(|kernel| !kernel.is_empty()));
    assert_eq!(
        (&metrics["can_use_hotplug_vbd"], &metrics["can_use_hotplug_vif"]),
        (&json!("yes"), &json!("yes"))
    );
    assert_eq!((&metrics["other"]["feature-shutdown"], &metrics["live"]), (&json!("1"), &json!(true)));
    let allowed = api.call("VM.get_allowed_operations", json!([delegate]));
    assert!(allowed.as_array().is_some_and(|all| all.contains(&json!("clean_shutdown"))), "{allowed}");

    let asked = Instant::now();
    assert_eq!(api.call("VM.clean_shutdown", json!([delegate])), Value::from(""));
    println!("measured: delegate shut down cleanly in {:.1} s", asked.elapsed().as_secs_f64());
    assert!(asked.elapsed() < SHUTDOWN_LIMIT);
    // Its session is one that was not there before.
    drop(api);
    let failed = run.finish();
    let error = failed.fails_with(1);
    assert!(error.contains("the delegate of watched"), "{error}");
    lab.assert_clean(&before);
}
