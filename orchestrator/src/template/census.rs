//! Which appliance templates a pool has, in which state, and which of them jobs clone.

use super::version::compare;
use super::{Template, VERSION};
use crate::error::{Context, Error, Kind, Result};
use crate::ownership::job_of_name;
use crate::pool::{Pool, TAG_IDLE, TAG_JOB, TAG_RETIRED, TAG_TICKET};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use xapi::{PowerState, Ref, Sr, Vbd, VbdType, Vdi, Vm};

/// In the place of a successor: somebody removed the template.
pub(super) const REMOVED: &str = "removed";

/// What XAPI calls an import that is under way, in a VM's current operations.
const IMPORTING: &str = "import";

/// What a template is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Jobs clone it.
    Live,
    /// Its disk is still on its way.
    Importing,
    /// Another one took its place; it goes when the last delegate that was made of it has ended.
    Retired,
    /// It cannot be cloned, and why.
    Broken(String),
}

impl State {
    /// In one word.
    pub fn word(&self) -> &'static str {
        match self {
            State::Live => "live",
            State::Importing => "importing",
            State::Retired => "retired",
            State::Broken(_) => "broken",
        }
    }
}

/// A template in a pool, as it is found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The template.
    pub template: Template,
    /// What it is good for.
    pub state: State,
    /// What its mark says took its place: a template's uuid, or [`REMOVED`].
    pub successor: Option<String>,
    /// What it was given when it came; none where its import has not got so far.
    pub ticket: Option<u64>,
    /// Whether that holds: its place is taken, whatever else is the matter with it. It may be removed.
    pub is_replaced: bool,
    /// Its disks: uuid, and whether their storage still has them.
    pub disks: Vec<(String, bool)>,
    /// Where its disks lie.
    pub storage: Vec<Ref<Sr>>,
    /// Delegates that were made of it and are at work, of any installation.
    pub users: usize,
    /// Whether the pool is doing something with it, such as cloning it.
    pub is_busy: bool,
}

/// A template together with the storage that a clone of it needs.
#[derive(Clone, Debug)]
pub struct TemplateAt {
    /// The template.
    pub template: Template,
    /// Where its disks lie.
    pub storage: Vec<Ref<Sr>>,
}

/// Every appliance template in the pool, whatever its version and state.
///
/// # Errors
/// What the pool says.
pub async fn survey(pool: &Pool) -> Result<Vec<Found>> {
    let client = &pool.client;
    // In this order: a disk that is removed meanwhile makes a template broken, never one without a state.
    let vms = client.get_all_records::<Vm>().await.context(|| "list templates".into())?;
    if !vms.values().any(is_template) {
        return Ok(Vec::new());
    }
    let vbds = client.get_all_records::<Vbd>().await.context(|| "list the templates' drives".into())?;
    let vdis = client.get_all_records::<Vdi>().await.context(|| "list the templates' disks".into())?;
    Ok(of_records(&vms, &vbds, &vdis))
}

fn is_template(vm: &Vm) -> bool {
    // A clone is a template too until its job has set it up.
    vm.is_a_template
        && !vm.is_a_snapshot
        && vm.other_config.contains_key(xva::TEMPLATE_KEY)
        && !vm.other_config.contains_key(TAG_JOB)
        && !vm.name_label.starts_with("abd-")
}

