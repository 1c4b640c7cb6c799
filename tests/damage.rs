//! A damaged store: repaired, and healed by the next backup. Delegates are processes.

use e2e::{Lab, Output, noise};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

/// The pack file with the most bytes.
fn largest_pack(store: &Path) -> PathBuf {
    let shards = fs::read_dir(store.join("packs")).expect("packs").flatten();
    let packs = shards.flat_map(|shard| fs::read_dir(shard.path()).expect("a shard").flatten());
    packs
        .map(|pack| pack.path())
        .max_by_key(|pack| fs::metadata(pack).expect("a pack").len())
        .expect("a pack")
}

/// What a repair said before it said that something is lost.
fn answer(output: &Output) -> &Value {
    output.events.iter().find(|event| event.get("whole").is_some()).expect("an answer")
}

#[test]
fn what_a_repair_cannot_give_back_the_next_backup_does() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let (hurt, other) = (lab.vm("hurt", &[4 * MIB]), lab.vm("other", &[MIB]));
    lab.write(&hurt.vdis[0], MIB, &noise(1, 2 * MIB as usize));
    lab.backup(&[&hurt, &other]).ok();
    let pack = largest_pack(&lab.store());
    let mut bytes = fs::read(&pack).expect("a pack");
    bytes[70_000] ^= 0x10;
    fs::write(&pack, &bytes).expect("written");

    let text = lab.abd(&["verify", "--read-data"]).fails_with(10);
    assert!(text.contains("abd store repair"), "{text}");
    let dry = lab.abd(&["store", "repair", "--dry-run"]);
    dry.fails_with(10);
    assert!(fs::read(&pack).expect("it is there") == bytes, "a dry run changes nothing");
    let repaired = lab.abd(&["store", "repair"]);
    let text = repaired.fails_with(10);
    assert!(text.contains("ship"), "{text}");
    assert_eq!(answer(&repaired)["affects"], answer(&dry)["affects"]);
    let answer = answer(&repaired);
    let [hit] = &answer["affects"].as_array().expect("a list")[..] else { panic!("{answer}") };
    assert_eq!((hit["vm"].as_str(), hit["vdi"].as_str()), (Some("hurt"), Some(hurt.vdis[0].as_str())));
    assert_eq!(
        (answer["deeds"][0]["what"].as_str(), answer["waiting"].as_u64()),
        (Some("pack-quarantined"), Some(0))
    );
    assert!(!pack.exists());

    // Nothing changed on the disks. What is lost is read again and shipped; who lost nothing goes on as ever.
    let planned = lab.abd(&["plan", "hurt"]).ok();
    assert_eq!(planned.answer()["plans"][0]["disks"][0]["cause"], "store-damaged");
    let output = lab.backup(&[&hurt, &other]);
    assert_eq!(output.job("hurt")["disks"][0]["cause"], "store-damaged");
    assert_eq!(output.job("other")["disks"][0]["mode"], "cbt");
    let repaired = lab.abd(&["store", "repair"]).ok();
    assert_eq!((&repaired.answer()["whole"], &repaired.answer()["points"]), (&true.into(), &4.into()));
    lab.assert_store_whole();
    lab.assert_restores(&hurt);
    lab.backup(&[&hurt, &other]).ok();
    lab.abd(&["store", "gc"]).ok();
    lab.abd(&["verify", "--read-data"]).ok();
}

#[test]
fn a_store_is_read_in_turns_that_go_on_where_the_last_one_stopped() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm("web01", &[2 * MIB]);
    for seed in 1..=4 {
        lab.write(&vm.vdis[0], 0, &noise(seed, MIB as usize));
        lab.backup(&[&vm]).ok();
    }
    let packs = |part: &Value| part["packs"].as_u64().expect("a count");
    let mut read = 0;
    for turn in 0..4 {
        let output = lab.abd(&["verify", "--rotate", "3"]).ok();
        let part = &output.answer()["part"];
        assert_eq!((&part["resumed"], output.answer()["packs"].as_u64()), (&false.into(), Some(packs(part))));
        // A turn reads a little more than its share, so that two may do; three always do.
        if turn != 2 {
            assert_eq!(part["all_read_since"].is_null(), turn < 2, "{part}");
        }
        read += packs(part);
        assert!(packs(part) > 0 && packs(part) < part["of"].as_u64().expect("a count"), "{part}");
    }
    let all = lab.abd(&["verify", "--part", "1/1"]).ok();
    let of = packs(&all.answer()["part"]);
    assert!(read > of, "three turns read all, the fourth begins again");
    let sample = |seed: &str| lab.abd(&["verify", "--sample", "50", "--seed", seed]).ok();
    let one = sample("7");
    assert_eq!(one.answer()["part"]["seed"], 7);
    assert_eq!((packs(&one.answer()["part"]), one.answer()), (of.div_ceil(2), sample("7").answer()));
    lab.abd(&["verify", "--part", "8/7"]).fails_with(2);
}
