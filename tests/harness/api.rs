//! The pool as its other users see it: calls of the API in a session of their own, behind `abd`'s back.

use crate::Lab;
use serde_json::{Value, json};
use std::fs;
use xapi_sim::LabClient;

/// A session of somebody who is not `abd`.
#[derive(Debug)]
pub struct Api {
    client: LabClient,
    session: String,
}

impl Api {
    /// Logs in as the pool's only user.
    #[track_caller]
    pub fn new(lab: &Lab) -> Self {
        let client = LabClient::new(lab.ports.http);
        let password = fs::read_to_string(&lab.ports.password_file).expect("the simulator's own file");
        let user = [json!(lab.ports.user), json!(password.trim_end_matches('\n'))];
        let session = request(&client, "session.login_with_password", &user).expect("a session");
        Self { client, session: string(&session) }
    }

    /// A call; `parameters` is the list that follows the session.
    #[track_caller]
    pub fn call(&self, method: &str, parameters: Value) -> Value {
        self.try_call(method, parameters).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// A call that the pool may refuse: then the answer's error.
    #[track_caller]
    pub fn try_call(&self, method: &str, parameters: Value) -> Result<Value, Value> {
        let mut all = vec![json!(self.session)];
        all.extend(parameters.as_array().expect("a list").iter().cloned());
        request(&self.client, method, &all)
    }

    /// The reference of an object by its class and uuid.
    #[track_caller]
    pub fn find(&self, class: &str, uuid: &str) -> Value {
        self.call(&format!("{class}.get_by_uuid"), json!([uuid]))
    }

    /// The uuid of an object by its class and reference.
    #[track_caller]
    pub fn uuid(&self, class: &str, reference: &Value) -> String {
        string(&self.call(&format!("{class}.get_uuid"), json!([reference])))
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        // The lab may be gone already; then so is the session.
        let _ = request(&self.client, "session.logout", &[json!(self.session)]);
    }
}

#[track_caller]
fn request(client: &LabClient, method: &str, parameters: &[Value]) -> Result<Value, Value> {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters});
    let answer = client
        .json("POST", "/jsonrpc", Some(&body))
        .map_err(|error| json!({"message": error.to_string()}))?;
    match &answer["error"] {
        Value::Null => Ok(answer["result"].clone()),
        error => Err(error.clone()),
    }
}

impl Lab {
    /// Calls the API once, in a session that ends with the call.
    #[track_caller]
    pub fn api(&self, method: &str, parameters: Value) -> Value {
        Api::new(self).call(method, parameters)
    }

    /// The repositories that one host alone sees, by uuid.
    #[track_caller]
    pub fn local_storage(&self) -> Vec<String> {
        let all = self.api("SR.get_all_records", json!([]));
        let is_local = |sr: &&Value| sr["shared"] == false && sr["content_type"] != "iso";
        let records = all.as_object().expect("records").values();
        records.filter(is_local).map(|sr| string(&sr["uuid"])).collect()
    }

    /// Has the imported template, and so every delegate made from it, boot by UEFI.
    pub fn boot_delegates_by_uefi(&self) {
        let vms = self.api("VM.get_all_records", json!([]));
        let ours =
            |vm: &Value| vm["is_a_template"] == true && vm["other_config"].get("abd:template").is_some();
        let template = vms.as_object().expect("records").iter().find(|(_, vm)| ours(vm));
        let (template, _) = template.expect("the template was imported");
        self.api("VM.set_HVM_boot_params", json!([template, { "order": "c", "firmware": "uefi" }]));
    }

    /// Destroys a disk.
    #[track_caller]
    pub fn destroy_vdi(&self, uuid: &str) {
        let api = Api::new(self);
        api.call("VDI.destroy", json!([api.find("VDI", uuid)]));
    }

    /// Changes a member of a VM's `other_config`.
    #[track_caller]
    pub fn set_vm_other_config(&self, uuid: &str, key: &str, value: &str) {
        let api = Api::new(self);
        let vm = api.find("VM", uuid);
        api.call("VM.remove_from_other_config", json!([vm, key]));
        api.call("VM.add_to_other_config", json!([vm, key, value]));
    }

    /// Clones the snapshot of the job that runs into a VM of a user's, as an admin might. Gives its uuid.
    #[track_caller]
    pub fn clone_snapshot(&self, name: &str) -> String {
        let inventory = self.inventory();
        let vms = inventory["VM"].as_array().expect("a list");
        let is_ours = |vm: &&Value| vm["name_label"].as_str().is_some_and(|name| name.ends_with("-snapshot"));
        let snapshot = string(&vms.iter().find(is_ours).expect("a snapshot of ours")["uuid"]);
        self.clone_vm(&snapshot, name)
    }

    /// Clones a VM or a snapshot into a VM. Gives its uuid.
    #[track_caller]
    pub fn clone_vm(&self, uuid: &str, name: &str) -> String {
        let api = Api::new(self);
        let clone = api.call("VM.clone", json!([api.find("VM", uuid), name]));
        api.call("VM.set_is_a_template", json!([clone, false]));
        api.uuid("VM", &clone)
    }
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}
