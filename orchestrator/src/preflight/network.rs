//! The delegates' networks: that each exists, and that it leads out of the hosts that could run them.

use super::facts::Facts;
use super::finding::{Code, Finding, Level, Object, ObjectKind};
use crate::job::placement;
use xapi::{Host, Network, Pif, Ref};

/// `other_config` key of the network between guests and their host.
const INTERNAL: &str = "is_host_internal_management_network";

/// The adapters that connect a network to the outside.
fn adapters<'a>(facts: &'a Facts, network: &'a Ref<Network>) -> impl Iterator<Item = &'a Pif> {
    facts.pifs.values().filter(move |pif| pif.network == *network)
}

/// Whether the delegates' networks all lead out of a host, as far as there are any.
pub(super) fn leads_to(facts: &Facts, host: &Ref<Host>) -> bool {
    let networks = facts.delegate_networks.as_deref().unwrap_or_default();
    placement::all_lead_to(&facts.pifs, networks, host)
}

/// Checks the networks of the delegates.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let networks = match &facts.delegate_networks {
        Ok(networks) => networks,
        Err(missing) => {
            let mut finding =
                Finding::error(Code::Network, facts.pool_object(), &missing.message, &missing.remedy);
            finding.kind = missing.kind;
            return vec![finding];
        }
    };
    let numbered = (0..).zip(networks);
    let mut findings: Vec<_> = numbered
        .flat_map(|(number, network)| check_one(facts, network, (networks.len() > 1).then_some(number)))
        .collect();
    let mut usable = facts.hosts.keys().filter(|host| facts.is_usable(host)).peekable();
    let each_leads_somewhere =
        findings.iter().all(|finding| finding.code != Code::Network || finding.level == Level::Ok);
    if each_leads_somewhere && usable.peek().is_some() && !usable.any(|host| leads_to(facts, host)) {
        let names = networks.iter().filter_map(|network| facts.networks.get(network));
        let names: Vec<_> = names.map(|network| format!("'{}'", network.name_label)).collect();
        findings.push(Finding::error(
            Code::Network,
            facts.pool_object(),
            format!("no host of pool '{}' has adapters on all of the delegates' networks: {}", facts.name, names.join(", ")),
            "plug the missing adapters (PIFs) of one host, or take delegates off a network: abd pool set NAME --network",
        ));
    }
    findings
}

