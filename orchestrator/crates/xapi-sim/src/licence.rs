//! What the pool's licence permits, where clients look beforehand: `host.license_params`, `host.edition`,
//! `pool.restrictions` and `pool.get_license_state`. The keys are those of the toolstack's `features.ml`.

use crate::flavour::{ApiVersion, Flavour};
use crate::rpc::value::{Record, Value};
use crate::sim::State;

/// Whether a key says what is forbidden or what is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Forbidden,
    Allowed,
}

/// A feature by its key, and the API version that knew it first.
struct Feature {
    key: &'static str,
    says: Says,
    since: ApiVersion,
}

const fn feature(key: &'static str, minor: u32) -> Feature {
    Feature { key, says: Says::Forbidden, since: ApiVersion::v2(minor) }
}

/// The feature that can be switched off here.
const CBT: &str = "restrict_cbt";

const FEATURES: &[Feature] = &[
    Feature { key: "enable_xha", says: Says::Allowed, since: ApiVersion::v2(0) },
    feature("restrict_pooling", 0),
    feature("restrict_pool_attached_storage", 0),
    feature("restrict_checkpoint", 0),
    feature("restrict_email_alerting", 0),
    feature("restrict_historical_performance", 0),
    feature("restrict_rbac", 0),
    feature("restrict_dmc", 0),
    feature("restrict_wlb", 0),
    feature("restrict_intellicache", 0),
    feature("restrict_gpu", 0),
    feature("restrict_dr", 0),
    feature("restrict_vif_locking", 0),
    feature("restrict_storage_xen_motion", 0),
    feature("restrict_vgpu", 0),
    feature("restrict_vss", 5),
    feature("restrict_xen_motion", 5),
    feature("restrict_guest_ip_setting", 5),
    feature("restrict_ad", 5),
    feature("restrict_live_patching", 6),
    feature("restrict_pvs_proxy", 6),
    feature("restrict_set_vcpus_number_live", 6),
    feature("restrict_igmp_snooping", 8),
    feature("restrict_rpu", 8),
    feature("restrict_pool_size", 8),
    feature(CBT, 8),
    feature("restrict_usb_passthrough", 9),
    feature("restrict_corosync", 10),
    feature("restrict_network_sriov", 10),
    feature("restrict_zstd_export", 12),
    feature("restrict_pool_secret_rotation", 15),
    feature("restrict_certificate_verification", 20),
    feature("restrict_updates", 20),
    feature("restrict_vtpm", 21),
];

/// Writes a licence with or without change tracking into the pool's records.
pub(crate) fn apply(state: &mut State, flavour: &Flavour, tracking: bool) {
    let restrictions = restrictions(flavour, tracking);
    let mut params = restrictions.clone();
    params
        .insert("expiry".into(), Value::text(if flavour.is_free() { "never" } else { "20991231T00:00:00Z" }));
    for host in state.db.refs("host") {
        state.db.put("host", &host, "edition", Value::text(edition(flavour, tracking)));
        state.db.put("host", &host, "license_params", Value::Map(params.clone()));
    }
    for pool in state.db.refs("pool") {
        state.db.put("pool", &pool, "restrictions", Value::Map(restrictions.clone()));
    }
}

fn restrictions(flavour: &Flavour, tracking: bool) -> Record {
    let known = FEATURES.iter().filter(|f| f.since <= flavour.api);
    let value = |feature: &Feature| {
        let permitted = tracking || feature.key != CBT;
        let word = permitted == (feature.says == Says::Allowed);
        (feature.key.to_owned(), Value::text(word.to_string()))
    };
    known.map(value).collect()
}

/// The edition that has all features of its time, or the one below.
fn edition(flavour: &Flavour, everything: bool) -> &'static str {
    match (flavour.is_free(), flavour.api >= ApiVersion::v2(20), everything) {
        (true, ..) => "xcp-ng",
        (_, true, true) => "premium-per-socket",
        (_, false, true) => "enterprise-per-socket",
        (_, _, false) => "standard-per-socket",
    }
}

/// What `pool.get_license_state` answers: the lowest edition of the hosts and when it ends.
pub(crate) fn state(state: &State) -> Value {
    let host = state.db.refs("host").into_iter().next().unwrap_or_default();
    let params = state.db.map("host", &host, "license_params");
    let expiry = params.get("expiry").and_then(Value::as_text).unwrap_or("never").to_owned();
    Value::text_map([("edition", state.db.text("host", &host, "edition")), ("expiry", expiry)])
}
