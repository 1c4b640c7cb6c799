//! `abd doctor`: what would keep jobs from working, found before one is started. Changes nothing.

use crate::config::{PoolConfig, State};
use crate::error::{Error, Kind, Result};
use crate::pool::{Pool, TAG_JOB, TAG_OWNER, parse_endpoint};
use crate::report::{Report, table};
use crate::{catalog, journal, template};
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, SystemTime};
use xapi::{Endpoint, Sr, Vdi, VdiType, Vm};

/// Clocks further apart than this make restore points look older or younger than they are.
const CLOCK_LIMIT: Duration = Duration::from_secs(60);
/// A storage repository with less free space than this part of it is named.
const FREE_PART: u64 = 20;

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `ok`, `warning` or `error`.
    pub level: Level,
    /// A stable code for programs.
    pub code: &'static str,
    /// One sentence.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing to do.
    Ok,
    /// Jobs run, but look at it.
    Warning,
    /// Jobs fail.
    Error,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, level: Level, code: &'static str, message: String, remedy: Option<&str>) {
        self.0.push(Finding { level, code, message, remedy: remedy.map(str::to_owned) });
    }

    fn error(&mut self, code: &'static str, error: &Error) {
        self.add(Level::Error, code, error.chain(), error.remedy_text());
    }
}

/// Looks at the store and the pools and prints what was found.
///
/// # Errors
/// The kind of the worst finding where one is an error.
pub async fn run(state: &State, pools: Vec<PoolConfig>, store: &Path, report: &Report) -> Result<()> {
    let mut findings = Findings::default();
    let mut worst = check_store(store, &mut findings).await;
    check_journals(state, &mut findings);
    if pools.is_empty() {
        findings.add(Level::Error, "no-pool", "no pool is known".into(), Some("add one: abd pool add"));
    }
    for config in pools {
        if let Err(error) = check_pool(state, config, &mut findings).await {
            worst.get_or_insert(error.kind());
            findings.error("pool", &error);
        }
    }
    let errors = findings.0.iter().filter(|finding| finding.level == Level::Error).count();
    report.answer(&serde_json::json!({"findings": findings.0}), || text(&findings.0));
    match errors {
        0 => Ok(()),
        count => {
            Err(Error::new(worst.unwrap_or(Kind::Failed), format!("{count} findings keep jobs from working")))
        }
    }
}

fn text(findings: &[Finding]) -> String {
    let rows: Vec<_> = findings
        .iter()
        .map(|finding| {
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Error => "ERROR",
            };
            let message = match &finding.remedy {
                Some(remedy) => format!("{}; {remedy}", finding.message),
                None => finding.message.clone(),
            };
            vec![level.to_owned(), finding.code.to_owned(), message]
        })
        .collect();
    table(&["LEVEL", "CODE", "FINDING"], &rows)
}

async fn check_store(directory: &Path, findings: &mut Findings) -> Option<Kind> {
    let path = directory.to_owned();
    let opened = tokio::task::spawn_blocking(move || catalog::open(&path, false)).await;
    let empty = std::fs::read_dir(directory).map_or(true, |mut items| items.next().is_none());
    match opened {
        Ok(Ok((store, _))) => {
            let usage = store.usage();
            let message =
                format!("store at {} holds {} in {} packs", directory.display(), usage.bytes, usage.packs);
            findings.add(Level::Ok, "store", message, None);
            for pack in store.skipped_packs() {
                let message = format!("pack {} cannot be read: {}", pack.path.display(), pack.reason);
                findings.add(Level::Error, "store-damaged", message, Some("run `abd verify --read-data`"));
            }
            store.skipped_packs().first().map(|_| Kind::Damaged)
        }
        Ok(Err(error)) if empty => {
            let remedy = "the first backup makes it; a store named with --store is made with --init-store";
            findings.add(Level::Warning, "no-store", error.to_string(), Some(remedy));
            None
        }
        Ok(Err(error)) => {
            findings.error("store", &error);
            Some(error.kind())
        }
        Err(error) => {
            findings.add(Level::Error, "store", format!("the check was stopped: {error}"), None);
            Some(Kind::Store)
        }
    }
}

fn check_journals(state: &State, findings: &mut Findings) {
    match journal::scan(&state.journal_directory()) {
        Ok((live, dead)) => {
            if !live.is_empty() {
                findings.add(Level::Ok, "jobs", format!("{} jobs are running", live.len()), None);
            }
            if !dead.is_empty() {
                let message = format!("{} jobs ended without cleaning up", dead.len());
                findings.add(Level::Warning, "journals", message, Some("run `abd reconcile`"));
            }
        }
        Err(error) => findings.error("journals", &error),
    }
}

