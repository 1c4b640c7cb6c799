//! Encryption: the store's master key, and what is made of it.
//!
//! ```text
//! master key   32 random bytes, one for each store
//!   block id key      names blocks, so that nobody else can tell from a name what a block holds
//!   check             32 bytes in config.json: a wrong key is told from damage
//!   pack key          of 32 random bytes for each pack, the salt: encrypts that pack's blocks
//!   document key      of 32 random bytes for each restore point: encrypts what it says
//! ```
//! All of them are derived with BLAKE3, each under a context of its own.
//!
//! # Why no key meets a nonce twice
//!
//! A pack key encrypts with the nonces 0, 1, 2 and so on, one for each block; the only thing that encrypts with it is the
//! [`PackSeal`] that drew its salt. A `PackSeal` cannot be copied, hands out each nonce once, and stops before the counter
//! starts again. No other program can have the same pack key: it would have to draw the same 32 bytes by chance. What
//! moves blocks to other packs ([`PackWriter::moving`](crate::PackWriter::moving)) has no key at all: it copies what is
//! encrypted with its salt and its nonce. A document's key encrypts one document, under the nonce 0.

use crate::{Codec, Error};
use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use std::fmt;
use zeroize::Zeroizing;

/// Contexts of key derivation. They are part of the format and never change. Each cipher has keys of its own: what is known
/// of a key in one says nothing about the other.
const BLOCK_CONTEXT: &str = "abd 2026-11 secret block id";
const CHECK_CONTEXT: &str = "abd 2026-11 master key check";
const AES_CONTEXT: &str = "abd 2026-11 pack key AES-256-GCM";
const CHACHA_CONTEXT: &str = "abd 2026-11 pack key ChaCha20-Poly1305";
const DOCUMENT_CONTEXT: &str = "abd 2026-11 document key ChaCha20-Poly1305";

/// Bytes that encryption adds to a block or a document.
pub const TAG_SIZE: usize = 16;
/// Bytes of a salt.
pub const KEY_SALT_SIZE: usize = 32;
/// Nonces of one pack key: as many as three bytes of an index entry can count.
pub(crate) const MAX_COUNTER: u32 = (1 << 24) - 1;
/// What is authenticated with a block beside its bytes.
const ABOUT_SIZE: usize = 32 + 4 + 1;

/// How blocks are encrypted. The byte of a pack's header; 0 is not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Cipher {
    /// AES-256-GCM.
    Aes256Gcm = 1,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305 = 2,
}

impl Cipher {
    /// From the byte of a pack or a message.
    ///
    /// # Errors
    /// [`Error::Cipher`] for a number of a later version.
    pub fn from_byte(code: u8) -> Result<Self, Error> {
        match code {
            1 => Ok(Self::Aes256Gcm),
            2 => Ok(Self::ChaCha20Poly1305),
            _ => Err(Error::Cipher { code }),
        }
    }

    /// What this processor does fast: AES-256-GCM with instructions for it, ChaCha20-Poly1305 without, where AES in
    /// software would be several times slower.
    pub fn fastest() -> Self {
        match has_aes() {
            true => Self::Aes256Gcm,
            false => Self::ChaCha20Poly1305,
        }
    }

    fn context(self) -> &'static str {
        match self {
            Self::Aes256Gcm => AES_CONTEXT,
            Self::ChaCha20Poly1305 => CHACHA_CONTEXT,
        }
    }

    fn key(self, bytes: &[u8; 32]) -> LessSafeKey {
        let algorithm = match self {
            Self::Aes256Gcm => &AES_256_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        LessSafeKey::new(UnboundKey::new(algorithm, bytes).expect("both ciphers take 32 bytes"))
    }
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::is_x86_feature_detected!("aes") && std::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn has_aes() -> bool {
    false
}

/// How one block was encrypted: all that its key and nonce are made of, but for the master key. No secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// With which cipher.
    pub cipher: Cipher,
    /// What its pack key was made of.
    pub salt: [u8; KEY_SALT_SIZE],
    /// The nonce, below 2^24.
    pub counter: u32,
}

