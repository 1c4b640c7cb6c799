//! The pool as a whole: its release, what its licence allows, its clock and its certificates.

use super::facts::{FIRST_CBT_API, Facts, HostCertificate};
use super::finding::{Code, Finding};
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};
use xapi::Host;

/// Clocks further apart than this make restore points look older or younger than they are.
const CLOCK_LIMIT: Duration = Duration::from_secs(60);
/// A certificate that ends sooner than this is named: enough time for whoever makes a new one.
const EXPIRY_LIMIT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Product and version of a host, such as `XCP-ng 8.3.0`; XAPI's own where the build has none.
pub(super) fn product(host: &Host) -> String {
    let text = |key: &str| host.software_version.get(key).map(String::as_str).unwrap_or_default();
    match format!("{} {}", text("product_brand"), text("product_version")).trim() {
        "" => format!("XAPI {}.{}", host.api_version_major, host.api_version_minor),
        product => product.to_owned(),
    }
}

/// Checks the release and the licence.
pub(super) fn check_release(facts: &Facts) -> Vec<Finding> {
    let products: BTreeSet<String> = facts.hosts.values().map(product).collect();
    let product = products.iter().cloned().collect::<Vec<_>>().join(" and ");
    let hosts =
        if facts.hosts.len() == 1 { "1 host".to_owned() } else { format!("{} hosts", facts.hosts.len()) };
    let mut findings = vec![Finding::ok(
        Code::Pool,
        facts.pool_object(),
        format!("pool '{}' answers: {product}, {hosts}, {}", facts.name, facts.protocol),
    )];
    if products.len() > 1 {
        findings.push(Finding::warning(
            Code::Release,
            facts.pool_object(),
            format!("the hosts of pool '{}' are of different releases: {product}", facts.name),
            "finish the upgrade of the pool: until then XAPI refuses some operations",
        ));
    }
    if facts.api() < FIRST_CBT_API {
        findings.push(Finding::warning(
            Code::Release,
            facts.pool_object(),
            format!("{product} does not track changes: jobs keep a snapshot of each VM, or read everything"),
            "change tracking comes with XenServer 7.3 and with every XCP-ng from 7.5 on",
        ));
    } else if cbt_is_restricted(facts) == Some(true) {
        findings.push(Finding::warning(
            Code::CbtLicence,
            facts.pool_object(),
            format!(
                "the licence of pool '{}' has no change tracking: jobs read everything and compare",
                facts.name
            ),
            "apply a licence with changed block tracking (XenServer Premium)",
        ));
    }
    findings
}

/// Whether the licence forbids change tracking; none where the pool does not say.
pub fn cbt_is_restricted(facts: &Facts) -> Option<bool> {
    const KEY: &str = "restrict_cbt";
    let of_hosts = || facts.hosts.values().filter_map(|host| host.license_params.get(KEY));
    match facts.pool.restrictions.get(KEY) {
        Some(word) => Some(word == "true"),
        // The pool is as restricted as its most restricted host.
        None => of_hosts().map(|word| word == "true").max(),
    }
}

/// Checks the clock.
pub(super) fn check_clock(facts: &Facts) -> Vec<Finding> {
    let Some(clocks) = facts.clocks else { return Vec::new() };
    let apart = clocks.here.duration_since(clocks.pool).or_else(|_| clocks.pool.duration_since(clocks.here));
    let apart = apart.unwrap_or_default();
    if apart <= CLOCK_LIMIT {
        return Vec::new();
    }
    vec![Finding::warning(
        Code::Clock,
        facts.pool_object(),
        format!("the clocks of pool '{}' and of this machine are {} s apart", facts.name, apart.as_secs()),
        "set up NTP on both",
    )]
}

