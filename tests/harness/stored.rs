//! What a store holds, read with its own library: quicker than a restore, and it proves every block.

use crate::Lab;
use crate::digest::{GRANULE, SparseDigest};
use ads::{PointDisk, Store, StoredPoint};
use serde_json::{Value, json};

/// The simulator's digest (`sparse=1`) of a stored disk.
///
/// # Errors
/// What the store cannot read.
pub fn stored_digest(store: &Store, disk: &PointDisk) -> Result<String, ads::Error> {
    let mut digest = SparseDigest::new(disk.tree.size.get());
    store.read_disk(&disk.tree, &mut |offset, bytes| {
        digest.block(offset.get() / GRANULE as u64, bytes);
        Ok(())
    })?;
    Ok(digest.finish())
}

impl Lab {
    /// The restore points of a VM, oldest first.
    #[track_caller]
    pub fn points(&self, vm_uuid: &str) -> Vec<StoredPoint> {
        let mut found = self.open_store().points().expect("the store's points");
        assert!(found.damaged.is_empty(), "damaged restore points: {:?}", found.damaged);
        found.points.retain(|stored| stored.point.vm.uuid == vm_uuid);
        found.points
    }

    /// Size and digest of a stored disk, as [`Lab::digest`] gives them of one in the pool.
    #[track_caller]
    pub fn stored_digest(&self, disk: &PointDisk) -> Value {
        let size = disk.tree.size.get();
        let digest =
            stored_digest(&self.open_store(), disk).expect("every block of the disk is in the store");
        json!({"size": size, "sparse_sha256": digest})
    }

    #[track_caller]
    fn open_store(&self) -> Store {
        Store::open(&self.store()).expect("the store opens")
    }
}
