//! Calls on disks, drives and storage repositories.

use crate::client::Client;
use crate::error::{Error, Kind, Result};
use crate::record::{Ref, StringMap};
use crate::records::{Sr, Vbd, VbdMode, VbdType, Vdi, VdiType, Vm};
use crate::value::Value;

/// A drive to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VbdCreate {
    /// Whose drive.
    pub vm: Ref<Vm>,
    /// What is in it.
    pub vdi: Ref<Vdi>,
    /// Position, 0 to 254.
    pub userdevice: u32,
    /// Whether the VM boots from it.
    pub bootable: bool,
    /// Access.
    pub mode: VbdMode,
    /// Kind.
    pub kind: VbdType,
    /// Entries of `other_config`.
    pub other_config: StringMap,
}

/// A disk to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VdiCreate {
    /// Name.
    pub name_label: String,
    /// Description.
    pub name_description: String,
    /// Where.
    pub sr: Ref<Sr>,
    /// Size in bytes. The storage may round it up.
    pub virtual_size: u64,
    /// Purpose.
    pub kind: VdiType,
    /// Entries of `other_config`.
    pub other_config: StringMap,
    /// Entries of `sm_config`.
    pub sm_config: StringMap,
}

impl VdiCreate {
    /// A user's disk without further settings.
    pub fn new(name: impl Into<String>, sr: Ref<Sr>, virtual_size: u64) -> Self {
        Self {
            name_label: name.into(),
            name_description: String::new(),
            sr,
            virtual_size,
            kind: VdiType::User,
            other_config: StringMap::new(),
            sm_config: StringMap::new(),
        }
    }
}

impl Client {
    /// Creates a drive; never talks to a running guest.
    pub async fn vbd_create(&self, vbd: &VbdCreate) -> Result<Ref<Vbd>> {
        let record = Value::record([
            ("VM", Value::from(&vbd.vm)),
            ("VDI", (&vbd.vdi).into()),
            ("userdevice", vbd.userdevice.to_string().into()),
            ("bootable", vbd.bootable.into()),
            ("mode", (&vbd.mode).into()),
            ("type", (&vbd.kind).into()),
            ("unpluggable", true.into()),
            ("empty", vbd.vdi.is_null().into()),
            ("other_config", (&vbd.other_config).into()),
            ("qos_algorithm_type", "".into()),
            ("qos_algorithm_params", Value::Struct(Default::default())),
        ]);
        self.get("VBD.create", vec![record]).await
    }

    /// Removes a drive that is not attached.
    pub async fn vbd_destroy(&self, vbd: &Ref<Vbd>) -> Result<()> {
        self.act("VBD.destroy", vec![vbd.into()]).await
    }

    /// Attaches a drive to a running guest.
    pub async fn vbd_plug(&self, vbd: &Ref<Vbd>) -> Result<()> {
        self.perform("VBD.plug", vec![vbd.into()]).await
    }

    /// Detaches a drive from a running guest.
    pub async fn vbd_unplug(&self, vbd: &Ref<Vbd>) -> Result<()> {
        self.perform("VBD.unplug", vec![vbd.into()]).await
    }

    /// Creates a disk of zeros.
    pub async fn vdi_create(&self, vdi: &VdiCreate) -> Result<Ref<Vdi>> {
        let record = Value::record([
            ("name_label", Value::from(vdi.name_label.as_str())),
            ("name_description", vdi.name_description.as_str().into()),
            ("SR", (&vdi.sr).into()),
            ("virtual_size", size("VDI.create", vdi.virtual_size)?),
            ("type", (&vdi.kind).into()),
            ("sharable", false.into()),
            ("read_only", false.into()),
            ("other_config", (&vdi.other_config).into()),
            ("xenstore_data", Value::Struct(Default::default())),
            ("sm_config", (&vdi.sm_config).into()),
            ("tags", Value::Array(Vec::new())),
        ]);
        self.get("VDI.create", vec![record]).await
    }

    /// Destroys a disk. [`Kind::InUse`] for some seconds after its VM halted: try again.
    pub async fn vdi_destroy(&self, vdi: &Ref<Vdi>) -> Result<()> {
        self.act("VDI.destroy", vec![vdi.into()]).await
    }

    /// Snapshots a disk.
    pub async fn vdi_snapshot(&self, vdi: &Ref<Vdi>) -> Result<Ref<Vdi>> {
        self.run("VDI.snapshot", vec![vdi.into(), Value::Struct(Default::default())]).await
    }

    /// Clones a disk.
    pub async fn vdi_clone(&self, vdi: &Ref<Vdi>) -> Result<Ref<Vdi>> {
        self.run("VDI.clone", vec![vdi.into(), Value::Struct(Default::default())]).await
    }

    /// Grows a disk.
    pub async fn vdi_resize(&self, vdi: &Ref<Vdi>, bytes: u64) -> Result<()> {
        self.act("VDI.resize", vec![vdi.into(), size("VDI.resize", bytes)?]).await
    }

    /// Switches change tracking on. Needs a licence on some products; doing it twice is no error.
    pub async fn vdi_enable_cbt(&self, vdi: &Ref<Vdi>) -> Result<()> {
        self.act("VDI.enable_cbt", vec![vdi.into()]).await
    }

    /// Switches change tracking off.
    pub async fn vdi_disable_cbt(&self, vdi: &Ref<Vdi>) -> Result<()> {
        self.act("VDI.disable_cbt", vec![vdi.into()]).await
    }

    /// Deletes the contents of a tracked snapshot and keeps its change log. Every VBD of it must be gone:
    /// destroy the snapshot VM first.
    pub async fn vdi_data_destroy(&self, vdi: &Ref<Vdi>) -> Result<()> {
        self.perform("VDI.data_destroy", vec![vdi.into()]).await
    }

    /// The blocks written between two snapshots of a disk, as a bitmap: one bit per 64 KiB, the most
    /// significant bit of byte 0 is block 0. Bits beyond the end of the disk mean nothing. Fails with
    /// [`Kind::InUse`] while `to` is attached to a VM that runs.
    pub async fn vdi_list_changed_blocks(&self, from: &Ref<Vdi>, to: &Ref<Vdi>) -> Result<Vec<u8>> {
        const METHOD: &str = "VDI.list_changed_blocks";
        let text: String = self.get(METHOD, vec![from.into(), to.into()]).await?;
        super::from_base64(METHOD, &text)
    }

    /// Lets the pool look at what a storage repository holds.
    pub async fn sr_scan(&self, sr: &Ref<Sr>) -> Result<()> {
        self.perform("SR.scan", vec![sr.into()]).await
    }
}

/// A size as XAPI takes it.
pub(super) fn size(method: &str, bytes: u64) -> Result<Value> {
    let number = i64::try_from(bytes);
    number.map(Value::Int).map_err(|_| Error::new(Kind::Input, method, format!("{bytes} bytes is no size")))
}
