//! Signatures of what is built here and carried elsewhere: Ed25519 over BLAKE2b-512 in minisign's format, so that
//! `minisign -V` and `signify`-minded people can check them without us.
//!
//! A signature says who built a file, and its signed comment what the file is. It lies beside the file, as
//! `FILE.minisig`. Whether one is demanded depends on whether a public key is known: one that was built into this
//! program (`ABD_TEMPLATE_PUBLIC_KEY` at build time), or one that was given.

use crate::error::{Error, Kind, Result, file_error};
use minisign::{KeyPair, PublicKeyBox, SecretKeyBox, SignatureBox};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The public key that whoever built this program put into it: minisign's base64 text.
const BUILT_IN: Option<&str> = option_env!("ABD_TEMPLATE_PUBLIC_KEY");

/// Who signs: the key that signatures are checked with.
#[derive(Clone, Debug)]
pub struct PublicKey(minisign::PublicKey);

/// What a good signature says.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Signed {
    /// Id of the key, as `minisign` shows it.
    pub key_id: String,
    /// The comment that is signed along: what the file is.
    pub comment: String,
}

/// Where the signature of a file lies.
pub fn signature_path(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".minisig");
    name.into()
}

impl PublicKey {
    /// The key that is built in, if one is.
    ///
    /// # Errors
    /// [`Kind::Template`] where what was built in is no key.
    pub fn built_in() -> Result<Option<Self>> {
        BUILT_IN.filter(|text| !text.is_empty()).map(|text| parse(text, "that is built in")).transpose()
    }

    /// A key from a file that `abd template key` or `minisign -G` wrote, or from the base64 text itself.
    ///
    /// # Errors
    /// [`Kind::Usage`] where it is neither.
    pub fn read(file_or_text: &str) -> Result<Self> {
        // A key's text may well contain a slash, and no file is called like one.
        if let Ok(key) = minisign::PublicKey::from_base64(file_or_text.trim()) {
            return Ok(Self(key));
        }
        let path = Path::new(file_or_text);
        let text = std::fs::read_to_string(path).map_err(|error| {
            let error = file_error(Kind::Usage, path, "read", error);
            error.remedy("give the file that `abd template key` made, or the text in its last line")
        })?;
        parse(&text, &format!("in {file_or_text}"))
    }

    /// Its id, as `minisign` shows it.
    pub fn id(&self) -> String {
        key_id(self.0.keynum())
    }

    /// As text: what [`read`](Self::read) takes.
    pub fn text(&self) -> String {
        self.0.to_base64()
    }

    /// Checks the signature that lies beside a file, or in `signature`.
    ///
    /// # Errors
    /// [`Kind::Template`]: there is none, it is of another key, or the file or the comment is not what was signed.
    pub fn verify(&self, file: &Path, signature: Option<&Path>) -> Result<Signed> {
        let path = signature.map_or_else(|| signature_path(file), Path::to_owned);
        let text = std::fs::read_to_string(&path).map_err(|error| {
            let error = file_error(Kind::Template, &path, "read", error);
            error.remedy(format!("get the signature of {} from where the file came from", file.display()))
        })?;
        let refused = |what: String| {
            Error::new(Kind::Template, what)
                .remedy("do not use the file; get it and its signature again from somebody you trust")
        };
        let signature = SignatureBox::from_string(&text)
            .map_err(|error| refused(format!("{} is no signature", path.display())).because(error))?;
        // Minisign's signatures without a comment that is signed are of its first version; ours all have one.
        let comment = signature
            .trusted_comment()
            .map_err(|error| refused(format!("{} has no signed comment", path.display())).because(error))?;
        if signature.keynum() != self.0.keynum() {
            return Err(refused(format!(
                "{} was signed with the key {}, not with {}",
                file.display(),
                key_id(signature.keynum()),
                self.id()
            )));
        }
        let data = File::open(file).map_err(|error| file_error(Kind::Template, file, "read", error))?;
        minisign::verify(&self.0, &signature, BufReader::new(data), true, false, false)
            .map_err(|error| refused(format!("{} is not what was signed", file.display())).because(error))?;
        Ok(Signed { key_id: self.id(), comment })
    }
}

