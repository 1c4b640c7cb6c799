//! The built image against its own description and against what is recorded of its size.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where the built image is and where this repository is; `None`, said, where a test cannot know.
fn places() -> Option<(PathBuf, PathBuf)> {
    match (env::var_os("ABD_IMAGE_DIR"), Path::new(env!("CARGO_MANIFEST_DIR")).parent()) {
        (Some(image), Some(repository)) => Some((image.into(), repository.to_owned())),
        _ => {
            println!("skipped: ABD_IMAGE_DIR is not set; run scripts/test");
            None
        }
    }
}

fn check(repository: &Path, image: &Path, limits: &Path) -> Output {
    let checker = repository.join("scripts/lib/check-image");
    Command::new(checker)
        .arg("--dir")
        .arg(image)
        .arg("--limits")
        .arg(limits)
        .output()
        .expect("check-image runs")
}

#[test]
fn the_image_is_what_its_description_says_and_no_larger_than_recorded() {
    let Some((image, repository)) = places() else { return };
    let output = check(&repository, &image, &repository.join("kernel-config/image.limits"));
    println!("measured: {}", String::from_utf8_lossy(&output.stdout).trim_end());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_image_that_grew_is_refused_by_name() {
    let Some((image, repository)) = places() else { return };
    let recorded = fs::read_to_string(repository.join("kernel-config/image.limits")).expect("readable");
    let dir = tempfile::tempdir().expect("a directory");
    let mut tried = 0;
    for line in recorded.lines().filter(|line| !line.starts_with('#') && line.contains('=')) {
        let (name, _) = line.split_once('=').expect("it has one");
        let limits = dir.path().join("limits");
        fs::write(&limits, recorded.replace(line, &format!("{name}= 1"))).expect("writable");
        let output = check(&repository, &image, &limits);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{name} may be anything");
        assert!(
            words.contains(&format!("{} is ", name.trim())) && words.contains("recorded are at most 1"),
            "{words}"
        );
        tried += 1;
    }
    assert_eq!(tried, 6, "every limit");
}

#[test]
fn a_file_that_is_not_the_described_one_is_refused() {
    let Some((image, repository)) = places() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    for file in fs::read_dir(&image).expect("readable").flatten().filter(|file| file.path().is_file()) {
        fs::copy(file.path(), dir.path().join(file.file_name())).expect("copied");
    }
    let initramfs = dir.path().join("initramfs.zst");
    let mut bytes = fs::read(&initramfs).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&initramfs, bytes).expect("writable");
    let output = check(&repository, dir.path(), &repository.join("kernel-config/image.limits"));
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .contains("initramfs.zst is not the file that image.json describes")
    );
}
