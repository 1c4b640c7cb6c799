//! The disks of a VM before anything is touched: which are backed up, and whether the pool tracks their changes.

use super::Job;
use crate::error::{Context, Error, Kind, Result};
use crate::spec::{CbtMode, DiskFacts};
use crate::tracking::Untracked;
use xapi::{Ref, Vbd, VbdType, Vdi, Vm};

/// A disk that the VM has now.
pub(super) struct LiveDisk {
    pub vdi: Ref<Vdi>,
    pub record: Vdi,
    pub vbd: Vbd,
    /// Why its changes are not tracked, where they are not.
    pub untracked: Option<Untracked>,
}

/// The VM's disks.
pub(super) struct LiveDisks {
    /// Those that are backed up, by position.
    pub wanted: Vec<LiveDisk>,
    /// Those that the job leaves out.
    pub excluded: Vec<Ref<Vdi>>,
}

impl Job<'_> {
    /// The VM's disks, with the job's exclusions applied. Changes nothing.
    pub(super) async fn live_disks(&self, vm: &Vm) -> Result<LiveDisks> {
        let client = &self.pool.client;
        let looking = || format!("look at the disks of {}", vm.name_label);
        let mut found = Vec::new();
        for reference in &vm.vbds {
            let vbd = client.get_record::<Vbd>(reference).await.context(looking)?;
            if vbd.kind != VbdType::Disk || vbd.vdi.is_null() {
                continue;
            }
            let record = client.get_record::<Vdi>(&vbd.vdi).await.context(looking)?;
            found.push(LiveDisk { vdi: vbd.vdi.clone(), record, vbd, untracked: None });
        }
        found.sort_by_key(|disk| position(&disk.vbd).unwrap_or(u32::MAX));
        let none = |what: &str| Error::new(Kind::Failed, format!("{} has no disks {what}", vm.name_label));
        if found.is_empty() {
            return Err(none("to back up"));
        }
        let (excluded, wanted): (Vec<_>, Vec<_>) = found.into_iter().partition(|disk| self.excludes(disk));
        if wanted.is_empty() {
            return Err(
                none("left to back up: every one is excluded").remedy("exclude fewer disks, or the VM")
            );
        }
        Ok(LiveDisks { wanted, excluded: excluded.into_iter().map(|disk| disk.vdi).collect() })
    }

    fn excludes(&self, disk: &LiveDisk) -> bool {
        let facts = DiskFacts {
            uuid: disk.record.uuid.as_str(),
            name: &disk.record.name_label,
            tags: &disk.record.tags,
            other_config: &disk.record.other_config,
            position: position(&disk.vbd),
        };
        self.options.exclude_disks.iter().any(|filter| filter.matches(&facts))
    }

    /// Switches change tracking on where it is wanted and off, and notes for each disk why it is not on.
    pub(super) async fn track(&self, disks: &mut [LiveDisk]) {
        for disk in disks {
            disk.untracked = self.ensure_tracking(disk).await;
        }
    }

    async fn ensure_tracking(&self, disk: &LiveDisk) -> Option<Untracked> {
        if self.options.cbt == CbtMode::Off {
            return Some(Untracked::ByOption);
        }
        if disk.record.cbt_enabled {
            return None;
        }
        let error = self.pool.client.vdi_enable_cbt(&disk.vdi).await.err()?;
        let why = untracked(&error);
        if self.options.cbt == CbtMode::On {
            let (_, sentence) = why.explain();
            self.warn(format!(
                "changes of {} are not tracked: {sentence}",
                disk_name(&disk.record, &disk.vbd)
            ));
        }
        Some(why)
    }

    /// Starts the tracking of a disk anew after its log turned out to be useless.
    pub(super) async fn reset_tracking(&self, vdi: &Ref<Vdi>) -> Result<()> {
        let client = &self.pool.client;
        let reset = async {
            client.vdi_disable_cbt(vdi).await?;
            client.vdi_enable_cbt(vdi).await
        };
        reset.await.context(|| "start change tracking anew".into())
    }
}

/// What a refusal to switch tracking on means.
fn untracked(error: &xapi::Error) -> Untracked {
    match error.kind() {
        xapi::Kind::License => Untracked::Unlicensed,
        xapi::Kind::NotSupported if error.code() == "MESSAGE_METHOD_UNKNOWN" => Untracked::OldRelease,
        xapi::Kind::NotSupported => Untracked::Unsupported,
        _ if error.code() == "VDI_INCOMPATIBLE_TYPE" => Untracked::Unsupported,
        _ => Untracked::Failed(error.to_string()),
    }
}

/// The position of a drive; none where it is not a number.
pub(super) fn position(vbd: &Vbd) -> Option<u32> {
    vbd.userdevice.parse().ok()
}

/// What people call a disk.
pub(super) fn disk_name(vdi: &Vdi, vbd: &Vbd) -> String {
    match vdi.name_label.trim() {
        "" => format!("disk {}", vbd.userdevice),
        name => name.to_owned(),
    }
}
