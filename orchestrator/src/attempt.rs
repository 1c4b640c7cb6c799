//! One try of one VM's job as a run sees it: the lock, the hooks around the job, and what came of it.
//!
//! Promises: whatever happens becomes a [`VmSummary`]; the hook after a job runs wherever the hook before it ran,
//! however the job ended, so that what the one did the other can undo.

use crate::error::{Error, Kind, Result};
use crate::hooks::{self, Environment};
use crate::job::{self, JobResult, Run};
use crate::lock::{Lock, Subject as Locked};
use crate::report::Event;
use crate::spec::{Hook, HookFailure, JobOptions};
use crate::summary::{DiskRow, VmResult, VmSummary};
use std::path::PathBuf;
use std::sync::Arc;
use xapi::{Host, Ref, Vm};

/// The job of one VM.
pub struct Subject {
    /// The run.
    pub run: Arc<Run>,
    /// The VM.
    pub vm: Ref<Vm>,
    /// Its record, as the run began.
    pub record: Vm,
    /// What the job is told.
    pub options: JobOptions,
    /// Directory of locks.
    pub locks: PathBuf,
    /// What this process does, for those that meet its locks: `run nightly`.
    pub what: String,
}

impl Subject {
    /// A summary of this VM that says nothing yet.
    pub fn blank(&self) -> VmSummary {
        VmSummary {
            vm: self.record.name_label.clone(),
            uuid: self.record.uuid.to_string(),
            pool: self.run.pool.config.name.clone(),
            ..VmSummary::default()
        }
    }

    /// The VM was not tried, for this reason.
    pub fn skipped(&self, reason: impl Into<String>, remedy: Option<String>) -> VmSummary {
        VmSummary { result: VmResult::Skipped, error: Some(reason.into()), remedy, ..self.blank() }
    }

    /// The VM's job failed by an error.
    pub fn failed(&self, error: &Error) -> VmSummary {
        let Self { record, run, .. } = self;
        VmSummary {
            vm: record.name_label.clone(),
            uuid: record.uuid.to_string(),
            pool: run.pool.config.name.clone(),
            ..VmSummary::failed(error)
        }
    }

    /// Tries once, with the delegate on this host where there is a choice.
    pub async fn attempt(&self, host: Option<&Ref<Host>>) -> VmSummary {
        match self.guarded(host).await {
            Ok(summary) => summary,
            Err(error) => self.not_started(&error),
        }
    }

    /// The job failed before it could tell so itself.
    fn not_started(&self, error: &Error) -> VmSummary {
        self.run.report.event(&Event::JobFailed {
            job: String::new(),
            subject: self.record.name_label.clone(),
            code: None,
            error: error.chain(),
            remedy: error.remedy_text().map(str::to_owned),
            leftovers: Vec::new(),
        });
        self.failed(error)
    }

    async fn guarded(&self, host: Option<&Ref<Host>>) -> Result<VmSummary> {
        let _lock = Lock::take(&self.locks, Locked::Vm(self.record.uuid.as_str()), &self.what)?;
        // It may have waited for hours: what the VM is now counts.
        let record = match self.run.pool.client.get_record::<Vm>(&self.vm).await {
            Ok(record) => record,
            Err(error) if crate::retry::is_gone(&error) => {
                return Err(Error::new(Kind::NotFound, "the VM is gone from the pool").because(error));
            }
            Err(error) => return Err(error.into()),
        };
        Ok(self.hooked(&record, host).await)
    }

    /// The job between its hooks. Both come after the checks and waits: nobody wants a database frozen while a storage
    /// coalesces.
    async fn hooked(&self, record: &Vm, host: Option<&Ref<Host>>) -> VmSummary {
        let environment = self.environment();
        let mut warnings = Vec::new();
        let mut began = false;
        let hooks = &self.options.hooks;
        let ready = async || {
            began = true;
            self.hook(hooks.before_job.as_ref(), "before_job", &environment, &mut warnings).await
        };
        let result = job::backup::run(&self.run, &self.vm, record, &self.options, host, ready).await;
        let mut summary = self.summed(result);
        if !began {
            return summary;
        }
        let environment = environment
            .with("ABD_JOB", summary.job.clone().unwrap_or_default())
            .with("ABD_RESULT", summary.result.word())
            .with("ABD_POINT", summary.point.clone().unwrap_or_default())
            .with("ABD_ERROR", summary.error.clone().unwrap_or_default());
        let after = self.hook(hooks.after_job.as_ref(), "after_job", &environment, &mut warnings).await;
        if let Err(error) = after {
            // What failed first is what is to be looked at.
            if summary.result == VmResult::Done {
                summary.result = VmResult::Failed;
                summary.kind = Some(error.kind());
                summary.exit_code = Some(error.kind().exit_code());
                summary.error = Some(error.chain());
                summary.remedy = error.remedy_text().map(str::to_owned);
                self.warn(&error.chain());
            } else {
                warnings.push(error.chain());
            }
        }
        summary.warnings.append(&mut warnings);
        summary
    }