/// Checks one of them; `card` is its number where there are several.
fn check_one(facts: &Facts, reference: &Ref<Network>, card: Option<u32>) -> Vec<Finding> {
    let Some(network) = facts.networks.get(reference) else {
        let message = format!("a network that delegates used is gone from pool '{}'", facts.name);
        let remedy = "name another: abd pool set NAME --network NETWORK";
        return vec![Finding::error(Code::Network, facts.pool_object(), message, remedy)];
    };
    let name = &network.name_label;
    let object = || Object::new(ObjectKind::Network, name, &network.uuid);
    if adapters(facts, reference).next().is_none() && !network.other_config.contains_key(INTERNAL) {
        return vec![Finding::error(
            Code::Network,
            object(),
            format!(
                "network '{name}' has no adapter on any host: delegates cannot reach this machine over it"
            ),
            "name one that reaches this machine: abd pool set NAME --network NETWORK",
        )];
    }
    let message = match card {
        None => format!("delegates use network '{name}'"),
        Some(0) => format!("delegates use network '{name}' with card 0, which has the default route"),
        Some(number) => format!("delegates use network '{name}' with card {number}"),
    };
    let mut findings = vec![Finding::ok(Code::Network, object(), message)];
    let names = |wanted: &dyn Fn(&Ref<Host>) -> bool| -> Vec<String> {
        let usable = facts.hosts.iter().filter(|(host, _)| facts.is_usable(host) && wanted(host));
        usable.map(|(_, record)| format!("'{}'", record.name_label)).collect()
    };
    let missing = names(&|host| !placement::leads_to(&facts.pifs, reference, host));
    if !missing.is_empty() {
        findings.push(Finding::warning(
            Code::NetworkHosts,
            object(),
            format!("network '{name}' does not reach {}: delegates do not run there", missing.join(", ")),
            "plug its adapter (PIF) there",
        ));
    }
    let is_down = |pif: &Pif| facts.pif_metrics.get(&pif.metrics).is_some_and(|metrics| !metrics.carrier);
    let down = names(&|host| {
        let mut here = adapters(facts, reference).filter(|pif| pif.host == *host && pif.currently_attached);
        here.any(is_down)
    });
    if !down.is_empty() {
        findings.push(Finding::warning(
            Code::NetworkHosts,
            object(),
            format!("the link of network '{name}' is down on {}", down.join(", ")),
            "see to the cable or the switch: delegates there do not reach this machine",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::facts::NotFound;
    use super::super::sample::Sample;
    use super::*;
    use crate::error::Kind;

    fn found(sample: &Sample) -> Vec<(Code, Level)> {
        check(&sample.facts).iter().map(|finding| (finding.code, finding.level)).collect()
    }

    #[test]
    fn a_network_that_reaches_every_host_is_fine() {
        assert_eq!(found(&Sample::new()), [(Code::Network, Level::Ok)]);
    }

    #[test]
    fn a_network_that_was_not_found_keeps_its_words() {
        let mut sample = Sample::new();
        sample.facts.delegate_networks = Err(NotFound {
            kind: Kind::NotFound,
            message: "no network of the pool is named 'backup'".into(),
            remedy: "see `xe network-list`".into(),
        });
        let findings = check(&sample.facts);
        assert_eq!(found(&sample), [(Code::Network, Level::Error)]);
        assert_eq!(
            (findings[0].kind, findings[0].message.as_str()),
            (Kind::NotFound, "no network of the pool is named 'backup'")
        );
    }

    #[test]
    fn a_host_without_a_plugged_adapter_is_named_and_not_used() {
        let mut sample = Sample::new();
        sample.add_host("host-2", 1 << 30, true);
        assert_eq!(found(&sample), [(Code::Network, Level::Ok)]);
        let host = sample.host.clone();
        sample.pif_mut(&host).currently_attached = false;
        assert_eq!(found(&sample), [(Code::Network, Level::Ok), (Code::NetworkHosts, Level::Warning)]);
        assert!(!leads_to(&sample.facts, &host));
        sample.host_mut().enabled = false;
        assert_eq!(found(&sample), [(Code::Network, Level::Ok)], "a host that runs no VMs needs none");
    }

    #[test]
    fn a_link_that_is_down_is_named_and_an_unknown_one_is_not() {
        let mut sample = Sample::new();
        let host = sample.host.clone();
        sample.set_carrier(&host, true);
        assert_eq!(found(&sample), [(Code::Network, Level::Ok)]);
        sample.set_carrier(&host, false);
        assert_eq!(found(&sample), [(Code::Network, Level::Ok), (Code::NetworkHosts, Level::Warning)]);
    }

    #[test]
    fn a_network_without_adapters_is_an_error_unless_it_is_the_hosts_own() {
        let mut sample = Sample::new();
        sample.facts.pifs.clear();
        assert_eq!(found(&sample), [(Code::Network, Level::Error)]);
        let network = sample.facts.networks.values_mut().next().expect("one");
        network.other_config.insert(INTERNAL.into(), "true".into());
        assert_eq!(found(&sample), [(Code::Network, Level::Ok)]);
    }

    #[test]
    fn each_of_several_networks_is_checked_and_named_with_its_card() {
        let mut sample = Sample::new();
        let storage = sample.add_network("storage");
        assert_eq!(found(&sample), [(Code::Network, Level::Ok), (Code::Network, Level::Error)]);
        assert!(check(&sample.facts)[1].message.contains("'storage' has no adapter on any host"));
        sample.add_host("host-2", 64 << 30, true);
        let host = sample.host.clone();
        sample.add_adapter(&host, &storage);
        // The second host lacks it: delegates run on the first only.
        let ok = (Code::Network, Level::Ok);
        assert_eq!(found(&sample), [ok, ok, (Code::NetworkHosts, Level::Warning)]);
        let findings = check(&sample.facts);
        assert!(findings[0].message.contains("card 0, which has the default route"), "{:?}", findings[0]);
        assert!(findings[1].message.contains("'storage' with card 1"), "{:?}", findings[1]);
        assert!(findings[2].message.contains("does not reach 'host-2'"), "{:?}", findings[2]);
        let other = Ref::from_opaque("OpaqueRef:host-2");
        assert!(leads_to(&sample.facts, &host) && !leads_to(&sample.facts, &other));
        // And the first lacks the other network: none has both.
        sample.pif_mut(&host).currently_attached = false;
        let findings = check(&sample.facts);
        let last = findings.last().expect("findings");
        assert_eq!((last.code, last.level), (Code::Network, Level::Error), "{findings:?}");
        assert!(last.message.contains("all of the delegates' networks: 'backup', 'storage'"), "{last:?}");
    }
}
