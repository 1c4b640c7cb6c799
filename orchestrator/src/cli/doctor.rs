//! `abd doctor`: what is found by looking, and by delegates that are started to look.

use super::Session;
use super::jobs::{Identity, enter_pool, watch_signals};
use super::options::DelegateArgs;
use crate::check::DelegateCheck;
use crate::config::PoolConfig;
use crate::doctor::{self, Found};
use crate::error::{Context, Error, Kind, Result};
use crate::job::diagnose::{self, Place};
use crate::job::{Run, cancelled, placement};
use crate::preflight::{self, Code, Finding, Object, ObjectKind};
use crate::report::Event;
use crate::spec::JobOptions;
use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;
use xapi::{Host, Ref};

/// Beginning of the names of throw-away stores; the process's number follows.
const SCRATCH: &str = "doctor-";

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// VMs, by name or uuid; all of them, in fewer words, where none is named.
    vms: Vec<String>,
    /// Only this pool.
    #[arg(long)]
    pool: Option<String>,
    /// Fail on warnings too.
    #[arg(long)]
    strict: bool,
    /// Start a delegate on each host that would run jobs, and say what it meets: of this pool, or of all.
    #[arg(long, value_name = "POOL", num_args = 0..=1)]
    delegate: Option<Option<String>>,
    /// Only on this host, by name or uuid.
    #[arg(long, requires = "delegate")]
    host: Option<String>,
    #[command(flatten)]
    delegates: DelegateArgs,
}

pub(super) async fn run(session: &Session, args: DoctorArgs) -> Result<()> {
    let DoctorArgs { vms, pool, strict, delegate, host, delegates } = args;
    let named = match (&pool, delegate.as_ref().and_then(Option::as_ref)) {
        (Some(pool), Some(other)) if pool != other => {
            return Err(Error::new(Kind::Usage, format!("two pools are named: '{pool}' and '{other}'"))
                .remedy("name the pool once: abd doctor --delegate POOL"));
        }
        (pool, other) => other.or(pool.as_ref()),
    };
    let pools = match named {
        Some(name) => vec![session.state.pool(Some(name))?],
        None => session.state.pools()?,
    };
    let mut options = JobOptions::default();
    delegates.apply(&mut options.delegate);
    let request =
        doctor::Request { pools: pools.clone(), store: &session.store, vms: &vms, options: &options };
    let mut found = doctor::look(&session.state, &request).await?;
    if delegate.is_none() {
        return doctor::tell(&found, strict, &session.report);
    }
    let cancel = watch_signals();
    start_delegates(session, pools, host.as_deref(), &options, &cancel, &mut found).await?;
    let told = doctor::tell(&found, strict, &session.report);
    if *cancel.borrow() { Err(cancelled()) } else { told }
}

/// Starts delegates in each pool, and adds what they found.
async fn start_delegates(
    session: &Session,
    pools: Vec<PoolConfig>,
    host: Option<&str>,
    options: &JobOptions,
    cancel: &watch::Receiver<bool>,
    found: &mut Found,
) -> Result<()> {
    let mut checks = Vec::new();
    // Pools that have no host of the name: as it should be, where another one has it.
    let mut strangers = Vec::new();
    for config in pools {
        if *cancel.borrow() {
            break;
        }
        let (name, uuid) = (config.name.clone(), config.uuid.clone());
        let error = match start_in_pool(session, config, host, options, cancel, &mut checks).await {
            Ok(()) => continue,
            Err(error) => error,
        };
        let object = Object::new(ObjectKind::Pool, &name, &uuid);
        let message = format!("no delegate was started in pool '{name}': {}", error.chain());
        let finding = Finding { message, ..Finding::from_error(Code::Delegate, object, &error) };
        let list = if error.kind() == Kind::NotFound { &mut strangers } else { &mut found.findings };
        list.push(Finding { pool: Some(name), ..finding });
    }
    if checks.is_empty() {
        found.findings.append(&mut strangers);
    }
    found.findings.extend(checks.iter().flat_map(DelegateCheck::findings));
    found.delegates = Some(checks);
    Ok(())
}

