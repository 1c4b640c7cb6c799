//! The appliance template: making its XVA and checking it ([`build`], [`check`]), which ones are in a pool and which of
//! them jobs clone ([`census`]), bringing one in ([`import`]), and letting go of those that another one replaced
//! ([`retire`]).
//!
//! Promises: a pool that had a usable template never ends without one because of an import that failed, was cut, or met
//! another; a template is removed only when nothing that was cloned from it is at work.

mod census;
mod import;
mod retire;
mod tickets;
mod version;

pub use census::{Found, State, TemplateAt, survey, unchanged, usable};
pub use import::{Imported, import, storage_by_rule};
pub use retire::{let_go, sweep, sweep_after};

use crate::error::{Error, Kind, Result, file_error};
use std::cmp::Ordering;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;
use xapi::{Ref, Vm};

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
        .remedy(match version::compare(other, VERSION) {
            Ordering::Greater => format!("use the abd that was built with it: version {other}"),
            _ => "use the template that was built with this orchestrator".into(),
        })),
        None => {
            Err(Error::new(Kind::Template, format!("{} is an XVA, but not of our appliance", path.display()))
                .remedy("build the template: scripts/image"))
        }
    }
}
