//! Calls on tasks, and operations that run as one.

use std::time::Duration;

use crate::client::Client;
use crate::error::{Kind, Result};
use crate::record::{Ref, expect};
use crate::records::{Task, TaskStatus};
use crate::value::Value;

impl Client {
    /// Creates a task of our own, to be handed to a data handler. It carries
    /// [`Options::task_tags`](crate::Options::task_tags).
    pub async fn task_create(&self, label: &str, description: &str) -> Result<Ref<Task>> {
        let task = self.get("task.create", vec![label.into(), description.into()]).await?;
        self.tag(&task).await;
        Ok(task)
    }

    /// Removes a task; a running one goes on and is removed when it ends.
    pub async fn task_destroy(&self, task: &Ref<Task>) -> Result<()> {
        self.act("task.destroy", vec![task.into()]).await
    }

    /// Asks a task to end.
    pub async fn task_cancel(&self, task: &Ref<Task>) -> Result<()> {
        self.act("task.cancel", vec![task.into()]).await
    }

    /// Sets the state of a task made by [`task_create`](Self::task_create). XenServer 7.2 and later.
    pub async fn task_set_status(&self, task: &Ref<Task>, status: &TaskStatus) -> Result<()> {
        self.act("task.set_status", vec![task.into(), status.into()]).await
    }

    /// Runs `Async.<method>`, waits for its task and removes it. When the time is over the task is asked to
    /// end. If this future is dropped, the operation goes on in the pool.
    pub async fn call_async(&self, method: &str, params: Vec<Value>, timeout: Duration) -> Result<Value> {
        let name = format!("Async.{method}");
        let task: Ref<Task> = expect(&name, &self.call(&name, params).await?)?;
        self.tag(&task).await;
        let outcome = self.wait_task(&task, timeout).await.map_err(|error| error.with_method(method));
        self.retire(
            &task,
            matches!(&outcome, Err(error) if *error.kind() == Kind::Timeout && error.code().is_empty()),
        )
        .await;
        outcome
    }

    /// Leaves no task behind. What goes wrong here costs a line in the pool's list of tasks until the pool
    /// clears it, and must not hide how the operation ended.
    pub(crate) async fn retire(&self, task: &Ref<Task>, cancel: bool) {
        if cancel {
            let _ = self.task_cancel(task).await;
        }
        let _ = self.task_destroy(task).await;
    }

    /// Tags help to find a task after a crash; a task that is gone already needs none.
    async fn tag(&self, task: &Ref<Task>) {
        for (key, value) in self.task_tags() {
            let _ = self.add_to_other_config(task, key, value).await;
        }
    }
}