fn of_records(
    vms: &BTreeMap<Ref<Vm>, Vm>,
    vbds: &BTreeMap<Ref<Vbd>, Vbd>,
    vdis: &BTreeMap<Ref<Vdi>, Vdi>,
) -> Vec<Found> {
    let is_at_work = |vm: &&Vm| {
        let idle = vm.other_config.contains_key(TAG_IDLE) && vm.power_state == PowerState::Halted;
        !vm.is_a_snapshot && job_of_name(vm).is_some() && !idle
    };
    let delegates: Vec<&Vm> = vms.values().filter(is_at_work).collect();
    let tags = |vm: &Vm| {
        let tag = |key: &str| vm.other_config.get(key).cloned().unwrap_or_default();
        (tag(xva::TEMPLATE_KEY), tag(xva::DIGEST_KEY))
    };
    let one = |(reference, vm): (&Ref<Vm>, &Vm)| {
        let drives = vm.vbds.iter().filter_map(|vbd| vbds.get(vbd)).filter(|vbd| vbd.kind == VbdType::Disk);
        let present: Vec<&Vdi> = drives.filter_map(|vbd| vdis.get(&vbd.vdi)).collect();
        let (version, digest) = tags(vm);
        let state = match present.as_slice() {
            _ if vm.current_operations.values().any(|operation| operation == IMPORTING) => State::Importing,
            [] => State::Broken("its disk is gone".into()),
            disks if disks.iter().any(|vdi| vdi.missing) => {
                State::Broken("its storage has lost its disk".into())
            }
            _ => State::Live,
        };
        Found {
            state,
            successor: vm.other_config.get(TAG_RETIRED).cloned(),
            // What nobody of us wrote is the lowest: nobody can write another.
            ticket: vm.other_config.get(TAG_TICKET).map(|text| text.parse().unwrap_or(0)),
            is_replaced: false,
            disks: present.iter().map(|vdi| (vdi.uuid.to_string(), !vdi.missing)).collect(),
            storage: present.iter().map(|vdi| vdi.sr.clone()).collect(),
            users: delegates.iter().filter(|vm| tags(vm) == (version.clone(), digest.clone())).count(),
            is_busy: !vm.current_operations.is_empty(),
            template: Template { reference: reference.clone(), uuid: vm.uuid.to_string(), version, digest },
        }
    };
    let mut found: Vec<Found> = vms.iter().filter(|(_, vm)| is_template(vm)).map(one).collect();
    judge(&mut found);
    found
}

/// Works out which of them are replaced, from their marks.
pub(super) fn judge(found: &mut [Found]) {
    let replaced: Vec<bool> = (0..found.len()).map(|at| is_replaced(found, at)).collect();
    for (found, is_replaced) in found.iter_mut().zip(replaced) {
        found.is_replaced = is_replaced;
        if is_replaced && found.state == State::Live {
            found.state = State::Retired;
        }
    }
}

/// Whether something that works took a template's place. A mark alone says little: what it names may be gone, or may
/// have been replaced by this very template at the same moment by somebody else. Everybody who looks decides alike, and
/// of several that replace each other in a circle one stays.
fn is_replaced(found: &[Found], template: usize) -> bool {
    let mut path = vec![template];
    let mut at = template;
    loop {
        let Some(successor) = &found[at].successor else { return at != template };
        if successor == REMOVED {
            return true;
        }
        let next = found.iter().position(|one| one.template.uuid == *successor && one.state == State::Live);
        let Some(next) = next else { return at != template };
        if let Some(begin) = path.iter().position(|passed| *passed == next) {
            let stays = path[begin..].iter().min_by_key(|at| &found[**at].template.uuid);
            return stays != Some(&template);
        }
        path.push(next);
        at = next;
    }
}

/// The templates that this orchestrator's jobs can clone: at least one. There are several where the pool's VMs lie
/// on local storage of several hosts.
///
/// # Errors
/// [`Kind::Template`] where none is live and of our version, saying what is there instead.
pub async fn usable(pool: &Pool) -> Result<Vec<TemplateAt>> {
    let found = survey(pool).await?;
    let (good, others): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|one| one.state == State::Live && one.template.version == VERSION);
    if good.is_empty() {
        return Err(none_usable(&pool.config.name, &others));
    }
    Ok(good.into_iter().map(|one| TemplateAt { template: one.template, storage: one.storage }).collect())
}

/// Why no template can be used.
fn none_usable(pool: &str, found: &[Found]) -> Error {
    let import = "import it: abd template import FILE.xva";
    let error = |message: String| Error::new(Kind::Template, message);
    if let Some(newer) = newest(found).filter(|newest| compare(newest, VERSION) == Ordering::Greater) {
        return too_old(pool, &newer);
    }
    let ours = || found.iter().filter(|one| one.template.version == VERSION);
    let in_state = |wanted: fn(&State) -> bool| ours().find(|one| wanted(&one.state));
    if in_state(|state| *state == State::Importing).is_some() {
        return error(format!("the appliance template is being imported into pool '{pool}' at this moment"))
            .remedy("wait until it is there: abd template status");
    }
    if let Some(Found { state: State::Broken(why), .. }) = in_state(|state| matches!(state, State::Broken(_)))
    {
        return error(format!("the appliance template in pool '{pool}' cannot be used: {why}"))
            .remedy("import it again: abd template import FILE.xva");
    }
    let live: Vec<&str> = found
        .iter()
        .filter(|one| one.state == State::Live)
        .map(|one| one.template.version.as_str())
        .collect();
    if live.is_empty() {
        return error(format!("the appliance template is not in pool '{pool}'")).remedy(import);
    }
    let versions = live.join(", ");
    error(format!(
        "the appliance template in pool '{pool}' is of version {versions}, this orchestrator needs {VERSION}"
    ))
    .remedy(import)
}

