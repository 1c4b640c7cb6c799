//! Bringing a template into a pool.
//!
//! The pool makes the template and its disk, and undoes both where the upload fails or is cut: until the disk is whole
//! the VM says that it is being imported, and nobody takes it for a template. Only then are those that it replaces let
//! go of. Two imports at once may both succeed; which template stays is decided by tickets (`tickets.rs`), so that
//! everybody who looks decides alike.

use super::census::{Found, State, newest, survey, too_old};
use super::retire::{let_go, sweep};
use super::version::compare;
use super::{Template, VERSION, check, tickets};
use crate::error::{Context, Error, Kind, Result, file_error};
use crate::pool::Pool;
use crate::removal::Removed;
use crate::report::{Event, Report};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use xapi::{Host, Pbd, Ref, Sr, Upload, Vm};

/// What an import came to.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The template that is there now.
    pub template: Template,
    /// Whether it was brought in just now.
    pub is_new: bool,
    /// Uuids of templates that were removed because this one took their place.
    pub removed: Vec<String>,
    /// Those that stay until the delegates that were made of them have ended, and how many these are.
    pub waiting: Vec<(String, usize)>,
}

/// Brings an XVA into the pool. A template of the same version and content on the same storage, with its disk, is left
/// as it is; others that it replaces are let go of.
///
/// # Errors
/// [`Kind::Template`] for a bad file and where the pool has a newer one; what the pool says otherwise. Nothing new is
/// left behind then.
pub async fn import(pool: &Pool, path: &Path, sr: &Ref<Sr>, report: &Arc<Report>) -> Result<Imported> {
    let checked = path.to_owned();
    let description = tokio::task::spawn_blocking(move || check(&checked))
        .await
        .map_err(|error| Error::new(Kind::Failed, "checking the template was stopped").because(error))??;
    let digest = description.digest.clone().unwrap_or_default();
    let found = survey(pool).await?;
    if let Some(newer) = newest(&found).filter(|newest| compare(newest, VERSION) == Ordering::Greater) {
        return Err(too_old(&pool.config.name, &newer).remedy(format!(
            "update abd on this machine to version {newer}; to go back, remove that template first: abd template remove"
        )));
    }
    let (own, is_uploaded) = match elect(&found, &digest, sr) {
        Some(present) => (present.template.clone(), false),
        None => (upload(pool, path, sr, report).await?, true),
    };
    let now = tickets::take(pool, &own).await?;
    let (template, Replaced { all: replaced, unmarked }) = match tickets::winner(&now, sr) {
        // Perhaps of somebody else who imported at the same moment: then his stays.
        Some(winner) => (winner.template.clone(), replaced_by(pool, winner, sr).await?),
        None => (own.clone(), Replaced::default()),
    };
    let is_new = is_uploaded && template.uuid == own.uuid;
    let_go(pool, &unmarked, Some(&template.uuid)).await?;
    let mut swept = Removed::default();
    let waiting = sweep(pool, &mut swept).await?;
    for leftover in swept.leftovers {
        let message = format!("an old template stays for now: {leftover}");
        report.event(&Event::Warning { job: None, message });
    }
    let now = survey(pool).await?;
    let (template, is_new) = match live_now(&now, &template, sr)? {
        Some(other) => (other, false),
        None => (template, is_new),
    };
    let stays: BTreeSet<&str> = now.iter().map(|found| found.template.uuid.as_str()).collect();
    let removed = replaced.iter().map(|found| found.template.uuid.clone());
    Ok(Imported {
        template,
        is_new,
        removed: removed.filter(|uuid| !stays.contains(uuid.as_str())).collect(),
        waiting: waiting.iter().map(|found| (found.template.uuid.clone(), found.users)).collect(),
    })
}

/// Another template that took the place of this one at the same moment, where that is so.
fn live_now(now: &[Found], template: &Template, sr: &Ref<Sr>) -> Result<Option<Template>> {
    let mut live = now.iter().filter(|one| one.state == State::Live);
    if live.clone().any(|one| one.template.uuid == template.uuid) {
        return Ok(None);
    }
    let other = live.find(|one| one.storage.iter().all(|there| there == sr));
    other.map(|one| Some(one.template.clone())).ok_or_else(|| {
        Error::new(Kind::Template, format!("template {} was removed as soon as it was there", template.uuid))
            .remedy("see who did that, and import it again")
    })
}

/// The template of this content on this storage, where none that came later stands in its way.
fn elect<'a>(found: &'a [Found], digest: &str, sr: &Ref<Sr>) -> Option<&'a Found> {
    let equal = found.iter().filter(|one| {
        let content = (one.template.version.as_str(), one.template.digest.as_str());
        one.state == State::Live
            && content == (VERSION, digest)
            && one.storage.iter().all(|there| there == sr)
    });
    let is_last = |one: &&Found| {
        !found.iter().any(|other| {
            // Also a broken one: only what comes after it may take its place.
            matches!(other.state, State::Live | State::Broken(_))
                && !other.is_replaced
                && other.storage.iter().all(|there| there == sr)
                && tickets::outranks(other, one)
        })
    };
    equal.filter(is_last).max_by_key(|one| (one.ticket, &one.template.uuid))
}

