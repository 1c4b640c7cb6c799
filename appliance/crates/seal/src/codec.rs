//! Sealing: a block's plain bytes to stored bytes and back.

use crate::secret::About;
use crate::{BlockId, Error, IdKey, Lock};
use blocks::BLOCK_SIZE;
use std::fmt;
use zeroize::Zeroize;

/// zstd level used unless the job says otherwise. Measured by `what_each_level_costs_and_saves` on the 64 KiB blocks of a
/// 4 GiB file system of programs, libraries, text and media, against level 1: level 3 makes them 3 % smaller and costs
/// 57 % more processor time, level 2 2 % and 15 %; level -1 saves 8 % of the time and makes them 8 % larger, level -5 26 %
/// and 26 %. A quiet core was seen to compress 766 MB/s at level 1.
pub const DEFAULT_LEVEL: i32 = 1;

/// Largest plain size of a sealed block; a tree node is smaller.
const MAX_PLAIN_SIZE: usize = BLOCK_SIZE as usize;

/// Bytes that [`Sealer::seal_into`] may need on the way: what zstd can make of a block at worst, and some.
pub const SEAL_ROOM: usize = MAX_PLAIN_SIZE + (1 << 10);

/// How stored bytes become plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Stored = 0,
    /// One zstd frame.
    Zstd = 1,
}

impl Codec {
    /// From the byte in a pack's index or a message.
    ///
    /// # Errors
    /// [`Error::Codec`] for a number of a later version.
    pub fn from_byte(code: u8) -> Result<Self, Error> {
        match code {
            0 => Ok(Self::Stored),
            1 => Ok(Self::Zstd),
            _ => Err(Error::Codec { code }),
        }
    }
}

/// Stored bytes of one block, borrowed from the [`Sealer`] or from the plain bytes.
#[derive(Clone, Copy, Debug)]
pub struct Sealed<'a> {
    /// How to open them, once they are decrypted.
    pub codec: Codec,
    /// How they are encrypted; none where they are not.
    pub lock: Option<Lock>,
    /// The bytes.
    pub bytes: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Bytes that are not encrypted.
    pub fn clear(codec: Codec, bytes: &'a [u8]) -> Self {
        Self { codec, lock: None, bytes }
    }
}

/// Compresses blocks. One per thread; its buffers are reused.
///
/// It does not open again what it compressed: the store opens every block and compares its id before it says that it
/// has the pack, and until then the disk has the original. That is the same proof, by other memory; made twice it adds
/// more than a third to what compressing costs.
pub struct Sealer {
    context: zstd::bulk::Compressor<'static>,
    compressed: Box<[u8]>,
}

/// Opens sealed blocks and proves them. One per thread; its buffers are reused, and wiped where they held what was
/// encrypted.
pub struct Opener {
    context: zstd::bulk::Decompressor<'static>,
    plain: Vec<u8>,
    /// Decrypted, not yet decompressed.
    decrypted: Vec<u8>,
}

impl Sealer {
    /// A sealer that compresses at a zstd level (-7 to 22).
    ///
    /// # Errors
    /// [`Error::Sealed`] where zstd cannot make a context (no memory, impossible level).
    pub fn new(level: i32) -> Result<Self, Error> {
        Ok(Self {
            context: zstd::bulk::Compressor::new(level).map_err(zstd_error)?,
            compressed: vec![0; SEAL_ROOM].into_boxed_slice(),
        })
    }

    /// Seals up to 64 KiB. What compression does not make smaller is stored as it is.
    ///
    /// # Errors
    /// [`Error::Sealed`] with what zstd says.
    ///
    /// # Panics
    /// On more than 64 KiB.
    pub fn seal<'a>(&'a mut self, plain: &'a [u8]) -> Result<Sealed<'a>, Error> {
        let size = compress(&mut self.context, plain, &mut self.compressed)?;
        Ok(match size {
            Some(size) => Sealed::clear(Codec::Zstd, &self.compressed[..size]),
            None => Sealed::clear(Codec::Stored, plain),
        })
    }

    /// [`seal`](Self::seal) straight to where the bytes shall stand: the start of `room`. Gives how they are
    /// to be opened, and how many there are.
    ///
    /// # Errors
    /// As [`seal`](Self::seal).
    ///
    /// # Panics
    /// On more than 64 KiB, or less room than [`SEAL_ROOM`].
    pub fn seal_into(&mut self, plain: &[u8], room: &mut [u8]) -> Result<(Codec, usize), Error> {
        assert!(room.len() >= SEAL_ROOM, "there is room for the worst case");
        match compress(&mut self.context, plain, room)? {
            Some(size) => Ok((Codec::Zstd, size)),
            None => {
                room[..plain.len()].copy_from_slice(plain);
                Ok((Codec::Stored, plain.len()))
            }
        }
    }
}

