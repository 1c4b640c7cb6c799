//! Which VMs a run backs up, and with which options: the job file's terms against the pools' lists of VMs.
//!
//! Pure: the lists come in, the choice goes out. Promises: what a term does not find is said, and is a failure where the
//! term means one VM; every VM is chosen once, in the order of the terms that name it.

use crate::error::{Error, Kind, Result};
use crate::spec::{JobOptions, Override, RunSpec, Selection};
use xapi::Vm;

/// A VM that could be backed up.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Name of its pool.
    pub pool: &'a str,
    /// Uuid.
    pub uuid: &'a str,
    /// Name.
    pub name: &'a str,
    /// Tags.
    pub tags: &'a [String],
}

impl<'a> Candidate<'a> {
    /// A VM of a pool, if it is one that could be backed up: no template, no snapshot, no control domain, and none
    /// of our own delegates.
    pub fn of(pool: &'a str, vm: &'a Vm) -> Option<Self> {
        // By the template's mark: a job's tags are inherited by whatever is reverted to, or made of, its snapshot.
        let ours = vm.other_config.contains_key(xva::TEMPLATE_KEY);
        let one = !(vm.is_a_template || vm.is_a_snapshot || vm.is_control_domain || ours);
        one.then_some(Self { pool, uuid: vm.uuid.as_str(), name: &vm.name_label, tags: &vm.tags })
    }
}

/// A VM that is backed up.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its place in the list of candidates.
    pub index: usize,
    /// The term that chose it.
    pub by: String,
    /// The options of its job.
    pub options: JobOptions,
    /// Lines of the job file whose `[[vm]]` apply.
    pub overrides: Vec<usize>,
}

/// A VM that is named, by name or uuid, and is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The name or uuid.
    pub name: String,
    /// Whether that is a uuid.
    pub is_uuid: bool,
    /// That it is not there, as a sentence.
    pub message: String,
}

/// What comes of a selection.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chosen {
    /// The VMs, in the order in which their jobs are queued.
    pub choices: Vec<Choice>,
    /// VMs that are to be backed up and are not there, each once. None where the selection is strict.
    pub missing: Vec<Missing>,
    /// Patterns and tags that found nothing, and names that found more than they seem to mean.
    pub warnings: Vec<String>,
}

/// How strictly a selection's terms are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// A term that finds nothing keeps no other VM from being backed up. A pattern or a tag that does is a warning,
    /// because VMs come and go; a VM that is named and not there is told as one whose backup failed.
    Lenient,
    /// Every name must mean one VM: a person is there to say it better.
    Strict,
}

/// One term of a selection.
enum Term<'a> {
    Name(&'a crate::spec::Pattern),
    Uuid(&'a str),
    Tag(&'a str),
}

impl Term<'_> {
    fn matches(&self, vm: &Candidate<'_>) -> bool {
        match self {
            Term::Name(pattern) => pattern.matches(vm.name),
            Term::Uuid(uuid) => vm.uuid == *uuid,
            Term::Tag(tag) => vm.tags.iter().any(|found| found == tag),
        }
    }

    /// Whether it means one VM.
    fn is_single(&self) -> bool {
        match self {
            Term::Name(pattern) => pattern.is_plain(),
            Term::Uuid(_) => true,
            Term::Tag(_) => false,
        }
    }

    /// Whether a selection names the VM that this means, which is not there.
    fn is_named_by(&self, selection: &Selection) -> bool {
        let text = self.text();
        match self {
            Term::Name(_) => selection.names.iter().any(|pattern| pattern.matches(&text)),
            Term::Uuid(_) => selection.uuids.contains(&text),
            Term::Tag(_) => selection.tags.contains(&text),
        }
    }

    fn text(&self) -> String {
        match self {
            Term::Name(pattern) => pattern.to_string(),
            Term::Uuid(uuid) => (*uuid).to_owned(),
            Term::Tag(tag) => format!("tag {tag}"),
        }
    }

    /// That it finds nothing, as a sentence.
    fn nothing(&self) -> String {
        match self {
            Term::Name(pattern) if pattern.is_plain() => format!("no VM is named '{pattern}'"),
            Term::Name(pattern) => format!("no VM's name matches '{pattern}'"),
            Term::Uuid(uuid) => format!("no VM has the uuid {uuid}"),
            Term::Tag(tag) => format!("no VM has the tag '{tag}'"),
        }
    }
}

fn terms(selection: &Selection) -> impl Iterator<Item = Term<'_>> {
    let names = selection.names.iter().map(Term::Name);
    let uuids = selection.uuids.iter().map(|uuid| Term::Uuid(uuid));
    names.chain(uuids).chain(selection.tags.iter().map(|tag| Term::Tag(tag)))
}

