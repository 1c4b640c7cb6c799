//! Where delegates run: hosts that see the storage of the disks and of the template, and as many delegates, one
//! after the other, as the disks need.

use super::MAX_DISKS;
use crate::error::{Context, Error, Kind, Result};
use crate::pool::Pool;
use crate::template::TemplateAt;
use blocks::ByteCount;
use std::collections::{BTreeMap, BTreeSet};
use xapi::{Host, HostMetrics, Network, Pbd, Pif, Ref, Sr, Vm};

/// One delegate: where it runs, what it is made of, and which disks it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// The host it is started on.
    pub host: Ref<Host>,
    /// Position in the list of templates.
    pub template: usize,
    /// Positions in the list of disks, rising.
    pub disks: Vec<usize>,
}

/// What the pool looks like to a delegate that wants to start.
#[derive(Clone, Debug, Default)]
pub struct Site {
    /// Storage that each usable host sees.
    pub sees: BTreeMap<Ref<Host>, BTreeSet<Ref<Sr>>>,
    /// Names of storage, for messages.
    pub names: BTreeMap<Ref<Sr>, String>,
}

/// What a delegate needs of its host besides storage.
#[derive(Clone, Debug)]
pub struct Demand {
    /// The networks that it is on.
    pub networks: Vec<Ref<Network>>,
    /// The memory that it takes there, the host's overhead included.
    pub footprint: ByteCount,
}

/// What placing looks at.
#[derive(Clone, Copy, Debug)]
pub struct Records<'a> {
    /// Hosts.
    pub hosts: &'a BTreeMap<Ref<Host>, Host>,
    /// Their memory and life.
    pub metrics: &'a BTreeMap<Ref<HostMetrics>, HostMetrics>,
    /// What storage they have plugged.
    pub pbds: &'a BTreeMap<Ref<Pbd>, Pbd>,
    /// Their adapters.
    pub pifs: &'a BTreeMap<Ref<Pif>, Pif>,
    /// Storage, for its names.
    pub srs: &'a BTreeMap<Ref<Sr>, Sr>,
}

/// Whether a host takes new VMs. Where the pool does not tell whether it is up, it counts as up: the start will tell.
pub fn is_up(host: &Host, metrics: Option<&HostMetrics>) -> bool {
    host.enabled && metrics.is_none_or(|metrics| metrics.live)
}

/// Whether a network leads out of a host. One without any adapter, such as an internal one, leads wherever it leads.
pub fn leads_to(pifs: &BTreeMap<Ref<Pif>, Pif>, network: &Ref<Network>, host: &Ref<Host>) -> bool {
    let mut adapters = pifs.values().filter(|pif| pif.network == *network).peekable();
    adapters.peek().is_none() || adapters.any(|pif| pif.host == *host && pif.currently_attached)
}

/// Whether all networks lead out of a host.
pub fn all_lead_to(pifs: &BTreeMap<Ref<Pif>, Pif>, networks: &[Ref<Network>], host: &Ref<Host>) -> bool {
    networks.iter().all(|network| leads_to(pifs, network, host))
}

/// Whether a host has this much memory free; one that does not tell is taken to have it.
pub fn has_memory(metrics: Option<&HostMetrics>, footprint: ByteCount) -> bool {
    metrics.is_none_or(|metrics| metrics.memory_free == 0 || metrics.memory_free >= footprint.get())
}

impl Site {
    /// Asks the pool.
    ///
    /// # Errors
    /// Where the pool cannot be asked.
    pub async fn look(pool: &Pool, demand: &Demand) -> Result<Self> {
        let looking = || "look at hosts, their storage and their network".to_owned();
        let client = &pool.client;
        let records = Records {
            hosts: &client.get_all_records().await.context(looking)?,
            metrics: &client.get_all_records().await.context(looking)?,
            pbds: &client.get_all_records().await.context(looking)?,
            pifs: &client.get_all_records().await.context(looking)?,
            srs: &client.get_all_records().await.context(looking)?,
        };
        Ok(Self::of(records, demand))
    }