/// Compresses into `room`; `None` where that gains nothing.
fn compress(
    context: &mut zstd::bulk::Compressor<'static>,
    plain: &[u8],
    room: &mut [u8],
) -> Result<Option<usize>, Error> {
    assert!(plain.len() <= MAX_PLAIN_SIZE, "a block is at most 64 KiB");
    let size = context.compress_to_buffer(plain, room).map_err(zstd_error)?;
    Ok((size < plain.len()).then_some(size))
}

impl Opener {
    /// A fresh opener.
    ///
    /// # Errors
    /// [`Error::Sealed`] where zstd cannot make a context.
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            context: zstd::bulk::Decompressor::new().map_err(zstd_error)?,
            plain: Vec::with_capacity(MAX_PLAIN_SIZE),
            decrypted: Vec::new(),
        })
    }

    /// Opens sealed bytes that must have exactly `plain_size` bytes; proves nothing about their content.
    ///
    /// # Errors
    /// [`Error::Sealed`] if they do not decompress to that size, or the size is over 64 KiB; [`Error::Locked`] if they are
    /// encrypted: only blocks are, and they are opened with [`open_block`](Self::open_block).
    pub fn open<'a>(&'a mut self, sealed: Sealed<'a>, plain_size: usize) -> Result<&'a [u8], Error> {
        if sealed.lock.is_some() {
            return Err(Error::Locked);
        }
        decompress(&mut self.context, &mut self.plain, sealed, plain_size)
    }

    /// Opens sealed bytes and checks that they are the block `id`.
    ///
    /// # Errors
    /// [`Error::BlockId`] naming both ids, [`Error::Forged`] where the key does not open them, [`Error::Locked`] where there
    /// is no key, or what [`open`](Self::open) says.
    pub fn open_block<'a>(
        &'a mut self,
        key: &IdKey,
        id: BlockId,
        sealed: Sealed<'a>,
        plain_size: usize,
    ) -> Result<&'a [u8], Error> {
        let sealed = decrypt(&mut self.decrypted, key, id, sealed, plain_size)?;
        let plain = decompress(&mut self.context, &mut self.plain, sealed, plain_size)?;
        prove(key, id, plain)?;
        Ok(plain)
    }

    /// [`open_block`](Self::open_block) straight to where the plain bytes shall stand: exactly `plain`. On an error it
    /// holds anything.
    ///
    /// # Errors
    /// As [`open_block`](Self::open_block).
    pub fn open_block_into(
        &mut self,
        key: &IdKey,
        id: BlockId,
        sealed: Sealed<'_>,
        plain: &mut [u8],
    ) -> Result<(), Error> {
        let sealed = decrypt(&mut self.decrypted, key, id, sealed, plain.len())?;
        match sealed.codec {
            Codec::Zstd if plain.len() <= MAX_PLAIN_SIZE => {
                let size = self.context.decompress_to_buffer(sealed.bytes, plain).map_err(zstd_error)?;
                if size != plain.len() {
                    let reason = format!("{size} bytes instead of {}", plain.len());
                    return Err(Error::Sealed { reason });
                }
            }
            _ => {
                let size = plain.len();
                plain.copy_from_slice(decompress(&mut self.context, &mut self.plain, sealed, size)?);
            }
        }
        prove(key, id, plain)
    }
}

/// What was decrypted does not outlive its use.
impl Drop for Opener {
    fn drop(&mut self) {
        if !self.decrypted.is_empty() {
            self.decrypted.zeroize();
            self.plain.zeroize();
        }
    }
}

/// What is encrypted in the clear, in `room`; anything else as it is.
fn decrypt<'a>(
    room: &'a mut Vec<u8>,
    key: &IdKey,
    id: BlockId,
    sealed: Sealed<'a>,
    plain_size: usize,
) -> Result<Sealed<'a>, Error> {
    let Some(lock) = sealed.lock else { return Ok(sealed) };
    let master = key.master().ok_or(Error::Locked)?;
    if sealed.bytes.len() > SEAL_ROOM {
        let reason = format!("{} bytes are more than a block is sealed to", sealed.bytes.len());
        return Err(Error::Sealed { reason });
    }
    let plain_size = u32::try_from(plain_size)
        .map_err(|_| Error::Sealed { reason: format!("plain size {plain_size} is over 64 KiB") })?;
    room.clear();
    room.extend_from_slice(sealed.bytes);
    let about = About::new(id.as_bytes(), plain_size, sealed.codec);
    let bytes = master.open(lock, &about, room)?;
    Ok(Sealed::clear(sealed.codec, bytes))
}

