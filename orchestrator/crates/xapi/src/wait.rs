//! Waiting for a VM or a task by events, with the object itself read now and then in case one was lost.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::client::Client;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Operation};
use crate::record::{Class, Ref};
use crate::records::{Task, TaskStatus, Vm};
use crate::value::Value;
use crate::xml;

/// Pause after the pool could not be reached.
const OUTAGE_PAUSE: Duration = Duration::from_secs(2);

impl Client {
    /// Waits until a VM is as wanted. [`Kind::HandleInvalid`] when it ceases to exist, [`Kind::Timeout`]
    /// when the time is over. The predicate may be asked about the same state several times.
    pub async fn wait_vm(
        &self,
        vm: &Ref<Vm>,
        mut wanted: impl FnMut(&Vm) -> bool,
        timeout: Duration,
    ) -> Result<Vm> {
        self.wait_for(vm, |record| wanted(record), timeout).await
    }

    /// Waits for the end of a task and gives its result or its error. The task stays: destroy it.
    pub async fn wait_task(&self, task: &Ref<Task>, timeout: Duration) -> Result<Value> {
        let ended = |task: &Task| !matches!(task.status, TaskStatus::Pending | TaskStatus::Cancelling);
        let task = self.wait_for(task, ended, timeout).await?;
        outcome(&task)
    }

    async fn wait_for<T: Class>(
        &self,
        reference: &Ref<T>,
        mut wanted: impl FnMut(&T) -> bool,
        timeout: Duration,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let mut outage_ends = None;
        let subscription = format!("{}/{reference}", T::NAME.to_ascii_lowercase());
        let mut events = self.events(&[subscription.as_str()]);
        let mut read_now = true;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let step = match read_now {
                true => self.get_record(reference).await.map(Some),
                false => self.watch(&mut events, reference, left).await,
            };
            match step {
                Ok(Some(record)) if wanted(&record) => return Ok(record),
                Ok(Some(_)) => {
                    read_now = false;
                    outage_ends = None;
                }
                // Silence: an event may have been lost.
                Ok(None) => read_now = true,
                Err(error) if matches!(error.kind(), Kind::Unreachable) => {
                    let ends = *outage_ends.get_or_insert(Instant::now() + self.timeouts().outage);
                    if Instant::now() >= ends.min(deadline) {
                        return Err(error);
                    }
                    sleep(OUTAGE_PAUSE).await;
                    read_now = true;
                }
                Err(error) => return Err(error),
            }
            if Instant::now() >= deadline {
                let detail =
                    format!("{} {reference} did not get there within {} s", T::NAME, timeout.as_secs());
                return Err(Error::new(Kind::Timeout, "wait", detail));
            }
        }
    }

    /// The next state of an object; none when nothing came in time.
    async fn watch<T: Class>(
        &self,
        events: &mut crate::events::EventStream,
        reference: &Ref<T>,
        left: Duration,
    ) -> Result<Option<T>> {
        let wait = left.min(self.timeouts().event);
        let Some(Event::Changed(change)) = events.next_within(wait).await? else { return Ok(None) };
        if change.reference == reference.as_str() && change.operation == Operation::Del {
            let params = vec![T::NAME.to_owned(), reference.to_string()];
            return Err(Error::from_xapi("wait", "HANDLE_INVALID".to_owned(), params));
        }
        match change.as_record::<T>().transpose()? {
            Some((found, record)) if found == *reference => Ok(Some(record)),
            _ => Ok(None),
        }
    }
}

/// What an ended task says.
fn outcome(task: &Task) -> Result<Value> {
    let name = &task.name_label;
    match &task.status {
        TaskStatus::Success => xml::decode_result(&task.result)
            .map_err(|why| Error::new(Kind::Protocol, name, format!("the task's result is unusable: {why}"))),
        TaskStatus::Cancelled => Err(Error::from_xapi(name, "TASK_CANCELLED".to_owned(), Vec::new())),
        status => {
            let mut words = task.error_info.iter().cloned();
            match words.next() {
                Some(code) => Err(Error::from_xapi(name, code, words.collect())),
                None => Err(Error::new(
                    Kind::Other,
                    name,
                    format!("the task ended with {status} and gives no reason"),
                )),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(status: TaskStatus, result: &str, error: &[&str]) -> Result<Value> {
        let mut task = Task { name_label: "VM.clone".to_owned(), status, ..Task::default() };
        task.result = result.to_owned();
        task.error_info = error.iter().map(|word| (*word).to_owned()).collect();
        outcome(&task)
    }

    #[test]
    fn tasks_end_in_a_result_or_their_error() {
        assert_eq!(
            ended(TaskStatus::Success, "<value>OpaqueRef:1</value>", &[]).expect("result"),
            "OpaqueRef:1".into()
        );
        assert_eq!(ended(TaskStatus::Success, "", &[]).expect("no result"), Value::Nil);
        let error =
            ended(TaskStatus::Failure, "", &["SR_BACKEND_FAILURE_44", "", "full", ""]).expect_err("failed");
        assert_eq!((error.kind(), error.method()), (&Kind::NoSpace, "VM.clone"));
        assert_eq!(ended(TaskStatus::Cancelled, "", &[]).expect_err("cancelled").kind(), &Kind::Cancelled);
        assert!(
            ended(TaskStatus::Failure, "", &[]).expect_err("failed").to_string().contains("gives no reason")
        );
    }
}