    /// The hosts that are up, on the delegate's networks and have the memory for it. Where none has, all that are up and
    /// on the networks: memory comes and goes, and the start will tell.
    pub fn of(records: Records<'_>, demand: &Demand) -> Self {
        let metrics = |host: &Host| records.metrics.get(&host.metrics);
        let up = |(reference, host): &(&Ref<Host>, &Host)| {
            is_up(host, metrics(host)) && all_lead_to(records.pifs, &demand.networks, reference)
        };
        let up: Vec<_> = records.hosts.iter().filter(up).collect();
        let has_memory = |host: &Host| has_memory(metrics(host), demand.footprint);
        let some_have = up.iter().any(|(_, host)| has_memory(host));
        let hosts = up.into_iter().filter(|(_, host)| !some_have || has_memory(host));
        let sees = hosts.map(|(reference, _)| {
            let plugged =
                records.pbds.values().filter(|pbd| pbd.host == *reference && pbd.currently_attached);
            (reference.clone(), plugged.map(|pbd| pbd.sr.clone()).collect())
        });
        let names = records.srs.iter().map(|(reference, sr)| (reference.clone(), sr.name_label.clone()));
        Self { sees: sees.collect(), names: names.collect() }
    }

    /// A template that a host can use.
    pub(crate) fn template_for(&self, host: &Ref<Host>, templates: &[TemplateAt]) -> Option<usize> {
        let seen = self.sees.get(host)?;
        templates.iter().position(|template| template.storage.iter().all(|sr| seen.contains(sr)))
    }

    /// Hosts on which a delegate for these disks could run.
    pub fn candidates(&self, disks: &[Ref<Sr>], templates: &[TemplateAt]) -> Vec<Ref<Host>> {
        let all = |seen: &BTreeSet<Ref<Sr>>| disks.iter().all(|sr| seen.contains(sr));
        let fits = |host: &Ref<Host>| self.template_for(host, templates).is_some();
        self.sees
            .iter()
            .filter(|(host, seen)| all(seen) && fits(host))
            .map(|(host, _)| host.clone())
            .collect()
    }
}

/// The hosts to try first for a VM: the one that the caller chose, its own, the one it prefers.
pub fn preference(chosen: Option<&Ref<Host>>, vm: Option<&Vm>) -> Vec<Ref<Host>> {
    let own = vm.map(|vm| [vm.resident_on.clone(), vm.affinity.clone()]).into_iter().flatten();
    chosen.cloned().into_iter().chain(own).collect()
}

/// Divides disks, given by their storage, into rounds. Each goes to the host that sees most of what is left, the
/// preferred ones first among equals.
///
/// # Errors
/// [`Kind::Failed`] naming the storage that no host with a template sees.
pub fn rounds(
    disks: &[Ref<Sr>],
    site: &Site,
    templates: &[TemplateAt],
    preferred: &[Ref<Host>],
) -> Result<Vec<Round>> {
    let others = site.sees.keys().filter(|host| !preferred.contains(host));
    let order: Vec<(&Ref<Host>, usize)> = preferred
        .iter()
        .chain(others)
        .filter_map(|host| Some((host, site.template_for(host, templates)?)))
        .collect();
    let mut left: Vec<usize> = (0..disks.len()).collect();
    let mut rounds = Vec::new();
    while !left.is_empty() {
        let reach = |host: &Ref<Host>| {
            let seen = site.sees.get(host);
            left.iter().filter(|disk| seen.is_some_and(|seen| seen.contains(&disks[**disk]))).count()
        };
        // `max_by_key` takes the last of equals, so the order is turned round.
        let best = order.iter().rev().max_by_key(|(host, _)| reach(host)).filter(|(host, _)| reach(host) > 0);
        let Some((host, template)) = best else { return Err(unreachable(disks, &left, site)) };
        let seen = &site.sees[*host];
        let taken: Vec<usize> =
            left.iter().copied().filter(|disk| seen.contains(&disks[*disk])).take(MAX_DISKS).collect();
        left.retain(|disk| !taken.contains(disk));
        rounds.push(Round { host: (*host).clone(), template: *template, disks: taken });
    }
    Ok(rounds)
}

