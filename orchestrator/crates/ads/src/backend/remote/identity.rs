//! A key pair that is kept in a file: a machine's own, by which a server knows it, or a server's.

use crate::Error;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pin::Identity;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Larger files are no key: one takes 250 bytes.
const MAX_FILE: u64 = 64 << 10;
/// Digits in a line of a PEM file.
const LINE: usize = 64;

/// Where this machine's key is where an address does not name another file.
static USUAL: OnceLock<PathBuf> = OnceLock::new();

/// Says where this machine's key is. The first who says so is heeded: a program does it once, when it starts.
pub fn use_identity_file(path: PathBuf) {
    // Who comes later has the same process, and so the same place.
    let _ = USUAL.set(path);
}

/// The usual place of this machine's key.
pub(super) fn usual() -> Option<&'static Path> {
    USUAL.get().map(PathBuf::as_path)
}

/// Reads the key pair in a file (PKCS#8 in PEM, readable by its owner only), and makes one first where there is no file.
///
/// # Errors
/// [`Error::KeyFile`] naming the file.
pub fn identity_in(path: &Path) -> Result<Identity, Error> {
    let failed = |reason: String| Error::KeyFile { path: path.to_owned(), reason };
    match read(path) {
        Ok(der) => Identity::from_pkcs8(&der).map_err(|error| failed(crate::error::sentence(&error))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(path).map_err(|error| failed(error.to_string()))?;
            let der = read(path).map_err(|error| failed(error.to_string()))?;
            Identity::from_pkcs8(&der).map_err(|error| failed(crate::error::sentence(&error)))
        }
        Err(error) => Err(failed(error.to_string())),
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mode = file.metadata()?.mode();
    if mode & 0o077 != 0 {
        return Err(io::Error::other(format!(
            "others may read it (mode {:o}); run `chmod 600` on it, or remove it for a new key",
            mode & 0o777
        )));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text)?;
    let der = PrivatePkcs8KeyDer::from_pem_slice(&text)
        .map_err(|error| io::Error::other(format!("it holds no private key in PEM: {error}")))?;
    Ok(der.secret_pkcs8_der().to_vec())
}

/// Makes a key. Of two who do so at once one wins, and both use his.
fn make(path: &Path) -> io::Result<()> {
    let (_, der) = Identity::generate_kept().map_err(io::Error::other)?;
    let text = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in text.as_bytes().chunks(LINE) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(above)?;
    let part = above.join(format!(".key-{}", uuid::Uuid::new_v4()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(pem.as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(&part, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => File::open(above)?.sync_all(),
        }
    })();
    let removed = fs::remove_file(&part);
    written.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_for_its_owner_only_and_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("below/client.pem");
        let made: Vec<_> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..4).map(|_| scope.spawn(|| identity_in(&path).expect("a key"))).collect();
            makers.into_iter().map(|maker| maker.join().expect("no panic").fingerprint()).collect()
        });
        assert!(made.iter().all(|key| *key == made[0]), "{made:?}");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().expect("a directory")).expect("listed").count(), 1);
    }

    #[test]
    fn a_key_that_others_may_read_and_what_is_no_key_are_refused_and_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key.pem");
        identity_in(&path).expect("a key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("set");
        let error = identity_in(&path).expect_err("readable").to_string();
        assert!(error.contains("chmod 600") && error.contains("key.pem"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        fs::write(&path, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").expect("written");
        identity_in(&path).expect_err("no key");
        fs::write(&path, "").expect("written");
        identity_in(&path).expect_err("empty");
        assert_eq!(fs::read(&path).expect("there"), b"");
    }
}
