//! `abd doctor`: what would keep jobs from working, found before one is started. Looking changes nothing: its session
//! refuses every call that would. What delegates find that are started for it comes from elsewhere ([`crate::job::diagnose`]).

use crate::check::DelegateCheck;
use crate::config::{PoolConfig, State};
use crate::error::{Error, Kind, Result};
use crate::pool::Pool;
use crate::preflight::{self, Calling, Code, Facts, Finding, Here, Level, Object, ObjectKind};
use crate::report::Report;
use crate::spec::JobOptions;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;
use xapi::{Ref, Vm};

/// What is looked at.
#[derive(Debug)]
pub struct Request<'a> {
    /// The pools.
    pub pools: Vec<PoolConfig>,
    /// The store.
    pub store: &'a Path,
    /// VMs by name or uuid; every VM of the pools, in fewer words, where none is named.
    pub vms: &'a [String],
    /// What a job of them would be told.
    pub options: &'a JobOptions,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Findings of every level.
    pub findings: Vec<Finding>,
    /// What delegates found that were started to look; none where nobody asked for them.
    pub delegates: Option<Vec<DelegateCheck>>,
    /// A VM that was named and that no pool has.
    pub missing: Option<String>,
}

/// Looks at this machine, the store and the pools.
///
/// # Errors
/// Where it was stopped.
pub async fn look(state: &State, request: &Request<'_>) -> Result<Found> {
    let (owned_state, store) = (state.clone(), request.store.to_owned());
    let here = tokio::task::spawn_blocking(move || Here::look(&owned_state, &store))
        .await
        .map_err(|error| Error::new(Kind::Failed, "looking at the store was stopped").because(error))?;
    let mut findings = preflight::check_here(&here);
    if request.pools.is_empty() {
        let object = Object::here(ObjectKind::Installation, here.directory.display().to_string());
        let remedy = "add one: abd pool add https://HOST --user root --password-file FILE";
        findings.push(Finding::error(Code::NoPool, object, "no pool is known", remedy));
    }
    let mut wanted: BTreeSet<&str> = request.vms.iter().map(String::as_str).collect();
    let mut unreachable = false;
    for config in &request.pools {
        findings.extend(preflight::check_calling(&config.name, &Calling::look(config)));
        match look_at_pool(state, config, &here, request, &mut wanted).await {
            Ok(found) => findings.extend(found),
            Err(error) => {
                unreachable = true;
                let object = Object::new(ObjectKind::Pool, &config.name, &config.uuid);
                let finding = Finding::from_error(Code::Pool, object, &error);
                findings.push(Finding { pool: Some(config.name.clone()), ..finding });
            }
        }
    }
    let missing = wanted.first().filter(|_| !unreachable).map(|name| (*name).to_owned());
    Ok(Found { findings, delegates: None, missing })
}

/// Prints what was found.
///
/// # Errors
/// The kind of the worst finding where one is an error, or where one is a warning and `strict`; [`Kind::NotFound`] for a
/// VM that no pool has.
pub fn tell(found: &Found, strict: bool, report: &Report) -> Result<()> {
    report.answer(&answer(found), || text(found));
    if let Some(name) = &found.missing {
        return Err(Error::new(Kind::NotFound, format!("no VM in a known pool is named '{name}'"))
            .remedy("give its name or uuid as `xe vm-list` or XenCenter shows it"));
    }
    conclude(&found.findings, strict)
}

fn answer(found: &Found) -> serde_json::Value {
    let Found { findings, delegates, .. } = found;
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    let mut answer = serde_json::json!({
        "findings": findings, "errors": count(Level::Error), "warnings": count(Level::Warning),
    });
    if let (Some(delegates), Some(members)) = (delegates, answer.as_object_mut()) {
        members.insert("delegates".into(), serde_json::json!(delegates));
    }
    answer
}

fn text(found: &Found) -> String {
    let checks = found.delegates.iter().flatten();
    let mut parts: Vec<String> = checks.map(DelegateCheck::text).collect();
    parts.push(preflight::text(&found.findings));
    parts.join("\n\n")
}