fn unreachable(disks: &[Ref<Sr>], left: &[usize], site: &Site) -> Error {
    let seen = |sr: &Ref<Sr>| site.sees.values().any(|seen| seen.contains(sr));
    let (what, remedy) = match left.iter().find(|disk| !seen(&disks[**disk])) {
        Some(disk) => (
            format!(
                "no enabled host of the pool sees the storage '{}' of disk {disk}",
                site.names.get(&disks[*disk]).map_or(disks[*disk].as_str(), String::as_str)
            ),
            "plug the storage on a host that is up, and enable the host",
        ),
        None => (
            "no host sees both the storage of the disks and that of the delegate's template".to_owned(),
            "import the template to storage that the VM's host sees: abd template import FILE.xva --sr SR",
        ),
    };
    Error::new(Kind::Failed, what).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::Template;

    fn sr(name: &str) -> Ref<Sr> {
        Ref::from_opaque(format!("OpaqueRef:{name}"))
    }

    fn host(name: &str) -> Ref<Host> {
        Ref::from_opaque(format!("OpaqueRef:{name}"))
    }

    fn site(hosts: &[(&str, &[&str])]) -> Site {
        let sees = hosts.iter().map(|(name, srs)| (host(name), srs.iter().map(|name| sr(name)).collect()));
        Site { sees: sees.collect(), names: BTreeMap::new() }
    }

    fn templates(storage: &[&str]) -> Vec<TemplateAt> {
        let at = |name: &&str| TemplateAt {
            template: Template {
                reference: Ref::from_opaque(format!("OpaqueRef:t-{name}")),
                uuid: String::new(),
                version: String::new(),
                digest: String::new(),
            },
            storage: vec![sr(name)],
        };
        storage.iter().map(at).collect()
    }

    fn plan(
        disks: &[&str],
        site: &Site,
        on: &[&str],
        preferred: &[&str],
    ) -> Vec<(String, usize, Vec<usize>)> {
        let disks: Vec<_> = disks.iter().map(|name| sr(name)).collect();
        let preferred: Vec<_> = preferred.iter().map(|name| host(name)).collect();
        let rounds = rounds(&disks, site, &templates(on), &preferred).expect("a plan");
        rounds.into_iter().map(|round| (round.host.to_string(), round.template, round.disks)).collect()
    }

    /// Hosts by name with what is free there in MiB, all up, on the network and seeing nothing.
    fn site_of(free: &[(&str, u64)], change: impl Fn(&mut Host, &mut Pif)) -> Vec<String> {
        let network = Ref::from_opaque("OpaqueRef:network");
        let (mut hosts, mut metrics, mut pifs) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (name, free) in free {
            let of_host = Ref::from_opaque(format!("OpaqueRef:metrics-{name}"));
            let record = Host {
                name_label: (*name).into(),
                enabled: true,
                metrics: of_host.clone(),
                ..Host::default()
            };
            let mut pif = Pif {
                host: host(name),
                network: Ref::from_opaque("OpaqueRef:network"),
                currently_attached: true,
                ..Pif::default()
            };
            let mut record = record;
            change(&mut record, &mut pif);
            hosts.insert(host(name), record);
            metrics.insert(
                of_host,
                HostMetrics { live: true, memory_free: free << 20, ..HostMetrics::default() },
            );
            pifs.insert(Ref::from_opaque(format!("OpaqueRef:pif-{name}")), pif);
        }
        let (pbds, srs) = (BTreeMap::new(), BTreeMap::new());
        let records = Records { hosts: &hosts, metrics: &metrics, pbds: &pbds, pifs: &pifs, srs: &srs };
        let site =
            Site::of(records, &Demand { networks: vec![network], footprint: ByteCount::new(100 << 20) });
        site.sees.keys().map(|host| host.as_str().trim_start_matches("OpaqueRef:").to_owned()).collect()
    }

    #[test]
    fn hosts_without_memory_are_taken_only_where_none_has_any() {
        let same = |_: &mut Host, _: &mut Pif| {};
        assert_eq!(site_of(&[("a", 99), ("b", 100), ("c", 0)], same), ["b", "c"], "0 is not known");
        assert_eq!(site_of(&[("a", 99), ("b", 1)], same), ["a", "b"]);
    }

    #[test]
    fn hosts_that_are_down_or_off_the_network_are_not_taken() {
        let down = |host: &mut Host, _: &mut Pif| host.enabled = host.name_label != "a";
        assert_eq!(site_of(&[("a", 200), ("b", 200)], down), ["b"]);
        let unplugged = |host: &mut Host, pif: &mut Pif| pif.currently_attached = host.name_label != "a";
        assert_eq!(site_of(&[("a", 200), ("b", 200)], unplugged), ["b"]);
        let elsewhere = |_: &mut Host, pif: &mut Pif| pif.network = Ref::null();
        assert_eq!(site_of(&[("a", 200)], elsewhere), ["a"], "an internal network has no adapters");
    }

    #[test]
    fn the_preferred_host_takes_everything_it_sees() {
        let site = site(&[("a", &["shared"]), ("b", &["shared"]), ("c", &["shared", "local"])]);
        let name = |name: &str| host(name).to_string();
        assert_eq!(plan(&["shared"], &site, &["shared"], &["b"]), [(name("b"), 0, vec![0])]);
        assert_eq!(plan(&["shared"], &site, &["shared"], &[]), [(name("a"), 0, vec![0])]);
        // The preferred one does not see all of it.
        assert_eq!(plan(&["shared", "local"], &site, &["shared"], &["b"]), [(name("c"), 0, vec![0, 1])]);
        // A host that is down is in no site.
        assert_eq!(plan(&["shared"], &site, &["shared"], &["down"]), [(name("a"), 0, vec![0])]);
    }

    #[test]
    fn disks_on_local_storage_of_two_hosts_are_two_rounds_with_a_template_each() {
        let site = site(&[("a", &["la"]), ("b", &["lb"])]);
        let rounds = plan(&["la", "lb", "la"], &site, &["lb", "la"], &[]);
        let name = |name: &str| host(name).to_string();
        assert_eq!(rounds, [(name("a"), 1, vec![0, 2]), (name("b"), 0, vec![1])]);
    }

    #[test]
    fn more_disks_than_a_delegate_takes_are_several_rounds() {
        let site = site(&[("a", &["s"])]);
        let rounds = plan(&["s"; MAX_DISKS + 3], &site, &["s"], &[]);
        assert_eq!(rounds.iter().map(|(_, _, disks)| disks.len()).collect::<Vec<_>>(), [MAX_DISKS, 3]);
        let all: Vec<usize> = rounds.into_iter().flat_map(|(_, _, disks)| disks).collect();
        assert_eq!(all, (0..MAX_DISKS + 3).collect::<Vec<_>>());
    }

    #[test]
    fn what_no_host_sees_is_named_with_a_remedy() {
        let site = site(&[("a", &["s"])]);
        let error = rounds(&[sr("s"), sr("gone")], &site, &templates(&["s"]), &[]).expect_err("gone");
        assert!(error.to_string().contains("gone") && error.remedy_text().is_some(), "{error}");
        let error = rounds(&[sr("s")], &site, &templates(&["elsewhere"]), &[]).expect_err("template");
        assert!(error.to_string().contains("template"), "{error}");
    }
}
