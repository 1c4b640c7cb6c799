//! Command lines for the control domain's shell.
//!
//! Asked `ID COMMAND...` in one line, the agent (`scripts/lib/xen/dom0-init`) answers `ID EXIT-CODE BYTES` in one line
//! and then that many bytes. One command at a time.

use super::machine::Console;
use crate::guest::GuestError;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Commands that wait for their turn.
const COMMANDS_MAX: usize = 16;
/// Longest output of a command: a guest's console is a few dozen KiB.
const OUTPUT_MAX: u64 = 4 << 20;
/// How long a command may take: the agent itself ends one after 120 s.
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(180);

struct Command {
    line: String,
    limit: Duration,
    answer: oneshot::Sender<Result<Output, String>>,
}

/// What a command left.
#[derive(Debug)]
struct Output {
    code: u32,
    text: String,
}

/// Has commands run.
#[derive(Debug)]
pub(super) struct Agent {
    commands: mpsc::Sender<Command>,
    console: Console,
}

impl Agent {
    pub(super) fn start(stream: UnixStream, console: Console) -> Agent {
        let (commands, next) = mpsc::channel(COMMANDS_MAX);
        tokio::spawn(converse(BufReader::new(stream), next));
        Agent { commands, console }
    }

    /// Runs a command line and gives its output; an exit code other than 0 is an error.
    pub(super) async fn run(&self, line: &str, limit: Duration) -> Result<String, GuestError> {
        let (answer, answered) = oneshot::channel();
        let command = Command { line: line.to_owned(), limit, answer };
        let lost = |_| self.console.lost("it runs no commands any more");
        self.commands.send(command).await.map_err(|_| self.console.lost("it runs no commands any more"))?;
        let output = answered.await.map_err(lost)?.map_err(|what| self.console.lost(&what))?;
        if output.code == 0 {
            return Ok(output.text);
        }
        let what = format!("`{line}` failed with exit code {}: {}", output.code, output.text.trim_end());
        Err(GuestError::Xen { what, console: self.console.tail() })
    }
}

/// Ends with the connection, or with the first answer that is late or not one: what follows could be anything.
async fn converse(mut stream: BufReader<UnixStream>, mut commands: mpsc::Receiver<Command>) {
    let mut id = 0_u64;
    while let Some(command) = commands.recv().await {
        id += 1;
        let outcome = match timeout(command.limit, exchange(&mut stream, id, &command.line)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("`{}` took more than {} s", command.line, command.limit.as_secs())),
        };
        let is_over = outcome.is_err();
        // The asker gave up waiting.
        let _ = command.answer.send(outcome);
        if is_over {
            return;
        }
    }
}

async fn exchange(stream: &mut BufReader<UnixStream>, id: u64, line: &str) -> Result<Output, String> {
    let broken = |error: std::io::Error| format!("the connection to its agent broke: {error}");
    if line.contains('\n') {
        return Err(format!("{line:?} is not one line"));
    }
    stream.get_mut().write_all(format!("{id} {line}\n").as_bytes()).await.map_err(broken)?;
    loop {
        let mut header = String::new();
        let count = stream.read_line(&mut header).await.map_err(broken)?;
        if count == 0 {
            return Err("the connection to its agent ended".to_owned());
        }
        let fields: Vec<u64> = header.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        let &[answered, code, length] = fields.as_slice() else {
            return Err(format!("its agent answered {header:?}"));
        };
        if length > OUTPUT_MAX {
            return Err(format!("`{line}` has {length} bytes of output"));
        }
        let mut text = Vec::new();
        let count = stream.take(length).read_to_end(&mut text).await.map_err(broken)?;
        if u64::try_from(count) != Ok(length) {
            return Err(format!("its agent ended within the output of `{line}`"));
        }
        // Another: the answer to somebody who left before it came.
        if answered == id {
            let code = u32::try_from(code).unwrap_or(u32::MAX);
            return Ok(Output { code, text: String::from_utf8_lossy(&text).into_owned() });
        }
    }
}

/// A word of a command line, whatever is in it.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    async fn answering(answer: &'static [u8]) -> Result<String, GuestError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let agent = Agent::start(ours, Console::none());
        tokio::spawn(async move {
            let mut asked = [0; 5];
            theirs.read_exact(&mut asked).await.unwrap();
            assert_eq!(&asked, b"1 ls\n");
            theirs.write_all(answer).await.unwrap();
        });
        agent.run("ls", COMMAND_LIMIT).await
    }

    #[tokio::test]
    async fn output_comes_whole_and_stale_answers_are_passed_over() {
        assert_eq!(answering(b"1 0 4\na\nb\n").await.unwrap(), "a\nb\n");
        assert_eq!(answering(b"7 0 2\nx\n1 0 0\n").await.unwrap(), "");
    }

    #[tokio::test]
    async fn failures_name_the_command_and_what_it_said() {
        let text = answering(b"1 2 5\nno ls").await.unwrap_err().to_string();
        assert!(text.contains("`ls` failed with exit code 2: no ls"), "{text}");
        for odd in [&b"nonsense\n"[..], b"1 0\n", b"1 0 99999999\n", b"1 0 4\nab", b""] {
            answering(odd).await.unwrap_err();
        }
    }

    #[test]
    fn quoted_words_stay_one_word() {
        assert_eq!(quoted("a b'c"), r"'a b'\''c'");
    }
}