fn names_it(selection: &Selection, vm: &Candidate<'_>) -> bool {
    terms(selection).any(|term| term.matches(vm))
}

/// Chooses. `adjust` is what the command line adds to the options of every job.
///
/// # Errors
/// [`Kind::NothingDone`] where no VM is chosen and none is missing, [`Kind::NotFound`] for a strict term that does not mean one VM,
/// [`Kind::Usage`] where the options of a VM contradict each other.
pub fn choose(
    spec: &RunSpec,
    vms: &[Candidate<'_>],
    strictness: Strictness,
    adjust: &dyn Fn(&mut JobOptions),
) -> Result<Chosen> {
    let mut chosen = Chosen::default();
    for term in terms(&spec.select) {
        let mut found: Vec<usize> = (0..vms.len()).filter(|at| term.matches(&vms[*at])).collect();
        check_term(&term, &found, vms, strictness, &spec.exclude, &mut chosen)?;
        found.sort_by_key(|at| (vms[*at].name, vms[*at].uuid));
        for index in found {
            let known = chosen.choices.iter().any(|choice| choice.index == index);
            if !known && !names_it(&spec.exclude, &vms[index]) {
                chosen.choices.push(choice(spec, &vms[index], index, &term, adjust)?);
            }
        }
    }
    for term in terms(&spec.exclude).filter(Term::is_single) {
        if !vms.iter().any(|vm| term.matches(vm)) {
            chosen.warnings.push(format!("excluded, but {}", term.nothing()));
        }
    }
    for one in &spec.overrides {
        if !chosen.choices.iter().any(|choice| names_it(&one.which, &vms[choice.index])) {
            chosen
                .warnings
                .push(format!("the [[vm]] at line {} names none of the VMs that are backed up", one.line));
        }
    }
    if chosen.choices.is_empty() && chosen.missing.is_empty() {
        let why = match chosen.warnings.is_empty() {
            true => "every VM that is selected is excluded too".to_owned(),
            false => chosen.warnings.join("; "),
        };
        return Err(Error::new(Kind::NothingDone, format!("'{}' backs up no VM: {why}", spec.name))
            .remedy("look at [select] and [exclude], and at the names with `xe vm-list` or XenCenter"));
    }
    Ok(chosen)
}

/// A selection whose run would fail for VMs that are not there ends as it would.
///
/// # Errors
/// [`Kind::NotFound`] saying the first and counting the others.
pub fn refuse_missing(chosen: &Chosen) -> Result<()> {
    let Some(first) = chosen.missing.first() else { return Ok(()) };
    let message = match chosen.missing.len() {
        1 => first.message.clone(),
        count => format!("{} (and {} more)", first.message, count - 1),
    };
    Err(Error::new(Kind::NotFound, message)
        .remedy("correct the job file, or take it out; `xe vm-list` or XenCenter shows the names"))
}

fn check_term(
    term: &Term<'_>,
    found: &[usize],
    vms: &[Candidate<'_>],
    strictness: Strictness,
    exclude: &Selection,
    chosen: &mut Chosen,
) -> Result<()> {
    match (found, strictness) {
        ([], Strictness::Strict) => Err(Error::new(Kind::NotFound, term.nothing())
            .remedy("give its name or uuid as `xe vm-list` or XenCenter shows it")),
        ([], Strictness::Lenient) => {
            let missing = Missing {
                name: term.text(),
                is_uuid: matches!(term, Term::Uuid(_)),
                message: term.nothing(),
            };
            // One that is excluded as well was never to be backed up.
            if !term.is_single() || term.is_named_by(exclude) {
                chosen.warnings.push(missing.message);
            } else if !chosen.missing.contains(&missing) {
                chosen.missing.push(missing);
            }
            Ok(())
        }
        ([_, _, ..], Strictness::Strict) if term.is_single() => {
            let uuids: Vec<_> = found.iter().map(|at| vms[*at].uuid).collect();
            let message = format!("{} VMs are named '{}'", found.len(), term.text());
            Err(Error::new(Kind::NotFound, message)
                .remedy(format!("name one by its uuid: {}", uuids.join(", "))))
        }
        ([_, _, ..], Strictness::Lenient) if term.is_single() => {
            chosen.warnings.push(format!(
                "{} VMs are named '{}': all of them are backed up",
                found.len(),
                term.text()
            ));
            Ok(())
        }
        _ => Ok(()),
    }
}

fn choice(
    spec: &RunSpec,
    vm: &Candidate<'_>,
    index: usize,
    term: &Term<'_>,
    adjust: &dyn Fn(&mut JobOptions),
) -> Result<Choice> {
    let mut options = spec.options.clone();
    let applied: Vec<&Override> = spec.overrides.iter().filter(|one| names_it(&one.which, vm)).collect();
    for one in &applied {
        one.apply(&mut options);
    }
    adjust(&mut options);
    let checked = options.check().and_then(|()| options.check_within(&spec.run.limits));
    checked.map_err(|clause| Error::new(Kind::Usage, format!("options of {}: {clause}", vm.name)))?;
    Ok(Choice { index, by: term.text(), options, overrides: applied.iter().map(|one| one.line).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::parse_text;

    const TAGS: [&[&str]; 5] = [&["backup"], &[], &["backup", "slow"], &[], &[]];
    const NAMES: [&str; 5] = ["web02", "web01", "db01", "db01", "web01-test"];

    fn run(text: &str, strictness: Strictness) -> Result<(Vec<String>, Chosen)> {
        let spec = parse_text("night.toml", "night", text).expect("valid");
        let tags: Vec<Vec<String>> =
            TAGS.iter().map(|tags| tags.iter().map(|tag| (*tag).to_owned()).collect()).collect();
        let uuids: Vec<String> =
            (0..5).map(|at| format!("00000000-0000-4000-8000-00000000000{at}")).collect();
        let vms: Vec<_> = (0..5)
            .map(|at| Candidate { pool: "dc1", uuid: &uuids[at], name: NAMES[at], tags: &tags[at] })
            .collect();
        let chosen = choose(&spec, &vms, strictness, &|options| options.level = 9)?;
        let names = chosen.choices.iter().map(|choice| format!("{}/{}", NAMES[choice.index], choice.index));
        Ok((names.collect(), chosen))
    }

    fn names(text: &str) -> Vec<String> {
        run(text, Strictness::Lenient).expect("some").0
    }

    #[test]
    fn vms_come_in_the_order_of_the_terms_and_only_once() {
        assert_eq!(
            names("[select]\nnames = [\"web02\", \"web*\"]\ntags = \"backup\""),
            ["web02/0", "web01/1", "web01-test/4", "db01/2"]
        );
        assert_eq!(names("select.uuids = \"00000000-0000-4000-8000-000000000003\""), ["db01/3"]);
        assert_eq!(names("select.names = \"*\"").len(), 5);
    }

    #[test]
    fn what_is_excluded_is_not_backed_up_whoever_selects_it() {
        let text = "select.names = [\"*\", \"web01-test\"]\n[exclude]\nnames = \"*-test\"\ntags = \"slow\"";
        assert_eq!(names(text), ["db01/3", "web01/1", "web02/0"]);
    }

    #[test]
    fn what_a_term_does_not_find_is_said() {
        let text = "select.names = [\"web01\", \"mail\", \"ftp*\", \"db01\"]\nselect.tags = \"gold\"\n\
                    exclude.names = [\"old\", \"older*\"]\n[[vm]]\nname = \"mail\"\nfull = true";
        let (found, chosen) = run(text, Strictness::Lenient).expect("some");
        assert_eq!(found, ["web01/1", "db01/2", "db01/3"]);
        assert_eq!(
            chosen.warnings,
            [
                "no VM's name matches 'ftp*'",
                "2 VMs are named 'db01': all of them are backed up",
                "no VM has the tag 'gold'",
                "excluded, but no VM is named 'old'",
                "the [[vm]] at line 5 names none of the VMs that are backed up",
            ]
        );
    }

    #[test]
    fn a_vm_that_is_named_and_not_there_is_missing_and_no_warning() {
        let uuid = "00000000-0000-4000-8000-00000000000f";
        let text = format!(
            "select.names = [\"web01\", \"mail\", \"mail\", \"ftp\", \"old\"]\nselect.uuids = \"{uuid}\"\n\
             exclude.names = [\"o*\"]"
        );
        let (found, chosen) = run(&text, Strictness::Lenient).expect("the others");
        assert_eq!(found, ["web01/1"]);
        let missing: Vec<_> = chosen.missing.iter().map(|one| (one.name.as_str(), one.is_uuid)).collect();
        assert_eq!(missing, [("mail", false), ("ftp", false), (uuid, true)]);
        assert_eq!(chosen.missing[0].message, "no VM is named 'mail'");
        assert_eq!(chosen.warnings, ["no VM is named 'old'"], "it is excluded as well");
        let (found, chosen) = run("select.names = \"mail\"", Strictness::Lenient).expect("nothing else");
        assert_eq!((found.len(), chosen.missing.len()), (0, 1));
    }

    #[test]
    fn a_run_that_finds_nothing_at_all_is_an_error_of_its_own() {
        let error = run("select.names = \"mail*\"", Strictness::Lenient).expect_err("nothing");
        assert_eq!(error.kind(), Kind::NothingDone);
        assert!(error.chain().contains("no VM's name matches 'mail*'"), "{}", error.chain());
        let error = run("select.names = \"web01\"\nexclude.names = \"web*\"", Strictness::Lenient);
        let error = error.expect_err("nothing");
        assert!(error.chain().contains("excluded too"), "{}", error.chain());
    }

    #[test]
    fn a_person_is_told_at_once_that_a_name_means_none_or_several() {
        let error = run("select.names = [\"web01\", \"mail\"]", Strictness::Strict).expect_err("none");
        assert_eq!((error.kind(), error.chain().as_str()), (Kind::NotFound, "no VM is named 'mail'"));
        let error = run("select.names = \"db01\"", Strictness::Strict).expect_err("two");
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(
            error.remedy_text().expect("remedy").contains("000000000002, 0000"),
            "{:?}",
            error.remedy_text()
        );
        run("select.names = \"web*\"", Strictness::Strict).expect("a pattern may mean several");
    }

    #[test]
    fn options_are_the_files_then_each_vms_then_the_command_lines() {
        let text = "select.names = \"*\"\n[options]\nretries = 5\nlevel = 2\n\
                    [[vm]]\nname = \"db*\"\nquiesce = true\n[[vm]]\ntag = \"slow\"\nquiesce = false\nretries = 0";
        let (_, chosen) = run(text, Strictness::Lenient).expect("all");
        let options =
            |index| &chosen.choices.iter().find(|choice| choice.index == index).expect("chosen").options;
        assert_eq!((options(3).quiesce, options(3).retries, options(3).level), (true, 5, 9));
        assert_eq!((options(2).quiesce, options(2).retries, options(2).level), (false, 0, 9));
        assert!(!options(0).quiesce);
    }

    #[test]
    fn contradictions_are_found_before_anything_starts() {
        let text = "select.names = \"*\"\n[[vm]]\nname = \"a\"\ncbt = false\n[[vm]]\nname = \"*\"\nrequire_cbt = true";
        run(text, Strictness::Lenient).expect("no VM has both");
        let text = text.replace("\"a\"", "\"db*\"");
        let error = run(&text, Strictness::Lenient).expect_err("db01 has both");
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.chain().contains("options of db01: require_cbt"), "{}", error.chain());
    }
}
