//! The kinds of storage repository and what a disk costs on each, by the arithmetic of the public storage manager
//! (`vhdutil.py`, `lvhdutil.py`, `LVHDSR.py`, `FileSR.py`).
//!
//! | kind | how a node is stored | what it costs |
//! |---|---|---|
//! | file | a VHD that grows | headers, and 2 MiB and a bitmap for each block written to this node |
//! | LVM | a VHD in a logical volume, thick | a live disk: everything it could hold; a hidden node: what it holds; a snapshot: the headers |
//! | raw | the disk itself | everything it could hold; no snapshots, no change tracking |
//! | ISO | files of a library | holds no disks of VMs |

use super::chain::BLOCK;

/// Logical volumes come in multiples of this: `LVM_SIZE_INCREMENT`.
const EXTENT: u64 = 4 << 20;
/// Size for which a VHD in a volume reserves its table, so that it can grow: `MSIZE`.
const RESERVED_FOR: u64 = 2 << 40;
/// A block's bitmap, which is aligned to a page.
const BITMAP: u64 = 4096;
/// Smallest and largest VHD: `MIN_VHD_SIZE` and `MAX_VHD_SIZE`.
const MIN_DISK: u64 = 2 << 20;
const MAX_DISK: u64 = 2040 << 30;

/// How a repository stores disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    File,
    Lvm,
    Raw,
    Iso,
}

/// One type of repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backend {
    /// `SR.type`.
    pub(crate) name: &'static str,
    pub(crate) layout: Layout,
    /// Whether such a repository usually is seen by every host.
    pub(crate) shared: bool,
}

const fn backend(name: &'static str, layout: Layout, shared: bool) -> Backend {
    Backend { name, layout, shared }
}

/// All types that can be made.
pub(crate) const BACKENDS: &[Backend] = &[
    backend("ext", Layout::File, false),
    backend("file", Layout::File, false),
    backend("nfs", Layout::File, true),
    backend("smb", Layout::File, true),
    backend("lvm", Layout::Lvm, false),
    backend("lvmoiscsi", Layout::Lvm, true),
    backend("lvmohba", Layout::Lvm, true),
    backend("iscsi", Layout::Raw, true),
    backend("udev", Layout::Raw, false),
    backend("iso", Layout::Iso, true),
];

/// What a node is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A leaf that is written to, or could be: a live disk, a clone, a snapshot that is attached writable.
    Live,
    /// A leaf that only keeps a moment.
    Snapshot,
    /// A node that only its children read.
    Hidden,
}

impl Backend {
    /// The type of that name.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        BACKENDS.iter().find(|b| b.name == name).copied()
    }

    /// All names, for a message.
    pub(crate) fn names() -> String {
        BACKENDS.iter().map(|b| b.name).collect::<Vec<_>>().join(", ")
    }

    /// Whether disks are VHDs: with chains, snapshots and change tracking.
    pub(crate) fn is_vhd(self) -> bool {
        matches!(self.layout, Layout::File | Layout::Lvm)
    }

    /// Bytes that a node with `blocks` blocks of a disk of `size` bytes takes.
    pub(crate) fn node_bytes(self, size: u64, blocks: u64, role: Role) -> u64 {
        let held = blocks * (BLOCK + BITMAP);
        match (self.layout, role) {
            (Layout::File, _) => empty_overhead(size) + held,
            (Layout::Lvm, Role::Live) => full_volume(size),
            (Layout::Lvm, Role::Snapshot) => empty_volume(),
            (Layout::Lvm, Role::Hidden) => (empty_overhead(RESERVED_FOR) + held).next_multiple_of(EXTENT),
            (Layout::Raw | Layout::Iso, _) => size,
        }
    }

    /// Bytes that must be free for a split of a disk, as `LVHDVDI._snapshot` reckons: the leaf that goes on, the copy,
    /// two journals; less what the shared part shrinks by.
    pub(crate) fn split_bytes(self, size: u64, blocks: u64, source: Role, copy: Role) -> u64 {
        let needed = self.node_bytes(size, 0, source) + self.node_bytes(size, 0, copy);
        if self.layout != Layout::Lvm {
            return needed;
        }
        let freed = self.node_bytes(size, blocks, source);
        let freed = freed.saturating_sub(self.node_bytes(size, blocks, Role::Hidden));
        (needed + 2 * EXTENT).saturating_sub(freed)
    }

    /// Bytes that a log of change tracking takes beside its disk: a volume of its own, or next to nothing.
    pub(crate) fn log_bytes(self) -> u64 {
        if self.layout == Layout::Lvm { EXTENT } else { 0 }
    }

    /// What `SM.features` says of the type: names and versions (`CAPABILITIES` of the drivers). Change tracking is
    /// there from 7.3 on.
    pub(crate) fn features(self, tracking: bool) -> Vec<(&'static str, i64)> {
        const DISK: [&str; 4] = ["VDI_CREATE", "VDI_DELETE", "VDI_ATTACH", "VDI_DETACH"];
        const VHD: [&str; 10] = [
            "SR_PROBE",
            "SR_UPDATE",
            "VDI_UPDATE",
            "VDI_CLONE",
            "VDI_SNAPSHOT",
            "VDI_RESIZE",
            "VDI_MIRROR",
            "ATOMIC_PAUSE",
            "VDI_ACTIVATE",
            "VDI_DEACTIVATE",
        ];
        let mut names = match self.name {
            "udev" => vec!["VDI_INTRODUCE", "VDI_ATTACH", "VDI_DETACH", "VDI_UPDATE", "SR_UPDATE"],
            _ => DISK.to_vec(),
        };
        if self.is_vhd() {
            names.extend(VHD);
            names.extend(tracking.then_some("VDI_CONFIG_CBT"));
        }
        if self.layout == Layout::File {
            names.push("THIN_PROVISIONING");
        }
        let mut features: Vec<_> = names.into_iter().map(|name| (name, 1)).collect();
        if self.is_vhd() {
            features.push(("VDI_RESET_ON_BOOT", 2));
        }
        features
    }

    /// The size that a disk gets when so much is asked for: whole blocks (`validate_and_round_vhd_size`).
    /// `None` when no disk can be that large.
    pub(crate) fn rounded(self, size: u64) -> Option<u64> {
        if !self.is_vhd() {
            return Some(size);
        }
        (size <= MAX_DISK).then(|| size.max(MIN_DISK).next_multiple_of(BLOCK))
    }
}

