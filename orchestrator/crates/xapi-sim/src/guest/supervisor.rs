//! The life of one QEMU process, from its start to [`GuestEvent::Exited`].

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::qemu::{CONSOLE_LOG, Programs, QEMU_LOG, QMP_SOCKET, XENSTORE_SOCKET, nic_name};
use super::qmp::{Event, Qmp};
use super::xenstore::{Shared, serve};
use super::{GuestConfig, GuestError, GuestEvent, process};

/// How long QEMU may take until it has connected to its sockets. It takes some 100 ms alone; a machine
/// that starts a dozen guests at once is given plenty.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of QEMU's log is read for its last words.
const LAST_WORDS_MAX: u64 = 4096;

/// A guest whose processors run.
pub(super) struct Started {
    pub(super) pid: u32,
    pub(super) qmp: Qmp,
    pub(super) kill: mpsc::Sender<()>,
    pub(super) has_ended: watch::Receiver<bool>,
}

/// Starts QEMU with the guest and everything that attends to it. When it fails, dropping the child kills it.
pub(super) async fn start(
    config: &GuestConfig,
    programs: &Programs,
    store: Arc<Shared>,
    events: mpsc::Sender<GuestEvent>,
) -> Result<Started, GuestError> {
    let system = |action: &'static str| {
        move |source: io::Error| GuestError::System { action, guest: config.name.clone(), source }
    };
    let directory = &config.work_dir;
    std::fs::create_dir_all(directory).map_err(system("making the work directory"))?;
    let for_qmp = listen(directory, QMP_SOCKET).map_err(system("listening for QEMU"))?;
    let for_store = listen(directory, XENSTORE_SOCKET).map_err(system("listening for QEMU"))?;
    // QEMU would make it, but a reader may come first.
    File::create(directory.join(CONSOLE_LOG)).map_err(system("making the console log"))?;
    let log = File::create(directory.join(QEMU_LOG)).map_err(system("making QEMU's log"))?;

    let mut command = Command::new(&programs.setpriv);
    command
        .args(programs.arguments(config))
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(system("making QEMU's log"))?)
        .stderr(log)
        // An interrupt typed at the simulator's terminal is the simulator's to handle.
        .process_group(0)
        .kill_on_drop(true);
    let mut child = process::spawn(command).await.map_err(system("starting QEMU"))?;
    let pid = child.id().ok_or(GuestError::Ended)?;

    let connected = async { tokio::try_join!(accept(&for_qmp), accept(&for_store)) };
    let (qmp_stream, store_stream) = tokio::select! {
        connected = timeout(CONNECT_TIMEOUT, connected) => match connected {
            Ok(streams) => streams.map_err(system("waiting for QEMU"))?,
            Err(_) => return Err(GuestError::Silent {
                what: format!("QEMU's connection for guest {}", config.name),
                seconds: CONNECT_TIMEOUT.as_secs(),
            }),
        },
        status = child.wait() => {
            let status = status.map_err(system("waiting for QEMU"))?;
            return Err(not_started(config, process::describe("QEMU", status)));
        }
    };
    let (qmp, qmp_events) = match power_on(config, qmp_stream).await {
        // It ended meanwhile; its own words say more than the broken connection.
        Err(GuestError::Ended) => {
            let status = child.wait().await.map_err(system("waiting for QEMU"))?;
            return Err(not_started(config, process::describe("QEMU", status)));
        }
        outcome => outcome?,
    };

    let (kill, killed) = mpsc::channel(1);
    let (ended, has_ended) = watch::channel(false);
    let port = {
        let (store, events) = (Arc::clone(&store), events.clone());
        tokio::spawn(async move { serve(&store, store_stream, &events).await })
    };
    let supervisor =
        Supervisor { name: config.name.clone(), log: directory.join(QEMU_LOG), child, store, port, events };
    tokio::spawn(supervisor.run(killed, qmp_events, ended));
    Ok(Started { pid, qmp, kill, has_ended })
}