/// Minisign's way to write a key's number: a little-endian integer in hexadecimal.
fn key_id(number: &[u8]) -> String {
    number.iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

fn parse(text: &str, which: &str) -> Result<PublicKey> {
    let text = text.trim();
    let key = match text.lines().count() {
        0 | 1 => minisign::PublicKey::from_base64(text),
        _ => PublicKeyBox::from_string(text).and_then(PublicKeyBox::into_public_key),
    };
    key.map(PublicKey).map_err(|error| {
        Error::new(Kind::Usage, format!("the public key {which} is none of minisign's"))
            .because(error)
            .remedy("make a pair with `abd template key`")
    })
}

/// How a secret key is kept.
#[derive(Clone)]
pub enum Protection {
    /// As it is, for machines that sign with nobody there.
    None,
    /// Encrypted with this password.
    Password(String),
    /// Encrypted with a password that is asked for at the terminal.
    Ask,
}

/// Makes a pair of keys. The secret one is for its owner's eyes.
///
/// # Errors
/// [`Kind::Usage`] where a file is there already or cannot be written.
pub fn generate(secret: &Path, public: &Path, protection: Protection) -> Result<PublicKey> {
    let failed = |error| Error::new(Kind::Failed, "cannot make a key").because(error);
    let pair = match protection {
        Protection::None => KeyPair::generate_unencrypted_keypair(),
        Protection::Password(password) => KeyPair::generate_encrypted_keypair(Some(password)),
        Protection::Ask => KeyPair::generate_encrypted_keypair(None),
    };
    let KeyPair { pk, sk } = pair.map_err(failed)?;
    let key = PublicKey(pk);
    let about = format!("abd secret key {}", key.id());
    create(secret, 0o600, &sk.to_box(Some(&about)).map_err(failed)?.to_string())?;
    create(public, 0o644, &key.0.to_box().map_err(failed)?.to_string())?;
    Ok(key)
}

/// Writes a file that must not be there: a key that is overwritten is lost.
fn create(path: &Path, mode: u32, text: &str) -> Result<()> {
    let failed = |error| file_error(Kind::Usage, path, "write", error);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

/// Signs a file; gives where the signature lies. `password` is asked for where the key has one and none is given.
///
/// # Errors
/// [`Kind::Usage`] for a key that cannot be used, or a file that cannot be read or written.
pub fn sign(file: &Path, secret: &Path, password: Option<String>, comment: &str) -> Result<PathBuf> {
    let text =
        std::fs::read_to_string(secret).map_err(|error| file_error(Kind::Usage, secret, "read", error))?;
    let unusable = |error| {
        Error::new(Kind::Usage, format!("the key in {} cannot be used", secret.display()))
            .because(error)
            .remedy("check the password; `abd template key` makes a new pair")
    };
    let open = || SecretKeyBox::from_string(&text);
    let key = match open().and_then(SecretKeyBox::into_unencrypted_secret_key) {
        Ok(key) => key,
        Err(_) => open().and_then(|sealed| sealed.into_secret_key(password)).map_err(unusable)?,
    };
    let public = minisign::PublicKey::from_secret_key(&key).map_err(unusable)?;
    let data = File::open(file).map_err(|error| file_error(Kind::Usage, file, "read", error))?;
    let untrusted = format!("signature by abd key {}", key_id(public.keynum()));
    let signed = minisign::sign(Some(&public), &key, BufReader::new(data), Some(comment), Some(&untrusted))
        .map_err(unusable)?;
    let path = signature_path(file);
    let part = path.with_extension("minisig.part");
    let failed = |error| file_error(Kind::Usage, &path, "write", error);
    std::fs::write(&part, signed.into_string()).map_err(failed)?;
    std::fs::rename(&part, &path).map_err(failed)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        directory: tempfile::TempDir,
        key: PublicKey,
    }

    impl Bench {
        fn new(password: Option<&str>) -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let path = |name: &str| directory.path().join(name);
            std::fs::write(path("file"), vec![7; 100_000]).expect("written");
            let protection = password.map_or(Protection::None, |text| Protection::Password(text.into()));
            let key = generate(&path("secret"), &path("public"), protection).expect("a pair");
            sign(&path("file"), &path("secret"), password.map(str::to_owned), "what it is").expect("signed");
            Self { directory, key }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn verify(&self) -> Result<Signed> {
            self.key.verify(&self.path("file"), None)
        }
    }

    #[test]
    fn what_was_signed_is_told_by_the_key_from_its_file_and_from_its_text() {
        let bench = Bench::new(None);
        assert_eq!(bench.verify().expect("good").comment, "what it is");
        let file = std::fs::read_to_string(bench.path("public")).expect("text");
        let text = file.lines().nth(1).expect("the key's line");
        for given in [bench.path("public").to_str().expect("ours"), text] {
            let key = PublicKey::read(given).expect("a key");
            assert_eq!(key.verify(&bench.path("file"), None).expect("good").key_id, bench.key.id());
        }
        assert!(file.contains(&bench.key.id()), "minisign's own name for it: {file}");
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused() {
        let bench = Bench::new(None);
        for name in ["file", "file.minisig"] {
            let whole = std::fs::read(bench.path(name)).expect("bytes");
            // The first line of a signature is for people, and not signed.
            let from =
                if name == "file" { 0 } else { whole.iter().position(|byte| *byte == b'\n').expect("lines") };
            for at in (from..whole.len()).step_by(if name == "file" { 9_999 } else { 1 }) {
                for bit in [0, 5] {
                    let mut flipped = whole.clone();
                    flipped[at] ^= 1 << bit;
                    std::fs::write(bench.path(name), &flipped).expect("written");
                    if let Ok(signed) = bench.verify() {
                        // Not a change: the end of the last line.
                        assert_eq!(
                            (signed.comment.as_str(), at + 1),
                            ("what it is", whole.len()),
                            "{name} at {at}"
                        );
                    }
                }
            }
            std::fs::write(bench.path(name), &whole).expect("written");
        }
        bench.verify().expect("as it was");
    }

    #[test]
    fn another_key_and_a_missing_signature_are_named() {
        let (bench, other) = (Bench::new(None), Bench::new(None));
        let error = other.key.verify(&bench.path("file"), None).expect_err("another key");
        assert!(error.chain().contains(&bench.key.id()) && error.chain().contains(&other.key.id()));
        std::fs::remove_file(bench.path("file.minisig")).expect("removed");
        assert!(bench.verify().expect_err("none").chain().contains("file.minisig"));
    }

    #[test]
    fn a_key_with_a_password_needs_it_and_no_key_is_overwritten() {
        let bench = Bench::new(Some("secret"));
        bench.verify().expect("good");
        let file = bench.path("file");
        let wrong =
            sign(&file, &bench.path("secret"), Some("wrong".into()), "x").expect_err("wrong password");
        assert!(wrong.chain().contains("cannot be used"), "{}", wrong.chain());
        let again =
            generate(&bench.path("secret"), &bench.path("other"), Protection::None).expect_err("it is there");
        assert!(again.chain().contains("secret") && !bench.path("other").exists(), "{}", again.chain());
    }
}