/// Headers and tables of an empty VHD: `calcOverheadEmpty`.
fn empty_overhead(size: u64) -> u64 {
    let blocks = size >> 21;
    let table = (3 * 1024 + blocks * 4).next_multiple_of(512);
    (table + blocks / 8).next_multiple_of(4096)
}

/// A volume that holds a whole disk: `calcSizeVHDLV`.
fn full_volume(size: u64) -> u64 {
    let bitmaps = size.div_ceil(BLOCK) * BITMAP;
    (size + empty_overhead(RESERVED_FOR) + bitmaps).next_multiple_of(EXTENT)
}

fn empty_volume() -> u64 {
    empty_overhead(RESERVED_FOR).next_multiple_of(EXTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn named(name: &str) -> Backend {
        Backend::by_name(name).unwrap()
    }

    #[test]
    fn the_overheads_are_those_of_the_storage_manager() {
        // Reckoned by hand from the formulas of vhdutil.py: 3072 + 1048576 * 4, to 512; + 131072, to 4096.
        assert_eq!(empty_overhead(RESERVED_FOR), 4_329_472);
        assert_eq!(empty_overhead(10 * GIB), 24_576);
        assert_eq!(empty_overhead(4096), 4096);
        assert_eq!(empty_volume(), 8 << 20);
        // 10 GiB, 5120 bitmaps of a page, the table of 2 TiB; 2567 extents.
        assert_eq!(full_volume(10 * GIB), 10_766_778_368);
    }

    #[test]
    fn thick_disks_cost_their_size_and_frozen_parts_what_they_hold() {
        let lvm = named("lvmoiscsi");
        let (live, snapshot) = (Role::Live, Role::Snapshot);
        assert_eq!(lvm.node_bytes(10 * GIB, 0, live), lvm.node_bytes(10 * GIB, 5000, live));
        assert_eq!(lvm.node_bytes(10 * GIB, 1, Role::Hidden), 8 << 20);
        assert!(lvm.node_bytes(10 * GIB, 5120, Role::Hidden) > 10 * GIB);
        // An empty disk gives almost everything back, a full one nothing.
        assert_eq!(lvm.split_bytes(10 * GIB, 0, live, snapshot), (8 + 8 + 8) << 20);
        assert!(lvm.split_bytes(10 * GIB, 5120, live, snapshot) > 10 * GIB);
    }

    #[test]
    fn thin_disks_cost_what_is_written() {
        let nfs = named("nfs");
        for role in [Role::Live, Role::Snapshot, Role::Hidden] {
            assert_eq!(nfs.node_bytes(10 * GIB, 3, role), 24_576 + 3 * (BLOCK + 4096));
        }
        assert_eq!(nfs.split_bytes(10 * GIB, 5120, Role::Live, Role::Snapshot), 2 * 24_576);
    }

    #[test]
    fn vhd_sizes_are_whole_blocks() {
        let ext = named("ext");
        for (asked, given) in [(0, 2 << 20), (1, 2 << 20), (2 << 20, 2 << 20), ((2 << 20) + 1, 4 << 20)] {
            assert_eq!(ext.rounded(asked), Some(given));
        }
        assert_eq!(ext.rounded(2040 * GIB), Some(2040 * GIB));
        assert_eq!(ext.rounded(2040 * GIB + 1), None);
        assert_eq!(named("iscsi").rounded(513), Some(513));
    }
}
