//! The appliance template: that it is there with its disk, and that hosts see it.

use super::facts::Facts;
use super::finding::{Code, Finding};
use crate::job::FIRST_POSITION;
use xapi::Vbd;

/// Checks the template of the delegates.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let template = match &facts.template {
        Ok(template) => template,
        Err(missing) => {
            let mut finding =
                Finding::error(Code::Template, facts.pool_object(), &missing.message, &missing.remedy);
            finding.kind = missing.kind;
            return vec![finding];
        }
    };
    let again = "import it again: abd template remove, then abd template import FILE.xva";
    let Some(vm) = facts.vms.get(&template.reference) else {
        let message = format!("the appliance template is gone from pool '{}'", facts.name);
        return vec![Finding::error(Code::Template, facts.pool_object(), message, again)];
    };
    let disks = facts.disks(vm);
    let bad =
        |message: String| vec![Finding::error(Code::TemplateDisk, Facts::vm_object(vm), message, again)];
    let [disk] = disks.as_slice() else {
        return bad(format!("the appliance template has {} disks instead of one", disks.len()));
    };
    if disk.vdi.missing {
        return bad("the storage has lost the disk of the appliance template".into());
    }
    // The delegate's disks come to these positions.
    let taken =
        |vbd: &&Vbd| vbd.userdevice.parse().is_ok_and(|position: u32| position >= u32::from(FIRST_POSITION));
    if let Some(vbd) = vm.vbds.iter().filter_map(|vbd| facts.vbds.get(vbd)).find(taken) {
        return bad(format!("the appliance template has a drive at position {}", vbd.userdevice));
    }
    let version = &template.version;
    let mut findings = vec![Finding::ok(
        Code::Template,
        Facts::vm_object(vm),
        format!("the appliance template is there, version {version}"),
    )];
    let usable = || facts.hosts.iter().filter(|(host, _)| facts.is_usable(host));
    let unseen: Vec<_> = usable()
        .filter(|(host, _)| !facts.sees(host, &disk.vdi.sr))
        .map(|(_, record)| format!("'{}'", record.name_label))
        .collect();
    if !unseen.is_empty() {
        let sr = disk.sr.map_or("its storage", |sr| &sr.name_label);
        let message = format!("the appliance template is on '{sr}', which {} cannot see", unseen.join(", "));
        let remedy = "for VMs whose disks only those hosts see, import it to storage that they share";
        let all = unseen.len() == usable().count();
        let make = if all { Finding::error } else { Finding::warning };
        findings.push(make(Code::TemplateStorage, Facts::vm_object(vm), message, remedy.to_owned()));
    }
    findings
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
        sample.facts.template = Err(missing);
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
        assert!(
            check(&sample.facts)[1].message.contains("'host-2' cannot see"),
            "{:?}",
            check(&sample.facts)
        );
        sample.host_mut().enabled = false;
        assert_eq!(found(&sample), [(Code::Template, Level::Ok), (Code::TemplateStorage, Level::Error)]);
    }
}
