//! The appliance template: that it is there with its disk, and that hosts see it.

use super::facts::Facts;
use super::finding::{Code, Finding};
use crate::job::FIRST_POSITION;
use crate::template::TemplateAt;
use xapi::{Host, Ref, Vbd};

/// Checks the templates of the delegates.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let templates = match &facts.templates {
        Ok(templates) => templates,
        Err(missing) => {
            let mut finding =
                Finding::error(Code::Template, facts.pool_object(), &missing.message, &missing.remedy);
            finding.kind = missing.kind;
            return vec![finding];
        }
    };
    let mut findings: Vec<_> = templates.iter().map(|template| one(facts, template)).collect();
    let usable = || facts.hosts.iter().filter(|(host, _)| facts.is_usable(host));
    let sees_one = |host: &Ref<Host>| {
        templates.iter().any(|template| template.storage.iter().all(|sr| facts.sees(host, sr)))
    };
    let unseen: Vec<_> = usable().filter(|(host, _)| !sees_one(host)).collect();
    if !unseen.is_empty() {
        let names: Vec<_> = unseen.iter().map(|(_, host)| format!("'{}'", host.name_label)).collect();
        let message = format!("no appliance template is on storage that {} can see", names.join(", "));
        let remedy =
            "import it there, or to storage that the hosts share: abd template import FILE.xva --sr SR";
        let make = if unseen.len() == usable().count() { Finding::error } else { Finding::warning };
        findings.push(make(Code::TemplateStorage, facts.pool_object(), message, remedy.to_owned()));
    }
    findings
}

/// Checks one template and its disk.
fn one(facts: &Facts, template: &TemplateAt) -> Finding {
    let again = "import it again: abd template remove, then abd template import FILE.xva";
    let Some(vm) = facts.vms.get(&template.template.reference) else {
        let message = format!("an appliance template is gone from pool '{}'", facts.name);
        return Finding::error(Code::Template, facts.pool_object(), message, again);
    };
    let disks = facts.disks(vm);
    let bad = |message: String| Finding::error(Code::TemplateDisk, Facts::vm_object(vm), message, again);
    let [disk] = disks.as_slice() else {
        return bad(format!("the appliance template has {} disks instead of one", disks.len()));
    };
    let sr = disk.sr.map_or("unknown storage", |sr| &sr.name_label);
    if disk.vdi.missing {
        return bad(format!("storage '{sr}' has lost the disk of the appliance template"));
    }
    // The delegate's disks come to these positions.
    let taken =
        |vbd: &&Vbd| vbd.userdevice.parse().is_ok_and(|position: u32| position >= u32::from(FIRST_POSITION));
    if let Some(vbd) = vm.vbds.iter().filter_map(|vbd| facts.vbds.get(vbd)).find(taken) {
        return bad(format!("the appliance template has a drive at position {}", vbd.userdevice));
    }
    Finding::ok(
        Code::Template,
        Facts::vm_object(vm),
        format!("the appliance template is on storage '{sr}', version {}", template.template.version),
    )
}

#[cfg(test)]
mod tests {
    use super::super::facts::NotFound;
    use super::super::sample::Sample;
    use super::*;
    use crate::error::Kind;
    use crate::preflight::finding::Level;

    fn found(sample: &Sample) -> Vec<(Code, Level)> {
        check(&sample.facts).iter().map(|finding| (finding.code, finding.level)).collect()
    }

    #[test]
    fn a_template_with_its_disk_is_fine() {
        assert_eq!(found(&Sample::new()), [(Code::Template, Level::Ok)]);
    }

    #[test]
    fn a_missing_template_keeps_its_words_and_its_exit_code() {
        let mut sample = Sample::new();
        let missing =
            NotFound { kind: Kind::Template, message: "not there".into(), remedy: "import it".into() };
        sample.facts.templates = Err(missing);
        assert_eq!(found(&sample), [(Code::Template, Level::Error)]);
        assert_eq!(check(&sample.facts)[0].kind, Kind::Template);
    }

    #[test]
    fn a_template_without_a_usable_disk_is_an_error() {
        let mut lost = Sample::new();
        lost.template_disk_mut().missing = true;
        assert_eq!(found(&lost), [(Code::TemplateDisk, Level::Error)]);
        let mut without = Sample::new();
        let disk = without.template_disk_reference();
        without.facts.vdis.remove(&disk);
        assert_eq!(found(&without), [(Code::TemplateDisk, Level::Error)]);
    }

    #[test]
    fn a_template_must_leave_the_delegates_positions_free() {
        let mut sample = Sample::new();
        sample.add_template_drive("3");
        assert_eq!(found(&sample), [(Code::Template, Level::Ok)]);
        sample.add_template_drive("4");
        assert_eq!(found(&sample), [(Code::TemplateDisk, Level::Error)]);
    }

    #[test]
    fn hosts_that_do_not_see_the_template_are_named_and_none_that_does_is_an_error() {
        let mut sample = Sample::new();
        sample.add_host("host-2", 1 << 30, false);
        assert_eq!(found(&sample), [(Code::Template, Level::Ok), (Code::TemplateStorage, Level::Warning)]);
        assert!(check(&sample.facts)[1].message.contains("'host-2' can see"), "{:?}", check(&sample.facts));
        sample.host_mut().enabled = false;
        assert_eq!(found(&sample), [(Code::Template, Level::Ok), (Code::TemplateStorage, Level::Error)]);
    }
}