/// Sets the cables and lets the processors run.
async fn power_on(
    config: &GuestConfig,
    stream: UnixStream,
) -> Result<(Qmp, mpsc::Receiver<Event>), GuestError> {
    let (qmp, events) = Qmp::start(stream).await?;
    if !config.link_up {
        for nic in &config.nics {
            qmp.execute("set_link", json!({ "name": nic_name(nic), "up": false })).await?;
        }
    }
    qmp.execute("cont", json!({})).await?;
    Ok((qmp, events))
}

fn not_started(config: &GuestConfig, how: String) -> GuestError {
    GuestError::NotStarted {
        guest: config.name.clone(),
        description: with_last_words(how, &config.work_dir.join(QEMU_LOG)),
    }
}

/// Binds a socket in `directory`. The name the kernel gets is short however deep the directory lies: a
/// socket's name has room for 107 bytes.
fn listen(directory: &Path, name: &str) -> io::Result<UnixListener> {
    match std::fs::remove_file(directory.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let opened = File::open(directory)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{name}", opened.as_raw_fd()))
}

async fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    listener.accept().await.map(|(stream, _)| stream)
}

struct Supervisor {
    name: String,
    log: std::path::PathBuf,
    child: Child,
    store: Arc<Shared>,
    port: JoinHandle<()>,
    events: mpsc::Sender<GuestEvent>,
}

impl Supervisor {
    /// Attends to QEMU until it ends, then tells so.
    async fn run(
        mut self,
        mut killed: mpsc::Receiver<()>,
        mut qmp_events: mpsc::Receiver<Event>,
        ended: watch::Sender<bool>,
    ) {
        let mut shutdown = None;
        let mut is_killed = false;
        let mut has_qmp = true;
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                // Nothing received: the guest's owner dropped it.
                _ = killed.recv(), if !is_killed => {
                    is_killed = true;
                    if let Err(error) = self.child.start_kill() {
                        tracing::warn!(guest = self.name, %error, "QEMU cannot be killed, it may have ended");
                    }
                }
                event = qmp_events.recv(), if has_qmp => match event {
                    Some(event) => self.attend(event, &mut shutdown),
                    None => has_qmp = false,
                },
            }
        };
        // Whoever waits in `kill` may be the one who reads `events`: tell them first.
        ended.send_replace(true);
        while let Some(event) = qmp_events.recv().await {
            self.attend(event, &mut shutdown);
        }
        if self.port.await.is_err() {
            tracing::error!(guest = self.name, "the guest's XenStore server panicked");
        }
        let how = match status {
            Ok(status) => {
                describe_end(process::describe("QEMU", status), status.success(), shutdown, &self.log)
            }
            Err(error) => format!("QEMU's end was not seen: {error}"),
        };
        tracing::info!(guest = self.name, how, "guest ended");
        // Nobody listens any more.
        let _ = self.events.send(GuestEvent::Exited { description: how }).await;
    }

    fn attend(&self, event: Event, shutdown: &mut Option<String>) {
        match event {
            Event::Shutdown { reason } => *shutdown = Some(reason),
            Event::PortClosed { at } => self.store.forget_before(at),
        }
    }
}

/// How the guest ended, from what QEMU announced before it ended.
fn describe_end(how: String, is_success: bool, shutdown: Option<String>, log: &Path) -> String {
    match shutdown.as_deref() {
        Some("guest-shutdown") if is_success => "the guest powered itself off".to_owned(),
        Some("guest-reset") if is_success => {
            "the guest asked for a restart, or its kernel panicked".to_owned()
        }
        Some(reason) if is_success => format!("{how} ({reason})"),
        _ => with_last_words(how, log),
    }
}

/// Adds the last line of the guest's log, where there is one.
pub(super) fn with_last_words(how: String, log: &Path) -> String {
    match last_line(log) {
        Some(line) => format!("{how}: {line}"),
        None => how,
    }
}

fn last_line(log: &Path) -> Option<String> {
    let text = last_bytes(log, LAST_WORDS_MAX)?;
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

/// At most the last `count` bytes of a file, as text.
pub(super) fn last_bytes(log: &Path, count: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(count))).ok()?;
    let mut end = Vec::new();
    file.take(count).read_to_end(&mut end).ok()?;
    Some(String::from_utf8_lossy(&end).into_owned())
}