    fn environment(&self) -> Environment {
        Environment::default()
            .with("ABD_RUN", self.run.name.clone().unwrap_or_default())
            .with("ABD_RUN_ID", self.run.id.clone())
            .with("ABD_POOL", self.run.pool.config.name.clone())
            .with("ABD_VM", self.record.name_label.clone())
            .with("ABD_VM_UUID", self.record.uuid.to_string())
    }

    /// Runs a hook, where there is one. Its failure is an error, or a warning where it says so.
    async fn hook(
        &self,
        hook: Option<&Hook>,
        what: &str,
        environment: &Environment,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let Some(hook) = hook else { return Ok(()) };
        match hooks::run(hook, what, environment).await {
            Ok(_) => Ok(()),
            Err(error) if hook.on_failure == HookFailure::Warn => {
                self.warn(&error.chain());
                warnings.push(error.chain());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn warn(&self, message: &str) {
        let message = format!("{}: {message}", self.record.name_label);
        self.run.report.event(&Event::Warning { job: None, message });
    }

    /// What a job gave, as a row of the summary.
    fn summed(&self, result: JobResult) -> VmSummary {
        let (ended, kind) = match result.end.kind() {
            None | Some(Kind::Leftovers | Kind::Alarm | Kind::BadBlocks) => (VmResult::Done, None),
            // The job itself found that it should not start now.
            Some(Kind::NothingDone) => (VmResult::Skipped, None),
            Some(kind) => (VmResult::Failed, Some(kind)),
        };
        let mut summary = VmSummary {
            result: ended,
            kind,
            exit_code: kind.map(Kind::exit_code),
            job: Some(result.job).filter(|job| !job.is_empty()),
            error: result.error,
            remedy: result.remedy,
            code: result.code,
            warnings: result.warnings,
            leftovers: result.leftovers,
            ..self.blank()
        };
        if let Some(done) = result.summary {
            summary.point = Some(done.point);
            summary.elapsed_ms = done.elapsed_ms;
            summary.alarms = done.alarms;
            summary.path = done.path;
            summary.delegates_reused = done.delegate.reused;
            summary.disks = done
                .disks
                .into_iter()
                .map(|disk| DiskRow {
                    name: disk.name,
                    vdi: disk.vdi,
                    size: disk.size,
                    mode: disk.mode,
                    cause: disk.cause,
                    reason: disk.reason,
                    read: disk.counts.moved.get(),
                    audited: disk.counts.audited.get(),
                    mismatched: disk.counts.mismatched.get(),
                    stored: disk.counts.sealed.get(),
                    bad: disk.bad.bytes.get(),
                    bad_ranges: disk.bad.count,
                    reading_ms: disk.pacing.reading_ms,
                    limited_ms: disk.pacing.limited_ms,
                    throttled_ms: disk.pacing.throttled_ms,
                })
                .collect();
        }
        summary
    }
}

/// Whether trying again can help. Where there is a restore point already, it cannot: what failed is around the job.
pub fn is_passing(summary: &VmSummary) -> bool {
    let passing = matches!(summary.kind, Some(Kind::Failed | Kind::Unreachable));
    summary.result == VmResult::Failed && summary.point.is_none() && passing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let failed = |kind| VmSummary { result: VmResult::Failed, kind: Some(kind), ..VmSummary::default() };
        for kind in [Kind::Failed, Kind::Unreachable] {
            assert!(is_passing(&failed(kind)), "{kind:?}");
            assert!(!is_passing(&VmSummary { point: Some("p".into()), ..failed(kind) }), "{kind:?}");
        }
        for kind in Kind::ALL.into_iter().filter(|kind| !matches!(kind, Kind::Failed | Kind::Unreachable)) {
            assert!(!is_passing(&failed(kind)), "{kind:?}");
        }
        assert!(!is_passing(&VmSummary { result: VmResult::Skipped, ..failed(Kind::Failed) }));
    }
}
