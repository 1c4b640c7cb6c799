//! The job without a VM: a delegate that only measures, on a host of the caller's choice. Made, watched, tagged and
//! removed as every other.

use super::delegate::Site;
use super::watch::{Diagnosed, Trace};
use super::{End, Failure, Job, JobResult, Run, summary_of};
use crate::check::{CardCheck, Clock, DelegateCheck, Measures, Reached};
use crate::error::Error;
use crate::journal::Entry;
use crate::networks::Card;
use crate::report::{DelegateSummary, Event};
use crate::spec::JobOptions;
use crate::template::TemplateAt;
use blocks::ByteCount;
use std::time::{Duration, Instant, UNIX_EPOCH};
use wire::Work;
use xapi::{Host, Ref};

/// Bytes of its own disk that a delegate reads at most: all of any template of ours.
const READ: ByteCount = ByteCount::new(256 << 20);
/// Bytes that a delegate sends at most: a second of a gigabit.
const SEND: ByteCount = ByteCount::new(128 << 20);

/// Where to look.
pub struct Place {
    /// The host.
    pub host: Ref<Host>,
    /// Its name.
    pub name: String,
    /// Its uuid.
    pub uuid: String,
    /// What its delegates are cloned from.
    pub template: TemplateAt,
}

/// Starts a delegate, lets it measure, and removes it. Everything is reported as it happens.
pub async fn run(run: &Run, place: &Place, options: &JobOptions) -> DelegateCheck {
    let subject = format!("host {}", place.name);
    let started = Instant::now();
    let blank = DelegateCheck::of(&run.pool.config.name, &place.name, &place.uuid);
    let job = match Job::start(run, &subject, &place.uuid, options) {
        Ok(job) => job,
        Err(error) => return failed(blank, JobResult::not_started(run, &subject, &error)),
    };
    let mut entries = Vec::new();
    let outcome = job.measure(place, &mut entries).await;
    let blank = reached(blank, &job.trace(), &run.cards);
    let check = match outcome {
        Ok((measures, removed)) => {
            let check = DelegateCheck { job: job.id.clone(), measures: Some(measures), ..blank };
            match removed {
                Ok(()) => finish(job, check),
                Err(error) => failed(check, leave(job, &error)),
            }
        }
        Err(failure) => {
            let blank = DelegateCheck { job: job.id.clone(), ..blank };
            failed(blank, job.abandon(failure, &entries).await)
        }
    };
    let check = DelegateCheck { elapsed_ms: ms(started.elapsed()), ..check };
    run.report.event(&Event::DelegateChecked(Box::new(check.clone())));
    check
}

impl Job<'_> {
    async fn measure(
        &self,
        place: &Place,
        entries: &mut Vec<Entry>,
    ) -> Result<(Measures, crate::error::Result<()>), Failure> {
        let site = Site { host: Some(place.host.clone()), template: place.template.clone() };
        let work = Work::Diagnose { read: READ, send: SEND };
        let (outcome, removed) = self.serve(work, Vec::new(), &[], &site, entries).await?;
        // The service takes no last word without it.
        let Some(Diagnosed { told, heard }) = outcome.diagnosis else {
            let message = format!("the delegate of {} ended well and told nothing", self.subject);
            return Err(Error::new(crate::error::Kind::Failed, message).into());
        };
        let heard = heard.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let clock = Clock::of(told.clock_ms, u64::try_from(heard).unwrap_or(u64::MAX));
        let delegate: DelegateSummary = summary_of(outcome.claim.as_ref(), outcome.done.usage, 0);
        Ok((Measures { delegate, clock, told }, removed))
    }
}

fn reached(check: DelegateCheck, trace: &Trace, cards: &[Card]) -> DelegateCheck {
    let states = trace.states.iter().map(|(state, at)| Reached { state: state.clone(), at_ms: ms(*at) });
    let cards = cards.iter().map(|card| CardCheck {
        number: card.number,
        network: card.name.clone(),
        addresses: trace.by_card.get(&card.number).cloned().unwrap_or_default(),
    });
    DelegateCheck {
        states: states.collect(),
        addresses: trace.addresses.clone(),
        cards: cards.collect(),
        ..check
    }
}

/// The end of one that left nothing behind.
fn finish(job: Job<'_>, check: DelegateCheck) -> DelegateCheck {
    if let Err(error) = job.journal.finish() {
        tracing::warn!("{}", error.chain());
    }
    check
}

/// The end of one that measured and could not be removed: its journal stays for `reconcile`.
fn leave(job: Job<'_>, error: &Error) -> JobResult {
    job.leave(error.chain());
    let leftovers = std::mem::take(&mut *job.left.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    JobResult {
        error: Some(format!("its delegate could not be removed: {}", error.chain())),
        remedy: Some("run `abd reconcile`".to_owned()),
        leftovers,
        ..job.result(End::Leftovers)
    }
}

fn failed(check: DelegateCheck, result: JobResult) -> DelegateCheck {
    DelegateCheck {
        kind: result.end.kind(),
        code: result.code,
        error: result.error,
        remedy: result.remedy,
        leftovers: result.leftovers,
        ..check
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
