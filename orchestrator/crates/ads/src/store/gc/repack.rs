//! Moving what is needed out of packs that hold little of it.

use crate::Error;
use crate::ingest::check_object;
use crate::store::Store;
use crate::store::reach::{NOBODY, PerObject};
use blocks::ByteCount;
use seal::{Cipher, Opener, PackKind, PackWriter};

/// Size of the packs that are written; as delegates write them.
const PACK_SIZE: usize = 16 << 20;

/// Fills packs of one kind, each with blocks that are encrypted with one cipher, or not at all.
pub(in crate::store) struct Mover<'a> {
    store: &'a Store,
    kind: PackKind,
    /// Of the pack that is being filled.
    cipher: Option<Cipher>,
    writer: Option<PackWriter>,
    /// Bytes of packs that are durable.
    pub(in crate::store) written: u64,
}

impl<'a> Mover<'a> {
    pub(in crate::store) fn new(store: &'a Store, kind: PackKind) -> Self {
        Self { store, kind, cipher: None, writer: None, written: 0 }
    }

    /// Bytes of the packs that were written.
    pub(in crate::store) fn written(&self) -> ByteCount {
        ByteCount::new(self.written)
    }

    /// Adds an object that was proven.
    pub(in crate::store) fn push(
        &mut self,
        id: [u8; 32],
        plain_size: usize,
        sealed: seal::Sealed<'_>,
    ) -> Result<(), Error> {
        let (kind, cipher) = (self.kind, sealed.lock.map(|lock| lock.cipher));
        if self.writer.as_ref().is_some_and(|writer| self.cipher != cipher || !writer.has_room(PACK_SIZE)) {
            self.write()?;
        }
        self.cipher = cipher;
        let writer = self.writer.get_or_insert_with(|| match cipher {
            None => PackWriter::new(kind, PACK_SIZE),
            Some(cipher) => PackWriter::moving(cipher, PACK_SIZE),
        });
        writer.push(id, plain_size, sealed);
        Ok(())
    }

    /// Writes what is left; all that was pushed is durable then.
    pub(in crate::store) fn write(&mut self) -> Result<(), Error> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let pack = writer.finish();
        self.written += self.store.add_pack(pack.id, &pack.bytes)?.stored.get();
        Ok(())
    }
}

impl Store {
    /// Copies what is needed out of these packs into new ones, each object opened and checked on the way; gives the bytes
    /// that were written. What is encrypted stays as it is, and is not opened where the store is locked.
    /// On return the copies are durable.
    pub(super) fn repack(&self, packs: &[u32], needed: &PerObject) -> Result<ByteCount, Error> {
        let mut written = 0;
        let mut opener = Opener::new()?;
        for kind in [PackKind::Data, PackKind::Tree] {
            let mut mover = Mover::new(self, kind);
            for number in packs {
                let record = self.packs.record(*number);
                if record.kind != kind {
                    continue;
                }
                let index = self.packs.index_of(*number)?;
                let bytes = self.packs.bytes_of(*number)?;
                for (entry, owner) in index.entries.iter().zip(&needed.packs[*number as usize]) {
                    if *owner == NOBODY {
                        continue;
                    }
                    let damaged = |source| Error::Damaged { pack: record.id, source };
                    if self.can_open(kind) {
                        check_object(&self.id_key, &bytes, kind, entry, &mut opener).map_err(damaged)?;
                    }
                    let sealed = entry.sealed(&bytes).map_err(damaged)?;
                    mover.push(entry.id, entry.plain_size as usize, sealed)?;
                }
            }
            mover.write()?;
            written += mover.written;
        }
        Ok(ByteCount::new(written))
    }
}
