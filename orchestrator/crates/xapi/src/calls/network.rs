//! Calls on network adapters.

use crate::client::Client;
use crate::error::Result;
use crate::record::{Ref, StringMap};
use crate::records::{Network, Vif, Vm};
use crate::value::Value;

/// A network adapter to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VifCreate {
    /// Whose adapter.
    pub vm: Ref<Vm>,
    /// Where it is plugged in.
    pub network: Ref<Network>,
    /// Position, 0 to 15.
    pub device: u32,
    /// Address; empty to let the pool choose.
    pub mac: String,
    /// MTU in bytes, usually that of the network.
    pub mtu: u32,
    /// Entries of `other_config`.
    pub other_config: StringMap,
}

impl Client {
    /// Creates a network adapter.
    pub async fn vif_create(&self, vif: &VifCreate) -> Result<Ref<Vif>> {
        let record = Value::record([
            ("device", Value::from(vif.device.to_string())),
            ("network", (&vif.network).into()),
            ("VM", (&vif.vm).into()),
            ("MAC", vif.mac.as_str().into()),
            ("MTU", vif.mtu.into()),
            ("other_config", (&vif.other_config).into()),
            ("qos_algorithm_type", "".into()),
            ("qos_algorithm_params", Value::Struct(Default::default())),
        ]);
        self.get("VIF.create", vec![record]).await
    }

    /// Removes a network adapter.
    pub async fn vif_destroy(&self, vif: &Ref<Vif>) -> Result<()> {
        self.act("VIF.destroy", vec![vif.into()]).await
    }
}
