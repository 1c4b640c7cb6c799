//! Doors for `tests/fuzz` to what this crate keeps to itself. Nothing else calls them.

use crate::record::Class;
use crate::value::Value;
use crate::vhd::Progress;
use crate::xml::Reply;
use crate::{Host, Pool, Sr, Task, Vbd, Vdi, VhdHead, Vm, json, vhd, xml};

/// The head of a VHD, where these bytes are one.
pub fn vhd_head(bytes: &[u8]) -> Option<VhdHead> {
    match vhd::parse(bytes).ok()? {
        Progress::Done(head) => Some(head),
        Progress::Need(count) => {
            assert!(count > bytes.len(), "asks for bytes that it has");
            None
        }
    }
}

/// A reply in JSON to call 1, and the value in it as every record that callers read.
pub fn json_reply(body: &[u8]) {
    if let Ok(Reply::Success(value)) = json::decode(body, 1) {
        read_as_records(&value);
    }
}

/// A reply in XML, and the value in it as every record that callers read.
pub fn xml_reply(body: &[u8]) {
    if let Ok(Reply::Success(value)) = xml::decode(body) {
        read_as_records(&value);
    }
}

/// The result of a task.
pub fn task_result(text: &str) {
    if let Ok(value) = xml::decode_result(text) {
        read_as_records(&value);
    }
}

fn read_as_records(value: &Value) {
    let _ = Vm::from_record(value);
    let _ = Vdi::from_record(value);
    let _ = Vbd::from_record(value);
    let _ = Sr::from_record(value);
    let _ = Host::from_record(value);
    let _ = Pool::from_record(value);
    let _ = Task::from_record(value);
}
