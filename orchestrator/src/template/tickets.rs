//! Which of two templates may take the other's place, whoever imports what at the same moment.
//!
//! A pool has no compare-and-set over several objects, but it refuses to add an entry to `other_config` where there is
//! one: of all who write a key, the first decides. So each template gets a ticket that is written once:
//!
//! 1. An import that has its template in the pool looks at all tickets and writes one more than the highest on its own.
//! 2. Then it looks again, and writes 0 on every template that has none and is not being uploaded. Whose import was about
//!    to write one is refused it, and has lost; whose import was killed there is in nobody's way.
//! 3. Then it looks again. The template with the highest ticket stays (of equal ones that with the greater uuid), and
//!    only those with a lower one are marked as replaced by it. A template without a ticket came after 2 and is left
//!    alone: its import will look, see all tickets, and take a higher one.
//!
//! Since tickets never change, of two templates one at most can be marked for the other's sake, and the highest never, in
//! whatever order the calls of however many imports come, and wherever one of them is killed. No pause is needed for that.
//!
//! It does not say which of two imports at the same moment stays: one that was given 0 loses, whatever its version. It
//! holds among imports that take tickets, as long as the pool keeps what it has acknowledged; one without tickets at the
//! very same moment marks all others, so that marks can lead in a circle (`census.rs` decides these). One that came
//! before or comes later is no matter. And of several at once one that was replaced may be left over, where the one that
//! its mark names was replaced in turn: the next import replaces it.

use super::Template;
use super::census::{Found, REMOVED, State, survey};
use crate::error::{Context, Result};
use crate::pool::{Pool, TAG_TICKET};
use crate::retry::is_gone;
use xapi::{Ref, Sr, Vm};

/// The ticket of a template whose import did not write one in time.
const VOID: u64 = 0;

/// A ticket for a template that has just come.
fn next(found: &[Found]) -> u64 {
    found.iter().filter_map(|one| one.ticket).max().unwrap_or(VOID).saturating_add(1)
}

fn rank(found: &Found) -> Option<(u64, &str)> {
    found.ticket.map(|ticket| (ticket, found.template.uuid.as_str()))
}

/// Whether one template may take the other's place.
pub(super) fn outranks(one: &Found, other: &Found) -> bool {
    matches!((rank(one), rank(other)), (Some(one), Some(other)) if one > other)
}

/// Those that are to get a ticket from somebody else.
fn unfinished(found: &[Found]) -> impl Iterator<Item = &Found> {
    found.iter().filter(|one| one.ticket.is_none() && one.state != State::Importing)
}

/// Whether a template is yet to be marked as replaced by one that takes its place. So is one that another took the place
/// of: that one may go while this is still in use, and a mark that names what is gone says nothing. A mark that names one
/// that came later than `winner` stays.
pub(super) fn is_to_mark(found: &[Found], one: &Found, winner: &Found) -> bool {
    let Some(named) = &one.successor else { return true };
    let says_more = |other: &Found| {
        other.template.uuid == *named
            && matches!(other.state, State::Live | State::Retired)
            && outranks(other, winner)
    };
    *named != winner.template.uuid && named != REMOVED && !found.iter().any(says_more)
}

/// The template that stays on this storage.
pub(super) fn winner<'a>(found: &'a [Found], sr: &Ref<Sr>) -> Option<&'a Found> {
    let here = found.iter().filter(|one| one.state == State::Live && one.storage.iter().all(|at| at == sr));
    here.filter(|one| one.ticket.is_some()).max_by(|left, right| rank(left).cmp(&rank(right)))
}

/// Gives a template its ticket, and then every other that has none. What is gone meanwhile is no error: who looks next
/// sees it. Gives what is in the pool afterwards.
///
/// # Errors
/// What the pool refuses.
pub(super) async fn take(pool: &Pool, own: &Template) -> Result<Vec<Found>> {
    let found = survey(pool).await?;
    if found.iter().any(|one| one.template.uuid == own.uuid && one.ticket.is_none()) {
        write(pool, &own.reference, next(&found)).await?;
    }
    for one in unfinished(&survey(pool).await?) {
        write(pool, &one.template.reference, VOID).await?;
    }
    survey(pool).await
}

/// Of two writers the first decides.
async fn write(pool: &Pool, template: &Ref<Vm>, ticket: u64) -> Result<()> {
    match pool.client.set_other_config_once(template, TAG_TICKET, &ticket.to_string()).await {
        Err(error) if is_gone(&error) => Ok(()),
        done => done.context(|| "write a template's ticket".into()),
    }
}

#[cfg(test)]
#[path = "tickets_model.rs"]
mod model;
