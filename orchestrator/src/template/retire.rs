//! Letting go of templates: one that another took the place of stays, marked, until the last delegate that was made of
//! it has ended. Whoever sees that first removes it: the import, the end of a job, `abd reconcile`.

use super::Template;
use super::census::{Found, REMOVED, survey};
use crate::error::{Context, Error, Kind, Result};
use crate::pool::{Pool, TAG_RETIRED};
use crate::removal::{Removed, destroy_vm, find_vdi, present, users_of};
use crate::retry::{is_gone, until_free_raw};
use xapi::{Vdi, Vm};

/// Marks templates: jobs do not clone them any more, and [`sweep`] may remove them. `successor` is the uuid of the one
/// that took their place, where there is one. Those that are gone already are no error. A mark that somebody else set
/// since they were looked at stays: to write over it would take it away for a moment.
///
/// # Errors
/// What the pool refuses.
pub async fn let_go(pool: &Pool, templates: &[Found], successor: Option<&str>) -> Result<()> {
    for Found { template, successor: known, .. } in templates {
        let (vm, value) = (&template.reference, successor.unwrap_or(REMOVED));
        let marked = match (successor, known) {
            (Some(_), None) => pool.client.set_other_config_once(vm, TAG_RETIRED, value).await,
            _ => pool.client.add_to_other_config(vm, TAG_RETIRED, value).await,
        };
        match marked {
            // Two write over the same mark: the other's is there.
            Err(error) if successor.is_some() && error.code() == "MAP_DUPLICATE_KEY" => {}
            Err(error) if !is_gone(&error) => {
                return Err(error).context(|| format!("mark template {}", template.uuid));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes the templates that were let go of and that no delegate at work was made of. Gives those that stay for now.
///
/// # Errors
/// Where the pool cannot be asked; what resists is noted in `removed`.
pub async fn sweep(pool: &Pool, removed: &mut Removed) -> Result<Vec<Found>> {
    let mut stay = Vec::new();
    for found in survey(pool).await?.into_iter().filter(|found| found.is_replaced) {
        if found.users > 0 || found.is_busy {
            stay.push(found);
            continue;
        }
        let object = format!("template {} of version {}", found.template.uuid, found.template.version);
        removed.note(object, remove(pool, &found).await);
    }
    Ok(stay)
}

/// The same after the end of a delegate, where the template that it was made of was let go of meanwhile.
///
/// # Errors
/// As [`sweep`].
pub async fn sweep_after(pool: &Pool, template: &Template, removed: &mut Removed) -> Result<()> {
    let looked = present(pool.client.get_record::<Vm>(&template.reference).await);
    let found = looked.context(|| "look at the template".into())?;
    if found.is_some_and(|vm| vm.other_config.contains_key(TAG_RETIRED)) {
        sweep(pool, removed).await?;
    }
    Ok(())
}

/// Removes a template and its disk. The disk first: a template without one is recognised as such, a disk without its
/// template would be nobody's.
async fn remove(pool: &Pool, found: &Found) -> Result<bool> {
    for (disk, is_there) in &found.disks {
        // What its storage has lost cannot be destroyed there.
        if *is_there {
            destroy_disk(pool, disk, &found.template.uuid).await.context(|| format!("disk {disk}"))?;
        }
    }
    destroy_vm(pool, &found.template.reference).await
}

/// Destroys a template's disk, unless somebody attached it to another VM.
async fn destroy_disk(pool: &Pool, uuid: &str, template: &str) -> Result<()> {
    let Some(vdi) = find_vdi(pool, uuid).await? else { return Ok(()) };
    let looked = present(pool.client.get_record::<Vdi>(&vdi).await);
    let Some(record) = looked.context(|| "look at it".into())? else { return Ok(()) };
    if let Some(user) = users_of(pool, &record).await?.iter().find(|vm| vm.uuid.as_str() != template) {
        let message = format!("it is attached to VM '{}' ({})", user.name_label, user.uuid);
        return Err(Error::new(Kind::Leftovers, message).remedy("detach it there and run `abd reconcile`"));
    }
    match until_free_raw(|| "destroy".into(), async || pool.client.vdi_destroy(&vdi).await).await {
        Err(error) if is_gone(&error) => Ok(()),
        done => done.context(|| "destroy".into()),
    }
}