async fn upload(pool: &Pool, path: &Path, sr: &Ref<Sr>, report: &Arc<Report>) -> Result<Template> {
    let total =
        std::fs::metadata(path).map_err(|error| file_error(Kind::Template, path, "read", error))?.len();
    let progress = report.clone();
    let upload = Upload::file(path).context(|| format!("read {}", path.display()))?;
    let imported = pool
        .client
        .import_xva(upload, Some(sr), move |done| {
            progress.event(&Event::Bytes { what: "template".into(), done, total });
        })
        .await;
    report.event(&Event::Bytes { what: "template".into(), done: total, total });
    let imported =
        imported.context(|| format!("import {} into pool '{}'", path.display(), pool.config.name))?;
    let [reference] = imported.as_slice() else {
        return Err(Error::new(
            Kind::Template,
            format!("the import made {} VMs instead of one", imported.len()),
        ));
    };
    let looking = || "look at the imported template".to_owned();
    let vm = pool.client.get_record::<Vm>(reference).await.context(looking)?;
    if !vm.is_a_template {
        pool.client.vm_set_is_a_template(reference, true).await.context(|| "mark the template".into())?;
    }
    let tag = |key: &str| vm.other_config.get(key).cloned().unwrap_or_default();
    Ok(Template {
        reference: reference.clone(),
        uuid: vm.uuid.to_string(),
        version: tag(xva::TEMPLATE_KEY),
        digest: tag(xva::DIGEST_KEY),
    })
}

/// The templates that one takes the place of.
#[derive(Default)]
struct Replaced {
    all: Vec<Found>,
    /// Which of these have no mark that says so yet.
    unmarked: Vec<Found>,
}

/// The templates that one takes the place of: whatever is on the same storage or has no disk any more, and, on other
/// storage, another version or content where every host that sees the old one sees the new one. None that came later.
async fn replaced_by(pool: &Pool, winner: &Found, sr: &Ref<Sr>) -> Result<Replaced> {
    let template = &winner.template;
    let pbds =
        pool.client.get_all_records::<Pbd>().await.context(|| "look where storage is plugged".into())?;
    let hosts = |sr: &Ref<Sr>| -> BTreeSet<Ref<Host>> {
        let plugged = pbds.values().filter(|pbd| pbd.sr == *sr && pbd.currently_attached);
        plugged.map(|pbd| pbd.host.clone()).collect()
    };
    let reach = hosts(sr);
    let found = survey(pool).await?;
    let is_replaced = |one: &&Found| {
        let same = (&one.template.version, &one.template.digest) == (&template.version, &template.digest);
        let covered = || one.storage.iter().all(|there| hosts(there).is_subset(&reach));
        one.template.uuid != template.uuid
            && one.state != State::Importing
            && tickets::outranks(winner, one)
            && (one.storage.iter().all(|there| there == sr) || (!same && covered()))
    };
    let all: Vec<Found> = found.iter().filter(is_replaced).cloned().collect();
    let unmarked = all.iter().filter(|one| tickets::is_to_mark(&found, one, winner)).cloned().collect();
    Ok(Replaced { all, unmarked })
}

/// Where a template goes that nobody named storage for: the pool's default storage; else the one that most hosts see,
/// the roomiest of these.
///
/// # Errors
/// [`Kind::NotFound`] where no storage takes it.
pub async fn storage_by_rule(pool: &Pool, size: u64) -> Result<Ref<Sr>> {
    let (_, record) = pool.client.pool().await.context(|| "ask for the pool".into())?;
    let srs = pool.client.get_all_records::<Sr>().await.context(|| "list storage".into())?;
    let pbds =
        pool.client.get_all_records::<Pbd>().await.context(|| "look where storage is plugged".into())?;
    by_rule(&record.default_sr, &srs, &pbds, size).ok_or_else(|| {
        Error::new(Kind::NotFound, "no storage repository of the pool takes the template")
            .remedy("plug one with room for it, or name one with --sr")
    })
}

