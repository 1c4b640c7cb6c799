//! Templates and images that are signed: what is not what was signed, or not signed at all, does not come into a pool.

use e2e::Lab;
use std::fs;
use std::path::Path;
use std::process::Command;

fn flip(path: &str, at: impl Fn(usize) -> usize) {
    let mut bytes = fs::read(path).expect("a file");
    let at = at(bytes.len());
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("written");
}

/// A copy of a file with one bit flipped, its signature beside it.
fn flipped(lab: &Lab, file: &str, name: &str, at: impl Fn(usize) -> usize) -> String {
    let copy = lab.path(name).display().to_string();
    fs::copy(file, &copy).expect("copied");
    fs::copy(format!("{file}.minisig"), format!("{copy}.minisig")).expect("copied");
    flip(&copy, at);
    copy
}

#[test]
fn a_template_comes_into_a_pool_only_as_it_was_signed() {
    let Some(lab) = Lab::quick(&[]) else { return };
    lab.abd(&["template", "remove"]).ok();
    let name = lab.path("abd").display().to_string();
    lab.abd(&["template", "key", "--out", &name, "--no-password"]).ok();
    let (secret, public) = (format!("{name}.key"), format!("{name}.pub"));
    let disk = lab.path("disk.img").display().to_string();
    fs::write(&disk, vec![3; 1 << 20]).expect("written");
    let xva = lab.path("signed.xva").display().to_string();
    let built = lab.abd(&["template", "build", "--disk", &disk, "--out", &xva, "--sign", &secret]).ok();
    assert_eq!(built.answer()["signature"], format!("{xva}.minisig"));
    let verified = lab.abd(&["template", "verify", &xva, "--public-key", &public]).ok();
    let comment = verified.answer()["signed"]["comment"].as_str().expect("a comment").to_owned();
    assert!(comment.contains(built.answer()["digest"].as_str().expect("a digest")), "{comment}");

    let import = |file: &str| lab.abd(&["template", "import", file, "--public-key", &public]);
    let middle = flipped(&lab, &xva, "middle.xva", |size| size / 2);
    import(&middle).fails_with(7);
    import(&middle).says("is not what was signed");
    let signature = flipped(&lab, &xva, "signature.xva", |_| 0);
    fs::copy(&xva, &signature).expect("the file itself is whole");
    flip(&format!("{signature}.minisig"), |size| size / 2);
    import(&signature).fails_with(7);
    let unsigned = lab.path("unsigned.xva").display().to_string();
    fs::copy(&xva, &unsigned).expect("copied");
    import(&unsigned).fails_with(7);
    import(&unsigned).says("unsigned.xva.minisig");
    assert_eq!(lab.inventory()["VDI"], serde_json::json!([]), "nothing came into the pool");
    import(&xva).ok();
}

/// The release's own files, where the lab has them.
#[test]
fn a_flipped_bit_in_a_kernel_or_its_description_is_named() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let Some(image) = std::env::var_os("ABD_IMAGE_DIR") else {
        println!("skipped: ABD_IMAGE_DIR is not set");
        return;
    };
    for name in ["image.json", "abd.img", "vmlinuz", "initramfs.zst", "abd.cdx.json"] {
        fs::copy(Path::new(&image).join(name), lab.path(name)).expect("scripts/image makes it");
    }
    let name = lab.path("abd").display().to_string();
    lab.abd(&["template", "key", "--out", &name, "--no-password"]).ok();
    let (secret, public) = (format!("{name}.key"), format!("{name}.pub"));
    let description = lab.path("image.json").display().to_string();
    lab.abd(&["template", "sign", &description, "--key", &secret]).ok();
    let verify = || lab.abd(&["template", "verify", &description, "--public-key", &public]);
    verify().ok();
    let kernel = lab.path("vmlinuz").display().to_string();
    flip(&kernel, |size| size / 2);
    verify().fails_with(7);
    verify().says("vmlinuz is not the file that is described");
    flip(&kernel, |size| size / 2);
    flip(&description, |size| size / 2);
    verify().fails_with(7);
    verify().says("image.json is not what was signed");
}

#[test]
fn minisign_itself_takes_our_signatures() {
    let Some(lab) = Lab::quick(&[]) else { return };
    if Command::new("minisign").arg("-v").output().is_err() {
        println!("skipped: minisign is not installed");
        return;
    }
    let name = lab.path("abd").display().to_string();
    let key = lab.abd(&["template", "key", "--out", &name, "--no-password"]).ok();
    let file = lab.template();
    lab.abd(&["template", "sign", &file, "--key", &format!("{name}.key")]).ok();
    let by_text = ["-P".to_owned(), key.answer()["text"].as_str().expect("the key").to_owned()];
    let by_file = ["-p".to_owned(), format!("{name}.pub")];
    for given in [by_text, by_file] {
        let check =
            || Command::new("minisign").args(["-V", "-m", &file]).args(&given).output().expect("minisign");
        let output = check();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains("appliance template"));
        flip(&file, |size| size / 3);
        assert!(!check().status.success());
        flip(&file, |size| size / 3);
    }
}