/// Checks pins and ends of certificates. `now` decides what ends soon.
pub(super) fn check_certificates(facts: &Facts, now: SystemTime) -> Vec<Finding> {
    let mut findings = Vec::new();
    let again = format!(
        "record all hosts again: abd pool remove {0}, then abd pool add; compare the fingerprints first",
        facts.name
    );
    for (reference, certificate) in &facts.host_certificates {
        let Some(host) = facts.hosts.get(reference) else { continue };
        let (name, address) = (&host.name_label, &host.address);
        let message = match certificate {
            HostCertificate { pinned: None, .. } => format!(
                "the certificate of host '{name}' ({address}) is not recorded: calls that lead there fail"
            ),
            HostCertificate { pinned: Some(pinned), shown: Some(shown) } if pinned != shown => format!(
                "host '{name}' ({address}) has another certificate than the recorded one: calls that lead \
                 there fail"
            ),
            _ => continue,
        };
        findings.push(Finding::warning(Code::Certificate, Facts::host_object(host), message, again.clone()));
    }
    for certificate in facts.certificates.values() {
        // Hosts show one kind to clients; others are between hosts.
        if !matches!(certificate.kind.as_str(), "host" | "") {
            continue;
        }
        let Some(host) = facts.hosts.get(&certificate.host) else { continue };
        let Some(end) = xapi::timestamp(&certificate.not_after) else { continue };
        let message = match end.duration_since(now) {
            Ok(left) if left > EXPIRY_LIMIT => continue,
            Ok(left) => format!(
                "the certificate of host '{}' ends in {} days",
                host.name_label,
                left.as_secs() / (24 * 3600)
            ),
            Err(_) => format!("the certificate of host '{}' has ended", host.name_label),
        };
        findings.push(Finding::warning(
            Code::CertificateExpiry,
            Facts::host_object(host),
            message,
            "pins do not care; but when it is replaced, record it again: abd pool remove, abd pool add",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::facts::Clocks;
    use super::super::sample::Sample;
    use super::*;
    use crate::preflight::finding::Level;
    use xapi::{Certificate, Ref};

    fn found(findings: Vec<Finding>) -> Vec<(Code, Level)> {
        findings.iter().map(|finding| (finding.code, finding.level)).collect()
    }

    #[test]
    fn releases_before_7_3_and_mixed_ones_are_named() {
        let mut sample = Sample::new();
        assert_eq!(found(check_release(&sample.facts)), [(Code::Pool, Level::Ok)]);
        sample.host_mut().api_version_minor = 7;
        assert_eq!(
            found(check_release(&sample.facts)),
            [(Code::Pool, Level::Ok), (Code::Release, Level::Warning)]
        );
        sample.host_mut().api_version_minor = 8;
        assert_eq!(found(check_release(&sample.facts)), [(Code::Pool, Level::Ok)]);
        sample.add_host("host-2", 1 << 30, true);
        sample.host_mut().software_version.insert("product_version".into(), "8.2.0".into());
        assert_eq!(
            found(check_release(&sample.facts)),
            [(Code::Pool, Level::Ok), (Code::Release, Level::Warning)]
        );
    }

    #[test]
    fn a_licence_without_tracking_is_named_where_the_pool_says_so() {
        let mut sample = Sample::new();
        let mut licence = |pool: Option<&str>, host: Option<&str>| {
            let map = |word: Option<&str>| {
                word.map(|w| ("restrict_cbt".to_owned(), w.to_owned())).into_iter().collect()
            };
            sample.facts.pool.restrictions = map(pool);
            sample.host_mut().license_params = map(host);
            found(check_release(&sample.facts)).contains(&(Code::CbtLicence, Level::Warning))
        };
        assert!(!licence(None, None), "an open-source build says nothing");
        assert!(!licence(Some("false"), Some("true")), "the pool's word counts");
        assert!(licence(Some("true"), None));
        assert!(licence(None, Some("true")));
        assert!(!licence(None, Some("false")));
    }

    #[test]
    fn clocks_may_be_a_minute_apart_either_way() {
        let mut sample = Sample::new();
        let here = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let mut apart = |pool: SystemTime| {
            sample.facts.clocks = Some(Clocks { pool, here });
            found(check_clock(&sample.facts))
        };
        assert_eq!(apart(here + CLOCK_LIMIT), []);
        assert_eq!(apart(here - CLOCK_LIMIT), []);
        let late = [(Code::Clock, Level::Warning)];
        assert_eq!(apart(here + CLOCK_LIMIT + Duration::from_secs(1)), late);
        assert_eq!(apart(here - CLOCK_LIMIT - Duration::from_secs(1)), late);
    }

    #[test]
    fn hosts_without_a_pin_or_with_another_certificate_are_named() {
        let mut sample = Sample::new();
        let now = SystemTime::UNIX_EPOCH;
        let mut of = |pinned: Option<&str>, shown: Option<&str>| {
            let certificate =
                HostCertificate { pinned: pinned.map(Into::into), shown: shown.map(Into::into) };
            sample.facts.host_certificates.insert(sample.host.clone(), certificate);
            check_certificates(&sample.facts, now)
        };
        assert_eq!(of(Some("aa"), Some("aa")), []);
        assert_eq!(of(Some("aa"), None), [], "a pool that does not tell is trusted by the pin");
        assert!(of(None, Some("aa"))[0].message.contains("not recorded"));
        assert!(of(Some("aa"), Some("bb"))[0].message.contains("another certificate"));
    }

    #[test]
    fn a_certificate_that_ends_within_a_month_is_named() {
        let mut sample = Sample::new();
        let now = xapi::timestamp("20260101T00:00:00Z").expect("a date");
        let mut ends = |kind: &str, date: &str| {
            let certificate = Certificate {
                host: sample.host.clone(),
                kind: kind.into(),
                not_after: date.into(),
                ..Certificate::default()
            };
            sample.facts.certificates.insert(Ref::from_opaque("OpaqueRef:c"), certificate);
            check_certificates(&sample.facts, now)
        };
        assert_eq!(ends("host", "20260131T00:00:01Z"), []);
        assert!(ends("host", "20260131T00:00:00Z")[0].message.contains("ends in 30 days"));
        assert!(ends("", "20251231T23:59:59Z")[0].message.contains("has ended"));
        assert_eq!(ends("host_internal", "20251231T23:59:59Z"), []);
        assert_eq!(ends("host", "19700101T00:00:00Z"), [], "the epoch means unknown");
    }
}
