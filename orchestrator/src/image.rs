//! The files of an appliance image, as `scripts/image` makes them, and their description `image.json`.

use crate::error::{Error, Kind, Result, file_error};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};

/// The version of the description that this program knows.
const SCHEMA: u32 = 1;
/// A description is a few hundred bytes; what is larger is none.
const MAX_SIZE: u64 = 1 << 20;
const READ_SIZE: usize = 256 << 10;

/// What `image.json` says. Members that are not needed here are left out.
#[derive(Debug, Deserialize)]
pub struct Image {
    schema: u32,
    kernel: Kernel,
    init: Init,
    files: BTreeMap<String, Listed>,
}

#[derive(Debug, Deserialize)]
struct Kernel {
    version: String,
    #[serde(default)]
    debug: bool,
}

#[derive(Debug, Deserialize)]
struct Init {
    version: String,
}

#[derive(Debug, Deserialize)]
struct Listed {
    size: u64,
    sha256: String,
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let debug = if self.kernel.debug { " (for debugging, never for production)" } else { "" };
        let files = self.files.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        write!(
            f,
            "appliance image, version {}, kernel {}{debug}, {files}",
            self.init.version, self.kernel.version
        )
    }
}

/// Reads a description and checks every file that it lists, beside it.
///
/// # Errors
/// [`Kind::Template`] naming the file that is missing or another one.
pub fn check(path: &Path) -> Result<Image> {
    let unusable = |what: &str| {
        Error::new(Kind::Template, format!("{}: {what}", path.display()))
            .remedy("build the image again: scripts/image")
    };
    let mut text = String::new();
    let file = File::open(path).map_err(|error| file_error(Kind::Template, path, "read", error))?;
    file.take(MAX_SIZE)
        .read_to_string(&mut text)
        .map_err(|error| file_error(Kind::Template, path, "read", error))?;
    let image: Image = serde_json::from_str(&text)
        .map_err(|error| unusable("this is no description of an appliance image").because(error))?;
    if image.schema != SCHEMA {
        return Err(unusable(&format!("description {} is not known to this program", image.schema)));
    }
    if image.files.is_empty() {
        return Err(unusable("it lists no files"));
    }
    let directory = path.parent().unwrap_or(Path::new(""));
    for (name, listed) in &image.files {
        let mut parts = Path::new(name).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return Err(unusable(&format!("'{name}' is no file's name")));
        }
        let file = directory.join(name);
        if measure(&file)? != (listed.size, listed.sha256.to_ascii_lowercase()) {
            return Err(unusable(&format!("{} is not the file that is described", file.display())));
        }
    }
    Ok(image)
}

/// Size and SHA-256 of a file.
fn measure(path: &Path) -> Result<(u64, String)> {
    let failed = |error| file_error(Kind::Template, path, "read", error);
    let mut file = File::open(path).map_err(failed)?;
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; READ_SIZE]);
    loop {
        let count = file.read(&mut buffer).map_err(failed)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        size += count as u64;
    }
    Ok((size, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(directory: &Path, files: &str) -> std::path::PathBuf {
        let path = directory.join("image.json");
        let text = format!(
            r#"{{"schema": 1, "kernel": {{"version": "6.12", "debug": false, "key": "k"}},
            "init": {{"version": "0.1.0"}}, "files": {{{files}}}}}"#
        );
        std::fs::write(&path, text).expect("written");
        path
    }

    #[test]
    fn every_listed_file_is_checked() {
        let directory = tempfile::tempdir().expect("a directory");
        let kernel = directory.path().join("vmlinuz");
        std::fs::write(&kernel, "abc").expect("written");
        // From sha256sum.
        let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let path = describe(directory.path(), &format!(r#""vmlinuz": {{"size": 3, "sha256": "{sum}"}}"#));
        let image = check(&path).expect("as described");
        assert_eq!(image.to_string(), "appliance image, version 0.1.0, kernel 6.12, vmlinuz");
        std::fs::write(&kernel, "abd").expect("written");
        assert!(check(&path).expect_err("another").chain().contains("vmlinuz is not the file"));
        std::fs::remove_file(&kernel).expect("removed");
        assert!(check(&path).expect_err("none").chain().contains("vmlinuz"));
    }

    #[test]
    fn a_description_leads_nowhere_else() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["../vmlinuz", "/etc/passwd", "a/b", "..", ""] {
            let path = describe(directory.path(), &format!(r#""{name}": {{"size": 0, "sha256": "00"}}"#));
            assert!(check(&path).expect_err(name).chain().contains("no file's name"), "{name}");
        }
        let path = describe(directory.path(), "");
        assert!(check(&path).expect_err("empty").chain().contains("no files"));
        std::fs::write(&path, "{").expect("written");
        assert!(check(&path).expect_err("half").chain().contains("no description"));
    }
}