async fn start_in_pool(
    session: &Session,
    config: PoolConfig,
    host: Option<&str>,
    options: &JobOptions,
    cancel: &watch::Receiver<bool>,
    checks: &mut Vec<DelegateCheck>,
) -> Result<()> {
    // A diagnosis touches no store, and the service needs one: of its own, so that the real one may be missing, full, or
    // somebody else's, and so that its key goes nowhere.
    let directory = session.state.journal_directory();
    let scratch = Scratch::below(directory.parent().unwrap_or(Path::new(".")));
    let path = scratch.path.clone();
    let made = tokio::task::spawn_blocking(move || ads::Store::init(&path)).await;
    let store = made
        .map_err(|error| Error::new(Kind::Failed, "making a store to throw away was stopped").because(error))?
        .map_err(crate::catalog::store_error)?;
    let identity = Identity { run: uuid::Uuid::new_v4().to_string(), name: None };
    let (run, _) = enter_pool(session, config, Arc::new(store), &identity, cancel.clone()).await?;
    let result = start_on_hosts(&run, host, options, cancel, checks).await;
    run.pool.close().await;
    result
}

/// One after the other: they share the way to this machine, and a fixed address.
async fn start_on_hosts(
    run: &Run,
    host: Option<&str>,
    options: &JobOptions,
    cancel: &watch::Receiver<bool>,
    checks: &mut Vec<DelegateCheck>,
) -> Result<()> {
    for place in places(run, host, options).await? {
        if *cancel.borrow() {
            return Ok(());
        }
        run.report.event(&Event::Note { message: format!("starts a delegate on host '{}'", place.name) });
        checks.push(diagnose::run(run, &place, options).await);
    }
    Ok(())
}

/// The hosts on which jobs would run delegates, or the one that is named.
async fn places(run: &Run, wanted: Option<&str>, options: &JobOptions) -> Result<Vec<Place>> {
    let demand = placement::Demand {
        networks: run.networks(),
        footprint: preflight::footprint(options.delegate.memory, options.delegate.vcpus),
    };
    let site = placement::Site::look(&run.pool, &demand).await?;
    let hosts: BTreeMap<Ref<Host>, Host> =
        run.pool.client.get_all_records().await.context(|| "list hosts".into())?;
    let is_wanted =
        |host: &Host| wanted.is_none_or(|name| host.uuid.as_str() == name || host.name_label == name);
    let pool = &run.pool.config.name;
    if let Some(name) = wanted
        && !hosts.values().any(is_wanted)
    {
        return Err(Error::new(Kind::NotFound, format!("no host of pool '{pool}' is named '{name}'"))
            .remedy("give its name or uuid as `xe host-list` or XenCenter shows it"));
    }
    let mut places = Vec::new();
    for (reference, host) in hosts.iter().filter(|(_, host)| is_wanted(host)) {
        if let Some(template) = site.template_for(reference, &run.templates) {
            places.push(Place {
                host: reference.clone(),
                name: host.name_label.clone(),
                uuid: host.uuid.to_string(),
                template: run.templates[template].clone(),
            });
        }
    }
    if places.is_empty() {
        let which = wanted.map_or_else(|| "no host".to_owned(), |name| format!("not host '{name}', which"));
        let message = format!(
            "{which} of pool '{pool}' is up, on the delegates' networks, and sees the storage of a template of this version"
        );
        return Err(Error::new(Kind::Failed, message).remedy(
            "the findings about hosts, network and template-storage of `abd doctor` say what each lacks",
        ));
    }
    places.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(places)
}

/// A directory that is gone at the end.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Names one below `directory`, and removes those that killed processes left there.
    fn below(directory: &Path) -> Self {
        for item in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = item.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(SCRATCH));
            let number = number.and_then(|number| number.parse::<u32>().ok());
            if number.is_some_and(|number| !Path::new("/proc").join(number.to_string()).exists()) {
                // It is in nobody's way; the next one tries again.
                let _ = std::fs::remove_dir_all(item.path());
            }
        }
        Self { path: directory.join(format!("{SCRATCH}{}", std::process::id())) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_directory_goes_with_its_guard_and_with_the_next_where_its_process_was_killed() {
        let state = tempfile::tempdir().expect("a directory");
        // No process has this number: Linux counts to 4194304.
        let (dead, other) = (state.path().join("doctor-4999999"), state.path().join("doctor-dir"));
        std::fs::create_dir(&dead).expect("made");
        std::fs::create_dir(&other).expect("made");
        let scratch = Scratch::below(state.path());
        assert!(!dead.exists() && other.exists());
        std::fs::create_dir(&scratch.path).expect("made");
        let path = scratch.path.clone();
        drop(scratch);
        assert!(!path.exists());
    }
}
