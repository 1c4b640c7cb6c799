//! Parts of an object on another machine.
//!
//! A pack's index entries are 48 bytes each and its nodes some hundred, and each request costs tens of milliseconds. So
//! a small read fetches the stretch around it, and a few stretches are kept. What is read is proven by ids and not by
//! where it came from, and objects never change.

use bytes::Bytes;
use std::io;
use std::sync::{Arc, Mutex};

/// A stretch, which begins at a multiple of this: an index of a pack of 16 MiB.
const STRETCH: u64 = 64 << 10;
/// Stretches kept for one object; with the 128 open packs of a store 32 MiB.
const KEPT: usize = 4;

/// Who gives parts of objects.
pub(in crate::backend) trait Ranges: Send + Sync + std::fmt::Debug {
    /// Up to `wanted` bytes from `offset` on, at least `needed`.
    fn get_range(&self, key: &str, offset: u64, wanted: u64, needed: u64) -> io::Result<Bytes>;
}

#[derive(Debug)]
pub(in crate::backend) struct Stretches<C> {
    client: Arc<C>,
    key: String,
    kept: Mutex<Vec<(u64, Bytes)>>,
}

impl<C: Ranges> Stretches<C> {
    pub(in crate::backend) fn new(client: Arc<C>, key: &str) -> Self {
        Self { client, key: key.to_owned(), kept: Mutex::default() }
    }

    fn stretch(&self, first: u64, needed: u64) -> io::Result<Bytes> {
        let locked = "no panic while the stretches are locked";
        let known = self.kept.lock().expect(locked).iter().find(|(at, _)| *at == first).cloned();
        if let Some((_, bytes)) = known.filter(|(_, bytes)| bytes.len() as u64 >= needed) {
            return Ok(bytes);
        }
        let bytes = self.client.get_range(&self.key, first, STRETCH, needed)?;
        let mut kept = self.kept.lock().expect(locked);
        kept.retain(|(at, _)| *at != first);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((first, bytes.clone()));
        Ok(bytes)
    }
}

impl<C: Ranges> super::Object for Stretches<C> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let size = buffer.len() as u64;
        if size == 0 {
            return Ok(());
        }
        let first = offset - offset % STRETCH;
        let inside = offset - first;
        if inside + size > STRETCH || size > STRETCH / 4 {
            let bytes = self.client.get_range(&self.key, offset, size, size)?;
            buffer.copy_from_slice(&bytes);
            return Ok(());
        }
        let bytes = self.stretch(first, inside + size)?;
        let at = usize::try_from(inside).expect("below STRETCH");
        buffer.copy_from_slice(&bytes[at..at + buffer.len()]);
        Ok(())
    }
}