/// The key of an encrypted store. Wiped from memory when it is dropped, and never shown.
#[derive(Clone)]
pub struct MasterKey(Zeroizing<[u8; 32]>);

impl MasterKey {
    /// A new one.
    ///
    /// # Errors
    /// [`Error::NoRandomness`].
    pub fn generate() -> Result<Self, Error> {
        Ok(Self(Zeroizing::new(random()?)))
    }

    /// The key of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret bytes: to be wrapped, sent within TLS or printed as a recovery kit, and for nothing else.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What tells a wrong key from damage. No secret.
    pub fn check(&self) -> [u8; 32] {
        blake3::derive_key(CHECK_CONTEXT, &*self.0)
    }

    pub(crate) fn block_id_key(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key(BLOCK_CONTEXT, &*self.0))
    }

    /// What encrypts the blocks of one pack.
    ///
    /// # Errors
    /// [`Error::NoRandomness`].
    pub fn pack_seal(&self, cipher: Cipher) -> Result<PackSeal, Error> {
        Ok(self.salted_seal(cipher, random()?))
    }

    /// With a salt that is given; a salt must never be given twice.
    pub(crate) fn salted_seal(&self, cipher: Cipher, salt: [u8; KEY_SALT_SIZE]) -> PackSeal {
        let key = self.derived(cipher.context(), &salt);
        PackSeal { cipher, salt, key: cipher.key(&key), next: 0 }
    }

    /// Opens a block in place; gives its bytes without the tag.
    pub(crate) fn open<'a>(
        &self,
        lock: Lock,
        about: &About,
        sealed: &'a mut [u8],
    ) -> Result<&'a [u8], Error> {
        let key = lock.cipher.key(&self.derived(lock.cipher.context(), &lock.salt));
        let opened = key.open_in_place(nonce(lock.counter), Aad::from(about.0), sealed);
        opened.map(|plain| &*plain).map_err(|_| Error::Forged)
    }

    /// Encrypts a document under a key of its own; `about` is authenticated with it. Gives the salt and the bytes.
    ///
    /// # Errors
    /// [`Error::NoRandomness`].
    pub fn seal_document(&self, plain: &[u8], about: &[u8]) -> Result<([u8; KEY_SALT_SIZE], Vec<u8>), Error> {
        let salt = random()?;
        Ok((salt, self.salted_document(salt, plain, about)))
    }

    fn salted_document(&self, salt: [u8; KEY_SALT_SIZE], plain: &[u8], about: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(plain.len() + TAG_SIZE);
        bytes.extend_from_slice(plain);
        let key = Cipher::ChaCha20Poly1305.key(&self.derived(DOCUMENT_CONTEXT, &salt));
        let sealed = key.seal_in_place_append_tag(nonce(0), Aad::from(about), &mut bytes);
        sealed.expect("a document is shorter than the cipher's limit of 256 GiB");
        bytes
    }

    /// Opens a document.
    ///
    /// # Errors
    /// [`Error::Forged`].
    pub fn open_document(
        &self,
        salt: &[u8; KEY_SALT_SIZE],
        sealed: &[u8],
        about: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let key = Cipher::ChaCha20Poly1305.key(&self.derived(DOCUMENT_CONTEXT, salt));
        let opened = key.open_in_place(nonce(0), Aad::from(about), &mut bytes);
        let size = opened.map_err(|_| Error::Forged)?.len();
        bytes.truncate(size);
        Ok(bytes)
    }

    fn derived(&self, context: &str, salt: &[u8; KEY_SALT_SIZE]) -> Zeroizing<[u8; 32]> {
        let mut material = Zeroizing::new([0; 64]);
        material[..32].copy_from_slice(&*self.0);
        material[32..].copy_from_slice(salt);
        Zeroizing::new(blake3::derive_key(context, &*material))
    }
}

/// In constant time: who compares a key with a guess must not learn from how long it takes.
impl PartialEq for MasterKey {
    fn eq(&self, other: &Self) -> bool {
        blake3::Hash::from_bytes(self.check()) == blake3::Hash::from_bytes(other.check())
    }
}

