//! QEMU's control channel: JSON objects, one a line, over a Unix socket.
//!
//! Owns the connection. Promises: one command at a time, every command is answered or fails, events
//! reach the supervisor in order.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::GuestError;

/// Longest line QEMU may send. Its answers to what is asked here are under 1 KiB; the greeting too.
const LINE_MAX: usize = 1 << 20;
/// Commands that wait for their turn.
const COMMANDS_MAX: usize = 8;
/// Events that wait for the supervisor.
const EVENTS_MAX: usize = 64;
/// How long a command may take. They take milliseconds; a machine under load is given plenty.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// What QEMU tells unasked, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// The machine stopped for good.
    Shutdown { reason: String },
    /// The guest closed the XenStore port.
    PortClosed { at: SystemTime },
}

struct Command {
    line: String,
    answer: oneshot::Sender<Result<Value, String>>,
}

/// Asks QEMU to do things.
#[derive(Debug)]
pub(super) struct Qmp {
    commands: mpsc::Sender<Command>,
}

impl Qmp {
    /// Takes over the connection that QEMU made and leaves its negotiation mode.
    pub(super) async fn start(stream: UnixStream) -> Result<(Qmp, mpsc::Receiver<Event>), GuestError> {
        let (commands, next_command) = mpsc::channel(COMMANDS_MAX);
        let (to_supervisor, events) = mpsc::channel(EVENTS_MAX);
        let (from_qemu, to_qemu) = stream.into_split();
        let lines = Lines { from_qemu, pending: Vec::new() };
        tokio::spawn(converse(lines, to_qemu, next_command, to_supervisor));
        let qmp = Qmp { commands };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok((qmp, events))
    }

    /// Has QEMU execute `command`.
    pub(super) async fn execute(&self, command: &str, arguments: Value) -> Result<Value, GuestError> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        let (answer, answered) = oneshot::channel();
        let gone = || GuestError::Ended;
        self.commands.send(Command { line, answer }).await.map_err(|_| gone())?;
        match timeout(COMMAND_TIMEOUT, answered).await {
            Ok(Ok(Ok(value))) => Ok(value),
            Ok(Ok(Err(description))) => Err(GuestError::Refused { command: command.to_owned(), description }),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(GuestError::Silent {
                what: format!("QEMU's answer to {command}"),
                seconds: COMMAND_TIMEOUT.as_secs(),
            }),
        }
    }
}

/// Carries commands out and answers and events in, until QEMU closes the connection.
async fn converse(
    mut lines: Lines,
    mut to_qemu: OwnedWriteHalf,
    mut commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
) {
    let mut waiting: Option<oneshot::Sender<Result<Value, String>>> = None;
    let mut has_asker = true;
    loop {
        tokio::select! {
            line = lines.next() => {
                let Some(line) = line else { return };
                let Ok(mut object) = serde_json::from_slice::<Value>(&line) else {
                    tracing::warn!("QEMU sent a line that is not JSON");
                    continue;
                };
                if let Some(event) = event(&object) {
                    // The supervisor ends after QEMU; without it nobody needs the event.
                    let _ = events.send(event).await;
                } else if let Some(value) = object.get_mut("return") {
                    answer(&mut waiting, Ok(value.take()));
                } else if let Some(error) = object.get("error") {
                    let description = error.get("desc").and_then(Value::as_str);
                    answer(&mut waiting, Err(description.unwrap_or("no reason given").to_owned()));
                }
            }
            command = commands.recv(), if has_asker && waiting.is_none() => {
                let Some(command) = command else {
                    has_asker = false;
                    continue;
                };
                if to_qemu.write_all(command.line.as_bytes()).await.is_err() {
                    return;
                }
                waiting = Some(command.answer);
            }
        }
    }
}

fn answer(waiting: &mut Option<oneshot::Sender<Result<Value, String>>>, with: Result<Value, String>) {
    if let Some(waiting) = waiting.take() {
        // The asker gave up waiting.
        let _ = waiting.send(with);
    }
}

/// Reads an event of interest.
fn event(object: &Value) -> Option<Event> {
    let data = object.get("data");
    match object.get("event")?.as_str()? {
        "SHUTDOWN" => {
            let reason = data.and_then(|data| data.get("reason")).and_then(Value::as_str);
            Some(Event::Shutdown { reason: reason.unwrap_or("unknown").to_owned() })
        }
        "VSERPORT_CHANGE" if data?.get("open")?.as_bool() == Some(false) => {
            let stamp = object.get("timestamp")?;
            let seconds = Duration::from_secs(stamp.get("seconds")?.as_u64()?);
            let rest = Duration::from_micros(stamp.get("microseconds")?.as_u64()?);
            Some(Event::PortClosed { at: SystemTime::UNIX_EPOCH.checked_add(seconds.checked_add(rest)?)? })
        }
        _ => None,
    }
}

struct Lines {
    from_qemu: OwnedReadHalf,
    pending: Vec<u8>,
}

impl Lines {
    /// The next line, or `None` at the end of the stream. May be dropped half-way without loss.
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                return Some(self.pending.drain(..=end).collect());
            }
            if self.pending.len() > LINE_MAX {
                tracing::warn!("QEMU sent a line over {LINE_MAX} bytes");
                return None;
            }
            match self.from_qemu.read_buf(&mut self.pending).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn events_of_interest_are_read_and_others_passed_over() {
        let read = |text: &str| event(&serde_json::from_str(text).unwrap());
        assert_eq!(
            read(r#"{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"}}"#),
            Some(Event::Shutdown { reason: "guest-shutdown".to_owned() })
        );
        assert_eq!(
            read(
                r#"{"timestamp":{"seconds":5,"microseconds":7},"event":"VSERPORT_CHANGE",
                    "data":{"id":"xenstore","open":false}}"#
            ),
            Some(Event::PortClosed { at: SystemTime::UNIX_EPOCH + Duration::from_micros(5_000_007) })
        );
        assert_eq!(read(r#"{"event":"VSERPORT_CHANGE","data":{"open":true}}"#), None);
        assert_eq!(read(r#"{"event":"STOP"}"#), None);
        assert_eq!(read(r#"{"return":{}}"#), None);
    }
}
