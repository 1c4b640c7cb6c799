//! Every target on every machine: what is as it should be, everything that was ever found, and a second's worth of
//! changed inputs, the same ones in each run.
//!
//! `SEED=` draws others, `SEED=random` new ones, whose number is printed; `TRIES=` says how many times as many.
//! A failing input is kept, and the message says how to see it again.

use abd_fuzz::mutate::Mutator;
use abd_fuzz::{MAX_INPUT, TARGETS, Target};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// The seed where none is given.
const SEED: u64 = 1;
/// Largest corpus of one target: files are there to be read by every run of the tests.
const CORPUS_MAX: u64 = 1 << 20;

fn room() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("it stands in the list")
}

fn names_in(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("the directory is there");
    entries.map(|entry| entry.expect("readable").file_name().into_string().expect("plain names")).collect()
}

/// The files of a target's corpus, by name.
fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = room().join("corpus").join(target.name);
    let read = |name: &String| (dir.join(name), fs::read(dir.join(name)).expect("readable"));
    names_in(&dir).iter().map(read).collect()
}

fn run(target: &Target, input: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_ok()
}

/// Keeps an input that failed, and says what to do with it.
fn fail(target: &Target, input: &[u8]) -> ! {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
        "{}-{}",
        target.name,
        &blake3::hash(input).to_hex()[..16]
    ));
    fs::write(&kept, input).expect("the file can be written");
    panic!(
        "{name}: the input in {kept} fails. Again: cp {kept} {corpus}/ && cargo test -p abd-fuzz {name}; leave it \
         there when it is mended",
        name = target.name,
        kept = kept.display(),
        corpus = room().join("corpus").join(target.name).display()
    );
}

fn replay_and_search(name: &str) {
    let target = target(name);
    let mut inputs = (target.seeds)();
    for input in &inputs {
        assert!(run(target, input), "{name} fails on what is as it should be");
    }
    for (path, input) in corpus(target) {
        assert!(run(target, &input), "{name} fails again on {}", path.display());
        inputs.push(input);
    }
    assert!(inputs.iter().all(|input| input.len() <= MAX_INPUT));

    let seed = match env::var("SEED").as_deref() {
        Err(_) => SEED,
        Ok("random") => u64::from(std::process::id()) << 32 | u64::from(fs_moment()),
        Ok(text) => text.parse().expect("SEED is a number or `random`"),
    };
    let times: u32 = env::var("TRIES").map_or(1, |text| text.parse().expect("TRIES is a number"));
    println!(
        "{name}: {} inputs kept, then {} changed ones from SEED={seed}",
        inputs.len(),
        target.tries * times
    );
    let mut mutator = Mutator::new(seed);
    for _ in 0..target.tries * times {
        let input = mutator.input(&inputs);
        if !run(target, &input) {
            fail(target, &input);
        }
    }
}

/// Anything that differs from run to run.
fn fs_moment() -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |passed| passed.subsec_nanos())
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                replay_and_search(stringify!($name));
            }
        )*

        #[test]
        fn every_target_is_here_has_a_program_and_a_corpus_of_its_own() {
            let listed: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
            assert_eq!(listed.len(), TARGETS.len(), "each once");
            let here = BTreeSet::from([$(stringify!($name).to_owned()),*]);
            assert_eq!(here, listed, "this file");
            assert_eq!(names_in(&room().join("corpus")), listed, "corpus/");
            let programs = names_in(&room().join("fuzz_targets"));
            assert_eq!(programs, listed.iter().map(|name| format!("{name}.rs")).collect(), "fuzz_targets/");
            let manifest = fs::read_to_string(room().join("Cargo.toml")).expect("readable");
            for name in &listed {
                assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "Cargo.toml: {name}");
            }
        }
    };
}

targets! {
    xenstore_messages xenstore_answers xenstore_requests dhcp_exchanges link_packets boot_settings worker_frames
    orders store_questions store_answers diagnoses cbt_bitmaps packs trees store_files collection_records
    key_slots recovery_kits sealed_points encrypted_packs index_runs
    served_requests xva_files ova_descriptions vhd_heads pool_answers job_files
}

#[test]
fn a_corpus_stays_small() {
    for target in TARGETS {
        let size: u64 = corpus(target).iter().map(|(_, input)| input.len() as u64).sum();
        assert!(
            size <= CORPUS_MAX,
            "{}: {size} bytes; empty the directory and fill it again: scripts/fuzz --target {0} --keep",
            target.name
        );
    }
}

#[test]
fn a_target_that_panics_is_seen() {
    let broken = Target { name: "broken", run: |data| assert!(data.len() < 3), seeds: Vec::new, tries: 0 };
    assert!(run(&broken, b"ab"));
    assert!(!run(&broken, b"abc"));
}