impl Eq for MasterKey {}

/// Never shows the key.
impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

/// Encrypts the blocks of one pack, each under the next nonce of a key that is its own.
pub struct PackSeal {
    cipher: Cipher,
    salt: [u8; KEY_SALT_SIZE],
    key: LessSafeKey,
    next: u32,
}

impl PackSeal {
    pub(crate) fn cipher(&self) -> Cipher {
        self.cipher
    }

    pub(crate) fn salt(&self) -> [u8; KEY_SALT_SIZE] {
        self.salt
    }

    /// Whether there is a nonce for another block.
    pub(crate) fn has_nonce(&self) -> bool {
        self.next <= MAX_COUNTER
    }

    /// Encrypts in place; gives the tag that belongs behind it, and the nonce's number.
    ///
    /// # Panics
    /// Where the nonces are used up.
    pub(crate) fn seal(&mut self, about: &About, plain: &mut [u8]) -> ([u8; TAG_SIZE], u32) {
        assert!(self.has_nonce(), "has_room was asked first");
        let counter = self.next;
        self.next += 1;
        let tag = self.key.seal_in_place_separate_tag(nonce(counter), Aad::from(about.0), plain);
        let tag = tag.expect("a block is shorter than the cipher's limit of 64 GiB");
        (tag.as_ref().try_into().expect("both ciphers have tags of 16 bytes"), counter)
    }
}

/// Never shows the key.
impl fmt::Debug for PackSeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackSeal({:?}, ..)", self.cipher)
    }
}

/// What is authenticated with a block, so that no other block can be put in its place: its id, size and codec.
pub(crate) struct About([u8; ABOUT_SIZE]);

impl About {
    pub(crate) fn new(id: &[u8; 32], plain_size: u32, codec: Codec) -> Self {
        let mut bytes = [0; ABOUT_SIZE];
        bytes[..32].copy_from_slice(id);
        bytes[32..36].copy_from_slice(&plain_size.to_le_bytes());
        bytes[36] = codec as u8;
        Self(bytes)
    }
}