fn by_rule(
    default: &Ref<Sr>,
    srs: &BTreeMap<Ref<Sr>, Sr>,
    pbds: &BTreeMap<Ref<Pbd>, Pbd>,
    size: u64,
) -> Option<Ref<Sr>> {
    let reach = |sr: &Ref<Sr>| pbds.values().filter(|pbd| pbd.sr == *sr && pbd.currently_attached).count();
    // Storage that does not tell its size is taken to have room.
    let room = |sr: &Sr| match sr.physical_size {
        0 => u64::MAX,
        physical => physical.saturating_sub(sr.physical_utilisation),
    };
    let takes = |reference: &Ref<Sr>, sr: &Sr| {
        !matches!(sr.kind.as_str(), "iso" | "udev")
            && sr.content_type != "iso"
            && reach(reference) > 0
            && room(sr) >= size
    };
    if srs.get(default).is_some_and(|sr| takes(default, sr)) {
        return Some(default.clone());
    }
    let fitting = srs.iter().filter(|(reference, sr)| takes(reference, sr));
    fitting.max_by_key(|(reference, sr)| (reach(reference), room(sr))).map(|(reference, _)| reference.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(uuid: &str, digest: &str, sr: &str, state: State) -> Found {
        Found {
            template: Template {
                reference: Ref::from_opaque(uuid),
                uuid: uuid.into(),
                version: VERSION.into(),
                digest: digest.into(),
            },
            state,
            successor: None,
            ticket: None,
            is_replaced: false,
            disks: vec![],
            storage: vec![Ref::from_opaque(sr)],
            users: 0,
            is_busy: false,
        }
    }

    #[test]
    fn everybody_elects_the_same_of_equal_templates() {
        let elected = |found: &[Found]| {
            elect(found, "d", &Ref::from_opaque("s")).map(|found| found.template.uuid.clone())
        };
        let (a, b) = (template("a", "d", "s", State::Live), template("b", "d", "s", State::Live));
        assert_eq!(elected(&[a.clone(), b.clone()]).as_deref(), Some("b"));
        assert_eq!(elected(&[b.clone(), a.clone()]).as_deref(), Some("b"));
        let with = |found: &Found, ticket| Found { ticket: Some(ticket), ..found.clone() };
        assert_eq!(elected(&[with(&a, 2), with(&b, 1)]).as_deref(), Some("a"));
        let later = with(&template("c", "another", "s", State::Live), 2);
        assert_eq!(
            elected(&[with(&a, 1), later.clone()]),
            None,
            "it would take its place again: import anew"
        );
        assert_eq!(elected(&[with(&a, 3), later.clone()]).as_deref(), Some("a"));
        let broken = Found { state: State::Broken("it is".into()), ..later };
        assert_eq!(elected(&[with(&a, 1), broken.clone()]), None, "it would stay for good: import anew");
        let removed = Found { is_replaced: true, ..broken };
        assert_eq!(elected(&[with(&a, 1), removed]).as_deref(), Some("a"));
        let importing = template("a", "d", "s", State::Importing);
        assert_eq!(elected(&[importing, b]).as_deref(), Some("b"), "half a template is none yet");
        for other in [
            template("a", "e", "s", State::Live),
            template("a", "d", "t", State::Live),
            template("a", "d", "s", State::Retired),
            template("a", "d", "s", State::Broken("gone".into())),
        ] {
            assert_eq!(elected(std::slice::from_ref(&other)), None, "{other:?}");
        }
    }

    fn storage(name: &str, size: u64, used: u64) -> (Ref<Sr>, Sr) {
        let sr = Sr { physical_size: size, physical_utilisation: used, kind: "ext".into(), ..Sr::default() };
        (Ref::from_opaque(name), sr)
    }

    fn plugged(at: &[(&str, &str)]) -> BTreeMap<Ref<Pbd>, Pbd> {
        let one = |(sr, host): &(&str, &str)| {
            let pbd = Pbd {
                sr: Ref::from_opaque(*sr),
                host: Ref::from_opaque(*host),
                currently_attached: true,
                ..Pbd::default()
            };
            (Ref::from_opaque(format!("{sr}-{host}")), pbd)
        };
        at.iter().map(one).collect()
    }

    #[test]
    fn the_default_storage_is_taken_unless_it_cannot_take_it() {
        let srs = BTreeMap::from([
            storage("local", 1000, 0),
            storage("shared", 500, 0),
            storage("small", 500, 450),
        ]);
        let pbds =
            plugged(&[("local", "1"), ("shared", "1"), ("shared", "2"), ("small", "1"), ("small", "2")]);
        let rule = |default: &str| by_rule(&Ref::from_opaque(default), &srs, &pbds, 100);
        assert_eq!(rule("local"), Some(Ref::from_opaque("local")));
        assert_eq!(rule("small"), Some(Ref::from_opaque("shared")), "no room: the one that most hosts see");
        assert_eq!(rule("OpaqueRef:NULL"), Some(Ref::from_opaque("shared")));
        let mut iso = srs.clone();
        iso.get_mut(&Ref::from_opaque("shared")).expect("it").content_type = "iso".into();
        let found = by_rule(&Ref::from_opaque("OpaqueRef:NULL"), &iso, &pbds, 100);
        assert_eq!(found, Some(Ref::from_opaque("local")));
        assert_eq!(
            by_rule(&Ref::from_opaque("local"), &srs, &BTreeMap::new(), 100),
            None,
            "nothing is plugged"
        );
    }
}
