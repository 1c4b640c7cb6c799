//! Another network over the control port, as an administrator makes one: a VLAN, or cables to another switch.
//!
//! ```text
//! POST /lab/network           {"name", "mtu"?, "vlan"?, "hosts"?}     on all hosts, or on those with these numbers from 1
//! ```

use super::bad;
use crate::failure::Outcome;
use crate::rpc::value::{Record, Value as ApiValue};
use crate::sim::{Context, now};
use crate::storage::repository;
use crate::store::db::Db;
use serde::Deserialize;
use serde_json::{Value, json};

/// What is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: String,
    #[serde(default = "usual_mtu")]
    mtu: i64,
    /// -1 for cables of its own.
    #[serde(default = "no_vlan")]
    vlan: i64,
    hosts: Option<Vec<usize>>,
}

fn usual_mtu() -> i64 {
    1500
}

fn no_vlan() -> i64 {
    -1
}

/// Makes the network with an adapter on each of its hosts.
pub(super) fn create(context: &Context, wanted: Value) -> Outcome<Value> {
    let wanted: Wanted = serde_json::from_value(wanted).map_err(|e| bad(e.to_string()))?;
    context.with(|s| {
        let count = s.db.refs("network").len();
        let mut record = blank("network");
        record.insert("name_label".into(), ApiValue::text(&wanted.name));
        record.insert("bridge".into(), ApiValue::text(format!("xapi{count}")));
        record.insert("managed".into(), ApiValue::Bool(true));
        record.insert("MTU".into(), ApiValue::Int(wanted.mtu));
        let network = s.db.create("network", record);
        let numbers = wanted.hosts.clone().unwrap_or_else(|| (1..=s.db.refs("host").len()).collect());
        for number in numbers {
            let name = repository::host_name(number);
            let hosts = s.db.refs("host").into_iter();
            let host = hosts.into_iter().find(|host| s.db.text("host", host, "name_label") == name);
            let host = host.ok_or_else(|| bad(format!("there is no host {number}")))?;
            add_adapter(&mut s.db, &network, &host, count, &wanted);
        }
        Ok(json!({"ref": network, "uuid": s.db.text("network", &network, "uuid")}))
    })
}

fn add_adapter(db: &mut Db, network: &str, host: &str, count: usize, wanted: &Wanted) {
    let mut link = blank("PIF_metrics");
    link.insert("carrier".into(), ApiValue::Bool(true));
    link.insert("speed".into(), ApiValue::Int(10_000));
    link.insert("last_updated".into(), now());
    let link = db.create("PIF_metrics", link);
    let mut pif = blank("PIF");
    let members = [
        ("device", ApiValue::text(format!("eth{count}"))),
        ("network", ApiValue::text(network)),
        ("host", ApiValue::text(host)),
        ("MAC", ApiValue::text(crate::vif::generated_mac("lab", &format!("{network}/{host}")))),
        ("metrics", ApiValue::text(link)),
        ("MTU", ApiValue::Int(wanted.mtu)),
        ("VLAN", ApiValue::Int(wanted.vlan)),
        ("physical", ApiValue::Bool(wanted.vlan < 0)),
        ("ip_configuration_mode", ApiValue::text("None")),
        ("currently_attached", ApiValue::Bool(true)),
    ];
    pif.extend(members.map(|(name, value)| (name.to_owned(), value)));
    db.create("PIF", pif);
}

fn blank(class: &str) -> Record {
    Db::blank(class)
}
