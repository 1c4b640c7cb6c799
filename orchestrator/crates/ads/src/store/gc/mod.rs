//! Freeing what no restore point needs, while jobs run, with nothing but objects that are written once.
//!
//! No lock is trusted: object storage has none. What keeps a block is one of these, in the order in which they are
//! looked at:
//!
//! ```text
//! leases/<id>.json      somebody works with the store: a job, a restore, a collector. Written before he looks at anything
//!                       that he relies on, with the trees that he starts from; removed when he is done
//! points/               restore points
//! condemned/<id>.json   packs that a collector found to be needed by nobody, and the leases that were there after it
//!                       was written
//! ```
//!
//! # The rule
//!
//! A pack is removed only if (1) it stands in a condemned list that is durable, (2) every lease that was there after that
//! list was written is gone, and (3) a walk that began after (2) finds it unreachable from every restore point and
//! from the trees of every lease.
//!
//! Why that is enough:
//!
//! * Who takes a lease before the list was written is waited for by (2). What he was told to be there stays until he has
//!   committed a point that (3) sees, or has given up.
//! * Who takes a lease later reads the list, and never hears of a condemned pack that it has what he wants: he ships it
//!   again. Either the collector sees his lease, or he sees the list; both is possible, neither is not.
//! * What he starts from he names in his lease, and then looks whether it is still a restore point. If his lease came too
//!   late for (3), the point was there when (3) listed points, which is after: points do not come back.
//! * The collector looks at leases first and at points then: a job that commits in between is seen twice, never not at all.
//! * A collector holds a lease itself, so that of two each waits for the other before it removes what it condemned meanwhile;
//!   and of two copies of a block in packs that stand alike all of them need the one in the pack with the smaller id. Both
//!   copies cannot be removed, each for the other's sake.
//!
//! All of this needs to see what others have written: whoever looks after that sees it. Local file systems give that, and so does
//! object storage but for lists on some servers; network file systems do not from one machine to another, not even for a single
//! object, so that a store there is cleaned only by who says that no other machine uses it.
//!
//! # Lists that are late
//!
//! Where lists, and they alone, may lack what came in the last `lag` ([`GcOptions::lists_lag`]), only the collector waits:
//!
//! * Two lags between writing a list and reading the leases that are waited for. Who took a lease before the first was over may
//!   have missed the list, and is seen after the second; who came later saw the list.
//! * One before leases are read in the light of earlier lists: who stands in such a list and is there is seen.
//! * One between reading leases and points: what was committed under a lease that is gone is seen.
//! * One between removing packs and removing the list that names them: who misses the list sees that the packs are gone.
//!
//! For everybody else a late list means work that is done twice, or an answer that comes a little later: packs that are not
//! seen are shipped again, a point that is not seen is not the base, and one whose packs are not seen yet is missing something
//! until they are.
//!
//! # Who died
//!
//! A lease is renewed by a counter beside it. One whose counter has not moved since it was written into a list, for the
//! whole grace (a day, by the clock of the collectors alone), is taken for dead and removed. If its owner was only slow, he
//! learns it when he commits: after the point is written he looks for his lease, and without it takes the point back.
//!
//! ```text
//! lease     taking, renewing, giving back, committing       records   what is written
//! lent      leases that a server keeps for others
//! collect   one collection                                  repack    moving what is needed out of sparse packs
//! beside    what those need of the rule who are no collectors
//! ```

mod beside;
mod collect;
mod lease;
mod lent;
mod records;
mod repack;

pub(super) use beside::renew_generation;
pub use collect::{GcOptions, GcReport};
pub use lease::Lease;
pub(super) use lease::{Generation, LookFor};
pub(crate) use lent::{MAX_COUNTER, MAX_LEASE, lease_named};

pub(super) use records::{GENERATION, generation};
pub(super) use repack::Mover;
