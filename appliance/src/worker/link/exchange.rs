//! Calls that need no network: whoever answers them is in this process.

use super::Call;
use super::dispatcher::Errand;
use crate::worker::Error;
use std::sync::Arc;
use tokio::sync::mpsc::Receiver;

/// Answers a job's calls in the process that does the job.
pub trait Exchange: Send + Sync + 'static {
    /// The answer's bytes. May block.
    ///
    /// # Errors
    /// [`Error::Refused`] where the orchestrator would refuse.
    fn answer(&self, path: &str, body: &[u8]) -> Result<Vec<u8>, Error>;
}

/// Carries out errands until every sender is gone.
pub(crate) async fn serve_here(exchange: Arc<dyn Exchange>, mut errands: Receiver<Errand>) {
    while let Some(errand) = errands.recv().await {
        match errand {
            Errand::Call(Call { path, body, purpose, tally, reply, .. }) => {
                let began = tally.begin(purpose);
                let exchange = exchange.clone();
                // How many there are is bounded by who asks: packs and questions have their limits there.
                drop(tokio::task::spawn_blocking(move || {
                    let answer = exchange.answer(&path, &body);
                    tally.end_here(purpose, began, body.len() + answer.as_ref().map_or(0, Vec::len));
                    // Before the answer: who waits for it wants the memory back.
                    drop(body);
                    // Nobody waits any more: the job has failed elsewhere.
                    let _ = reply.send(answer);
                }));
            }
            // Nothing leads out of this process. The reply is dropped, and who waits for it sees that.
            Errand::Connect(_) => {}
            Errand::Write(order) => drop(tokio::task::spawn_local(crate::restore::write(order))),
        }
    }
}
