//! What those need of the rule who work beside collectors and are none: who is there, what is condemned, and how to let
//! everybody look again.

use super::lease::LookFor;
use super::records::{self, write};
use crate::Error;
use crate::backend::Backend;
use crate::store::Store;
use seal::PackId;
use std::collections::HashSet;
use uuid::Uuid;

impl Store {
    /// Who else holds a lease, in words.
    pub(in crate::store) fn others(&self, own: Uuid) -> Result<Vec<String>, Error> {
        let leases = records::leases(&*self.backend)?;
        let others = leases.into_iter().filter(|(id, _)| *id != own);
        Ok(others.map(|(_, (lease, _))| format!("{} since {}", lease.owner, lease.created)).collect())
    }

    /// Packs that wait to be removed: what is only in them is promised to nobody.
    pub(in crate::store) fn condemned_now(&self) -> Result<HashSet<PackId>, Error> {
        let lists = records::condemned(&*self.backend)?;
        Ok(lists.values().flat_map(|list| list.ids().collect::<Vec<_>>()).collect())
    }

    /// Lets everybody who looks from now on list the packs again, this process at once.
    pub(in crate::store) fn let_all_look_again(&self) -> Result<(), Error> {
        renew_generation(&*self.backend)?;
        self.look_again(LookFor::AllPacks)
    }
}

/// Whoever remembers another generation looks which packs are left. It can be written at any time.
pub(in crate::store) fn renew_generation(backend: &dyn Backend) -> Result<(), Error> {
    write(backend, records::GENERATION, &Uuid::new_v4())
}