async fn check_pool(state: &State, config: PoolConfig, findings: &mut Findings) -> Result<()> {
    let name = config.name.clone();
    let pool = Pool::connect(state, config).await?;
    let protocol = pool.client.protocol().await.map_or_else(String::new, |protocol| format!("{protocol:?}"));
    let hosts = pool.hosts().await;
    let result = async {
        let version = hosts?.into_values().next().map(|host| {
            let product = |key: &str| host.software_version.get(key).cloned().unwrap_or_default();
            format!("{} {}", product("product_brand"), product("product_version"))
        });
        let message = format!("pool '{name}' answers ({}, {protocol})", version.unwrap_or_default().trim());
        findings.add(Level::Ok, "pool", message, None);
        check_template(&pool, findings).await?;
        check_network(&pool, findings).await;
        check_clock(&pool, findings).await?;
        check_storage(&pool, findings).await?;
        check_leftovers(state, &pool, findings).await
    };
    let result = result.await;
    pool.close().await;
    result
}

async fn check_template(pool: &Pool, findings: &mut Findings) -> Result<()> {
    match template::usable(pool).await {
        Ok(_) => {
            findings.add(Level::Ok, "template", format!("template {} is there", template::VERSION), None)
        }
        Err(error) if error.kind() == Kind::Template => findings.error("template", &error),
        Err(error) => return Err(error),
    }
    Ok(())
}

async fn check_network(pool: &Pool, findings: &mut Findings) {
    match pool.delegate_network().await {
        Ok((_, network)) => {
            let message = format!("delegates use network '{}'", network.name_label);
            findings.add(Level::Ok, "network", message, None);
        }
        Err(error) => findings.error("network", &error),
    }
    let local = matches!(parse_endpoint(&pool.config.endpoint), Ok(Endpoint::Unix(_)));
    if local && pool.config.advertise.is_none() {
        findings.add(
            Level::Warning,
            "advertise",
            "over the local socket this machine's address for delegates is not known".into(),
            Some("name it: abd pool add --local --advertise ADDRESS"),
        );
    }
}

async fn check_clock(pool: &Pool, findings: &mut Findings) -> Result<()> {
    let Some(host) = pool.hosts().await?.into_keys().next() else { return Ok(()) };
    let asked = pool.client.call("host.get_servertime", vec![host.as_str().into()]).await;
    let time = asked.ok().and_then(|value| parse_time(value.as_str()?));
    let Some(time) = time else { return Ok(()) };
    let now = SystemTime::now();
    let apart = now.duration_since(time).or_else(|_| time.duration_since(now)).unwrap_or_default();
    if apart > CLOCK_LIMIT {
        let message = format!(
            "the clocks of pool '{}' and of this machine are {} s apart",
            pool.config.name,
            apart.as_secs()
        );
        findings.add(Level::Warning, "clock", message, Some("set up NTP on both"));
    }
    Ok(())
}

/// XAPI's form: `20240420T12:00:00Z`.
fn parse_time(text: &str) -> Option<SystemTime> {
    let (date, time) = text.split_once('T')?;
    let date = date.replace('-', "");
    let text = format!("{}-{}-{}T{time}", date.get(..4)?, date.get(4..6)?, date.get(6..8)?);
    text.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}

async fn check_storage(pool: &Pool, findings: &mut Findings) -> Result<()> {
    use crate::error::Context;
    let srs = pool.client.get_all_records::<Sr>().await.context(|| "list storage".into())?;
    for sr in srs.values().filter(|sr| sr.content_type != "iso" && sr.physical_size > 0) {
        let free = sr.physical_size.saturating_sub(sr.physical_utilisation);
        if free < sr.physical_size / FREE_PART {
            let message =
                format!("storage '{}' has only {} free", sr.name_label, blocks::ByteCount::new(free));
            findings.add(Level::Warning, "storage-space", message, Some("snapshots need room; free some"));
        }
    }
    Ok(())
}

async fn check_leftovers(state: &State, pool: &Pool, findings: &mut Findings) -> Result<()> {
    use crate::error::Context;
    let (live, _) = journal::scan(&state.journal_directory())?;
    let ours = |tags: &xapi::StringMap| {
        tags.get(TAG_OWNER).is_some_and(|owner| *owner == pool.owner)
            && tags.get(TAG_JOB).is_some_and(|job| !live.contains(job))
    };
    let vms = pool.client.get_all_records::<Vm>().await.context(|| "list VMs".into())?;
    let vdis = pool.client.get_all_records::<Vdi>().await.context(|| "list VDIs".into())?;
    let count = vms.values().filter(|vm| ours(&vm.other_config)).count()
        + vdis.values().filter(|vdi| vdi.kind != VdiType::CbtMetadata && ours(&vdi.other_config)).count();
    if count > 0 {
        let message = format!("{count} objects of ended jobs are in pool '{}'", pool.config.name);
        findings.add(Level::Warning, "leftovers", message, Some("run `abd reconcile`"));
    } else {
        findings.add(
            Level::Ok,
            "leftovers",
            format!("nothing of ours lies around in pool '{}'", pool.config.name),
            None,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_time_are_read() {
        let time = parse_time("19700101T00:01:00Z").expect("XAPI's form");
        assert_eq!(time, SystemTime::UNIX_EPOCH + Duration::from_secs(60));
        assert_eq!(parse_time("1970-01-01T00:01:00Z"), Some(time));
        assert_eq!(parse_time("yesterday"), None);
    }
}
