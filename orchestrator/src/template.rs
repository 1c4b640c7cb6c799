//! The appliance template: making its XVA, bringing it into a pool, finding it there, removing it.

use crate::cleanup::{destroy_vdi, destroy_vm, disks_of};
use crate::error::{Context, Error, Kind, Result, file_error};
use crate::pool::{Pool, TAG_JOB};
use crate::report::{Event, Report};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use xapi::{Ref, Sr, Upload, Vbd, Vdi, Vm};

/// Version that a template must have: orchestrator and appliance are built together.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Name of the template in the pool.
const NAME: &str = "Agentless backup delegate";
/// Memory of a delegate unless the run says otherwise: 128 MiB, of which the work takes at most half.
pub const DEFAULT_MEMORY: u64 = 128 << 20;

/// A template in a pool.
#[derive(Clone, Debug)]
pub struct Template {
    /// The VM record's reference.
    pub reference: Ref<Vm>,
    /// Its uuid.
    pub uuid: String,
    /// Version of the appliance.
    pub version: String,
    /// SHA-256 of its disk image.
    pub digest: String,
}

/// What was built.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Built {
    /// The XVA.
    pub path: std::path::PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Version of the appliance.
    pub version: String,
    /// SHA-256 of the disk image in it.
    pub digest: String,
}

/// Packs a disk image into an XVA.
///
/// # Errors
/// [`Kind::Usage`] naming the file that cannot be read or written.
pub fn build(disk: &Path, out: &Path) -> Result<Built> {
    let image = File::open(disk).map_err(|error| {
        file_error(Kind::Usage, disk, "read", error).remedy("build the disk image first: scripts/image")
    })?;
    let mut image = BufReader::new(image);
    let mut appliance = xva::Appliance::new(NAME, VERSION);
    appliance.description =
        format!("Throw-away appliance of abd {VERSION}. Jobs clone it; it is never started itself.");
    appliance.memory_bytes = DEFAULT_MEMORY;
    let plan = xva::Plan::new(&appliance, &mut image)
        .map_err(|error| Error::new(Kind::Usage, format!("cannot pack {}", disk.display())).because(error))?;
    let part = out.with_extension("part");
    let failed = |error| file_error(Kind::Usage, out, "write", error);
    let mut file = BufWriter::new(File::create(&part).map_err(failed)?);
    plan.write(&mut image, &mut file)
        .map_err(|error| Error::new(Kind::Usage, format!("cannot write {}", out.display())).because(error))?;
    file.flush().and_then(|()| file.get_ref().sync_all()).map_err(failed)?;
    std::fs::rename(&part, out).map_err(failed)?;
    Ok(Built {
        path: out.to_owned(),
        size: plan.content_length(),
        version: VERSION.into(),
        digest: plan.digest_hex().to_owned(),
    })
}

/// Checks an XVA from its first to its last byte.
///
/// # Errors
/// [`Kind::Template`] naming the file and what is wrong with it.
pub fn check(path: &Path) -> Result<xva::Description> {
    let file = File::open(path).map_err(|error| file_error(Kind::Template, path, "read", error))?;
    let description =
        xva::Reader::open(BufReader::new(file)).and_then(xva::Reader::verify).map_err(|error| {
            Error::new(Kind::Template, format!("{} is not a whole appliance template", path.display()))
                .because(error)
                .remedy("copy or build the file again: scripts/image")
        })?;
    match description.template_version.as_deref() {
        Some(VERSION) => Ok(description),
        Some(other) => Err(Error::new(
            Kind::Template,
            format!("{} is of version {other}, this orchestrator needs {VERSION}", path.display()),
        )
        .remedy("use the template that was built with this orchestrator")),
        None => {
            Err(Error::new(Kind::Template, format!("{} is an XVA, but not of our appliance", path.display()))
                .remedy("build the template: scripts/image"))
        }
    }
}

