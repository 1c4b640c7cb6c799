//! Waiting for a VM or a task by events, with the object itself read now and then in case one was lost.
//!
//! An outage of the pool and an ended session are waited out by the calls themselves. A task does not outlive the
//! toolstack that runs it: what became of its operation is then unknown, which is an error of its own.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::client::Client;
use crate::error::{Effect, Error, Kind, Result};
use crate::events::{Event, Operation, QUIET_GAP};
use crate::record::{Class, Ref};
use crate::records::{Task, TaskStatus, Vm};
use crate::value::Value;
use crate::xml;

/// Time for a last look at the object when the time to wait is over.
const LAST_LOOK: Duration = Duration::from_secs(10);

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
    /// [`Kind::Lost`] where the pool has forgotten it.
    pub async fn wait_task(&self, task: &Ref<Task>, timeout: Duration) -> Result<Value> {
        let ended = |task: &Task| !matches!(task.status, TaskStatus::Pending | TaskStatus::Cancelling);
        match self.wait_for(task, ended, timeout).await {
            Ok(task) => outcome(&task),
            Err(error) if *error.kind() == Kind::HandleInvalid => {
                let detail = "the pool has forgotten the operation, as it does when its toolstack is restarted; \
                              whether it was done is not known";
                Err(Error::new(Kind::Lost, "wait", detail).with_source(error))
            }
            // Whatever became of the wait, the operation goes on.
            Err(error) => Err(error.with_effect(Effect::Unknown)),
        }
    }

    async fn wait_for<T: Class>(
        &self,
        reference: &Ref<T>,
        mut wanted: impl FnMut(&T) -> bool,
        timeout: Duration,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let subscription = format!("{}/{reference}", T::NAME.to_ascii_lowercase());
        let mut events = self.events(&[subscription.as_str()]);
        let mut read_now = true;
        loop {
            let now = Instant::now();
            let step = async {
                match read_now {
                    true => self.get_record(reference).await.map(Some),
                    false => {
                        self.watch(&mut events, reference, deadline.saturating_duration_since(now)).await
                    }
                }
            };
            match timeout_at(deadline.max(now + LAST_LOOK), step).await {
                Ok(Ok(Some(record))) if wanted(&record) => return Ok(record),
                Ok(Ok(Some(_))) => read_now = false,
                // Silence: an event may have been lost.
                Ok(Ok(None)) => read_now = true,
                Ok(Err(error)) => return Err(error),
                Err(_) => {}
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
        let change = match events.next_within(wait).await? {
            Some(Event::Changed(change)) => change,
            Some(Event::Resync) | None => return Ok(None),
        };
        if change.reference == reference.as_str() && change.operation == Operation::Del {
            let params = vec![T::NAME.to_owned(), reference.to_string()];
            return Err(Error::from_xapi("wait", "HANDLE_INVALID".to_owned(), params));
        }
        match change.as_record::<T>().transpose()? {
            Some((found, record)) if found == *reference => Ok(Some(record)),
            // Not what was asked for. The object is read instead, but not as often as the host can talk.
            _ => {
                sleep(QUIET_GAP.min(left)).await;
                Ok(None)
            }
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