/// The result for the exit code: the kind of the first among the worst.
fn conclude(findings: &[Finding], strict: bool) -> Result<()> {
    let fails = |finding: &&Finding| match finding.level {
        Level::Error => true,
        Level::Warning => strict,
        Level::Ok => false,
    };
    let failing: Vec<_> = findings.iter().filter(fails).collect();
    let Some(first) = failing.iter().max_by_key(|finding| finding.level) else { return Ok(()) };
    let worst = failing.iter().find(|finding| finding.level == first.level).unwrap_or(first);
    let message = match failing.len() {
        1 => "1 finding needs attention".to_owned(),
        count => format!("{count} findings need attention"),
    };
    Err(Error::new(worst.kind, message))
}

async fn look_at_pool(
    state: &State,
    config: &PoolConfig,
    here: &Here,
    request: &Request<'_>,
    wanted: &mut BTreeSet<&str>,
) -> Result<Vec<Finding>> {
    let pool = Pool::connect_read_only(state, config.clone()).await?;
    let facts = Facts::for_pool(&pool).await;
    pool.close().await;
    let mut facts = facts?;
    facts.live_jobs = here.live_jobs();
    facts.usual_changes = here.usual_changes();
    let mut findings = preflight::check_pool(&facts, request.options, SystemTime::now());
    if request.vms.is_empty() {
        findings.extend(every_vm(&facts, request.options));
        return Ok(findings);
    }
    for name in request.vms {
        let named = named_vms(&facts, name);
        if !named.is_empty() {
            wanted.remove(name.as_str());
        }
        for (reference, vm) in named {
            findings.extend(one_vm(&facts, reference, vm, request.options));
        }
    }
    Ok(findings)
}

fn named_vms<'a>(facts: &'a Facts, name: &str) -> Vec<(&'a Ref<Vm>, &'a Vm)> {
    facts.candidates().filter(|(_, vm)| vm.uuid.as_str() == name || vm.name_label == name).collect()
}

/// A VM that somebody asked about: all there is to say.
fn one_vm(facts: &Facts, reference: &Ref<Vm>, vm: &Vm, options: &JobOptions) -> Vec<Finding> {
    let mut findings = preflight::check_vm(facts, reference, vm, options);
    if preflight::worst(&findings) == Level::Ok {
        let message = format!("nothing keeps '{}' from being backed up", vm.name_label);
        let finding = Finding::ok(Code::Vm, Facts::vm_object(vm), message);
        findings.push(Finding { pool: Some(facts.name.clone()), ..finding });
    }
    findings
}

/// Every VM of the pool: what is wrong with some. No error, because nobody said that they are all to be backed up.
fn every_vm(facts: &Facts, options: &JobOptions) -> Vec<Finding> {
    let (mut findings, mut count, mut sound) = (Vec::new(), 0_usize, 0_usize);
    for (reference, vm) in facts.candidates() {
        let found = preflight::check_vm(facts, reference, vm, options);
        count += 1;
        sound += usize::from(preflight::worst(&found) == Level::Ok);
        let odd = found.into_iter().filter(|finding| finding.level > Level::Ok);
        findings.extend(odd.map(|finding| finding.at_most(Level::Warning)));
    }
    let message = match count {
        0 => format!("pool '{}' has no VMs to back up", facts.name),
        1 if sound == 1 => "nothing keeps the only VM from being backed up".to_owned(),
        _ => format!("nothing keeps {sound} of {count} VMs from being backed up"),
    };
    let finding = Finding::ok(Code::Vm, facts.pool_object(), message);
    findings.push(Finding { pool: Some(facts.name.clone()), ..finding });
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_that_of_the_first_among_the_worst() {
        let object = || Object::here(ObjectKind::Installation, "x");
        let warning = Finding::warning(Code::Certificate, object(), "no pin", "record it");
        let store = Finding::error(Code::Store, object(), "no store", "mount it");
        let template = Finding::error(Code::Template, object(), "no template", "import it");
        assert!(conclude(&[], true).is_ok());
        assert!(conclude(std::slice::from_ref(&warning), false).is_ok());
        let strict = conclude(std::slice::from_ref(&warning), true).expect_err("strict");
        assert_eq!(
            (strict.kind(), strict.to_string().as_str()),
            (Kind::Certificate, "1 finding needs attention")
        );
        let error = conclude(&[warning, store, template], true).expect_err("errors");
        assert_eq!((error.kind(), error.to_string().as_str()), (Kind::Store, "3 findings need attention"));
    }
}