/// Brings an XVA into the pool. A template of the same version and content on the same storage is left as it is.
///
/// # Errors
/// [`Kind::Template`] for a bad file; what the pool says otherwise. Nothing is left behind.
pub async fn import(
    pool: &Pool,
    path: &Path,
    sr: Option<&Ref<Sr>>,
    report: &Arc<Report>,
) -> Result<(Template, bool)> {
    let checked = path.to_owned();
    let description = tokio::task::spawn_blocking(move || check(&checked))
        .await
        .map_err(|error| Error::new(Kind::Failed, "checking the template was stopped").because(error))??;
    let digest = description.digest.clone().unwrap_or_default();
    // Storage that not every host sees needs a template of its own for each host.
    for present in list(pool).await?.into_iter().filter(|t| t.version == VERSION && t.digest == digest) {
        let there = storage(pool, &present).await?;
        if sr.is_none_or(|sr| there.iter().all(|found| found == sr)) {
            return Ok((present, false));
        }
    }
    let total =
        std::fs::metadata(path).map_err(|error| file_error(Kind::Template, path, "read", error))?.len();
    let progress = report.clone();
    let upload = Upload::file(path).context(|| format!("read {}", path.display()))?;
    let imported = pool
        .client
        .import_xva(upload, sr, move |done| {
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
    let vm =
        pool.client.get_record::<Vm>(reference).await.context(|| "look at the imported template".into())?;
    if !vm.is_a_template {
        pool.client.vm_set_is_a_template(reference, true).await.context(|| "mark the template".into())?;
    }
    Ok((from_record(reference, &vm), true))
}

/// Every appliance template in the pool, whatever its version.
///
/// # Errors
/// What the pool says.
pub async fn list(pool: &Pool) -> Result<Vec<Template>> {
    let vms = pool.client.get_all_records::<Vm>().await.context(|| "list templates".into())?;
    Ok(vms
        .iter()
        .filter(|(_, vm)| {
            vm.is_a_template && !vm.is_a_snapshot && vm.other_config.contains_key(xva::TEMPLATE_KEY)
        })
        // A clone is a template too until its job has set it up.
        .filter(|(_, vm)| !vm.other_config.contains_key(TAG_JOB) && !vm.name_label.starts_with("abd-"))
        .map(|(reference, vm)| from_record(reference, vm))
        .collect())
}

/// A template together with the storage that a clone of it needs.
#[derive(Clone, Debug)]
pub struct TemplateAt {
    /// The template.
    pub template: Template,
    /// Where its disks lie.
    pub storage: Vec<Ref<Sr>>,
}

/// The templates that this orchestrator's jobs can clone: at least one. There are several where the pool's VMs lie
/// on local storage of several hosts.
///
/// # Errors
/// [`Kind::Template`] where none has our version, naming those that are there.
pub async fn usable(pool: &Pool) -> Result<Vec<TemplateAt>> {
    let all = list(pool).await?;
    let remedy = "import it: abd template import FILE.xva";
    if all.is_empty() {
        let message = format!("the appliance template is not in pool '{}'", pool.config.name);
        return Err(Error::new(Kind::Template, message).remedy(remedy));
    }
    let versions = all.iter().map(|template| template.version.clone()).collect::<Vec<_>>().join(", ");
    let mut found = Vec::new();
    for template in all.into_iter().filter(|template| template.version == VERSION) {
        let storage = storage(pool, &template).await?;
        found.push(TemplateAt { template, storage });
    }
    if found.is_empty() {
        let message = format!(
            "the appliance template in pool '{}' is of version {versions}, this orchestrator needs {VERSION}",
            pool.config.name
        );
        return Err(Error::new(Kind::Template, message).remedy(remedy));
    }
    Ok(found)
}

/// The storage that a clone of the template needs.
///
/// # Errors
/// What the pool says.
pub async fn storage(pool: &Pool, template: &Template) -> Result<Vec<Ref<Sr>>> {
    let looking = || "look at the template's disk".to_owned();
    let vm = pool.client.get_record::<Vm>(&template.reference).await.context(looking)?;
    let mut storage = Vec::new();
    for vbd in &vm.vbds {
        let vbd = pool.client.get_record::<Vbd>(vbd).await.context(looking)?;
        if !vbd.vdi.is_null() {
            storage.push(pool.client.get_record::<Vdi>(&vbd.vdi).await.context(looking)?.sr);
        }
    }
    Ok(storage)
}

/// Removes a template and its disk.
///
/// # Errors
/// What the pool refuses.
pub async fn remove(pool: &Pool, template: &Template) -> Result<()> {
    let vm =
        pool.client.get_record::<Vm>(&template.reference).await.context(|| "look at the template".into())?;
    let disks = disks_of(pool, &vm, |_| true).await?;
    destroy_vm(pool, &template.reference).await.context(|| format!("template {}", template.uuid))?;
    for disk in disks {
        destroy_vdi(pool, &disk).await.context(|| format!("disk {disk} of template {}", template.uuid))?;
    }
    Ok(())
}

fn from_record(reference: &Ref<Vm>, vm: &Vm) -> Template {
    let tag = |key: &str| vm.other_config.get(key).cloned().unwrap_or_default();
    Template {
        reference: reference.clone(),
        uuid: vm.uuid.to_string(),
        version: tag(xva::TEMPLATE_KEY),
        digest: tag(xva::DIGEST_KEY),
    }
}