/// The newest version among those that are live.
pub(super) fn newest(found: &[Found]) -> Option<String> {
    let live = found.iter().filter(|one| one.state == State::Live);
    live.map(|one| one.template.version.clone()).max_by(|left, right| compare(left, right))
}

/// The error of an older `abd` that meets a newer template.
pub(super) fn too_old(pool: &str, newer: &str) -> Error {
    Error::new(
        Kind::Template,
        format!("pool '{pool}' has the appliance template of version {newer}; this abd is older: {VERSION}"),
    )
    .remedy(format!("update abd on this machine to version {newer}"))
}

/// The same templates where they are as they were; else those that can be used now. A run lasts for hours, and an
/// upgrade of the template does not wait for it.
///
/// # Errors
/// As [`usable`].
pub async fn unchanged(pool: &Pool, known: &[TemplateAt]) -> Result<Vec<TemplateAt>> {
    for at in known {
        let record = pool.client.get_record::<Vm>(&at.template.reference).await;
        let is_there = match crate::removal::present(record).context(|| "look at the template".into())? {
            Some(vm) => is_template(&vm) && !vm.other_config.contains_key(TAG_RETIRED),
            None => false,
        };
        if !is_there {
            return usable(pool).await;
        }
    }
    Ok(known.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ownership::delegate_name;
    use xapi::StringMap;

    const DIGEST: &str = "d";

    struct Records {
        vms: BTreeMap<Ref<Vm>, Vm>,
        vbds: BTreeMap<Ref<Vbd>, Vbd>,
        vdis: BTreeMap<Ref<Vdi>, Vdi>,
    }

    fn keys(version: &str) -> StringMap {
        StringMap::from([(xva::TEMPLATE_KEY.into(), version.into()), (xva::DIGEST_KEY.into(), DIGEST.into())])
    }

    /// A pool with one template with its disk.
    fn records(version: &str) -> Records {
        let (vm, vbd, vdi) = (Ref::from_opaque("vm"), Ref::from_opaque("vbd"), Ref::from_opaque("vdi"));
        let template = Vm {
            is_a_template: true,
            other_config: keys(version),
            vbds: vec![vbd.clone()],
            name_label: "t".into(),
            ..Vm::default()
        };
        let drive = Vbd { vm: vm.clone(), vdi: vdi.clone(), kind: VbdType::Disk, ..Vbd::default() };
        Records {
            vms: BTreeMap::from([(vm, template)]),
            vbds: BTreeMap::from([(vbd, drive)]),
            vdis: BTreeMap::from([(vdi, Vdi::default())]),
        }
    }

    impl Records {
        fn template(&mut self) -> &mut Vm {
            self.vms.get_mut(&Ref::from_opaque("vm")).expect("the template")
        }

        fn found(&self) -> Found {
            of_records(&self.vms, &self.vbds, &self.vdis).remove(0)
        }
    }

    #[test]
    fn a_template_is_as_good_as_its_disk() {
        let mut pool = records(VERSION);
        assert_eq!(pool.found().state, State::Live);
        pool.vdis.values_mut().for_each(|vdi| vdi.missing = true);
        assert!(matches!(pool.found().state, State::Broken(_)));
        pool.vdis.clear();
        assert!(matches!(pool.found().state, State::Broken(_)));
        assert!(none_usable("p", &[pool.found()]).to_string().contains("its disk is gone"));
    }

    #[test]
    fn half_a_template_and_one_that_was_replaced_are_not_live() {
        let mut pool = records(VERSION);
        pool.template().current_operations = StringMap::from([("task".into(), "import".into())]);
        assert_eq!(pool.found().state, State::Importing);
        pool.template().current_operations = StringMap::from([("task".into(), "clone".into())]);
        assert_eq!(pool.found().state, State::Live);
        assert!(pool.found().is_busy);
        pool.template().other_config.insert(TAG_RETIRED.into(), "gone".into());
        assert_eq!(pool.found().state, State::Live, "what was to replace it is not there");
        pool.template().other_config.insert(TAG_RETIRED.into(), REMOVED.into());
        assert_eq!(pool.found().state, State::Retired);
    }

    fn with_successors(successors: &[(&str, Option<&str>)]) -> Vec<&'static str> {
        let base = records(VERSION).found();
        let mut found: Vec<Found> = successors
            .iter()
            .map(|(uuid, successor)| {
                let mut one = base.clone();
                one.template.uuid = (*uuid).to_owned();
                one.successor = successor.map(str::to_owned);
                one
            })
            .collect();
        if let Some(broken) = found.iter_mut().find(|one| one.template.uuid == "broken") {
            broken.state = State::Broken("it is".into());
        }
        let words = (0..found.len()).map(|at| if is_replaced(&found, at) { "replaced" } else { "stays" });
        words.collect()
    }

    #[test]
    fn of_templates_that_replace_each_other_one_stays() {
        assert_eq!(with_successors(&[("a", None)]), ["stays"]);
        assert_eq!(with_successors(&[("a", Some("b")), ("b", None)]), ["replaced", "stays"]);
        assert_eq!(with_successors(&[("a", Some("b")), ("b", Some("a"))]), ["stays", "replaced"]);
        assert_eq!(with_successors(&[("b", Some("a")), ("a", Some("b"))]), ["replaced", "stays"]);
        assert_eq!(with_successors(&[("a", Some("gone"))]), ["stays"]);
        assert_eq!(with_successors(&[("a", Some("broken")), ("broken", None)]), ["stays", "stays"]);
        assert_eq!(with_successors(&[("a", Some("b")), ("b", Some("gone"))]), ["replaced", "stays"]);
        assert_eq!(with_successors(&[("a", Some("b")), ("b", Some(REMOVED))]), ["replaced", "replaced"]);
        let circle = [("a", Some("b")), ("c", Some("d")), ("b", Some("c")), ("d", Some("b"))];
        assert_eq!(with_successors(&circle), ["replaced", "replaced", "stays", "replaced"]);
    }

    #[test]
    fn delegates_at_work_are_its_users_and_idle_ones_are_not() {
        const JOB: &str = "22222222-2222-4222-8222-222222222222";
        let mut pool = records(VERSION);
        let delegate = Vm { name_label: delegate_name(JOB), other_config: keys(VERSION), ..Vm::default() };
        let reference = Ref::from_opaque("delegate");
        pool.vms.insert(reference.clone(), delegate);
        assert_eq!(pool.found().users, 1);
        let vm = pool.vms.get_mut(&reference).expect("the delegate");
        vm.other_config.insert(TAG_IDLE.into(), "x".into());
        vm.power_state = PowerState::Halted;
        assert_eq!(pool.found().users, 0);
        let vm = pool.vms.get_mut(&reference).expect("the delegate");
        vm.power_state = PowerState::Running;
        assert_eq!(pool.found().users, 1, "somebody started it");
        let vm = pool.vms.get_mut(&reference).expect("the delegate");
        vm.other_config.insert(xva::DIGEST_KEY.into(), "another".into());
        assert_eq!(pool.found().users, 0, "made of another template");
    }

    #[test]
    fn an_older_abd_says_that_it_is_older() {
        let error = none_usable("p", &[records("999.0.0").found()]);
        assert_eq!(error.kind(), Kind::Template);
        assert!(error.to_string().contains("this abd is older"), "{error}");
        let error = none_usable("p", &[records("0.0.1").found()]);
        assert!(error.to_string().contains("is of version 0.0.1"), "{error}");
        assert!(error.remedy_text().is_some_and(|text| text.contains("import")));
        assert!(none_usable("p", &[]).to_string().contains("is not in pool 'p'"));
    }
}