fn decompress<'a>(
    context: &mut zstd::bulk::Decompressor<'static>,
    room: &'a mut Vec<u8>,
    sealed: Sealed<'a>,
    plain_size: usize,
) -> Result<&'a [u8], Error> {
    if plain_size > MAX_PLAIN_SIZE {
        return Err(Error::Sealed { reason: format!("plain size {plain_size} is over 64 KiB") });
    }
    let plain = match sealed.codec {
        Codec::Stored => sealed.bytes,
        Codec::Zstd => {
            room.clear();
            context.decompress_to_buffer(sealed.bytes, room).map_err(zstd_error)?;
            room
        }
    };
    if plain.len() != plain_size {
        return Err(Error::Sealed { reason: format!("{} bytes instead of {plain_size}", plain.len()) });
    }
    Ok(plain)
}

fn prove(key: &IdKey, id: BlockId, plain: &[u8]) -> Result<(), Error> {
    if key.is_locked() {
        return Err(Error::Locked);
    }
    let found = key.block_id(plain);
    if found != id {
        return Err(Error::BlockId { expected: id, found });
    }
    Ok(())
}

/// Whether every byte is zero. Folds 512 bytes at a time, which the compiler turns into wide compares.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut chunks = bytes.chunks_exact(512);
    let whole = chunks.all(|chunk| {
        let mut any = 0u64;
        for eight in chunk.chunks_exact(8) {
            any |= u64::from_ne_bytes([
                eight[0], eight[1], eight[2], eight[3], eight[4], eight[5], eight[6], eight[7],
            ]);
        }
        any == 0
    });
    whole && bytes[bytes.len() / 512 * 512..].iter().all(|byte| *byte == 0)
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer")
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener")
    }
}