/// Twelve bytes, little-endian.
fn nonce(counter: u32) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[..4].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn random() -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::NoRandomness)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn about(id: u8) -> About {
        About::new(&[id; 32], 5, Codec::Stored)
    }

    /// Pins every derivation and both ciphers: these bytes were made with Python's `blake3` and `cryptography` packages.
    #[test]
    fn keys_and_ciphers_are_those_of_independent_programs() {
        let master = MasterKey::new([7; 32]);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(&master.check()), GOLDEN_CHECK);
        assert_eq!(hex(&*master.block_id_key()), GOLDEN_BLOCK_KEY);
        for (cipher, expected) in [(Cipher::Aes256Gcm, GOLDEN_AES), (Cipher::ChaCha20Poly1305, GOLDEN_CHACHA)]
        {
            let mut seal = master.salted_seal(cipher, [9; 32]);
            seal.next = 0x01_02_03;
            let mut bytes = *b"plain";
            let (tag, counter) = seal.seal(&about(1), &mut bytes);
            assert_eq!((hex(&bytes) + &hex(&tag), counter), (expected.to_owned(), 0x01_02_03), "{cipher:?}");
        }
        assert_eq!(hex(&master.salted_document([9; 32], b"plain", b"about")), GOLDEN_DOCUMENT);
    }
    const GOLDEN_CHECK: &str = "4cde2443e6c5b8a43709ebb753141c605357489810c47a6b29c8159cb740f15a";
    const GOLDEN_BLOCK_KEY: &str = "6b51be248ca230db2a467b09a406d13b943d5915e5832781aa18d79c9f4e9ad8";
    const GOLDEN_AES: &str = "d2b27072d188a5c742cd0b6f98cc194de9fbcbe6f1";
    const GOLDEN_CHACHA: &str = "12f9411277456c7189d1bee646afedd69e42c1e613";
    const GOLDEN_DOCUMENT: &str = "2bf4ccc968f475a3292b0ac51e83520c9f84908ca7";

    #[test]
    fn whatever_is_changed_about_a_block_it_does_not_open() {
        let master = MasterKey::new([7; 32]);
        for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
            let mut seal = master.pack_seal(cipher).expect("randomness");
            let mut bytes = b"plain".to_vec();
            let (tag, counter) = seal.seal(&about(1), &mut bytes);
            bytes.extend(tag);
            let lock = Lock { cipher, salt: seal.salt(), counter };
            let open = |master: &MasterKey, lock: Lock, about: &About, bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                master.open(lock, about, &mut bytes).map(<[u8]>::to_vec)
            };
            assert_eq!(open(&master, lock, &about(1), &bytes), Ok(b"plain".to_vec()));
            for at in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 1;
                assert_eq!(open(&master, lock, &about(1), &bad), Err(Error::Forged), "byte {at}");
            }
            let other =
                if cipher == Cipher::Aes256Gcm { Cipher::ChaCha20Poly1305 } else { Cipher::Aes256Gcm };
            let forged = Err(Error::Forged);
            assert_eq!(open(&MasterKey::new([8; 32]), lock, &about(1), &bytes), forged);
            assert_eq!(open(&master, Lock { cipher: other, ..lock }, &about(1), &bytes), forged);
            assert_eq!(open(&master, Lock { counter: 1, ..lock }, &about(1), &bytes), forged);
            assert_eq!(open(&master, Lock { salt: [0; 32], ..lock }, &about(1), &bytes), forged);
            for about in
                [about(2), About::new(&[1; 32], 6, Codec::Stored), About::new(&[1; 32], 5, Codec::Zstd)]
            {
                assert_eq!(open(&master, lock, &about, &bytes), forged);
            }
            assert_eq!(open(&master, lock, &about(1), &bytes[..3]), forged);
        }
    }

    #[test]
    fn no_two_blocks_have_the_same_key_and_nonce() {
        let master = MasterKey::new([7; 32]);
        let mut met = HashSet::new();
        for _ in 0..50 {
            let mut seal = master.pack_seal(Cipher::fastest()).expect("randomness");
            for _ in 0..50 {
                let (_, counter) = seal.seal(&about(1), &mut [0; 5]);
                assert!(met.insert((seal.salt(), counter)));
            }
        }
    }

    #[test]
    fn a_pack_key_ends_before_its_counter_starts_again() {
        let mut seal = MasterKey::new([7; 32]).salted_seal(Cipher::Aes256Gcm, [9; 32]);
        seal.next = MAX_COUNTER;
        assert_eq!(seal.seal(&about(1), &mut []).1, MAX_COUNTER);
        assert!(!seal.has_nonce());
        let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| seal.seal(&about(1), &mut [])));
        assert!(again.is_err());
    }

    #[test]
    fn documents_open_only_whole_and_in_their_place() {
        let master = MasterKey::new([7; 32]);
        let (salt, sealed) = master.seal_document(b"what it says", b"here").expect("randomness");
        assert_ne!(master.seal_document(b"what it says", b"here").expect("randomness").1, sealed);
        assert_eq!(master.open_document(&salt, &sealed, b"here").as_deref(), Ok(&b"what it says".to_vec()));
        assert_eq!(master.open_document(&salt, &sealed, b"there"), Err(Error::Forged));
        assert_eq!(master.open_document(&[0; 32], &sealed, b"here"), Err(Error::Forged));
        assert_eq!(MasterKey::new([8; 32]).open_document(&salt, &sealed, b"here"), Err(Error::Forged));
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 0x80;
            assert_eq!(master.open_document(&salt, &bad, b"here"), Err(Error::Forged));
            assert_eq!(master.open_document(&salt, &sealed[..at], b"here"), Err(Error::Forged));
        }
    }

    #[test]
    fn keys_are_never_shown() {
        let master = MasterKey::new([0xab; 32]);
        let seal = master.pack_seal(Cipher::fastest()).expect("randomness");
        let shown = format!("{master:?} {seal:?}");
        assert!(!shown.contains("ab") && !shown.contains("171"), "{shown}");
    }
}