fn zstd_error(error: std::io::Error) -> Error {
    Error::Sealed { reason: format!("zstd: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_flipped_bit_is_a_named_error() {
        let key = IdKey::new(&[1; 32]);
        let plain = vec![5; 65536];
        let id = key.block_id(&plain);
        let mut sealer = Sealer::new(DEFAULT_LEVEL).expect("sealer");
        let sealed = sealer.seal(&plain).expect("seal");
        assert_eq!(sealed.codec, Codec::Zstd);
        let good = sealed.bytes.to_vec();
        let mut opener = Opener::new().expect("opener");
        for byte in 0..good.len() {
            let mut bad = good.clone();
            bad[byte] ^= 1;
            let result = opener.open_block(&key, id, Sealed::clear(Codec::Zstd, &bad), 65536);
            if let Ok(opened) = result {
                assert_eq!(opened, plain, "a flip that zstd ignores must not change the block");
            }
        }
        let stored = Sealed::clear(Codec::Stored, &[6; 65536]);
        let error = opener.open_block(&key, id, stored, 65536).expect_err("other bytes");
        assert!(matches!(error, Error::BlockId { expected, .. } if expected == id));
    }

    #[test]
    fn zero_test_sees_a_single_bit_anywhere() {
        for size in [0, 1, 511, 512, 513, 4096, 65536] {
            let mut bytes = vec![0; size];
            assert!(is_zero(&bytes));
            for at in [0, size / 2, size.saturating_sub(1)].into_iter().filter(|at| *at < size) {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "size {size} at {at}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn the_worst_case_fits_the_room() {
        assert!(zstd::zstd_safe::compress_bound(MAX_PLAIN_SIZE) <= SEAL_ROOM);
    }

    #[test]
    fn what_opens_elsewhere_opens_in_place_and_what_does_not_is_refused() {
        let key = IdKey::new(&[1; 32]);
        let plain = [[5; 3000].as_slice(), &[6; 20_000]].concat();
        let id = key.block_id(&plain);
        let mut sealer = Sealer::new(DEFAULT_LEVEL).expect("sealer");
        let zstd = sealer.seal(&plain).expect("seal").bytes.to_vec();
        let mut opener = Opener::new().expect("opener");
        let mut open = |codec, bytes: &[u8], size: usize| {
            let mut room = vec![9; size];
            opener.open_block_into(&key, id, Sealed::clear(codec, bytes), &mut room).map(|()| room)
        };
        assert_eq!(open(Codec::Zstd, &zstd, plain.len()), Ok(plain.clone()));
        assert_eq!(open(Codec::Stored, &plain, plain.len()), Ok(plain.clone()));
        for (codec, bytes) in [(Codec::Zstd, &zstd), (Codec::Stored, &plain)] {
            for size in [0, plain.len() - 1, plain.len() + 1, 70_000] {
                assert!(matches!(open(codec, bytes, size), Err(Error::Sealed { .. })), "{codec:?} to {size}");
            }
        }
        assert!(matches!(open(Codec::Stored, &[5; 23_000], plain.len()), Err(Error::BlockId { .. })));
    }

    /// What zstd cannot make smaller, and what it makes smallest.
    #[test]
    fn both_ways_of_sealing_give_the_same_bytes() {
        let mut state = 1u32;
        let noise = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        };
        let noise: Vec<u8> = (0..65536).map(noise).collect();
        let mut sealer = Sealer::new(DEFAULT_LEVEL).expect("sealer");
        let mut room = vec![7; SEAL_ROOM];
        for plain in [&noise[..], &[1; 65536], &noise[..100], b""] {
            let (codec, size) = sealer.seal_into(plain, &mut room).expect("seal");
            let sealed = sealer.seal(plain).expect("seal");
            assert_eq!((codec, &room[..size]), (sealed.codec, sealed.bytes));
        }
    }

    /// `ABD_BENCH_DISK=<file> cargo test --release -p seal -- --ignored --nocapture level`: what the levels cost on the
    /// blocks of a disk that are not zero, in processor time of one thread, and what opening costs.
    #[test]
    #[ignore = "a measurement; needs ABD_BENCH_DISK"]
    fn what_each_level_costs_and_saves() {
        use std::io::Read;
        let Ok(path) = std::env::var("ABD_BENCH_DISK") else {
            println!("skipped: ABD_BENCH_DISK names no file");
            return;
        };
        let cpu = || {
            let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat");
            text.split(' ').next().expect("a number").parse::<f64>().expect("nanoseconds") / 1e9
        };
        let mut file = std::fs::File::open(path).expect("disk");
        let levels = [-5, -3, -1, 1, 2, 3];
        let mut sealers = levels.map(|level| Sealer::new(level).expect("sealer"));
        let (mut cost, mut size, mut opening, mut plain_size) = ([0.0; 6], [0; 6], [0.0; 6], 0);
        let (mut room, mut opener) = (vec![0; 64 * SEAL_ROOM], Opener::new().expect("opener"));
        let mut stretch = vec![0; 4 << 20];
        while file.read_exact(&mut stretch).is_ok() {
            let blocks: Vec<&[u8]> = stretch.chunks(65536).filter(|block| !is_zero(block)).collect();
            plain_size += blocks.len() * 65536;
            for (at, sealer) in sealers.iter_mut().enumerate() {
                let rooms = room.chunks_mut(SEAL_ROOM);
                let began = cpu();
                let seal = |(block, room): (&&[u8], _)| sealer.seal_into(block, room).expect("seal");
                let sealed: Vec<_> = blocks.iter().zip(rooms).map(seal).collect();
                let sealed_at = cpu();
                for ((codec, size), room) in sealed.iter().zip(room.chunks(SEAL_ROOM)) {
                    let sealed = Sealed::clear(*codec, &room[..*size]);
                    opener.open(sealed, 65536).expect("open");
                }
                opening[at] += cpu() - sealed_at;
                cost[at] += sealed_at - began;
                size[at] += sealed.iter().map(|(_, size)| size).sum::<usize>();
            }
        }
        for (at, level) in levels.iter().enumerate() {
            let rate = |seconds: f64| plain_size as f64 / 1e6 / seconds;
            let ratio = plain_size as f64 / size[at] as f64;
            println!(
                "level {level}: {:.0} MB/s, {ratio:.3}, opened at {:.0} MB/s",
                rate(cost[at]),
                rate(opening[at])
            );
        }
    }

    proptest! {
        #[test]
        fn any_block_survives(plain in proptest::collection::vec(any::<u8>(), 0..3000), repeat in 1usize..20) {
            let plain = plain.repeat(repeat);
            let mut sealer = Sealer::new(DEFAULT_LEVEL).expect("sealer");
            let sealed = sealer.seal(&plain).expect("seal");
            prop_assert!(sealed.bytes.len() <= plain.len());
            let mut opener = Opener::new().expect("opener");
            prop_assert_eq!(opener.open(sealed, plain.len()).expect("open"), &plain[..]);
        }

        #[test]
        fn random_bytes_never_open_to_more_than_a_block(bytes in proptest::collection::vec(any::<u8>(), 0..300), size in 0usize..100_000) {
            let mut opener = Opener::new().expect("opener");
            let _ = opener.open(Sealed::clear(Codec::Zstd, &bytes), size);
        }
    }
}
